"""What a learning-rate range test means for a sweep: the config to test, the rates to search, one trial. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.range_test import FEWEST_STEPS, STEPS, RangeTest
from model.types import BUILT_IN, TrainingConfig, mixed_seed
from sweeps.records import PlannedTrial
from sweeps.spec import Choices, FloatRange, SweepSpec

TRIAL = "range-test"
"""Name of the trial at the rate that the test suggests."""

PICTURE, NUMBERS = "range-test.png", "range-test.json"
"""The test's files, in the sweep's folder of pictures."""

NARROWEST = 3.0
"""Bounds must leave the sampler this much between the lowest and the highest rate: else a test that was misled would
decide the search instead of narrowing it."""


@dataclass(frozen=True)
class Proposal:
    """What a test comes to within a sweep's space."""

    bounds: FloatRange | None
    """The rates to search; None: those of the spec."""
    trial: PlannedTrial | None
    note: str
    """What was made of it, in a sentence."""


def why_not(spec: SweepSpec, trainer: str, updates_per_epoch: int) -> str | None:
    """Why a sweep goes without the test, as a sentence; None if it may have one."""
    rates = spec.space.learning_rate
    if trainer != BUILT_IN:
        return f"none: it ramps the {BUILT_IN} trainer, and this sweep is trained by {trainer}"
    if rates.low == rates.high:
        return f"none: the learning rate is fixed at {rates.low:g}"
    if steps_of(spec, updates_per_epoch) < FEWEST_STEPS:
        return (
            f"none: it takes {FEWEST_STEPS} updates at least, and a whole trial has only "
            f"{spec.trainer.epochs * updates_per_epoch}"
        )
    return None


def steps_of(spec: SweepSpec, updates_per_epoch: int) -> int:
    """Steps of the ramp: never more than the updates of one trial."""
    return min(STEPS, spec.trainer.epochs * updates_per_epoch)


def config_of_test(spec: SweepSpec) -> TrainingConfig:
    """The trainer's config with the other parameters in the middle of their ranges (of choices: the trainer's own, or
    the first), and a seed of its own.
    """
    seeds = {"seed": mixed_seed(spec.seed, "range test"), "data_seed": spec.seed}
    return spec.trainer.with_values({**seeds, **_middles(spec)})


def proposal(spec: SweepSpec, test: RangeTest) -> Proposal:
    """Hold a test against the space that the spec gives."""
    space = spec.space.learning_rate
    low = space.low if test.low is None else max(space.low, test.low)
    high = space.high if test.high is None else min(space.high, test.high)
    bounds: FloatRange | None = None
    if (low, high) == (space.low, space.high):
        low, high = space.low, space.high
        note = f"The learning rates of the spec, {space.low:.1e} to {space.high:.1e}, are searched as they are."
    elif high < NARROWEST * low:
        asked = " to ".join("anything" if rate is None else f"{rate:.1e}" for rate in (test.low, test.high))
        low, high = space.low, space.high
        note = (
            f"The test proposes {asked}, which has less than a {NARROWEST:g}-fold range in common with the spec's "
            f"{space.low:.1e} to {space.high:.1e}: those are searched as they are."
        )
    else:
        bounds = FloatRange(low=low, high=high, log=space.log)
        note = (
            f"Learning rates from {low:.1e} to {high:.1e} are searched, of the spec's {space.low:.1e} to "
            f"{space.high:.1e}."
        )
    if test.suggested is None:
        return Proposal(bounds, None, note)
    rate = float(f"{min(max(test.suggested, low), high):.3g}")
    return Proposal(
        bounds,
        PlannedTrial(TRIAL, {"learning_rate": min(max(rate, low), high), **_middles(spec)}, {}, in_space=True),
        note,
    )


def _middles(spec: SweepSpec) -> dict[str, Any]:
    own = spec.trainer.model_dump()
    values = {
        name: parameter.nearest(own[name]) if isinstance(parameter, Choices) else parameter.middle()
        for name, parameter in spec.space.parameters().items()
    }
    return {name: value for name, value in spec.space.only_active(values).items() if name != "learning_rate"}
