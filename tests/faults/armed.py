"""`python -m tests.faults.armed ARGUMENTS...`: `sweeps ARGUMENTS...`, with faults at named points of the product.

The plan lies in the folder that `FAULTS_PLAN` names. Workers are spawned, which imports this module again in each of
them: so they are armed as well. The product itself knows nothing of this.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select

from sweeps.records import Claim
from sweeps.store import MAX_ATTEMPTS, Store
from sweeps.tables import trials
from tests.faults.points import MAY_COST_AN_ATTEMPT, PLAN, POINTS, Fault, Fired, Plan, When, Who

MEETING_SECONDS = 30.0


def arm(plan: Plan, who: Who) -> None:
    """Put the plan's faults into the functions that they name, in this process."""
    if who == "worker":
        Store.claim = _noting_last_attempts(Store.claim)  # type: ignore[method-assign]
    for name in {fault.point for fault in plan.faults if POINTS[fault.point].who == who}:
        module, _, path = POINTS[name].target.partition(":")
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original = getattr(owner, attribute)
        wrap = _trainer_made_by if name == "epoch" else _reached
        setattr(owner, attribute, wrap(_Armed(plan, name), original))


class _Armed:
    """One point in this process."""

    def __init__(self, plan: Plan, point: str) -> None:
        self._plan, self._point = plan, point
        self._faults = [(i, fault) for i, fault in enumerate(plan.faults) if fault.point == point]

    def passed(self, when: When, arguments: tuple[Any, ...]) -> None:
        """Count, and do what is planned for this time."""
        mine = [(i, fault) for i, fault in self._faults if fault.when == when]
        if not mine:
            return
        times = _add_line(self._plan.folder / "passed" / f"{self._point} {when}", ".")
        for i, fault in mine:
            if fault.nth > times or (fault.action in MAY_COST_AN_ATTEMPT and _Held.last_attempt):
                continue
            if self._take(i):
                self._strike(i, fault, arguments)
            elif fault.action == "full disk":
                self._check_disk(i, fault)

    def _take(self, i: int) -> bool:
        """Whether it is this process that it strikes, now: a fault strikes once."""
        with suppress(FileExistsError):
            (self._plan.folder / "passed" / f"taken {i}").touch(exist_ok=False)
            return True
        return False

    def _strike(self, i: int, fault: Fault, arguments: tuple[Any, ...]) -> None:
        number, attempt = _trial_of(arguments)
        struck = Fired(i, os.getpid(), time.monotonic(), number, attempt)
        _add_line(self._plan.folder / "fired", json.dumps(vars(struck)))
        match fault.action:
            case "kill":
                _signal_self(signal.SIGKILL)
            case "term":
                _signal_self(signal.SIGTERM)
            case "stop":
                _signal_self(signal.SIGSTOP)  # somebody else sends SIGCONT
            case "hang":
                time.sleep(fault.seconds)
            case "full disk":
                self._check_disk(i, fault)
            case "tear":
                last = arguments[0].last
                os.truncate(last, last.stat().st_size // 2)
                _signal_self(signal.SIGKILL)
            case "corrupt":
                _corrupt(arguments[0].last)
                _signal_self(signal.SIGKILL)
            case "clock":
                _shift_clock(fault.seconds)
            case "meet":
                self._meet(i)

    def _check_disk(self, i: int, fault: Fault) -> None:
        struck = next((each for each in self._plan.fired() if each.fault == i), None)
        if struck is None or time.monotonic() < struck.at + fault.seconds:  # None: another process is about to note it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _meet(self, i: int) -> None:
        """Wait for another process, which is at the same point for the next time."""
        deadline = time.monotonic() + MEETING_SECONDS
        other = i ^ 1  # the two that meet stand side by side in the plan
        while not any(each.fault == other for each in self._plan.fired()):
            assert time.monotonic() < deadline, "nobody came"
            time.sleep(0.002)


class _Held:
    """What this process holds: a worker has one trial at a time."""

    last_attempt = False
    """Whether its trial, or the one before between two, would be given up should this attempt come to nothing."""


def _noting_last_attempts(original: Callable[..., Claim | None]) -> Callable[..., Claim | None]:
    @functools.wraps(original)
    def claim(store: Store, *arguments: Any, **named: Any) -> Claim | None:
        _Held.last_attempt = False
        given = original(store, *arguments, **named)
        if given is not None:
            with store._read() as connection:
                fruitless = connection.scalar(select(trials.c.fruitless_attempts).where(trials.c.id == given.trial_id))
            _Held.last_attempt = (fruitless or 0) >= MAX_ATTEMPTS
        return given

    return claim


def _reached(armed: _Armed, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        armed.passed("before", arguments)
        result = original(*arguments, **named)
        armed.passed("after", arguments)
        return result

    return call


def _trainer_made_by(armed: _Armed, original: Callable[..., Any]) -> Callable[..., Any]:
    """The point is the trainer's `train_epoch`."""

    def make(*arguments: Any) -> Any:
        trainer = original(*arguments)
        trainer.train_epoch = _reached(armed, trainer.train_epoch)
        return trainer

    return make


def _trial_of(arguments: tuple[Any, ...]) -> tuple[int | None, int | None]:
    for each in arguments:
        if hasattr(each, "number") and hasattr(each, "attempt"):
            return each.number, each.attempt
    return None, None


def _signal_self(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _corrupt(file: Path) -> None:
    """Bytes in the middle are others: of the same length, in the same places."""
    with file.open("r+b") as opened:
        opened.seek(0, os.SEEK_END)
        middle = opened.tell() // 2
        opened.seek(middle)
        before = opened.read(64)
        opened.seek(middle)
        opened.write(bytes(byte ^ 0xFF for byte in before))


def _shift_clock(seconds: float) -> None:
    time_, time_ns_ = time.time, time.time_ns
    time.time = lambda: time_() + seconds
    time.time_ns = lambda: time_ns_() + round(1e9 * seconds)


def _add_line(file: Path, line: str) -> int:
    """Append, alone, and return how many lines there are now."""
    with file.open("a+b", buffering=0) as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        opened.write(f"{line}\n".encode())
        opened.seek(0)
        return opened.read().count(b"\n")


if __name__ in ("__main__", "__mp_main__") and PLAN in os.environ:
    arm(Plan.read(Path(os.environ[PLAN])), "worker" if __name__ == "__mp_main__" else "keeper")

if __name__ == "__main__":
    from sweeps.cli import main

    sys.argv[0] = "sweeps"
    main()
