"""The local server with real processes: it starts, it is shared, it goes; and what a caller hears when it is gone."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from tracking.mlflow_writer import open_experiment
from tracking.server import LocalServer, ServerDidNotStart, check_server, local_server, store_uri
from tracking.writer import EpochPoint, TrackingRefused, TrackingUnavailable

POINT = EpochPoint(1, 1_000, {"dev/wer": 0.5})


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "ml flow%20ü"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[LocalServer]:
    before = descendants()
    with local_server(home) as running:
        yield running
        tree = descendants() - before
        assert len(tree) >= 3  # the supervisor, mlflow, uvicorn
        running._supervisor.kill()  # the way without it is taken by `second`
    assert psutil.wait_procs(tree, timeout=1)[1] == []


PARENT = """
import os, signal, sys, time
from pathlib import Path
from tracking.server import local_server
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
with local_server(Path(sys.argv[1]), port=int(sys.argv[2])) as server:
    print(server.url, flush=True)
    while True:
        time.sleep(600)
"""


@dataclass
class Parent:
    """Another process that has a local server."""

    process: subprocess.Popen[str]
    url: str
    tree: list[psutil.Process]


@pytest.fixture(scope="module")
def second(home: Path) -> Iterator[Parent]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home), str(free_port())],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        tree = psutil.Process(process.pid).children(recursive=True)
        assert len(tree) >= 3
        yield Parent(process, url, tree)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_everything_it_writes_is_in_its_folder(server: LocalServer, home: Path, tmp_path: Path) -> None:
    check_server(server.url)
    file = tmp_path / "a.txt"
    file.write_text("x", encoding="utf-8")
    experiment = open_experiment(server.url, "folder")
    experiment.run("folder/1", "first", 1_000).log_artifact(file)
    files = {path.relative_to(home).parts[0] for path in home.rglob("*") if path.is_file()}
    log = f"server-{os.getpid()}.log"
    assert {"mlflow.db", "mlartifacts", log} <= files
    assert files <= {"mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts", "starting.lock", log}


def test_it_listens_on_loopback_and_to_its_own_names_alone(server: LocalServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    request = urllib.request.Request(
        f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "evil.example"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.code == 403


def test_a_proxy_does_not_stand_between(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    check_server(server.url)


def test_it_is_few_processes(server: LocalServer) -> None:
    assert len(server._tree) == 2


@pytest.mark.slow
def test_two_servers_share_a_folder(server: LocalServer, second: Parent, home: Path) -> None:
    assert second.url != server.url
    runs = [open_experiment(url, "shared").run("shared/1", "first", 1_000) for url in (server.url, second.url)]
    assert runs[0].run_id == runs[1].run_id
    failures: list[Exception] = []

    def write(writer: Callable[[list[EpochPoint]], None]) -> None:
        try:
            for epoch in range(30):
                writer([EpochPoint(epoch, 1_000 + epoch, {"dev/wer": 0.5})])
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(run.log_epochs,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        rows = database.execute("SELECT step FROM metrics WHERE run_uuid = ? ORDER BY step", (runs[0].run_id,))
        assert [step for (step,) in rows] == list(range(30))
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends the signal of a POSIX terminal")
def test_ctrl_c_ends_the_parents_work_and_not_the_server(second: Parent) -> None:
    assert second.process.stdout is not None
    os.killpg(second.process.pid, signal.SIGINT)
    assert second.process.stdout.readline().strip() == "interrupted"
    with urllib.request.urlopen(f"{second.url}/health") as answer:
        assert answer.status == 200
    assert all(process.is_running() for process in second.tree)


@pytest.mark.slow
def test_it_never_outlives_its_parent_and_its_writer_hears_of_it(server: LocalServer, second: Parent) -> None:
    here, there = (open_experiment(url, "death").run("death/1", "first", 1_000) for url in (server.url, second.url))
    second.process.kill()
    assert psutil.wait_procs(second.tree, timeout=15)[1] == []
    started = time.monotonic()
    with pytest.raises(TrackingUnavailable, match="does not answer"):
        there.log_epochs([POINT])
    assert time.monotonic() - started < 60
    here.log_epochs([POINT])


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["server", "supervisor", "all"])
def test_one_that_died_is_started_again_where_it_was(tmp_path: Path, killed: str) -> None:
    before = descendants()
    with local_server(tmp_path) as server:
        url, old = server.url, descendants() - before
        run = open_experiment(url, "death").run("death/1", "first", 1_000)
        server.ensure_alive()
        assert descendants() - before == old, "one that lives is left alone"
        supervisor, tree = psutil.Process(server._supervisor.pid), server._tree
        for process in {"server": tree[-1:], "supervisor": [supervisor], "all": [supervisor, *tree]}[killed]:
            process.kill()
        server._supervisor.wait(15)
        server.ensure_alive()
        assert server.url == url
        run.log_epochs([POINT])
        assert open_experiment(url, "death").run("death/1", "first", 1_000).run_id == run.run_id
        assert psutil.wait_procs(old, timeout=1)[1] == []
        assert len(descendants() - before) == len(old)
    assert descendants() <= before
    with pytest.raises(TrackingUnavailable, match="was stopped"):
        server.ensure_alive()


@pytest.mark.slow
def test_one_whose_port_was_taken_meanwhile_is_unavailable(tmp_path: Path) -> None:
    with local_server(tmp_path) as server:
        server._supervisor.kill()
        for process in server._tree:
            process.kill()
        psutil.wait_procs(server._tree, timeout=10)
        server._supervisor.wait()
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", int(server.url.rpartition(":")[2])))
            other.listen()
            with pytest.raises(TrackingUnavailable, match=r"does not start again: port .* is taken"):
                server.ensure_alive()
        server.ensure_alive()
        check_server(server.url)


def test_a_taken_port_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ServerDidNotStart, match=f"port {port} is taken.*another port"),
            local_server(tmp_path, port=port),
        ):
            pytest.fail("started on a taken port")


def test_a_file_that_is_no_database_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, whatever it is called", encoding="utf-8")
    with pytest.raises(ServerDidNotStart, match=r"mlflow\.db: file is not a database"), local_server(tmp_path):
        pytest.fail("started on a text file")


@pytest.mark.slow
def test_the_log_says_why_it_did_not_start(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('written_by_the_future')")
        database.commit()
    before = descendants()
    with pytest.raises(ServerDidNotStart, match="written_by_the_future") as failure, local_server(tmp_path):
        pytest.fail("started on a database of another version")
    assert str(tmp_path / f"server-{os.getpid()}.log") in str(failure.value)
    assert descendants() <= before


@contextmanager
def answering(
    status: int, body: bytes = b"{}", content_type: str = "application/json", delay: float = 0, retry_after: str = ""
) -> Iterator[str]:
    """A server that is not MLflow: one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.end_headers()
            with suppress(ConnectionError):  # who waited for less time than `delay` has gone
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def test_a_server_that_is_not_there() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(
        TrackingUnavailable, match=f"no MLflow server answers at {uri} \\(asked for up to 10 s\\): start it"
    ):
        check_server(uri)


def test_a_server_that_hangs() -> None:
    with (
        answering(200, delay=1) as uri,
        pytest.raises(TrackingUnavailable, match=r"no MLflow server answers at .* \(asked for up to 0\.2 s\)"),
    ):
        check_server(uri, timeout=0.2)


@pytest.mark.parametrize(
    ("status", "body", "content_type", "sentence"),
    [
        (401, b"", "text/plain", "HTTP status 401.*MLFLOW_TRACKING_PASSWORD"),
        (403, b"Invalid Host header", "text/plain", "HTTP status 403.*--allowed-hosts"),
        (404, b"{}", "application/json", "HTTP status 404.*correct the address"),
        (500, b"{}", "application/json", "HTTP status 500"),
        (200, b"<html>", "text/html", "not as MLflow should"),
    ],
)
def test_a_server_that_is_not_ours(status: int, body: bytes, content_type: str, sentence: str) -> None:
    with answering(status, body, content_type) as uri, pytest.raises(TrackingUnavailable, match=sentence):
        check_server(uri)


@pytest.mark.parametrize("call", [check_server, lambda uri: open_experiment(uri, "any")])
def test_no_password_in_a_traceback(call: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    password = str(uuid.uuid4())
    uri = f"http://user:{password}@127.0.0.1:{free_port()}"
    with pytest.raises(TrackingUnavailable) as failure:
        call(uri)
    assert password not in "".join(traceback.format_exception(failure.value))


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "postgresql://localhost/db", "databricks"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"neither http\(s\)://HOST:PORT nor sqlite:///PATH"):
        check_server(uri)


def test_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    check_server(store_uri(tmp_path / "new" / "folder"))
    assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TrackingUnavailable, match=r"folder cannot be made.*a folder you may write to"):
        check_server(store_uri(tmp_path / "file" / "folder"))


@pytest.mark.parametrize(("status", "retry_after"), [(500, ""), (503, "3600"), (429, "3600")])
def test_a_failing_server_is_unavailable_within_seconds(
    status: int, retry_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    started = time.monotonic()
    with answering(status, retry_after=retry_after) as uri, pytest.raises(TrackingUnavailable, match="does not answer"):
        open_experiment(uri, "any")
    assert time.monotonic() - started < 10


def test_a_hanging_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with answering(200, delay=2) as uri, pytest.raises(TrackingUnavailable, match="does not answer"):
        open_experiment(uri, "any")


def test_a_server_that_says_no_is_not_retried() -> None:
    body = b'{"error_code": "PERMISSION_DENIED", "message": "not you"}'
    with answering(403, body) as uri, pytest.raises(TrackingRefused, match="not you"):
        open_experiment(uri, "any")
