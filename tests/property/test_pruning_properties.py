"""What holds of pruning whatever the curves are."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from model.diagnosis import takeoff_epoch
from model.types import EpochReport, TrainingConfig
from sweeps.pruning import FIRST_RUNG, Decision, decide
from tests.curves import CONSTANT_WER, report

WERS = st.floats(0.0, 1.3) | st.just(1.0) | st.just(math.nan)
EPOCHS = st.tuples(WERS, st.floats(0.0, 6.0) | st.just(math.nan), st.floats(0.0, 0.02))


@st.composite
def curves(draw: st.DrawFn, min_size: int = 1) -> list[EpochReport]:
    """A run of up to 30 epochs; its LR-time never falls."""
    curve: list[EpochReport] = []
    for epoch, (wer, spread, rate) in enumerate(draw(st.lists(EPOCHS, min_size=min_size, max_size=30)), start=1):
        lr_time = (curve[-1].lr_time if curve else 0.0) + 60 * rate
        curve.append(report(epoch, wer, rate=rate, spread=spread, lr_time=lr_time))
    return curve


SIBLINGS = st.lists(curves(0), max_size=6)
RATES = st.floats(1e-6, 0.1)


def ask(curve: Sequence[EpochReport], siblings: Sequence[Sequence[EpochReport]], rate: float) -> Decision | None:
    return decide(curve, siblings, TrainingConfig(epochs=40, learning_rate=rate), CONSTANT_WER)


@given(curves(), SIBLINGS, RATES)
def test_a_decision_is_one_that_can_be_stored(
    curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float
) -> None:
    decision = ask(curve, siblings, rate)
    if decision is not None:
        assert all(math.isfinite(value) for value in decision.evidence.values())
        assert "\n" not in decision.reason
        assert decision.evidence["epoch"] == curve[-1].epoch


@given(curves(), SIBLINGS, RATES, st.integers(1, 40))
def test_nothing_is_stopped_before_grace(
    curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float, grace: int
) -> None:
    settings = TrainingConfig(epochs=40, learning_rate=rate)
    if decide(curve, siblings, settings, CONSTANT_WER, grace) is not None:
        assert len(curve) >= grace
    if ask(curve, siblings, rate) is not None:
        assert len(curve) >= 8


@given(curves(), SIBLINGS, RATES)
def test_who_took_off_is_left_alone_until_the_first_rung_and_then_judged_by_wer(
    curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float
) -> None:
    decision = ask(curve, siblings, rate)
    takeoff = takeoff_epoch([r.wer for r in curve], CONSTANT_WER)
    if decision is not None and takeoff is not None:
        assert decision.rule == "too_slow"
        assert len(curve) >= takeoff + FIRST_RUNG
    elif decision is not None:
        assert decision.rule in ("futile", "exhausted")


@given(curves(), SIBLINGS, RATES)
def test_the_best_run_of_all_is_never_too_slow(
    curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float
) -> None:
    wers = [r.wer for s in (curve, *siblings) for r in s if math.isfinite(r.wer)]
    if wers and min(wers) in [r.wer for r in curve]:
        decision = ask(curve, siblings, rate)
        assert decision is None or decision.rule != "too_slow"


@given(curves(), SIBLINGS, RATES, st.integers(2, 4))
def test_in_the_plateau_more_of_the_same_siblings_change_nothing(
    curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float, times: int
) -> None:
    if takeoff_epoch([r.wer for r in curve], CONSTANT_WER) is not None:
        return
    once, often = ask(curve, siblings, rate), ask(curve, siblings * times, rate)
    assert (once and once.rule) == (often and often.rule)


@given(curves(), SIBLINGS, RATES)
def test_siblings_have_no_order(curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float) -> None:
    assert ask(curve, siblings, rate) == ask(curve, siblings[::-1], rate)


@given(curves(), st.lists(curves(), max_size=6), RATES)
def test_who_reaches_a_siblings_lr_time_is_not_futile(
    curve: list[EpochReport], siblings: list[list[EpochReport]], rate: float
) -> None:
    decision = ask(curve, siblings, rate)
    if decision is not None and decision.rule == "futile":
        assert decision.evidence["lr_time_end"] < decision.evidence["lr_time_needed"] / 2
        assert decision.evidence["spread_end"] < decision.evidence["spread_needed"] / 2
