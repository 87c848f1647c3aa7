from __future__ import annotations

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from model.schedule import learning_rate_at, plateau_cuts
from model.types import TrainingConfig

torch.optim.SGD([torch.zeros(1)])  # torch imports half of itself with the first optimizer: not on a test's time

losses_seen = st.lists(
    st.one_of(st.floats(0, 200), st.sampled_from([1.0, 1.00005, 1.0002, math.nan, math.inf])), max_size=60
)
configs = st.builds(
    TrainingConfig,
    learning_rate=st.floats(1e-6, 1.0),
    schedule=st.sampled_from(["cosine_restarts", "plateau", "step", "constant"]),
    warmup_start_factor=st.floats(0.01, 1.0),
    warmup_epochs=st.floats(0, 10),
    restart_epochs=st.integers(1, 20),
    plateau_patience=st.integers(0, 10),
    step_epochs=st.integers(1, 60),
    min_learning_rate=st.floats(0, 1e-3),
)


@given(configs, st.integers(0, 3000), st.integers(1, 50), losses_seen)
def test_the_rate_lies_between_floor_and_peak(
    config: TrainingConfig, step: int, steps_per_epoch: int, losses: list[float]
) -> None:
    rate = learning_rate_at(step, steps_per_epoch, losses, config)
    epoch = step / steps_per_epoch
    if config.warmup_start_factor < 1 and epoch < config.warmup_epochs:
        floor = config.learning_rate * config.warmup_start_factor
    elif config.schedule in ("plateau", "cosine_restarts"):
        floor = min(config.min_learning_rate, config.learning_rate)
    elif config.schedule == "step":
        floor = config.learning_rate * config.step_factor ** (epoch // config.step_epochs)
    else:
        floor = config.learning_rate
    assert floor * (1 - 1e-12) <= rate <= config.learning_rate * (1 + 1e-12)


@given(configs, st.integers(1, 30))
def test_the_warm_up_only_rises(config: TrainingConfig, steps_per_epoch: int) -> None:
    assume(config.warmup_start_factor < 1)
    updates = math.ceil(config.warmup_epochs * steps_per_epoch)
    rates = [learning_rate_at(step, steps_per_epoch, [], config) for step in range(updates)]
    assert rates == sorted(rates)
    if config.schedule == "constant":
        assert learning_rate_at(updates, steps_per_epoch, [], config) == config.learning_rate


@given(losses_seen, st.integers(0, 6))
def test_plateau_cuts_is_torchs(losses: list[float], patience: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0)
    for loss in losses:
        scheduler.step(loss)
    assert plateau_cuts(losses, patience) == -math.log2(optimizer.param_groups[0]["lr"])
