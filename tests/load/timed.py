"""`python -m tests.load.timed ARGUMENTS...`: `sweeps ARGUMENTS...`, with a clock at the steps of a trial.

Every process writes a file of its own into the folder that `LOAD_TIMES` names. Workers are spawned, which imports this
module again in each of them. The product itself knows nothing of this.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TIMES = "LOAD_TIMES"

STEPS: Mapping[str, str] = {
    "claim": "sweeps.store:Store.claim",
    "ask": "sweeps.worker:ask",
    "register": "sweeps.study:Study.register",
    "may it go on": "sweeps.judging:Judge.is_paused",
    "reserve": "sweeps.store:Store.reserve_epoch",
    "checkpoint": "sweeps.checkpoints:save",
    "record": "sweeps.store:Store.record",
    "decide": "sweeps.judging:Judge.finish_if_over",
    "finish": "sweeps.store:Store.finish",
    "tell": "sweeps.judging:tell",
}
"""What a worker does with a trial, in order. The time of a step leaves out that of another one inside it."""

LAST = "tell"
"""After this one a trial is over, and its process writes down how much memory it holds."""

KEEPERS: Mapping[str, str] = {"keeper's pass": "sweeps.keeper:Keeper.make_pass"}


@dataclass(frozen=True)
class Call:
    """One call of a step."""

    step: str
    process: int
    end: float
    """Monotonic seconds."""
    seconds: float
    rss: int
    """Bytes that the process held then; 0 where it was not looked."""


def install(folder: Path, steps: Mapping[str, str]) -> None:
    """Put the clock into this process."""
    write = _writer(folder)
    for step, target in steps.items():
        module, _, path = target.partition(":")
        *owners, attribute = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, attribute, _timed(step, getattr(owner, attribute), write))


def calls(folder: Path) -> Iterator[Call]:
    """All that was written down."""
    for file in folder.glob("*.times"):
        for line in file.read_text(encoding="utf-8").splitlines():
            step, *numbers = json.loads(line)
            yield Call(step, int(file.stem), *numbers)


_inside = threading.local()
"""Seconds that steps inside of the one at hand have taken, in this thread."""


def _timed(step: str, original: Callable[..., Any], write: Callable[[str, float, float], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        around, _inside.seconds = getattr(_inside, "seconds", 0.0), 0.0
        begun = time.monotonic()
        try:
            return original(*arguments, **named)
        finally:
            end = time.monotonic()
            write(step, end, end - begun - _inside.seconds)
            _inside.seconds = around + end - begun

    return call


def _writer(folder: Path) -> Callable[[str, float, float], None]:
    process, lock = psutil.Process(), threading.Lock()
    file = (folder / f"{os.getpid()}.times").open("a", encoding="utf-8", buffering=1)

    def write(step: str, end: float, seconds: float) -> None:
        rss = process.memory_info().rss if step == LAST else 0
        with lock:
            file.write(f"{json.dumps([step, end, seconds, rss])}\n")

    return write


if __name__ in ("__main__", "__mp_main__") and TIMES in os.environ:
    install(Path(os.environ[TIMES]), STEPS if __name__ == "__mp_main__" else KEEPERS)

if __name__ == "__main__":
    from sweeps.cli import main

    sys.argv[0] = "sweeps"
    main()
