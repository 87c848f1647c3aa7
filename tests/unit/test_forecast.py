"""What a forecast says of sweeps small enough to reckon by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from model.floors import Floors
from model.types import TrainingConfig
from sweeps.budget import IMPROVEMENT
from sweeps.forecast import (
    CAUTION,
    FEWEST_TO_STOP,
    SIBLINGS,
    Forecast,
    chance_to_improve,
    epochs_ahead,
    forecast,
    margin,
    outlooks,
    percent,
    points,
    read_for,
    trials_left,
)
from sweeps.pruning import History, Outlook
from sweeps.records import SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.summary import Conclusions, conclusions, sections
from tests.curves import CONSTANT_WER, run
from tests.rows import sweep_row, trial_row

EPOCHS = 10


def over(number: int, wer: float, epochs: int = EPOCHS, **fields: Any) -> TrialRow:
    given = {"best_wer": wer, "best_epoch": epochs, "epochs": epochs, "seconds": 360.0 * epochs}
    return trial_row(number, **{"state": TrialState.COMPLETE, **given, **fields})


WERS = (0.5, 0.3, 0.4, 0.35, 0.6, 0.45)
TRIALS = [over(number, wer) for number, wer in enumerate(WERS)]


def budgeted(**budget: Any) -> SweepRow:
    return sweep_row(budget={"trials": 20, **budget})


def foreseen(sweep: SweepRow, trials: list[TrialRow], **more: Any) -> Forecast:
    return forecast(sweep, trials, more.pop("histories", []), 1, EPOCHS, **more)


def test_without_a_margin_the_chance_is_that_of_records() -> None:
    """The best of 6 + 3 trials is among the last 3 in a third of all orders."""
    assert chance_to_improve(WERS, [], 6, 3, 1e-9) == pytest.approx(1 / 3)
    assert chance_to_improve(WERS, [], 6, 0, 1e-9) == 0


def test_a_margin_counts_in_scales_of_the_lower_tail() -> None:
    """Where the five lowest lie a factor of e below the sixth on average, a WER lower by that factor is one scale away,
    and so many new trials are worth 1/e of their number.
    """
    wers = [0.1] * 5 + [0.1 * math.e]
    assert margin(wers, 0.1 - 0.1 / math.e) == pytest.approx(1)
    assert chance_to_improve(wers, [], 6, 6, 0.1 - 0.1 / math.e) == pytest.approx(1 / (math.e + 1))


def test_the_closer_the_best_are_to_each_other_the_smaller_the_chance() -> None:
    dense, wide = [0.300, 0.301, 0.302, 0.303, 0.304, 0.305], [0.30, 0.34, 0.38, 0.42, 0.46, 0.50]
    assert chance_to_improve(dense, [], 6, 6, IMPROVEMENT) < 0.2
    assert chance_to_improve(dense, [], 6, 6, 4 * IMPROVEMENT) < 0.01
    assert 0.4 < chance_to_improve(wide, [], 6, 6, IMPROVEMENT) < 0.5


def test_no_wer_is_below_0() -> None:
    assert chance_to_improve([0.004, 0.2, 0.3], [Outlook(0.001, math.log(0.001), 0.5)], 3, 100, IMPROVEMENT) == 0


def test_a_trial_under_way_adds_its_chance() -> None:
    """One whose outlook lies CAUTION spreads below the WER to reach is even."""
    target = math.log(0.3 - IMPROVEMENT)
    even = Outlook(0.0, target - 0.2 * CAUTION, 0.2)
    assert chance_to_improve(WERS, [even], 6, 0, IMPROVEMENT) == pytest.approx(0.5)
    assert chance_to_improve(WERS, [even, even], 6, 0, IMPROVEMENT) == pytest.approx(0.75)
    assert chance_to_improve(WERS, [even], 6, 0, IMPROVEMENT, reach=0.5) == pytest.approx(0.25)


def test_a_trial_under_way_is_measured_against_those_that_took_off() -> None:
    config = TrainingConfig(epochs=EPOCHS)
    floors = Floors(CONSTANT_WER, "", 4.0, 4.0, 20.0)
    done = [
        History(n, run(EPOCHS, 1e-3, takeoff=3, falls_to=wer), config, CONSTANT_WER, ended=True)
        for n, wer in enumerate((0.3, 0.4))
    ]
    ahead = History(2, run(EPOCHS, 1e-3, takeoff=3, falls_to=0.1)[:6], config, CONSTANT_WER)
    behind = History(3, run(EPOCHS, 1e-3, takeoff=None, falls_to=0.9)[:6], config, CONSTANT_WER)
    (good,) = outlooks([ahead], [*done, ahead], floors)
    (bad,) = outlooks([behind], [*done, behind], floors)
    assert chance_to_improve([0.3, 0.4], [good], 2, 0, 0.005) > 0.5 > chance_to_improve([0.3, 0.4], [bad], 2, 0, 0.005)
    assert outlooks([ahead], [ahead], floors) == [], "nobody speaks for the first that takes off"


# how much is left


def test_trials_are_what_is_left_where_nothing_else_is_limited() -> None:
    found = foreseen(budgeted(price_per_device_hour=2.5, currency="EUR"), TRIALS)
    assert (found.trials, found.trials_low, found.trials_high, found.limit) == (14, 14, 14, "trials")
    assert found.device_hours == pytest.approx(14 * EPOCHS * 0.1)
    assert (found.hours, found.money) == (pytest.approx(14.0), pytest.approx(35.0))
    assert found.sentence == (
        "14.0 device hours left (about 14.0 hours by the clock, 35.00 EUR), 14 more trials; "
        f"chance to improve by 0.5 points: {percent(found.chance or 0)}"
    )


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"total_epochs": 100}, "total_epochs"),
        ({"device_hours": 10.0}, "device_hours"),
        ({"money": 20.0, "price_per_device_hour": 2.0}, "money"),
        ({"hours": 4.0}, "hours"),
    ],
)
def test_the_first_limit_is_named_and_leaves_four_trials(budget: dict[str, Any], limit: str) -> None:
    """60 epochs of 0.1 device hours are spent; no time on the clock."""
    found = foreseen(replace(budgeted(**budget), seconds=0.0), TRIALS)
    assert found.limit == limit
    assert found.trials == pytest.approx(4)
    assert found.device_hours == pytest.approx(4)


def test_the_tightest_of_several_limits_counts() -> None:
    found = foreseen(budgeted(total_epochs=200, device_hours=7.0, money=1e6, price_per_device_hour=1.0), TRIALS)
    assert (found.limit, found.trials) == ("device_hours", pytest.approx(1))


def test_trials_under_way_are_paid_first() -> None:
    """4 of its 10 epochs are done: 6 of the 26 left are its own, as nothing longer was seen."""
    under_way = trial_row(6, TrialState.RUNNING, epochs=4, best_wer=0.7, seconds=1440.0)
    found = foreseen(budgeted(total_epochs=90), [*TRIALS, under_way])
    assert found.under_way == 1
    assert found.trials == pytest.approx(2)
    assert "about 2 more trials" in found.sentence or "2 more trials" in found.sentence
    assert "beside 1 under way" in found.sentence


def test_epochs_ahead_follow_the_trials_that_lasted_longer() -> None:
    assert epochs_ahead([], [2, 2, 10], 10) == 0
    assert epochs_ahead([0], [2, 2, 8], 10) == 4
    assert epochs_ahead([4], [2, 2, 8], 10) == 4
    assert epochs_ahead([9], [2, 2, 8], 10) == 1


def test_the_interval_is_as_wide_as_trials_differ() -> None:
    assert trials_left(100, [10] * 6, 10, 50) == (10, 10, 10)
    expected, low, high = trials_left(100, [2, 2, 2, 18, 18, 18], 20, 50)
    assert expected == 10
    assert low < 5
    assert high > 15
    assert trials_left(100, [2, 2, 2, 18, 18, 18], 20, 11)[2] == 11, "no more than the budget has"
    assert trials_left(-5, [10], 10, 11)[0] == 0
    assert trials_left(math.inf, [], 10, 11) == (11, 11, 11)


def test_a_space_that_is_all_tried_allows_no_more() -> None:
    assert foreseen(budgeted(), TRIALS, configurations=8).trials == 2


def test_a_sweep_that_is_being_stopped_begins_no_more() -> None:
    found = foreseen(replace(budgeted(), state=SweepState.STOPPING), TRIALS)
    assert (found.trials, found.chance, found.goes_on) == (0, 0, False)
    assert found.sentence == "nothing is left to train"


# honest words


def test_before_a_takeoff_there_is_no_number() -> None:
    found = foreseen(budgeted(), [over(number, 0.91) for number in range(5)])
    assert found.chance is None
    assert found.sentence.endswith("no trial has taken off yet, so nothing tells what more of them would bring")


def test_before_three_trials_are_over_there_is_no_number() -> None:
    found = foreseen(budgeted(), TRIALS[:2])
    assert found.chance is None
    assert found.sentence.endswith("2 trials over: a chance is stated from 3 on")
    assert foreseen(budgeted(), TRIALS[:3]).chance is not None


def test_before_the_first_epoch_nothing_is_known_of_hours() -> None:
    found = foreseen(budgeted(hours=3.0), [])
    assert (found.device_hours, found.hours, found.money) == (None, None, None)
    assert found.sentence.startswith("20 more trials; no trial has taken off yet")


def test_failed_and_cancelled_trials_were_no_draws() -> None:
    failed = [over(6, 0.2, state=TrialState.FAILED), over(7, 0.9, state=TrialState.CANCELLED)]
    assert foreseen(budgeted(), [*TRIALS, *failed]).over == 6
    assert read_for([*TRIALS, *failed]) == TRIALS


def test_only_a_few_curves_are_read_of_a_large_sweep() -> None:
    many = [over(number, 0.2 + number / 1000) for number in range(200)]
    under_way = trial_row(200, TrialState.RUNNING, epochs=3)
    # By number, as the spread of a prediction is that of the latest.
    assert [trial.number for trial in read_for([*many, under_way])] == [*range(SIBLINGS), 200]


def test_a_sweep_is_stopped_for_its_chance_only_after_enough_trials() -> None:
    few = [over(number, 0.3 + number / 100) for number in range(FEWEST_TO_STOP - 1)]
    assert not foreseen(budgeted(), few).can_stop
    assert foreseen(budgeted(), [*few, over(FEWEST_TO_STOP, 0.5)]).can_stop
    assert not foreseen(budgeted(), [over(number, 0.91) for number in range(20)]).can_stop


def test_no_chance_is_printed_as_certain() -> None:
    assert [percent(chance) for chance in (0, 0.004, 0.12, 0.996, 1.0)] == [
        *("none", "under 1 %", "12 %", "over 99 %", "over 99 %")
    ]
    assert (points(0.005), points(0.01), points(0.02)) == ("0.5 points", "1 point", "2 points")


def test_the_summary_says_what_more_would_bring_while_something_is_left() -> None:
    spec = SweepSpec.model_validate({"name": "s", "corpus": "x"})
    sweep = sweep_row()
    plain = conclusions(sweep, TRIALS, [], spec)

    def heard(found: Conclusions) -> dict[str, list[str]]:
        return dict(sections(sweep, TRIALS, found))

    ahead = foreseen(budgeted(), TRIALS)
    assert heard(replace(plain, forecast=ahead))["What more would bring"] == [f"{ahead.sentence}."]
    done = foreseen(replace(budgeted(), state=SweepState.COMPLETE), TRIALS)
    assert "What more would bring" not in {**heard(plain), **heard(replace(plain, forecast=done))}
