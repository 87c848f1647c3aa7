"""Real signals to the real processes: whatever dies, nothing is left behind and running again goes on."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sweeps.processes import is_known_dead, started_at, this_host
from sweeps.records import Runner
from tests.acceptance.commands import (
    Command,
    check_everything_arrived,
    curves,
    in_an_epoch,
    living,
    read,
    run,
    runs,
    start,
    trials_now,
    until_gone,
    write_spec,
)
from tracking.server import local_server

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
LONG = {
    "corpus": {"generated": {"train": 160}},
    "trainer": {"epochs": 3},
    "budget": {"trials": 3},
    "workers": 1,
}
"""Epochs long enough to be interrupted."""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted sweep of `LONG` on one worker."""
    home = tmp_path_factory.mktemp("uninterrupted") / "home"
    run(home, home.parent, "run", write_spec(home.parent, **LONG), "--json")
    return home


def begun(home: Path, spec: Path, *words: str) -> Command:
    """A sweep that is in the middle of a trial's later epoch."""
    command = start(home, home.parent, "run", spec, "--json", *words)
    command.until(lambda: in_an_epoch(home))
    return command


def workers(command: Command) -> list[psutil.Process]:
    children = psutil.Process(command.process.pid).children()
    return [p for p in children if any("spawn_main" in word for word in p.cmdline())]


def servers(home: Path) -> list[psutil.Process]:
    """The local MLflow server's processes, without the supervisor above them."""
    supervisors = [p for p in living(home) if "tracking.server" in p.cmdline()]
    return [child for p in supervisors for child in p.children(recursive=True)]


def test_a_process_that_ended_is_dead_even_while_nobody_has_waited_for_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    host = this_host()
    seen = psutil.Process(process.pid)
    runner = Runner(id=f"{host}-{process.pid}-{started_at(seen):.2f}", host=host, pid=process.pid)
    try:
        assert not is_known_dead(runner)
        process.kill()
        while seen.is_running() and seen.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert is_known_dead(runner)
    finally:
        process.stdin.close()
        process.wait()
    assert is_known_dead(runner)


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(Command.interrupt, id="Ctrl-C"),
        pytest.param(lambda command: command.process.send_signal(signal.SIGTERM), id="SIGTERM"),
    ],
)
def test_an_interrupted_sweep_ends_cleanly_and_goes_on_as_if_nothing_had_been(
    home: Path, tmp_path: Path, uninterrupted: Path, end: Callable[[Command], None]
) -> None:
    spec = write_spec(tmp_path, **LONG)
    command = begun(home, spec)
    end(command)
    asked = time.monotonic()
    assert command.wait(60) == 130, command.words()
    assert time.monotonic() - asked < 30
    until_gone(home)
    sweep, trials, epochs = read(home)
    assert sweep.state == "PAUSED"
    assert sweep.runner is None
    interrupted = [t for t in trials if t.state == "WAITING" and t.epochs]
    assert len(interrupted) == 1
    assert interrupted[0].epochs < 3
    assert not [t for t in trials if t.state == "RUNNING"]
    assert {r.info.status for r in runs(home).values()} <= {"SCHEDULED", "FINISHED", "KILLED"}
    assert runs(home)[interrupted[0].number].info.status == "SCHEDULED"
    assert "run it again" in sweep.reason

    result = run(home, tmp_path, "run", spec, "--json").result()
    assert [t["number"] for t in result["trials"]] == [0, 1, 2]
    after = read(home)[2]
    for number, rows in epochs.items():
        assert after[number][: len(rows)] == rows
    assert curves(home) == curves(uninterrupted)
    check_everything_arrived(home)


@POSIX
@pytest.mark.slow
def test_ctrl_c_while_the_corpus_is_made(home: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, corpus={"generated": {"train": 20_000}})
    command = start(home, tmp_path, "run", spec, "--json")
    command.until(lambda: list(home.glob("corpora/.generating-*/corpus/features/train/*.npz")))
    command.interrupt()
    assert command.wait(30) == 130, command.words()
    until_gone(home)
    assert "Traceback" not in command.words()
    assert not list((home / "corpora").iterdir())


@POSIX
@pytest.mark.slow
def test_ctrl_c_while_server_and_workers_start(home: Path, tmp_path: Path) -> None:
    command = start(home, tmp_path, "run", write_spec(tmp_path, **LONG), "--json")
    command.until(lambda: trials_now(home))
    command.interrupt()
    assert command.wait(60) == 130, command.words()
    until_gone(home)
    assert "Traceback" not in command.words()
    assert not [t for t in trials_now(home) if t.state == "RUNNING"]


@POSIX
@pytest.mark.slow
def test_a_killed_runner_takes_all_with_it_and_is_taken_over_at_once(home: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **LONG | {"workers": 2, "budget": {"trials": 4}})
    command = begun(home, spec)
    before = read(home)[2]
    command.process.kill()
    command.process.wait()
    until_gone(home, 40)

    result = run(home, tmp_path, "run", spec, "--json").result()
    assert [t["number"] for t in result["trials"]] == [0, 1, 2, 3]
    assert result["counts"]["COMPLETE"] + result["counts"]["PRUNED"] == 4
    after = read(home)[2]
    for number, rows in before.items():
        assert after[number][: len(rows)] == rows
    check_everything_arrived(home)


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_killed_worker_is_replaced(home: Path, tmp_path: Path, count: int) -> None:
    spec = write_spec(tmp_path, **LONG | {"workers": count})
    command = begun(home, spec)
    workers(command)[0].kill()
    assert command.wait() == 0, command.words()
    until_gone(home)
    sweep, trials, _ = read(home)
    assert sweep.state == "COMPLETE"
    assert [t.number for t in trials] == [0, 1, 2]
    assert {t.state for t in trials} <= {"COMPLETE", "PRUNED"}
    check_everything_arrived(home)


@POSIX
@pytest.mark.slow
def test_a_live_sweep_is_not_run_twice(home: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **LONG)
    command = begun(home, spec)
    try:
        budget = read(home)[0].budget
        second = start(home, tmp_path, "run", spec, "--trials", "50", "--json")
        assert second.wait() == 2, second.words()
        (error,) = [line for line in second.words().splitlines() if line.startswith("error:")]
        assert f"process {command.process.pid} on {socket.gethostname()}" in error
        assert read(home)[0].budget == budget, "a refused command has changed the live sweep"
        assert command.process.poll() is None
    finally:
        command.interrupt()
        ended = command.wait(60)
    assert ended == 130
    until_gone(home)


@POSIX
@pytest.mark.slow
def test_a_sweep_outlives_its_mlflow_server(home: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **LONG)
    command = begun(home, spec)
    killed = servers(home)
    assert killed
    for process in killed:
        process.kill()
    assert command.wait() == 0, command.words()
    assert "MLflow" in command.stderr.read_text(encoding="utf-8")
    until_gone(home)
    assert command.result()["counts"]["COMPLETE"] + command.result()["counts"]["PRUNED"] == 3
    run(home, tmp_path, "run", spec, "--json")
    check_everything_arrived(home)


@POSIX
@pytest.mark.slow
def test_a_given_server_may_go_away_and_come_back(home: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    spec = write_spec(tmp_path, **LONG | {"budget": {"trials": 12}})
    with local_server(tmp_path / "given", port=port):
        command = begun(home, spec, "--tracking-uri", uri)
    command.until(lambda: "MLflow is away" in command.words())
    with local_server(tmp_path / "given", port=port):
        assert command.wait() == 0, command.words()
        assert command.result()["tracking_uri"] == uri
        assert len(read(home)[1]) == 12
        check_everything_arrived(home, uri)
    assert not (home / "mlflow").exists()
    until_gone(home)
    shutil.rmtree(tmp_path / "given")
