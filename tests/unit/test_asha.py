"""ASHA in the replays is that of Ray Tune: the same decisions on the recorded runs, epoch for epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "pruning"))

import policies
import sweep as replays
import tables


class Beside:
    """Our rule, with Ray's scheduler beside it."""

    def __init__(self, scheduler: Any, make: replays.MakePolicy) -> None:
        self.scheduler, self.make = scheduler, make
        self.stopped, self.went_on = 0, 0

    def __call__(self, seed: int) -> Callable[[replays.Trial, Sequence[replays.Trial]], replays.Stop | None]:
        ours, known = self.make(seed), {}

        def stops(trial: replays.Trial, others: Sequence[replays.Trial]) -> replays.Stop | None:
            if id(trial) not in known:
                known[id(trial)] = SimpleNamespace(trial_id=str(len(known)), held=trial)
                self.scheduler.on_trial_add(None, known[id(trial)])
            result = {"training_iteration": trial.epochs, "wer": trial.run.wers[trial.epochs - 1]}
            theirs = self.scheduler.on_trial_result(None, known[id(trial)], result)
            stop = ours(trial, others)
            assert (stop is not None) == (theirs == "STOP"), (trial.run.name, trial.epochs)
            self.stopped, self.went_on = self.stopped + (stop is not None), self.went_on + (stop is None)
            return stop

        return stops


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(("grace", "factor"), [(1, 3), (2, 4), (4, 2)])
def test_asha_decides_as_ray_tune_does(grace: int, factor: int, workers: int) -> None:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    runs = tables.read_tables(names=["an4"])["an4"]
    settings = {"grace_period": grace, "reduction_factor": factor, "max_t": max(run.epochs for run in runs)}
    scheduler = AsyncHyperBandScheduler(metric="wer", mode="min", **settings)
    beside = Beside(scheduler, policies.asha(grace, factor))
    replays.replay(beside, replays.in_random_order(runs, 0), 0, len(runs), workers)
    assert beside.stopped > 10
    assert beside.went_on > 30
