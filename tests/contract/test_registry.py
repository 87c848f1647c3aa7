"""Models in MLflow's registry: on a real server over HTTP and on MLflow's database itself."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tracking.mlflow_writer import open_experiment
from tracking.registry import Registered, register
from tracking.server import local_server, store_uri
from tracking.writer import ModelFile, TrackingRefused, TrackingUnavailable

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_server(tmp_path_factory.mktemp("server")) as server:
        yield server.url


@pytest.fixture(params=["http", "database"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("server") if request.param == "http" else store_uri(tmp_path / "mlflow")


def logged(uri: str, tmp_path: Path, number: int = 0, name: str = "sweep") -> tuple[str, str]:
    """A model of a run: the ids of both."""
    experiment = open_experiment(uri, name)
    run = experiment.run(f"sweep/{number}", "first", 1_000)
    file = tmp_path / "best.pt"
    file.write_bytes(b"weights")
    model = ModelFile("sweep@1/best/0", "sweep-best", file, "tracking.testing", ["numpy"], 28, {"dev_wer": "0.2"})
    return experiment.log_model(run.run_id, 7, replace(model, key=f"sweep@1/best/{number}")), run.run_id


def test_a_model_is_registered_once_with_its_evidence_and_alias(uri: str, tmp_path: Path) -> None:
    name = f"model-{uuid.uuid4()}"
    model_id, run_id = logged(uri, tmp_path, name=name)
    first = register(uri, name, model_id, run_id, "champion", "It is *better*.", {"wer": "0.3100", "verdict": "better"})
    assert first == Registered(name, "1", "champion", new=True)
    assert first.uri == f"models:/{name}@champion"
    again = register(uri, name, model_id, run_id, "champion", "It is worse.", {"wer": "0.3200"})
    assert again == replace(first, new=False)
    client = MlflowClient(uri)
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert (version.run_id, version.description) == (run_id, "It is worse.")
    assert version.tags == {"wer": "0.3200", "verdict": "better", "logged_model": model_id}
    place = client.get_logged_model(model_id).artifact_location
    assert client.get_model_version_download_uri(name, "1") == place
    assert client.get_model_version_by_alias(name, "champion").version == version.version


def test_another_model_is_another_version_and_takes_the_alias(uri: str, tmp_path: Path) -> None:
    name = f"model-{uuid.uuid4()}"
    for number in range(2):
        model_id, run_id = logged(uri, tmp_path, number, name)
        made = register(uri, name, model_id, run_id, "champion", "", {})
        assert (made.version, made.new) == (str(number + 1), True)
    client = MlflowClient(uri)
    assert str(client.get_model_version_by_alias(name, "champion").version) == "2"
    model_id, run_id = logged(uri, tmp_path, 0, name)
    assert register(uri, name, model_id, run_id, "before", "", {}).version == "1"
    aliases = client.get_registered_model(name).aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "2", "before": "1"}


def test_what_the_registry_does_not_allow_is_refused(uri: str, tmp_path: Path) -> None:
    model_id, run_id = logged(uri, tmp_path, name=f"model-{uuid.uuid4()}")
    with pytest.raises(TrackingRefused, match="alias"):
        register(uri, f"model-{uuid.uuid4()}", model_id, run_id, "v1", "", {})  # as a version is called


def test_a_long_description_is_cut(uri: str, tmp_path: Path) -> None:
    name = f"model-{uuid.uuid4()}"
    model_id, run_id = logged(uri, tmp_path, name=name)
    register(uri, name, model_id, run_id, "champion", "x" * 9_000, {})
    assert len(MlflowClient(uri).get_model_version(name, "1").description) == 5_000


def test_a_server_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingUnavailable, match="does not answer"):
        register("http://127.0.0.1:9", "m", "m-1", "r", "champion", "", {})
