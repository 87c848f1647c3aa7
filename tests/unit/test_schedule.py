from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from model.schedule import learning_rate_at, plateau_cuts
from model.types import TrainingConfig

STEPS = 7  # updates in an epoch
ORIGINAL = TrainingConfig(
    learning_rate=1e-4, warmup_start_factor=0.1, warmup_epochs=5, schedule="cosine_restarts", restart_epochs=10
)
FIXED = TrainingConfig(learning_rate=5e-4, schedule="plateau")


def at_epoch_starts(config: TrainingConfig, epochs: int, dev_losses: list[float] | None = None) -> list[float]:
    """Our rate at the first update of each epoch, which knows the dev losses of the epochs before it."""
    losses = dev_losses or [1.0] * epochs
    return [learning_rate_at(epoch * STEPS, STEPS, losses[:epoch], config) for epoch in range(epochs)]


def torch_rates(config: TrainingConfig, epochs: int, after: Callable[[Optimizer], LRScheduler]) -> list[float]:
    """What the user's script would set: LinearLR over the warm-up, then the main scheduler, stepped once an epoch."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = after(optimizer)
    if config.warmup_start_factor < 1:
        warmup = LinearLR(optimizer, config.warmup_start_factor, total_iters=int(config.warmup_epochs))
        scheduler = SequentialLR(optimizer, [warmup, scheduler], milestones=[int(config.warmup_epochs)])
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR uses an argument that torch deprecates
            scheduler.step()
    return rates


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("warmup", [3, 5])
def test_cosine_restarts_is_torchs(factor: float, warmup: int) -> None:
    config = ORIGINAL.with_values({"warmup_start_factor": factor, "warmup_epochs": warmup})
    expected = torch_rates(config, 37, lambda o: CosineAnnealingWarmRestarts(o, T_0=10, eta_min=1e-6))
    assert at_epoch_starts(config, 37) == pytest.approx(expected, rel=1e-9)


def test_the_users_original_run() -> None:
    rates = at_epoch_starts(ORIGINAL.with_values({"min_learning_rate": 0.0}), 16)
    assert rates[:6] == pytest.approx([1e-5, 2.8e-5, 4.6e-5, 6.4e-5, 8.2e-5, 1e-4])
    assert rates[10] == pytest.approx(5e-5)  # half a cosine after the warm-up
    assert rates[15] == pytest.approx(1e-4)  # restarted


@pytest.mark.parametrize("factor", [0.1, 1.0])
def test_step_is_torchs(factor: float) -> None:
    config = ORIGINAL.with_values({"schedule": "step", "learning_rate": 1e-3, "warmup_start_factor": factor})
    expected = torch_rates(config, 170, lambda o: StepLR(o, step_size=50, gamma=0.5))
    assert at_epoch_starts(config, 170) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] == pytest.approx(1.25e-4)  # it was cut three times


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_plateau_is_torchs_from_the_end_of_the_warm_up(factor: float) -> None:
    config = FIXED.with_values({"warmup_start_factor": factor, "warmup_epochs": 3})
    warmup = 3 if factor < 1 else 0
    better = [6.0 - 0.1 * i for i in range(8)]
    losses = [0.5] * warmup + better + [5.3 * (1 - 5e-5)] * 40 + [math.nan, 4.0] + [4.0] * 100
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = ReduceLROnPlateau(optimizer, mode="min", factor=0.5, patience=10, min_lr=1e-6)
    expected = [config.learning_rate * (0.5 + 0.5 * epoch / 3) for epoch in range(warmup)]
    for loss in losses[warmup:]:
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step(loss)
    assert at_epoch_starts(config, len(losses), losses) == pytest.approx(expected, rel=1e-9)
    assert expected[-1] == 1e-6  # down to the floor


def test_constant_stays_and_a_warm_up_of_one_is_none() -> None:
    config = ORIGINAL.with_values({"schedule": "constant", "warmup_start_factor": 1.0})
    assert {learning_rate_at(step, STEPS, [], config) for step in range(20 * STEPS)} == {1e-4}
    assert learning_rate_at(0, STEPS, [], ORIGINAL.with_values({"warmup_epochs": 0})) == 1e-4


def test_the_warm_up_rises_with_every_update_and_may_end_inside_an_epoch() -> None:
    config = ORIGINAL.with_values({"schedule": "constant", "warmup_epochs": 1.5})
    rates = [learning_rate_at(step, 4, [], config) for step in range(8)]
    assert rates == pytest.approx([1e-5, 2.5e-5, 4e-5, 5.5e-5, 7e-5, 8.5e-5, 1e-4, 1e-4])


def test_the_rate_is_a_function_of_its_arguments_alone() -> None:
    losses = [5.0, 4.0] + [4.0] * 12
    asked = [(step, tuple(losses[: step // STEPS])) for step in range(14 * STEPS)]
    forwards = {(step, seen): learning_rate_at(step, STEPS, seen, FIXED) for step, seen in asked}
    backwards = {(step, seen): learning_rate_at(step, STEPS, seen, FIXED) for step, seen in reversed(asked)}
    assert forwards == backwards
    assert losses == [5.0, 4.0] + [4.0] * 12


def test_a_peak_below_the_floor_is_not_raised() -> None:
    for schedule in ("plateau", "cosine_restarts"):
        config = FIXED.with_values({"schedule": schedule, "learning_rate": 1e-7})
        assert at_epoch_starts(config, 30, [1.0] * 30) == pytest.approx([1e-7] * 30)


@pytest.mark.parametrize(
    ("losses", "cuts"),
    [
        ([3.0, 2.0, 1.0], 0),
        ([1.0, 1.0, 1.0], 0),  # patience 2 forgives two epochs
        ([1.0, 1.0, 1.0, 1.0], 1),
        ([1.0, *[0.99995] * 6], 2),  # better by less than the threshold is not better
        ([math.nan] * 3, 1),
        ([math.inf, math.inf, 5.0, math.nan, math.inf], 0),
        ([-math.inf, 1.0, 0.5, 0.2, 0.1], 0),  # an overflow is never the best
    ],
)
def test_plateau_cuts(losses: list[float], cuts: int) -> None:
    assert plateau_cuts(losses, patience=2) == cuts
