"""Each rule stops the run it is for, and leaves the slow starters alone."""

from __future__ import annotations

import copy
import itertools
import math
import random
import re
from collections.abc import Sequence

import pytest

from model.types import METRICS, EpochReport, TrainingConfig
from sweeps.pruning import FIRST_RUNG, Curve, Decision, decide
from tests.curves import CONSTANT_WER, STEPS, report, run, without_metrics

EPOCHS = 24


def config(rate: float, epochs: int = EPOCHS) -> TrainingConfig:
    return TrainingConfig(epochs=epochs, learning_rate=rate)


def first_decision(
    curve: Curve, siblings: Sequence[Curve], rate: float, epochs: int = EPOCHS, grace: int | None = None
) -> Decision | None:
    """What stops the run, asked after each of its epochs as a worker does."""
    settings = config(rate, epochs)
    asked = (decide(curve[:n], siblings, settings, CONSTANT_WER, grace) for n in range(1, min(len(curve), epochs)))
    return next((decision for decision in asked if decision), None)


# Shapes after the measured runs (docs: 26 runs of a small student, 24 epochs): learning rate, time spread at epoch 3,
# epoch of takeoff, best WER.
FAST = [(1.1e-3, 0.72, 6, 0.36), (2.0e-3, 1.0, 5, 0.25), (4.4e-3, 1.48, 5, 0.20)]
HOT = [(5.1e-3, 1.5, 4, 0.42), (1.1e-2, 5.8, 3, 0.66)]
MIDDLE = [(4.9e-4, 0.41, 9, 0.41), (9.1e-4, 0.48, 7, 0.25)]
SLOW = [(1.7e-4, 0.23, 17, 0.68), (2.2e-4, 0.26, 15, 0.63)]
TOO_LOW = [(1.6e-5, 0.02, None, 1.0), (3.0e-5, 0.04, None, 1.0), (5e-5, 0.04, None, 1.0)]


def shaped(shape: tuple[float, float, int | None, float], epochs: int = EPOCHS) -> list[EpochReport]:
    rate, spread, takeoff, best = shape
    return run(epochs, rate, takeoff=takeoff, falls_to=best, spread_at_3=spread)


SIBLINGS = [shaped(shape) for shape in (*FAST, *MIDDLE)]


@pytest.mark.parametrize("shape", TOO_LOW)
def test_a_rate_too_low_to_take_off_is_futile_at_the_end_of_grace(
    shape: tuple[float, float, int | None, float],
) -> None:
    decision = first_decision(shaped(shape), SIBLINGS, shape[0])
    assert decision is not None
    assert (decision.rule, decision.verdict, decision.evidence["epoch"]) == ("futile", "never_learned", 4)


@pytest.mark.parametrize("shape", [*SLOW, *MIDDLE, *FAST, *HOT])
@pytest.mark.parametrize("siblings", [FAST, MIDDLE, HOT, FAST + MIDDLE, FAST + HOT, SLOW + FAST + MIDDLE + HOT])
def test_no_run_that_took_off_in_the_measurements_is_stopped_in_its_plateau(
    shape: tuple[float, float, int, float], siblings: list[tuple[float, float, int, float]]
) -> None:
    plateau = shaped(shape)[: shape[2]]
    assert first_decision(plateau, [shaped(s) for s in siblings if s != shape], shape[0]) is None


def test_neither_condition_of_futility_is_enough() -> None:
    low = TOO_LOW[0]
    assert first_decision(shaped((low[0], 1.0, None, 1.0)), SIBLINGS, low[0]) is None, "its outputs move with time"
    assert first_decision(shaped((1e-3, 0.02, None, 1.0)), SIBLINGS, 1e-3, epochs=20) is None, "its rate is enough"


@pytest.mark.parametrize(("share", "stopped"), [(0.3, True), (0.35, True), (0.45, False), (0.6, False), (0.9, False)])
def test_a_run_that_will_have_what_healthy_ones_differ_by_is_kept(share: float, stopped: bool) -> None:
    # LR-time at takeoff differs 2.5-fold between healthy runs: 40 % of the quickest sibling's may do.
    quickest = run(EPOCHS, 1e-3, takeoff=9, spread_at_3=0.375)  # before takeoff: 0.48 of LR-time, a spread of 1 nat
    curve = run(EPOCHS, share * 0.48 / (EPOCHS * STEPS), spread_at_3=share * 3 / EPOCHS)
    decision = first_decision(curve, [quickest], curve[-1].metrics["optim/lr"])
    assert (decision is not None) == stopped


def test_a_warm_up_is_judged_by_the_rate_it_leads_to() -> None:
    warming = [report(n, 1.0, rate=1e-3, spread=0.02, lr_time=0.001 * n) for n in range(1, 6)]
    assert decide(warming, SIBLINGS, config(1e-3), CONSTANT_WER) is None


@pytest.mark.parametrize("siblings", [[], [shaped(s) for s in TOO_LOW], [[]], [shaped(FAST[0])[:4]]])
def test_without_a_sibling_that_took_off_nothing_is_stopped(siblings: list[Curve]) -> None:
    assert first_decision(shaped(TOO_LOW[0]), siblings, TOO_LOW[0][0]) is None


def test_a_sibling_that_took_off_in_its_first_epoch_says_nothing_about_the_plateau() -> None:
    at_once = run(EPOCHS, 1e-2, takeoff=1, spread_at_3=5.0)
    assert decide(shaped(TOO_LOW[0])[:5], [at_once], config(TOO_LOW[0][0]), CONSTANT_WER) is None


@pytest.mark.parametrize(("epochs", "grace", "expected"), [(24, None, 4), (10, None, 4), (60, None, 12), (24, 7, 7)])
def test_nothing_is_stopped_in_grace(epochs: int, grace: int | None, expected: int) -> None:
    decision = first_decision(run(epochs, 1e-6, spread_at_3=0.001), SIBLINGS, 1e-6, epochs, grace)
    assert decision is not None
    assert decision.evidence["epoch"] == expected


# exhausted: the siblings took off at epochs 2 and 3


QUICK = [run(EPOCHS, 1e-3, takeoff=2, spread_at_3=1.0), run(EPOCHS, 1e-3, takeoff=3, spread_at_3=1.0)]


@pytest.mark.parametrize(("rate", "epoch"), [(1e-3, 9), (5e-4, 18), (1e-2, 9)])
def test_three_times_the_slowest_takeoff_in_epochs_and_lr_time_is_enough(rate: float, epoch: int) -> None:
    decision = first_decision(run(EPOCHS, rate, spread_at_3=1.0), QUICK, rate)
    assert decision is not None
    assert (decision.rule, decision.verdict, decision.evidence["epoch"]) == ("exhausted", "never_learned", epoch)


def test_a_low_rate_gets_more_epochs_than_there_are() -> None:
    assert first_decision(run(EPOCHS, 2e-4, spread_at_3=1.0), QUICK, 2e-4) is None


# too_slow: counted from takeoff


def late(best: float, takeoff: int = 4) -> list[EpochReport]:
    return run(EPOCHS, 1e-3, takeoff=takeoff, falls_to=best, spread_at_3=1.0)


THREE = [late(0.2), late(0.3), late(0.4)]


def test_a_run_that_learns_too_slowly_is_stopped_at_the_first_rung() -> None:
    decision = first_decision(late(0.6, takeoff=6), THREE, 1e-3)
    assert decision is not None
    assert (decision.rule, decision.verdict) == ("too_slow", "too_slow")
    assert (decision.evidence["epoch"], decision.evidence["since_takeoff"]) == (6 + FIRST_RUNG, FIRST_RUNG)


def test_wer_is_compared_at_rungs_alone() -> None:
    slow = late(0.6, takeoff=2)
    asked = [decide(slow[:n], THREE, config(1e-3), CONSTANT_WER, grace_epochs=1) for n in range(1, 24)]
    assert [n for n, decision in enumerate(asked, start=1) if decision] == [2 + FIRST_RUNG, 2 + 2 * FIRST_RUNG]


@pytest.mark.parametrize("siblings", [0, 1, 2])
def test_two_siblings_at_a_rung_decide_nothing(siblings: int) -> None:
    assert first_decision(late(0.7), [*THREE[:siblings], late(0.2)[: 3 + FIRST_RUNG]], 1e-3) is None


@pytest.mark.parametrize("best", [0.2, 0.25, 0.29])
def test_a_run_near_the_best_is_kept_even_below_the_median(best: float) -> None:
    assert first_decision(late(best), [late(0.2)] * 3, 1e-3) is None


def test_a_run_as_good_as_the_median_is_kept_however_good_the_best_is() -> None:
    assert first_decision(late(0.5), [late(0.1), late(0.5), late(0.6)], 1e-3) is None


def test_the_best_so_far_counts_not_the_last() -> None:
    relapsed = late(0.2)
    relapsed[3 + FIRST_RUNG] = report(4 + FIRST_RUNG, 0.9, rate=1e-3)
    assert decide(relapsed[: 4 + FIRST_RUNG], THREE, config(1e-3), CONSTANT_WER) is None


# all of them


DECISIONS = {
    "futile": (shaped(TOO_LOW[0])[:4], SIBLINGS, 1.6e-5),
    "exhausted": (run(9, 1e-3, spread_at_3=1.0), QUICK, 1e-3),
    "too_slow": (late(0.6)[: 4 + FIRST_RUNG], THREE, 1e-3),
}


def decision_of(rule: str) -> Decision:
    curve, siblings, rate = DECISIONS[rule]
    decision = decide(curve, siblings, config(rate), CONSTANT_WER)
    assert decision is not None
    return decision


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        ("futile", {"lr_time_end": ".2g", "lr_time_needed": ".2g", "spread_end": ".2g", "spread_needed": ".2g"}),
        ("exhausted", {"lr_time": ".2g", "latest_takeoff": "g", "lr_time_needed": ".2g", "factor": "g"}),
        ("too_slow", {"since_takeoff": "g", "best_wer": ".1%", "median": ".1%", "best": ".1%"}),
    ],
)
def test_the_sentence_holds_the_numbers(rule: str, numbers: dict[str, str]) -> None:
    decision = decision_of(rule)
    assert decision.rule == rule
    for name, form in {**numbers, "epoch": "g", "siblings": "g"}.items():
        if name == "epoch" and rule == "too_slow":
            continue  # there it is told as takeoff and epochs since
        assert format(decision.evidence[name], form) in decision.reason, name
    assert "would have kept it" in decision.reason or "may have changed this" in decision.reason
    assert decision.reason == " ".join(decision.reason.split())
    assert all(math.isfinite(value) for value in decision.evidence.values())


def test_the_futile_are_told_a_rate_that_would_have_been_kept() -> None:
    decision = decision_of("futile")
    told = re.search(r"A learning rate above (\S+) would have kept it", decision.reason)
    assert told is not None
    for share, stopped in ((0.95, True), (1.05, False)):  # the sentence rounds
        rate = share * float(told[1])
        found = decide(run(4, rate, spread_at_3=0.02), SIBLINGS, config(rate), CONSTANT_WER)
        assert (found is not None) == stopped


def test_decide_is_pure() -> None:
    for curve, siblings, rate in DECISIONS.values():
        before = copy.deepcopy((curve, siblings))
        first = decide(curve, siblings, config(rate), CONSTANT_WER)
        assert (curve, siblings) == before
        for order in itertools.islice(itertools.permutations(siblings), 6):
            assert decide(tuple(curve), list(order), config(rate), CONSTANT_WER) == first


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("names", [(), *((name,) for name in ("dev/wer", "spread/time", "optim/lr"))])
def test_metrics_that_are_not_finite_never_crash_it(value: float, names: tuple[str, ...]) -> None:
    choose = random.Random(0)
    for curve, siblings, rate in DECISIONS.values():
        for _ in range(20):
            torn = [without_metrics([r], *names, value=value)[0] if choose.random() < 0.4 else r for r in curve]
            others = [
                [without_metrics([r], *names, value=value)[0] if choose.random() < 0.4 else r for r in s]
                for s in siblings
            ]
            decision = decide(torn, others, config(rate), CONSTANT_WER)
            # What it decided is stored, and a store takes finite numbers alone.
            assert decision is None or all(math.isfinite(v) for v in decision.evidence.values())


def test_a_wer_that_is_not_finite_is_no_takeoff() -> None:
    nothing = without_metrics(shaped(FAST[0]), *METRICS)
    assert first_decision(shaped(TOO_LOW[0]), [nothing], TOO_LOW[0][0]) is None
    assert first_decision(nothing, SIBLINGS, FAST[0][0]) is None
