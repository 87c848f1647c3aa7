"""How often the rules were wrong: a share of the trials they condemn runs on all the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.diagnosis import TAKEOFF_MARGIN, counted
from model.types import mixed_seed
from sweeps.records import DecisionRow, TrialRow
from sweeps.states import TrialState

WINNER_MARGIN = 0.005
"""A trial called too slow was a winner if it ended at a WER so much (fraction) better than the others': by less, two
trainings of one configuration differ."""

CONFIDENCE = 0.95
"""Of the interval around the error rate."""


def is_audited(seed: int, number: int, share: float) -> bool:
    """Whether trial `number` runs on where a rule condemns it: the same whatever the rule, the epoch and the worker.

    Args:
        seed: of the sweep.
        share: of the trials (0 to 1). Who is audited at a share is audited at any higher one.
    """
    return mixed_seed(seed, "audit", number) < share * 2**32


@dataclass(frozen=True)
class AuditReport:
    """What the rules cost and saved in one sweep. Trials that diverged are not counted: no rule spares them."""

    condemned: int
    audited: int
    """Of the condemned: run on all the same."""
    finished: int
    """Of the audited: ran to their own end, so that it is known whether the rule was right."""
    wrong_verdicts: tuple[int, ...]
    """Numbers of audited trials that were said not to learn, and did."""
    winners_killed: tuple[int, ...]
    """Numbers of audited trials that were called too slow, and ended better than every trial that was not audited."""
    error_rate: float | None
    """Share of the finished audits in which the rule was wrong; None while there is none."""
    interval: tuple[float, float] | None
    """Of the error rate, at CONFIDENCE: exact (Clopper and Pearson 1934)."""
    epochs_saved: int
    """Epochs planned and not trained, over the stopped trials: patience would have spared some of them as well."""
    epochs_audited: int
    """What the audits cost: epochs trained after the trial was condemned."""

    @property
    def sentence(self) -> str:
        """In words, for a person; empty where nothing was condemned."""
        if not self.condemned:
            return ""
        stopped = self.condemned - self.audited
        said = (
            f"The rules condemned {counted(self.condemned, 'trial')}: {stopped} stopped, which saved at most "
            f"{counted(self.epochs_saved, 'epoch')}, and {self.audited} audited (run on all the same), which cost "
            f"{self.epochs_audited}."
        )
        if self.error_rate is None or self.interval is None:
            return f"{said} How often they are wrong is not known yet: no audited trial has ended."
        wrong = len(self.wrong_verdicts) + len(self.winners_killed)
        low, high = self.interval
        said += (
            f" They were wrong about {wrong} of {self.finished} audited trials that have ended: {self.error_rate:.0%}, "
            f"and between {low:.1%} and {high:.1%} with {CONFIDENCE:.0%} confidence."
        )
        for numbers, what in (
            (self.wrong_verdicts, "said not to learn, and did"),
            (self.winners_killed, "called too slow, and better in the end than all that was not audited"),
        ):
            if numbers:
                said += f" Trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {what}."
        return said

    def as_json(self) -> dict[str, Any]:
        """JSON types only, with the sentence."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**values, "sentence": self.sentence}


def audit_report(
    trials: Sequence[TrialRow], decisions: Sequence[DecisionRow], planned_epochs: Mapping[int, int]
) -> AuditReport:
    """How often the rules of one sweep were wrong, as far as its audited trials tell.

    Args:
        trials: all of the sweep.
        decisions: against them.
        planned_epochs: epochs that each trial would have been trained, by its number.
    """
    by_number = {trial.number: trial for trial in trials}
    condemned = [decision for decision in decisions if decision.rule != "diverged"]
    audited = {decision.number: decision for decision in condemned if decision.action == "audited"}
    finished = {
        number: decision
        for number, decision in audited.items()
        if by_number[number].state in (TrialState.COMPLETE, TrialState.PRUNED)
    }
    # What the sweep would have found without its audits.
    best = min((t.best_wer for t in trials if t.number not in audited and t.best_wer is not None), default=None)
    wrong, killed = [], []
    for number, decision in sorted(finished.items()):
        trial = by_number[number]
        if decision.verdict == "too_slow":
            if trial.best_wer is not None and best is not None and trial.best_wer < best - WINNER_MARGIN:
                killed.append(number)
        elif trial.verdict == "learned" or (decision.verdict == "never_learned" and _took_off(trial)):
            wrong.append(number)
    errors = len(wrong) + len(killed)
    interval = _exact_interval(errors, len(finished)) if finished else None
    return AuditReport(
        condemned=len(condemned),
        audited=len(audited),
        finished=len(finished),
        wrong_verdicts=tuple(wrong),
        winners_killed=tuple(killed),
        error_rate=errors / len(finished) if finished else None,
        interval=interval,
        epochs_saved=sum(
            max(0, planned_epochs[d.number] - by_number[d.number].epochs) for d in condemned if d.action == "stopped"
        ),
        epochs_audited=sum(by_number[d.number].epochs - d.epoch for d in audited.values()),
    )


def _took_off(trial: TrialRow) -> bool:
    """Whether a trial that ended by itself, or diverged, ever did."""
    if trial.verdict in ("learned", "collapsed"):
        return True
    floor = trial.evidence.get("constant_wer")
    return floor is not None and trial.best_wer is not None and trial.best_wer <= floor - TAKEOFF_MARGIN


def _exact_interval(errors: int, trials: int) -> tuple[float, float]:
    from scipy.stats import binomtest  # takes a second to import: no command waits for it that does not ask

    found = binomtest(errors, trials).proportion_ci(CONFIDENCE, "exact")
    return float(found.low), float(found.high)
