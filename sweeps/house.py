"""The sweeps that one process keeps: it takes those that nobody keeps, and lets go of those that have ended."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from sweeps.errors import SweepBusy
from sweeps.keeper import Keeper, holding
from sweeps.mirror import Mirror
from sweeps.records import Runner, SweepRow
from sweeps.spec import spec_of
from sweeps.states import SweepState
from sweeps.store import Store
from sweeps.study import Study

AT_WORK = (SweepState.RUNNING, SweepState.STOPPING, SweepState.CANCELLING)
"""States in which a sweep needs somebody who keeps it."""

SHIP_SECONDS = 20.0
"""What a mirror gets at the end to ship the rest."""

MakeMirror = Callable[[SweepRow, Callable[[], bool]], Mirror]
"""The mirror of a sweep; the other argument says whether this process keeps it still."""


@dataclass(frozen=True)
class _Kept:
    keeper: Keeper
    mirror: Mirror | None
    lost: Event
    """Another process keeps it by now."""
    hold: ExitStack
    """Closed, it lets the sweep go."""


class House:
    """Passes over sweeps, each by whoever holds it."""

    def __init__(
        self, store: Store, runner: Runner, lease_seconds: float, checkpoints: Path, make_mirror: MakeMirror | None
    ) -> None:
        """
        Args:
            checkpoints: folder with a folder a sweep.
            make_mirror: None where this process knows no tracking server.
        """
        self._store, self._runner, self._make_mirror = store, runner, make_mirror
        self._lease_seconds, self._checkpoints = lease_seconds, checkpoints
        self._kept: dict[int, _Kept] = {}
        self._shipped: set[int] = set()
        """Sweeps at rest that need nobody here: MLflow has all of them, or did not take it."""
        self.trouble: dict[str, str] = {}
        """By sweep: what MLflow has not taken of those that were let go."""

    def make_pass(self, sweeps: Collection[SweepRow], dead_workers: Collection[str]) -> None:
        """One pass over these sweeps.

        Args:
            dead_workers: of this process; put back also where another process keeps the sweep.

        Raises:
            DatabaseUnavailable
        """
        for sweep in sweeps:
            if sweep.id in self._kept and self._kept[sweep.id].lost.is_set():
                self._let_go(sweep)
            if sweep.id not in self._kept and self._needs_keeper(sweep):
                self._take(sweep)
            if sweep.id in self._kept:
                if self._kept[sweep.id].keeper.make_pass(dead_workers).state not in AT_WORK:
                    self._let_go(sweep)
            elif dead_workers:
                self._store.reap(sweep.id, dead_workers, expired=False)

    def close(self, sweeps: Collection[SweepRow]) -> None:
        """Let all go, with what is pending shipped."""
        for sweep in sweeps:
            if sweep.id in self._kept:
                self._let_go(sweep)

    def _needs_keeper(self, sweep: SweepRow) -> bool:
        """It is at work; or it rests, and its keeper died before MLflow had all of it."""
        if sweep.state in AT_WORK:
            self._shipped.discard(sweep.id)
            return True
        if self._make_mirror is None or sweep.id in self._shipped:
            return False
        if self._store.count_pending(sweep.id) == (0, 0):
            self._shipped.add(sweep.id)
        return sweep.id not in self._shipped

    def _take(self, sweep: SweepRow) -> None:
        with ExitStack() as stack:
            try:
                lost = stack.enter_context(holding(self._store, sweep, self._runner))
            except SweepBusy:
                return
            study = stack.enter_context(closing(Study(self._store.url, spec_of(sweep))))
            mirror = self._make_mirror(sweep, lambda: not lost.is_set()) if self._make_mirror else None
            if mirror is not None:
                mirror.start()
            keeper = Keeper(self._store, study, sweep, self._lease_seconds, self._checkpoints / sweep.name)
            self._kept[sweep.id] = _Kept(keeper, mirror, lost, stack.pop_all())

    def _let_go(self, sweep: SweepRow) -> None:
        kept = self._kept.pop(sweep.id)
        self._shipped.add(sweep.id)
        with kept.hold:
            if kept.mirror is not None and not kept.mirror.finish(SHIP_SECONDS) and not kept.lost.is_set():
                self.trouble[sweep.name] = kept.mirror.trouble
