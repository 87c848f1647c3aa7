"""The writer contract on the recording twin, on a real server over HTTP and on MLflow's database itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import LoggedModel, ViewType
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from tracking.mlflow_writer import open_experiment
from tracking.recording_writer import RecordingExperiment
from tracking.server import local_server, store_path, store_uri
from tracking.testing import StoredRun, Tracker, WriterContract
from tracking.writer import ExperimentWriter, TrackingRefused

# MLflow's tables, used in this process by the tests on the database, are older than SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@dataclass
class RecordingTracker:
    experiment: RecordingExperiment

    def runs(self) -> list[str]:
        return [run.run_id for run in self.experiment.runs.values()]

    def stored(self, run_id: str) -> StoredRun:
        (run,) = (run for run in self.experiment.runs.values() if run.run_id == run_id)
        curves = {name: sorted(points) for name, points in run.curves.items()}
        return StoredRun(
            name=run.name,
            status=run.status,
            start_time_ms=run.start_time_ms,
            end_time_ms=run.end_time_ms,
            params=dict(run.params),
            tags=dict(run.tags),
            curves=curves,
            artifacts=dict(run.artifacts),
            images=dict(run.images),
            tables=dict(run.tables),
            datasets={digest: dataset.name for digest, dataset in run.datasets.items()},
        )

    def description(self) -> str:
        return self.experiment.description

    def models(self) -> dict[str, Mapping[str, str]]:
        return {f"m-{n}": model.facts for n, (*_, model) in enumerate(self.experiment.models.values())}


@dataclass
class MlflowTracker:
    uri: str
    experiment_id: str

    def __post_init__(self) -> None:
        self.client = MlflowClient(self.uri)

    def runs(self) -> list[str]:
        found = self.client.search_runs([self.experiment_id], run_view_type=ViewType.ALL)
        return [run.info.run_id for run in found]

    def stored(self, run_id: str) -> StoredRun:
        run = self.client.get_run(run_id)
        files = dict(self._artifacts(run_id))
        listed = json.loads(run.data.tags.get("mlflow.loggedArtifacts", "[]"))
        tables = {entry["path"]: json.loads(files[entry["path"]]) for entry in listed}
        images = {path: content for path, content in files.items() if path.startswith("images/")}
        history = {name: self.client.get_metric_history(run_id, name) for name in run.data.metrics}
        return StoredRun(
            name=run.info.run_name,
            status=run.info.status,
            start_time_ms=run.info.start_time,
            end_time_ms=run.info.end_time or None,
            params=run.data.params,
            tags=run.data.tags,
            curves={name: sorted((m.step, m.timestamp, m.value) for m in points) for name, points in history.items()},
            artifacts={path: content for path, content in files.items() if path not in {*images, *tables}},
            images={_key_and_step(path): png for path, png in images.items() if path.endswith(".png")},
            tables={path: [table["columns"], *table["data"]] for path, table in tables.items()},
            datasets={entry.dataset.digest: entry.dataset.name for entry in run.inputs.dataset_inputs},
        )

    def description(self) -> str:
        return str(self.client.get_experiment(self.experiment_id).tags["mlflow.note.content"])

    def models(self) -> dict[str, Mapping[str, str]]:
        there = self.client.search_logged_models([self.experiment_id])
        loaded = {model.model_id: Model.load(self._description_of(model)) for model in there}
        assert all(model.signature.inputs.inputs[0].shape == (-1, 28) for model in loaded.values())
        return {model_id: model.metadata for model_id, model in loaded.items()}

    def _description_of(self, model: LoggedModel) -> str:
        uri = f"{model.artifact_location}/MLmodel"
        return str(download_artifacts(artifact_uri=uri, tracking_uri=self.uri))

    def _artifacts(self, run_id: str, folder: str | None = None) -> Iterator[tuple[str, bytes]]:
        for item in list_artifacts(run_id=run_id, artifact_path=folder, tracking_uri=self.uri):
            if item.is_dir:
                yield from self._artifacts(run_id, item.path)
            else:
                copy = download_artifacts(run_id=run_id, artifact_path=item.path, tracking_uri=self.uri)
                yield item.path, Path(copy).read_bytes()


def _key_and_step(path: str) -> tuple[str, int]:
    """As MLflow's page reads the name of an image."""
    key, word, step, *_ = path.removeprefix("images/").split("+")
    assert word == "step"
    return key.replace("~", "/"), int(step)


class TestRecordingWriter(WriterContract):
    @pytest.fixture
    def experiment(self) -> RecordingExperiment:
        return RecordingExperiment()

    @pytest.fixture
    def tracker(self, experiment: RecordingExperiment) -> Tracker:
        return RecordingTracker(experiment)


class MlflowContract(WriterContract):
    @pytest.fixture
    def experiment(self, uri: str) -> ExperimentWriter:
        return open_experiment(uri, f"sweep {uuid.uuid4()}")

    @pytest.fixture
    def tracker(self, uri: str, experiment: ExperimentWriter) -> Tracker:
        return MlflowTracker(uri, experiment.experiment_id)

    def test_opened_again_it_is_the_same_experiment(self, uri: str) -> None:
        name = f"it's {uuid.uuid4()} Straße"
        first = open_experiment(uri, name)
        run = first.run("sweep/1", "first", 1_000)
        again = open_experiment(uri, name)
        assert again.experiment_id == first.experiment_id
        assert again.run("sweep/1", "first", 1_000).run_id == run.run_id

    def test_a_deleted_experiment_is_refused(self, uri: str) -> None:
        name = f"deleted {uuid.uuid4()}"
        experiment_id = open_experiment(uri, name).experiment_id
        MlflowClient(uri).delete_experiment(experiment_id)
        with pytest.raises(TrackingRefused, match=f"restore --experiment-id {experiment_id}.*another name"):
            open_experiment(uri, name)

    def test_a_deleted_run_is_refused(self, uri: str, experiment: ExperimentWriter) -> None:
        run = experiment.run("sweep/1", "first", 1_000)
        MlflowClient(uri).delete_run(run.run_id)
        with pytest.raises(TrackingRefused, match="must be in the 'active' state"):
            run.set_tags({"a": "b"})

    def test_a_creation_that_arrived_twice_leaves_one_run(
        self, uri: str, experiment: ExperimentWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = MlflowClient.create_run

        def create_twice(*args: Any, **kwargs: Any) -> Any:
            create(*args, **kwargs)
            return create(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, "create_run", create_twice)
        run = experiment.run("sweep/1", "first", 1_000)
        assert experiment.settle("sweep/1", run.run_id).run_id == run.run_id
        (kept,) = MlflowClient(uri).search_runs([experiment.experiment_id])
        assert kept.info.run_id == run.run_id
        assert kept.info.status == "SCHEDULED"

    def test_of_two_that_two_callers_made_the_one_they_agree_on_is_left(
        self, uri: str, experiment: ExperimentWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = type(experiment)._search  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(type(experiment), "_search", lambda *_: set())  # neither sees the other's
            mine, theirs = (experiment.run("sweep/1", "first", 1_000) for _ in range(2))
        assert found(experiment, "sweep/1") == {mine.run_id, theirs.run_id}
        kept = max(mine.run_id, theirs.run_id)
        for _ in range(2):
            assert experiment.settle("sweep/1", kept).run_id == kept
        assert experiment.run("sweep/1", "first", 1_000).run_id == kept

    def test_it_is_known_by_its_address_without_a_password_or_by_the_name_it_is_given(self, uri: str) -> None:
        name = f"known {uuid.uuid4()}"
        assert open_experiment(uri, name).tracking == uri
        assert open_experiment(uri, name, "sqlite:////home/mlflow.db").tracking == "sqlite:////home/mlflow.db"
        if uri.startswith("http"):
            assert open_experiment(uri.replace("//", "//user:secret@"), name).tracking == uri


@pytest.fixture(scope="module")
def server_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_server(tmp_path_factory.mktemp("server")) as server:
        yield server.url


@pytest.fixture(scope="module")
def database_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store_uri(tmp_path_factory.mktemp("database 100% ü"))


class TestOverHttp(MlflowContract):
    @pytest.fixture
    def uri(self, server_uri: str) -> str:
        return server_uri


class TestOnTheDatabase(MlflowContract):
    @pytest.fixture
    def uri(self, database_uri: str) -> str:
        return database_uri

    def test_artifacts_lie_beside_the_database(self, uri: str, experiment: ExperimentWriter, tmp_path: Path) -> None:
        file = tmp_path / "a.txt"
        file.write_text("x", encoding="utf-8")
        run = experiment.run("sweep/1", "first", 1_000)
        run.log_artifact(file)
        copy = store_path(uri).parent / "mlartifacts" / run.run_id / "artifacts" / "a.txt"
        assert copy.read_text(encoding="utf-8") == "x"


def test_the_protocol_module_does_not_import_mlflow() -> None:
    code = "import sys, tracking.writer, tracking.server, tracking.links; print('mlflow' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert output.stdout.strip() == "False"
