"""Ships what the database holds to MLflow, in the background: a projection that may lag, never a second truth."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from model.examples import is_example_epoch, posteriorgram
from sweeps.errors import DatabaseUnavailable, SweepNotFound
from sweeps.range_test import NUMBERS, PICTURE, config_of_test
from sweeps.records import DecisionRow, EpochRow, Pending, SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import TrialState
from sweeps.store import PICTURES, RANGE_TEST_RUN, Store
from sweeps.summary import COLLAPSED, best_trial, config_of, trial_label
from tracking.writer import (
    MAX_TAG_LENGTH,
    Dataset,
    EpochPoint,
    ExperimentWriter,
    ModelFile,
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

SENTENCES = "sentences.json"
POSTERIORGRAM = "posteriorgram"
"""Where the examples go."""

DESCRIBE_SECONDS = 5.0
PICTURE_SECONDS = 60.0
DRAWING_SHARE = 20.0
"""Pictures are drawn anew after a minute, and after so many times what it took: of a large sweep that is seconds."""
PAUSE_SECONDS = 1.0
"""Between two passes; doubled, to MAX_PAUSE_SECONDS, after each one that failed."""
MAX_PAUSE_SECONDS = 30.0


class Mirror:
    """One sweep's way into MLflow. `ship` is one pass; `start` makes passes in a thread until `finish`.

    Every write is idempotent and what has arrived is marked in the database, so a pass that dies half-way is simply
    made again; while MLflow is away, rows wait. The marks hold for one experiment of one server: where another is
    opened, or the runs are not there, all marks are dropped and everything is shipped.

    Two mirrors of one sweep do no harm: the database says which run is a trial's, the other is deleted, and what a
    late one has written over is shipped again.
    """

    def __init__(
        self,
        store: Store,
        sweep: SweepRow,
        spec: SweepSpec,
        tags: Mapping[str, str],
        dataset: Dataset,
        open_experiment: Callable[[], ExperimentWriter],
        describe: Callable[[], str],
        pictures: Path | None = None,
        *,
        draw: Callable[[bool], Mapping[str, bytes]] = lambda over: {},
        best_model: Callable[[TrialRow], ModelFile | None] = lambda trial: None,
        may_ship: Callable[[], bool] = lambda: True,
        ensure_server: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] = lambda number, epochs: None,
    ) -> None:
        """
        Args:
            pictures: the sweep's folder of them.
            draw: pictures of the sweep so far by artifact path, which the run of its best trial gets; asked with
                whether the sweep is over.
            best_model: the model of that trial, to be kept once the sweep is over; None where there is none to keep.
            may_ship: asked before each trial: whether this process still has the right to.
            ensure_server: called before each pass: starts a server of our own again if it died, and raises
                TrackingUnavailable if it cannot.
            progress: told the number of each trial that was shipped, and of how many epochs.
        """
        self._store, self._spec, self._tags, self._pictures = store, spec, tags, pictures
        self._id, self._name, self._key = sweep.id, sweep.name, f"{sweep.name}@{sweep.created_at:.3f}"
        self._dataset, self._open, self._describe = dataset, open_experiment, describe
        self._best_model, self._model_shipped = best_model, False
        self._draw, self._to_draw, self._draw_after = draw, True, time.monotonic() + PICTURE_SECONDS
        self._may_ship, self._ensure_server, self._progress = may_ship, ensure_server, progress
        self._experiment: ExperimentWriter | None = None
        self._runs: dict[int, RunWriter] = {}
        self._with_params: set[str] = set()
        self._deadline = math.inf
        self._described, self._described_at, self._range_test_shipped = "", 0.0, False
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
        self._deadline = time.monotonic() + seconds
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
                if not self._may_ship():
                    self.trouble = "another process ships this sweep by now"
                    return False
                if not behind:
                    return not self.refused
            except TrackingRefused as error:
                self.trouble = str(error)
                return False
            except (TrackingUnavailable, DatabaseUnavailable) as error:
                self.trouble = str(error)
                time.sleep(PAUSE_SECONDS)
            except Exception as error:  # the sweep's outcome is still to be told
                log.exception("the mirror stumbled")
                self.trouble = f"{type(error).__name__}: {error}"
                return False
            if time.monotonic() > self._deadline:
                self.trouble = self.trouble or f"more was waiting than {seconds:.0f} s sufficed for"
                return False

    def _keep_shipping(self) -> None:
        pause = PAUSE_SECONDS
        while not self._stop.wait(pause):
            try:
                self.ship()
                self.trouble, pause = "", PAUSE_SECONDS
            except SweepNotFound as error:  # it was deleted
                self.trouble = str(error)
                return
            except (TrackingUnavailable, TrackingRefused, DatabaseUnavailable) as error:
                self.trouble, pause = str(error), min(2 * pause, MAX_PAUSE_SECONDS)
            except Exception as error:  # the sweep goes on without its mirror; what was missed is shipped next time
                log.exception("the mirror stumbled")
                self.trouble, pause = f"{type(error).__name__}: {error}", min(2 * pause, MAX_PAUSE_SECONDS)

    def ship(self, final: bool = False) -> int:
        """One pass over what MLflow has not seen; returns how many trials were behind. A `final` one looks as well for
        runs that do not end.

        Raises:
            TrackingUnavailable: MLflow cannot be reached; nothing is lost.
            TrackingRefused: the experiment as a whole is refused (it was deleted, say); nothing is lost.
        """
        if not self._may_ship():
            return 0
        self._ensure_server()
        sweep = self._reread()
        experiment = self._experiment
        if experiment is None or self._place(experiment) != (sweep.tracking, sweep.experiment_id):
            experiment, _ = self._opened()
        shipped, last = 0, -1
        while page := self._store.pending(self._id, after=last):
            last = page[-1].trial.number
            for pending in page:
                if not self._goes_on(final):
                    return shipped + 1
                shipped += 1
                try:
                    self._ship_trial(experiment, pending)
                    self.refused.pop(pending.trial.number, None)
                    self._progress(pending.trial.number, len(pending.epochs))
                except TrackingRefused as error:
                    experiment, moved = self._opened()  # refused as well if it is not this run alone
                    if moved:
                        return shipped
                    self._give_up(pending, str(error))
        if not self._goes_on(final):
            return shipped
        if not self._range_test_shipped:
            self._ship_range_test(experiment)
        self._to_draw = self._to_draw or shipped > 0
        over = final and sweep.state.terminal  # whoever is told to stop has no time for pictures
        if self._to_draw and (over or time.monotonic() > self._draw_after):
            self._ship_pictures(experiment, over)
        now = time.monotonic()
        if final or now - self._described_at > DESCRIBE_SECONDS:
            text = self._describe()
            if text != self._described:
                experiment.describe(text)
                self._described = text
            self._described_at = now
        if final and sweep.state.terminal and sweep.state != "DELETING" and not self._model_shipped:
            self._ship_best_model(experiment)
        return shipped or (self._put_right(experiment) if final else 0)

    def _goes_on(self, final: bool) -> bool:
        return self._may_ship() and time.monotonic() < self._deadline and (final or not self._stop.is_set())

    def _reread(self) -> SweepRow:
        sweep = self._store.find_sweep(self._name)
        if sweep is None or sweep.id != self._id:
            raise SweepNotFound(self._name)
        return sweep

    @staticmethod
    def _place(experiment: ExperimentWriter) -> tuple[str, str]:
        return experiment.tracking, experiment.experiment_id

    def _opened(self) -> tuple[ExperimentWriter, bool]:
        """The experiment, opened anew, and whether it is one that has not what was shipped so far."""
        self._experiment = None
        experiment = self._open()
        sweep = self._reread()
        there, before = self._place(experiment), (sweep.tracking, sweep.experiment_id)
        runs = [trial.run_id for trial in self._store.trials(self._id) if trial.run_id is not None]
        moved = before != there or (bool(runs) and not experiment.holds(runs[-1]))
        if moved:
            if runs:
                log.warning("MLflow at %s has not the runs of sweep %s: all are sent there", there[0], self._name)
            self._store.forget_mirrored(self._id, *there)
            self._runs.clear()
            self.refused.clear()
            self._described, self._described_at, self._range_test_shipped = "", 0.0, False
            self._model_shipped = False
        experiment.set_tags({"sweep": self._name, **self._tags})
        self._experiment = experiment
        return experiment, moved

    def _give_up(self, pending: Pending, why: str) -> None:
        """Asking again is no use, and would keep the other trials waiting: whoever deleted a run meant it."""
        if pending.trial.number not in self.refused:
            log.warning("trial %d is left out of MLflow from here on: %s", pending.trial.number, why)
        self.refused[pending.trial.number] = why
        run = self._runs.get(pending.trial.id)
        self._mark(pending, run.run_id if run else pending.trial.run_id)

    def _mark(self, pending: Pending, run_id: str | None) -> None:
        seen = [row.epoch for row in pending.epochs]
        self._store.mark_mirrored(pending.trial.id, run_id, seen, pending.trial.revision)

    def _ship_trial(self, experiment: ExperimentWriter, pending: Pending) -> None:
        trial, decision = pending.trial, pending.decision
        run = self._run(experiment, trial)
        if run is None:
            return
        if run.run_id not in self._with_params:
            config = config_of(self._spec, trial).model_dump()
            run.log_params({name: str(value) for name, value in config.items()})
            run.log_dataset(self._dataset)
            self._with_params.add(run.run_id)
        run.set_tags(
            {
                **self._tags,
                "sweep": self._name,
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
            },
            run_name(trial),
        )
        run.log_epochs([_point(row) for row in pending.epochs])
        self._ship_examples(run, pending)
        end = None if trial.finished_at is None else round(1000 * trial.finished_at)
        run.set_status(STATUS[trial.state], end)
        self._mark(pending, run.run_id)

    def _ship_examples(self, run: RunWriter, pending: Pending) -> None:
        """What it read into some sentences: a picture an epoch, to slide through, and one table of all."""
        times = {row.epoch: round(1000 * (row.recorded_at or 0)) for row in pending.epochs}
        if not any(is_example_epoch(epoch) for epoch in times):
            return
        shown = self._store.examples(pending.trial.id)
        if not shown:
            return
        rows = [[epoch, *sentence] for epoch, at in shown.items() for sentence in at["sentences"]]
        run.log_table(SENTENCES, ["epoch", "sentence", "reference", "hypothesis"], rows)
        for epoch in shown.keys() & times.keys():
            run.log_image(POSTERIORGRAM, epoch, times[epoch], posteriorgram(shown[epoch], epoch))

    def _run(self, experiment: ExperimentWriter, trial: TrialRow) -> RunWriter | None:
        """The trial's run; None where the sweep's runs belong elsewhere by now."""
        known = self._runs.get(trial.id)
        if known is not None and known.run_id == trial.run_id:
            return known
        begun = round(1000 * (trial.started_at or trial.created_at))
        key = f"{self._key}/{trial.number}"
        run = self._settled(experiment, key, run_name(trial), begun, trial.id, trial.run_id)
        if run is not None:
            self._runs[trial.id] = run
        return run

    def _settled(
        self, experiment: ExperimentWriter, key: str, name: str, begun: int, trial_id: int | None, known: str | None
    ) -> RunWriter | None:
        """The run of `key`. The key outlives a lost answer: a run created by a pass that died is found again. Where two
        mirrors create one each, the database says whose it is.
        """
        run = experiment.run(key, name, begun)
        if run.run_id == known:
            return run
        run_id = self._store.set_run_id(self._id, trial_id, run.run_id, instead_of=known, place=self._place(experiment))
        return None if run_id is None else experiment.settle(key, run_id)

    def _ship_range_test(self, experiment: ExperimentWriter) -> None:
        """The sweep's range test, if it has one, as a run beside those of the trials: it has no `number`, and a `stage`
        instead.
        """
        sweep = self._reread()
        test = sweep.facts.get("range_test")
        if test is None:
            return
        end = round(1000 * test["finished_at"])
        begun = end - round(1000 * test["seconds"])
        try:
            known = sweep.facts.get(RANGE_TEST_RUN)
            run = self._settled(experiment, f"{self._key}/range-test", "range test", begun, None, known)
            if run is None:
                return
            reason = " ".join(test["sentences"])
            run.set_tags({**self._tags, "sweep": sweep.name, "stage": "range_test", "reason": reason})
            config = config_of_test(self._spec).model_dump()
            run.log_params({name: str(value) for name, value in config.items() if name != "learning_rate"})
            run.log_epochs([_look(look, end) for look in test["looks"]])
            for name in (PICTURE, NUMBERS):
                if self._pictures is not None and (self._pictures / name).exists():
                    run.log_artifact(self._pictures / name)
            run.set_status("FINISHED", end)
        except TrackingRefused as error:
            _, moved = self._opened()  # refused as well if it is not this run alone
            if moved:
                return
            log.warning("the range test is left out of MLflow: %s", error)
        self._range_test_shipped = True

    def _ship_pictures(self, experiment: ExperimentWriter, over: bool) -> None:
        """Into the run of the best trial: an experiment has no files of its own. Where they are stands in the facts."""
        self._to_draw, began = False, time.monotonic()
        sweep, best = self._reread(), best_trial(self._store.trials(self._id))
        before = sweep.facts.get(PICTURES)
        if best is None or best.run_id is None:
            return
        try:
            drawn = self._draw(over)
        except DatabaseUnavailable:
            self._to_draw = True
            raise
        except Exception:  # the curves go on without pictures of them
            log.exception("pictures could not be drawn")
            return
        try:
            run = experiment.existing(best.run_id)
            with TemporaryDirectory() as folder:
                for path, content in drawn.items():
                    file = Path(folder) / PurePosixPath(path).name
                    file.write_bytes(content)
                    run.log_artifact(file, path.rpartition("/")[0])
            now = {"run": best.run_id, "paths": [path for path in drawn if path.startswith(f"{PICTURES}/")]}
            if now != before:
                self._store.update_facts(self._id, {PICTURES: now})
            if before is not None and before["run"] != best.run_id:
                experiment.existing(before["run"]).delete_artifacts(PICTURES)
        except TrackingUnavailable:
            self._to_draw = True
            raise
        except TrackingRefused as error:  # a run that was deleted
            log.warning("pictures are left out of MLflow: %s", error)
        took = time.monotonic() - began
        self._draw_after = time.monotonic() + max(PICTURE_SECONDS, DRAWING_SHARE * took)

    def _ship_best_model(self, experiment: ExperimentWriter) -> None:
        best = best_trial(self._store.trials(self._id))
        model = self._best_model(best) if best else None
        if best is not None and best.run_id is not None and best.best_epoch is not None and model is not None:
            try:
                experiment.log_model(best.run_id, best.best_epoch, model)
            except TrackingRefused as error:
                log.warning("the best model is left out of MLflow: %s", error)
        self._model_shipped = True

    def _put_right(self, experiment: ExperimentWriter) -> int:
        """Runs that have not ended though their trials have, and runs in whose place another one stands: left by a
        process that was frozen in the middle of a pass and died when it woke. Returns how many trials are to be shipped
        again for it.
        """
        unfinished = experiment.unfinished()  # first: whatever the database knows by now is spared
        trials, again = self._store.trials(self._id), 0
        runs = {f"{self._key}/{trial.number}": trial.run_id for trial in trials}
        runs[f"{self._key}/range-test"] = self._reread().facts.get(RANGE_TEST_RUN)
        for run_id, key in unfinished.items():
            if runs.get(key) not in (None, run_id):
                experiment.delete(run_id)
        for trial in trials:
            if trial.state.terminal and trial.run_id in unfinished and trial.number not in self.refused:
                self._store.mark_mirrored(trial.id, trial.run_id, [], 0)
                again += 1
        return again


def _look(look: Mapping[str, float], timestamp_ms: int) -> EpochPoint:
    step = int(look["step"])
    return EpochPoint(step, timestamp_ms, {f"range_test/{k}": float(v) for k, v in look.items() if k != "step"})


def decision_tag(decision: DecisionRow) -> str:
    """The decision as JSON that fits into a tag: where it was compared with very many trials, only how many."""
    content = decision.as_json()
    text = json.dumps(content, allow_nan=False)
    return text if len(text) <= MAX_TAG_LENGTH else json.dumps({**content, "siblings": len(decision.siblings)})


def run_name(trial: TrialRow) -> str:
    """What a trial is called among the runs: its number and name, and its verdict, or what it does."""
    return f"{trial_label(trial)}: {(trial.verdict or trial.state.value.lower()).replace('_', ' ')}"


def _point(row: EpochRow) -> EpochPoint:
    assert row.recorded_at is not None
    return EpochPoint(row.epoch, round(1000 * row.recorded_at), row.metrics)
