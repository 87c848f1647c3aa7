"""Stage 0 of a sweep: what the database keeps of a range test, and what the tracker gets of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from model.range_test import Edges, Look, RangeTest
from sweeps.mirror import Mirror
from sweeps.ramp import is_due, keep, write_files
from sweeps.range_test import NUMBERS, PICTURE
from sweeps.records import PlannedTrial, SweepRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState
from sweeps.store import Store
from tests.rows import VALUES, epoch_row
from tracking.mlflow_writer import open_experiment
from tracking.recording_writer import RecordingExperiment, RecordingRun
from tracking.server import store_uri
from tracking.writer import Dataset, ExperimentWriter, TrackingUnavailable

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 3}})
NAN = float("nan")
LOOKS = (
    Look(1, 1e-5, 1e-5, 12.0, 12.1, 0.01, NAN, NAN, 0),
    Look(11, 1e-3, 0.01, 4.1, 4.2, 0.2, 0.1, 3.0, 0),
    Look(21, 1e-1, 1.0, 9.0, 30.0, 2.0, NAN, NAN, 2),
)
TEST = RangeTest(
    LOOKS, 400, 30.5, Edges(0.01, 1e-4, 6e-2), 1e-4, 1.5e-2, 3e-3, 4.0, 4.1, 12.0, ("It rose.", "It diverged.")
)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store(store_url)) as store:
        yield store


@pytest.fixture
def file_store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}")) as store:
        yield store


def new_sweep(store: Store, trials: int = 3) -> SweepRow:
    planned = [PlannedTrial("fixed", VALUES, {}, True)]
    return store.create_sweep("s", {}, "", {"trials": trials}, {"constant_wer": 0.9}, planned)


def now(store: Store) -> SweepRow:
    found = store.find_sweep("s")
    assert found is not None
    return found


# the database


def test_what_is_kept(store: Store) -> None:
    sweep = new_sweep(store)
    assert is_due(sweep, store.trials(sweep.id))
    said = keep(store, sweep, SPEC, TEST)
    facts = now(store).facts
    assert facts["learning_rate_bounds"] == {"low": 1e-4, "high": 1.5e-2, "by": "range_test"}
    assert facts["constant_wer"] == 0.9
    kept = facts["range_test"]
    assert (kept["low"], kept["high"], kept["suggested"], kept["seconds"]) == (1e-4, 1.5e-2, 3e-3, 30.5)
    assert kept["sentences"] == said[:-1]
    assert said[:2] == ["It rose.", "It diverged."]
    assert kept["looks"][0] == {
        "step": 1, "rate": 1e-5, "lr_time": 1e-5, "train_loss": 12.0, "dev_loss": 12.1, "time_spread": 0.01,
        "skipped": 0,
    }  # fmt: skip
    (_, trial) = store.trials(sweep.id)
    assert (trial.name, trial.number, trial.in_space) == ("range-test", 1, True)
    assert trial.hyperparameters is not None
    assert trial.hyperparameters["learning_rate"] == 3e-3
    assert "Trial 1 tries 3.0e-03" in said[-1]
    assert not is_due(now(store), store.trials(sweep.id))


def test_kept_again_it_is_the_same(store: Store) -> None:
    sweep = new_sweep(store)
    keep(store, sweep, SPEC, TEST)
    first = now(store).facts
    keep(store, sweep, SPEC, TEST)
    again = now(store).facts
    for facts in (first, again):
        facts["range_test"].pop("finished_at")
    assert again == first
    assert [trial.name for trial in store.trials(sweep.id)] == ["fixed", "range-test"]


def test_its_trial_costs_one_of_the_budget_and_is_left_out_where_none_is_left(store: Store) -> None:
    sweep = new_sweep(store, trials=1)
    said = keep(store, sweep, SPEC, TEST)
    assert [trial.name for trial in store.trials(sweep.id)] == ["fixed"]
    assert "no trial left" in said[-1]
    assert now(store).facts["learning_rate_bounds"]["by"] == "range_test"


def test_one_that_says_nothing_narrows_nothing_and_is_not_made_again(store: Store) -> None:
    sweep = new_sweep(store)
    nothing = RangeTest(
        LOOKS, 400, 30.5, Edges(None, None, None), None, None, None, 4.0, 4.1, 12.0, ("It says nothing.",)
    )
    keep(store, sweep, SPEC, nothing)
    assert "learning_rate_bounds" not in now(store).facts
    assert len(store.trials(sweep.id)) == 1
    assert not is_due(now(store), store.trials(sweep.id))


def test_a_sweep_that_has_begun_to_train_gets_none(store: Store) -> None:
    sweep = new_sweep(store)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    assert is_due(now(store), store.trials(sweep.id))
    assert store.claim(sweep.id, "worker", 60) is not None
    assert not is_due(now(store), store.trials(sweep.id))


# the tracker


def mirror(store: Store, sweep: SweepRow, experiment: ExperimentWriter, pictures: Path) -> Mirror:
    return Mirror(
        store,
        sweep,
        SPEC,
        {"git_commit": "g"},
        Dataset("c", "c", "c", {}),
        lambda: experiment,
        lambda: "so far",
        pictures,
    )


def range_runs(experiment: RecordingExperiment) -> list[RecordingRun]:
    return [run for run in experiment.runs.values() if "stage" in run.tags]


def contents(run: RecordingRun) -> tuple[Any, ...]:
    return run.name, run.tags, run.params, run.curves, run.artifacts, run.status, run.end_time_ms


def test_it_is_a_run_of_its_own_beside_the_trials(file_store: Store, tmp_path: Path) -> None:
    sweep, experiment = new_sweep(file_store), RecordingExperiment()
    file_store.set_sweep_state(sweep.id, SweepState.RUNNING)
    before = mirror(file_store, sweep, experiment, tmp_path / "pictures")
    before.ship()
    assert range_runs(experiment) == [], "there is none yet"
    write_files(TEST, tmp_path / "pictures")
    keep(file_store, sweep, SPEC, TEST)
    claim = file_store.claim(sweep.id, "worker", 60)
    assert claim is not None
    file_store.record(claim, [epoch_row(1)])
    assert before.ship() == 2, "the trials that were behind, the test not among them"
    (run,) = range_runs(experiment)
    assert run.name == "range test"
    assert (run.tags["stage"], run.tags["sweep"], run.tags["git_commit"]) == ("range_test", "s", "g")
    assert run.tags["reason"].startswith("It rose. It diverged. ")
    assert "number" not in run.tags
    assert run.status == "FINISHED"
    assert run.params["batch_size"] == "4"
    assert "learning_rate" not in run.params
    finished = round(1000 * now(file_store).facts["range_test"]["finished_at"])
    assert run.end_time_ms == finished
    assert run.end_time_ms - run.start_time_ms == 30_500
    assert run.curves["range_test/rate"] == [(look.step, finished, look.rate) for look in LOOKS]
    assert run.curves["range_test/swap_t"] == [(11, finished, 3.0)]
    assert {key.partition("/")[0] for key in run.curves} == {"range_test"}, "no curve of a trial's name"
    assert set(run.artifacts) == {PICTURE, NUMBERS}
    assert json.loads(run.artifacts[NUMBERS])["edges"]["high"] == 6e-2
    assert len(experiment.runs) == 3
    assert sorted(run.tags["number"] for run in experiment.runs.values() if run not in range_runs(experiment)) == [
        "0",
        "1",
    ]


def test_shipped_again_it_is_the_same_run(file_store: Store, tmp_path: Path) -> None:
    sweep, experiment = new_sweep(file_store), RecordingExperiment()
    write_files(TEST, tmp_path)
    keep(file_store, sweep, SPEC, TEST)
    mirror(file_store, sweep, experiment, tmp_path).ship()
    (run,) = range_runs(experiment)
    first = contents(run)
    mirror(file_store, sweep, experiment, tmp_path).ship()
    file_store.update_facts(sweep.id, {"range_test_run": "of another server"})
    mirror(file_store, sweep, experiment, tmp_path).ship()
    (again,) = range_runs(experiment)
    assert contents(again) == first
    elsewhere = RecordingExperiment()
    mirror(file_store, sweep, elsewhere, tmp_path).ship()
    assert [contents(run) for run in range_runs(elsewhere)] == [first]


def test_a_pass_that_died_half_way_is_made_again(
    file_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, experiment = new_sweep(file_store), RecordingExperiment()
    write_files(TEST, tmp_path)
    keep(file_store, sweep, SPEC, TEST)
    log_artifact = RecordingRun.log_artifact

    def away(self: RecordingRun, file: Path, folder: str = "") -> None:
        raise TrackingUnavailable("away")

    monkeypatch.setattr(RecordingRun, "log_artifact", away)
    shipping = mirror(file_store, sweep, experiment, tmp_path)
    with pytest.raises(TrackingUnavailable):
        shipping.ship()
    monkeypatch.setattr(RecordingRun, "log_artifact", log_artifact)
    shipping.ship()
    (run,) = range_runs(experiment)
    assert set(run.artifacts) == {PICTURE, NUMBERS}
    assert all(len(points) == len({point[0] for point in points}) for points in run.curves.values())


def test_without_its_picture_the_numbers_are_shipped(file_store: Store, tmp_path: Path) -> None:
    sweep, experiment = new_sweep(file_store), RecordingExperiment()
    keep(file_store, sweep, SPEC, TEST)
    mirror(file_store, sweep, experiment, tmp_path / "gone").ship()
    (run,) = range_runs(experiment)
    assert run.artifacts == {}
    assert run.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_in_mlflow_there_is_one_even_after_two_passes(file_store: Store, tmp_path: Path) -> None:
    sweep, uri = new_sweep(file_store), store_uri(tmp_path / "mlflow")
    (tmp_path / "mlflow").mkdir()
    write_files(TEST, tmp_path)
    keep(file_store, sweep, SPEC, TEST)
    for _ in range(2):
        mirror(file_store, sweep, open_experiment(uri, "s"), tmp_path).ship()
        file_store.update_facts(sweep.id, {"range_test_run": ""})
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.stage = 'range_test'", run_view_type=ViewType.ALL)
    (run,) = found
    assert (run.info.run_name, run.info.status) == ("range test", "FINISHED")
    points = client.get_metric_history(run.info.run_id, "range_test/train_loss")
    assert [(point.step, point.value) for point in points] == [(look.step, look.train_loss) for look in LOOKS]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {PICTURE, NUMBERS}
