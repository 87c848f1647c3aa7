"""`sweeps run`, as far as it starts no worker: what it leaves of a sweep, and what it leaves alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps import runner
from sweeps.errors import SweepBusy
from sweeps.keeper import holding
from sweeps.mirror import Mirror
from sweeps.processes import this_runner
from sweeps.records import EventRow, PlannedTrial, Runner, SweepRow, TrialRow, WorkerRow
from sweeps.runner import run
from sweeps.settings import Home
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.worker import Job
from tests.rows import VALUES
from tracking.recording_writer import RecordingExperiment
from tracking.writer import Dataset

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
    job = Job("", store.url, ("s",), Home(tmp_path), tmp_path / "checkpoints", tmp_path / "logs")
    mirror = Mirror(store, sweep, SPEC, {}, Dataset("c", "c", "c", {}), RecordingExperiment, lambda: "")
    try:
        run(store, sweep, SPEC, job, me, mirror, Blind(), stop or threading.Event())
    finally:
        mirror.finish(5)


OURS = {"ours"}
"""Workers of the runner that ends."""


def now(store: Store) -> SweepRow:
    found = store.find_sweep("s")
    assert found is not None
    return found


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


def test_what_a_runner_leaves_behind(store: Store, sweep: SweepRow) -> None:
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    runner._close(store, sweep.id, "workers died 4 times", interrupted=False, workers=OURS)
    assert (now(store).state, now(store).reason) == (SweepState.FAILED, "workers died 4 times")
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    runner._close(store, sweep.id, "", interrupted=False, workers=OURS)
    assert now(store).state is SweepState.STOPPED
    assert "its workers have ended, 1 trial left waiting" in now(store).reason
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.add_event(sweep.id, EventRow("worker_refused", "of another day", worker="long gone"))
    runner._close(store, sweep.id, "", interrupted=False, workers=OURS)
    assert "its workers have ended" in now(store).reason
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.add_event(sweep.id, EventRow("worker_refused", "the corpus changed", worker="ours"))
    runner._close(store, sweep.id, "", interrupted=False, workers=OURS)
    assert now(store).reason == "the corpus changed"


def test_a_sweep_that_others_work_on_goes_on_when_its_runner_is_interrupted(store: Store, sweep: SweepRow) -> None:
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.register_worker(WorkerRow("w", "elsewhere", 1, 0.0, "cpu", {}))
    assert store.claim(sweep.id, "w", 60)
    runner._close(store, sweep.id, "", interrupted=True, workers=OURS)
    assert now(store).state is SweepState.RUNNING


def test_a_sweep_that_alarmed_stays_paused_for_that_reason(store: Store, sweep: SweepRow) -> None:
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.raise_alarm(sweep.id, {"cause": "undecided"}, "it alarmed")
    for interrupted in (False, True):
        runner._close(store, sweep.id, "", interrupted=interrupted, workers=OURS)
        assert (now(store).state, now(store).reason) == (SweepState.PAUSED, "it alarmed")
