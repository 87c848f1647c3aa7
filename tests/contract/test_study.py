"""What is tried next, and the record in Optuna's tables, on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from statistics import median
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from sweeps.records import TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study, suggest
from tests.rows import VALUES, epoch_row, trial_row

NAMES = ("learning_rate", "warmup_start_factor", "dropout", "patience")


def spec(**sections: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "s", "corpus": "x", **sections})


# what is tried next: no database


def ended(number: int, values: dict[str, Any], wer: float | None, state: TrialState = TrialState.COMPLETE) -> TrialRow:
    return trial_row(number, state, hyperparameters={**VALUES, **values}, best_wer=wer)


def walked(spec: SweepSpec, trials: int) -> list[TrialRow]:
    """A sweep whose WER is the distance, in tens, of the learning rate from 3e-3."""
    rows: list[TrialRow] = []
    for number in range(trials):
        values = suggest(spec, number, rows)
        rows.append(ended(number, values, min(1.0, abs(decades(values["learning_rate"]) - decades(3e-3)))))
    return rows


def decades(rate: float) -> float:
    return math.log10(rate)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_suggestion_follows_from_seed_number_and_siblings(sampler: str) -> None:
    some = spec(sampler=sampler)
    rows = walked(some, 15)
    assert suggest(some, 15, rows) == suggest(some, 15, rows)
    numbers = [suggest(some, number, rows)["learning_rate"] for number in range(15, 25)]
    assert len(set(numbers)) == 10, "it repeats itself"
    assert suggest(spec(sampler=sampler, seed=1), 15, rows) != suggest(some, 15, rows)
    assert suggest(some, 3, [*rows[:3], *rows[4:]]) == suggest(some, 3, rows), "it knows itself"


def test_only_tpe_hears_of_the_siblings() -> None:
    rows = walked(spec(), 15)
    other = [ended(row.number, row.hyperparameters or {}, 1 - (row.best_wer or 0)) for row in rows]
    assert suggest(spec(), 15, rows) != suggest(spec(), 15, other)
    assert suggest(spec(sampler="random"), 15, rows) == suggest(spec(sampler="random"), 15, other)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_suggestions_stay_in_the_space(sampler: str) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": 0.25,
             "patience": {"low": 3, "high": 6}}  # fmt: skip
    some = spec(sampler=sampler, space=space)
    rows = walked(some, 20)
    for row in rows:
        values = row.hyperparameters
        assert values is not None
        assert tuple(values) == NAMES
        assert some.space.contains(values)
        assert values["dropout"] == 0.25
        assert type(values["patience"]) is int
        assert some.training(row.number, values, {}).dropout == 0.25
    assert {row.hyperparameters["patience"] for row in rows if row.hyperparameters} == {3, 4, 5, 6}
    assert len({row.hyperparameters["learning_rate"] for row in rows if row.hyperparameters}) == 20


def test_a_space_of_fixed_values_suggests_them() -> None:
    fixed = spec(space={**VALUES, "learning_rate": 0.003})
    rows = [ended(n, {"learning_rate": 0.003}, 0.5) for n in range(12)]
    assert suggest(fixed, 12, rows) == {**VALUES, "learning_rate": 0.003}


def test_what_is_outside_the_space_is_not_heard_of() -> None:
    some, rows = spec(), walked(spec(), 12)
    outside = [
        trial_row(12, TrialState.COMPLETE, hyperparameters={**VALUES, "learning_rate": 5.0}, in_space=False,
                  best_wer=0.01),
        trial_row(13, TrialState.COMPLETE, in_space=False, overrides={"schedule": "constant"}, best_wer=0.01),
        trial_row(14, hyperparameters=None),
    ]  # fmt: skip
    assert suggest(some, 15, [*rows, *outside]) == suggest(some, 15, rows)


def rates_after(rows: list[TrialRow], count: int = 15) -> list[float]:
    some = spec()
    return [suggest(some, number, rows)["learning_rate"] for number in range(100, 100 + count)]


def test_it_learns_where_the_good_ones_are() -> None:
    rows = [ended(n, {"learning_rate": 10 ** -(1.8 + 0.16 * n)}, 0.2 if n < 5 else 1.0) for n in range(20)]
    assert median(rates_after(rows)) > 2e-3
    turned = [ended(n, {"learning_rate": 10 ** -(1.8 + 0.16 * n)}, 0.2 if n >= 15 else 1.0) for n in range(20)]
    assert median(rates_after(turned)) < 1e-4


def test_a_good_pruned_trial_counts_more_than_a_dead_one_that_ended_by_patience() -> None:
    pruned = [ended(n, {"learning_rate": 1e-2 * 0.95**n}, 0.35 + 0.01 * n, TrialState.PRUNED) for n in range(6)]
    dead = [ended(6 + n, {"learning_rate": 2e-5 * 1.05**n}, 0.99) for n in range(14)]
    assert median(rates_after([*pruned, *dead])) > 1e-3


def test_diverged_is_the_worst_there_is_and_a_fault_says_nothing() -> None:
    good = [ended(n, {"learning_rate": 1e-4 * 1.1**n}, 0.5) for n in range(4)]
    bad = [ended(10 + n, {"learning_rate": 1.5e-2 * 0.98**n}, None, TrialState.PRUNED) for n in range(12)]
    assert median(rates_after([*good, *bad])) < 2e-3
    some = spec()
    fault = ended(16, {"learning_rate": 1e-4}, None, TrialState.FAILED)
    cancelled = ended(17, {"learning_rate": 1e-4}, None, TrialState.CANCELLED)
    rows = walked(some, 12)
    assert suggest(some, 20, [*rows, fault, cancelled]) == suggest(some, 20, rows)


def test_what_is_under_way_repels() -> None:
    rows = walked(spec(), 15)
    alone = suggest(spec(), 20, rows)
    under_way = [trial_row(15 + n, hyperparameters=alone) for n in range(3)]
    assert suggest(spec(), 20, [*rows, *under_way]) != alone


# the record


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


@pytest.fixture
def study(store: Store) -> Iterator[Study]:
    with opened(store) as study:
        yield study


def opened(store: Store) -> AbstractContextManager[Study]:
    return closing(Study(store.url, spec()))


def recorded(store: Store) -> list[FrozenTrial]:
    """The trials as anybody with Optuna alone reads them."""
    storage = optuna.storages.RDBStorage(store.url)
    try:
        return optuna.load_study(study_name="s", storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def test_a_registered_trial_runs_with_its_values(store: Store, study: Study) -> None:
    values = {"learning_rate": 0.1 + 0.2 - 0.29, "warmup_start_factor": 0.5, "dropout": 0.0, "patience": 7}
    study.register(4, "fixed", values)
    study.register(5, None, {**values, "patience": 8})
    first, second = recorded(store)
    assert (first.state, first.number) == (OptunaState.RUNNING, 0)
    assert first.params == values
    assert type(first.params["patience"]) is int
    assert first.user_attrs == {"sweep_trial": 4, "name": "fixed"}
    assert second.params == {**values, "patience": 8}
    assert second.user_attrs == {"sweep_trial": 5}


ENDINGS: list[tuple[TrialState, float | None, OptunaState, float | None]] = [
    (TrialState.COMPLETE, 0.25, OptunaState.COMPLETE, 0.25),
    (TrialState.COMPLETE, None, OptunaState.FAIL, None),
    (TrialState.PRUNED, 0.4, OptunaState.PRUNED, 0.4),
    (TrialState.PRUNED, None, OptunaState.PRUNED, None),
    (TrialState.FAILED, 0.4, OptunaState.FAIL, None),
    (TrialState.CANCELLED, None, OptunaState.FAIL, None),
]


@pytest.mark.parametrize(("state", "best", "told", "value"), ENDINGS)
def test_an_end_is_told_with_state_value_and_reason(
    store: Store, study: Study, state: TrialState, best: float | None, told: OptunaState, value: float | None
) -> None:
    optuna_id = study.register(0, None, VALUES)
    trial = trial_row(0, state, optuna_trial_id=optuna_id, best_wer=best, verdict="learned", reason="Because.")
    reports = {} if best is None else {1: 0.9, 2: best}
    study.tell(trial, reports)
    (found,) = recorded(store)
    assert (found.state, found.value) == (told, value)
    assert found.intermediate_values == reports
    assert found.user_attrs == {"sweep_trial": 0, "verdict": "learned", "reason": "Because."}
    assert (found.datetime_complete is None) == (told is OptunaState.RUNNING)


def test_told_twice_changes_nothing(store: Store, study: Study) -> None:
    optuna_id = study.register(0, None, VALUES)
    trial = trial_row(0, TrialState.COMPLETE, optuna_trial_id=optuna_id, best_wer=0.25)
    study.tell(trial, {1: 0.5, 2: 0.25})
    before = recorded(store)
    study.tell(trial, {1: 0.5, 2: 0.25})
    with opened(store) as again:
        again.tell(trial, {1: 0.5, 2: 0.25})
    assert recorded(store) == before


def test_a_tell_that_died_half_way_is_made_again(store: Store, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna_id = study.register(0, None, VALUES)
    trial = trial_row(0, TrialState.COMPLETE, optuna_trial_id=optuna_id, best_wer=0.25, reason="r")
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.tell(trial, {1: 0.5, 2: 0.25})
    assert recorded(store)[0].state is OptunaState.RUNNING
    with opened(store) as again:
        again.tell(trial, {1: 0.5, 2: 0.25})
    (found,) = recorded(store)
    assert (found.state, found.value, found.intermediate_values) == (OptunaState.COMPLETE, 0.25, {1: 0.5, 2: 0.25})


def test_orphans_are_failed_and_nothing_else(store: Store, study: Study) -> None:
    done, ours, orphan = (study.register(n, None, VALUES) for n in range(3))
    study.tell(trial_row(0, TrialState.COMPLETE, optuna_trial_id=done, best_wer=0.5), {})
    known = [
        trial_row(0, TrialState.COMPLETE, optuna_trial_id=done),
        trial_row(1, optuna_trial_id=ours),
        trial_row(2, TrialState.WAITING),
    ]
    study.fail_orphans(known)
    study.fail_orphans(known)
    states = {trial._trial_id: trial.state for trial in recorded(store)}
    assert states == {done: OptunaState.COMPLETE, ours: OptunaState.RUNNING, orphan: OptunaState.FAIL}


def test_opened_again_it_is_the_same_study(store: Store, study: Study) -> None:
    study.register(0, None, VALUES)
    with opened(store) as again:
        again.register(1, None, VALUES)
    assert [trial.user_attrs["sweep_trial"] for trial in recorded(store)] == [0, 1]


def test_our_tables_and_optunas_live_together_under_many_writers(store: Store, study: Study) -> None:
    row = store.create_sweep("s", {}, "digest", {"trials": 12}, {}, [])
    store.set_sweep_state(row.id, SweepState.RUNNING)
    faults: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with closing(Store(store.url)) as mine, opened(store) as record:
                while claim := mine.claim(row.id, name, 60):
                    optuna_id = record.register(claim.number, None, VALUES)
                    mine.set_hyperparameters(claim, VALUES, optuna_id)
                    mine.record(claim, [epoch_row(1, 0.5)])
                    mine.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
                    record.tell(mine.trial(row.id, claim.number), {1: 0.5})
                    mine.mark_told(claim.trial_id)
        except BaseException as error:
            faults.append(error)
            raise

    workers = [threading.Thread(target=work, args=(f"worker {n}",)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert faults == []
    found = recorded(store)
    assert sorted(trial.user_attrs["sweep_trial"] for trial in found) == list(range(12))
    assert {(trial.state, trial.value) for trial in found} == {(OptunaState.COMPLETE, 0.5)}
    ids = {trial.user_attrs["sweep_trial"]: trial._trial_id for trial in found}
    assert {t.number: t.optuna_trial_id for t in store.trials(row.id)} == ids
    assert store.untold(row.id) == []
