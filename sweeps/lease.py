"""A worker's right to its trial, kept alive by a thread for as long as training moves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sweeps.records import Claim
from sweeps.store import Store

log = logging.getLogger(__name__)


class Lease:
    """Renews a claim every third of its length, but only while `progress()` changes: a frozen trainer loses it.

    `lost` is set when another worker may take the trial: the database says so, or it could not be asked for as long
    as the lease lasts by our own count.
    """

    def __init__(self, store: Store, claim: Claim, seconds: float, progress: Callable[[], int]) -> None:
        self._store, self._claim, self._seconds, self._progress = store, claim, seconds, progress
        self._done = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of trial {claim.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _keep(self) -> None:
        renewed, seen = time.monotonic(), -1
        while not self._done.wait(self._seconds / 3):
            moved = self._progress()
            if moved == seen:
                log.warning("trial %d has not moved for %.0f s", self._claim.number, self._seconds / 3)
            else:
                asked = time.monotonic()
                try:
                    if not self._store.renew(self._claim, self._seconds):
                        log.warning("trial %d is no longer ours", self._claim.number)
                        self.lost.set()
                        return
                    renewed, seen = asked, moved
                except Exception:  # whatever the database's trouble is: it may pass before the lease does
                    log.exception("the lease of trial %d could not be renewed", self._claim.number)
            if time.monotonic() - renewed > self._seconds:
                self.lost.set()
                return
