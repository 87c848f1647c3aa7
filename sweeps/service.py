"""The one door to sweeps: what the command line and the HTTP API do are translations of these calls."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from model.diagnosis import Judgement, judge
from sweeps import preparing
from sweeps.budget import IMPROVEMENT
from sweeps.errors import (
    DatabaseOutdated,
    NoProposal,
    NothingToDo,
    SweepError,
    SweepExists,
    SweepNotFound,
    TrialExists,
    WrongState,
)
from sweeps.forecast import Forecast
from sweeps.forecasting import forecast_of
from sweeps.interface import LOOK_SECONDS, MOST_METRICS, PAGE, Best, Change, Created, Spec, Sweeps
from sweeps.keeper import end_if_over, has_work, holding, tried_all
from sweeps.policy import Policy
from sweeps.processes import is_gone, this_runner
from sweeps.records import (
    ActionRow,
    Curve,
    DecisionRow,
    EpochRow,
    EventRow,
    PlannedTrial,
    SweepRow,
    SweepStatus,
    TrialRow,
)
from sweeps.settings import Home
from sweeps.spec import SpecError, SweepSpec, corpus_of, digest, read_spec, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import Store, without_password
from sweeps.study import Study
from sweeps.summary import Conclusions, command_of, conclusions, config_of, program, shell_line
from tracking.links import without_credentials
from tracking.writer import TrackingRefused, TrackingUnavailable


def proposal_of(sweep: SweepRow) -> dict[str, float]:
    """The bounds of the learning rate, `low` and `high`, that a sweep's alarm proposes.

    Raises:
        NoProposal: it has not alarmed, or its alarm proposes none.
    """
    alarm = sweep.facts.get("alarm")
    if alarm is None or alarm["proposal"] is None:
        raise NoProposal(sweep.name, alarm and alarm["advice"])
    return dict(alarm["proposal"])


def accept_proposal(store: Store, sweep: SweepRow, spec: SweepSpec) -> None:
    """From now on the sampler draws learning rates from the bounds that the sweep's alarm proposed, and a trial at
    their (geometric) middle comes first. Done again it changes nothing.

    Raises:
        NoProposal: see `proposal_of`.
        TrialsSpent: the budget has no trial left for it.
    """
    bounds = proposal_of(sweep)
    middle = float(f"{math.sqrt(bounds['low'] * bounds['high']):.2g}")
    trial = PlannedTrial("proposal", {**spec.in_the_space({}), "learning_rate": middle}, {}, True)
    store.enqueue(sweep.id, trial, {"learning_rate_bounds": {**bounds, "by": "alarm"}})


def find_sweep(store: Store, name: str) -> SweepRow:
    """
    Raises:
        SweepNotFound: with the nearest names.
    """
    sweep = store.find_sweep(name)
    if sweep is None:
        raise SweepNotFound(name, [s.name for s in store.sweeps()])
    return sweep


def sweeps_named(store: Store, names: Sequence[str]) -> list[SweepRow]:
    """Those of these names, or all where none is given; one that was deleted is left out."""
    return [sweep for sweep in store.sweeps() if not names or sweep.name in names]


def delete(
    store: Store, sweep: SweepRow, home: Home, checkpoints: Path | None, delete_experiment: DeleteExperiment
) -> None:
    """Remove a sweep: its experiment, its Optuna study, its checkpoints and pictures, its rows. Where the experiment
    cannot be removed the sweep is as it was; after a crash it is DELETING, and deleted when that is asked again.

    Raises:
        SweepBusy: a process works on it, or deletes it.
        SweepError: MLflow did not remove the experiment.
    """
    me = this_runner()
    alone = replace(
        me, id=f"delete-{uuid4().hex}-{me.id.rpartition('-')[2]}"
    )  # not even another thread of this process
    with holding(store, sweep, alone):
        before = store.begin_delete(sweep.id, lambda worker: is_gone(worker.host, worker.pid, worker.process_started))
        try:
            shipped = [trial.run_id for trial in store.trials(sweep.id) if trial.run_id is not None]
            delete_experiment(sweep, shipped[-1] if shipped else None)
        except BaseException as error:
            store.end_delete(sweep.id, before)
            if isinstance(error, TrackingUnavailable | TrackingRefused):
                raise SweepError(f"sweep {sweep.name!r} is not deleted: {error}") from error
            raise
        with closing(Study(store.url, spec_of(sweep))) as study:
            study.delete()
        for folder in (
            (checkpoints or home.checkpoints) / sweep.name,
            home.pictures(sweep.name),
            home.logs(sweep.name),
        ):
            shutil.rmtree(folder, onerror=_stays)
        store.delete_sweep(sweep.id)  # last: what comes before can be done again


def _stays(function: object, path: str, why: Any) -> None:
    if not isinstance(why[1], FileNotFoundError):
        log.warning("%s stays there: %s", path, why[1])


def find_trial(store: Store, path: str) -> tuple[SweepRow, TrialRow]:
    """A trial by `SWEEP/NUMBER` or `SWEEP/NAME`.

    Raises:
        SweepNotFound, TrialNotFound: with the nearest names.
    """
    name, _, trial = path.partition("/")
    sweep = find_sweep(store, name)
    return sweep, store.trial(sweep.id, trial)


def conclusions_of(store: Store, sweep: SweepRow, *, lessons: bool = True) -> Conclusions:
    """What a sweep came to so far; `lessons`, what it learned of its parameters, take a look at every epoch, and its
    forecast comes with them.
    """
    epochs = store.sweep_epochs(sweep.id) if lessons else None
    found = conclusions(sweep, store.trials(sweep.id), store.decisions(sweep.id), spec_of(sweep), epochs)
    return replace(found, forecast=forecast_of(store, sweep)) if lessons else found


def judgement_of(sweep: SweepRow, trial: TrialRow, rows: Sequence[EpochRow]) -> Judgement | None:
    """What a trial's epochs tell; None where they cannot be judged (no epoch, or a sweep that kept no floors)."""
    if not rows or trial.hyperparameters is None or not {"constant_wer", "constant_loss"} <= sweep.facts.keys():
        return None
    config = config_of(spec_of(sweep), trial)
    return judge([row.report() for row in rows], config, sweep.floors, dev_sequences=sweep.facts.get("dev_sequences"))


def load_home_store(home: Home, database: str | None, connections: int = 15) -> Store:
    """The database of this home, or the one named; see `Store` for its connections.

    Raises:
        DatabaseOutdated: with the command that upgrades it.
        DatabaseUnavailable, ValueError: see `Store`.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    try:
        return Store(database or home.database_url, connections)
    except DatabaseOutdated as old:
        raise DatabaseOutdated(old.url, old.revision, old.needed, upgrade_command(home, database)) from None


def ui_command(name: str, home: Home, database: str | None, tracking_uri: str | None) -> str:
    """The command that opens a sweep's dashboard again. Passwords are left out: the environment has them."""
    words = _command(home, database, "ui", name)
    if tracking_uri:
        words += ["--tracking-uri", without_credentials(tracking_uri)]
    return shell_line(words)


def upgrade_command(home: Home, database: str | None) -> str:
    """The command that brings the database of this home, or the one named, up to date."""
    return shell_line(_command(home, database, "db", "upgrade"))


def _command(home: Home, database: str | None, *words: str) -> list[str]:
    command = [program("sweeps"), *words]
    if home.root != Path(".sweeps").resolve():
        command += ["--home", str(home.root)]
    if database:
        command += ["--database", without_password(database)]
    return command


log = logging.getLogger(__name__)

DeleteExperiment = Callable[[SweepRow, str | None], None]
"""Removes the experiment of a sweep from MLflow, if the run of that id is in it; None: if it has the sweep's name."""


@dataclass(frozen=True)
class SweepService(Sweeps):
    """The sweeps of one database; see `Sweeps` for what can be asked."""

    store: Store
    home: Home
    actor: str
    """Who asks."""
    policy: Policy | None = None
    """What may be named from outside. None: whoever asks is at this machine, and may name anything."""
    delete_experiment: DeleteExperiment | None = None
    """Removes what MLflow has of a sweep; None where no server is known."""
    checkpoints: Path | None = None
    """Folder of the checkpoints, if not in home."""
    progress: preparing.Progress | None = None
    """Told how far the reading of a corpus is."""

    def create(
        self, spec: Spec, *, trials: int | None = None, trainer: str | None = None, force: bool = False
    ) -> Created:
        changes: dict[str, Any] = {} if trials is None else {"trials": trials}
        asked = read_spec(spec, trusted=self.policy is None, **changes)
        if self.policy is not None:
            asked, trainer = self.policy.admitted(asked), self.policy.trainer(trainer)
        self._note("create", asked.name)
        # The workers' machines may have a device that this one has not.
        prepared = preparing.prepare(asked, self.home, self.progress, trainer, force=force, check_device=False)
        new = self.store.find_sweep(asked.name) is None
        try:
            sweep = preparing.open_sweep(self.store, prepared, force=force)
        except SweepExists:  # another process was faster
            new, sweep = False, preparing.open_sweep(self.store, prepared)
        self.store.set_sweep_state(sweep.id, SweepState.RUNNING, only_from=(SweepState.PENDING,))
        return Created(self.sweep(asked.name), new, (*asked.warnings(), *prepared.notes))

    def sweeps(self) -> list[SweepStatus]:
        return self.store.statuses()

    def sweep(self, name: str) -> SweepStatus:
        found = self.store.statuses(name)
        return found[0] if found else self.store.statuses(find_sweep(self.store, name).name)[0]

    def trials(
        self, name: str, *, after: int = -1, limit: int = PAGE, state: TrialState | None = None
    ) -> list[TrialRow]:
        states = () if state is None else (state,)
        return self.store.trials(find_sweep(self.store, name).id, after, limit, states)

    def trial(self, name: str, trial: str | int) -> TrialRow:
        return self.store.trial(find_sweep(self.store, name).id, trial)

    def curve(self, name: str, trial: str | int) -> list[EpochRow]:
        return self.store.epochs(self.trial(name, trial).id)

    def curves(
        self,
        name: str,
        metrics: Sequence[str] = ("dev/wer",),
        *,
        after: int = -1,
        limit: int = PAGE,
        beyond: Mapping[int, int] | None = None,
    ) -> dict[int, Curve]:
        for metric in metrics:
            if not re.fullmatch(METRIC, metric):
                raise SweepError(f"metric {metric[:70]!r}: names are of letters, digits and . _ - /, as dev/wer is")
        if len(metrics) > MOST_METRICS:
            raise SweepError(f"{len(metrics)} metrics: ask for {MOST_METRICS} at a time")
        exact = self.store.columns(find_sweep(self.store, name).id, metrics, after, limit, beyond)
        return {number: _rounded(curve) for number, curve in exact.items()}

    def latest(self, name: str, *, after: int = -1, limit: int = PAGE) -> dict[int, EpochRow]:
        return self.store.latest_epochs(find_sweep(self.store, name).id, after, limit)

    def decisions(self, name: str) -> list[DecisionRow]:
        return self.store.decisions(find_sweep(self.store, name).id)

    def best(self, name: str) -> Best | None:
        status = self.sweep(name)
        if status.best is None:
            return None
        sweep = status.sweep
        return Best(status.best, command_of(sweep, status.best, spec_of(sweep), corpus_of(sweep)))

    def conclusions(self, name: str) -> Conclusions:
        return conclusions_of(self.store, find_sweep(self.store, name))

    def forecast(self, name: str, improvement: float = IMPROVEMENT) -> Forecast:
        if not 0 < improvement < 1:
            raise SweepError(
                f"improvement {improvement:g}: a fraction of WER, above 0 and below 1: 0.005 is half a point"
            )
        return forecast_of(self.store, find_sweep(self.store, name), improvement)

    def events(self, name: str, *, after: int = 0, limit: int = PAGE) -> list[EventRow]:
        return self.store.events(find_sweep(self.store, name).id, after, limit)

    def pause(self, name: str) -> SweepStatus:
        return self._step("pause", name, SweepState.PAUSED, f"paused by {self.actor}; resume it, or run it again")

    def resume(self, name: str, *, trials: int | None = None) -> SweepStatus:
        sweep = find_sweep(self.store, name)
        if trials is not None:
            self._note("budget", name, {"trials": trials})
            try:
                self.store.raise_budget(sweep.id, trials)
            except WrongState:
                raise
            except ValueError as error:
                raise SpecError(str(error)) from None
            sweep = find_sweep(self.store, name)
        siblings = self.store.siblings(sweep)
        if not has_work(sweep, siblings):
            raise NothingToDo(name, tried_all(sweep, siblings))
        return self._step("resume", name, SweepState.RUNNING, "")

    def stop(self, name: str) -> SweepStatus:
        why = f"stopped by {self.actor}; resume it, or run it again, to go on"
        return self._step("stop", name, SweepState.STOPPING, why, SweepState.STOPPED)

    def cancel(self, name: str) -> SweepStatus:
        return self._step("cancel", name, SweepState.CANCELLING, f"cancelled by {self.actor}", SweepState.CANCELLED)

    def enqueue(
        self, name: str, values: Mapping[str, Any], *, trial_name: str | None = None, repeat: bool = False
    ) -> TrialRow:
        if repeat and trial_name is None:
            raise SweepError("a repeat needs a name: so that it is added once, also where it is asked for twice")
        sweep = find_sweep(self.store, name)
        planned = planned_trial(spec_of(sweep), values, trial_name)
        self._note("enqueue", f"{name}/{planned.name}", {**planned.hyperparameters, **planned.overrides})
        trial = self.store.trial(sweep.id, self.store.enqueue(sweep.id, planned, repeat=repeat))
        if (trial.hyperparameters, trial.overrides) != (planned.hyperparameters, planned.overrides):
            raise TrialExists(name, planned.name)
        return trial

    def delete(self, name: str, *, keep_mlflow: bool = False, created_at: float | None = None) -> None:
        sweep = find_sweep(self.store, name)
        if created_at is not None and sweep.created_at != created_at:
            raise SweepNotFound(name)
        remove = None if keep_mlflow or sweep.experiment_id is None else self.delete_experiment
        if remove is None and sweep.experiment_id is not None and not keep_mlflow:
            raise SweepError(f"sweep {name!r} is in an MLflow that is not known here: keep that, or name the server")
        self._note("delete", name)
        delete(self.store, sweep, self.home, self.checkpoints, remove or (lambda sweep, run_id: None))

    def live(self, name: str, *, after: int | None = None) -> Iterator[Change]:
        watch = Watch(self.store, name, after)
        while True:
            yield from watch.look()
            if watch.over:
                return
            time.sleep(LOOK_SECONDS)

    def actions(self, *, after: int = 0, limit: int = PAGE) -> list[ActionRow]:
        return self.store.actions(after, limit)

    def _step(
        self, verb: str, name: str, state: SweepState, reason: str, done: SweepState | None = None
    ) -> SweepStatus:
        """
        Args:
            done: where that state has led before: nothing is left to do.
        """
        sweep = find_sweep(self.store, name)
        self._note(verb, name)
        if sweep.state not in (state, done):
            self.store.set_sweep_state(sweep.id, state, reason)
        end_if_over(self.store, sweep.id)  # a sweep on which nobody works ends here
        return self.sweep(name)

    def _note(self, action: str, target: str, data: Mapping[str, Any] | None = None) -> None:
        """Before it is done: what was done and not noted would be worse than the other way round."""
        self.store.add_action(ActionRow(self.actor, action, target, dict(data or {})))


METRIC = r"[\w./-]{1,64}"


def _rounded(curve: Curve) -> Curve:
    """To six digits: a third of the bytes, and no picture shows more."""
    return replace(
        curve,
        metrics={
            name: [None if value is None else float(f"{value:.6g}") for value in column]
            for name, column in curve.metrics.items()
        },
    )


OVERLAP_SECONDS = 60.0


class Watch:
    """What happens to a sweep, look by look."""

    def __init__(self, store: Store, name: str, after: int | None = None) -> None:
        """
        Args:
            after: the event from behind which it is told; None: from now on.

        Raises:
            SweepNotFound
        """
        self._store, self._name, self._said = store, name, ""
        self._sweep = find_sweep(store, name)
        self._last = store.last_event(self._sweep.id) if after is None else after
        known_until = math.inf if after is None else self._known_until()
        self._revisions = {
            trial.number: trial.revision
            for trial in store.siblings(self._sweep)
            if after is None or (trial.state.terminal and (trial.finished_at or 0.0) < known_until)
        }
        self.over = False
        """Whether the sweep has ended: nothing more will happen."""

    def _known_until(self) -> float:
        """When the last event that is known happened, less what a transaction may take: a trial that ended later, or
        has not ended, may have changed since and is told again.
        """
        known = self._store.events(self._sweep.id, self._last - 1, 1)
        return (known[0].at or 0.0) - OVERLAP_SECONDS if known else math.inf

    def look(self) -> list[Change]:
        """What happened since the last look: events, then trials, then the sweep itself if anything did; at the first
        look the sweep at any rate.

        Raises:
            SweepNotFound: it was deleted.
        """
        found = self._store.statuses(self._name)
        if not found or (found[0].sweep.id, found[0].sweep.created_at) != (self._sweep.id, self._sweep.created_at):
            raise SweepNotFound(self._name)
        events = self._store.events(self._sweep.id, self._last, PAGE)
        self._last = events[-1].id or self._last if events else self._last
        trials = self._store.siblings(self._sweep)
        changed = [trial for trial in trials if self._revisions.get(trial.number) != trial.revision]
        self._revisions |= {trial.number: trial.revision for trial in changed}
        status = found[0]
        said = repr((status.sweep.state, status.sweep.reason, status.counts, status.epochs, status.sweep.facts))
        changes = [Change("event", event, event.id or 0) for event in events]
        changes += [Change("trial", trial, self._last) for trial in changed]
        if said != self._said:
            changes.append(Change("status", status, self._last))
        self._said = said
        ended = status.sweep.state.terminal and status.sweep.state is not SweepState.DELETING
        self.over = ended and not changed and len(events) < PAGE
        return changes


def planned_trial(spec: SweepSpec, values: Mapping[str, Any], name: str | None = None) -> PlannedTrial:
    """A configuration as a trial that is to be trained; without a name it gets one that follows from its values.

    Raises:
        SpecError: no training config has these values, or no trial can have this name.
    """
    content = {
        key: value for key, value in spec.model_dump(mode="json").items() if key not in ("first_trials", "budget")
    }
    try:
        label = name if name is not None else f"asked-{digest(dict(values))[:8]}"
    except (TypeError, ValueError) as error:
        raise SpecError(f"configuration: is not plain JSON ({error})") from None
    try:
        asked = read_spec({**content, "first_trials": {label: dict(values)}}, "configuration", trusted=False)
    except SpecError as error:
        raise SpecError(str(error).replace(f"first_trials.{label}.", "")) from None
    (planned,) = asked.planned()
    return PlannedTrial(**planned._asdict())
