"""Sweeps that begin from earlier ones, and spaces that can be counted, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from sweeps import preparing, worker
from sweeps.errors import NothingToDo, NoWarmStart, SpecChanged, SweepNotFound, TrialTried
from sweeps.judging import Judge
from sweeps.keeper import end_if_over, has_work
from sweeps.preparing import Prepared, open_sweep
from sweeps.records import PriorRow, SweepRow
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.spec import SweepSpec, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from sweeps.warm_start import in_words
from sweeps.worker import Assignment
from tests.rows import VALUES, epoch_row

PRIOR = PriorRow(0, "demo", 3, {**VALUES, "schedule": "plateau", "dropout": 0.1 + 0.2}, 0.25, 0.3, "learned")
FEW = {**VALUES, "schedule": {"choices": ["plateau", "constant"]}, "hidden": {"choices": [64, 128]}}


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(Store(store_url)) as store:
        yield store


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def prepared(home: Home, name: str, glosses: int = 5, **sections: Any) -> Prepared:
    corpus = {"generated": {"train": 12, "dev": 6, "glosses": glosses}}
    content = {"name": name, "corpus": corpus, "range_test": False, **sections}
    return preparing.prepare(SweepSpec.model_validate(content), home)


def begun(store: Store, home: Home, name: str, **sections: Any) -> SweepRow:
    sweep = open_sweep(store, prepared(home, name, **sections))
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    found = store.find_sweep(name)
    assert found is not None
    return found


def trained(store: Store, sweep: SweepRow, values: dict[str, Any], *wers: float) -> None:
    """A trial that came to these WERs and is complete."""
    claim = store.claim(sweep.id, "w", 60)
    assert claim is not None
    store.set_hyperparameters(claim, values, None)
    store.record(claim, [epoch_row(n, wer) for n, wer in enumerate(wers, start=1)])
    store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})


def test_priors_are_kept_with_the_sweep_and_go_with_it(store: Store) -> None:
    infinite = PriorRow(1, "demo", 4, dict(VALUES), None, None, "diverged")
    sweep = store.create_sweep("s", {}, "", {"trials": 3}, {}, [], [PRIOR, infinite])
    assert store.priors(sweep.id) == [PRIOR, infinite]
    assert store.trials(sweep.id) == []
    other = store.create_sweep("other", {}, "", {"trials": 3}, {}, [])
    assert store.priors(other.id) == []
    store.delete_sweep(sweep.id)
    assert store.priors(sweep.id) == []


def test_a_sweep_begins_from_the_finished_trials_in_its_space(store: Store, home: Home) -> None:
    first = begun(store, home, "first", budget={"trials": 9})
    trained(store, first, VALUES, 1.0, 0.5, 0.3)
    trained(store, first, {**VALUES, "dropout": 0.4}, 1.0, 1.0)
    trained(store, first, {**VALUES, "learning_rate": 1e-5}, 1.0, 1.0)
    claim = store.claim(first.id, "w", 60)
    assert claim is not None
    store.set_hyperparameters(claim, {**VALUES, "dropout": 0.2}, None)

    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "weight_decay": {"low": 1e-3, "high": 0.1},
             "batch_size": {"choices": [4, 8]}}  # fmt: skip
    second = begun(store, home, "second", space=space, warm_start=["first"])
    rows = store.priors(second.id)
    joined = {"weight_decay": 0.01, "batch_size": 4}
    assert [(row.source, row.source_trial, row.best_wer) for row in rows] == [("first", 0, 0.3), ("first", 1, 1.0)]
    assert [row.hyperparameters for row in rows] == [{**VALUES, **joined}, {**VALUES, "dropout": 0.4, **joined}]
    assert rows[0].value is not None
    assert rows[1].value is not None
    assert rows[0].value < 1 <= rows[1].value
    assert in_words(second) == ("warm start: 2 trials of first (1 left out, outside the space; 1 left out, not over)")
    assert store.trials(second.id) == []
    assert store.statuses("second")[0].best is None
    store.delete_sweep(first.id)
    again = open_sweep(store, prepared(home, "second", space=space, warm_start=["first"]))
    assert (again.id, store.priors(again.id)) == (second.id, rows), "it goes on though the earlier one is gone"
    with pytest.raises(SpecChanged, match="warm_start"):
        open_sweep(store, prepared(home, "second", space=space))


def test_what_measured_something_else_is_refused_whatever_is_forced(store: Store, home: Home) -> None:
    begun(store, home, "first")
    with pytest.raises(NoWarmStart, match=r"corpus_hash \(\w{12} -> \w{12}\)"):
        open_sweep(store, prepared(home, "second", glosses=6, warm_start="first"), force=True)
    with pytest.raises(SweepNotFound, match="did you mean 'first'"):
        open_sweep(store, prepared(home, "second", warm_start="fist"))
    assert store.find_sweep("second") is None


@pytest.mark.parametrize(
    ("trainer", "path"),
    [
        ({"weight_decay": 0.1}, r"trainer.weight_decay \(0.01 -> 0.1\)"),
        ({"clip_norm": 2.0, "schedule": "step"}, r"clip_norm \(1.0 -> 2.0\), trainer.schedule \(plateau -> step\)"),
        ({"epochs": 49}, r"trainer.epochs \(24 -> 49\)"),
    ],
)  # fmt: skip
def test_what_was_trained_otherwise_is_refused_unless_forced(
    store: Store, home: Home, trainer: dict[str, Any], path: str
) -> None:
    first = begun(store, home, "first")
    trained(store, first, VALUES, 0.5)
    second = prepared(home, "second", trainer=trainer, space={"patience": 5}, warm_start="first")
    with pytest.raises(NoWarmStart, match=path):
        open_sweep(store, second)
    assert len(store.priors(open_sweep(store, second, force=True).id)) == 1


def test_what_says_nothing_of_a_wer_may_differ(store: Store, home: Home) -> None:
    first = begun(store, home, "first")
    trained(store, first, VALUES, 0.9, 0.5, 0.4)
    other = {"threads": 2, "probe_interval": 0, "epochs": 12}
    second = begun(store, home, "second", trainer=other, seed=5, space={"patience": 5}, warm_start="first")
    (prior,) = store.priors(second.id)
    assert prior.best_wer == 0.4


def test_a_searched_setting_that_the_new_sweep_cannot_have_leaves_its_trial_out(store: Store, home: Home) -> None:
    space = {**VALUES, "schedule": {"choices": ["plateau", "constant"]}}
    first = begun(store, home, "first", space=space)
    trained(store, first, {**VALUES, "schedule": "plateau"}, 0.5)
    trained(store, first, {**VALUES, "schedule": "constant"}, 0.5)
    second = begun(store, home, "second", warm_start="first")
    assert [row.source_trial for row in store.priors(second.id)] == [0]
    assert in_words(second) == "warm start: 1 trial of first (1 left out, with another schedule)"


def test_the_sampler_learns_from_priors_at_its_first_trial(store: Store, home: Home) -> None:
    first = begun(store, home, "first", budget={"trials": 40})
    for n in range(24):
        trained(store, first, {**VALUES, "learning_rate": 10 ** -(1.8 + 0.13 * n)}, 1.0, 0.2 if n < 6 else 0.8)
    warm = begun(store, home, "warm", warm_start="first")
    cold = begun(store, home, "cold")
    rates: dict[str, list[float]] = {"warm": [], "cold": []}
    for sweep in (warm, cold):
        for _ in range(6):
            claim = store.claim(sweep.id, "w", 0)
            assert claim is not None
            values = worker.suggested(spec_of(sweep), store, sweep, claim)
            rates[sweep.name].append(float(values["learning_rate"]))
            store.set_hyperparameters(claim, values, None)
            store.finish(claim, TrialState.CANCELLED, None, "enough", None, {})
    assert min(rates["warm"]) > 1e-3, "where the earlier sweep was good"
    assert min(rates["cold"]) < 1e-4 < 1e-3 < max(rates["cold"]), "spread over the space"


# spaces that can be counted


def test_no_configuration_is_given_to_two_workers_and_the_sweep_ends_with_the_last(store: Store, home: Home) -> None:
    sweep = begun(store, home, "few", space=FEW, budget={"trials": 50}, sampler={"startup_trials": 2})
    assert sweep.facts["configurations"] == 4
    barrier, faults = threading.Barrier(3), list[BaseException]()

    def work(name: str) -> None:
        try:
            with closing(Store(store.url)) as mine, closing(Study(store.url, spec_of(sweep))) as study:
                spec = spec_of(sweep)
                assignment = Assignment(sweep, spec, None, study, Judge(spec, mine, sweep))  # type: ignore[arg-type]
                barrier.wait(30)
                while claim := mine.claim(sweep.id, name, 60):
                    worker.ask(assignment, mine, claim)
                    mine.record(claim, [epoch_row(1, 0.5)])
                    mine.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=work, args=(f"worker {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    tried = [
        (t.hyperparameters or {})["schedule"] + str((t.hyperparameters or {})["hidden"]) for t in store.trials(sweep.id)
    ]
    assert sorted(tried) == ["constant128", "constant64", "plateau128", "plateau64"]
    end_if_over(store, sweep.id)
    over = store.find_sweep("few")
    assert over is not None
    assert (over.state, over.reason) == (SweepState.COMPLETE, "all 4 configurations tried")
    with pytest.raises(NothingToDo, match="all 4 configurations of its space"):
        SweepService(store, home, "me").resume("few", trials=60)


def test_repeats_use_the_budget_up(store: Store, home: Home) -> None:
    sweep = begun(store, home, "few", space=FEW, budget={"trials": 6}, sampler={"repeats": True})
    assert "configurations" not in sweep.facts
    for _ in range(6):
        claim = store.claim(sweep.id, "w", 60)
        assert claim is not None
        store.set_hyperparameters(claim, worker.suggested(spec_of(sweep), store, sweep, claim), None)
        store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    assert not has_work(sweep, store.trials(sweep.id))


def test_a_configuration_is_enqueued_once_unless_it_is_to_be_repeated(store: Store, home: Home) -> None:
    sweep = begun(store, home, "few", space=FEW, first_trials={"plain": {"schedule": "plateau"}})
    service = SweepService(store, home, "me")
    with pytest.raises(TrialTried, match="already, as trial 0 plain"):
        service.enqueue("few", {"schedule": "plateau"})
    other = service.enqueue("few", {"schedule": "constant"})
    assert service.enqueue("few", {"schedule": "constant"}) == other, "asked again it is the same"
    with pytest.raises(TrialTried, match="as trial 1 asked-"):
        service.enqueue("few", {"schedule": "constant"}, trial_name="mine")
    again = service.enqueue("few", {"schedule": "plateau"}, trial_name="again", repeat=True)
    assert service.enqueue("few", {"schedule": "plateau"}, trial_name="again", repeat=True) == again
    now = store.find_sweep("few")
    assert now is not None
    assert now.facts["configurations"] == 5, "a repeat takes no other configuration's place"
    seeds = [
        spec_of(sweep).training(t.number, t.hyperparameters or {}, t.overrides).seed for t in store.trials(sweep.id)
    ]
    assert len(set(seeds)) == 3


def test_a_space_with_a_range_is_not_counted(store: Store, home: Home) -> None:
    assert "configurations" not in begun(store, home, "wide").facts
