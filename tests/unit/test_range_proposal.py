"""What a range test means for a sweep: bounds within its space, one trial, or neither."""

from __future__ import annotations

from typing import Any

import pytest

from model.range_test import FEWEST_STEPS, STEPS, Edges, Look, RangeTest
from model.types import BUILT_IN
from sweeps.range_test import NARROWEST, Proposal, config_of_test, proposal, steps_of, why_not
from sweeps.spec import FloatRange, IntRange, SweepSpec, differing_paths


def spec_of(**content: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "s", "corpus": "x", "trainer": {"epochs": 20}, **content})


def shown(low: float | None, high: float | None, suggested: float | None) -> RangeTest:
    look = Look(1, 1e-5, 1e-5, 4.0, 4.0, 0.1, 0.0, 0.0, 0)
    edges = Edges(low and 0.1, low, high and 4 * high)
    return RangeTest((look,), 400, 1.0, edges, low, high, suggested, 4.0, 4.0, 12.0, ("said",))


def made(low: float | None, high: float | None, suggested: float | None = 3e-3, **content: Any) -> Proposal:
    return proposal(spec_of(**content), shown(low, high, suggested))


def rates(low: float, high: float) -> dict[str, Any]:
    return {"space": {"learning_rate": {"low": low, "high": high, "log": True}}}


def test_the_bounds_are_what_space_and_test_have_in_common() -> None:
    found = made(1e-4, 1.5e-2)
    assert found.bounds == FloatRange(low=1e-4, high=1.5e-2, log=True)
    assert "1.0e-04 to 1.5e-02" in found.note
    assert made(1e-6, 1.5e-2).bounds == FloatRange(low=1e-5, high=1.5e-2, log=True)
    assert made(1e-4, 0.5).bounds == FloatRange(low=1e-4, high=2e-2, log=True)


def test_a_test_that_says_nothing_of_low_rates_leaves_them() -> None:
    found = made(None, 1e-3, None)
    assert found.bounds == FloatRange(low=1e-5, high=1e-3, log=True)
    assert found.trial is None


@pytest.mark.parametrize(("low", "high"), [(None, None), (1e-6, 0.1), (1e-5, 2e-2), (None, 2e-2)])
def test_a_test_that_leaves_the_space_whole_changes_nothing(low: float | None, high: float | None) -> None:
    found = made(low, high)
    assert found.bounds is None
    assert "as they are" in found.note


@pytest.mark.parametrize(
    ("space", "low", "high"),
    [
        (rates(1e-5, 5e-5), 1e-4, 1e-2),  # apart
        (rates(0.1, 0.9), 1e-4, 1e-2),
        (rates(1e-5, 2e-4), 1e-4, 1e-2),  # hardly a range
        (rates(1e-5, 1e-4), 1e-4, 1e-2),  # a point
    ],
)
def test_where_they_have_next_to_nothing_in_common_the_spec_wins(
    space: dict[str, Any], low: float, high: float
) -> None:
    found = made(low, high, **space)
    assert found.bounds is None
    assert f"less than a {NARROWEST:g}-fold range" in found.note
    assert found.trial is not None
    asked = space["space"]["learning_rate"]
    assert asked["low"] <= found.trial.hyperparameters["learning_rate"] <= asked["high"]


def test_the_trial_lies_in_the_space_with_the_other_parameters_in_the_middle() -> None:
    spec = spec_of(space={"dropout": {"low": 0.0, "high": 0.3}, "patience": 7})
    trial = proposal(spec, shown(1e-4, 1.5e-2, 3.04159e-3)).trial
    assert trial is not None
    assert trial.name == "range-test"
    assert trial.hyperparameters == pytest.approx(
        {"learning_rate": 3.04e-3, "warmup_start_factor": 0.525, "dropout": 0.15, "patience": 7}
    )
    assert (trial.overrides, trial.in_space) == ({}, True)
    assert spec.space.contains(trial.hyperparameters)


@pytest.mark.parametrize(("suggested", "rate"), [(1e-6, 1e-4), (0.7, 1.5e-2)])
def test_the_trials_rate_stays_within_the_bounds(suggested: float, rate: float) -> None:
    trial = made(1e-4, 1.5e-2, suggested).trial
    assert trial is not None
    assert trial.hyperparameters["learning_rate"] == rate


def test_the_config_of_the_test_is_the_sweeps_with_a_seed_of_its_own() -> None:
    spec = spec_of(trainer={"epochs": 20, "batch_size": 8, "clip_norm": 0.5}, seed=3)
    config = config_of_test(spec)
    assert (config.epochs, config.batch_size, config.clip_norm, config.data_seed) == (20, 8, 0.5, 3)
    assert (config.dropout, config.warmup_start_factor) == pytest.approx((0.25, 0.525))
    assert config.seed not in {spec.training(n, {}, {}).seed for n in range(50)}


def test_the_middle_of_a_range() -> None:
    assert FloatRange(low=1e-4, high=1e-2, log=True).middle() == pytest.approx(1e-3)
    assert FloatRange(low=0.0, high=0.5).middle() == 0.25
    assert IntRange(low=5, high=12).middle() == 8
    assert IntRange(low=4, high=64, log=True).middle() == 16


# who goes without


def test_a_sweep_may_have_one() -> None:
    assert why_not(spec_of(), BUILT_IN, 30) is None


@pytest.mark.parametrize(
    ("content", "trainer", "updates", "words"),
    [
        ({}, "mine.py:Mine", 30, "trained by mine.py:Mine"),
        ({"space": {"learning_rate": 1e-3}}, BUILT_IN, 30, "fixed at 0.001"),
        ({}, BUILT_IN, FEWEST_STEPS // 20 - 1, f"takes {FEWEST_STEPS} updates at least"),
    ],
)
def test_some_go_without_and_are_told_why(content: dict[str, Any], trainer: str, updates: int, words: str) -> None:
    why = why_not(spec_of(**content), trainer, updates)
    assert why is not None
    assert words in why


def test_a_ramp_is_never_longer_than_a_trial() -> None:
    assert steps_of(spec_of(), 15) == 300
    assert steps_of(spec_of(), 1000) == STEPS


def test_the_key_is_part_of_what_makes_a_sweep_and_a_spec_stored_without_it_still_loads() -> None:
    stored = spec_of().model_dump(mode="json")
    del stored["range_test"]
    older = SweepSpec.model_validate(stored)
    assert differing_paths(older.identity(), spec_of(range_test=True).identity()) == []
    assert differing_paths(older.identity(), spec_of(range_test=False).identity()) == ["range_test (true -> false)"]
