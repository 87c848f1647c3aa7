"""The learning rate as a pure function of the step and the dev losses so far: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence

from model.types import TrainingConfig


def learning_rate_at(step: int, steps_per_epoch: int, dev_losses: Sequence[float], config: TrainingConfig) -> float:
    """The learning rate of update `step` (0 is the first).

    A linear warm-up from `warmup_start_factor` rises with every step over `warmup_epochs`; then the schedule
    begins as if at its own epoch 0. At epoch starts the values are those of torch's LinearLR,
    CosineAnnealingWarmRestarts, ReduceLROnPlateau (mode min) and StepLR.

    Args:
        step: updates done before this one.
        steps_per_epoch: updates in one epoch.
        dev_losses: dev loss of each finished epoch, for `plateau`.
    """
    epoch = step / steps_per_epoch
    warmup = config.warmup_epochs if config.warmup_start_factor < 1 else 0.0
    if epoch < warmup:
        return config.learning_rate * (config.warmup_start_factor + (1 - config.warmup_start_factor) * epoch / warmup)
    epoch -= warmup
    peak, low = config.learning_rate, min(config.min_learning_rate, config.learning_rate)
    if config.schedule == "cosine_restarts":
        turn = math.pi * (epoch % config.restart_epochs) / config.restart_epochs
        return low + (peak - low) * (1 + math.cos(turn)) / 2
    if config.schedule == "step":
        return peak * config.step_factor ** int(epoch // config.step_epochs)
    if config.schedule == "plateau":
        cuts = plateau_cuts(dev_losses[math.ceil(warmup) :], config.plateau_patience)
        return max(peak * config.plateau_factor**cuts, low)
    return peak


def plateau_cuts(losses: Sequence[float], patience: int, threshold: float = 1e-4) -> int:
    """How often ReduceLROnPlateau (mode min, relative threshold) has cut the rate after these losses.

    A loss that is not finite is never better.
    """
    best, bad, cuts = math.inf, 0, 0
    for loss in losses:
        if math.isfinite(loss) and loss < best * (1 - threshold):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            cuts, bad = cuts + 1, 0
    return cuts
