"""Whether the database can be written, asked once a second however often anybody wants to know."""

from __future__ import annotations

import threading
import time

from sweeps.errors import DatabaseUnavailable
from sweeps.store import Store

SECONDS = 1.0


class Ready:
    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._until, self._trouble = 0.0, ""

    def look(self) -> None:
        """
        Raises:
            DatabaseUnavailable: it cannot be written, or could not a moment ago.
        """
        with self._lock:
            if time.monotonic() >= self._until:
                self._trouble = ""
                try:
                    self._store.check_writable()
                except DatabaseUnavailable as error:
                    self._trouble = error.why
                self._until = time.monotonic() + SECONDS
            if self._trouble:
                raise DatabaseUnavailable("of this server", self._trouble)
