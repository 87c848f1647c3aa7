"""Who is alive, and who hears Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest

from sweeps.processes import deaf_children, is_known_dead, started_at, stop_signals, this_host, this_runner
from sweeps.records import Runner

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def runner_of(pid: int) -> Runner:
    return replace(this_runner(), pid=pid, id=f"host-name-{pid}-{started_at(psutil.Process(pid)):.2f}")


def test_this_process_lives_and_is_always_the_same() -> None:
    me = this_runner()
    assert me == this_runner()
    assert (me.host, me.pid) == (this_host(), os.getpid())
    assert str(me) == f"process {os.getpid()} on {socket.gethostname()}"
    assert not is_known_dead(me)


def test_a_process_is_known_dead_once_it_ended(child: subprocess.Popen[bytes]) -> None:
    runner = runner_of(child.pid)
    assert not is_known_dead(runner)
    child.kill()
    child.wait()
    assert is_known_dead(runner)


@posix
def test_also_where_its_parent_has_not_looked(child: subprocess.Popen[bytes]) -> None:
    runner = runner_of(child.pid)
    child.kill()
    deadline = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_known_dead(runner)


def test_a_process_id_that_was_used_again_is_another_process(child: subprocess.Popen[bytes]) -> None:
    begun = started_at(psutil.Process(child.pid))
    runner = runner_of(child.pid)
    assert is_known_dead(replace(runner, id=f"host-{child.pid}-{begun - 600:.2f}"))
    assert not is_known_dead(replace(runner, id=f"host-{child.pid}-{begun - 1:.2f}")), "some systems round"


def test_a_clock_that_is_set_kills_nobody(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    runner, day = runner_of(child.pid), 86_400.0
    created, booted = psutil.Process.create_time, psutil.boot_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: created(self) + day)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted + day)
    assert not is_known_dead(runner)


def test_a_container_with_its_hosts_name_is_another_host() -> None:
    me = this_runner()
    other = replace(me, host=f"{socket.gethostname()}/1", pid=2**22 + 1)
    assert not is_known_dead(other)


def test_who_runs_on_another_host_is_never_known_dead() -> None:
    assert not is_known_dead(Runner(id="elsewhere-999999-1.00", host="elsewhere", pid=999_999))


def test_nor_is_a_process_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: psutil.Process) -> Any:
        raise psutil.AccessDenied(self.pid)

    me = this_runner()
    monkeypatch.setattr(psutil.Process, "create_time", denied)
    assert not is_known_dead(me)


# signals

IGNORES_SIGINT = "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"


@posix
def test_children_started_inside_do_not_hear_ctrl_c() -> None:
    def ask() -> str:
        return subprocess.run([sys.executable, "-c", IGNORES_SIGINT], capture_output=True, text=True, check=True).stdout

    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        with deaf_children():
            assert ask().strip() == "True"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert ask().strip() == "False"
    finally:
        signal.signal(signal.SIGINT, outside)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    inside: list[Any] = []

    def look() -> None:
        with deaf_children():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [signal.getsignal(signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_stop_and_the_handlers_come_back(number: signal.Signals) -> None:
    before: Callable[..., Any] | int | None = signal.getsignal(number)
    stop = threading.Event()
    with stop_signals(stop):
        signal.raise_signal(number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_leaves_at_once() -> None:
    stop = threading.Event()

    def twice() -> None:
        with stop_signals(stop):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)  # asks again for what is under way
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        twice()
    assert stop.is_set()
    assert signal.getsignal(signal.SIGINT) is before
