"""Starts workers, watches over them, and keeps sweeps: what `sweeps run` and `sweeps work` have in common.

The database owns the trials: whatever happens to this process, another one goes on with them.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from threading import Event, Lock
from typing import Any, Protocol

from model.corpus.data import CorpusConfig
from model.diagnosis import counted
from model.range_test import RangeTest
from model.types import TrainingConfig
from sweeps.errors import DatabaseUnavailable, RangeTestFailed, SpecError, SweepBusy
from sweeps.judging import reread
from sweeps.keeper import BEAT_SECONDS, Keeper, News, has_work, no_news
from sweeps.mirror import Mirror
from sweeps.patience import wait
from sweeps.preparing import device_here
from sweeps.processes import deaf_children
from sweeps.ramp import Failure, Progress, Ramp, ramp_process
from sweeps.records import Runner, SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.sharing import Share, Trial, cores_here, footprint_process, not_measured, share_of
from sweeps.spec import SweepSpec
from sweeps.states import SweepState
from sweeps.store import Store
from sweeps.study import Study
from sweeps.worker import RECYCLED, TERMINATED, Job, worker_process

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
STOP_SECONDS = 20.0
"""What workers get to hand their trials back."""
KILL_SECONDS = 5.0
"""What they get when they are asked for the second time, and when they are killed."""
FRUITLESS_DEATHS = 3
"""After so many worker deaths in a row without a new epoch in the sweep, one more ends it."""
LONGEST_REST_SECONDS = 60.0
"""A worker that dies at once is started again after a rest that doubles, up to this."""


class View(Protocol):
    """Shows a sweep while it runs."""

    def update(self, sweep: SweepRow, trials: list[TrialRow], note: str) -> None: ...


@dataclass
class _Process:
    """A process and the pipe by which it is told to stop; it stops as well when the pipe breaks."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    _closing: Lock = field(init=False, default_factory=Lock)

    def tell_to_stop(self) -> None:
        """From any thread, any number of times: a pipe that two threads close at once is closed twice, and the second
        time it may be another file's number.
        """
        with self._closing:
            self.pipe.close()


@dataclass
class _Worker(_Process):
    job: Job


class Workers:
    """A number of worker processes, started anew when they die or want to be."""

    def __init__(self, job: Job, count: int, runner: Runner) -> None:
        self._job, self._count, self.runner = job, count, runner
        self._running: list[_Worker] = []
        self._started = 0
        self._deaths, self._rest_until = 0, 0.0
        self.ids: set[str] = set()
        """Of every worker that was started."""
        self.last_death = ""
        """Exit code and log of the last one that died."""

    @property
    def ended(self) -> bool:
        """Whether every one of them has ended by itself, with nothing left to do."""
        return len(self._running) == self._count and all(w.process.exitcode == 0 for w in self._running)

    def look(self) -> set[str]:
        """Start those that are missing; returns the ids of those that died since the last look."""
        dead = set()
        for worker in list(self._running):
            code = worker.process.exitcode
            if code in (None, 0):
                continue
            self._running.remove(worker)
            worker.tell_to_stop()
            dead.add(worker.job.worker)
            if code in (RECYCLED, TERMINATED):
                log.info("worker %s is started anew", worker.job.worker)
                continue
            self.last_death = f"exit code {code}; its log is {worker.job.log}"
            log.error("worker %s died with %s", worker.job.worker, self.last_death)
            self._deaths += 1
            rest = min(LONGEST_REST_SECONDS, 2.0 ** min(self._deaths - 1, 6) - 1)
            self._rest_until = time.monotonic() + rest
        while len(self._running) < self._count and time.monotonic() >= self._rest_until:
            self._running.append(self._start())
        return dead

    def thrive(self) -> None:
        """There was progress: the next death is not in a row with the last one."""
        self._deaths = 0

    def ask_to_stop(self) -> None:
        """From any thread: each drops the epoch in hand and hands its trial back."""
        for worker in list(self._running):
            worker.tell_to_stop()

    def end(self) -> None:
        """Ask, wait, and only then force."""
        _end(self._running)

    def _start(self) -> _Worker:
        job = replace(
            self._job,
            worker=f"{self.runner.id}/{self._started}",
            may_leave=True,
            log=self._job.log / f"worker-{self._started}.log",
        )
        self._started += 1
        self.ids.add(job.worker)
        spawn = multiprocessing.get_context("spawn")
        theirs, ours = spawn.Pipe(duplex=False)
        process = spawn.Process(target=worker_process, args=(job, theirs), name=job.log.stem)
        with deaf_children():
            process.start()
        theirs.close()
        return _Worker(process, ours, job)


def run(
    store: Store,
    sweep: SweepRow,
    spec: SweepSpec,
    job: Job,
    runner: Runner,
    mirror: Mirror,
    view: View,
    stop: Event,
    news: News = no_news,
) -> None:
    """Run a sweep until it is done, its budget is spent, or `stop` is set. Call it while `holding` the sweep.

    However it ends, no worker that was started here lives and the sweep's state says what happened (unless another
    process has taken it over: then the state is that one's).

    Raises:
        SweepBusy: another process has taken over.
        DatabaseUnavailable: it was away when the sweep was to begin, or to end.
    """
    _check_ours(store, sweep, runner)
    workers = Workers(job, spec.workers, runner)
    with closing(Study(store.url, spec)) as study:
        keeper = Keeper(store, study, sweep, job.lease_seconds, job.checkpoints / sweep.name, news)
        keeper.make_pass()
        store.set_sweep_state(sweep.id, SweepState.RUNNING)
        mirror.start()
        reason = "a fault of the runner"
        try:
            reason = _watch(store, sweep, workers, keeper, runner, mirror, view, stop)
        finally:
            if stop.is_set():
                _show(store, sweep, view, "stopping: trials are being handed back")
            workers.end()
            _check_ours(store, sweep, runner)
            keeper.make_pass(workers.ids)
            _close(store, sweep.id, reason, stop.is_set(), workers.ids)
            keeper.tell_news()


def _check_ours(store: Store, sweep: SweepRow, runner: Runner) -> None:
    if not store.beat(sweep.id, runner.id):
        raise SweepBusy(sweep.name, str(reread(store, sweep).runner or "another process"), 0)


def _show(store: Store, sweep: SweepRow, view: View, note: str) -> None:
    try:
        view.update(reread(store, sweep), store.trials(sweep.id), note)
    except DatabaseUnavailable as error:
        log.warning("%s", error)


def _watch(
    store: Store,
    sweep: SweepRow,
    workers: Workers,
    keeper: Keeper,
    runner: Runner,
    mirror: Mirror,
    view: View,
    stop: Event,
) -> str:
    """Keep the workers going; returns why that ended, empty if there was nothing left to do."""
    deaths, at_death = 0, -1
    pass_at, pause = 0.0, POLL_SECONDS
    dead: set[str] = set()
    while not stop.is_set():
        dead |= workers.look()
        wait(pause, stop.is_set)
        try:
            ended = workers.ended  # before the rows: what a worker wrote last is then among them
            if dead or ended or time.monotonic() > pass_at:
                _check_ours(store, sweep, runner)
                keeper.make_pass(dead)
                pass_at = time.monotonic() + BEAT_SECONDS
            trials, now = store.trials(sweep.id), reread(store, sweep)
            view.update(now, trials, mirror.trouble and f"MLflow is away, rows wait: {mirror.trouble}")
        except DatabaseUnavailable as error:
            if pause == POLL_SECONDS:
                log.warning("%s; the sweep goes on when it is back", error)
            pause = BEAT_SECONDS
            continue
        pause = POLL_SECONDS
        if ended:  # of a sweep that is paused or over, too: each after the epoch in hand
            return ""
        # A trial that was given up for killing its workers is progress: the next one may do better.
        progress = sum(t.epochs for t in trials) + sum(t.state.terminal for t in trials)
        if progress > at_death:
            workers.thrive()
        if dead:
            deaths, at_death = deaths + 1 if progress == at_death else 1, progress
            if deaths > FRUITLESS_DEATHS:
                return f"workers died {deaths} times in a row without a new epoch, the last with {workers.last_death}"
        dead = set()
    return ""


def _close(store: Store, sweep_id: int, reason: str, interrupted: bool, workers: Collection[str]) -> None:
    """What state the sweep is left in by a runner that ends; where it has ended, or others work on it, as it is."""
    sweep = next(s for s in store.sweeps() if s.id == sweep_id)
    if sweep.state is not SweepState.RUNNING or store.holders(sweep_id):
        return
    if interrupted:
        store.set_sweep_state(sweep_id, SweepState.PAUSED, reason or "interrupted; run it again to go on")
    elif reason:
        store.set_sweep_state(sweep_id, SweepState.FAILED, reason)
    elif has_work(sweep, trials := store.trials(sweep_id)):
        told = store.events(sweep_id)
        refused = [event.text for event in told if event.kind == "worker_refused" and event.worker in workers]
        waiting = sum(not t.state.terminal for t in trials)
        why = (
            refused[-1]
            if refused
            else f"its workers have ended, {counted(waiting, 'trial')} left waiting; run it again to go on"
        )
        store.set_sweep_state(sweep_id, SweepState.STOPPED, why)


def run_range_test(ramp: Ramp, stop: Event, progress: Callable[[int, int], None]) -> RangeTest | None:
    """Make a sweep's range test in a process of its own, which gives back all its memory; None if `stop` was set first.

    Args:
        progress: called with the steps done and their number.

    Raises:
        RangeTestFailed: it has no result; says why.
    """
    answer = _asked(ramp_process, ramp, "range test", stop, progress)
    if isinstance(answer, Failure):
        raise RangeTestFailed(answer.reason, str(ramp.log))
    assert answer is None or isinstance(answer, RangeTest)
    return answer


def share_here(
    spec: SweepSpec, corpus: Callable[[], CorpusConfig], trainer: str | None, home: Home, stop: Event
) -> Share:
    """How many workers this machine gets by a spec. Where a trial has to be measured for that, it is trained in a
    process of its own, some steps; if `stop` is set first, it is one.

    Raises:
        SpecError: it could not be measured.
    """

    def measure(config: TrainingConfig) -> tuple[int, int]:
        if trainer is not None:
            raise SpecError(
                f"workers_per_device: auto: measures the built-in trainer alone, and this sweep has {trainer}; write a "
                "number, or name one with --workers"
            )
        trial = Trial(config, corpus(), home.scans, home.logs(spec.name) / "footprint.log")
        answer: tuple[int, int] | Failure | None = _asked(footprint_process, trial, "footprint", stop)
        if isinstance(answer, Failure):
            raise not_measured(answer, trial)
        return answer or (0, 0)

    return share_of(spec, device_here, cores_here, measure)


def _asked(
    target: Callable[..., None],
    task: Any,
    name: str,
    stop: Event,
    progress: Callable[[int, int], None] = lambda done, steps: None,
) -> Any:
    """What a process that is given this task answers, or a `Failure`; None if `stop` was set first."""
    spawn = multiprocessing.get_context("spawn")
    theirs, ours = spawn.Pipe(duplex=False)
    answers, answering = spawn.Pipe(duplex=False)
    process = spawn.Process(target=target, args=(task, theirs, answering), name=name)
    with deaf_children():
        process.start()
    theirs.close()
    answering.close()
    answer: Any = None
    try:
        while answer is None and not stop.is_set():
            if not answers.poll(POLL_SECONDS):
                continue
            match answers.recv():
                case Progress(done, steps):
                    progress(done, steps)
                case other:
                    answer = other
    except (EOFError, OSError):  # it died
        process.join(KILL_SECONDS)
        answer = Failure(f"it died with exit code {process.exitcode}")
    finally:
        _end([_Process(process, ours)])
        answers.close()
    return answer


def _end(processes: Sequence[_Process]) -> None:
    """Ask, wait, and only then force."""
    for each in processes:
        each.tell_to_stop()
    try:
        _join(processes, STOP_SECONDS)
    except KeyboardInterrupt:  # a second Ctrl-C: at once, then
        log.warning("workers are killed")
    for act in (multiprocessing.process.BaseProcess.terminate, multiprocessing.process.BaseProcess.kill):
        for each in processes:
            if each.process.is_alive():
                act(each.process)
        _join(processes, KILL_SECONDS)


def _join(processes: Sequence[_Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for each in processes:
        each.process.join(max(0.0, deadline - time.monotonic()))
