"""Each rule stops the run it is for, and leaves the slow starters alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from model.floors import Floors
from model.types import EpochReport, TrainingConfig
from sweeps import pruning
from sweeps.pruning import Decision, History, Ranking, decide
from tests.curves import CONSTANT_WER, STEPS, report, without_metrics

EPOCHS = 24
F0 = 4.0
FLOORS = Floors(CONSTANT_WER, "", F0, F0, 14.0)
UNTRAINED = 3.5
"""Loss of a network that knows nothing yet, as a multiple of F0."""


def history(
    rate: float,
    takeoff: int | None = None,
    best: float = 0.2,
    *,
    number: int = 0,
    epochs: int = EPOCHS,
    down: int | None = None,
    **flags: bool,
) -> History:
    """A run whose loss falls from that of an untrained network to F0 by epoch `down` (default: a third of the way to
    takeoff, or never), and that from `takeoff` on halves its way to `best`, dev loss and WER alike.
    """
    down = down or (max(1, takeoff // 3) if takeoff else 100 * epochs)
    reports = []
    for epoch in range(1, epochs + 1):
        loss, wer = F0 * max(1.0, UNTRAINED - (UNTRAINED - 1) * epoch / down), 1.0
        if takeoff and epoch >= takeoff:
            wer = best + (0.8 - best) * 0.5 ** (epoch - takeoff)
            loss = F0 * wer
        reports.append(report(epoch, wer, rate=rate, loss=loss))
    return History(number, reports, TrainingConfig(epochs=epochs, learning_rate=rate), CONSTANT_WER, **flags)


def until(run: History, epoch: int) -> History:
    return replace(run, reports=run.reports[:epoch])


def first_decision(run: History, siblings: Sequence[History], grace: int | None = None) -> Decision | None:
    """What stops the run, asked after each of its epochs as a worker does."""
    asked = (decide(until(run, n), siblings, FLOORS, grace_epochs=grace) for n in range(1, len(run.reports)))
    return next((decision for decision in asked if decision), None)


# Shapes after the measured runs (24 epochs of a small student): learning rate, epoch of takeoff, best WER.
FAST = [(1.1e-3, 6, 0.36), (2.0e-3, 5, 0.25), (4.4e-3, 5, 0.20)]
MIDDLE = [(4.9e-4, 9, 0.41), (9.1e-4, 7, 0.25)]
SLOW = [(1.7e-4, 17, 0.68), (2.2e-4, 15, 0.63)]
TOO_LOW = [1.6e-5, 2.0e-5, 3.0e-5]

SIBLINGS = [history(*shape, number=n, ended=True) for n, shape in enumerate((*FAST, *MIDDLE))]


@pytest.mark.parametrize("rate", TOO_LOW)
def test_a_rate_too_low_to_take_off_is_futile_as_soon_as_grace_ends(rate: float) -> None:
    decision = first_decision(history(rate), SIBLINGS)
    assert decision is not None
    assert (decision.rule, decision.verdict, decision.epoch) == ("futile", "never_learned", 2)
    assert decision.siblings == (0, 1, 2, 3, 4)
    assert decision.numbers["lr_time_end"] < decision.thresholds["lr_time_needed"]


@pytest.mark.parametrize("shape", [*SLOW, *MIDDLE, *FAST])
@pytest.mark.parametrize("siblings", [FAST, MIDDLE, FAST + MIDDLE, SLOW + FAST + MIDDLE])
def test_no_run_that_took_off_in_the_measurements_is_called_dead(
    shape: tuple[float, int, float], siblings: list[tuple[float, int, float]]
) -> None:
    others = [history(*s, number=n, ended=True) for n, s in enumerate(siblings) if s != shape]
    decision = first_decision(history(*shape), others)
    assert decision is None or decision.verdict == "too_slow"


@pytest.mark.parametrize("shape", FAST)
def test_a_run_that_will_be_the_best_is_not_stopped_on_its_way(shape: tuple[float, int, float]) -> None:
    assert first_decision(history(shape[0], shape[1], 0.15), SIBLINGS) is None


def test_who_takes_off_later_is_compared_at_the_same_distance_from_takeoff() -> None:
    early, late = history(2e-3, 4, 0.2, number=1, ended=True), history(1e-3, 9, 0.2)
    eight = until(late, 11)
    assert pruning.outlook(eight, [early], FLOORS).wer == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("siblings", [[], [history(rate, ended=True) for rate in TOO_LOW]])
def test_without_a_sibling_that_took_off_nothing_is_stopped(siblings: list[History]) -> None:
    assert first_decision(history(TOO_LOW[0]), siblings) is None


@pytest.mark.parametrize(("epochs", "grace", "expected"), [(24, None, 2), (12, None, 2), (60, None, 5), (24, 7, 7)])
def test_nothing_is_stopped_in_grace(epochs: int, grace: int | None, expected: int) -> None:
    decision = first_decision(history(1e-7, epochs=epochs), SIBLINGS, grace)
    assert decision is not None
    assert decision.epoch == expected


# futile


def test_who_has_come_down_to_the_floor_is_not_futile() -> None:
    down = history(TOO_LOW[0], down=2)
    decision = decide(until(down, 3), SIBLINGS, FLOORS)
    assert decision is None or decision.rule != "futile"


def test_a_low_rate_needs_less_than_siblings_at_high_rates_had() -> None:
    # The quickest sibling had 2.4 before takeoff at 1e-2; at a hundredth of its rate a quarter of that suffices.
    (hot,) = [history(1e-2, 5, 0.3, ended=True)]
    needed = 4 * STEPS * 1e-2 * (1e-4 / 1e-2) ** pruning.TAKEOFF_EXPONENT
    enough = needed / (EPOCHS * STEPS)
    for share, stopped in ((0.9, True), (1.1, False)):
        factor = share ** (1 / (1 - pruning.TAKEOFF_EXPONENT))
        rate = enough * factor
        scaled = 4 * STEPS * 1e-2 * (rate / 1e-2) ** pruning.TAKEOFF_EXPONENT
        decision = first_decision(history(rate), [hot])
        assert (decision is not None and decision.rule == "futile") == (EPOCHS * STEPS * rate < scaled)
        assert stopped or not decision or decision.rule != "futile" or EPOCHS * STEPS * rate < scaled


def test_the_rate_that_would_have_kept_it_would_have() -> None:
    decision = first_decision(history(2e-5), SIBLINGS)
    assert decision is not None
    rate = float(re.findall(r"learning rate of (\S+),", decision.counterfactual)[0])
    again = decide(until(history(1.05 * rate), 2), SIBLINGS, FLOORS)
    assert again is None or again.rule != "futile"
    still = decide(until(history(0.9 * rate), 2), SIBLINGS, FLOORS)
    assert still is not None
    assert still.rule == "futile"


def test_a_warm_up_is_judged_by_the_rate_it_leads_to() -> None:
    warming = [report(n, 1.0, rate=1e-3, lr_time=0.001 * n, loss=F0 * UNTRAINED) for n in range(1, 4)]
    trial = History(9, warming, TrainingConfig(epochs=EPOCHS, learning_rate=1e-3), CONSTANT_WER)
    decision = decide(trial, SIBLINGS, FLOORS)
    assert decision is None or decision.rule != "futile"


def test_a_sibling_that_took_off_in_its_first_epoch_says_nothing_about_the_plateau() -> None:
    at_once = history(1e-2, 1, 0.3, ended=True)
    decision = decide(until(history(TOO_LOW[0]), 5), [at_once], FLOORS)
    assert decision is not None
    assert decision.rule == "too_slow"


# exhausted: the siblings took off at epochs 2 and 3


QUICK = [history(1e-3, takeoff, 0.3, number=n, ended=True) for n, takeoff in enumerate((2, 3))]


@pytest.mark.parametrize(("rate", "epoch"), [(1e-3, 9), (5e-4, 18), (1e-2, 9)])
def test_three_times_the_slowest_takeoff_in_epochs_and_lr_time_is_enough(
    rate: float, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "LEAST_CHANCE", 0.0)  # this rule alone
    decision = first_decision(history(rate, down=2), QUICK)
    assert decision is not None
    assert (decision.rule, decision.verdict, decision.epoch) == ("exhausted", "never_learned", epoch)


def test_a_low_rate_gets_more_epochs_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "LEAST_CHANCE", 0.0)
    assert first_decision(history(2e-4, down=2), QUICK) is None


# dead by its own probes


def unused(epochs: int = EPOCHS, t: float = 0.5) -> History:
    """A run at the plateau's loss whose swap gap shows nothing, trained amply."""
    probes = {"probe/swap_t": t, "probe/swap_gap": 0.001, "probe/sequences": 110.0, "optim/step_ratio": 0.4}
    reports = [
        replace(r, metrics={**r.metrics, **probes}, step=200 * r.epoch, lr_time=0.2 * r.epoch)
        for r in history(1e-3, down=2, epochs=epochs).reports
    ]
    return History(7, reports, TrainingConfig(epochs=epochs, learning_rate=1e-3), CONSTANT_WER)


def test_a_run_proved_not_to_use_its_input_is_stopped_without_any_sibling() -> None:
    decision = first_decision(unused(), [])
    assert decision is not None
    assert (decision.rule, decision.verdict) == ("input_not_used", "never_learned")
    assert decision.epoch == 10
    assert decision.siblings == ()


def test_a_run_whose_swap_gap_shows_is_not() -> None:
    assert first_decision(unused(t=4.0), []) is None


# too_slow


def test_a_run_that_learns_too_slowly_is_stopped_and_not_called_dead() -> None:
    decision = first_decision(history(1e-3, 6, 0.6), SIBLINGS)
    assert decision is not None
    assert (decision.rule, decision.verdict) == ("too_slow", "too_slow")
    assert decision.numbers["chance"] < decision.thresholds["least_chance"]
    assert decision.thresholds["wer_to_beat"] == pytest.approx(0.20, abs=0.01)


def test_the_best_four_are_what_it_is_compared_with() -> None:
    decision = first_decision(history(1e-3, 6, 0.6, number=9), SIBLINGS)
    assert decision is not None
    assert decision.siblings == (0, 1, 2, 4)  # not the one that came to 0.41


def test_a_trial_that_a_rule_stopped_is_no_measure_while_there_is_another() -> None:
    stopped = replace(until(history(4.4e-3, 2, 0.1, number=8), 4), ended=True, stopped=True)
    (anchor, *_), alone = Ranking([*SIBLINGS, stopped]).best(), Ranking([stopped]).best()
    assert anchor.number == 2
    assert alone == [stopped]


def test_in_the_plateau_wer_alone_stops_nobody() -> None:
    trial = history(1e-3)
    blind = replace(trial, reports=without_metrics(list(trial.reports), "dev/loss", "train/loss"))
    decision = decide(until(blind, 8), SIBLINGS, FLOORS)
    assert decision is None


def test_wer_alone_stops_who_learns_and_falls_behind() -> None:
    trial = history(1e-3, 6, 0.7)
    blind = replace(trial, reports=[EpochReport(r.epoch, r.step, {"dev/wer": r.wer}) for r in trial.reports])
    siblings = [replace(s, reports=[EpochReport(r.epoch, r.step, {"dev/wer": r.wer}) for r in s.reports])
                for s in SIBLINGS]  # fmt: skip
    decision = first_decision(blind, siblings)
    assert decision is not None
    assert decision.rule == "too_slow"
    assert "loss" not in decision.reason


def test_a_long_warm_up_does_not_count_as_being_behind() -> None:
    # Two epochs of peak rate lost to the warm-up: at epoch 5 it is where the others were at 3.
    config = TrainingConfig(epochs=EPOCHS, learning_rate=2e-3, warmup_start_factor=0.2, warmup_epochs=5)
    plain = history(2e-3, 5, 0.25)
    late = History(9, [replace(plain.reports[max(0, n - 3)], epoch=n) for n in range(1, EPOCHS + 1)], config, 0.92)
    seen = pruning.outlook(until(late, 6), SIBLINGS[:3], FLOORS)
    blind = pruning.outlook(replace(until(late, 6), config=plain.config), SIBLINGS[:3], FLOORS)
    assert late.lost_to_warmup == 2
    assert seen.wer < blind.wer


def test_what_would_have_kept_it_would_have() -> None:
    trial = history(1e-3, 6, 0.6)
    decision = first_decision(trial, SIBLINGS)
    assert decision is not None
    (said,) = re.findall(r"of ([\d.]+)", decision.counterfactual)
    reports = list(trial.reports[: decision.epoch])
    key = "dev/wer" if "WER" in decision.counterfactual else "dev/loss"
    value = float(said) / 100 if key == "dev/wer" else float(said)
    for change, kept in ((0.97, True), (1.03, False)):
        reports[-1] = replace(reports[-1], metrics={**reports[-1].metrics, key: value * change})
        assert (decide(replace(trial, reports=reports), SIBLINGS, FLOORS) is None) == kept


@pytest.mark.parametrize("with_loss", [True, False])
def test_it_would_have_with_a_loss_above_the_cap_and_without_any(with_loss: bool) -> None:
    def seen(run: History) -> History:
        return run if with_loss else replace(run, reports=without_metrics(list(run.reports), "dev/loss", "train/loss"))

    trial = seen(history(1e-3, 16, 0.5) if with_loss else history(1e-3, 6, 0.6))
    siblings = [seen(s) for s in SIBLINGS]
    decision = first_decision(trial, siblings)
    assert decision is not None
    assert decision.rule == "too_slow"
    (said,) = re.findall(r"of ([\d.]+)", decision.counterfactual)
    key, value = ("dev/loss", float(said)) if with_loss else ("dev/wer", float(said) / 100)
    assert ("loss" in decision.counterfactual) == with_loss
    reports = list(trial.reports[: decision.epoch])
    for change, kept in ((0.97, True), (1.03, False)):
        reports[-1] = replace(reports[-1], metrics={**reports[-1].metrics, key: value * change})
        assert (decide(replace(trial, reports=reports), siblings, FLOORS) is None) == kept


def test_without_lr_time_nobody_is_called_dead_for_its_lack() -> None:
    def blind(run: History) -> History:
        return replace(run, reports=[EpochReport(r.epoch, r.step, {"dev/wer": r.wer}) for r in run.reports])

    assert first_decision(blind(history(1e-3)), [blind(s) for s in QUICK]) is None


def test_a_sweep_whose_trials_surprise_is_judged_with_more_caution() -> None:
    steady = [history(1e-3, 5, 0.2 + 0.01 * n, number=n, ended=True) for n in range(6)]
    wild = [history(1e-3, 5, best, number=n, ended=True) for n, best in enumerate((0.1, 0.5, 0.2, 0.6, 0.15, 0.7))]
    trial = until(history(1e-3, 6, 0.6, number=9), 7)
    assert pruning.outlook(trial, wild, FLOORS).spread > pruning.outlook(trial, steady, FLOORS).spread


def test_the_first_trials_are_judged_by_the_default_spread() -> None:
    trial = until(history(1e-3, 6, 0.6), 12)
    assert pruning.outlook(trial, SIBLINGS[:1], FLOORS).spread == pruning.default_spread(0.5)


# what every decision is


@pytest.mark.parametrize(
    ("run", "siblings"),
    [(history(2e-5, number=9), SIBLINGS), (history(1e-3, 6, 0.6, number=9), SIBLINGS), (unused(), [])],
    ids=["futile", "too_slow", "input_not_used"],
)
def test_a_decision_says_its_numbers_and_what_would_have_changed_it(run: History, siblings: list[History]) -> None:
    decision = first_decision(run, siblings)
    assert decision is not None
    assert f"{decision.epoch}" in decision.reason
    assert re.search(r"\d", decision.counterfactual)
    assert all(math.isfinite(v) for v in (*decision.numbers.values(), *decision.thresholds.values()))
    assert decision.numbers.keys().isdisjoint(decision.thresholds)
    for sentence in (decision.reason, decision.counterfactual):
        assert sentence.endswith(".")
        assert "\n" not in sentence
        assert "nan" not in sentence


def test_one_trial_is_not_trials() -> None:
    decision = first_decision(history(2e-5), SIBLINGS[:1])
    assert decision is not None
    assert "1 trial that took off" in decision.reason
