"""What is read once of a sweep's trials and not again, and who makes Optuna's tables: on SQLite and PostgreSQL."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import pytest

from model.types import EpochReport
from sweeps import judging
from sweeps import store as store_module
from sweeps.records import Claim, SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from tests.rows import VALUES, epoch_row

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x", "budget": {"trials": 40}})


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


def running(store: Store, name: str = "s") -> SweepRow:
    sweep = store.create_sweep(name, {}, "", {"trials": 40}, {"constant_wer": 0.9}, [])
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    return sweep


def claimed(store: Store, sweep: SweepRow, worker: str) -> Claim:
    claim = store.claim(sweep.id, worker, 60)
    assert claim is not None
    return claim


def ended(store: Store, sweep: SweepRow, *wers: float) -> Claim:
    """A trial that is over, with these epochs."""
    claim = claimed(store, sweep, "w")
    store.record(claim, [epoch_row(epoch, wer) for epoch, wer in enumerate(wers, start=1)])
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
    return claim


def read(store: Store, sweep: SweepRow) -> list[tuple[TrialRow, list[str]]]:
    """All of it, as it stands in the database."""
    rows = store.sweep_epochs(sweep.id)
    return [(trial, shown([row.report() for row in rows[trial.id]])) for trial in store.trials(sweep.id)]


def remembered(store: Store, sweep: SweepRow) -> list[tuple[TrialRow, list[str]]]:
    return [(trial, shown(reports)) for trial, reports in store.curves(sweep)]


def shown(reports: Sequence[EpochReport]) -> list[str]:
    return [str(report) for report in reports]  # NaN is unlike itself


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_what_is_remembered_is_what_stands_there(store: Store, seed: int) -> None:
    """Two stores, as of two workers: one looks after each change, the other now and then."""
    sweep, chance = running(store), random.Random(seed)
    held: dict[str, Claim] = {}
    with closing(Store(store.url)) as other:
        for _ in range(40):
            worker = chance.choice("abc")
            claim = held.get(worker)
            if claim is None:
                if found := store.claim(sweep.id, worker, 60):
                    held[worker] = found
                continue
            match chance.choice(["parameters", "epoch", "epoch", "epoch", "finish", "hand back", "die"]):
                case "parameters" if claim.hyperparameters is None:
                    store.set_hyperparameters(claim, VALUES, None)
                case "epoch":
                    epochs = store.trial(sweep.id, claim.number).epochs
                    store.record(claim, [epoch_row(epochs + 1, chance.random(), metrics={"dev/wer": chance.random()})])
                case "finish":
                    store.finish(held.pop(worker), TrialState.PRUNED, "too_slow", "slow", "too_slow", {"a": 1})
                case "hand back":
                    store.hand_back(held.pop(worker), "interrupted")
                case "die":
                    held.pop(worker)
                    store.reap(sweep.id, {worker}, expired=False)
            assert remembered(store, sweep) == read(store, sweep)
            assert store.siblings(sweep) == store.trials(sweep.id)
            over = {trial.number for trial in store.trials(sweep.id) if trial.state.terminal}
            some = set(chance.sample(sorted(over), len(over) // 2))
            without = chance.choice([None, *(trial.id for trial in store.trials(sweep.id))])
            assert [trial for trial, _ in store.curves(sweep, without, some)] == [
                trial for trial in store.trials(sweep.id) if trial.id != without and trial.number not in some
            ]
            if chance.random() < 0.2:
                assert remembered(other, sweep) == read(store, sweep)
        assert remembered(other, sweep) == read(store, sweep)
    assert any(trial.state.terminal and reports for trial, reports in store.curves(sweep)), "something was there to see"


def test_only_what_is_new_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = running(store)
    first, second = ended(store, sweep, 0.5), ended(store, sweep, 0.5, 0.4)
    alive = claimed(store, sweep, "w")
    asked: list[list[int]] = []
    by_trial = store_module._by_trial

    def noted(connection: object, trial_ids: list[int], *rest: object) -> object:
        asked.append(list(trial_ids))
        return by_trial(connection, trial_ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store_module, "_by_trial", noted)
    store.curves(sweep)
    store.curves(sweep)
    store.record(alive, [epoch_row(1)])
    store.curves(sweep)
    assert asked == [[first.trial_id, second.trial_id], [alive.trial_id]]


def test_more_trials_than_one_query_takes_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_TRIALS_AT_ONCE", 2)
    sweep = running(store)
    for number in range(5):
        ended(store, sweep, *[0.5] * (number + 1))
    assert [len(reports) for _, reports in store.curves(sweep)] == [1, 2, 3, 4, 5]


def test_sweeps_are_told_apart_even_where_an_id_is_used_again(store: Store) -> None:
    one, two = running(store), running(store, "two")
    ended(store, one, 0.5)
    ended(store, two, 0.4, 0.3)
    for _ in range(2):
        assert [len(reports) for _, reports in store.curves(one)] == [1]
        assert [len(reports) for _, reports in store.curves(two)] == [2]
    store.delete_sweep(two.id)
    again = running(store, "three")
    ended(store, again, 0.1)
    assert remembered(store, again) == read(store, again)
    assert [t.best_wer for t in store.siblings(again)] == [0.1]
    assert store.siblings(replace(again, id=again.id + 99)) == []


def test_of_one_trial_only_that_one_is_told(store: Store) -> None:
    sweep = running(store)
    with closing(Study(store.url, SPEC)) as study:
        claims = [claimed(store, sweep, f"worker {n}") for n in range(3)]
        for claim in claims:
            store.set_hyperparameters(claim, VALUES, study.register(claim.number, None, VALUES))
            store.record(claim, [epoch_row(1)])
            store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
        judging.tell(store, study, sweep.id, claims[1].trial_id)
        assert [trial.number for trial in store.untold(sweep.id)] == [0, 2]
        judging.tell(store, study, sweep.id)
        assert store.untold(sweep.id) == []


def test_many_who_open_the_study_of_a_new_database_at_once_all_get_it(store: Store) -> None:
    together, errors = threading.Barrier(5), []

    def open_one() -> None:
        together.wait()
        try:
            Study(store.url, SPEC).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
