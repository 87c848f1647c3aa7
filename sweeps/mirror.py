"""Ships what the database holds to MLflow, in the background: a projection that may lag, never a second truth."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sweeps.range_test import NUMBERS, PICTURE, config_of_test
from sweeps.records import DecisionRow, EpochRow, Pending, SweepRow
from sweeps.spec import SweepSpec
from sweeps.states import TrialState
from sweeps.store import Store
from sweeps.summary import COLLAPSED, config_of
from tracking.writer import (
    MAX_TAG_LENGTH,
    EpochPoint,
    ExperimentWriter,
    RunStatus,
    RunWriter,
    TrackingRefused,
    TrackingUnavailable,
)

log = logging.getLogger(__name__)

STATUS: Mapping[TrialState, RunStatus] = {
    TrialState.WAITING: "SCHEDULED",
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAILED: "FAILED",
    TrialState.CANCELLED: "KILLED",
}

DESCRIBE_SECONDS = 5.0
PAUSE_SECONDS = 1.0
"""Between two passes; doubled, to 30 s at most, after each one that failed."""


class Mirror:
    """One sweep's way into MLflow. `ship` is one pass; `start` makes passes in a thread until `finish`.

    Every write is idempotent and what has arrived is marked in the database, so a pass that dies half-way is simply
    made again; while MLflow is away, rows wait.
    """

    def __init__(
        self,
        store: Store,
        sweep: SweepRow,
        spec: SweepSpec,
        tags: Mapping[str, str],
        open_experiment: Callable[[], ExperimentWriter],
        describe: Callable[[], str],
        pictures: Path | None = None,
    ) -> None:
        """`pictures`: the sweep's folder of them."""
        self._store, self._sweep, self._spec, self._tags = store, sweep, spec, tags
        self._pictures, self._range_test_shipped = pictures, False
        self._open, self._describe = open_experiment, describe
        self._experiment: ExperimentWriter | None = None
        self._runs: dict[int, RunWriter] = {}
        self._described, self._described_at = "", 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_shipping, name="mirror", daemon=True)
        self.trouble = ""
        """Why the last pass failed; empty if it did not."""
        self.refused: dict[int, str] = {}
        """Number of each trial of which MLflow would not take something (its run was deleted there), and why."""

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> bool:
        """Stop the thread and ship the rest; says whether everything has arrived within about `seconds` (a call that
        is under way then ends first, after MLflow's own timeouts).
        """
        deadline = time.monotonic() + seconds
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self.trouble = self.trouble or "a call to it has not come back"
                return False
        while True:
            try:
                behind = self.ship(final=True)
                self.trouble = "; ".join(f"trial {number} is left out: {why}" for number, why in self.refused.items())
                if not behind:
                    return not self.refused
            except TrackingRefused as error:
                self.trouble = str(error)
                return False
            except TrackingUnavailable as error:
                self.trouble = str(error)
                time.sleep(PAUSE_SECONDS)
            except Exception as error:  # the sweep's outcome is still to be told
                log.exception("the mirror stumbled")
                self.trouble = f"{type(error).__name__}: {error}"
                return False
            if time.monotonic() > deadline:
                self.trouble = self.trouble or f"more was waiting than {seconds:.0f} s sufficed for"
                return False

    def _keep_shipping(self) -> None:
        pause = PAUSE_SECONDS
        while not self._stop.wait(pause):
            try:
                self.ship()
                self.trouble, pause = "", PAUSE_SECONDS
            except TrackingUnavailable as error:
                self.trouble, pause = str(error), min(2 * pause, 30.0)
            except Exception as error:  # the sweep goes on without its mirror; what was missed is shipped next time
                log.exception("the mirror stumbled")
                self.trouble, pause = f"{type(error).__name__}: {error}", min(2 * pause, 30.0)

    def ship(self, final: bool = False) -> int:
        """One pass over what MLflow has not seen; returns how many trials were behind.

        Raises:
            TrackingUnavailable: MLflow cannot be reached; nothing is lost.
            TrackingRefused: the experiment as a whole is refused (it was deleted, say); nothing is lost.
        """
        experiment = self._experiment
        if experiment is None:
            experiment = self._open()
            self._tag(experiment)
            self._store.set_experiment(self._sweep.id, experiment.experiment_id)
            self._experiment = experiment
        shipped = 0
        for pending in self._store.pending(self._sweep.id):
            if pending.trial.hyperparameters is None:  # nothing to show yet
                continue
            try:
                self._ship_trial(experiment, pending)
            except TrackingRefused as error:
                self._tag(experiment)  # refused as well if it is not this run alone
                self._give_up(pending, str(error))
            shipped += 1
        if not self._range_test_shipped:
            self._ship_range_test(experiment)
        now = time.monotonic()
        if final or now - self._described_at > DESCRIBE_SECONDS:
            text = self._describe()
            if text != self._described:
                experiment.describe(text)
                self._described = text
            self._described_at = now
        return shipped

    def _tag(self, experiment: ExperimentWriter) -> None:
        experiment.set_tags({"sweep": self._sweep.name, **self._tags})

    def _give_up(self, pending: Pending, why: str) -> None:
        """Asking again is no use, and would keep the other trials waiting: whoever deleted a run meant it."""
        if pending.trial.number not in self.refused:
            log.warning("trial %d is left out of MLflow from here on: %s", pending.trial.number, why)
        self.refused[pending.trial.number] = why
        self._mark(pending)

    def _mark(self, pending: Pending) -> None:
        self._store.mark_mirrored(pending.trial.id, [row.epoch for row in pending.epochs], pending.trial.revision)

    def _ship_trial(self, experiment: ExperimentWriter, pending: Pending) -> None:
        trial, decision = pending.trial, pending.decision
        run = self._runs.get(trial.id)
        if run is None:
            # The key outlives a lost answer: a run created by a pass that died is found again.
            key = f"{self._sweep.name}@{self._sweep.created_at:.3f}/{trial.number}"
            name = trial.name or f"trial {trial.number}"
            run = experiment.run(key, name, round(1000 * (trial.started_at or trial.created_at)))
            config = config_of(self._spec, trial).model_dump()
            run.log_params({name: str(value) for name, value in config.items()})
            self._runs[trial.id] = run
        run.set_tags(
            {
                **self._tags,
                "sweep": self._sweep.name,
                "number": str(trial.number),
                "name": trial.name or "",
                "trial_state": trial.state.value,
                "verdict": trial.verdict or "",
                "collapse": str(trial.verdict in COLLAPSED).lower(),
                "rule": trial.rule or "",
                "reason": trial.reason,
                "counterfactual": decision.counterfactual if decision else "",
                "decision": decision_tag(decision) if decision else "",
                "audited": str(bool(decision and decision.action == "audited")).lower(),
                "attempt": str(trial.attempt),
                "seed": str(config_of(self._spec, trial).seed),
            }
        )
        known = trial.run_id in (None, run.run_id)  # else another server, or a run that was deleted: it gets them all
        run.log_epochs([_point(row) for row in (pending.epochs if known else self._store.epochs(trial.id))])
        end = None if trial.finished_at is None else round(1000 * trial.finished_at)
        run.set_status(STATUS[trial.state], end)
        if trial.run_id != run.run_id:
            self._store.set_run_id(trial.id, run.run_id)
        self._mark(pending)

    def _ship_range_test(self, experiment: ExperimentWriter) -> None:
        """The sweep's range test, if it has one, as a run beside those of the trials: it has no `number`, and a `stage`
        instead.
        """
        sweep = self._store.find_sweep(self._sweep.name)
        assert sweep is not None
        test = sweep.facts.get("range_test")
        if test is None:
            return
        end = round(1000 * test["finished_at"])
        try:
            key = f"{sweep.name}@{sweep.created_at:.3f}/range-test"
            run = experiment.run(key, "range test", end - round(1000 * test["seconds"]))
            if sweep.facts.get("range_test_run") != run.run_id:  # else all of it is there
                reason = " ".join(test["sentences"])
                run.set_tags({**self._tags, "sweep": sweep.name, "stage": "range_test", "reason": reason})
                config = config_of_test(self._spec).model_dump()
                run.log_params({name: str(value) for name, value in config.items() if name != "learning_rate"})
                run.log_epochs([_look(look, end) for look in test["looks"]])
                for name in (PICTURE, NUMBERS):
                    if self._pictures is not None and (self._pictures / name).exists():
                        run.log_artifact(self._pictures / name)
                run.set_status("FINISHED", end)
                self._store.update_facts(sweep.id, {"range_test_run": run.run_id})
        except TrackingRefused as error:
            self._tag(experiment)  # refused as well if it is not this run alone
            log.warning("the range test is left out of MLflow: %s", error)
        self._range_test_shipped = True


def _look(look: Mapping[str, float], timestamp_ms: int) -> EpochPoint:
    step = int(look["step"])
    return EpochPoint(step, timestamp_ms, {f"range_test/{k}": float(v) for k, v in look.items() if k != "step"})


def decision_tag(decision: DecisionRow) -> str:
    """The decision as JSON that fits into a tag: where it was compared with very many trials, only how many."""
    content = decision.as_json()
    text = json.dumps(content, allow_nan=False)
    return text if len(text) <= MAX_TAG_LENGTH else json.dumps({**content, "siblings": len(decision.siblings)})


def _point(row: EpochRow) -> EpochPoint:
    assert row.recorded_at is not None
    return EpochPoint(row.epoch, round(1000 * row.recorded_at), row.metrics)
