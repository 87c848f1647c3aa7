"""When a sweep alarms, for which cause, and on which sweeps it must not: slow starters above all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.floors import Floors
from model.types import EpochReport, TrainingConfig
from sweeps.alarm import LIVE_LR_TIME, RATE_SPAN, Alarm, alarm
from sweeps.pruning import History

FLOORS = Floors(constant_wer=0.92, constant_sentence="A B", constant_loss=4.0, dev_constant_loss=4.0, uniform_loss=13.5)
STEPS = 60
EPOCHS = 24


def history(
    number: int = 0,
    rate: float = 1e-3,
    *,
    epochs: int = EPOCHS,
    ended: bool = True,
    takeoff: int | None = None,
    loss: float | Sequence[float] = 4.0,
    t: float | Sequence[float] | None = 0.5,
    skipped: int = 0,
    steps: int = STEPS,
    config: dict[str, Any] | None = None,
) -> History:
    """A trial at a constant rate. By default it has the loss of knowing nothing, and never uses its input.

    Args:
        takeoff: epoch from which WER is low.
        loss: of each epoch, train and dev; the last of several goes on.
        t: of each epoch's swap gap; None: too few dev sequences for one.
        skipped: steps of the last epoch that were not finite.
    """
    losses, gaps = ([each] if isinstance(each, float | int) else each for each in (loss, () if t is None else t))
    reports = []
    for epoch in range(1, epochs + 1):
        value = losses[min(epoch, len(losses)) - 1]
        metrics = {
            "dev/wer": 0.5 if takeoff and epoch >= takeoff else 1.0,
            "train/loss": value,
            "dev/loss": value,
            "optim/lr": rate,
            "probe/sequences": 110.0,
            "probe/swap_gap": 0.01,
        }
        if gaps:
            metrics["probe/swap_t"] = gaps[min(epoch, len(gaps)) - 1]
        bad = skipped if epoch == epochs else 0
        reports.append(EpochReport(epoch, epoch * steps, metrics, steps, bad, rate * epoch * steps))
    values = TrainingConfig(learning_rate=rate, epochs=EPOCHS).with_values(config or {})
    return History(number, reports, values, FLOORS.constant_wer, ended=ended)


def numbered(histories: Sequence[History]) -> list[History]:
    return [replace(each, number=number) for number, each in enumerate(histories)]


def raised(histories: Sequence[History], planned: int = 24, dev_sequences: int | None = 110) -> Alarm:
    found = alarm(histories, FLOORS, planned, dev_sequences)
    assert found is not None
    return found


def rates(low: float, high: float, count: int) -> list[float]:
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


USELESS = numbered([history(rate=rate) for rate in rates(3e-4, 1e-2, 8)])
"""Eight trials that had learning rate enough, and do not use their input at rates that span thirty-fold."""


# when


@pytest.mark.parametrize(("planned", "needed"), [(1, 3), (6, 3), (9, 3), (10, 4), (14, 5), (24, 8), (1000, 8)])
def test_it_alarms_at_a_third_of_the_trials_at_least_three_at_most_eight(planned: int, needed: int) -> None:
    slow = numbered([history(rate=rate, loss=8.0, t=1.0) for rate in rates(1e-5, 1e-4, 8)])
    assert alarm(slow[: needed - 1], FLOORS, planned) is None
    assert raised(slow[:needed], planned).trials == tuple(range(needed))


def test_one_takeoff_is_enough_whatever_the_others_do() -> None:
    assert raised(USELESS)
    for taken_off in (history(8, takeoff=24), history(8, takeoff=3, ended=False), history(8, takeoff=2, skipped=60)):
        assert alarm([*USELESS, taken_off], FLOORS, 24) is None


def test_trials_under_way_have_not_had_their_chance() -> None:
    """Nor have those that ended after a few steps: nothing takes off there, whatever the rate."""
    assert alarm(USELESS[:7], FLOORS, 24, 110) is None
    assert alarm([*USELESS[:7], history(7, ended=False, epochs=23)], FLOORS, 24, 110) is None
    short = numbered([history(rate=rate, epochs=2, steps=6) for rate in rates(1e-5, 1e-2, 8)])
    assert alarm(short, FLOORS, 24) is None
    assert alarm([], FLOORS, 24) is None
    assert alarm([replace(history(), reports=[])], FLOORS, 1) is None


def test_a_slow_starter_that_uses_its_input_is_waited_for() -> None:
    slow = history(8, 2e-4, ended=False, epochs=12, t=[0.5] * 10 + [4.0, 6.0])
    assert alarm([*USELESS, slow], FLOORS, 24, 110) is None
    for not_yet in (
        history(8, 2e-4, ended=False, epochs=11, t=[0.5] * 10 + [4.0]),  # one probe may be chance
        history(8, 2e-5, ended=False, epochs=12, t=4.0, loss=8.0),  # a loss on its way down
    ):
        assert raised([*USELESS, not_yet])


def test_in_a_healthy_sweep_of_slow_starters_nothing_alarms_while_they_run() -> None:
    """Six workers, rates from slow to slower: WER 100 % until epoch 20, and the swap gap shows from epoch 16 on."""
    for epoch in range(1, 20):
        running = [
            history(i, rate, ended=False, epochs=epoch, loss=[12, 9, 6, 5, 4.2, 4.0], t=[0.5] * 15 + [3.0, 6.0])
            for i, rate in enumerate(rates(1e-4, 5e-4, 6))
        ]
        assert alarm(running, FLOORS, 6, 110) is None


# earlier


def test_three_trials_that_plainly_do_not_use_their_input_are_enough() -> None:
    """Ample steps, epochs and learning rate, at rates that span ten-fold: still running."""
    dead = [history(i, rate, ended=False, epochs=26) for i, rate in enumerate((1e-3, 3e-3, 1e-2))]
    found = raised(dead)
    assert (found.cause, found.trials) == ("data_or_labels", (0, 1, 2))
    assert alarm(dead[:2], FLOORS, 24, 110) is None
    assert alarm([dead[0], dead[1], dead[1]], FLOORS, 24, 110) is None, f"rates span less than {RATE_SPAN}"
    assert alarm([*dead[:2], history(2, 1e-2, ended=False, epochs=9)], FLOORS, 24, 110) is None, "too early to tell"
    ended = history(3, 2e-4, t=6.0)
    assert alarm([*dead, ended], FLOORS, 24, 110) is None, "one of them did use its input"


def test_three_that_diverged_are_enough_where_no_other_bears_its_rate() -> None:
    diverged = [history(i, rate, epochs=2, skipped=30, ended=False) for i, rate in enumerate((4e-3, 8e-3, 2e-2))]
    found = raised(diverged)
    assert (found.cause, found.trials) == ("rates_too_high", (0, 1, 2))
    assert alarm(diverged[:2], FLOORS, 24) is None
    assert alarm([*diverged, history(3, 5e-4, ended=False, epochs=1)], FLOORS, 24) is None, (
        "a slow starter is waited for"
    )
    assert raised([*diverged, history(3, 1e-5, loss=9.0)]).cause == "rates_too_high"


# the cause


def test_rates_too_low_proposes_higher_ones_and_says_how_little_it_was() -> None:
    slow = numbered([history(rate=rate, loss=9.0, t=1.0) for rate in rates(1e-5, 5e-5, 8)])
    found = raised(slow)
    assert found.cause == "rates_too_low"
    assert "from 1.0e-05 to 5.0e-05" in found.sentence
    assert "came to 0.072 at most" in found.sentence
    assert "8 had not even come down to 1.5 times" in found.sentence
    assert found.proposal == {"low": 5e-5, "high": 1.5e-3}
    assert "--accept-proposal" in found.advice
    assert found.numbers["most_lr_time"] == pytest.approx(5e-5 * EPOCHS * STEPS)
    assert found.numbers["too_low"] == 8
    json.dumps(found.as_json(), allow_nan=False)


def test_rates_far_too_low_are_raised_to_where_something_can_take_off() -> None:
    found = raised(numbered([history(rate=rate, loss=12.0, t=1.0) for rate in rates(1e-7, 1e-6, 8)]))
    assert found.proposal is not None
    low, high = found.proposal["low"], found.proposal["high"]
    assert low < LIVE_LR_TIME / (EPOCHS * STEPS) < high
    assert high / low == pytest.approx(30, rel=0.05)


def test_trials_that_began_to_use_their_input_were_too_slow_whatever_their_loss() -> None:
    found = raised(numbered([history(rate=rate, t=[1.0] * 15 + [4.0, 8.0]) for rate in rates(3e-4, 3e-3, 8)]))
    assert found.cause == "rates_too_low"
    assert "8 had begun to use the input" in found.sentence
    assert found.proposal == {"low": 3e-3, "high": 0.09}


def test_the_proposal_stays_below_what_diverges() -> None:
    slow = [history(rate=rate, loss=9.0, t=1.0) for rate in rates(1e-5, 5e-5, 6)]
    edge = [history(rate=rate, epochs=2, skipped=40) for rate in (1e-3, 4e-3)]
    assert raised(numbered([*slow, *edge])).proposal == {"low": 5e-5, "high": 5e-4}
    narrow = [history(rate=rate, epochs=2, skipped=40) for rate in (2e-4, 4e-3)]
    found = raised(numbered([*slow, *narrow]))
    assert (found.cause, found.proposal) == ("rates_too_low", None)
    assert "more epochs" in found.advice


def test_a_throttled_step_is_named_instead_of_the_rate() -> None:
    def throttled(rate: float) -> History:
        trial = history(rate=rate, config={"adam_eps": 1e-3})
        reports = [replace(r, metrics={**r.metrics, "optim/step_ratio": 0.03}) for r in trial.reports]
        return replace(trial, reports=reports)

    found = raised(numbered([throttled(rate) for rate in rates(1e-4, 2e-3, 8)]))
    assert (found.cause, found.proposal) == ("rates_too_low", None)
    assert "adam_eps" in found.advice


def test_what_diverges_at_rates_of_all_sizes_is_not_the_rate() -> None:
    some = [history(i, rate, epochs=2, skipped=2, ended=False) for i, rate in enumerate((1e-4, 6e-4, 3e-3))]
    found = raised(some)
    assert found.cause == "data_or_labels"
    assert found.proposal is None
    assert "at learning rates from 1.0e-04 to 3.0e-03" in found.sentence
    blown_up = [history(i, rate, epochs=2, skipped=30, loss=20.0) for i, rate in enumerate((1e-3, 6e-3, 3e-2))]
    assert raised(blown_up).cause == "rates_too_high"


def test_rates_too_high_proposes_lower_ones() -> None:
    diverged = [history(rate=rate, epochs=2, skipped=30) for rate in rates(6e-3, 2e-2, 5)]
    rose = [history(rate=5e-3, loss=[6.0, 5.0, 14.0, 30.0])]
    bore = [history(rate=1e-5, loss=9.0)]
    found = raised(numbered([*diverged, *rose, *bore, *bore]))
    assert found.cause == "rates_too_high"
    assert "6 of 8 trials, at learning rates from 5.0e-03 to 2.0e-02, diverged (5)" in found.sentence
    assert found.proposal == {"low": 8.3e-5, "high": 2.5e-3}


def test_half_too_low_and_half_too_high_leaves_what_lies_between() -> None:
    low = [history(rate=rate, loss=9.0, t=1.0) for rate in rates(1e-5, 3e-5, 4)]
    high = [history(rate=rate, epochs=1, skipped=30) for rate in rates(6e-3, 2e-2, 4)]
    found = raised(numbered([*low, *high]))
    assert found.proposal is not None
    assert found.proposal == {"low": 1e-4, "high": 3e-3}


def test_a_flat_swap_gap_at_rates_of_all_sizes_is_data_or_labels() -> None:
    found = raised(USELESS)
    assert found.cause == "data_or_labels"
    assert found.proposal is None
    assert "python -m model check" in found.advice
    assert "overfit" in found.advice
    low = [history(rate=rate, loss=9.0, t=1.0) for rate in rates(1e-5, 5e-5, 3)]
    high = [history(rate=2e-2, epochs=2, skipped=30)]
    assert raised(numbered([*low, *USELESS[::2], *high])).cause == "data_or_labels", "wherever else rates were tried"


def test_flat_at_one_size_of_rates_is_not_enough_and_it_says_what_would_be() -> None:
    found = raised(numbered([history(rate=rate) for rate in rates(1e-3, 4e-3, 8)]))
    assert (found.cause, found.proposal) == ("undecided", None)
    assert "factor of 4.0 alone" in found.sentence
    assert "span a factor of 10" in found.advice


def test_too_few_dev_sequences_are_said_rather_than_guessed_from() -> None:
    blind = numbered([history(rate=rate, t=None) for rate in rates(3e-4, 1e-2, 8)])
    found = raised(blind, dev_sequences=24)
    assert found.cause == "undecided"
    assert "dev has 24 sequences" in found.sentence
    assert "100 sequences or more" in found.advice


def test_a_trainer_that_reports_wer_alone_is_not_judged_by_what_it_does_not_say() -> None:
    bare = [
        replace(each, reports=[EpochReport(r.epoch, r.step, {"dev/wer": 1.0}, STEPS) for r in each.reports])
        for each in USELESS
    ]
    found = raised(bare)
    assert found.cause == "undecided"
    assert "no swap gap is reported" in found.sentence
    json.dumps(found.as_json(), allow_nan=False)


# on recorded runs

LANES = Path(__file__).parents[2] / "benchmarks" / "lanes"


def recorded(lane: str, rate: float, number: int, epochs: int | None = None, *, ended: bool = True) -> History:
    """The epochs of a recorded lane, as those of a trial at `rate`."""
    lines = (LANES / f"{lane}.{number % 3}.jsonl").read_text(encoding="utf-8").splitlines()[:epochs]
    known = json.loads((LANES / "floors.json").read_text(encoding="utf-8"))["healthy 1e-3"]
    config = TrainingConfig(learning_rate=rate, epochs=len(lines))
    return History(number, [EpochReport(**json.loads(x)) for x in lines], config, known["constant_wer"], ended=ended)


def lane_floors() -> Floors:
    return Floors(**json.loads((LANES / "floors.json").read_text(encoding="utf-8"))["healthy 1e-3"])


@pytest.mark.parametrize("lane", ["shuffled-labels", "zero-features", "pixels-not-normalised", "time-collapsed"])
def test_recorded_runs_with_broken_data_or_model_alarm_for_that(lane: str) -> None:
    trials = [recorded(lane, rate, i) for i, rate in enumerate(rates(3e-4, 6e-3, 8))]
    found = alarm(trials, lane_floors(), 24, 110)
    assert found is not None
    assert found.cause == "data_or_labels"


@pytest.mark.parametrize("lane", ["healthy-5e-4", "healthy-1e-3", "old-warm-up", "not-normalised", "eps-1e-3"])
@pytest.mark.parametrize("workers", [3, 8])
def test_recorded_live_runs_never_alarm_while_they_run(lane: str, workers: int) -> None:
    for epoch in range(1, 25):
        running = [recorded(lane, rate, i, epoch, ended=False) for i, rate in enumerate(rates(3e-4, 6e-3, workers))]
        assert alarm(running, lane_floors(), 24, 110) is None, epoch


CURVES = LANES.parent / "curves"
NOT_METRICS = {"step", "skipped_steps", "lr_time", "seconds", "not_finite"}


def of_table(table: str) -> tuple[Floors, list[History]]:
    """The recorded runs of a curve table, to their last epochs; lanes with broken data are left out."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((CURVES / table).glob("[0-9]*.json"))]
    histories = []
    for number, content in enumerate(read):
        curve, config = content["curve"], TrainingConfig(**content["config"])
        reports = [
            EpochReport(
                epoch=i + 1,
                step=curve["step"][i],
                metrics={k: math.nan if v[i] is None else v[i] for k, v in curve.items() if k not in NOT_METRICS},
                steps_in_epoch=content["steps_in_epoch"],
                skipped_steps=curve["skipped_steps"][i],
                lr_time=curve["lr_time"][i],
            )
            for i in range(len(curve["step"]))
        ]
        histories.append(History(number, reports, config, content["floors"]["constant_wer"], ended=True))
    return Floors(**read[0]["floors"]), histories


@pytest.mark.parametrize("table", ["generated", "generated-hard"])
def test_recorded_runs_at_rates_too_low_lead_to_rates_at_which_others_took_off(table: str) -> None:
    floors, histories = of_table(table)
    slow = [each for each in histories if each.config.learning_rate < 1e-4 and not each.takeoff]
    assert len(slow) >= 3
    found = alarm(slow, floors, 3, 110)
    assert found is not None
    assert found.cause == "rates_too_low"
    assert found.proposal is not None
    low, high = found.proposal["low"], found.proposal["high"]
    there = [bool(each.takeoff) for each in histories if low < each.config.learning_rate < high]
    assert sum(there) > len(there) / 2


def test_live_lr_time_is_what_the_recorded_live_runs_had_at_takeoff() -> None:
    had = []
    for file in sorted(LANES.glob("healthy-*.jsonl")) + sorted(LANES.glob("old-warm-up.*.jsonl")):
        reports = [EpochReport(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        trial = History(0, reports, TrainingConfig(), lane_floors().constant_wer)
        if trial.takeoff and "4e-3" not in file.name:
            had.append(reports[trial.takeoff - 1].lr_time)
    assert len(had) >= 6
    assert math.isclose(max(had), LIVE_LR_TIME, rel_tol=0.5)
