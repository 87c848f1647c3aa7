"""Waiting for a database that is away: an outage of minutes must not end a sweep of days."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sweeps.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 5.0
"""Between two tries: doubled each time, up to this."""

LOOK_SECONDS = 0.1


def patiently(call: Callable[[], T], give_up: Callable[[], bool]) -> T:
    """`call()`, made again while the database is away. It must be one that can be made twice.

    Raises:
        DatabaseUnavailable: `give_up()` said so meanwhile.
    """
    pause = FIRST_SECONDS
    while True:
        try:
            return call()
        except DatabaseUnavailable as error:
            if give_up():
                raise
            if pause == FIRST_SECONDS:
                log.warning("%s; trying again until it is back", error)
            wait(pause, give_up)
            pause = min(2 * pause, LONGEST_SECONDS)


def wait(seconds: float, until: Callable[[], bool]) -> None:
    """Sleep, but no longer than until `until()`."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not until():
        time.sleep(min(LOOK_SECONDS, left))
