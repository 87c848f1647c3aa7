"""A worker's right to its trial, kept alive by a thread for as long as training moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sweeps.records import Claim
from sweeps.states import SweepState
from sweeps.store import Store

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the sweep's state is looked at: a cancelled one ends its trials within about as many seconds."""


class Lease:
    """Renews a claim every third of its length, but only while somebody asks `should_stop`, as a trainer does before
    every batch: a frozen trainer loses its trial, however long an epoch may be.
    """

    def __init__(
        self,
        store: Store,
        claim: Claim,
        seconds: float,
        stop: threading.Event,
        hung: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            hung: called where nothing has moved for one more lease after it has lapsed: the trainer hangs.
        """
        self._hung = hung
        self._store, self._claim, self._seconds, self._stop = store, claim, seconds, stop
        self._asked, self._done = 0, threading.Event()
        self.lost = threading.Event()
        """Another worker may have the trial: the database says so."""
        self.lapsed = threading.Event()
        """It could not be renewed for as long as it lasts, by our own count: another worker may get the trial."""
        self.cancelled = threading.Event()
        """The sweep is being cancelled."""
        self._thread = threading.Thread(target=self._keep, name=f"lease of trial {claim.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def should_stop(self) -> bool:
        """Whether the epoch in hand is to be dropped. Being asked shows that training moves."""
        self._asked += 1
        return self._stop.is_set() or self.over

    @property
    def over(self) -> bool:
        """Whether the trial must not be trained further under this lease."""
        return self.lost.is_set() or self.lapsed.is_set() or self.cancelled.is_set()

    def _keep(self) -> None:
        third = self._seconds / 3
        renewed, due, seen = time.monotonic(), time.monotonic() + third, -1
        while not self._done.wait(min(LOOK_SECONDS, third)):
            try:
                if self._store.sweep_state(self._claim.sweep_id) is SweepState.CANCELLING:
                    self.cancelled.set()
                asked = time.monotonic()
                if asked >= due:
                    due, moved = asked + third, self._asked
                    if moved == seen:
                        log.warning("trial %d has not moved for %.0f s", self._claim.number, third)
                    elif self._store.renew(self._claim, self._seconds):
                        renewed, seen = asked, moved
                    else:
                        log.warning("trial %d is no longer ours", self._claim.number)
                        self.lost.set()
                        return
            except Exception:  # whatever the database's trouble is: it may pass before the lease does
                log.exception("the lease of trial %d could not be renewed", self._claim.number)
            if time.monotonic() - renewed > self._seconds:
                log.warning("the lease of trial %d has run out by our own count", self._claim.number)
                self.lapsed.set()
                asked_last = self._asked
                if not self._done.wait(self._seconds) and self._asked == asked_last:
                    self._hung()
                return
