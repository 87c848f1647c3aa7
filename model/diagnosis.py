"""What a run is doing and what it came to: pure functions of its WER curve and its corpus's floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["checking", "plateau", "learning"]
Verdict: TypeAlias = Literal["learned", "never_learned", "collapsed", "too_slow", "stalled", "diverged", "data_fault"]

TAKEOFF_MARGIN = 0.05
"""A run has taken off when its dev WER is at least this much below the best constant sentence's."""

DIVERGED_SHARE = 0.01
"""An epoch with more than this share of non-finite steps is diverged."""

RELAPSE_EPOCHS = 3
"""A run has collapsed when so many last epochs are back at the constant sentence's WER."""


def takeoff_epoch(wers: Sequence[float], constant_wer: float) -> int | None:
    """The first epoch (1-based) whose dev WER shows that the input is used, or None.

    Args:
        wers: dev WER of epochs 1, 2, ... (fractions).
        constant_wer: WER of the best constant sentence.
    """
    return next((i for i, wer in enumerate(wers, start=1) if wer <= constant_wer - TAKEOFF_MARGIN), None)


def phase_of(wers: Sequence[float], constant_wer: float) -> Phase:
    """`checking` before the first epoch ends, `plateau` until takeoff, then `learning`."""
    if not wers:
        return "checking"
    return "plateau" if takeoff_epoch(wers, constant_wer) is None else "learning"


def is_diverged(steps: int, skipped: int) -> bool:
    """Whether an epoch of `steps` batches, `skipped` of them non-finite, is diverged."""
    return skipped > DIVERGED_SHARE * steps


def verdict_of(wers: Sequence[float], constant_wer: float) -> Verdict:
    """What a run that ended by itself (epochs done, or out of patience) came to."""
    if takeoff_epoch(wers, constant_wer) is None:
        return "never_learned"
    last = wers[-RELAPSE_EPOCHS:]
    if len(last) == RELAPSE_EPOCHS and all(not wer < constant_wer for wer in last):  # NaN counts as lost
        return "collapsed"
    return "learned"


def is_best(wer: float, before: Sequence[float]) -> bool:
    """Whether `wer` is lower than every finite WER before it; NaN never is."""
    best = best_epoch(before)
    return wer < best[1] if best else math.isfinite(wer)


def best_epoch(wers: Sequence[float]) -> tuple[int, float] | None:
    """Epoch (1-based) and value of the lowest finite WER, the earlier one of equals; None if there is none."""
    finite = [(wer, epoch) for epoch, wer in enumerate(wers, start=1) if math.isfinite(wer)]
    if not finite:
        return None
    wer, epoch = min(finite)
    return epoch, wer
