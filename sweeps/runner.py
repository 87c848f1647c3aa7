"""`sweeps run`: starts workers, watches over them, and keeps the mirror going. The database owns the trials."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from threading import Event, Thread
from typing import Protocol

from model.range_test import RangeTest
from sweeps.errors import DatabaseUnavailable, RangeTestFailed, SweepBusy
from sweeps.mirror import Mirror
from sweeps.processes import deaf_children, is_known_dead
from sweeps.ramp import Failure, Progress, Ramp, ramp_process
from sweeps.records import Runner, SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from sweeps.worker import Job, tell, worker_process

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
BEAT_SECONDS = 2.0
STALE_SECONDS = 60.0
"""A runner of another host that has not beaten for so long is taken for dead."""
STOP_SECONDS = 20.0
"""What workers get to hand their trials back."""
KILL_SECONDS = 5.0
"""What they get when they are asked for the second time, and when they are killed."""
FRUITLESS_DEATHS = 3
"""After so many worker deaths in a row without a new epoch in the sweep, one more ends it."""


class View(Protocol):
    """Shows a sweep while it runs."""

    def update(self, sweep: SweepRow, trials: list[TrialRow], note: str) -> None: ...


@dataclass
class _Process:
    """A process and the pipe by which it is told to stop; it stops as well when the pipe breaks."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection


@dataclass
class _Worker(_Process):
    job: Job


@contextmanager
def holding(store: Store, sweep: SweepRow, runner: Runner) -> Iterator[Event]:
    """Inside, this process is the one that runs the sweep, and says so every few seconds.

    Yields an event that is set when another process has taken over: this one was silent for too long (suspended).

    Raises:
        SweepBusy: another live process runs it.
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

    thread = Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        done.set()
        thread.join()
        store.release_runner(sweep.id, runner.id)


def has_work(sweep: SweepRow, trials: list[TrialRow]) -> bool:
    """Whether a trial waits, or the budget allows another."""
    return len(trials) < sweep.budget["trials"] or any(not t.state.terminal for t in trials)


def run(
    store: Store, sweep: SweepRow, spec: SweepSpec, job: Job, runner: Runner, mirror: Mirror, view: View, stop: Event
) -> None:
    """Run a sweep until it is done, its budget is spent, or `stop` is set. Call it while `holding` the sweep.

    However it ends, no worker lives, none of its trials is RUNNING, Optuna has heard of every trial that is over, and
    the sweep's state says what happened (unless another process has taken it over: then the state is that one's).

    Raises:
        SweepBusy: another process has taken over.
    """
    _check_ours(store, sweep, runner)
    # Whoever held these trials is gone, or may no longer write: there is one runner.
    store.reap(sweep.id, dead_workers={t.worker for t in store.trials(sweep.id) if t.worker})
    with closing(Study(job.database_url, spec)) as study:
        study.fail_orphans(store.trials(sweep.id))
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    mirror.start()
    workers: list[_Worker] = []
    reason = "a fault of the runner"
    try:
        reason = _watch(store, sweep, job, spec.workers, runner, mirror, view, stop, workers)
    finally:
        if stop.is_set():
            view.update(_reread(store, sweep), store.trials(sweep.id), "stopping: trials are being handed back")
        _end(workers)
        store.reap(sweep.id, dead_workers={w.job.worker for w in workers})
        with closing(Study(job.database_url, spec)) as study:
            tell(store, study, sweep.id)
        _check_ours(store, sweep, runner)
        _close(store, sweep.id, reason, stop.is_set())


def _check_ours(store: Store, sweep: SweepRow, runner: Runner) -> None:
    if not store.beat(sweep.id, runner.id):
        raise SweepBusy(sweep.name, str(_reread(store, sweep).runner or "another process"), 0)


def run_range_test(ramp: Ramp, stop: Event, progress: Callable[[int, int], None]) -> RangeTest | None:
    """Make a sweep's range test in a process of its own, which gives back all its memory; None if `stop` was set first.

    Args:
        progress: called with the steps done and their number.

    Raises:
        RangeTestFailed: it has no result; says why.
    """
    spawn = multiprocessing.get_context("spawn")
    theirs, ours = spawn.Pipe(duplex=False)
    answers, answering = spawn.Pipe(duplex=False)
    process = spawn.Process(target=ramp_process, args=(ramp, theirs, answering), name="range test")
    with deaf_children():
        process.start()
    theirs.close()
    answering.close()
    answer: RangeTest | Failure | None = None
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
    if isinstance(answer, Failure):
        raise RangeTestFailed(answer.reason, str(ramp.log))
    return answer


def _watch(
    store: Store,
    sweep: SweepRow,
    job: Job,
    count: int,
    runner: Runner,
    mirror: Mirror,
    view: View,
    stop: Event,
    workers: list[_Worker],
) -> str:
    """Keep `count` workers going; returns why that ended, empty if there was nothing left to do."""
    started, deaths, epochs_at_death = 0, 0, -1
    reaped_at = 0.0
    while not stop.is_set():
        while len(workers) < count:
            workers.append(_start(replace(job, worker=f"{runner.id}/{started}")))
            started += 1
        stop.wait(POLL_SECONDS)
        if time.monotonic() - reaped_at > BEAT_SECONDS:
            _check_ours(store, sweep, runner)
            store.reap(sweep.id)
            reaped_at = time.monotonic()
        exits = [w.process.exitcode for w in workers]  # before the rows: what a worker wrote last is then among them
        trials = store.trials(sweep.id)
        now = _reread(store, sweep)
        view.update(now, trials, mirror.trouble and f"MLflow is away, rows wait: {mirror.trouble}")
        if all(code == 0 for code in exits) or now.state is SweepState.PAUSED:  # a worker has raised the alarm
            return ""
        dead = [w for w, code in zip(workers, exits, strict=True) if code not in (None, 0)]
        if not dead:
            continue
        for worker in dead:
            workers.remove(worker)
            log.error("worker %s died with exit code %s", worker.job.worker, worker.process.exitcode)
        reaped = store.reap(sweep.id, dead_workers={w.job.worker for w in dead})
        epochs = sum(t.epochs for t in trials)
        # A trial that was given up for killing its workers is progress: the next one may do better.
        fruitless = epochs == epochs_at_death and all(state is not TrialState.FAILED for _, state in reaped)
        deaths, epochs_at_death = deaths + 1 if fruitless else 1, epochs
        if deaths > FRUITLESS_DEATHS:
            return (
                f"workers died {deaths} times in a row without a new epoch, the last with exit code "
                f"{dead[-1].process.exitcode}; its log is {dead[-1].job.log}"
            )
    return ""


def _budget_is_spent(sweep: SweepRow, trials: list[TrialRow]) -> bool:
    limit, hours = sweep.budget.get("total_epochs"), sweep.budget.get("hours")
    spent = limit is not None and sum(t.epochs for t in trials) >= limit
    return spent or (hours is not None and sweep.seconds >= 3600 * hours)


def _reread(store: Store, sweep: SweepRow) -> SweepRow:
    found = store.find_sweep(sweep.name)
    assert found is not None
    return found


def _start(job: Job) -> _Worker:
    index = job.worker.rpartition("/")[2]
    job = replace(job, log=job.log / f"worker-{index}.log")
    spawn = multiprocessing.get_context("spawn")
    theirs, ours = spawn.Pipe(duplex=False)
    process = spawn.Process(target=worker_process, args=(job, theirs), name=f"worker {index}")
    with deaf_children():
        process.start()
    theirs.close()
    return _Worker(process, ours, job)


def _end(workers: Sequence[_Process]) -> None:
    """Ask, wait, and only then force."""
    for worker in workers:
        worker.pipe.close()
    try:
        _join(workers, STOP_SECONDS)
    except KeyboardInterrupt:  # a second Ctrl-C: at once, then
        log.warning("workers are killed")
    for act in (multiprocessing.process.BaseProcess.terminate, multiprocessing.process.BaseProcess.kill):
        for worker in workers:
            if worker.process.is_alive():
                act(worker.process)
        _join(workers, KILL_SECONDS)


def _join(workers: Sequence[_Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))


def _close(store: Store, sweep_id: int, reason: str, interrupted: bool) -> None:
    sweep = next(s for s in store.sweeps() if s.id == sweep_id)
    trials = store.trials(sweep_id)
    if not has_work(sweep, trials):
        store.set_sweep_state(sweep_id, SweepState.COMPLETE, "all trials of its budget are done")
    elif sweep.state is SweepState.PAUSED:
        return  # by an alarm, which is its reason
    elif interrupted:
        store.set_sweep_state(sweep_id, SweepState.PAUSED, reason or "interrupted; run it again to go on")
    elif reason:
        store.set_sweep_state(sweep_id, SweepState.FAILED, reason)
    else:
        waiting = sum(t.state is TrialState.WAITING for t in trials)
        why = "its budget is spent" if _budget_is_spent(sweep, trials) else "its workers have ended"
        store.set_sweep_state(
            sweep_id, SweepState.STOPPED, f"{why}, {waiting} trials wait; raise the budget and run it again to go on"
        )
