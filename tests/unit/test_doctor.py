"""Every check of `sweeps doctor` that needs no database: an installation it must warn of, and one it must not."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from model import devices as torch_devices
from model.devices import Device, fault_of
from sweeps import doctor
from sweeps.doctor import Finding, examine
from sweeps.records import Runner, SweepRow, WorkerRow
from sweeps.settings import Home
from sweeps.states import SweepState
from tracking.server import local_server

NOW = 1_700_000_000.0


def level(finding: Finding) -> str:
    """Its level; what is no fault of the installation asks for nothing, and what is one says what to do."""
    assert finding.sentence
    assert "\n" not in finding.sentence + finding.way_out
    if finding.level == "ok":
        assert not finding.way_out
    return finding.level


# python, packages, names, clock


@pytest.mark.parametrize(
    ("version", "needed", "expected"),
    [("3.11.0", ">=3.11", "ok"), ("3.13.1", None, "ok"), ("3.10.9", ">=3.11", "fault")],
)
def test_python(version: str, needed: str | None, expected: str) -> None:
    assert level(doctor.python(version, needed)) == expected


VERSIONS = {"torch": "2.13.0+cpu", "mlflow": "3.17.2", "optuna": "5.0.0", "sqlalchemy": "2.1.9"}
NEEDS = ["torch<3,>=2.13", "mlflow>=3.17", 'uvloop>=0.21; sys_platform == "no such"', 'pytest>=8; extra == "dev"']


def test_packages_in_versions_that_will_do() -> None:
    found = doctor.packages(NEEDS, VERSIONS.get)
    assert level(found) == "ok"
    assert "2 packages" in found.sentence
    assert "torch 2.13.0+cpu" in found.sentence


@pytest.mark.parametrize(
    ("versions", "named"),
    [
        ({"torch": "2.9.1"}, "torch is 2.9.1, and <3,>=2.13 is needed"),
        ({"mlflow": None}, "mlflow is not installed"),
    ],
)
def test_packages_that_will_not_do(versions: dict[str, str | None], named: str) -> None:
    found = doctor.packages(NEEDS, {**VERSIONS, **versions}.get)
    assert level(found) == "fault"
    assert named in found.sentence


def test_a_distribution_that_is_not_installed() -> None:
    assert level(doctor.packages(None, VERSIONS.get)) == "warning"


def test_what_this_distribution_declares_is_there() -> None:
    assert level(doctor.packages(metadata.requires("ctc-sweeps"), metadata.version)) == "ok"


def test_names_in_a_folder_without_any(tmp_path: Path) -> None:
    assert level(doctor.names(tmp_path)) == "ok"


def test_a_model_of_ones_own_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    found = doctor.names(tmp_path)
    assert level(found) == "warning"
    assert "model.py in this folder: `python -m model` runs it" in found.sentence


def test_a_model_of_ones_own_before_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "model", SimpleNamespace(__spec__=SimpleNamespace(origin="/far/model.py")))
    found = doctor.names(tmp_path)
    assert level(found) == "fault"
    assert "model.py" in found.sentence


def test_clock() -> None:
    assert level(doctor.clock(NOW, NOW - 9)) == "ok"
    assert level(doctor.clock(0, NOW)) == "warning"
    assert "1970-01-01" in doctor.clock(0, NOW).sentence


# disk


@pytest.mark.parametrize(("free", "expected"), [(50e9, "ok"), (1.9e9, "warning"), (199e6, "fault")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, expected: str) -> None:
    def usage(path: Path) -> SimpleNamespace:
        assert path == tmp_path, "the home is not there yet: asked of the folder above it"
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert level(doctor.disk(tmp_path / "not" / "there")) == expected


def test_a_home_that_can_be_written(tmp_path: Path) -> None:
    assert level(doctor.writable(tmp_path)) == "ok"
    assert level(doctor.writable(tmp_path / "not" / "there")) == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert level(doctor.writable(tmp_path / "file" / "home")) == "fault"
    assert level(doctor.writable(tmp_path / "file")) == "fault"

    def read_only(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    found = doctor.writable(tmp_path)
    assert level(found) == "fault"
    assert "Read-only file system" in found.sentence


class Mount(NamedTuple):
    mountpoint: str
    fstype: str
    opts: str = "rw"


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([("/", "ext4")], "ok"),
        ([("/", "nfs4")], "warning"),
        ([("/", "ext4"), ("HERE", "fuse.sshfs")], "warning"),
        ([("HERE", "cifs"), ("/", "ext4")], "warning"),
        ([("/", "nfs"), ("HERE", "xfs")], "ok"),
        ([("HERE", "nfs"), ("HERE", "ext4")], "ok"),  # the later mount hides the earlier one
        ([("/", "ext4"), ("HERE-not", "nfs")], "ok"),
        ([("/", "fuseblk")], "ok"),  # NTFS on a disk of this machine
        ([], "ok"),
    ],
)
def test_sqlite_on_a_network_file_system(tmp_path: Path, mounts: list[tuple[str, str]], expected: str) -> None:
    top = Path(tmp_path.anchor).as_posix()
    partitions = [Mount({"/": top}.get(at, at.replace("HERE", str(tmp_path))), kind) for at, kind in mounts]
    found = doctor.file_systems([tmp_path / "sweeps.db", tmp_path / "mlflow" / "mlflow.db"], partitions)
    assert level(found) == expected
    assert ("sweeps.db is an SQLite database" in found.sentence) == (expected == "warning")


# clocks, keepers, workers, by what the tables hold


def test_sqlite_on_a_drive_of_another_machine(tmp_path: Path) -> None:
    drive = Mount(tmp_path.anchor, "NTFS", "rw,remote")
    assert level(doctor.file_systems([tmp_path / "sweeps.db"], [drive])) == "warning"
    assert level(doctor.file_systems([tmp_path / "sweeps.db"], [drive._replace(opts="rw,fixed")])) == "ok"


def test_who_is_told_of_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "notify.yaml"
    assert level(doctor.notify(file)) == "ok"
    file.write_text("team: {webhook: 'https://example.org/${HOOK_OF_A_TEST}'}\n", encoding="utf-8")
    found = doctor.notify(file)
    assert level(found) == "fault"
    assert "${HOOK_OF_A_TEST} is not set in this environment" in found.sentence
    monkeypatch.setenv("HOOK_OF_A_TEST", "s3cret")
    found = doctor.notify(file)
    assert (level(found), "told of news: team" in found.sentence, "s3cret" in found.sentence) == ("ok", True, False)


def test_the_databases_clock() -> None:
    assert level(doctor.database_clock(NOW, NOW + 4, NOW)) == "ok"
    assert "86400 s ahead of" in doctor.database_clock(NOW, NOW + 86_400, NOW).sentence
    assert level(doctor.database_clock(NOW, NOW + 86_400, NOW)) == "warning"
    assert "6 s behind" in doctor.database_clock(NOW, NOW - 6, NOW - 7).sentence
    back = doctor.database_clock(NOW, NOW, NOW + 3600)
    assert level(back) == "warning"
    assert "set back" in back.sentence


RUNNER = Runner("far-9-1.00", "far", 9)


def sweep(state: SweepState, runner: Runner | None = None, beat_at: float | None = None) -> SweepRow:
    values = dict.fromkeys(SweepRow.__dataclass_fields__)
    return SweepRow(**{**values, "name": "s", "state": state, "runner": runner, "runner_beat_at": beat_at})


@pytest.mark.parametrize(
    ("row", "dead", "expected", "said"),
    [
        (sweep(SweepState.RUNNING, RUNNER, NOW - 2), False, "ok", "kept by process 9 on far"),
        (sweep(SweepState.RUNNING, RUNNER, NOW - 2), True, "warning", "no live process keeps it"),
        (sweep(SweepState.RUNNING, RUNNER, NOW - 900), False, "warning", "heard of 900 s ago"),
        (sweep(SweepState.STOPPING), False, "warning", "STOPPING, and no live process"),
        (sweep(SweepState.PAUSED), False, "ok", "no sweep is running"),
        (sweep(SweepState.COMPLETE), False, "ok", "no sweep is running"),
    ],
)
def test_keepers(row: SweepRow, dead: bool, expected: str, said: str) -> None:
    (found,) = doctor.keepers([row], NOW, lambda _: dead)
    assert level(found) == expected
    assert said in found.sentence


def worker(name: str, seen_at: float) -> WorkerRow:
    return WorkerRow(name, "far", 9, 1.0, "cuda:0", {}, NOW - 5000, seen_at)


def test_workers_that_live_and_that_have_ended() -> None:
    rows = [worker("live", NOW - 60), worker("over", NOW - 4000), worker("killed", NOW - 1)]
    (found,) = doctor.living(rows, {"live"}, NOW, lambda w: w.id == "killed")
    assert level(found) == "ok"
    assert found.sentence.startswith("1 live: process 9 on far (cuda:0); 2 ended")


@pytest.mark.parametrize(("seconds_ago", "dead"), [(4000, False), (1, True)])
def test_a_worker_that_died_with_a_trial_in_hand(seconds_ago: float, dead: bool) -> None:
    none, lost = doctor.living([worker("w", NOW - seconds_ago)], {"w"}, NOW, lambda _: dead)
    assert none.sentence == "0 live"
    assert level(lost) == "warning"
    assert "holds a trial" in lost.sentence


# MLflow


@contextmanager
def server(status: int = 200, version: str | None = "3.17.2") -> Iterator[str]:
    """What MLflow answers, as far as it is asked."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            about_version = self.path.startswith("/version")
            code = (200 if version else 404) if about_version else status
            body = ((version or "") if about_version else "{}").encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/html" if about_version else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "version", "expected", "said"),
    [
        (200, "3.17.2", "ok", "answers (MLflow 3.17.2"),
        (200, None, "ok", "answers (MLflow ?"),
        (200, "2.22.0", "warning", "is MLflow 2.22.0"),
        (401, "3.17.2", "fault", "MLFLOW_TRACKING_USERNAME"),
        (500, "3.17.2", "fault", "HTTP status 500"),
    ],
)
def test_a_server_that_was_named(status: int, version: str | None, expected: str, said: str) -> None:
    with server(status, version) as url:
        found = doctor.mlflow_server(url.replace("//", "//user:secret@"))
    assert level(found) == expected
    assert said in found.sentence
    assert "secret" not in found.sentence


def test_a_server_that_does_not_answer() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = doctor.mlflow_server(f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert level(found) == "fault"
    assert "no MLflow server answers" in found.sentence


@pytest.mark.slow
def test_a_real_server(tmp_path: Path) -> None:
    with local_server(tmp_path) as running:
        found = doctor.mlflow_server(running.url)
    assert level(found) == "ok"
    assert f"(MLflow {metadata.version('mlflow')}, here" in found.sentence


def test_an_mlflow_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    found = doctor.mlflow_server("http://127.0.0.1:9")
    assert level(found) == "fault"
    assert "cannot be imported" in found.sentence


def test_mlflow_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{(tmp_path / 'sub' / 'mlflow.db').as_posix()}"
    assert level(doctor.mlflow_server(uri)) == "ok"
    assert list(tmp_path.iterdir()) == []
    assert level(doctor.mlflow_server("ftp://somewhere")) == "fault"
    monkeypatch.setattr("os.access", lambda *_: False)
    assert level(doctor.mlflow_server(uri)) == "fault"


def test_a_local_mlflow_server() -> None:
    assert level(doctor.local_mlflow()) == "ok"


def test_a_local_mlflow_server_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(doctor, "LOOPBACK", "192.0.2.1")  # an address that no machine has
        found = doctor.local_mlflow()
    assert level(found) == "fault"
    assert "no port of 192.0.2.1" in found.sentence
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    assert level(doctor.local_mlflow()) == "fault"


# devices


def test_the_cpu_computes() -> None:
    first = next(iter(torch_devices.devices()))
    assert (first.name, first.fault) == ("cpu", "")
    assert f"{torch.get_num_threads()} threads" in first.detail


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a CUDA device")
def test_a_device_that_is_not_there_computes_nothing() -> None:
    assert fault_of("cpu") == ""
    assert fault_of("cuda:0")
    assert "\n" not in fault_of("cuda:0")


CPU = Device("cpu", "2 threads", "")
CARD = Device("cuda:0", "H200", "")


@pytest.mark.parametrize(
    ("there", "has_nvidia", "expected"),
    [
        ([CPU], False, ["ok"]),
        ([CPU, CARD], True, ["ok", "ok"]),
        ([CPU], True, ["ok", "warning"]),
        ([CPU, Device("cuda:0", "H200", "out of memory")], True, ["ok", "fault"]),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, there: list[Device], has_nvidia: bool, expected: list[str]) -> None:
    monkeypatch.setattr(torch_devices, "devices", lambda: there)
    assert [level(found) for found in doctor.devices(has_nvidia)] == expected


def test_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model.devices", None)
    (found,) = doctor.devices(False)
    assert level(found) == "fault"
    assert "torch cannot be imported" in found.sentence


# all of them


def test_a_new_installation_has_no_fault_and_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = list(examine(Home(tmp_path / ".sweeps"), None, None))
    assert [f for f in found if f.level == "fault"] == []
    assert list(tmp_path.iterdir()) == []
    checks = ["python", "packages", "names", "clock", "disk", "home", "file system", "database", "notify", "mlflow"]
    assert [f.check for f in found][: len(checks)] == checks
