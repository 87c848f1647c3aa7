"""When a run ends by itself, as pure functions of its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from model.diagnosis import is_diverged, takeoff_epoch
from model.types import EpochReport, TrainingConfig

Ending: TypeAlias = Literal["epochs", "patience", "diverged"]


def out_of_patience(
    wers: Sequence[float], takeoff: int | None, patience: int, starts: Literal["takeoff", "epoch1"]
) -> bool:
    """Whether `patience` epochs have passed without a better dev WER.

    Args:
        wers: dev WER of epochs 1, 2, ...
        takeoff: epoch of takeoff (1-based), if there was one.
        patience: epochs.
        starts: `takeoff` does not count the plateau before takeoff, where WER cannot improve; `epoch1` does, as
            the user's original script did.
    """
    begin = 1 if starts == "epoch1" else takeoff
    if begin is None or not wers:
        return False
    best_epoch, best = begin, float("inf")
    for epoch, wer in enumerate(wers, start=1):
        if epoch >= begin and wer < best:  # NaN is never better
            best_epoch, best = epoch, wer
    return len(wers) - best_epoch >= patience


def why_ended(reports: Sequence[EpochReport], config: TrainingConfig, constant_wer: float) -> Ending | None:
    """Why a run with these epochs (1, 2, ... in order) is over, or None while it goes on.

    Args:
        constant_wer: dev WER of the best constant sentence (fraction).
    """
    if not reports:
        return None
    if is_diverged(reports[-1].steps_in_epoch, reports[-1].skipped_steps):
        return "diverged"
    if reports[-1].epoch >= config.epochs:
        return "epochs"
    wers = [report.wer for report in reports]
    if out_of_patience(wers, takeoff_epoch(wers, constant_wer), config.patience, config.patience_starts):
        return "patience"
    return None
