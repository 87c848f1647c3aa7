"""A local MLflow server as a child process that never outlives its parent.

`python -m tracking.server COMMAND...` is the supervisor between the two: it runs the command and ends the command's
whole process tree once its own standard input closes, which happens however the parent dies.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote, urlsplit

import psutil
from filelock import FileLock

from tracking.links import without_credentials
from tracking.writer import TrackingUnavailable

if TYPE_CHECKING:
    from requests import Response

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
START_SECONDS = 120.0
STOP_SECONDS = 5.0
"""What a process gets between the request to end and the kill."""
_WAY_OUT = "start it, correct the address, or leave it out for a local server"


class ServerDidNotStart(RuntimeError):
    """The local MLflow server ended, or stayed silent, before it answered. The message has its last lines."""


@dataclass(frozen=True)
class ServerSettings:
    arguments: tuple[str, ...]
    """What follows `mlflow` on the command line."""
    environment: Mapping[str, str]


def server_settings(*, store: str, artifacts: str, port: int, host: str = LOOPBACK) -> ServerSettings:
    """How every MLflow server of this product is started: `local_server` here and docker-compose.yml alike.

    Args:
        store: URI of MLflow's database.
        artifacts: where the server keeps the artifacts it is sent, a path or URI.
        port: 0 for a free one.
        host: the interface to listen on.
    """
    return ServerSettings(
        arguments=(
            "server",
            f"--backend-store-uri={store}",
            f"--artifacts-destination={artifacts}",
            "--serve-artifacts",
            f"--host={host}",
            f"--port={port}",
            "--workers=1",  # several answer 4 times slower: their shared socket has no TCP_NODELAY
            "--allowed-hosts=localhost:*,127.0.0.1:*",
            "--uvicorn-opts=--no-access-log",
        ),
        environment={
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 11 processes and 1.5 GiB less
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        },
    )


def store_uri(folder: Path) -> str:
    """URI of the database that `local_server(folder)` serves; usable as a tracking URI without a server."""
    path = (folder.resolve() / DATABASE).as_posix()
    return f"sqlite:///{path.replace('%', '%25').replace('?', '%3F')}"


def store_path(uri: str) -> Path:
    """The absolute path of the database that a `sqlite:///` URI names.

    Raises:
        ValueError: the URI names no file.
    """
    path = uri.partition("?")[0].removeprefix("sqlite:///")
    if not path or path == ":memory:" or not uri.startswith("sqlite:///"):
        raise ValueError(f"tracking URI {uri!r} names no database file: write sqlite:///PATH/mlflow.db")
    return Path(unquote(path)).resolve()


class LocalServer:
    """A running server. Made by `local_server`."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._stopped = False
        self._one_at_a_time = threading.Lock()
        self._tree: list[psutil.Process] = []
        self.url = self._start(port)

    def ensure_alive(self) -> None:
        """Start the server again, in the same folder and on the same port, if it has died. A look costs nothing.

        Raises:
            TrackingUnavailable: it does not start, or was stopped.
        """
        with self._one_at_a_time:
            if self._supervisor.poll() is None:
                return
            if self._stopped:
                raise TrackingUnavailable(f"the local MLflow server at {self.url} was stopped")
            _stop_supervisor(self._supervisor)
            _end(self._tree)  # what a killed supervisor has left: nobody would end it with this process
            port = int(self.url.rpartition(":")[2])
            try:
                _refuse_taken_port(port)
                self._start(port)
            except ServerDidNotStart as error:
                raise TrackingUnavailable(f"the local MLflow server died and does not start again: {error}") from error
            log.warning("the local MLflow server had died; it was started again at %s", self.url)

    def stop(self) -> None:
        """End the server and every process of its tree; a second call does nothing."""
        self._stopped = True
        _stop_supervisor(self._supervisor)  # a start that is under way ends with it
        with self._one_at_a_time:
            _stop_supervisor(self._supervisor)
            _end(self._tree)

    def _start(self, port: int) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        _prepare_database(self._folder / DATABASE)
        log = self._folder / f"server-{os.getpid()}.log"  # one a process: the port is read from it
        log_start = log.stat().st_size if log.exists() else 0
        self._supervisor = _start_supervisor(self._folder, port, log)
        try:
            url = _wait_until_healthy(self._supervisor, log, log_start)
        except BaseException:
            _stop_supervisor(self._supervisor)
            raise
        self._tree = psutil.Process(self._supervisor.pid).children(recursive=True)
        return url


@contextmanager
def local_server(folder: Path, *, port: int | None = None) -> Iterator[LocalServer]:
    """An MLflow server on loopback, with its database and artifacts in `folder`. Several may serve one folder.

    Ctrl-C in the terminal does not reach it; it goes when the context closes or this process dies.

    Args:
        folder: made if it is not there.
        port: default: a free one.

    Raises:
        ServerDidNotStart: the port is taken, the database is no database, ...
    """
    if port is not None:
        _refuse_taken_port(port)
    _reach_loopback_without_proxy()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "starting.lock"):  # two that make the tables of one new database at once both fail
        server = LocalServer(folder, port or 0)
    try:
        yield server
    finally:
        server.stop()


def check_server(uri: str, timeout: float = 10) -> None:
    """Make sure that a tracking URI can be used, before anything is trained.

    Args:
        uri: `http(s)://...` or `sqlite:///...`.
        timeout: seconds for a server's answer.

    Raises:
        TrackingUnavailable: no MLflow server answers there, it refuses us, or the database's folder cannot be made.
        ValueError: another kind of URI.
    """
    scheme = urlsplit(uri).scheme
    if scheme in {"http", "https"}:
        _check_http(uri, timeout)
    elif scheme == "sqlite":
        path = store_path(uri)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingUnavailable(
                f"MLflow database {uri}: its folder cannot be made ({error}): name a folder you may write to"
            ) from error
    else:
        raise ValueError(
            f"tracking URI {without_credentials(uri)!r} is neither http(s)://HOST:PORT nor sqlite:///PATH: "
            "give one of these, or none for a local server"
        )


def server_version(uri: str, timeout: float = 10) -> str:
    """The version of the MLflow server at `http(s)://...`; empty where it does not say.

    Raises:
        TrackingUnavailable: none answers there.
    """
    answer = ask(uri, "/version", timeout)
    return answer.text.strip() if answer.status_code == 200 else ""


def _check_http(uri: str, timeout: float) -> None:
    where, way_out = without_credentials(uri), _WAY_OUT
    # Not /health: that one answers without a password and to every host name.
    answer = ask(uri, "/api/2.0/mlflow/experiments/search", timeout, max_results=1)
    if answer.status_code == 401:
        way_out = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    elif answer.status_code == 403:
        way_out = "start that server with this host name among its --allowed-hosts, or get the permission"
    elif answer.status_code == 200 and answer.headers.get("content-type", "").startswith("application/json"):
        return
    raise TrackingUnavailable(f"{where} answers with HTTP status {answer.status_code}, not as MLflow should: {way_out}")


def ask(uri: str, path: str, timeout: float = 10, **params: int | str) -> Response:
    """What an MLflow server at `http(s)://...` answers, whatever its status.

    Raises:
        TrackingUnavailable: none answers there.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer: Response = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            path,
            "GET",
            max_retries=0,
            raise_on_status=False,
            timeout=timeout,
            params=params,
        )
    except MlflowException:  # not chained: its text may show the URI's password
        raise TrackingUnavailable(
            f"no MLflow server answers at {without_credentials(uri)} (asked for up to {timeout:g} s): {_WAY_OUT}"
        ) from None
    return answer


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex((LOOPBACK, port)) == 0:
            raise ServerDidNotStart(f"port {port} is taken by another program: give another port, or none")


def _prepare_database(path: Path) -> None:
    """Write-ahead logging stays with the file and lets readers and a writer of several processes work at once."""
    try:
        with closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.Error as error:
        raise ServerDidNotStart(f"MLflow database {path}: {error}: move the file away or correct it") from error


def _reach_loopback_without_proxy() -> None:
    """A site's HTTP proxy must not get to see requests to this machine."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if LOOPBACK not in known.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [known, LOOPBACK]))


def _start_supervisor(folder: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    # Relative to the folder it runs in, the database's URI is free of whatever characters the path has.
    settings = server_settings(store=f"sqlite:///{DATABASE}", artifacts=(folder / ARTIFACTS).as_uri(), port=port)
    # Settings meant for the client, or for another server, must not change this one.
    inherited = {k: v for k, v in os.environ.items() if not k.upper().lstrip("_").startswith(("MLFLOW_", "UVICORN_"))}
    package_root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_root, inherited.get("PYTHONPATH")]))
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tracking.server", sys.executable, "-m", "mlflow", *settings.arguments],
            cwd=folder,  # a file `mlflow.py` where the user stands must not be imported
            env={**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings.environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Out of reach of Ctrl-C: the last metrics are shipped after it.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


def _wait_until_healthy(supervisor: subprocess.Popen[bytes], log: Path, log_start: int) -> str:
    """The server's URL. Its own log names the port, so another server on that port is never taken for ours."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        ended = supervisor.poll() is not None
        output = _log_from(log, log_start)
        if ended:
            raise ServerDidNotStart(
                f"the local MLflow server ended before it answered; {log} ends with:\n{_last_lines(output)}"
            )
        running = re.search(r"Uvicorn running on (http://[\d.]+:\d+)", output)
        if running and _is_healthy(running[1]):
            return running[1]
        time.sleep(0.1)
    raise ServerDidNotStart(
        f"the local MLflow server gave no answer within {START_SECONDS:g} s; {log} ends with:\n{_last_lines(output)}"
    )


def _log_from(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", errors="replace")


def _last_lines(output: str) -> str:
    return "\n".join(output.splitlines()[-8:])


def _is_healthy(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _stop_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    try:
        supervisor.wait(3 * STOP_SECONDS)
    except subprocess.TimeoutExpired:
        root = psutil.Process(supervisor.pid)
        _end([*root.children(recursive=True), root])
        supervisor.wait()


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ask the processes to end, then kill what is left. psutil knows a reused process id from the old process."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _supervise(command: Sequence[str]) -> int:
    """Run `command` until it ends, its tree until standard input closes; the command's exit status."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    root = psutil.Process(child.pid)
    tree = {root}

    def look() -> None:
        with suppress(psutil.NoSuchProcess):
            tree.update(root.children(recursive=True))

    def end_tree() -> None:
        look()
        _end(list(tree))

    def end_tree_with_parent() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        end_tree()

    def on_sigterm(*_: object) -> NoReturn:
        sys.exit(143)

    signal.signal(signal.SIGTERM, on_sigterm)
    threading.Thread(target=end_tree_with_parent, daemon=True).start()
    try:
        while child.poll() is None:
            look()  # while it lives: whoever outlives it has no parent to be found by
            time.sleep(1)
        return child.returncode
    finally:
        end_tree()


if __name__ == "__main__":
    sys.exit(_supervise(sys.argv[1:]))
