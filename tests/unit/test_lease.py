"""A lease is kept while training moves, and lost when it does not."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from sweeps.errors import DatabaseUnavailable
from sweeps.lease import Lease
from sweeps.records import Claim
from sweeps.states import SweepState
from sweeps.store import Store

SECONDS = 0.15
CLAIM = Claim(1, 2, 3, None, 1, {}, {}, True, None, 0)
AWAY = DatabaseUnavailable("sqlite://", "locked")


class Renewals:
    """The part of a store that a lease uses; `answer` is what it says, or the error it raises."""

    def __init__(self, *answers: bool | Exception) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.at: list[float] = []
        self.state = SweepState.RUNNING

    def sweep_state(self, sweep_id: int) -> SweepState:
        assert sweep_id == CLAIM.sweep_id
        return self.state

    def renew(self, claim: Claim, seconds: float) -> bool:
        assert (claim, seconds) == (CLAIM, SECONDS)
        self.at.append(time.monotonic())
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def lease(renewals: Renewals, *, moves: bool = True, stop: threading.Event | None = None) -> Iterator[Lease]:
    """A lease whose trainer asks before every batch, if it moves."""
    done = threading.Event()
    with Lease(cast(Store, cast(Any, renewals)), CLAIM, SECONDS, stop or threading.Event()) as held:

        def train() -> None:
            while moves and not done.wait(0.005):
                held.should_stop()

        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            yield held
        finally:
            done.set()
            trainer.join()


def test_it_is_renewed_every_third_while_training_moves() -> None:
    renewals = Renewals(True)
    with lease(renewals) as held:
        assert not held.lapsed.wait(4 * SECONDS)
        assert not held.over
    assert 3 <= len(renewals.at) <= 12
    gaps = [b - a for a, b in itertools.pairwise(renewals.at)]
    assert min(gaps) > 0.9 * SECONDS / 3


def test_a_frozen_trainer_loses_it(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals(True)
    with lease(renewals, moves=False) as held, caplog.at_level(logging.WARNING):
        begun = time.monotonic()
        assert held.lapsed.wait(10)
        assert time.monotonic() - begun > SECONDS
        assert held.should_stop()
    assert len(renewals.at) == 1, "the first look: it may be about to begin"
    assert "trial 3 has not moved" in caplog.text


def test_a_trainer_that_moves_again_in_time_keeps_it() -> None:
    with lease(Renewals(True), moves=False) as held:
        for _ in range(8):
            assert not held.lapsed.wait(SECONDS / 2)
            held.should_stop()


def test_it_is_lost_at_once_when_the_database_says_so(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals(False)
    with lease(renewals) as held:
        assert held.lost.wait(10)
        time.sleep(SECONDS)
    assert len(renewals.at) == 1, "nobody asks for what another worker has"
    assert not held.lapsed.is_set()
    assert "trial 3 is no longer ours" in caplog.text


def test_a_database_that_comes_back_in_time_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with lease(Renewals(AWAY, True)) as held:
        assert not held.lapsed.wait(3 * SECONDS)
    assert "the lease of trial 3 could not be renewed" in caplog.text


def test_one_that_stays_away_does() -> None:
    renewals, begun = Renewals(AWAY), time.monotonic()
    with lease(renewals) as held:
        assert held.lapsed.wait(10)
        assert time.monotonic() - begun > SECONDS
        assert held.over
        assert not held.lost.is_set(), "the trial may be ours still: the database is asked when it is back"
    assert len(renewals.at) >= 2


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    """The database counts from before its answer comes: a lease that took long to renew is shorter by that."""

    class Slow(Renewals):
        def renew(self, claim: Claim, seconds: float) -> bool:
            answer = super().renew(claim, seconds)
            time.sleep(2 * SECONDS)
            return answer

    slow = Slow(True)
    with lease(slow) as held:
        assert held.lapsed.wait(10)
    assert len(slow.at) == 1, "it was over when the answer came"


def test_it_sees_that_the_sweep_is_being_cancelled_or_the_worker_stopped() -> None:
    renewals, stop = Renewals(True), threading.Event()
    with lease(renewals, stop=stop) as held:
        assert not held.should_stop()
        renewals.state = SweepState.STOPPING
        time.sleep(SECONDS)
        assert not held.should_stop(), "a sweep that is being stopped lets its trials finish"
        renewals.state = SweepState.CANCELLING
        assert held.cancelled.wait(10)
        assert held.should_stop()
    with lease(Renewals(True), stop=stop) as held:
        stop.set()
        assert held.should_stop()
        assert not held.over


@pytest.mark.parametrize("moves_again", [False, True])
def test_a_trainer_that_hangs_for_one_more_lease_is_given_up(moves_again: bool) -> None:
    hung = threading.Event()
    store = cast(Store, cast(Any, Renewals(True)))
    with Lease(store, CLAIM, SECONDS, threading.Event(), hung.set) as held:
        assert held.lapsed.wait(10)
        assert not hung.is_set()
        if moves_again:
            held.should_stop()
        assert hung.wait(3 * SECONDS) is not moves_again


def test_the_thread_ends_with_the_block() -> None:
    before = threading.active_count()

    def fail() -> None:
        with lease(Renewals(True)):
            assert threading.active_count() == before + 2
            raise RuntimeError("of the trial")

    with pytest.raises(RuntimeError, match="of the trial"):
        fail()
    assert threading.active_count() == before
