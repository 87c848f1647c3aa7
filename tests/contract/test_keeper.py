"""Who keeps a sweep, and what a pass of its keeper does: run on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps import checkpoints, keeper
from sweeps.errors import DatabaseUnavailable, SweepBusy
from sweeps.keeper import BREAKER, Keeper, end_if_over, has_work, holding
from sweeps.processes import started_at, this_host, this_runner
from sweeps.records import Claim, PlannedTrial, Runner, SweepRow, WorkerRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from tests.rows import VALUES, epoch_row

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 3}})
OTHER = Runner(id="other-1-2.00", host="elsewhere", pid=1)
EXPIRED = -1.0


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


@pytest.fixture
def sweep(store: Store) -> SweepRow:
    planned = [PlannedTrial("fixed", VALUES, {}, False)]
    return store.create_sweep("s", {}, "", {"trials": 3}, {"constant_wer": 0.9}, planned)


@pytest.fixture
def study(store: Store) -> Iterator[Study]:
    with closing(Study(store.url, SPEC)) as study:
        yield study


@pytest.fixture
def running(store: Store, sweep: SweepRow) -> SweepRow:
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    return now(store)


def now(store: Store) -> SweepRow:
    found = store.find_sweep("s")
    assert found is not None
    return found


def claimed(store: Store, sweep: SweepRow, worker: str, lease_seconds: float = 60) -> Claim:
    claim = store.claim(sweep.id, worker, lease_seconds)
    assert claim is not None
    return claim


def made(store: Store, study: Study, sweep: SweepRow, folder: Path, lease_seconds: float = 60) -> Keeper:
    return Keeper(store, study, sweep, lease_seconds, folder)


# who keeps it


def test_who_holds_a_sweep_keeps_others_away(store: Store, sweep: SweepRow) -> None:
    with (
        holding(store, sweep, OTHER),
        pytest.raises(SweepBusy, match="elsewhere"),
        holding(store, sweep, this_runner()),
    ):
        pytest.fail("two processes run one sweep")
    assert now(store).runner is None


def test_it_hears_that_another_has_taken_over(store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "BEAT_SECONDS", 0.05)
    with holding(store, sweep, this_runner()) as lost:
        assert not lost.wait(0.3)
        store.take_runner(sweep.id, OTHER, 0, lambda holder: True)
        assert lost.wait(10)
    assert now(store).runner == OTHER  # its going did not let the other one's hold go


# a pass


def test_a_pass_puts_back_what_dead_workers_of_this_host_held_and_no_others(
    store: Store, study: Study, running: SweepRow, tmp_path: Path
) -> None:
    me = psutil.Process()
    store.register_worker(WorkerRow("live", this_host(), me.pid, started_at(me), "cpu", {}))
    store.register_worker(WorkerRow("dead", this_host(), me.pid, started_at(me) - 1000, "cpu", {}))
    store.register_worker(WorkerRow("elsewhere", "another host", 1, 0.0, "cpu", {}))
    for name in ("live", "dead", "elsewhere"):
        claimed(store, running, name)
    made(store, study, running, tmp_path).make_pass()
    states = {trial.number: trial.state for trial in store.trials(running.id)}
    assert states == {0: TrialState.RUNNING, 1: TrialState.WAITING, 2: TrialState.RUNNING}


def test_after_an_outage_workers_get_one_lease_to_renew_theirs(
    store: Store, study: Study, running: SweepRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(store, running, "slow", EXPIRED)
    kept = made(store, study, running, tmp_path, lease_seconds=0.5)

    def away(*_: Any) -> None:
        raise DatabaseUnavailable("x", "away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "holders", away)
        with pytest.raises(DatabaseUnavailable):
            kept.make_pass()
    kept.make_pass()
    assert store.trial(running.id, 0).state is TrialState.RUNNING
    time.sleep(0.6)
    kept.make_pass()
    assert store.trial(running.id, 0).state is TrialState.WAITING


def test_what_ended_is_told_and_what_a_dead_worker_registered_is_failed_after_a_lease(
    store: Store, study: Study, running: SweepRow, tmp_path: Path
) -> None:
    kept = made(store, study, running, tmp_path, lease_seconds=0.3)
    first = claimed(store, running, "w")
    store.finish(first, TrialState.COMPLETE, "learned", "done", "epochs", {})
    claim = claimed(store, running, "w")
    store.set_hyperparameters(claim, VALUES, study.register(claim.number, None, VALUES))
    store.record(claim, [epoch_row(1)])
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
    orphan = study.register(2, None, VALUES)
    kept.make_pass()
    assert store.untold(running.id) == []
    assert study.orphans([]) == [orphan], "it may be a worker's that is about to write it down"
    time.sleep(0.4)
    kept.make_pass()
    assert study.orphans([]) == []


def test_once_the_sweep_has_ended_what_nobody_points_to_is_failed_at_once(
    store: Store, study: Study, running: SweepRow, tmp_path: Path
) -> None:
    kept = made(store, study, running, tmp_path)
    study.register(2, None, VALUES)
    for _ in range(3):
        kept.make_pass()
        assert study.orphans([]) != [], "while it runs it may be a worker's that is about to write it down"
        store.finish(claimed(store, running, "w"), TrialState.COMPLETE, "learned", "done", "epochs", {})
    assert kept.make_pass().state is SweepState.COMPLETE
    assert study.orphans([]) == []


def test_checkpoints_that_a_dead_worker_left_are_settled(
    store: Store, study: Study, running: SweepRow, tmp_path: Path
) -> None:
    store.finish(claimed(store, running, "w"), TrialState.COMPLETE, "learned", "done", "epochs", {})
    claimed(store, running, "v")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for number in (0, 1):
        for path in vars(checkpoints.trial_files(folder, number, 1)).values():
            path.write_bytes(b"weights")
    made(store, study, running, folder).make_pass()
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000.best.pt",
        "00000.pt",
        "00001.1.best.pt",
        "00001.1.previous.pt",
        "00001.1.pt",
    ]


# the end of a sweep


def test_a_spent_budget_is_one_step(store: Store, running: SweepRow) -> None:
    """A kill between two would have left a state that no run can leave."""
    store.update_budget(running.id, {"trials": 3, "total_epochs": 0})
    end_if_over(store, running.id)
    assert now(store).state is SweepState.STOPPED
    assert now(store).reason == (
        "its budget of 0 epochs is spent; 1 trial left waiting; raise budget.total_epochs and run it again to go on"
    )


def test_a_sweep_is_complete_once_its_trials_are_over_even_one_that_is_paused(store: Store, running: SweepRow) -> None:
    store.update_budget(running.id, {"trials": 1})
    claim = claimed(store, running, "w")
    end_if_over(store, running.id)
    assert now(store).state is SweepState.RUNNING
    store.set_sweep_state(running.id, SweepState.PAUSED, "asked")
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
    end_if_over(store, running.id)
    assert (now(store).state, now(store).reason) == (SweepState.COMPLETE, "all trials of its budget are done")


def test_a_sweep_that_is_stopped_ends_after_its_trials_under_way(store: Store, running: SweepRow) -> None:
    claim = claimed(store, running, "w")
    store.set_sweep_state(running.id, SweepState.STOPPING, "asked to")
    end_if_over(store, running.id)
    assert now(store).state is SweepState.STOPPING
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
    end_if_over(store, running.id)
    assert (now(store).state, now(store).reason) == (
        SweepState.STOPPED,
        "asked to",
    )


def test_a_cancelled_sweep_ends_with_its_waiting_trials(store: Store, running: SweepRow) -> None:
    store.enqueue(running.id, PlannedTrial("second", VALUES, {}, False))
    claim = claimed(store, running, "w")
    store.set_sweep_state(running.id, SweepState.CANCELLING, "asked to")
    end_if_over(store, running.id)
    assert [t.state for t in store.trials(running.id)] == [TrialState.RUNNING, TrialState.CANCELLED]
    assert now(store).state is SweepState.CANCELLING
    store.hand_back(claim, "it is cancelled")
    end_if_over(store, running.id)
    assert {t.state for t in store.trials(running.id)} == {TrialState.CANCELLED}
    assert (now(store).state, now(store).reason) == (SweepState.CANCELLED, "asked to")


def test_trials_that_fail_in_a_row_break_the_sweep_and_it_goes_on_when_told_to(store: Store, running: SweepRow) -> None:
    store.update_budget(running.id, {"trials": 40})

    def end(state: TrialState) -> SweepState:
        store.finish(claimed(store, running, "w"), state, None, f"it was {state}", "fault", {})
        end_if_over(store, running.id)
        return now(store).state

    assert {end(TrialState.FAILED) for _ in range(BREAKER - 1)} == {SweepState.RUNNING}
    assert end(TrialState.COMPLETE) is SweepState.RUNNING
    assert [end(TrialState.FAILED) for _ in range(BREAKER)] == [SweepState.RUNNING] * (BREAKER - 1) + [
        SweepState.FAILED
    ]
    assert "the last 5 trials that ended have failed, the last one with: it was FAILED" in now(store).reason
    store.set_sweep_state(running.id, SweepState.RUNNING)
    assert {end(TrialState.FAILED) for _ in range(BREAKER - 1)} == {SweepState.RUNNING}, "failures before do not count"


def test_has_work_asks_for_the_given_budget(sweep: SweepRow) -> None:
    assert has_work(sweep, [])
    assert not has_work(replace(sweep, budget={"trials": 0}), [])
