"""A forecast is a probability, never NaN, and more budget never lowers it."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sweeps.forecast import chance_to_improve, forecast
from sweeps.pruning import Outlook
from sweeps.records import TrialRow
from sweeps.states import TrialState
from tests.rows import sweep_row, trial_row

wers = st.lists(st.floats(0, 1.5), min_size=1, max_size=30)
looks = st.lists(
    st.builds(lambda wer, spread: Outlook(wer, math.log(wer), spread), st.floats(1e-3, 2), st.floats(0.01, 1)),
    max_size=4,
)
improvements = st.floats(1e-6, 0.999)


@given(wers, looks, st.integers(1, 10_000), st.floats(0, 1e6), improvements, st.floats(0, 1))
def test_a_chance_lies_between_0_and_1(
    wers: list[float], looks: list[Outlook], over: int, more: float, improvement: float, reach: float
) -> None:
    assert 0 <= chance_to_improve(wers, looks, over, more, improvement, reach) <= 1


@given(wers, looks, st.integers(1, 100), st.floats(0, 1e4), st.floats(0, 1e4), improvements, improvements)
def test_more_trials_never_lower_it_and_a_larger_improvement_never_raises_it(
    wers: list[float], looks: list[Outlook], over: int, few: float, extra: float, first: float, second: float
) -> None:
    def chance(more: float, improvement: float) -> float:
        return chance_to_improve(wers, looks, over, more, improvement)

    small, large = sorted((first, second))
    assert chance(few, small) <= chance(few + extra, small) + 1e-12
    assert chance(few, large) <= chance(few, small) + 1e-12


@st.composite
def trials(draw: st.DrawFn) -> list[TrialRow]:
    rows = []
    for number in range(draw(st.integers(0, 15))):
        state = draw(st.sampled_from(TrialState))
        epochs = draw(st.integers(0, 20))
        best = draw(st.floats(0, 1.2)) if epochs else None
        seconds = draw(st.floats(0, 1e5)) if epochs else 0.0
        rows.append(trial_row(number, state, epochs=epochs, best_wer=best, seconds=seconds))
    return rows


LIMITS: dict[str, st.SearchStrategy[Any]] = {
    "total_epochs": st.integers(1, 10_000),
    "hours": st.floats(0.01, 1000),
    "device_hours": st.floats(0.01, 1000),
    "money": st.floats(0.01, 1000),
}


@given(
    trials(),
    st.fixed_dictionaries({"trials": st.integers(1, 500)}, optional=LIMITS),
    st.sampled_from(["trials", *LIMITS]),
    st.floats(1, 100),
    st.integers(1, 8),
)
def test_a_larger_budget_never_lowers_anything_that_is_left(
    rows: list[TrialRow], budget: dict[str, Any], limit: str, factor: float, workers: int
) -> None:
    budget = {**budget, "price_per_device_hour": 2.0}
    larger = {**budget, limit: math.ceil(budget[limit] * factor)} if limit in budget else budget

    def of(budget: dict[str, Any]) -> Any:
        return forecast(sweep_row(budget=budget), rows, [], workers, 20)

    less, more = of(budget), of(larger)
    for name in ("chance", "trials", "trials_low", "trials_high", "device_hours", "hours", "money"):
        one, other = getattr(less, name), getattr(more, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert math.isfinite(one)
            assert 0 <= one <= other + 1e-9 * max(1.0, other)
    assert less.trials_low <= less.trials <= less.trials_high
    assert less.sentence
    assert (less.chance is None) == bool(less.why_not)
