"""A checkpoint that another machine goes on with: through a real MLflow server, and through one with faults."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from sweeps import checkpoint_share
from sweeps.checkpoint_share import FOLDER, Share, fetch, shared, upload
from tests.faults.mlflow_proxy import proxied
from tracking.mlflow_writer import open_experiment
from tracking.recording_writer import RecordingExperiment
from tracking.server import local_server
from tracking.writer import ExperimentWriter, TrackingRefused, TrackingUnavailable


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_server(tmp_path_factory.mktemp("server")) as running:
        yield running.url


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.slow)])
def experiment(request: pytest.FixtureRequest) -> ExperimentWriter:
    if request.param == "memory":
        return RecordingExperiment()
    return open_experiment(request.getfixturevalue("server"), f"sweep {uuid.uuid4()}")


@pytest.fixture
def run_id(experiment: ExperimentWriter) -> str:
    return experiment.run("sweep/0", "trial 0", 1_000).run_id


def checkpoint(folder: Path, epochs: int, size: int = 200_000) -> Path:
    """A file as a worker replaces it: written aside, then put in the other's place."""
    file, aside = folder / "00000.pt", folder / "aside"
    aside.write_bytes(bytes([epochs]) * size)
    return aside.replace(file)


def epochs_in(file: Path) -> int:
    (epochs,) = set(file.read_bytes())
    return epochs


def test_what_was_uploaded_last_is_fetched(experiment: ExperimentWriter, run_id: str, tmp_path: Path) -> None:
    to = tmp_path / "other machine" / "00000.pt"
    assert fetch(experiment, run_id, to) is None
    for epochs in (1, 2, 5):
        upload(experiment, run_id, checkpoint(tmp_path, epochs), epochs)
        assert fetch(experiment, run_id, to) == epochs
        assert epochs_in(to) == epochs
    assert [path.name for path in to.parent.iterdir()] == ["00000.pt"]


def test_a_file_of_ones_own_that_is_as_far_stays(experiment: ExperimentWriter, run_id: str, tmp_path: Path) -> None:
    upload(experiment, run_id, checkpoint(tmp_path, 4), 4)
    to = tmp_path / "own.pt"
    to.write_bytes(b"own")
    for beyond in (4, 7):
        assert fetch(experiment, run_id, to, beyond) is None
    assert to.read_bytes() == b"own"
    assert fetch(experiment, run_id, to, beyond=3) == 4


def test_an_upload_that_died_leaves_the_one_before(
    experiment: ExperimentWriter, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = experiment.existing(run_id)
    upload(experiment, run_id, checkpoint(tmp_path, 1), 1)
    for _ in range(3):  # each dies between the checkpoint and the list
        slot = tmp_path / "1.pt"
        slot.write_bytes(b"half of epoch")
        run.log_artifact(slot, FOLDER)
        assert fetch(experiment, run_id, tmp_path / "to.pt") == 1
        assert epochs_in(tmp_path / "to.pt") == 1
    upload(experiment, run_id, checkpoint(tmp_path, 5), 5)
    assert fetch(experiment, run_id, tmp_path / "to.pt") == 5


@pytest.mark.parametrize(
    "content", [b"", b'{"slot": "0.pt"', b"[1]", b'{"slot": "../0.pt", "sha256": "", "epochs": 9}']
)
def test_a_list_that_is_none_is_not_followed(
    experiment: ExperimentWriter, run_id: str, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "latest.json").write_bytes(content)
    experiment.existing(run_id).log_artifact(tmp_path / "latest.json", FOLDER)
    assert shared(experiment, run_id) is None
    assert fetch(experiment, run_id, tmp_path / "to.pt") is None
    upload(experiment, run_id, checkpoint(tmp_path, 1), 1)
    assert fetch(experiment, run_id, tmp_path / "to.pt") == 1


def test_a_torn_copy_is_not_taken(
    experiment: ExperimentWriter, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upload(experiment, run_id, checkpoint(tmp_path, 1), 1)
    (tmp_path / "0.pt").write_bytes(bytes([1]) * 100)
    experiment.existing(run_id).log_artifact(tmp_path / "0.pt", FOLDER)
    assert fetch(experiment, run_id, tmp_path / "to.pt") is None
    assert "not whole" in caplog.text
    assert not (tmp_path / "to.pt").exists()


def test_a_run_that_is_not_there_is_refused(experiment: ExperimentWriter, tmp_path: Path) -> None:
    with pytest.raises(TrackingRefused):
        fetch(experiment, "0" * 32, tmp_path / "to.pt")
    with pytest.raises(TrackingRefused):
        upload(experiment, "0" * 32, checkpoint(tmp_path, 1), 1)


# in the background


class Slow:
    """Uploads that wait to be let on; how many were under way at once, and of which epochs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, self.epochs, self.at_once, self.most = threading.Semaphore(0), threading.Event(), [], 0, 0
        self.upload = checkpoint_share.upload
        monkeypatch.setattr(checkpoint_share, "upload", self)

    def __call__(self, experiment: ExperimentWriter, run_id: str, file: Path, epochs: int) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.begun.set()
        assert self.go.acquire(timeout=30)
        self.upload(experiment, run_id, file, epochs)
        self.epochs.append(epochs)
        self.at_once -= 1


def test_the_latest_wins_and_never_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = RecordingExperiment()
    run_id = experiment.run("sweep/0", "trial 0", 1_000).run_id
    slow, share = Slow(monkeypatch), Share(experiment)
    share.offer(run_id, checkpoint(tmp_path, 1), 1)
    assert slow.begun.wait(10)
    for epochs in (2, 3, 4):
        share.offer(run_id, checkpoint(tmp_path, epochs), epochs)
    begun = time.monotonic()
    assert not share.flush(0.2)
    assert time.monotonic() - begun < 5
    slow.go.release(10)
    assert share.flush(10)
    assert (slow.epochs, slow.most) == ([1, 4], 1)
    assert fetch(experiment, run_id, tmp_path / "to.pt") == 4
    assert epochs_in(tmp_path / "to.pt") == 4
    assert share.close(1)
    share._thread.join(10)
    assert not share._thread.is_alive()


@pytest.mark.slow
def test_at_hand_back_it_is_there(server: str, tmp_path: Path) -> None:
    experiment = open_experiment(server, f"sweep {uuid.uuid4()}")
    run_id = experiment.run("sweep/0", "trial 0", 1_000).run_id
    share = Share(experiment)
    assert share.flush(0), "nothing was offered"
    for epochs in range(1, 8):
        share.offer(run_id, checkpoint(tmp_path, epochs, 3_000_000), epochs)
    assert share.close(10)
    assert fetch(open_experiment(server, "another"), run_id, tmp_path / "to.pt") == 7
    assert epochs_in(tmp_path / "to.pt") == 7
    kept = MlflowClient(server).list_artifacts(run_id, FOLDER)
    assert len(kept) <= 3, "two slots and the list, however many epochs"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refuse", "error500"])
def test_a_server_that_is_away_costs_no_more_than_a_warning(
    server: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with proxied(server) as proxy:
        experiment = open_experiment(proxy.url, f"sweep {uuid.uuid4()}")
        run_id = experiment.run("sweep/0", "trial 0", 1_000).run_id
        share = Share(experiment)
        share.offer(run_id, checkpoint(tmp_path, 1), 1)
        assert share.flush(10)
        proxy.mode = fault
        share.offer(run_id, checkpoint(tmp_path, 2), 2)
        assert not share.flush(10)
        assert "does not answer" in share.trouble
        assert "epoch 2 was not shared" in caplog.text
        with pytest.raises(TrackingUnavailable):
            fetch(experiment, run_id, tmp_path / "to.pt")
        proxy.mode = "pass"
        assert fetch(experiment, run_id, tmp_path / "to.pt") == 1
        share.offer(run_id, checkpoint(tmp_path, 3), 3)
        assert share.close(10)
        assert share.trouble == ""
        assert fetch(experiment, run_id, tmp_path / "to.pt") == 3


def test_a_checkpoint_that_is_gone_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = RecordingExperiment()
    share = Share(experiment)
    share.offer(experiment.run("sweep/0", "trial 0", 1_000).run_id, tmp_path / "gone.pt", 1)
    assert not share.close(10)
    assert "gone.pt" in caplog.text


@pytest.mark.skipif(not hasattr(os, "link"), reason="a second name is what keeps it still")
def test_one_that_is_replaced_while_it_is_uploaded_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = RecordingExperiment()
    run = experiment.run("sweep/0", "trial 0", 1_000)
    log_artifact = type(run).log_artifact

    def replaced_meanwhile(self: object, file: Path, folder: str = "") -> None:
        checkpoint(tmp_path, 2)
        log_artifact(run, file, folder)

    monkeypatch.setattr(type(run), "log_artifact", replaced_meanwhile)
    upload(experiment, run.run_id, checkpoint(tmp_path, 1), 1)
    assert fetch(experiment, run.run_id, tmp_path / "to.pt") == 1
    assert epochs_in(tmp_path / "to.pt") == 1
