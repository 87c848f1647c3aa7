"""A keeper: a sweep's housekeeping, done by the one process in the whole installation that holds it.

Facts flow from our tables to Optuna and to MLflow, and recovery is doing it again: what a keeper does in one pass, the
next one of another process does as well. The role is fenced by the beat: whoever cannot beat is keeper no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from model.diagnosis import counted
from sweeps import checkpoints, judging
from sweeps.budget import Spending, exceeded
from sweeps.errors import DatabaseUnavailable
from sweeps.forecasting import end_if_not_worth_it
from sweeps.processes import is_gone, is_known_dead
from sweeps.records import Runner, SweepRow, TrialRow
from sweeps.states import SweepState, TrialState
from sweeps.store import CONFIGURATIONS, Store
from sweeps.study import Study

log = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
STALE_SECONDS = 60.0
"""A keeper of another host that has not beaten for so long is taken for dead."""

BREAKER = 5
"""So many trials that failed one after the other end the sweep: another one would fail as well."""

EXPIRE_SECONDS = 3600.0
"""How often old checkpoints are looked for."""


@contextmanager
def holding(store: Store, sweep: SweepRow, runner: Runner) -> Iterator[Event]:
    """Inside, this process is the sweep's keeper, and says so every few seconds.

    Yields an event that is set when another process has taken over: this one was silent for too long (suspended), or it
    yields.

    Raises:
        SweepBusy: another live process is.
    """
    store.take_runner(sweep.id, runner, STALE_SECONDS, is_known_dead)
    lost, done = Event(), Event()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            try:
                if not store.beat(sweep.id, runner.id):
                    lost.set()
                    return
            except DatabaseUnavailable as error:  # it may come back before anybody takes over
                log.warning("%s", error)

    thread = Thread(target=beat, name=f"beat of {sweep.name}", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
        try:
            store.release_runner(sweep.id, runner.id)
        except DatabaseUnavailable as error:
            log.warning("%s; the sweep is free again in %.0f s", error, STALE_SECONDS)


News = Callable[[SweepRow, Sequence[TrialRow], bool], None]
"""Told a sweep, its trials, and whether it failed because they did one after the other: see `sweeps.outbox`."""


def no_news(sweep: SweepRow, trials: Sequence[TrialRow], breaker: bool) -> None:
    """Nobody is told."""


class Keeper:
    """What has to be remembered between two passes."""

    def __init__(
        self,
        store: Store,
        study: Study,
        sweep: SweepRow,
        lease_seconds: float,
        folder: Path,
        news: News = no_news,
    ) -> None:
        """
        Args:
            folder: of the sweep's checkpoints, as this machine sees it.
            news: told how the sweep is, at the end of each pass.
        """
        self._news = news
        self._store, self._study, self._sweep, self._folder = store, study, sweep, folder
        self._lease_seconds = lease_seconds
        self._quiet_until = self._expire_at = 0.0
        self._forecast_for: tuple[object, ...] = ()
        """What the sweep was like when its forecast was last asked for."""
        self._orphans: dict[int, float] = {}
        """Optuna trials that nobody points to, and when each was first seen."""

    def make_pass(self, dead_workers: Collection[str] = ()) -> SweepRow:
        """Put trials back whose workers are gone, tell Optuna what has ended, end the sweep where it is over.

        Args:
            dead_workers: known to be dead, beside those of this host that are.

        Raises:
            DatabaseUnavailable: then workers get one lease to renew theirs, before any is taken for dead.
        """
        store, sweep_id = self._store, self._sweep.id
        try:
            gone = [w.id for w in store.holders(sweep_id) if is_gone(w.host, w.pid, w.process_started)]
            store.reap(sweep_id, {*dead_workers, *gone}, expired=time.monotonic() >= self._quiet_until)
            judging.tell(store, self._study, sweep_id)
            end_if_over(store, sweep_id)
            self._end_if_not_worth_it()
            self._fail_orphans()
            self._tidy_checkpoints()
            return self.tell_news()
        except DatabaseUnavailable:
            self._quiet_until = time.monotonic() + self._lease_seconds
            raise

    def tell_news(self) -> SweepRow:
        """Have written down what there is to tell of the sweep as it is now, and return that."""
        sweep = judging.reread(self._store, self._sweep)
        trials = self._store.siblings(sweep)
        self._news(sweep, trials, sweep.state is SweepState.FAILED and bool(_failures(sweep, trials)))
        return sweep

    def _end_if_not_worth_it(self) -> None:
        """Asked whenever a trial is over, or the sweep was told to run."""
        sweep = judging.reread(self._store, self._sweep)
        over = sum(trial.state.terminal for trial in self._store.siblings(sweep))
        now = (over, sweep.state, sweep.resumed_at, sweep.budget)
        if now != self._forecast_for:
            self._forecast_for = now
            end_if_not_worth_it(self._store, sweep)

    def _fail_orphans(self) -> None:
        """A worker died between registering a trial with Optuna and writing that down. One that lives is in between for
        a moment only, and none is once the sweep has ended.
        """
        now = time.monotonic()
        seen = self._study.orphans(self._store.siblings(self._sweep))
        self._orphans = {number: self._orphans.get(number, now) for number in seen}
        over = judging.reread(self._store, self._sweep).state.terminal and not self._store.holders(self._sweep.id)
        old = [number for number, since in self._orphans.items() if over or now - since > self._lease_seconds]
        self._study.fail(old)

    def _tidy_checkpoints(self) -> None:
        """What a worker that died after the end of a trial has left; and once an hour, what is too old."""
        trials = {trial.number: trial for trial in self._store.siblings(self._sweep)}
        for number in list(checkpoints.unsettled(self._folder)):
            if number in trials and trials[number].state.terminal:
                try:
                    checkpoints.settle(self._folder, number, trials[number].state)
                except OSError as error:  # a full disk: the next pass tries again
                    log.warning("the checkpoints of trial %d are not settled: %s", number, error)
        if time.monotonic() >= self._expire_at:
            self._expire_at = time.monotonic() + EXPIRE_SECONDS
            came_to_nothing = (TrialState.PRUNED, TrialState.CANCELLED)
            checkpoints.expire(self._folder, [n for n, t in trials.items() if t.state in came_to_nothing])


def has_work(sweep: SweepRow, trials: list[TrialRow]) -> bool:
    """Whether a trial waits, or budget and space allow another."""
    another = len(trials) < sweep.budget["trials"] and tried_all(sweep, trials) is None
    return another or any(not t.state.terminal for t in trials)


def tried_all(sweep: SweepRow, trials: Sequence[TrialRow]) -> int | None:
    """How many configurations the sweep's space has, where each has a trial and none is to be repeated."""
    most = sweep.facts.get(CONFIGURATIONS)
    return most if most is not None and sum(t.in_space for t in trials) >= most else None


def end_if_over(store: Store, sweep_id: int) -> None:
    """Take the step that a sweep's trials allow: a stopped or cancelled one has ended, a finished one is complete."""
    sweep = next((s for s in store.sweeps() if s.id == sweep_id), None)
    if sweep is None:
        return
    state, here = sweep.state, [sweep.state]
    if state is SweepState.CANCELLING:
        store.cancel_waiting(sweep_id, "the sweep was cancelled")
    trials = store.siblings(sweep)
    running = sum(t.state is TrialState.RUNNING for t in trials)
    waiting = sum(t.state is TrialState.WAITING for t in trials)
    if state in (SweepState.RUNNING, SweepState.STOPPING, SweepState.PAUSED) and not has_work(sweep, trials):
        tried = tried_all(sweep, trials) if len(trials) < sweep.budget["trials"] else None
        why = "all trials of its budget are done" if tried is None else f"all {tried} configurations tried"
        store.set_sweep_state(sweep_id, SweepState.COMPLETE, why, here)
    elif state is SweepState.RUNNING and (failed := _failures(sweep, trials)):
        why = f"the last {BREAKER} trials that ended have failed, the last one with: {failed[-1].reason}"
        store.set_sweep_state(sweep_id, SweepState.FAILED, why, here)
    elif running or (state is SweepState.CANCELLING and waiting):  # one was handed back just now: the next pass has it
        return
    elif state is SweepState.CANCELLING:
        store.set_sweep_state(sweep_id, SweepState.CANCELLED, sweep.reason, here)
    elif state is SweepState.STOPPING:
        left = f"; {counted(waiting, 'trial')} left waiting" if waiting else ""
        store.set_sweep_state(sweep_id, SweepState.STOPPED, f"{sweep.reason}{left}", here)
    elif state is SweepState.RUNNING and (limit := exceeded(sweep.budget, _spending(sweep, trials))):
        why = f"its budget of {limit} is spent;{_left(waiting)} raise budget.{limit.name} and run it again to go on"
        store.set_sweep_state(sweep_id, SweepState.STOPPED, why, here)


def _left(waiting: int) -> str:
    return f" {counted(waiting, 'trial')} left waiting;" if waiting else ""


def _failures(sweep: SweepRow, trials: list[TrialRow]) -> list[TrialRow]:
    """The last trials that ended since the sweep was last told to run, if all of them failed and they are enough."""
    since = sweep.resumed_at or 0.0
    ended = [t for t in trials if t.finished_at is not None and t.finished_at >= since]
    last = sorted(ended, key=lambda t: t.finished_at or 0.0)[-BREAKER:]
    enough = len(last) == BREAKER and all(t.state is TrialState.FAILED for t in last)
    return last if enough else []


def _spending(sweep: SweepRow, trials: list[TrialRow]) -> Spending:
    return Spending(sum(t.epochs for t in trials), sweep.seconds, sum(t.seconds for t in trials))
