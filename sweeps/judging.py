"""Steps 4 to 6 of a trial: its epochs are recorded, it is judged, and ended where that says so. See worker.py."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

from model.diagnosis import DIVERGED_SHARE, TAKEOFF_MARGIN, best_epoch, phase_of, verdict_of
from model.early_stopping import why_ended
from model.examples import checked
from model.types import EpochReport, TrainingConfig
from sweeps import pruning
from sweeps.alarm import alarm
from sweeps.audit import is_audited
from sweeps.errors import SweepNotFound
from sweeps.optuna_pruners import decide_by
from sweeps.records import Claim, DecisionRow, EpochRow, SweepRow, TrialRow
from sweeps.spec import NoPruner, Plateau, SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from sweeps.summary import config_of

log = logging.getLogger(__name__)


def reread(store: Store, sweep: SweepRow) -> SweepRow:
    """The sweep as it is now.

    Raises:
        SweepNotFound: it was deleted.
    """
    found = store.find_sweep(sweep.name)
    if found is None or found.id != sweep.id:
        raise SweepNotFound(sweep.name)
    return found


def record(
    store: Store,
    claim: Claim,
    reports: Sequence[EpochReport],
    constant_wer: float,
    before: Sequence[EpochReport] = (),
) -> None:
    """Step 4: the epoch rows, each with the phase the run was in; rows that are there already stay."""
    rows = rows_of(reports, constant_wer, before)
    if rows:
        shown = {report.epoch: checked(report.examples) for report in reports if report.examples is not None}
        store.record(claim, rows, shown)


def rows_of(reports: Sequence[EpochReport], constant_wer: float, before: Sequence[EpochReport] = ()) -> list[EpochRow]:
    """Epochs as they are recorded, after those `before`."""
    wers = [r.wer for r in before]
    rows = []
    for report in reports:
        wers.append(report.wer)
        rows.append(
            EpochRow.of(report, phase_of(wers, constant_wer), min(filter(math.isfinite, wers), default=math.nan))
        )
    return rows


ENDINGS = {
    "epochs": "trained all its {epochs} epochs",
    "patience": "stopped after {patience} epochs without a better WER (patience, counted from {patience_starts})",
}
VERDICTS = {"learned": "Learned", "never_learned": "Never learned", "collapsed": "Learned, then lost it"}


class Judge:
    """Steps 4 to 6 of one sweep's trials, in one thread: how a trial that is over looks to the rules is seen once."""

    def __init__(self, spec: SweepSpec, store: Store, sweep: SweepRow) -> None:
        self._spec, self._store, self._sweep = spec, store, sweep
        self._over: set[int] = set()
        """Numbers of the trials that are over and were looked at: they are looked at no more."""
        self._ended: dict[int, pruning.History] = {}
        """Those of them that have epochs, by the trial's id, ..."""
        self._ranking = pruning.Ranking()
        """... and as decisions ask for them."""
        self._took_off = False
        """Whether any trial has."""
        self._condemned: dict[tuple[int, int], bool] = {}
        """By id and attempt of a trial that is trained here: nobody else condemns it meanwhile."""

    def judge_all(
        self, claim: Claim, config: TrainingConfig, reports: Sequence[EpochReport], first: int
    ) -> TrialState | None:
        """Steps 4 to 6 for each epoch in turn, as if the database had never been away: recorded, then judged.

        Args:
            reports: every epoch of the trial.
            first: the first epoch to record and judge; 0: before its first.

        Returns: how the trial ended; None if it goes on. Epochs after the one that ended it are dropped.
        """
        constant_wer = self._sweep.floors.constant_wer
        for epoch in range(first, len(reports) + 1):
            if epoch:
                record(self._store, claim, reports[epoch - 1 : epoch], constant_wer, before=reports[: epoch - 1])
            state = self.finish_if_over(claim, config, reports[:epoch])
            if state is not None:
                return state
        return None

    def finish_if_over(self, claim: Claim, config: TrainingConfig, reports: Sequence[EpochReport]) -> TrialState | None:
        """Steps 5 and 6: end the trial if it has ended by itself or is to be pruned; says how it ended, if it did.

        A trial that is condemned and audited goes on, and no rule is asked about it again.
        """
        spec, store, sweep = self._spec, self._store, self._sweep
        constant_wer = sweep.floors.constant_wer
        ended = why_ended(reports, config, constant_wer)
        if ended == "diverged":
            return _stop(store, sweep, claim, _diverged(reports[-1]))
        if ended is not None:
            _complete(store, claim, config, reports, ended, constant_wer)
            return TrialState.COMPLETE
        if isinstance(spec.pruner, NoPruner) or not reports or self._is_condemned(claim):
            return None
        trial = pruning.History(claim.number, reports, config, constant_wer)
        if isinstance(spec.pruner, Plateau):
            under_way = self._look(claim.trial_id)
            decision = pruning.decide(
                trial,
                self._ranking.beside(under_way),
                sweep.floors,
                dev_sequences=sweep.facts.get("dev_sequences"),
                grace_epochs=spec.pruner.grace_epochs,
            )
        else:
            decision = decide_by(spec.pruner, trial, self.histories(claim.trial_id), study_name=sweep.name)
        if decision is None:
            return None
        if is_audited(spec.seed, claim.number, spec.pruner.audit_share):
            log.info("trial %d condemned, and audited: %s", claim.number, decision.reason)
            del self._condemned[claim.trial_id, claim.attempt]  # looked up again, should the answer be lost
            store.audit(claim, DecisionRow(claim.trial_id, claim.number, action="audited", **_fields(decision)))
            self._condemned[claim.trial_id, claim.attempt] = True
            return None
        return _stop(store, sweep, claim, decision)

    def _is_condemned(self, claim: Claim) -> bool:
        key = claim.trial_id, claim.attempt
        if key not in self._condemned:
            self._condemned[key] = self._store.decision(claim.trial_id) is not None
        return self._condemned[key]

    def is_paused(self, sweep: SweepRow) -> bool:
        """Whether the sweep, as it is now, is to go on no further for now. Where nothing takes off it alarms here,
        once. One that is being stopped lets its running trials finish.
        """
        if sweep.state is SweepState.STOPPING:
            return False
        if sweep.state is not SweepState.RUNNING:
            return True
        if self._took_off or "alarm" in sweep.facts:
            return False
        trials = self._store.siblings(sweep)
        took_off = sweep.floors.constant_wer - TAKEOFF_MARGIN
        self._took_off = any(t.best_wer is not None and t.best_wer <= took_off for t in trials)
        if self._took_off:
            return False
        failed = {trial.number for trial in trials if trial.state is TrialState.FAILED}
        seen = [history for history in self.histories() if history.number not in failed]
        found = alarm(seen, sweep.floors, sweep.budget["trials"], sweep.facts.get("dev_sequences"))
        if found is None:
            return False
        cause = found.cause.replace("_", " ")
        reason = f"nothing takes off (likely cause: {cause}); run it again to go on all the same"
        pause = self._spec.on_alarm == "pause"
        if self._store.raise_alarm(sweep.id, found.as_json(), reason if pause else None):
            log.warning("the sweep alarms: %s", found.sentence)
        return pause

    def histories(self, without: int | None = None) -> list[pruning.History]:
        """The sweep's trials as the rules see them, by number, but for the one with the id `without`."""
        under_way = self._look(without)
        ended = (history for trial_id, history in self._ended.items() if trial_id != without)
        return sorted([*ended, *under_way], key=attrgetter("number"))

    def _look(self, without: int | None) -> list[pruning.History]:
        """Takes in the trials that are over by now; returns the others with epochs, but for the one with that id."""
        under_way = []
        for trial, reports in self._store.curves(self._sweep, without, known=self._over):
            history = history_of(self._spec, self._sweep, trial, reports) if reports else None
            if trial.state.terminal:
                self._over.add(trial.number)
                if history is not None:
                    self._ended[trial.id] = history
                    self._ranking.add(history)
            elif history is not None:
                under_way.append(history)
        return under_way


def _complete(
    store: Store,
    claim: Claim,
    config: TrainingConfig,
    reports: Sequence[EpochReport],
    ended: str,
    constant_wer: float,
) -> None:
    wers = [r.wer for r in reports]
    verdict, best, condemned = verdict_of(wers, constant_wer), best_epoch(wers), store.decision(claim.trial_id)
    result = f"best WER {best[1]:.1%} at epoch {best[0]}" if best else "no finite WER"
    floor = f"the best constant sentence scores {constant_wer:.1%}"
    how = ENDINGS[ended].format(**config.model_dump())
    reason = f"{VERDICTS[verdict]}: {how}; {result}, {floor}."
    if condemned:
        reason += f" Audited: the rule {condemned.rule} would have stopped it at epoch {condemned.epoch}."
    evidence = {"constant_wer": constant_wer, "epochs": len(reports)}
    store.finish(claim, TrialState.COMPLETE, verdict=verdict, reason=reason, rule=ended, evidence=evidence)


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


def _stop(store: Store, sweep: SweepRow, claim: Claim, decision: pruning.Decision) -> TrialState:
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
    return TrialState.PRUNED


def _fields(decision: pruning.Decision) -> dict[str, Any]:
    return {**asdict(decision), "siblings": list(decision.siblings)}


def history_of(spec: SweepSpec, sweep: SweepRow, trial: TrialRow, reports: Sequence[EpochReport]) -> pruning.History:
    """A trial as the rules see it."""
    return pruning.History(
        trial.number,
        reports,
        config_of(spec, trial),
        sweep.floors.constant_wer,
        ended=trial.state.terminal,
        stopped=trial.state.terminal and trial.state is not TrialState.COMPLETE,
    )


def tell(store: Store, study: Study, sweep_id: int, trial_id: int | None = None) -> None:
    """Step 6, second half: Optuna hears of every finished trial that it has not heard of, or of that one alone."""
    for trial in store.untold(sweep_id, trial_id):
        study.tell(trial, best_at_rungs([row.report() for row in store.epochs(trial.id)]))
        store.mark_told(trial.id)


def best_at_rungs(reports: Sequence[EpochReport]) -> dict[int, float]:
    """Epoch to best finite WER until then, at epochs 1, 2, 4, 8, ... and the last: what Optuna's record keeps."""
    wers = [r.wer for r in reports]
    rungs = [r.epoch for r in reports if r.epoch & (r.epoch - 1) == 0 or r is reports[-1]]
    best = {epoch: best_epoch(wers[:epoch]) for epoch in rungs}
    return {epoch: found[1] for epoch, found in best.items() if found}
