"""What somebody is to be told of a sweep: pure, from its rows and what was told before."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from model.diagnosis import TAKEOFF_MARGIN, counted
from sweeps.records import NotificationRow, SweepRow, TrialRow
from sweeps.states import SweepState, TrialState
from sweeps.summary import best_trial, trial_label

News: TypeAlias = Literal["takeoff", "alarm", "new_best", "end", "breaker"]
NEWS: tuple[News, ...] = typing.get_args(News)

QUIET_SECONDS = 1800.0
"""No new best is told sooner after a sweep was told to run, or after the one before: the first trials are each the best
so far, and nobody wants to hear of them all."""

OLD_SECONDS = 86_400.0
"""Of a sweep that ended so long ago nothing is told any more, and what could not be told for so long is given up."""


@dataclass(frozen=True)
class Notice:
    """Something to tell."""

    key: str
    """Unique within the sweep: told twice, it is one."""
    kinds: tuple[News, ...]
    """Who listens to any of these is told; the first is what it is called."""
    text: str
    data: dict[str, Any]


def notices(
    sweep: SweepRow, trials: Sequence[TrialRow], told: Sequence[NotificationRow], now: float, *, breaker: bool
) -> list[Notice]:
    """What there is to tell that is not among what was `told`.

    Args:
        now: by the database's clock (UNIX seconds).
        breaker: whether the sweep failed because its trials did, one after the other.
    """
    ended = sweep.finished_at if sweep.state.terminal else None
    if sweep.state is SweepState.DELETING or (ended is not None and now - ended > OLD_SECONDS):
        return []
    known = {row.key for row in told}
    found = [*_takeoff(sweep, trials), *_alarm(sweep), *_new_best(sweep, trials, told, now)]
    if ended is not None:
        kinds: tuple[News, ...] = ("breaker", "end") if breaker else ("end",)
        key = f"{sweep.state.value.lower()}/{ended:.3f}"
        found.append(Notice(key, kinds, end_sentence(sweep, trials), _data(sweep, trials, None)))
    return [notice for notice in found if notice.key not in known]


def _takeoff(sweep: SweepRow, trials: Sequence[TrialRow]) -> list[Notice]:
    first = next((trial for trial in trials if _took_off(sweep, trial)), None)
    if first is None:
        return []
    text = f"{sweep.name}: trial {trial_label(first)} took off, {_wer(first)}; {_floor(sweep)}."
    return [Notice("takeoff", ("takeoff",), text, _data(sweep, trials, first))]


def _alarm(sweep: SweepRow) -> list[Notice]:
    alarm = sweep.facts.get("alarm")
    if alarm is None:
        return []
    paused = " The sweep is paused." if sweep.state is SweepState.PAUSED else ""
    data = {**_data(sweep, [], None), "alarm": {name: alarm[name] for name in ("cause", "proposal")}}
    return [Notice("alarm", ("alarm",), f"{sweep.name}: {alarm['sentence']} {alarm['advice']}{paused}", data)]


def _new_best(sweep: SweepRow, trials: Sequence[TrialRow], told: Sequence[NotificationRow], now: float) -> list[Notice]:
    """At the end of the trial, as until then it gets better with each epoch; none once the sweep is over, whose end
    names it.
    """
    best = best_trial([trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)])
    if best is None or best.best_wer is None or not _took_off(sweep, best) or sweep.state.terminal:
        return []
    before = [row for row in told if row.kind == "new_best"]
    since = max([sweep.resumed_at or sweep.created_at, *(row.created_at for row in before)])
    if now - since < QUIET_SECONDS or any(row.data["trial"]["wer"] <= best.best_wer for row in before):
        return []
    text = f"{sweep.name}: trial {trial_label(best)} is the best so far, {_wer(best)}; {_floor(sweep)}."
    return [Notice(f"best/{best.number}", ("new_best",), text, _data(sweep, trials, best))]


def end_sentence(sweep: SweepRow, trials: Sequence[TrialRow]) -> str:
    """How a sweep ended, and what it came to."""
    best, states = best_trial(trials), [trial.state for trial in trials]
    counts = [f"{states.count(state)} {state.value.lower()}" for state in TrialState if state in states]
    result = f"Best: trial {trial_label(best)}, {_wer(best)}; {_floor(sweep)}." if best else "No trial has a WER."
    why = f" ({sweep.reason})" if sweep.reason else ""
    of_them = f" ({', '.join(counts)})" if counts else ""
    took = f"{counted(len(trials), 'trial')}{of_them} in {sweep.seconds / 3600:.1f} h"
    return f"{sweep.name} is {sweep.state.value}{why}. {result} {took}."


def _took_off(sweep: SweepRow, trial: TrialRow) -> bool:
    return trial.best_wer is not None and trial.best_wer <= sweep.facts["constant_wer"] - TAKEOFF_MARGIN


def _wer(trial: TrialRow) -> str:
    return f"dev WER {trial.best_wer:.1%} at epoch {trial.best_epoch}"


def _floor(sweep: SweepRow) -> str:
    return f"the best constant sentence scores {sweep.facts['constant_wer']:.1%}"


def _data(sweep: SweepRow, trials: Sequence[TrialRow], trial: TrialRow | None) -> dict[str, Any]:
    return {
        "state": sweep.state.value,
        "reason": sweep.reason,
        "trial": _short(trial),
        "best": _short(best_trial(trials)),
        "constant_wer": sweep.facts["constant_wer"],
    }


def _short(trial: TrialRow | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    return {"number": trial.number, "name": trial.name, "wer": trial.best_wer, "epoch": trial.best_epoch}
