"""Faults strike once, and pass over an attempt that would be its trial's last: however the workers' steps fall."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.records import Claim
from sweeps.states import SweepState, TrialState
from sweeps.store import MAX_ATTEMPTS, Store
from tests.faults.armed import arm
from tests.faults.points import Fault, Plan


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}")
    sweep = store.create_sweep("s", {}, "", {"trials": 3}, {}, [])
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    yield store
    store.close()


def armed(monkeypatch: pytest.MonkeyPatch, folder: Path, *faults: Fault) -> Plan:
    monkeypatch.setattr(Store, "claim", Store.claim)  # so that it is put back
    plan = Plan(folder / "plan", faults)
    plan.write()
    arm(plan, "worker")
    return plan


def failed(store: Store) -> tuple[int, int, TrialState]:
    """An attempt that comes to nothing: its trial, which attempt it is, and what the trial comes to."""
    claim: Claim | None = store.claim(1, "w", 60)
    assert claim is not None
    return claim.number, claim.attempt, store.attempt_failed(claim, "nothing came of it")


class TestFaults:
    def test_a_hard_one_passes_over_a_last_attempt_and_strikes_the_next(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        wanted = (Fault("claim", "after", n, "hang") for n in range(1, MAX_ATTEMPTS + 1))
        plan = armed(monkeypatch, tmp_path, *wanted)
        attempts = [failed(store) for _ in range(MAX_ATTEMPTS)]
        assert attempts[-1] == (0, MAX_ATTEMPTS, TrialState.FAILED)
        assert len(plan.fired()) == MAX_ATTEMPTS - 1, "the last attempt is passed over"
        assert failed(store)[:2] == (1, 1)
        assert plan.silent() == [], "and the next is struck"

    def test_one_that_costs_no_attempt_strikes_a_last_one(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        plan = armed(monkeypatch, tmp_path, Fault("claim", "after", MAX_ATTEMPTS, "call"))
        for _ in range(MAX_ATTEMPTS):
            assert not plan.fired()
            failed(store)
        assert len(plan.fired()) == 1

    def test_each_strikes_once(self, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        plan = armed(monkeypatch, tmp_path, Fault("claim", "after", 1, "hang"))
        for _ in range(MAX_ATTEMPTS + 1):
            failed(store)
        assert len(plan.fired()) == 1
