"""Which limit of a budget is reached."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.budget import Spending, cost, exceeded, is_limited, shares, training_left
from sweeps.spec import Budget, SpecError, read_spec

SPENT = Spending(epochs=50, seconds=7200.0, device_seconds=10_800.0)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"total_epochs": 50}, "50 epochs"),
        ({"hours": 2.0}, "2 hours"),
        ({"device_hours": 3.0}, "3 device hours"),
        ({"money": 7.5, "price_per_device_hour": 2.5, "currency": "EUR"}, "7.5 EUR"),
        ({"money": 7.5, "price_per_device_hour": 2.5}, "7.5 in money"),
    ],
)
def test_a_limit_that_is_reached_is_named(budget: dict[str, Any], words: str) -> None:
    reached = exceeded(budget, SPENT)
    assert str(reached) == words
    (limit,) = [name for name in budget if name not in ("price_per_device_hour", "currency")]
    assert reached is not None
    assert reached.name == limit
    assert exceeded({**budget, limit: budget[limit] + 1}, SPENT) is None


def test_an_epoch_that_was_reserved_may_be_trained() -> None:
    assert exceeded({"total_epochs": 50}, SPENT, 0) is None
    assert exceeded({"total_epochs": 52}, SPENT, 3) is not None


def test_the_number_of_trials_alone_is_no_limit_here() -> None:
    assert not is_limited({"trials": 3, "hours": None, "price_per_device_hour": 2.0})
    assert exceeded({"trials": 3}, SPENT) is None
    assert shares({"trials": 3}, SPENT) == []


def test_a_price_alone_says_what_was_spent() -> None:
    assert cost({"price_per_device_hour": 2.5}, 10_800.0) == 7.5
    assert cost({}, 10_800.0) is None


def test_what_each_limit_leaves_to_train() -> None:
    budget = {"total_epochs": 60, "hours": 3.0, "device_hours": 4.0, "money": 10.0, "price_per_device_hour": 2.5}
    assert training_left(budget, SPENT, workers=2, seconds_per_epoch=30.0) == {
        "total_epochs": 300.0,
        "hours": 7200.0,
        "device_hours": 3600.0,
        "money": 3600.0,
    }


def test_money_needs_a_price() -> None:
    with pytest.raises(SpecError, match="budget: money: 20 says nothing without a price; set price_per_device_hour"):
        read_spec({"name": "s", "corpus": "x", "budget": {"money": 20}})


def test_an_old_budget_is_one_without_the_new_limits() -> None:
    assert Budget.model_validate({"trials": 3, "total_epochs": None, "hours": 2.0}).device_hours is None


def test_stop_when_has_defaults() -> None:
    asked = read_spec({"name": "s", "corpus": "x", "budget": {"stop_when": {}}}).budget.stop_when
    assert asked is not None
    assert (asked.chance_below, asked.improvement) == (0.05, 0.005)
