from __future__ import annotations

import math

import pytest

from model.diagnosis import Phase, Verdict, best_epoch, is_diverged, phase_of, takeoff_epoch, verdict_of

FLOOR = 0.93
NAN = math.nan


@pytest.mark.parametrize(
    ("wers", "epoch", "phase"),
    [
        ([], None, "checking"),
        ([1.0], None, "plateau"),
        ([1.0] * 40, None, "plateau"),
        ([0.93] * 40, None, "plateau"),  # the constant sentence itself
        ([1.0, 0.89, 0.9, 0.885], None, "plateau"),  # a lucky sentence or two is no takeoff
        ([NAN, NAN], None, "plateau"),
        ([1.0, 1.0, 1.0, 0.87], 4, "learning"),
        ([1.0, 0.88, 0.95, 0.7], 2, "learning"),  # once taken off, a bad epoch is still learning
        ([NAN, 0.5], 2, "learning"),
        ([0.2], 1, "learning"),
    ],
)
def test_takeoff_and_phase(wers: list[float], epoch: int | None, phase: Phase) -> None:
    assert takeoff_epoch(wers, FLOOR) == epoch
    assert phase_of(wers, FLOOR) == phase


@pytest.mark.parametrize(
    ("wers", "verdict"),
    [
        ([], "never_learned"),
        ([1.0] * 15, "never_learned"),  # the user's own run
        ([1.0] * 23 + [0.9], "never_learned"),
        ([NAN] * 5, "never_learned"),
        ([1.0] * 23 + [0.87], "learned"),  # a slow starter whose last epoch took off
        ([1.0, 0.8, 0.5, 0.3], "learned"),
        ([1.0, 0.5, 1.0, 1.0], "learned"),  # two bad epochs may pass
        ([1.0, 0.5, 1.0, 1.0, 0.6], "learned"),
        ([1.0, 0.5, 1.0, 1.0, 0.92], "learned"),
        ([1.0, 0.5, 1.0, 0.93, 1.0], "collapsed"),
        ([1.0, 0.5, NAN, NAN, NAN], "collapsed"),
        ([0.5, 1.0], "learned"),
    ],
)
def test_verdict(wers: list[float], verdict: Verdict) -> None:
    assert verdict_of(wers, FLOOR) == verdict


@pytest.mark.parametrize(
    ("steps", "skipped", "diverged"),
    [(100, 0, False), (100, 1, False), (100, 2, True), (99, 1, True), (10, 1, True), (0, 0, False)],
)
def test_more_than_one_percent_is_diverged(steps: int, skipped: int, diverged: bool) -> None:
    assert is_diverged(steps, skipped) is diverged


@pytest.mark.parametrize(
    ("wers", "best"),
    [
        ([], None),
        ([NAN, math.inf], None),
        ([0.9, 0.5, 0.5, 0.7], (2, 0.5)),  # the earlier of equals
        ([NAN, 0.9], (2, 0.9)),
    ],
)
def test_best_epoch(wers: list[float], best: tuple[int, float] | None) -> None:
    assert best_epoch(wers) == best
