"""How far a command is that takes minutes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

INTERVAL_SECONDS = 5.0
"""A line this often: a log stays readable, and a person sees that it moves."""


def progress_lines() -> Callable[[str, int, int], None]:
    """A callback (what, done, of) that says so on stderr now and then, first after an interval."""
    said = time.monotonic()

    def say(what: str, done: int, of: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= INTERVAL_SECONDS:
            said = now
            print(f"{what}: {done} of {of}", file=sys.stderr, flush=True)

    return say
