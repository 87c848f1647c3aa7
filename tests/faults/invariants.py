"""What must hold of a sweep that is over, whatever has died meanwhile: one check for all faults."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from sqlalchemy import select

from sweeps import checkpoints
from sweeps.processes import is_known_dead
from sweeps.records import BEST_WER, EpochRow, EventRow, SweepRow, TrialRow
from sweeps.spec import spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import Store, engine_options
from sweeps.summary import config_of
from sweeps.tables import epochs as epochs_table
from sweeps.tables import trials as trials_table
from tests.acceptance.commands import STATUS, living
from tests.faults import counting
from tests.faults.points import Fault, Fired
from tests.faults.site import Outcome, Site

OPTUNA_STATE = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED", "FAILED": "FAIL", "CANCELLED": "FAIL"}
REFUSED_AT = {("record", "before"), ("parameters", "before"), ("finish", "before")}
"""Points at which a frozen worker's next act is a write of its trial."""
TERMINAL_EVENTS = {"complete", "pruned", "failed", "cancelled"}
ENDS_OF_ATTEMPTS = {"reaped", "handed_back", "attempt_failed", *TERMINAL_EVENTS}
TOO_LONG = "took"
GONE_SECONDS = 10.0
"""What processes get to end after their command: Python's own resource tracker goes last."""


@dataclass(frozen=True)
class Curve:
    """What a trial tried, and the metrics of its epochs."""

    hyperparameters: Mapping[str, Any] | None
    metrics: list[dict[str, float]]


@dataclass(frozen=True)
class Expected:
    """What a sweep is to come to."""

    trials: int
    seconds: float
    """Within which it is to be over."""
    repeated: int
    """Epochs that may have been begun once more: one a fault that takes an epoch."""
    states: Mapping[int, str] = field(default_factory=dict)
    """By number of the trial; COMPLETE where it is not named."""
    curves: Mapping[int, Curve] | None = None
    """By number of the trial; None: those of the counting trainer."""
    all_strike: bool = True
    """Whether each fault of the plan is to strike."""


@dataclass(frozen=True)
class Seen:
    """What there is to be looked at, read once."""

    site: Site
    sweep: SweepRow
    trials: list[TrialRow]
    epochs: dict[int, list[EpochRow]]
    """By trial id."""
    events: list[EventRow]


def violations(site: Site, outcome: Outcome, expected: Expected) -> list[str]:
    """A sentence for each rule that is broken; empty if all hold."""
    found = [f"{fault} did not strike" for fault in site.plan.silent() if expected.all_strike]
    with closing(Store(site.url)) as store:
        sweep = store.find_sweep(site.name)
        if sweep is None:
            return [*found, "there is no sweep"]
        seen = Seen(site, sweep, store.trials(sweep.id), store.sweep_epochs(sweep.id), store.events(sweep.id))
        found += _of_rows(seen, expected)
        found += _of_marks(seen, store)
    found += _of_events(seen)
    found += _of_optuna(seen)
    found += _of_mlflow(seen)
    found += _of_files(seen)
    found += _of_late_writes(seen)
    found += _of_curves(seen, expected)
    if len(again := repeated(site)) > expected.repeated:
        found.append(f"{len(again)} epochs were begun once more, {expected.repeated} may: {again}")
    if outcome.seconds > expected.seconds:
        found.append(f"{TOO_LONG} {outcome.seconds:.1f} s, {expected.seconds:.1f} s are allowed")
    return [*found, *_of_processes(site)]


def repeated(site: Site) -> list[str]:
    """Each time that an epoch was begun once more, as `seed/epoch`."""
    begun = Counter(f"{line['seed']}/{line['epoch']}" for line in counting.trained(site.log) if line["what"] == "begin")
    return [name for name, times in sorted(begun.items()) for _ in range(times - 1)]


def _of_rows(seen: Seen, expected: Expected) -> Iterator[str]:
    if seen.sweep.state is not SweepState.COMPLETE:
        yield f"the sweep is {seen.sweep.state} ({seen.sweep.reason})"
    # One that was killed cannot sign off; whoever comes next sees that it is dead.
    if seen.sweep.runner is not None and not is_known_dead(seen.sweep.runner):
        yield f"{seen.sweep.runner} holds the sweep still"
    numbers = [trial.number for trial in seen.trials]
    if numbers != list(range(expected.trials)):
        yield f"trials {numbers}, {expected.trials} were asked for"
    for trial in seen.trials:
        rows, wanted = seen.epochs[trial.id], expected.states.get(trial.number, "COMPLETE")
        if trial.state != wanted:
            yield f"trial {trial.number} is {trial.state} ({trial.reason}), not {wanted}"
        if [row.epoch for row in rows] != list(range(1, trial.epochs + 1)):
            yield f"trial {trial.number} has epochs {[row.epoch for row in rows]}, and says {trial.epochs}"
        steps = [row.step for row in rows]
        if steps != sorted(set(steps)):
            yield f"trial {trial.number}: steps {steps} do not rise"
        times = [row.recorded_at or math.nan for row in rows]
        if times != sorted(set(times)):
            yield f"trial {trial.number}: recorded at {times}"
        config = config_of(spec_of(seen.sweep), trial)
        if trial.state is TrialState.COMPLETE and trial.rule == "epochs" and trial.epochs != config.epochs:
            yield f"trial {trial.number} trained {trial.epochs} of {config.epochs} epochs"
        best = min(((row.metrics["dev/wer"], row.epoch) for row in rows), default=(None, None))
        if (trial.best_wer, trial.best_epoch) != best:
            yield f"trial {trial.number}: best {(trial.best_wer, trial.best_epoch)}, its rows say {best}"
        if trial.finished_at is None or not trial.reason:
            yield f"trial {trial.number} ended at {trial.finished_at} ({trial.reason!r})"


def _of_marks(seen: Seen, store: Store) -> Iterator[str]:
    """Leases, and what Optuna and MLflow have heard, as the tables say it."""
    columns = trials_table.c
    mine = columns.sweep_id == seen.sweep.id
    with store._read() as connection:
        rows = connection.execute(
            select(
                *(columns.number, columns.state, columns.lease_expires_at, columns.epochs, columns.reserved_epochs),
                *(columns.optuna_trial_id, columns.told_at, columns.revision, columns.mirrored_revision),
                columns.hyperparameters,
            ).where(mine)
        ).all()
        unseen = connection.execute(
            select(columns.number, epochs_table.c.epoch)
            .join_from(trials_table, epochs_table)
            .where(mine, epochs_table.c.mirrored_at.is_(None))
        ).all()
    for row in rows:
        if row.lease_expires_at is not None:
            yield f"trial {row.number} is {row.state} and has a lease"
        if row.reserved_epochs != row.epochs:
            yield f"trial {row.number}: {row.reserved_epochs} epochs reserved, {row.epochs} recorded"
        if row.optuna_trial_id is not None and row.told_at is None:
            yield f"trial {row.number}: Optuna was not told of its end"
        if row.revision != row.mirrored_revision and row.hyperparameters is not None:
            yield f"trial {row.number}: MLflow has revision {row.mirrored_revision} of {row.revision}"
    if unseen:
        yield f"epochs without mirrored_at: {unseen}"


def _of_events(seen: Seen) -> Iterator[str]:
    """Attempts follow each other: each is claimed once and ended once, and the last one as the trial ended."""
    for trial in seen.trials:
        mine = [event for event in seen.events if event.trial_number == trial.number]
        steps = [e.kind for e in mine if e.kind == "claimed" or e.kind in ENDS_OF_ATTEMPTS]
        # An answer that was lost is asked for again: claimed twice in a row by the same worker.
        claims = [e for e in mine if e.kind == "claimed"]
        expected_attempts = list(range(1, trial.attempt + 1))
        if [e.attempt for e in claims] != expected_attempts:
            yield f"trial {trial.number}: claimed as {[e.attempt for e in claims]}, its attempt is {trial.attempt}"
        if not steps or steps[-1] != trial.state.lower():
            yield f"trial {trial.number} is {trial.state}, its events are {steps}"
        if sum(kind in TERMINAL_EVENTS for kind in steps) != 1:
            yield f"trial {trial.number} ended more than once, or never: {steps}"


def _of_curves(seen: Seen, expected: Expected) -> Iterator[str]:
    """Every value is what an uninterrupted run gives: no epoch was trained from a wrong state."""
    for trial in seen.trials:
        found = curve_of(trial, seen.epochs[trial.id])
        if expected.curves is not None:
            wanted: Curve | None = expected.curves.get(trial.number)
        else:
            config = config_of(spec_of(seen.sweep), trial)
            wanted = Curve(found.hyperparameters, with_best(counting.curve(config, len(found.metrics))))
        if found != wanted:
            yield f"trial {trial.number}: {found} instead of {wanted}"


def with_best(metrics: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """As a sweep keeps them: with the lowest WER so far."""
    lowest = itertools.accumulate((each["dev/wer"] for each in metrics), min)
    return [{**each, BEST_WER: best} for each, best in zip(metrics, lowest, strict=True)]


def curve_of(trial: TrialRow, rows: Sequence[EpochRow]) -> Curve:
    return Curve(trial.hyperparameters, [row.metrics for row in rows])


def _of_optuna(seen: Seen) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = optuna.storages.RDBStorage(seen.site.url, engine_kwargs=engine_options(seen.site.url))
        study = optuna.load_study(study_name=seen.site.name, storage=storage)
        there = {trial._trial_id: trial for trial in study.get_trials(deepcopy=False)}
    storage.remove_session()
    storage.engine.dispose()
    ours = [trial.optuna_trial_id for trial in seen.trials if trial.optuna_trial_id is not None]
    if len(set(ours)) != len(ours):
        yield f"two trials share one of Optuna's: {ours}"
    for trial in seen.trials:
        if trial.optuna_trial_id is None:
            if trial.in_space and trial.state is TrialState.COMPLETE:
                yield f"trial {trial.number} is unknown to Optuna"
            continue
        record = there[trial.optuna_trial_id]
        if record.state.name != OPTUNA_STATE[trial.state]:
            yield f"trial {trial.number} is {trial.state}, in Optuna {record.state.name}"
        if record.datetime_complete is None:
            yield f"trial {trial.number} has no end in Optuna"
        if record.user_attrs.get("sweep_trial") != trial.number:
            yield f"trial {trial.number} points to Optuna's trial of {record.user_attrs.get('sweep_trial')}"
        if record.state.name == "COMPLETE" and record.value != trial.best_wer:
            yield f"trial {trial.number} has {trial.best_wer}, in Optuna {record.value}"
        if record.params != {name: (trial.hyperparameters or {})[name] for name in record.params}:
            yield f"trial {trial.number}: Optuna has other parameters"
    for trial_id, record in there.items():
        if record.state.name == "RUNNING":
            yield f"Optuna's trial {record.number} is RUNNING{'' if trial_id in ours else ', and nobody points to it'}"


def _of_mlflow(seen: Seen) -> list[str]:
    if seen.sweep.tracking is None or seen.sweep.experiment_id is None:
        return ["MLflow knows nothing of the sweep"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own, where it is read from its database
        return list(_of_runs(seen, seen.sweep.tracking, seen.sweep.experiment_id))


def _of_runs(seen: Seen, tracking: str, experiment_id: str) -> Iterator[str]:
    client = MlflowClient(tracking)
    runs: dict[str, list[Run]] = {}
    for run in client.search_runs([experiment_id], max_results=1000):
        runs.setdefault(run.data.tags.get("number", "none"), []).append(run)
    for number in runs.keys() - {str(trial.number) for trial in seen.trials}:
        yield f"MLflow has a run of trial {number}"
    for trial in seen.trials:
        mine = runs.get(str(trial.number), [])
        if trial.hyperparameters is None and not mine:
            continue
        if len(mine) != 1:
            yield f"trial {trial.number} has {len(mine)} runs in MLflow"
            continue
        (run,) = mine
        if run.info.run_id != trial.run_id:
            yield f"trial {trial.number} has another run than MLflow"
        shown = (run.info.status, run.data.tags.get("trial_state"))
        if shown != (STATUS[trial.state], trial.state):
            yield f"trial {trial.number} is {trial.state}, its run {shown}"
        if trial.finished_at is not None and run.info.end_time != round(1000 * trial.finished_at):
            yield f"trial {trial.number} ended at {trial.finished_at}, its run at {run.info.end_time}"
        if run.data.tags.get("attempt") != str(trial.attempt):
            yield f"trial {trial.number} had {trial.attempt} attempts, its run says {run.data.tags.get('attempt')}"
        rows = seen.epochs[trial.id]
        for key in {key for row in rows for key in row.metrics} | run.data.metrics.keys():
            points = [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run.info.run_id, key)]
            stored = [
                (row.epoch, row.metrics[key], round(1000 * (row.recorded_at or 0)))
                for row in rows
                if key in row.metrics
            ]
            if sorted(points) != stored:
                yield f"trial {trial.number}: {key} has points {sorted(points)}, our rows {stored}"


def _of_files(seen: Seen) -> Iterator[str]:
    folder = seen.site.home.checkpoints / seen.site.name
    if left := list(checkpoints.unsettled(folder)):
        yield f"checkpoints of attempts are left of trials {left}"
    parts = sorted(file.name for file in folder.glob("*") if file.suffix != ".pt") if folder.exists() else []
    if parts:
        yield f"left beside the checkpoints: {parts}"
    for trial in seen.trials:
        files = checkpoints.trial_files(folder, trial.number)
        if trial.epochs and not files.last.exists():
            yield f"trial {trial.number} has no checkpoint"


def _of_late_writes(seen: Seen) -> Iterator[str]:
    """A frozen worker whose trial was taken from it is refused, and that is on record."""
    refused = {(e.trial_number, e.attempt) for e in seen.events if e.kind == "late_write_refused"}
    reaped = {(e.trial_number, e.attempt) for e in seen.events if e.kind == "reaped"}
    for fault, fired in _struck(seen.site):
        mine = (fired.number, fired.attempt)
        if fault.action == "stop" and (fault.point, fault.when) in REFUSED_AT and mine in reaped - refused:
            yield f"{fault}: a late write to trial {mine[0]} by attempt {mine[1]} is not on record"


def _struck(site: Site) -> list[tuple[Fault, Fired]]:
    return [(site.plan.faults[fired.fault], fired) for fired in site.plan.fired()]


def _of_processes(site: Site) -> Iterator[str]:
    deadline = time.monotonic() + GONE_SECONDS
    while left := living(site.home.root):
        if time.monotonic() > deadline:
            yield f"still there: {[' '.join(process.cmdline())[:200] for process in left]}"
            return
        time.sleep(0.1)
