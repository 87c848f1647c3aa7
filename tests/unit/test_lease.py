"""A lease is kept while training moves, and lost when it does not."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from sweeps.errors import DatabaseUnavailable
from sweeps.lease import Lease
from sweeps.records import Claim
from sweeps.store import Store

SECONDS = 0.15
CLAIM = Claim(1, 2, 3, None, 1, {}, {}, True, None, 0)


class Renewals:
    """The part of a store that a lease uses; `answer` is what it says, or the error it raises."""

    def __init__(self, *answers: bool | Exception) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.at: list[float] = []
        self.asked = threading.Event()

    def renew(self, claim: Claim, seconds: float) -> bool:
        assert (claim, seconds) == (CLAIM, SECONDS)
        self.at.append(time.monotonic())
        self.asked.set()
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def lease(renewals: Renewals, progress: Callable[[], int]) -> Lease:
    return Lease(cast(Store, cast(Any, renewals)), CLAIM, SECONDS, progress)


def moving() -> Callable[[], int]:
    return itertools.count().__next__


def test_it_is_renewed_every_third_while_training_moves() -> None:
    renewals = Renewals(True)
    with lease(renewals, moving()) as held:
        assert not held.lost.wait(4 * SECONDS)
    assert 3 <= len(renewals.at) <= 12
    gaps = [b - a for a, b in itertools.pairwise(renewals.at)]
    assert min(gaps) > 0.9 * SECONDS / 3


def test_a_frozen_trainer_loses_it(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals(True)
    with lease(renewals, lambda: 7) as held, caplog.at_level(logging.WARNING):
        begun = time.monotonic()
        assert held.lost.wait(10)
        assert time.monotonic() - begun > SECONDS
    assert len(renewals.at) == 1, "the first look: it moved from nothing to 7"
    assert "trial 3 has not moved" in caplog.text


def test_a_trainer_that_moves_again_in_time_keeps_it() -> None:
    steps = itertools.cycle([1, 1, 2, 2])  # every other look sees it standing still
    with lease(Renewals(True), lambda: next(steps)) as held:
        assert not held.lost.wait(3 * SECONDS)


def test_it_is_lost_at_once_when_the_database_says_so(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals(False)
    with lease(renewals, moving()) as held:
        assert held.lost.wait(10)
        time.sleep(SECONDS)
    assert len(renewals.at) == 1, "nobody asks for what another worker has"
    assert "trial 3 is no longer ours" in caplog.text


def test_a_database_that_comes_back_in_time_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals(DatabaseUnavailable("sqlite://", "locked"), True)
    with lease(renewals, moving()) as held:
        assert not held.lost.wait(3 * SECONDS)
    assert "the lease of trial 3 could not be renewed" in caplog.text


def test_one_that_stays_away_does(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals(DatabaseUnavailable("sqlite://", "locked"))
    with lease(renewals, moving()) as held:
        begun = time.monotonic()
        assert held.lost.wait(10)
        assert time.monotonic() - begun > SECONDS
    assert len(renewals.at) >= 2


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    """The database counts from before its answer comes: a lease that took long to renew is shorter by that."""
    looks: list[int] = []

    class Slow(Renewals):
        def renew(self, claim: Claim, seconds: float) -> bool:
            answer = super().renew(claim, seconds)
            time.sleep(2 * SECONDS)
            return answer

    def progress() -> int:
        looks.append(len(looks))
        return len(looks)

    with lease(Slow(True), progress) as held:
        assert held.lost.wait(10)
    assert len(looks) == 1, "it was over when the answer came"


def test_the_thread_ends_with_the_block() -> None:
    before = threading.active_count()

    def fail() -> None:
        with lease(Renewals(True), moving()):
            assert threading.active_count() == before + 1
            raise RuntimeError("of the trial")

    with pytest.raises(RuntimeError, match="of the trial"):
        fail()
    assert threading.active_count() == before
