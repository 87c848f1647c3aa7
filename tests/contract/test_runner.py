"""Who runs a sweep: held, lost to another process, and what is left alone then. No worker is started here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps import runner
from sweeps.errors import SweepBusy
from sweeps.mirror import Mirror
from sweeps.processes import this_runner
from sweeps.records import PlannedTrial, Runner, SweepRow, TrialRow
from sweeps.runner import holding, run
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.worker import Job
from tests.rows import VALUES
from tracking.recording_writer import RecordingExperiment

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 3}})
OTHER = Runner(id="other-1-2.00", host="elsewhere", pid=1)


class Blind:
    """Shows nothing."""

    def update(self, sweep: SweepRow, trials: list[TrialRow], note: str) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}")
    yield store
    store.close()


@pytest.fixture
def sweep(store: Store) -> SweepRow:
    planned = [PlannedTrial("fixed", VALUES, {}, False)]
    return store.create_sweep("s", {}, "", {"trials": 3}, {"constant_wer": 0.9}, planned)


def start(store: Store, sweep: SweepRow, me: Runner, tmp_path: Path, stop: threading.Event | None = None) -> None:
    job = Job("", store.url, "s", SPEC, SPEC.corpus.config(), "", "", tmp_path, tmp_path, tmp_path / "logs")
    mirror = Mirror(store, sweep, SPEC, {}, RecordingExperiment, lambda: "")
    try:
        run(store, sweep, SPEC, job, me, mirror, Blind(), stop or threading.Event())
    finally:
        mirror.finish(5)


def now(store: Store) -> SweepRow:
    found = store.find_sweep("s")
    assert found is not None
    return found


def test_who_holds_a_sweep_keeps_others_away(store: Store, sweep: SweepRow) -> None:
    with (
        holding(store, sweep, OTHER),
        pytest.raises(SweepBusy, match="elsewhere"),
        holding(store, sweep, this_runner()),
    ):
        pytest.fail("two processes run one sweep")
    assert now(store).runner is None


def test_it_hears_that_another_has_taken_over(store: Store, sweep: SweepRow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BEAT_SECONDS", 0.05)
    with holding(store, sweep, this_runner()) as lost:
        assert not lost.wait(0.3)
        store.take_runner(sweep.id, OTHER, 0, lambda holder: True)
        assert lost.wait(10)
    assert now(store).runner == OTHER  # its going did not let the other one's hold go


def test_a_displaced_runner_changes_nothing(store: Store, sweep: SweepRow, tmp_path: Path) -> None:
    """It was suspended while another process took the sweep over, and wakes up."""
    me = this_runner()
    store.take_runner(sweep.id, me, 60, lambda holder: False)
    store.take_runner(sweep.id, OTHER, 60, lambda holder: True)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claim = store.claim(sweep.id, "a worker of the other", 60)
    assert claim is not None
    with pytest.raises(SweepBusy, match="elsewhere"):
        start(store, sweep, me, tmp_path)
    assert now(store).state is SweepState.RUNNING
    assert store.trial(sweep.id, "fixed").state is TrialState.RUNNING


def test_stopped_before_it_began_it_is_paused(store: Store, sweep: SweepRow, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    me = this_runner()
    with holding(store, sweep, me):
        start(store, sweep, me, tmp_path, stop)
    assert (now(store).state, now(store).runner) == (SweepState.PAUSED, None)
    assert [t.state for t in store.trials(sweep.id)] == [TrialState.WAITING]


def test_a_spent_budget_is_one_step(store: Store, sweep: SweepRow) -> None:
    """A kill between two would have left a state that no run can leave."""
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.update_budget(sweep.id, {"trials": 3, "total_epochs": 0})
    runner._close(store, sweep.id, "", interrupted=False)
    assert now(store).state is SweepState.STOPPED
    assert "1 trials wait" in now(store).reason


def test_a_sweep_that_alarmed_stays_paused_for_that_reason_unless_nothing_is_left(
    store: Store, sweep: SweepRow
) -> None:
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.raise_alarm(sweep.id, {"cause": "undecided"}, "it alarmed")
    for interrupted in (False, True):
        runner._close(store, sweep.id, "", interrupted=interrupted)
        assert (now(store).state, now(store).reason) == (SweepState.PAUSED, "it alarmed")
    store.update_budget(sweep.id, {"trials": 0})
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claim = store.claim(sweep.id, "worker", 60)
    assert claim is not None
    store.finish(claim, TrialState.COMPLETE, "never_learned", "done", "epochs", {})
    store.set_sweep_state(sweep.id, SweepState.PAUSED, "it alarmed")
    runner._close(store, sweep.id, "", interrupted=False)
    assert now(store).state is SweepState.COMPLETE


def test_has_work_asks_for_the_given_budget(sweep: SweepRow) -> None:
    assert runner.has_work(sweep, [])
    assert not runner.has_work(replace(sweep, budget={"trials": 0}), [])
