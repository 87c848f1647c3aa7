"""Conclusions, kept for a while: over 100,000 epochs they take seconds."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from sweeps.processes import return_memory
from sweeps.service import SweepService
from sweeps.summary import Conclusions

MOST = 32
"""Sweeps whose conclusions are kept."""
SHARE = 0.1
"""Of the time goes into conclusions, at most: those that took a second are kept for ten, whatever happens meanwhile."""


@dataclass(frozen=True)
class _Kept:
    of: tuple[object, ...]
    """What the sweep was like."""
    found: Conclusions
    at: float
    seconds: float


class Remembered:
    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._kept: dict[tuple[int, float], _Kept] = {}

    def conclusions(self, service: SweepService, name: str) -> Conclusions:
        """As `SweepService.conclusions`, perhaps those of a moment ago."""
        status = service.sweep(name)
        sweep = (status.sweep.id, status.sweep.created_at)
        of = (status.epochs, *status.counts.values())
        with self._one_at_a_time:
            kept, now = self._kept.pop(sweep, None), time.monotonic()
            if kept is None or (kept.of != of and now - kept.at > kept.seconds / SHARE):
                found = service.conclusions(name)
                return_memory()
                kept = _Kept(of, found, time.monotonic(), time.monotonic() - now)
            self._kept[sweep] = kept  # the last asked for is the last to go
            if len(self._kept) > MOST:
                del self._kept[next(iter(self._kept))]
            return kept.found
