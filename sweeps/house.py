"""The sweeps that one process keeps: it takes those that nobody keeps, and lets go of those that have ended."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from sweeps.errors import SweepBusy, SweepNotFound
from sweeps.keeper import Keeper, News, holding, no_news
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
    name: str
    keeper: Keeper
    mirror: Mirror | None
    lost: Event
    """Another process keeps it by now."""
    hold: ExitStack
    """Closed, it lets the sweep go."""


class House:
    """Passes over sweeps, each by whoever holds it."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        lease_seconds: float,
        checkpoints: Path,
        make_mirror: MakeMirror | None,
        news: News = no_news,
    ) -> None:
        """
        Args:
            checkpoints: folder with a folder a sweep.
            make_mirror: None where this process knows no tracking server.
            news: see `Keeper`.
        """
        self._news = news
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
        for gone in self._kept.keys() - {sweep.id for sweep in sweeps}:
            self._drop(gone)
        for sweep in sweeps:
            try:
                if sweep.id in self._kept and self._kept[sweep.id].lost.is_set():
                    self._let_go(sweep.id)
                if sweep.id not in self._kept and self._needs_keeper(sweep):
                    self._take(sweep)
                if sweep.id in self._kept:
                    if self._kept[sweep.id].keeper.make_pass(dead_workers).state not in AT_WORK:
                        self._let_go(sweep.id)
                elif dead_workers:
                    self._store.reap(sweep.id, dead_workers, expired=False)
            except SweepNotFound:  # deleted meanwhile
                self._drop(sweep.id)

    def close(self, workers: Collection[str]) -> None:
        """Put back what these workers of this process held, ship what is pending, and let all go.

        Raises:
            DatabaseUnavailable: all are let go all the same.
        """
        try:
            for sweep in self._store.sweeps():
                self._store.reap(sweep.id, workers, expired=False)
            for kept in self._kept.values():
                kept.keeper.make_pass()
        finally:
            for sweep_id in list(self._kept):
                self._let_go(sweep_id)

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
            folder = self._checkpoints / sweep.name
            keeper = Keeper(self._store, study, sweep, self._lease_seconds, folder, self._news)
            self._kept[sweep.id] = _Kept(sweep.name, keeper, mirror, lost, stack.pop_all())

    def _let_go(self, sweep_id: int) -> None:
        kept = self._kept.pop(sweep_id)
        self._shipped.add(sweep_id)
        with kept.hold:
            if kept.mirror is not None and not kept.mirror.finish(SHIP_SECONDS) and not kept.lost.is_set():
                self.trouble[kept.name] = kept.mirror.trouble

    def _drop(self, sweep_id: int) -> None:
        """It was deleted: there is nothing to ship."""
        kept = self._kept.pop(sweep_id, None)
        if kept is not None:
            with kept.hold:
                if kept.mirror is not None:
                    kept.mirror.finish(0.0)
