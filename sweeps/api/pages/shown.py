"""What the pages say of sweeps: read from the service once, ready for the templates."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import quote, urlencode, urlsplit

from model.diagnosis import TAKEOFF_MARGIN, counted
from sweeps.budget import cost
from sweeps.gathered import Gathered, values
from sweeps.importance import importance
from sweeps.interface import PAGE
from sweeps.keeper import has_work
from sweeps.pictures import DRAWINGS
from sweeps.records import DecisionRow, EventRow, Scope, SweepRow, SweepStatus, TrialRow
from sweeps.report import commands, measured, question, trust
from sweeps.service import SweepService, ui_command
from sweeps.shipping import server_of
from sweeps.spec import Choices, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.summary import COLLAPSED, SHORT, Conclusions, conclusions, is_audit
from tracking.links import experiment_url, run_url

Verb: TypeAlias = Literal["pause", "resume", "stop", "cancel"]
VERBS: Mapping[Verb, str] = {
    "pause": "No new epoch begins; trials are handed back at the end of the one in hand.",
    "resume": "Workers may claim its trials again.",
    "stop": "No new trial begins; those under way run to their ends.",
    "cancel": "It ends for good: epochs in hand are dropped, no trial goes on.",
}
assert tuple(VERBS) == get_args(Verb)
LEADS_TO = {"pause": SweepState.PAUSED, "stop": SweepState.STOPPING, "cancel": SweepState.CANCELLING}

EVENTS = 100
"""Of the last ones so many are shown."""
MOST_DECISIONS = 25
"""More than so many have a page of their own."""
METRICS = ("dev/wer", "spread/time")
"""Whose curves are drawn."""
CHANGED = 100
"""Trials whose rows can be asked for at once."""


def path_of(name: str) -> str:
    return f"/sweeps/{quote(name, safe='')}"


# the list


@dataclass(frozen=True)
class Listed:
    """A sweep in the list."""

    status: SweepStatus
    verdicts: Mapping[str, int]
    over: int
    """Trials that are over."""

    @property
    def path(self) -> str:
        return path_of(self.status.sweep.name)


def listed(service: SweepService) -> list[Listed]:
    """Every sweep, the newest first."""
    verdicts = service.store.verdicts()
    return [
        Listed(status, verdicts.get(status.sweep.id, {}), _over(status.counts)) for status in reversed(service.sweeps())
    ]


def _over(counts: Mapping[TrialState, int]) -> int:
    return sum(number for state, number in counts.items() if state.terminal)


# one sweep


@dataclass(frozen=True)
class Mlflow:
    """Where the runs of a sweep are seen."""

    server: str | None
    """Its address; None where there is no server but the one that `command` starts."""
    experiment_id: str | None
    command: str

    @property
    def experiment(self) -> str | None:
        """The address of the sweep's runs."""
        return experiment_url(self.server, self.experiment_id) if self.server and self.experiment_id else None

    def run(self, trial: TrialRow) -> str | None:
        """The address of a trial's run."""
        if self.server is None or self.experiment_id is None or trial.run_id is None:
            return None
        return run_url(self.server, self.experiment_id, trial.run_id)


@dataclass(frozen=True)
class Row:
    """A trial in the table."""

    trial: TrialRow
    values: Mapping[str, Any]
    """Of the parameters that the sweep searched, and the learning rate."""
    of_its_own: Mapping[str, Any]
    """Its other settings."""
    collapsed: bool
    audited: bool
    decided: bool
    """Whether a rule condemned it."""
    outcome: str
    run: str | None
    """The address of its run."""


@dataclass(frozen=True)
class Shown:
    """A sweep as its page shows it, some of its trials as rows."""

    of: Gathered
    status: SweepStatus
    searched: Sequence[str]
    rows: Sequence[Row]
    decisions: Sequence[tuple[DecisionRow, Sequence[tuple[str, str]]]]
    events: Sequence[EventRow]
    """The newest first."""
    last_event: int
    verbs: Sequence[Verb]
    """Those that its state allows and whoever asks may say."""
    mlflow: Mlflow

    @property
    def path(self) -> str:
        return path_of(self.of.sweep.name)

    @property
    def curves(self) -> str:
        """Where the curves of its rows are."""
        first = self.rows[0].trial.number if self.rows else 0
        query = urlencode([*(("metric", metric) for metric in METRICS), ("after", first - 1), ("limit", PAGE)])
        return f"/v1{self.path}/curves?{query}"

    @property
    def decisions_at(self) -> str:
        """The page that has them."""
        return "" if len(self.of.decisions) <= MOST_DECISIONS else f"{self.path}/decisions"

    @property
    def over(self) -> int:
        return _over(self.status.counts)

    @property
    def floor(self) -> float:
        return float(self.of.sweep.facts["constant_wer"])

    @property
    def took_off(self) -> int:
        return sum(trial.best_wer is not None and _took_off(trial.best_wer, self.floor) for trial in self.of.trials)

    @property
    def budget(self) -> list[tuple[str, str, str]]:
        """What is limited, what of it is spent, and what is left."""
        given, sweep = self.of.sweep.budget, self.of.sweep
        rows = [_spent("trials", self.over, given["trials"])]
        rows.append(_spent("epochs", self.status.epochs, given.get("total_epochs")))
        rows.append(_spent("hours", sweep.seconds / 3600, given.get("hours")))
        trained = sum(trial.seconds for trial in self.of.trials)
        rows.append(_spent("device hours", trained / 3600, given.get("device_hours")))
        if (money := cost(given, trained)) is not None:
            rows.append(_spent(given.get("currency") or "money", money, given.get("money")))
        return rows

    @property
    def question(self) -> str:
        return question(self.of)

    @property
    def trust(self) -> list[str]:
        return trust(self.of)

    @property
    def best_values(self) -> Mapping[str, Any]:
        return {} if self.of.best is None else values(self.of.best)

    @property
    def commands(self) -> list[tuple[str, str, list[str]]]:
        """Shell, the line for it that trains the best configuration, and that line in parts that may stand below
        each other.
        """
        best = self.of.best
        made = commands(self.of, best) if best is not None else []
        return [(shell, line, re.split(" (?=--)", line)) for shell, line in made]

    @property
    def importance(self) -> list[tuple[str, float]]:
        """The most important first."""
        shares = importance(self.of.trials, self.of.spec)
        return sorted(shares.items(), key=lambda pair: -pair[1])

    @property
    def bounds(self) -> Mapping[str, Any]:
        """Of the learning rates that are searched: `low`, `high`, and `by` whom they were proposed; None: the spec."""
        space = self.of.spec.space.learning_rate
        asked = {"low": space.low, "high": space.high, "by": None}
        return {**asked, **self.of.sweep.facts.get("learning_rate_bounds", {})}

    @property
    def axes(self) -> list[dict[str, Any]]:
        """Of the parallel coordinates."""
        return [
            {"name": name, "short": SHORT.get(name, name), "log": getattr(each, "log", False),
             "choices": each.choices if isinstance(each, Choices) else None}
            for name, each in self.of.spec.space.searched().items()
        ]  # fmt: skip

    def caption(self, kind: str) -> str:
        """What a picture shows, and what to look for."""
        return next(drawing.caption for key, drawing in DRAWINGS.items() if key == kind)

    @property
    def reached(self) -> str:
        """What the curves came to, for those who do not see them."""
        best = self.of.best
        lowest = "no WER yet" if best is None else f"the lowest WER is {best.best_wer:.1%}, of trial {best.number}"
        return f"{counted(len(self.of.trials), 'trial')}; {lowest}"


def shown(service: SweepService, name: str, scope: Scope, tracking: str | None, after: int = -1) -> Shown:
    """A sweep with the rows of the trials above `after`, PAGE at most.

    Raises:
        SweepNotFound: with the nearest names.
    """
    status = service.sweep(name)
    of = _gathered(service, status.sweep)
    rows = [trial for trial in of.trials if trial.number > after][:PAGE]
    first, last = (rows[0].number, rows[-1].number) if rows else (0, -1)
    decided = [decision for decision in of.decisions if first <= decision.number <= last]
    events = service.store.last_events(of.sweep.id, EVENTS)
    return _shown(service, status, of, rows, decided, events, scope, tracking)


def changed(
    service: SweepService, name: str, scope: Scope, tracking: str | None, numbers: Sequence[int], after: int
) -> Shown:
    """A sweep as it is now, with the rows of those trials, the decisions against them, and the events after one."""
    status = service.sweep(name)
    of = _gathered(service, status.sweep)
    rows = [trial for trial in of.trials if trial.number in numbers]
    decided = [decision for decision in of.decisions if decision.number in numbers]
    events = service.events(name, after=after)[::-1][:EVENTS]
    return _shown(service, status, of, rows, decided, events, scope, tracking)


def _gathered(service: SweepService, sweep: SweepRow) -> Gathered:
    """Without curves, which the page fetches by themselves, and without lessons, which take a look at all of them."""
    trials = service.store.trials(sweep.id)
    decisions = service.store.decisions(sweep.id)
    return Gathered(sweep, trials, {}, decisions, conclusions(sweep, trials, decisions, spec_of(sweep)), [])


def _shown(
    service: SweepService,
    status: SweepStatus,
    of: Gathered,
    trials: Sequence[TrialRow],
    decisions: Sequence[DecisionRow],
    events: Sequence[EventRow],
    scope: Scope,
    tracking: str | None,
) -> Shown:
    searched = list(of.spec.space.searched())
    mlflow = _mlflow(service, of.sweep, tracking)
    return Shown(
        of,
        status,
        searched,
        [_row(of, trial, searched, mlflow) for trial in trials],
        [(decision, measured(decision)) for decision in decisions],
        events,
        events[0].id or 0 if events else 0,
        _verbs(of) if scope == "operate" else (),
        mlflow,
    )


def _row(of: Gathered, trial: TrialRow, searched: Sequence[str], mlflow: Mlflow) -> Row:
    given = values(trial)
    return Row(
        trial,
        {name: given[name] for name in dict.fromkeys((*searched, "learning_rate")) if name in given},
        {name: value for name, value in trial.overrides.items() if name not in searched},
        trial.verdict in COLLAPSED,
        is_audit(trial, of.conclusions),
        trial.number in of.conclusions.decisions,
        outcome(trial, of.sweep.facts["constant_wer"]),
        mlflow.run(trial),
    )


def outcome(trial: TrialRow, constant_wer: float) -> str:
    """Whether a trial took off, in words; its learning rate is drawn by it."""
    if trial.best_wer is not None and _took_off(trial.best_wer, constant_wer):
        return "took off"
    if trial.verdict == "diverged":
        return "diverged"
    if trial.verdict == "too_slow":
        return "stopped before"
    return "did not take off" if trial.state.terminal else "not yet"


def _took_off(wer: float, constant_wer: float) -> bool:
    return wer <= constant_wer - TAKEOFF_MARGIN


def _verbs(of: Gathered) -> list[Verb]:
    state = of.sweep.state
    return [
        verb
        for verb in VERBS
        if (
            state.may_become(SweepState.RUNNING) and has_work(of.sweep, list(of.trials))
            if verb == "resume"
            else state.may_become(LEADS_TO[verb])
        )
    ]


def _mlflow(service: SweepService, sweep: SweepRow, tracking: str | None) -> Mlflow:
    server = server_of(sweep, tracking, service.home)
    seen = server is not None and urlsplit(server).scheme in ("http", "https")
    database = None if service.store.url == service.home.database_url else service.store.url
    command = ui_command(sweep.name, service.home, database, None if seen else server)
    return Mlflow(server if seen else None, sweep.experiment_id, command)


def _spent(what: str, spent: float, given: float | None) -> tuple[str, str, str]:
    def text(number: float) -> str:
        return f"{number:,.0f}" if what in ("trials", "epochs") else f"{number:,.1f}"

    if given is None:
        return what, text(spent), "no limit"
    return what, f"{text(spent)} of {text(given)}", f"{text(max(given - spent, 0))} left"


# What was learned


def lessons(found: Conclusions) -> dict[str, list[str]]:
    """What was learned: parameters by the sentence about them."""
    alike: dict[str, list[str]] = {}
    for lesson in found.lessons:
        alike.setdefault(lesson.sentence, []).append(lesson.parameter)
    return alike


# words


def percent(wer: float | None) -> str:
    return "" if wer is None else f"{wer:.1%}"


def short(value: Any) -> str:
    """A value of a configuration, in a table."""
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else str(value)
    return str(value)


def clock(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
