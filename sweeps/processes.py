"""What differs between operating systems about processes: who is alive, who hears Ctrl-C, who is told to stop."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from sweeps.records import Runner

log = logging.getLogger(__name__)

SAME_START_SECONDS = 5.0
"""Two readings of the start of one process differ by less: some systems know their own start to the second."""

ORPHAN_SECONDS = 30.0
"""A process that was told to stop and cannot (a hanging read, say) leaves by force; a trial's lease runs out."""


_M_ARENA_MAX = -8  # malloc.h


def this_runner() -> Runner:
    """This process. The id holds its start time, as a process id alone is used again."""
    name = f"{socket.gethostname()}-{os.getpid()}-{started_at(psutil.Process()):.2f}"
    return Runner(id=name, host=this_host(), pid=os.getpid())


def this_host() -> str:
    """The host's name, and where there are such what tells its process tables apart: a container with its host's name
    has process ids of its own.
    """
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def started_at(process: psutil.Process) -> float:
    """When a process was started, in seconds since its machine was: the clock may be set meanwhile.

    Raises:
        psutil.Error: there is no such process.
    """
    return process.create_time() - psutil.boot_time()


def is_known_dead(runner: Runner) -> bool:
    """Whether `runner` ran on this host and is gone. A process of another host is never known to be dead."""
    return is_gone(runner.host, runner.pid, float(runner.id.rpartition("-")[2]))


def is_gone(host: str, pid: int, process_started: float) -> bool:
    """Whether that process of this host has ended. One of another host is never known to have.

    Args:
        process_started: as `started_at` had it.
    """
    if host != this_host():
        return False
    try:
        process = psutil.Process(pid)
        started = started_at(process)
        if process.status() == psutil.STATUS_ZOMBIE:  # dead, and its parent has not looked: so in many containers
            return True
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False
    return abs(started - process_started) > SAME_START_SECONDS


def keep_little_memory() -> None:
    """Have the C library keep two heaps, and not eight for each core that threads spread over. Only glibc is asked."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def return_memory() -> None:
    """Give what is free back to the system, after a piece of work that took much. Only glibc is asked."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside do not hear Ctrl-C: their parent tells them to stop, in order.

    (POSIX children inherit an ignored signal; on Windows the worker ignores it itself, once it runs.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)


class Stop(threading.Event):
    """The word to stop."""

    signalled = False
    """It came as a SIGTERM to this process alone, not from its parent."""


def obedient(log_file: Path, pipe: Connection) -> Stop:
    """Make this a process that works for its parent: it logs to that file, and is to stop when the event that is
    returned is set: when its pipe breaks, or at SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = Stop()

    def terminated(*_: Any) -> None:
        stop.signalled = True
        stop.set()

    signal.signal(signal.SIGTERM, terminated)
    threading.Thread(target=_listen, args=(pipe, stop), name="listen", daemon=True).start()
    return stop


def _listen(pipe: Connection, stop: threading.Event) -> None:
    """The parent never writes: the pipe's end is its word to stop, or its death."""
    with suppress(EOFError, OSError):
        pipe.recv()
    stop.set()
    time.sleep(ORPHAN_SECONDS)
    log.error("still here %.0f s after the word to stop: leaving at once", ORPHAN_SECONDS)
    os._exit(1)


@contextmanager
def stop_signals(stop: threading.Event) -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal set `stop`; a second Ctrl-C raises KeyboardInterrupt."""

    def heard(number: int, _frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asked for that
        numbers.append(signal.SIGHUP)
    kept = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
