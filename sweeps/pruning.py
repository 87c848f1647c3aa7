"""When to stop a trial before its end: pure rules, histories in, a decision with its reason out.

In the plateau before takeoff WER is no evidence: at epoch 3 healthy runs show 100 % as well. There a trial is
stopped only if it is futile: the siblings that took off say how much cumulative learning rate ("LR-time") they had
an epoch before, and how far their log-probs then moved with time; a trial that will come nowhere near either within
its epochs goes. After takeoff the best WER so far is compared, at rungs counted from takeoff.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from statistics import median

from model.diagnosis import Verdict, best_epoch, takeoff_epoch
from model.floors import Floors
from model.types import EpochReport, TrainingConfig

Curve = Sequence[EpochReport]
"""Epochs 1, 2, ... of one trial."""


@dataclass(frozen=True)
class History:
    """One trial as the rules see it."""

    number: int
    reports: Curve
    config: TrainingConfig
    constant_wer: float
    """Dev WER of the best constant sentence (fraction)."""
    ended: bool = False
    """It gets no more epochs: finished, or stopped."""

    @cached_property
    def takeoff(self) -> int | None:
        """Epoch of takeoff (1-based), if there was one."""
        return takeoff_epoch([report.wer for report in self.reports], self.constant_wer)

FUTILE_SHARE = 0.4
"""A trial is futile if it will reach less than this share of what every sibling had before it took off: between
healthy runs of one corpus LR-time at takeoff differs 2.5-fold."""

EXHAUSTED_FACTOR = 3.0
"""... or if it has had so many times the LR-time, and the epochs, of the slowest sibling's takeoff."""

FIRST_RUNG = 8
"""Epochs after takeoff at which WER is first compared; then 16, 32, ... Four were too few: the WER of a healthy run
jumps by 20 points from one epoch to the next there."""

RUNG_SIBLINGS = 3
"""A rung with fewer siblings decides nothing."""

RUNG_MARGIN = 0.10
"""At a rung a trial is kept while it is within this WER of the best sibling, or not worse than the median one."""


@dataclass(frozen=True)
class Decision:
    """Why a trial is stopped."""

    rule: str
    verdict: Verdict
    reason: str
    """One sentence, with the numbers, for a person."""
    counterfactual: str
    """What would have kept the trial, in a sentence."""
    epoch: int
    """The epoch after which it was stopped."""
    numbers: dict[str, float]
    """What was measured, by name; finite."""
    thresholds: dict[str, float]
    """What it was held against, by name; finite."""
    siblings: tuple[int, ...] = field(default=())
    """Numbers of the trials it was compared with, in ascending order."""

    @property
    def evidence(self) -> dict[str, float]:
        """The numbers and thresholds behind the sentence."""
        return {"epoch": self.epoch, **self.numbers, **self.thresholds, "siblings": len(self.siblings)}


def decide(
    trial: History,
    siblings: Sequence[History],
    floors: Floors,
    *,
    dev_sequences: int | None = None,
    grace_epochs: int | None = None,
) -> Decision | None:
    """Whether to stop a trial after its last epoch; None lets it go on.

    Args:
        trial: with at least one epoch.
        siblings: the sweep's other trials, finished or not.
        floors: what knowing nothing scores on the sweep's corpus.
        dev_sequences: sequences of dev, where known.
        grace_epochs: nothing is stopped before; default a fifth of the epochs, at least 4.
    """
    curve, config = trial.reports, trial.config
    if curve[-1].epoch < (grace_epochs or max(4, config.epochs // 5)):
        return None
    took_off = [(s.number, s.takeoff, s.reports) for s in siblings if s.takeoff]
    if trial.takeoff is not None:
        return _too_slow(curve, trial.takeoff, took_off)
    if not took_off:
        return None
    return _futile(curve, took_off, config) or _exhausted(curve, took_off)


TookOff = Sequence[tuple[int, int, Curve]]
"""Number, epoch of takeoff and epochs of each sibling that took off."""


def _futile(curve: Curve, took_off: TookOff, config: TrainingConfig) -> Decision | None:
    """Rate too low: neither its LR-time nor its time spread will come near a takeoff in the epochs left."""
    now = curve[-1]
    # Their last epoch in the plateau: takeoff came somewhere in the next one. Who left in epoch 1 tells nothing.
    compared = sorted(number for number, at, s in took_off if at > 1 and isfinite(_time_spread(s[at - 2])))
    before_takeoff = [s[at - 2] for _, at, s in took_off if at > 1 and isfinite(_time_spread(s[at - 2]))]
    half = curve[(len(curve) - 1) // 2]
    spread, before = _time_spread(now), _time_spread(half)
    if not before_takeoff or not isfinite(spread) or not isfinite(before):
        return None  # without its numbers the rule does not judge
    left = config.epochs - now.epoch
    steps = now.step / now.epoch
    lr_time_end = now.lr_time + left * steps * config.learning_rate  # as if at its peak rate from here on
    lr_time_needed = min(r.lr_time for r in before_takeoff)
    growth = max(0.0, spread - before) / max(1, now.epoch - half.epoch)
    spread_end = spread + left * growth
    spread_needed = min(map(_time_spread, before_takeoff))

    if not (lr_time_end < FUTILE_SHARE * lr_time_needed and spread_end < FUTILE_SHARE * spread_needed):
        return None
    # Every update was skipped so far, and no epoch is left: then no rate can be named.
    rate = config.learning_rate * FUTILE_SHARE * lr_time_needed / lr_time_end if lr_time_end else math.inf
    return Decision(
        "futile",
        "never_learned",
        f"Not learning: by its last epoch ({config.epochs}) it would have {lr_time_end:.2g} of cumulative learning "
        f"rate and a time spread of {spread_end:.2g} nats; {len(before_takeoff)} other trials had at least "
        f"{lr_time_needed:.2g} and {spread_needed:.2g} before they took off (stopped at epoch {now.epoch}, under "
        f"{FUTILE_SHARE:.0%} of both; WER {now.wer:.1%}).",
        f"A learning rate above {rate:.1e} would have kept it.",
        now.epoch,
        {"lr_time_end": lr_time_end, "spread_end": spread_end},
        {"lr_time_needed": lr_time_needed, "spread_needed": spread_needed, "share": FUTILE_SHARE},
        tuple(compared),
    )


def _time_spread(report: EpochReport) -> float:
    """NaN where the trainer does not report it."""
    return report.metrics.get("spread/time", math.nan)


def _exhausted(curve: Curve, took_off: TookOff) -> Decision | None:
    """Still in the plateau long after every sibling that took off, in epochs and in LR-time."""
    now = curve[-1]
    latest = max(at for _, at, _ in took_off)
    most = max(s[at - 1].lr_time for _, at, s in took_off)
    if now.epoch < EXHAUSTED_FACTOR * latest or now.lr_time < EXHAUSTED_FACTOR * most:
        return None
    return Decision(
        "exhausted",
        "never_learned",
        f"Not learning: WER {now.wer:.1%} after {now.epoch} epochs and {now.lr_time:.2g} of cumulative learning rate; "
        f"the slowest of {len(took_off)} trials that took off needed {latest} epochs and {most:.2g} "
        f"({EXHAUSTED_FACTOR:g} times both are allowed).",
        "A lower learning rate may have changed this.",
        now.epoch,
        {"lr_time": now.lr_time},
        {"latest_takeoff": latest, "lr_time_needed": most, "factor": EXHAUSTED_FACTOR},
        tuple(sorted(number for number, _, _ in took_off)),
    )


def _too_slow(curve: Curve, takeoff: int, took_off: TookOff) -> Decision | None:
    """After takeoff: worse than the siblings were, as many epochs after theirs."""
    since = curve[-1].epoch - takeoff
    if since < FIRST_RUNG or since & (since - 1):
        return None
    mine = _best_until(curve, takeoff + since)
    compared = [(number, at, s) for number, at, s in took_off if len(s) >= at + since]
    others = [_best_until(s, at + since) for _, at, s in compared]
    if len(others) < RUNG_SIBLINGS or mine <= median(others) or mine <= min(others) + RUNG_MARGIN:
        return None
    return Decision(
        "too_slow",
        "too_slow",
        f"Learns, but too slowly to win: best WER {mine:.1%} {since} epochs after its takeoff at epoch {takeoff}; at "
        f"that point {len(others)} other trials had {median(others):.1%} in the median and {min(others):.1%} at best.",
        f"A WER of {max(median(others), min(others) + RUNG_MARGIN):.1%} would have kept it.",
        curve[-1].epoch,
        {"since_takeoff": since, "best_wer": mine},
        {"median": median(others), "best": min(others), "margin": RUNG_MARGIN},
        tuple(sorted(number for number, _, _ in compared)),
    )


def _best_until(curve: Curve, epoch: int) -> float:
    best = best_epoch([r.wer for r in curve[:epoch]])
    assert best is not None  # it took off, so some WER was finite
    return best[1]
