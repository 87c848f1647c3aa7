"""A worker: claims trials and trains them, an epoch at a time, until there is nothing left to claim.

The numbered steps are those of docs/explanation/one-trial.md. Each is idempotent, so a worker that dies between any
two loses at most the epoch in hand. Steps 4 to 6 are judging.py's.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus
from model.diagnosis import is_best
from model.types import EpochReport, Hyperparameters, Stopped, Trainer
from sweeps import checkpoint_share, checkpoints, environment, judging, warm_start
from sweeps.budget import is_limited
from sweeps.errors import DatabaseUnavailable, DiskTrouble, LeaseLost, SweepError, SweepNotFound, TrialTried
from sweeps.lease import Lease
from sweeps.patience import patiently, wait
from sweeps.preparing import check_trainer, corpus_here
from sweeps.processes import obedient, started_at, this_host
from sweeps.records import Claim, EventRow, SweepRow, WorkerRow
from sweeps.settings import Home
from sweeps.spec import FloatRange, SweepSpec, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import CONFIGURATIONS, Store
from sweeps.study import Memory, Study, load_sampler, suggest
from sweeps.system_metrics import SystemMetrics
from sweeps.trainers import load_trainer, make_trainer, trainer_name
from tracking.writer import ExperimentWriter, TrackingRefused, TrackingUnavailable

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5
"""Between two looks for a trial; another worker's may come back."""

SEEN_SECONDS = 10.0
"""How often an idle worker says that it is there."""

REST_SECONDS = 30.0
"""Longest rest between two tries of a disk that is full, and after an attempt that failed."""

RECYCLED = 75
"""Exit code of a worker that wants to be started anew, to give back memory that it cannot free."""

SHARE_SECONDS = 2.5
"""How long a trial that is handed back waits for its shared checkpoint."""

TERMINATED = 143
"""Exit code of a worker that was told to stop by a signal to it alone: it handed its trial back."""

HUNG = 70
"""Exit code of a worker whose trainer hung."""

GROWTH_MIB = 1024
"""A worker that holds so much more memory after a trial than after its first one is recycled."""

NOT_RETRIED: tuple[tuple[type[Exception], str, str | None], ...] = (
    (CorpusError, "data_fault", "data_fault"),
    (ValueError, "bad_spec", None),
    (TypeError, "bad_spec", None),
)
"""Errors that another attempt would meet again, with rule and verdict of the trial. Any other error is one of the
attempt: memory, a device, a library."""


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    worker: str
    """Its id: unique to one start of a process."""
    database_url: str
    sweeps: tuple[str, ...]
    """Names of the sweeps it works on, in order; empty: all that run."""
    home: Home
    checkpoints: Path
    """Folder with one folder a sweep; shared by machines, a trial goes on at another one where it was."""
    log: Path
    lease_seconds: float = 120.0
    trainer: str | None = None
    """`FILE.py:NAME` or `package.module:NAME` of a trainer that is not the built-in one."""
    corpus: Path | None = None
    """Where the corpus lies on this machine, if not where the sweep was made."""
    until_done: bool = True
    """Whether it ends once its sweeps have nothing left for it."""
    may_leave: bool = False
    """Whether it is a process of its own, which may end itself where its trainer hangs."""
    share_through: str | None = None
    """Tracking URI of the MLflow server in whose artifacts checkpoints are shared; None: they are not."""


@dataclass(frozen=True)
class Assignment:
    """A sweep, with what its trials need."""

    sweep: SweepRow
    spec: SweepSpec
    corpus: Corpus
    study: Study
    judge: judging.Judge

    @property
    def key(self) -> str:
        """Unique to this sweep: another one of that name must not take its checkpoints."""
        return f"{self.sweep.name}@{self.sweep.created_at:.3f}"


def worker_process(job: Job, pipe: Connection) -> None:
    """A worker as a process of its own: logs to its file, stops when its pipe breaks or at SIGTERM."""
    stop = obedient(job.log, pipe)
    if work(job, stop):
        sys.exit(RECYCLED)
    if stop.signalled:
        sys.exit(TERMINATED)


def work(job: Job, stop: threading.Event) -> bool:
    """Claim and train until there is nothing left, or `stop` is set; True if it ended to be started anew."""
    store = patiently(lambda: Store(job.database_url), stop.is_set)
    with closing(store):
        patiently(lambda: store.register_worker(this_worker(job)), stop.is_set)
        try:
            return _Worker(job, store, stop).work()
        except DatabaseUnavailable:
            if not stop.is_set():
                raise
            log.warning("the database was away when the worker was stopped: its trial waits until its lease runs out")
            return False
        finally:
            _forget(store, job.worker)


def this_worker(job: Job) -> WorkerRow:
    """What the database keeps of this process."""
    process = psutil.Process()
    return WorkerRow(job.worker, this_host(), process.pid, started_at(process), _device(job), environment.here())


def _device(job: Job) -> str:
    if job.trainer is not None:
        return "its trainer's"
    from model.ctc import pick_device

    return str(pick_device("auto"))


def _forget(store: Store, worker: str) -> None:
    try:
        store.forget_worker(worker)
    except DatabaseUnavailable as error:
        log.warning("%s", error)  # it is forgotten once it was not seen for long


class _Worker:
    """The loop: which sweep, which trial, and what happens to the errors."""

    def __init__(self, job: Job, store: Store, stop: threading.Event) -> None:
        self._job, self._store, self._stop = job, store, stop
        self._assignment: Assignment | None = None
        self._refused: dict[str, str] = {}
        """Sweeps that this worker cannot work on, and why."""
        self._seen_at, self._first_rss, self._failures = time.monotonic(), 0, 0

    def work(self) -> bool:
        try:
            while not self._stop.is_set():
                found = patiently(self._next, self._stop.is_set)
                if found is not None:
                    self._train(*found)
                    if self._has_grown():
                        return True
                elif self._job.until_done and patiently(self._done, self._stop.is_set):
                    # Handed back between the two looks?
                    if (found := patiently(self._next, self._stop.is_set)) is None:
                        return False
                    self._train(*found)
                else:
                    self._idle()
            return False
        finally:
            self._leave()

    def _sweeps(self) -> list[SweepRow]:
        """Those it works on, in the order in which it serves them."""
        known = {sweep.name: sweep for sweep in self._store.sweeps()}
        return [known[name] for name in self._job.sweeps or known if name in known]  # one may have been deleted

    def _next(self) -> tuple[Assignment, Claim] | None:
        """Step 1: a trial of the first sweep that has one."""
        for sweep in self._sweeps():
            if sweep.state is not SweepState.RUNNING or sweep.name in self._refused:
                continue
            try:
                assignment = self._assigned(sweep)
            except (SweepError, OSError, ValueError) as error:
                if isinstance(error, DatabaseUnavailable):
                    raise
                self._refused[sweep.name] = str(error)
                log.error("%s", error)
                self._store.add_event(sweep.id, EventRow("worker_refused", str(error), worker=self._job.worker))
                continue
            try:
                claim = self._store.claim(sweep.id, self._job.worker, self._job.lease_seconds)
            except SweepNotFound:  # deleted just now
                continue
            if claim is not None:
                log.info("%s: trial %d claimed, attempt %d", sweep.name, claim.number, claim.attempt)
                return assignment, claim
        return None

    def _assigned(self, sweep: SweepRow) -> Assignment:
        if self._assignment is None or not _same(self._assignment.sweep, sweep):
            self._leave()
            self._assignment = assigned(self._job, self._store, sweep)
        return self._assignment

    def _leave(self) -> None:
        if self._assignment is not None:
            self._assignment.study.close()
            self._assignment = None

    def _done(self) -> bool:
        """Whether nothing is left that could come back from another worker."""
        for sweep in self._sweeps():
            served = sweep.state is SweepState.RUNNING and sweep.name not in self._refused
            trials = self._store.siblings(sweep) if served else []
            if any(trial.state is TrialState.RUNNING for trial in trials):
                return False
        return True

    def _idle(self) -> None:
        if time.monotonic() - self._seen_at > SEEN_SECONDS:
            patiently(lambda: self._store.see_worker(self._job.worker), self._stop.is_set)
            self._seen_at = time.monotonic()
        wait(IDLE_SECONDS, self._stop.is_set)

    def _train(self, assignment: Assignment, claim: Claim) -> None:
        """Steps 2 to 6, and what becomes of the trial if they fail."""
        job, store, stop = self._job, self._store, self._stop
        try:
            values = patiently(lambda: ask(assignment, store, claim), stop.is_set)
            train(job, assignment, store, claim, values, stop)
            self._failures = 0
        except LeaseLost as error:
            log.warning("%s", error)
        except DatabaseUnavailable:
            # The lease has lapsed, or the worker is to stop: whoever asks first when it is back has the trial.
            self._give_back(claim, "the database was away")
            if stop.is_set():
                raise
        except DiskTrouble as error:
            self._give_back(claim, str(error))
            self._rest_until(partial(checkpoints.has_room, error.folder, error.size))
        except SweepNotFound as error:
            log.warning("%s", error)  # deleted meanwhile
        except SweepError:
            raise
        except Exception as error:
            log.exception("trial %d failed", claim.number)
            patiently(partial(self._failed, claim, error), stop.is_set)
            self._failures += 1
            wait(min(REST_SECONDS, 2.0 ** min(self._failures - 1, 6) - 1), stop.is_set)
        else:
            patiently(lambda: self._tell(assignment, claim), stop.is_set)

    def _tell(self, assignment: Assignment, claim: Claim) -> None:
        # Of its own trial: if every worker told of every one, twenty of them would tell all the time. The rest is left
        # to the keeper.
        judging.tell(self._store, assignment.study, claim.sweep_id, claim.trial_id)
        # The trial may be the one to alarm at.
        assignment.judge.is_paused(judging.reread(self._store, assignment.sweep))

    def _failed(self, claim: Claim, error: Exception) -> None:
        """A fault of this trial or of this attempt, kept with its reason."""
        words = " ".join(str(error).replace("\0", "").split())[:500]  # PostgreSQL takes no NUL
        reason = f"{type(error).__name__}: {words} (the worker's log has more: {self._job.log.name})"
        try:
            for kind, rule, verdict in NOT_RETRIED:
                if isinstance(error, kind):
                    self._store.finish(claim, TrialState.FAILED, verdict, reason, rule, {})
                    return
            self._store.attempt_failed(claim, reason)
        except LeaseLost as lost:
            log.warning("%s", lost)

    def _give_back(self, claim: Claim, reason: str) -> None:
        try:
            patiently(lambda: self._store.hand_back(claim, reason), self._stop.is_set)
        except LeaseLost as error:
            log.warning("%s", error)

    def _rest_until(self, ready: Callable[[], bool]) -> None:
        pause = 1.0
        while not self._stop.is_set() and not ready():
            wait(pause, self._stop.is_set)
            pause = min(2 * pause, REST_SECONDS)

    def _has_grown(self) -> bool:
        held = psutil.Process().memory_info().rss
        self._first_rss = self._first_rss or held
        grown = (held - self._first_rss) >> 20
        if grown > GROWTH_MIB:
            log.warning("holds %d MiB more than after its first trial: to be started anew", grown)
        return grown > GROWTH_MIB


def assigned(job: Job, store: Store, sweep: SweepRow) -> Assignment:
    """Read the sweep's corpus and open its study.

    Raises:
        CannotWork: its corpus is not here or is another one, or its trainer was not named to this worker.
    """
    check_trainer(sweep, job.trainer)
    corpus = corpus_here(sweep, job.home, job.corpus)
    # Seconds of imports, during which nobody could renew a lease: before there is one.
    load_trainer(job.trainer)
    checkpoints.load_torch()
    spec = spec_of(sweep)
    load_sampler(spec)
    return Assignment(sweep, spec, corpus, Study(job.database_url, spec), judging.Judge(spec, store, sweep))


def ask(assignment: Assignment, store: Store, claim: Claim) -> Hyperparameters:
    """Step 2: the trial's hyperparameters, on our row first and with Optuna if the sampler may know of them.

    Asked again after an answer that was lost, it takes what stands on the row: MLflow may have been told of it.
    """
    stands = store.trial(claim.sweep_id, claim.number)
    if stands.hyperparameters is not None and claim.hyperparameters is None:
        return stands.hyperparameters
    may_repeat = CONFIGURATIONS not in assignment.sweep.facts or claim.hyperparameters is not None
    refused: Hyperparameters | None = None
    while True:
        values = claim.hyperparameters or suggested(
            assignment.spec, store, assignment.sweep, claim, assignment.study.memory
        )
        if claim.optuna_trial_id is not None:
            return values
        optuna_trial_id = assignment.study.register(claim.number, claim.name, values) if claim.in_space else None
        try:
            store.set_hyperparameters(claim, dict(values), optuna_trial_id, repeat=may_repeat)
            return values
        except (LeaseLost, TrialTried) as error:
            if optuna_trial_id is not None:  # nobody else knows of it, and perhaps nobody keeps the sweep any more
                assignment.study.fail([optuna_trial_id])
            if isinstance(error, LeaseLost):
                raise
            # Another worker was given the same just now: the next suggestion knows of it, unless nothing else is left.
            may_repeat, refused = values == refused, values


def suggested(
    spec: SweepSpec, store: Store, sweep: SweepRow, claim: Claim, memory: Memory | None = None
) -> Hyperparameters:
    """What the sampler says to try, after all that is known of the sweep's other trials."""
    sweep = judging.reread(store, sweep)
    siblings = store.curves(sweep)
    bounds = sweep.facts.get("learning_rate_bounds")  # those of a range test or of an alarm, if any
    rates = bounds and FloatRange(low=bounds["low"], high=bounds["high"], log=spec.space.learning_rate.log)
    trials, curves = [trial for trial, _ in siblings], {trial.id: reports for trial, reports in siblings}
    priors = store.priors(sweep.id) if warm_start.FACT in sweep.facts else ()
    return suggest(
        spec,
        claim.number,
        trials,
        curves,
        sweep.floors.constant_wer,
        learning_rate=rates,
        priors=priors,
        memory=memory,
    )


def train(
    job: Job, assignment: Assignment, store: Store, claim: Claim, values: Hyperparameters, stop: threading.Event
) -> None:
    """Steps 3 to 6, until the trial is over or handed back.

    While the database is away it trains on, as long as its lease would last and no budget has to be asked.

    Raises:
        LeaseLost: another worker may have the trial.
        DatabaseUnavailable: it was away until the lease had run out, or until `stop` was set.
        DiskTrouble: a checkpoint could not be written.
    """
    spec, sweep = assignment.spec, assignment.sweep
    config = spec.training(claim.number, values, claim.overrides)
    folder = job.checkpoints / sweep.name
    limited = is_limited(sweep.budget)
    hung = leave if job.may_leave else lambda: None
    with Lease(store, claim, job.lease_seconds, stop, hung) as lease, shared(job, store, sweep, claim) as share:
        trainer = make_trainer(job.trainer, config, assignment.corpus)
        identity = {
            "sweep": assignment.key,
            "corpus": assignment.corpus.hash,
            "trainer": trainer_name(job.trainer),
            **config.model_dump(),
        }
        files = checkpoints.trial_files(folder, claim.number, claim.attempt)
        reports = checkpoints.resume(folder, claim.number, claim.attempt, identity, trainer)
        if share is not None and len(reports) < claim.epochs and share.fetch(files.last, beyond=len(reports)):
            reports = checkpoints.resume(folder, claim.number, claim.attempt, identity, trainer) or reports
        run = f"{sweep.name}/{claim.name or claim.number}"
        busy = SystemMetrics() if spec.system_metrics else None
        first = min(claim.epochs, len(reports))  # judged as well: a crash may have come between steps 4 and 5
        while True:
            try:
                # Step 5 comes before the next epoch, not after the last: a trial that comes back is judged again.
                state = assignment.judge.judge_all(claim, config, reports, first)
                if state is not None:
                    checkpoints.settle(folder, claim.number, state)
                    if share is not None:
                        share.forget()
                    return
                first = len(reports) + 1
                if reason := why_not_on(assignment, store, claim, trainer.epoch + 1, stop):
                    if share is not None:
                        share.flush()
                    store.hand_back(claim, reason)
                    return
            except DatabaseUnavailable as error:
                if limited or stop.is_set() or lease.over:
                    _wait_for(store, lease, stop)
                    continue
                log.warning("%s; training on", error)
            # Step 3
            report = _epoch(trainer, lease)
            if report is None or lease.over:
                if share is not None and not lease.over:
                    share.flush()
                _stopped(store, claim, lease)
                return
            if busy is not None:
                report = replace(report, metrics={**report.metrics, **busy.look()})
            better = is_best(report.wer, [r.wer for r in reports])
            reports.append(report)
            try:
                checkpoints.save(files, run, identity, trainer, config, assignment.corpus, reports, better=better)
                checkpoints.forget_earlier(folder, claim.number, claim.attempt)
            except OSError as error:
                raise DiskTrouble(folder, _size(files), error) from error
            if share is not None:
                share.offer(files.last, len(reports))


class Shared:
    """A trial's checkpoints in the artifacts of its MLflow run. What fails here is a warning: the trial goes on."""

    def __init__(self, store: Store, claim: Claim, experiment: ExperimentWriter) -> None:
        self._store, self._claim, self._experiment = store, claim, experiment
        self._share = checkpoint_share.Share(experiment)

    def fetch(self, to: Path, beyond: int) -> bool:
        """Write the checkpoint that the run holds to `to`, if it has more than `beyond` epochs."""
        run_id = self._run_id()
        try:
            epochs = run_id and checkpoint_share.fetch(self._experiment, run_id, to, beyond)
        except (TrackingUnavailable, TrackingRefused, OSError) as error:
            log.warning("no checkpoint could be fetched: %s", error)
            return False
        if epochs:
            log.info("trial %d: fetched a checkpoint of %d epochs", self._claim.number, epochs)
        return bool(epochs)

    def offer(self, file: Path, epochs: int) -> None:
        """Upload it in the background, once the trial has a run."""
        run_id = self._run_id()
        if run_id is not None:
            self._share.offer(run_id, file, epochs)

    def flush(self) -> None:
        """Wait for what was offered, but not for long: whoever is told to stop has seconds."""
        self._share.flush(SHARE_SECONDS)

    def forget(self) -> None:
        """The trial is over: nobody goes on from a checkpoint of it, and the files stay where it was trained."""
        run_id = self._run_id()
        try:
            self._share.close(SHARE_SECONDS)  # what is under way would come after
            if run_id is not None:
                self._experiment.existing(run_id).delete_artifacts(checkpoint_share.FOLDER)
        except (TrackingUnavailable, TrackingRefused) as error:
            log.warning("the shared checkpoints of trial %d stay in MLflow: %s", self._claim.number, error)

    def close(self) -> None:
        self._share.close()

    def _run_id(self) -> str | None:
        try:
            return self._store.trial(self._claim.sweep_id, self._claim.number).run_id
        except DatabaseUnavailable:
            return None


@contextmanager
def shared(job: Job, store: Store, sweep: SweepRow, claim: Claim) -> Iterator[Shared | None]:
    """The trial's shared checkpoints; None where they are not shared, or MLflow is away."""
    if job.share_through is None:
        yield None
        return
    from tracking.mlflow_writer import open_experiment

    try:
        share = Shared(store, claim, open_experiment(job.share_through, sweep.name))
    except (TrackingUnavailable, TrackingRefused) as error:
        log.warning("checkpoints are not shared: %s", error)
        yield None
        return
    with closing(share):
        yield share


def leave() -> None:
    """End this process at once: its trainer hangs, and another worker may have the trial. Its parent starts another."""
    log.error("the trainer has not moved for a whole lease after its lease had run out: leaving")
    os._exit(HUNG)


def _same(one: SweepRow, other: SweepRow) -> bool:
    """SQLite gives the id of a deleted sweep to the next one."""
    return (one.id, one.created_at) == (other.id, other.created_at)


def _epoch(trainer: Trainer, lease: Lease) -> EpochReport | None:
    """The report of the next epoch; None where it was dropped in the middle."""
    try:
        return trainer.train_epoch(lease.should_stop)
    except Stopped:
        return None


def why_not_on(assignment: Assignment, store: Store, claim: Claim, epoch: int, stop: threading.Event) -> str:
    """Why the trial is handed back instead of trained further; empty if it goes on."""
    if stop.is_set():
        return "interrupted"
    sweep = judging.reread(store, assignment.sweep)
    if assignment.judge.is_paused(sweep):
        return f"the sweep is {judging.reread(store, sweep).state}"
    if is_limited(sweep.budget) and not store.reserve_epoch(claim, epoch):
        return "the sweep's budget is spent"
    return ""


def _wait_for(store: Store, lease: Lease, stop: threading.Event) -> None:
    """Wait until the database is back.

    Raises:
        LeaseLost, DatabaseUnavailable: see `train`.
    """
    patiently(store.check_writable, lambda: stop.is_set() or lease.over)


def _stopped(store: Store, claim: Claim, lease: Lease) -> None:
    """The epoch in hand was dropped, for one of these reasons."""
    if lease.lost.is_set():
        raise LeaseLost(claim.number, claim.attempt)
    if lease.cancelled.is_set():
        store.finish(claim, TrialState.CANCELLED, None, "the sweep was cancelled", "cancelled", {})
    elif lease.lapsed.is_set():
        store.hand_back(claim, "its lease ran out while the database was away, or while nothing moved")
    else:
        store.hand_back(claim, "interrupted")


def _size(files: object) -> int:
    """Bytes that a checkpoint of the trial takes, as far as there is one."""
    sizes: Sequence[int] = [path.stat().st_size for path in vars(files).values() if path.exists()]
    return 2 * max(sizes, default=1 << 20)
