"""What the sampler hears of a trial, for any curve."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from model.diagnosis import takeoff_epoch, verdict_of
from model.types import EpochReport
from sweeps.study import value_for_sampler

numbers = st.floats(0, 1e6) | st.sampled_from([0.0, 0.87, 1.0, math.nan, math.inf])


def reports(rows: list[tuple[float, float]]) -> list[EpochReport]:
    """From WER and dev loss of each epoch."""
    return [EpochReport(n, n, {"dev/wer": wer, "dev/loss": loss}, 10) for n, (wer, loss) in enumerate(rows, start=1)]


curves = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8).map(reports)
constants = st.floats(0.5, 1.5)
endings = st.sampled_from(["itself", "too_slow", "diverged"])


def value(curve: list[EpochReport], constant_wer: float, ending: str) -> float:
    verdict = verdict_of(wers(curve), constant_wer) if ending == "itself" else ending
    return value_for_sampler(curve, constant_wer, verdict)


def wers(curve: list[EpochReport]) -> list[float]:
    return [report.wer for report in curve]


@given(curves, curves, constants, endings)
def test_no_trial_that_never_learned_is_ahead_of_one_that_took_off(
    one: list[EpochReport], other: list[EpochReport], constant_wer: float, ending: str
) -> None:
    if verdict_of(wers(one), constant_wer) == "never_learned" and takeoff_epoch(wers(other), constant_wer):
        assert value(other, constant_wer, ending) < value(one, constant_wer, "itself")


@given(curves, curves, constants)
def test_what_was_stopped_as_too_slow_is_ahead_of_the_dead(
    one: list[EpochReport], other: list[EpochReport], constant_wer: float
) -> None:
    if verdict_of(wers(one), constant_wer) == "never_learned":
        assert value(other, constant_wer, "too_slow") <= value(one, constant_wer, "itself")


@given(curves, st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=1, max_size=8), constants)
def test_and_behind_what_was_better_at_the_same_epoch_and_learned(
    rest: list[EpochReport], pairs: list[tuple[float, float]], constant_wer: float
) -> None:
    """`ahead` is never worse than `behind`, which is stopped; `ahead` goes on as it likes."""
    ahead, behind = reports([(min(pair), 4.0) for pair in pairs]), reports([(max(pair), 4.0) for pair in pairs])
    longer = [*ahead, *rest]
    if takeoff_epoch(wers(longer), constant_wer):
        assert value(longer, constant_wer, "itself") <= value(behind, constant_wer, "too_slow")


@given(curves, curves, constants, endings)
def test_none_is_behind_one_that_diverged_before_takeoff(
    one: list[EpochReport], other: list[EpochReport], constant_wer: float, ending: str
) -> None:
    found = value(one, constant_wer, "diverged")
    assert not math.isnan(found)
    if takeoff_epoch(wers(one), constant_wer) is None:
        assert value(other, constant_wer, ending) <= found == math.inf
