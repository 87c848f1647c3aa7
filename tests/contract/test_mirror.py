"""What the database holds reaches the tracker: on the recording twin, and on a real MLflow server."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from sweeps.mirror import STATUS, Mirror
from sweeps.records import Claim, PlannedTrial, SweepRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.summary import config_of
from tests.rows import VALUES, epoch_row
from tracking.mlflow_writer import open_experiment
from tracking.recording_writer import RecordingExperiment, RecordingRun
from tracking.server import local_server
from tracking.writer import ExperimentWriter, RunWriter, TrackingRefused, TrackingUnavailable

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 100}})
TAGS = {"corpus_hash": "c", "git_commit": "g"}

Content = dict[str, dict[str, Any]]
"""What a tracker holds: by trial number, `name params tags curves status end`."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One database for all: each test has a sweep of its own."""
    store = Store(f"sqlite:///{(tmp_path_factory.mktemp('mirror') / 'sweeps.db').as_posix()}")
    yield store
    store.close()


@pytest.fixture
def sweep(store: Store) -> SweepRow:
    return new_sweep(store)


def new_sweep(store: Store) -> SweepRow:
    planned = [PlannedTrial("fixed", VALUES, {"schedule": "constant"}, False)]
    row = store.create_sweep(uuid.uuid4().hex, {}, "digest", {"trials": 100}, {"constant_wer": 0.9}, planned)
    store.set_sweep_state(row.id, SweepState.RUNNING)
    return row


def begin(store: Store, sweep: SweepRow, *wers: float | None) -> Claim:
    """Claim a trial and record these epochs."""
    claim = store.claim(sweep.id, "worker", 60)
    assert claim is not None
    store.set_hyperparameters(claim, VALUES, None)
    go_on(store, claim, *wers)
    return claim


def go_on(store: Store, claim: Claim, *wers: float | None) -> None:
    done = store.trial(claim.sweep_id, claim.number).epochs
    store.record(claim, [epoch_row(done + n, wer) for n, wer in enumerate(wers, start=1)])


def end(store: Store, claim: Claim, state: TrialState = TrialState.COMPLETE, verdict: str | None = "learned") -> None:
    store.finish(claim, state, verdict, f"It is {state}.", "rule", {})


def mirror(
    store: Store, sweep: SweepRow, experiment: ExperimentWriter, describe: Callable[[], str] = lambda: "so far"
) -> Mirror:
    return Mirror(store, sweep, SPEC, TAGS, lambda: experiment, describe)


def expected(store: Store, sweep: SweepRow) -> Content:
    """What the tracker should hold, by what the database holds."""
    content: Content = {}
    for trial in store.trials(sweep.id):
        if trial.hyperparameters is None:
            continue
        config = config_of(SPEC, trial)
        curves: dict[str, list[tuple[int, int, float]]] = {}
        for row in store.epochs(trial.id):
            for name, value in row.metrics.items():
                curves.setdefault(name, []).append((row.epoch, round(1000 * (row.recorded_at or 0)), value))
        content[str(trial.number)] = {
            "name": trial.name or f"trial {trial.number}",
            "params": {name: str(value) for name, value in config.model_dump().items()},
            "tags": {
                **TAGS,
                "sweep": sweep.name,
                "number": str(trial.number),
                "name": trial.name or "",
                "trial_state": trial.state.value,
                "verdict": trial.verdict or "",
                "collapse": str(trial.verdict in ("never_learned", "collapsed")).lower(),
                "rule": trial.rule or "",
                "reason": trial.reason,
                "attempt": str(trial.attempt),
                "seed": str(config.seed),
            },
            "curves": curves,
            "status": STATUS[trial.state],
            "end": None if trial.finished_at is None else round(1000 * trial.finished_at),
        }
    return content


def held(experiment: RecordingExperiment) -> Content:
    return {
        run.tags["number"]: {
            "name": run.name,
            "params": run.params,
            "tags": run.tags,
            "curves": run.curves,
            "status": run.status,
            "end": run.end_time_ms,
        }
        for run in experiment.runs.values()
    }


def three_trials(store: Store, sweep: SweepRow) -> Claim:
    """One that failed, one that was pruned and one that runs, which is returned."""
    end(store, begin(store, sweep), TrialState.FAILED, None)
    end(store, begin(store, sweep, 1.0, 1.0, 0.95), TrialState.PRUNED, "never_learned")
    return begin(store, sweep, 1.0, None, 0.4)


# the twin


def test_all_of_it_arrives(store: Store, sweep: SweepRow) -> None:
    three_trials(store, sweep)
    experiment = RecordingExperiment(experiment_id="77")
    assert mirror(store, sweep, experiment).ship() == 3
    assert held(experiment) == expected(store, sweep)
    assert [run["name"] for run in held(experiment).values()] == ["fixed", "trial 1", "trial 2"]
    assert [run["tags"]["collapse"] for run in held(experiment).values()] == ["false", "true", "false"]
    assert experiment.tags == {"sweep": sweep.name, **TAGS}
    assert experiment.description == "so far"
    again = store.find_sweep(sweep.name)
    assert again is not None
    assert again.experiment_id == "77"
    assert store.pending(sweep.id) == []
    assert {t.run_id for t in store.trials(sweep.id)} == {run.run_id for run in experiment.runs.values()}


def test_what_goes_on_is_followed(store: Store, sweep: SweepRow) -> None:
    claim = three_trials(store, sweep)
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    shipping.ship()
    assert shipping.ship() == 0
    go_on(store, claim, 0.3)
    assert shipping.ship() == 1
    assert held(experiment) == expected(store, sweep)
    end(store, claim)
    assert shipping.ship() == 1
    assert held(experiment) == expected(store, sweep)


def test_a_metric_that_is_not_finite_leaves_a_gap(store: Store, sweep: SweepRow) -> None:
    begin(store, sweep, 1.0, None, 0.4)
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    ((_, run),) = held(experiment).items()
    assert [step for step, _, _ in run["curves"]["dev/wer"]] == [1, 3]
    assert [step for step, _, _ in run["curves"]["dev/loss"]] == [1, 2, 3]


def test_a_trial_that_was_not_asked_for_yet_is_not_shown(store: Store, sweep: SweepRow) -> None:
    begin(store, sweep, 1.0)
    assert store.claim(sweep.id, "worker", 60) is not None
    experiment = RecordingExperiment()
    assert mirror(store, sweep, experiment).finish(5)
    assert list(held(experiment)) == ["0"]


def test_a_planned_trial_that_waits_is_scheduled(store: Store, sweep: SweepRow) -> None:
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    assert held(experiment) == expected(store, sweep)
    assert held(experiment)["0"]["status"] == "SCHEDULED"


@pytest.mark.parametrize("state", [state for state in TrialState if state.terminal])
def test_every_end_has_its_status(store: Store, sweep: SweepRow, state: TrialState) -> None:
    end(store, begin(store, sweep, 0.5), state)
    experiment = RecordingExperiment()
    mirror(store, sweep, experiment).ship()
    run = held(experiment)["0"]
    wanted = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAILED": "FAILED", "CANCELLED": "KILLED"}
    assert (run["status"], run["tags"]["trial_state"]) == (wanted[state.value], state.value)
    assert run["end"] is not None


def test_a_trial_that_is_resumed_runs_again_in_the_same_run(store: Store, sweep: SweepRow) -> None:
    experiment = RecordingExperiment()
    claim = begin(store, sweep, 1.0)
    mirror(store, sweep, experiment).ship()
    store.hand_back(claim, "interrupted")
    mirror(store, sweep, experiment).ship()
    assert (held(experiment)["0"]["status"], held(experiment)["0"]["end"]) == ("SCHEDULED", None)
    again = store.claim(sweep.id, "other", 60)
    assert again is not None
    go_on(store, again, 0.5)
    mirror(store, sweep, experiment).ship()
    assert held(experiment) == expected(store, sweep)
    assert (held(experiment)["0"]["status"], held(experiment)["0"]["tags"]["attempt"]) == ("RUNNING", "2")


def test_more_trials_than_a_page_arrive(store: Store, sweep: SweepRow) -> None:
    for _ in range(60):
        end(store, begin(store, sweep, 0.5))
    experiment = RecordingExperiment()
    shipping = mirror(store, sweep, experiment)
    assert shipping.ship() == 50
    assert shipping.finish(30)
    assert held(experiment) == expected(store, sweep)
    assert len(experiment.runs) == 60


def test_more_epochs_than_a_page_arrive(store: Store, sweep: SweepRow) -> None:
    for _ in range(3):
        begin(store, sweep, *[0.5] * 600)
    experiment = RecordingExperiment()
    assert mirror(store, sweep, experiment).finish(30)
    assert held(experiment) == expected(store, sweep)


# trouble


class Torn:
    """A tracker of which call `fails_at` (1 for the first) does not come back: it arrived, or it did not."""

    def __init__(self, target: Any, fails_at: int = 0, arrived: bool = False, error: Exception | None = None) -> None:
        self.target, self.fails_at, self.arrived = target, fails_at, arrived
        self.error = error or TrackingUnavailable("no answer")
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if not callable(value):
            return value

        def call(*args: Any) -> Any:
            self.calls += 1
            fails = self.calls == self.fails_at
            if fails and not self.arrived:
                raise self.error
            found = value(*args)
            if fails:
                raise self.error
            return TornRun(self, found) if isinstance(found, RecordingRun) else found

        return call


class TornRun(Torn):
    """A run of a torn experiment, which counts its calls as well."""

    def __init__(self, experiment: Torn, target: RecordingRun) -> None:
        self.experiment = experiment
        super().__init__(target)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        return Torn.__getattr__(_Named(self.experiment, value), "call") if callable(value) else value


def _Named(experiment: Torn, function: Callable[..., Any]) -> Torn:
    raise NotImplementedError
