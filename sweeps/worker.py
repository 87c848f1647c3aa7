"""A worker: claims trials and trains them, an epoch at a time, until there is nothing left to claim.

The numbered steps are those of docs/explanation/one-trial.md. Each is idempotent, so a worker that dies between any
two loses at most the epoch in hand.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.diagnosis import DIVERGED_SHARE, TAKEOFF_MARGIN, best_epoch, is_best, phase_of, verdict_of
from model.early_stopping import why_ended
from model.types import EpochReport, Hyperparameters, Stopped, TrainingConfig
from sweeps import checkpoints, pruning
from sweeps.alarm import alarm
from sweeps.audit import is_audited
from sweeps.errors import LeaseLost, SweepError
from sweeps.lease import Lease
from sweeps.optuna_pruners import decide_by
from sweeps.processes import obedient
from sweeps.records import Claim, DecisionRow, EpochRow, SweepRow
from sweeps.spec import FloatRange, NoPruner, Plateau, SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study, suggest
from sweeps.summary import config_of
from sweeps.trainers import make_trainer, trainer_name

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """What a worker process is told."""

    worker: str
    """Its name on the trials it claims."""
    database_url: str
    sweep: str
    spec: SweepSpec
    corpus: CorpusConfig
    corpus_hash: str
    sweep_key: str
    """Unique to this sweep: another one of that name must not take its checkpoints."""
    checkpoints: Path
    scans: Path
    log: Path
    lease_seconds: float = 120.0
    trainer: str | None = None
    """`FILE.py:NAME` or `package.module:NAME` of a trainer that is not the built-in one."""


def worker_process(job: Job, pipe: Connection) -> None:
    """A worker as a process of its own: logs to its file, stops when its pipe breaks or at SIGTERM."""
    work(job, obedient(job.log, pipe))


def work(job: Job, stop: threading.Event) -> None:
    """Claim and train until the sweep has nothing left for this worker, or `stop` is set."""
    corpus = load_corpus(job.corpus, cache=job.scans)
    if corpus.hash != job.corpus_hash:
        raise ValueError(f"{corpus.folder}: changed since the sweep began; put it back, or begin another sweep")
    with closing(Store(job.database_url)) as store, closing(Study(job.database_url, job.spec)) as study:
        sweep = store.find_sweep(job.sweep)
        assert sweep is not None
        while not stop.is_set():
            claim = store.claim(sweep.id, job.worker, job.lease_seconds)
            if claim is not None:
                log.info("trial %d claimed, attempt %d", claim.number, claim.attempt)
                try:
                    _run_trial(job, store, study, corpus, sweep, claim, stop)
                except LeaseLost as error:
                    log.warning("%s", error)
                tell(store, study, sweep.id)
                is_paused(job.spec, store, sweep)  # a trial that ended may be the one to alarm at
            elif _over(store, sweep.id):
                return
            else:  # another worker's trial may yet come back
                stop.wait(IDLE_SECONDS)


def _over(store: Store, sweep_id: int) -> bool:
    running = next(s for s in store.sweeps() if s.id == sweep_id).state is SweepState.RUNNING
    return not running or not any(t.state is TrialState.RUNNING for t in store.trials(sweep_id))


def _run_trial(
    job: Job, store: Store, study: Study, corpus: Corpus, sweep: SweepRow, claim: Claim, stop: threading.Event
) -> None:
    values = _ask(job.spec, store, study, sweep, claim)
    config = job.spec.training(claim.number, values, claim.overrides)
    try:
        _train(job, store, corpus, sweep, claim, config, stop)
    except (SweepError, OSError, CorpusError):
        # The lease, the database, the disk: no fault of the trial. The worker ends, the trial waits for another.
        raise
    except Exception as error:  # a fault of this trial, not of the sweep: it is kept, with its reason
        log.exception("trial %d failed", claim.number)
        words = " ".join(str(error).replace("\0", "").split())[:500]  # PostgreSQL takes no NUL
        reason = f"{type(error).__name__}: {words} (the worker's log has more: {job.log.name})"
        store.finish(claim, TrialState.FAILED, verdict=None, reason=reason, rule="fault", evidence={})


def _ask(spec: SweepSpec, store: Store, study: Study, sweep: SweepRow, claim: Claim) -> Hyperparameters:
    """Step 2: the trial's hyperparameters, on our row first and with Optuna if the sampler may know of them."""
    values = claim.hyperparameters or _suggested(spec, store, sweep, claim)
    if claim.optuna_trial_id is None:
        optuna_trial_id = study.register(claim.number, claim.name, values) if claim.in_space else None
        store.set_hyperparameters(claim, dict(values), optuna_trial_id)
    return values


def _suggested(spec: SweepSpec, store: Store, sweep: SweepRow, claim: Claim) -> Hyperparameters:
    curves = {trial: [row.report() for row in rows] for trial, rows in store.sweep_epochs(sweep.id).items()}
    bounds = _reread(store, sweep).facts.get("learning_rate_bounds")  # those of a range test or of an alarm, if any
    rates = bounds and FloatRange(low=bounds["low"], high=bounds["high"], log=spec.space.learning_rate.log)
    siblings = store.trials(sweep.id)
    return suggest(spec, claim.number, siblings, curves, sweep.floors.constant_wer, learning_rate=rates)


def _reread(store: Store, sweep: SweepRow) -> SweepRow:
    found = store.find_sweep(sweep.name)
    assert found is not None
    return found


def _train(
    job: Job,
    store: Store,
    corpus: Corpus,
    sweep: SweepRow,
    claim: Claim,
    config: TrainingConfig,
    stop: threading.Event,
) -> None:
    constant_wer = sweep.floors.constant_wer
    trainer = make_trainer(job.trainer, config, corpus)
    identity = {
        "sweep": job.sweep_key,
        "corpus": job.corpus_hash,
        "trainer": trainer_name(job.trainer),
        **config.model_dump(),
    }
    files = checkpoints.trial_files(job.checkpoints, claim.number)
    reports = checkpoints.resume(files, identity, trainer)
    record(store, claim, reports, constant_wer)
    with Lease(store, claim, job.lease_seconds, lambda: trainer.step) as lease:
        # Step 5 comes before the next epoch, not after the last: a trial that comes back is judged again.
        while not finish_if_over(job.spec, store, sweep, claim, config, reports):
            if stop.is_set():
                store.hand_back(claim, "interrupted")
                return
            if is_paused(job.spec, store, sweep):
                store.hand_back(claim, "the sweep is paused")
                return
            if not store.reserve_epoch(claim, trainer.epoch + 1):
                store.hand_back(claim, "the sweep's budget is spent")
                return
            # Step 3
            try:
                report = trainer.train_epoch(lambda: stop.is_set() or lease.lost.is_set())
            except Stopped:
                if lease.lost.is_set():
                    raise LeaseLost(claim.number, claim.attempt) from None
                store.hand_back(claim, "interrupted")
                return
            if not store.renew(claim, job.lease_seconds):  # another worker's checkpoints must not be written over
                raise LeaseLost(claim.number, claim.attempt)
            better = is_best(report.wer, [r.wer for r in reports])
            reports.append(report)
            run = f"{job.sweep}/{claim.name or claim.number}"
            checkpoints.save(files, run, identity, trainer, config, corpus, reports, better=better)
            # Step 4
            record(store, claim, reports[-1:], constant_wer, before=reports[:-1])


def record(
    store: Store,
    claim: Claim,
    reports: Sequence[EpochReport],
    constant_wer: float,
    before: Sequence[EpochReport] = (),
) -> None:
    """Step 4: the epoch rows, each with the phase the run was in; rows that are there already stay."""
    wers = [r.wer for r in before]
    rows = []
    for report in reports:
        wers.append(report.wer)
        rows.append(EpochRow.of(report, phase_of(wers, constant_wer)))
    if rows:
        store.record(claim, rows)


ENDINGS = {
    "epochs": "trained all its {epochs} epochs",
    "patience": "stopped after {patience} epochs without a better WER (patience, counted from {patience_starts})",
}
VERDICTS = {"learned": "Learned", "never_learned": "Never learned", "collapsed": "Learned, then lost it"}


def finish_if_over(
    spec: SweepSpec,
    store: Store,
    sweep: SweepRow,
    claim: Claim,
    config: TrainingConfig,
    reports: Sequence[EpochReport],
) -> bool:
    """Steps 5 and 6: end the trial if it has ended by itself or is to be pruned; says whether it is over.

    A trial that is condemned and audited goes on, and no rule is asked about it again.
    """
    constant_wer = sweep.floors.constant_wer
    wers = [r.wer for r in reports]
    ended = why_ended(reports, config, constant_wer)
    if ended == "diverged":
        _stop(store, sweep, claim, _diverged(reports[-1]))
        return True
    condemned = store.decision(claim.trial_id)
    if ended is not None:
        verdict = verdict_of(wers, constant_wer)
        best = best_epoch(wers)
        result = f"best WER {best[1]:.1%} at epoch {best[0]}" if best else "no finite WER"
        floor = f"the best constant sentence scores {constant_wer:.1%}"
        how = ENDINGS[ended].format(**config.model_dump())
        reason = f"{VERDICTS[verdict]}: {how}; {result}, {floor}."
        if condemned:
            reason += f" Audited: the rule {condemned.rule} would have stopped it at epoch {condemned.epoch}."
        evidence = {"constant_wer": constant_wer, "epochs": len(reports)}
        store.finish(claim, TrialState.COMPLETE, verdict=verdict, reason=reason, rule=ended, evidence=evidence)
        return True
    if isinstance(spec.pruner, NoPruner) or not reports or condemned:
        return False
    trial = pruning.History(claim.number, reports, config, constant_wer)
    siblings = histories(spec, store, sweep, without=claim.trial_id)
    if isinstance(spec.pruner, Plateau):
        decision = pruning.decide(
            trial,
            siblings,
            sweep.floors,
            dev_sequences=sweep.facts.get("dev_sequences"),
            grace_epochs=spec.pruner.grace_epochs,
        )
    else:
        decision = decide_by(spec.pruner, trial, siblings, study_name=sweep.name)
    if decision is None:
        return False
    if is_audited(spec.seed, claim.number, spec.pruner.audit_share):
        log.info("trial %d condemned, and audited: %s", claim.number, decision.reason)
        store.audit(claim, DecisionRow(claim.trial_id, claim.number, action="audited", **_fields(decision)))
        return False
    _stop(store, sweep, claim, decision)
    return True


def _diverged(last: EpochReport) -> pruning.Decision:
    rate = last.metrics.get("optim/lr")
    return pruning.Decision(
        "diverged",
        "diverged",
        f"Diverged: {last.skipped_steps} of {last.steps_in_epoch} steps of epoch {last.epoch} were not finite"
        f"{f' at learning rate {rate:.2g}' if rate else ''}.",
        f"At most {DIVERGED_SHARE:.0%} of the steps would have kept it: try a lower learning rate.",
        last.epoch,
        {"steps": last.steps_in_epoch, "skipped_steps": last.skipped_steps},
        {"share": DIVERGED_SHARE},
    )


def _stop(store: Store, sweep: SweepRow, claim: Claim, decision: pruning.Decision) -> None:
    log.info("trial %d pruned: %s", claim.number, decision.reason)
    store.finish(
        claim,
        TrialState.PRUNED,
        verdict=decision.verdict,
        reason=f"{decision.reason} {decision.counterfactual}",
        rule=decision.rule,
        evidence={**decision.evidence, "constant_wer": sweep.floors.constant_wer},
        decision=DecisionRow(claim.trial_id, claim.number, action="stopped", **_fields(decision)),
    )


def _fields(decision: pruning.Decision) -> dict[str, Any]:
    return {**asdict(decision), "siblings": list(decision.siblings)}


def is_paused(spec: SweepSpec, store: Store, sweep: SweepRow) -> bool:
    """Whether the sweep is to go on no further for now. Where nothing takes off it alarms here, once."""
    sweep = _reread(store, sweep)
    if sweep.state is not SweepState.RUNNING:
        return True
    trials = store.trials(sweep.id)
    took_off = sweep.floors.constant_wer - TAKEOFF_MARGIN
    if "alarm" in sweep.facts or any(t.best_wer is not None and t.best_wer <= took_off for t in trials):
        return False
    failed = {trial.number for trial in trials if trial.state is TrialState.FAILED}
    seen = [history for history in histories(spec, store, sweep) if history.number not in failed]
    found = alarm(seen, sweep.floors, sweep.budget["trials"], sweep.facts.get("dev_sequences"))
    if found is None:
        return False
    cause = found.cause.replace("_", " ")
    reason = f"nothing takes off (likely cause: {cause}); run it again to go on all the same"
    pause = spec.on_alarm == "pause"
    if store.raise_alarm(sweep.id, found.as_json(), reason if pause else None):
        log.warning("the sweep alarms: %s", found.sentence)
    return pause


def histories(spec: SweepSpec, store: Store, sweep: SweepRow, without: int | None = None) -> list[pruning.History]:
    """The sweep's trials as the rules see them, but for the one with the id `without`."""
    rows = store.sweep_epochs(sweep.id)
    return [
        pruning.History(
            trial.number,
            [row.report() for row in rows[trial.id]],
            config_of(spec, trial),
            sweep.floors.constant_wer,
            ended=trial.state.terminal,
            stopped=trial.state.terminal and trial.state is not TrialState.COMPLETE,
        )
        for trial in store.trials(sweep.id)
        if trial.id != without and rows.get(trial.id)
    ]


def tell(store: Store, study: Study, sweep_id: int) -> None:
    """Step 6, second half: Optuna hears of every finished trial it has not heard of."""
    for trial in store.untold(sweep_id):
        study.tell(trial, best_at_rungs([row.report() for row in store.epochs(trial.id)]))
        store.mark_told(trial.id)


def best_at_rungs(reports: Sequence[EpochReport]) -> dict[int, float]:
    """Epoch to best finite WER until then, at epochs 1, 2, 4, 8, ... and the last: what Optuna's record keeps."""
    wers = [r.wer for r in reports]
    rungs = [r.epoch for r in reports if r.epoch & (r.epoch - 1) == 0 or r is reports[-1]]
    best = {epoch: best_epoch(wers[:epoch]) for epoch in rungs}
    return {epoch: found[1] for epoch, found in best.items() if found}
