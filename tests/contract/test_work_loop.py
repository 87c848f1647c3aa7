"""A worker's loop in this process: what an outage, an error, a full disk or a command does to its trials."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus
from model.examples import Examples, examples, is_example_epoch
from model.types import METRICS, EpochReport, Stopped, TrainingConfig
from sweeps import checkpoints, judging, keeper, patience, preparing, pruning, service, worker
from sweeps.errors import DatabaseUnavailable
from sweeps.pruning import Decision
from sweeps.records import BEST_WER, TrialRow
from sweeps.settings import Home
from sweeps.spec import SweepSpec, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.worker import Job, work
from tests.corpora import write_corpus

EPOCHS = 5
Act = Callable[[int, int], None]

act: Act = lambda epoch, step: None  # noqa: E731
"""What the trainer does at a step of an epoch."""


def read_at(epoch: int) -> Examples:
    return examples([("dev-1", "REGEN", f"HAAR {epoch}")], "dev-1", [1], np.full((3, 2), -epoch), ["<blank>", "REGEN"])


class Counting:
    """A trainer whose curve follows from its epoch alone; an epoch has 3 steps."""

    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.epoch = 0

    @property
    def step(self) -> int:
        return 3 * self.epoch

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        for step in range(3):
            if should_stop():
                raise Stopped
            act(self.epoch + 1, step)
        self.epoch += 1
        metrics = dict.fromkeys(METRICS, 1.0) | {"dev/wer": 1 / self.epoch, "dev/loss": 3 / self.epoch}
        read = read_at(self.epoch) if is_example_epoch(self.epoch) else None
        return EpochReport(self.epoch, self.step, metrics, 3, 0, 0.01 * self.epoch, 0.1, examples=read)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch = state["epoch"]


@dataclass
class Site:
    store: Store
    job: Job
    sweep_id: int

    def work(self, stop: threading.Event | None = None) -> bool:
        return work(self.job, stop or threading.Event())

    @property
    def trials(self) -> list[TrialRow]:
        return self.store.trials(self.sweep_id)

    def kinds(self, number: int = 0) -> list[str]:
        return [event.kind for event in self.store.events(self.sweep_id) if event.trial_number == number]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    does(monkeypatch, lambda epoch, step: None)
    for name, value in {"IDLE_SECONDS": 0.01, "REST_SECONDS": 0.02}.items():
        monkeypatch.setattr(worker, name, value)
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.02)
    trainer = f"{__name__}:Counting"
    spec = SweepSpec.model_validate(
        {
            "name": "s",
            "corpus": {"path": str(write_corpus(tmp_path / "corpus"))},
            "trainer": {"epochs": EPOCHS},
            "space": {"patience": {"low": 9, "high": 9}},
            "budget": {"trials": 1},
            "pruner": "none",
            "range_test": False,
        }
    )
    home = Home(tmp_path / "home")
    store = service.load_home_store(home, None)
    sweep = preparing.open_sweep(store, preparing.prepare(spec, home, trainer=trainer, force=True))
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    job = Job("me", store.url, ("s",), home, home.checkpoints, tmp_path / "worker.log", 60.0, trainer)
    yield Site(store, job, sweep.id)
    store.close()


def does(monkeypatch: pytest.MonkeyPatch, what: Act) -> None:
    monkeypatch.setattr(sys.modules[__name__], "act", what)


class Away:
    """The database cannot be reached from within any store, while `now` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = threading.Event()
        true = Store._transaction

        def transaction(store: Store, engine: Engine) -> Any:
            if self.now.is_set():
                raise DatabaseUnavailable(store.url, "it is away")
            return true(store, engine)

        monkeypatch.setattr(Store, "_transaction", transaction)


def test_it_trains_all_there_is_and_goes(site: Site) -> None:
    assert site.work() is False
    (trial,) = site.trials
    assert (trial.state, trial.epochs, trial.attempt) == (TrialState.COMPLETE, EPOCHS, 1)
    assert site.kinds() == ["claimed", "complete"]
    assert site.store.untold(site.sweep_id) == []
    assert site.store.workers() == []
    assert sorted(p.name for p in (site.job.checkpoints / "s").iterdir()) == ["00000.best.pt", "00000.pt"]


def test_what_it_read_and_its_best_so_far_are_kept_with_its_epochs(site: Site) -> None:
    site.work()
    (trial,) = site.trials
    assert site.store.examples(trial.id) == {epoch: read_at(epoch) for epoch in (1, 2, 3, 4)}
    rows = site.store.epochs(trial.id)
    assert [row.metrics[BEST_WER] for row in rows] == [1 / epoch for epoch in range(1, EPOCHS + 1)]
    assert not any(name.startswith("system/") for row in rows for name in row.metrics)


def test_the_load_of_the_machine_is_kept_where_that_is_asked_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    known = spec_of(service.find_sweep(site.store, "s"))
    monkeypatch.setattr(worker, "spec_of", lambda sweep: known.model_copy(update={"system_metrics": True}))
    site.work()
    for row in site.store.epochs(site.trials[0].id):
        assert row.metrics["system/process_memory_usage_megabytes"] > 0


# the database is away


def test_an_outage_costs_no_epoch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(monkeypatch)

    def outage(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 0):
            away.now.set()
        if (epoch, step) == (4, 2):
            away.now.clear()

    trained: list[tuple[int, int]] = []
    does(monkeypatch, lambda epoch, step: (outage(epoch, step), trained.append((epoch, step)))[0])
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.attempt) == (TrialState.COMPLETE, 1)
    assert [row.epoch for row in site.store.epochs(trial.id)] == list(range(1, EPOCHS + 1))
    assert trained == [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(3)], "each epoch once"
    assert list(site.store.examples(trial.id)) == [1, 2, 3, 4]


def test_what_it_would_have_been_stopped_for_stops_it_at_that_epoch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the database had never been away: the epochs after it are dropped."""
    away = Away(monkeypatch)
    at_two = Decision("too_slow", "too_slow", "Slow.", "Fast would have kept it.", 2, {}, {})
    monkeypatch.setattr(pruning, "decide", lambda trial, *_, **__: at_two if trial.reports[-1].epoch == 2 else None)
    plateau = SweepSpec.model_validate({"name": "s", "corpus": "x", "pruner": {"name": "plateau", "audit_share": 0}})
    true = worker.spec_of
    monkeypatch.setattr(worker, "spec_of", lambda sweep: true(sweep).model_copy(update={"pruner": plateau.pruner}))

    def outage(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 0):
            away.now.set()
        if (epoch, step) == (4, 2):
            away.now.clear()

    does(monkeypatch, outage)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.epochs, trial.rule) == (TrialState.PRUNED, 2, "too_slow")


def test_a_sweep_with_a_budget_of_epochs_waits_as_the_budget_cannot_be_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    site.store.update_budget(site.sweep_id, {"trials": 1, "total_epochs": 3})

    def outage(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 0):
            away.now.set()
            threading.Timer(0.3, away.now.clear).start()

    began = time.monotonic()
    does(monkeypatch, outage)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.epochs) == (TrialState.WAITING, 3)
    assert "the sweep's budget is spent" in trial.reason
    assert time.monotonic() - began > 0.3


def test_a_lease_that_ran_out_meanwhile_gives_the_trial_back_at_its_checkpoint(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    site.job = replace(site.job, lease_seconds=0.3)

    def outage(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 0) and not away.now.is_set() and len(site_attempts) == 1:
            away.now.set()
            threading.Timer(1.0, away.now.clear).start()
        time.sleep(0.05 if away.now.is_set() else 0.001)

    site_attempts: list[int] = []
    true = worker.train
    monkeypatch.setattr(worker, "train", lambda *a: (site_attempts.append(1), true(*a))[1])
    does(monkeypatch, outage)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.epochs, trial.attempt) == (TrialState.COMPLETE, EPOCHS, 2)
    assert site.kinds() == ["claimed", "handed_back", "claimed", "complete"]


def test_a_worker_that_is_stopped_while_the_database_is_away_goes_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, stop = Away(monkeypatch), threading.Event()

    def outage(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 1):
            away.now.set()
            stop.set()

    does(monkeypatch, outage)
    began = time.monotonic()
    assert site.work(stop) is False
    assert time.monotonic() - began < 5
    away.now.clear()
    assert site.trials[0].state is TrialState.RUNNING, "until its lease runs out, or its worker is known dead"


# errors


@pytest.mark.parametrize(
    ("error", "rule", "verdict"),
    [
        (ValueError("a wrong setting"), "bad_spec", None),
        (TypeError("a wrong type"), "bad_spec", None),
        (CorpusError("a file is gone"), "data_fault", "data_fault"),
    ],
)
def test_an_error_that_would_come_again_ends_the_trial(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception, rule: str, verdict: str | None
) -> None:
    def fails(epoch: int, step: int) -> None:
        raise error

    does(monkeypatch, fails)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.rule, trial.verdict, trial.attempt) == (TrialState.FAILED, rule, verdict, 1)
    assert str(error) in trial.reason


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), MemoryError("out of memory"), OSError("a device")])
def test_any_other_is_tried_three_times_in_a_row_without_a_new_epoch(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tries: list[int] = []

    def fails(epoch: int, step: int) -> None:
        if (epoch == 1 and len(tries) < 2) or epoch == 3:
            tries.append(epoch)
            raise error

    does(monkeypatch, fails)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.rule, trial.epochs) == (TrialState.FAILED, "fault", 2)
    assert tries == [1, 1, 3, 3, 3, 3], "the new epochs of the third attempt begin the count anew"
    assert "3 at most" in trial.reason


def test_a_full_disk_is_waited_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    full = [True, True]
    true, asked = checkpoints.save, []

    def save(*arguments: Any, **options: Any) -> None:
        if len(arguments[-1]) == 2 and full:
            raise OSError(errno.ENOSPC, "No space left on device")
        true(*arguments, **options)

    def has_room(folder: Path, size: int) -> bool:
        asked.append(size)
        full.pop()
        return not full

    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(checkpoints, "has_room", has_room)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.epochs, trial.attempt) == (TrialState.COMPLETE, EPOCHS, 2)
    assert len(asked) == 2
    assert asked[0] > 0
    handed_back = [e for e in site.store.events(site.sweep_id) if e.kind == "handed_back"]
    assert "No space left on device" in handed_back[0].text


def test_a_corpus_that_changed_is_refused_with_an_event_and_nothing_is_claimed(site: Site, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", seed=1)
    assert site.work() is False
    assert site.trials == []
    (refused,) = [e for e in site.store.events(site.sweep_id) if e.kind == "worker_refused"]
    assert "changed since the sweep began" in refused.text
    assert refused.worker == "me"


def test_a_trainer_that_was_not_named_is_refused(site: Site) -> None:
    site.job = replace(site.job, trainer=None)
    site.work()
    (refused,) = [e for e in site.store.events(site.sweep_id) if e.kind == "worker_refused"]
    assert f"name {__name__}:Counting with --trainer" in refused.text


# commands, other workers, memory


def test_a_cancelled_sweep_drops_the_epoch_in_hand(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.job = replace(site.job, lease_seconds=0.3)

    def cancelled(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 0):
            site.store.set_sweep_state(site.sweep_id, SweepState.CANCELLING, "asked to")
            time.sleep(0.5)

    does(monkeypatch, cancelled)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.epochs) == (TrialState.CANCELLED, 2)
    keeper.end_if_over(site.store, site.sweep_id)
    assert site.store.sweep_state(site.sweep_id) is SweepState.CANCELLED


def test_a_stopped_sweep_lets_its_trial_finish_and_a_paused_one_its_epoch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(state: SweepState) -> Act:
        return lambda epoch, step: (
            site.store.set_sweep_state(site.sweep_id, state, "asked") and None if (epoch, step) == (2, 0) else None
        )

    does(monkeypatch, said(SweepState.PAUSED))
    site.work()
    assert (site.trials[0].state, site.trials[0].epochs) == (TrialState.WAITING, 2)
    assert site.trials[0].reason == "the sweep is PAUSED"
    site.store.set_sweep_state(site.sweep_id, SweepState.RUNNING)
    does(
        monkeypatch,
        lambda epoch, step: (
            site.store.set_sweep_state(site.sweep_id, SweepState.STOPPING, "asked") and None
            if (epoch, step) == (3, 0)
            else None
        ),
    )
    site.work()
    assert site.trials[0].state is TrialState.COMPLETE


def test_a_trial_that_another_worker_has_by_now_is_dropped_and_the_late_write_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(epoch: int, step: int) -> None:
        if (epoch, step) == (2, 0) and site.trials[0].attempt == 1:
            site.store.reap(site.sweep_id, dead_workers=["me"])
            assert site.store.claim(site.sweep_id, "another", 60)

    does(monkeypatch, taken)
    monkeypatch.setattr(worker._Worker, "_done", lambda self: True)
    site.work()
    (trial,) = site.trials
    assert (trial.state, trial.worker, trial.epochs) == (TrialState.RUNNING, "another", 1)
    assert site.kinds()[-1] == "late_write_refused"


def test_a_worker_that_has_grown_is_started_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GROWTH_MIB", -1)
    assert site.work() is True
    assert site.trials[0].state is TrialState.COMPLETE


def test_where_the_checkpoint_is_behind_the_rows_epochs_are_trained_again_and_rows_stay(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    does(monkeypatch, lambda epoch, step: stop.set() if (epoch, step) == (4, 1) else None)
    site.work(stop)
    before = site.store.epochs(site.trials[0].id)
    assert len(before) == 3
    for file in (site.job.checkpoints / "s").iterdir():
        file.unlink()
    does(monkeypatch, lambda epoch, step: None)
    site.work()
    after = site.store.epochs(site.trials[0].id)
    assert after[:3] == before
    assert [row.epoch for row in after] == list(range(1, EPOCHS + 1))
    assert judging.reread(site.store, site.store.sweeps()[0]).state is SweepState.RUNNING
