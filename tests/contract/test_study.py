"""What is tried next, and the record in Optuna's tables, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from model.types import EpochReport
from sweeps import optuna_tables
from sweeps import study as study_module
from sweeps.records import TrialRow
from sweeps.spec import FloatRange, SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Memory, Study, _Shown, suggest, value_for_sampler
from tests.curves import CONSTANT_WER
from tests.rows import VALUES, epoch_row, trial_row

NAMES = ("learning_rate", "warmup_start_factor", "dropout", "patience")


def spec(**sections: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "s", "corpus": "x", **sections})


# what is tried next: no database


def ended(number: int, values: dict[str, Any], wer: float | None, state: TrialState = TrialState.COMPLETE) -> TrialRow:
    """Without a WER it diverged, if a rule stopped it."""
    verdict = "diverged" if wer is None and state is TrialState.PRUNED else None
    return trial_row(number, state, hyperparameters={**VALUES, **values}, best_wer=wer, verdict=verdict)


def curve(*wers: float | None, loss: float = 4.0) -> list[EpochReport]:
    return [
        EpochReport(n, 10 * n, {"dev/wer": math.nan if wer is None else wer, "dev/loss": loss}, steps_in_epoch=10)
        for n, wer in enumerate(wers, start=1)
    ]


def ask(
    spec: SweepSpec,
    number: int,
    rows: list[TrialRow],
    curves: dict[int, list[EpochReport]] | None = None,
    learning_rate: FloatRange | None = None,
) -> dict[str, Any]:
    """The next suggestion; a row without a curve of its own has one epoch with its best WER."""
    shown = {row.id: curve(row.best_wer) for row in rows if row.state.terminal} | (curves or {})
    return suggest(spec, number, rows, shown, CONSTANT_WER, learning_rate=learning_rate)


def walked(spec: SweepSpec, trials: int) -> list[TrialRow]:
    """A sweep whose WER is the distance, in tens, of the learning rate from 3e-3."""
    rows: list[TrialRow] = []
    for number in range(trials):
        values = ask(spec, number, rows)
        rows.append(ended(number, values, min(1.0, abs(decades(values["learning_rate"]) - decades(3e-3)))))
    return rows


def decades(rate: float) -> float:
    return math.log10(rate)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_suggestion_follows_from_seed_number_and_siblings(sampler: str) -> None:
    some = spec(sampler=sampler)
    rows = walked(some, 15)
    assert ask(some, 15, rows) == ask(some, 15, rows)
    numbers = [ask(some, number, rows)["learning_rate"] for number in range(15, 25)]
    assert len(set(numbers)) == 10, "it repeats itself"
    assert ask(spec(sampler=sampler, seed=1), 15, rows) != ask(some, 15, rows)
    assert ask(some, 3, [*rows[:3], *rows[4:]]) == ask(some, 3, rows), "it knows itself"


def test_only_tpe_hears_of_the_siblings() -> None:
    rows = walked(spec(), 15)
    other = [ended(row.number, row.hyperparameters or {}, 1 - (row.best_wer or 0)) for row in rows]
    assert ask(spec(), 15, rows) != ask(spec(), 15, other)
    assert ask(spec(sampler="random"), 15, rows) == ask(spec(sampler="random"), 15, other)


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
    assert ask(fixed, 12, rows) == {**VALUES, "learning_rate": 0.003}


def test_what_is_outside_the_space_is_not_heard_of() -> None:
    some, rows = spec(), walked(spec(), 12)
    outside = [
        trial_row(12, TrialState.COMPLETE, hyperparameters={**VALUES, "learning_rate": 5.0}, in_space=False,
                  best_wer=0.01),
        trial_row(13, TrialState.COMPLETE, in_space=False, overrides={"schedule": "constant"}, best_wer=0.01),
        trial_row(14, hyperparameters=None),
    ]  # fmt: skip
    assert ask(some, 15, [*rows, *outside]) == ask(some, 15, rows)


def rates_after(rows: list[TrialRow], count: int = 15) -> list[float]:
    some = spec()
    return [ask(some, number, rows)["learning_rate"] for number in range(100, 100 + count)]


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
    assert ask(some, 20, [*rows, fault, cancelled]) == ask(some, 20, rows)


def bounds(low: float, high: float) -> FloatRange:
    return FloatRange(low=low, high=high, log=True)


def test_narrowed_bounds_are_kept_and_what_lies_outside_is_not_heard_of() -> None:
    some, rows = spec(), walked(spec(), 30)
    narrow = bounds(2e-4, 5e-3)
    inside = [row for row in rows if row.hyperparameters and 2e-4 <= row.hyperparameters["learning_rate"] <= 5e-3]
    assert 10 <= len(inside) < len(rows), "both must be there, and enough for TPE"
    asked = [ask(some, number, rows, learning_rate=narrow) for number in range(30, 50)]
    assert all(2e-4 <= values["learning_rate"] <= 5e-3 for values in asked)
    assert all(tuple(values) == NAMES for values in asked)
    assert asked == [ask(some, number, inside, learning_rate=narrow) for number in range(30, 50)]
    assert ask(some, 30, rows) == ask(some, 30, rows, learning_rate=some.space.learning_rate)


def test_moved_bounds_are_covered_evenly_first_even_beyond_the_space() -> None:
    """All trials so far had rates that were too low: an alarm moved the bounds, and TPE knows nothing there."""
    some = spec(space={"learning_rate": {"low": 1e-6, "high": 1e-4, "log": True}})
    rows = [ended(n, ask(some, n, []), 1.0) for n in range(12)]
    higher = bounds(1e-4, 3e-3)
    asked = [ask(some, number, rows, learning_rate=higher)["learning_rate"] for number in range(12, 20)]
    assert all(1e-4 <= rate <= 3e-3 for rate in asked)
    parts = {int(8 * (decades(rate) + 4) / (decades(3e-3) + 4)) for rate in asked}
    assert len(parts) >= 5, "they leave holes"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_bounds_may_be_one_value(sampler: str) -> None:
    rows = [ended(n, {"learning_rate": 3e-3, "dropout": 0.04 * n}, 0.5) for n in range(12)]
    values = ask(spec(sampler=sampler), 12, rows, learning_rate=bounds(3e-3, 3e-3))
    assert values["learning_rate"] == 3e-3
    assert 0 < values["dropout"] < 0.5


def test_where_enough_took_off_the_others_change_nothing() -> None:
    """TPE tells the best tenth from the rest: what a dead trial's WER was, or its loss, is not heard."""
    rows = walked(spec(), 20)
    dead = [row for row in rows if (row.best_wer or 0) > CONSTANT_WER - 0.05]
    assert 2 <= len(dead) <= 16
    other = {row.id: curve(1.5 + row.number / 10, loss=9.0 - row.number / 10) for row in dead}
    assert [ask(spec(), n, rows, other) for n in range(20, 25)] == [ask(spec(), n, rows) for n in range(20, 25)]


def test_a_fault_before_takeoff_says_nothing_and_one_after_it_does() -> None:
    rows = walked(spec(), 12)
    early = ended(12, {"learning_rate": 2.5e-3}, 0.99, TrialState.FAILED)
    late = ended(12, {"learning_rate": 1e-5}, 0.01, TrialState.FAILED)
    assert ask(spec(), 20, [*rows, early]) == ask(spec(), 20, rows)
    assert ask(spec(), 20, [*rows, late]) != ask(spec(), 20, rows)


# the four as they were before other fields could join them


NARROW = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": 0.25, "patience": {"low": 3, "high": 6}}


def test_the_same_seeds_suggest_what_they_did_before_other_fields_could_join_the_space() -> None:
    """Written down with the release that had four parameters and nothing else: a sweep of then goes on as it would."""
    before = json.loads((Path(__file__).parent / "suggestions.json").read_text(encoding="utf-8"))
    now = {f"{name}/{seed}": walked(spec(seed=seed, sampler=name), 16) for name in ("tpe", "random") for seed in (0, 7)}
    now["narrow"] = walked(spec(space=NARROW), 16)
    rows = walked(spec(), 30)
    alone = ask(spec(), 20, rows[:15])
    under_way = [trial_row(15 + n, hyperparameters=alone) for n in range(3)]
    asked = {
        "bounds": ask(spec(), 30, rows, learning_rate=bounds(2e-4, 5e-3)),
        "liar": ask(spec(), 20, [*rows[:15], *under_way]),
    }
    found = {name: [list((row.hyperparameters or {}).values()) for row in rows] for name, rows in now.items()}
    found |= {name: [list(values.values())] for name, values in asked.items()}
    assert found.keys() == before.keys()
    for name, suggested in found.items():
        assert [tuple(each) for each in suggested] == [pytest.approx(tuple(each), rel=1e-9) for each in before[name]]


# fields that join the four

TREE: dict[str, Any] = {
    "warmup_start_factor": 1.0,
    "patience": 9,
    "schedule": {"choices": ["plateau", "cosine_restarts"]},
    "restart_epochs": {"low": 5, "high": 20, "when": {"schedule": "cosine_restarts"}},
    "batch_size": {"low": 4, "high": 32, "log": True},
}


def treed(some: SweepSpec, trials: int, best: str, rows: list[TrialRow] | None = None) -> list[TrialRow]:
    """A sweep in which one schedule is better by a third, and with restarts the later the better."""
    rows = rows or []
    for number in range(len(rows), trials):
        values = ask(some, number, rows)
        wer = 0.2 + 0.3 * (values["schedule"] != best) + 0.1 * (20 - values.get("restart_epochs", 20)) / 15
        rows.append(ended(number, {}, wer))
        rows[-1] = replace(rows[-1], hyperparameters=values)
    return rows


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_conditional_parameter_is_there_when_its_condition_holds(sampler: str) -> None:
    some = spec(space=TREE, sampler=sampler)
    rows = treed(some, 30, "plateau")
    assert {(row.hyperparameters or {})["schedule"] for row in rows} == {"plateau", "cosine_restarts"}
    for row in rows:
        values = row.hyperparameters or {}
        assert ("restart_epochs" in values) == (values["schedule"] == "cosine_restarts")
        assert some.space.contains(values)
        assert type(values["batch_size"]) is int
        config = some.training(row.number, values, {})
        assert config.restart_epochs == values.get("restart_epochs", some.trainer.restart_epochs)
    assert len({(row.hyperparameters or {})["batch_size"] for row in rows}) >= 8


def test_the_startup_covers_every_choice() -> None:
    some = spec(space={**TREE, "hidden": {"choices": [64, 128, 256]}}, sampler={"startup_trials": 12})
    asked = [ask(some, number, []) for number in range(12)]
    for name, fewest in (("hidden", 2), ("schedule", 4)):
        counts = [sum(values[name] == each for values in asked) for each in {v[name] for v in asked}]
        assert min(counts) >= fewest, (name, counts)


@pytest.mark.parametrize("best", ["plateau", "cosine_restarts"])
def test_tpe_learns_a_choice_and_what_depends_on_it(best: str) -> None:
    some = spec(space=TREE)
    after = [row.hyperparameters or {} for row in treed(some, 45, best)[20:]]
    assert sum(values["schedule"] == best for values in after) >= 18
    if best == "cosine_restarts":
        assert median(values["restart_epochs"] for values in after if "restart_epochs" in values) >= 15


def test_what_is_under_way_repels_in_a_space_with_conditions_too() -> None:
    some = spec(space=TREE)
    rows = treed(some, 20, "cosine_restarts")
    alone = ask(some, 30, rows)
    under_way = [replace(trial_row(20 + n), hyperparameters=alone) for n in range(3)]
    assert ask(some, 30, [*rows, *under_way]) != alone


FEW: dict[str, Any] = {
    "learning_rate": 1e-3, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 9,
    "schedule": {"choices": ["plateau", "cosine_restarts"]},
    "restart_epochs": {"low": 5, "high": 8, "when": {"schedule": "cosine_restarts"}},
    "hidden": {"choices": [64, 128]},
}  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_configuration_is_tried_twice_before_all_were(sampler: str) -> None:
    some = spec(space=FEW, sampler={"name": sampler, "startup_trials": 3} if sampler == "tpe" else sampler)
    assert some.most_configurations() == 10
    rows: list[TrialRow] = []
    for number in range(10):
        values = ask(some, number, rows)
        assert values not in [row.hyperparameters for row in rows]
        rows.append(replace(ended(number, {}, 0.5), hyperparameters=values))
    assert ask(some, 10, rows) in [row.hyperparameters for row in rows], "nothing else is left"


def test_repeats_are_let_through_where_they_are_asked_for() -> None:
    some = spec(space={**FEW, "hidden": 64}, sampler={"name": "random", "repeats": True})
    assert some.most_configurations() is None
    rows = [replace(ended(0, {}, 0.5), hyperparameters=ask(some, 0, []))]
    for number in range(1, 12):
        rows.append(replace(ended(number, {}, 0.5), hyperparameters=ask(some, number, rows)))
    assert len({json.dumps(row.hyperparameters) for row in rows}) <= 5


# what a trial counts for


def value(*wers: float | None, loss: float = 4.0, verdict: str = "learned") -> float:
    return value_for_sampler(curve(*wers, loss=loss), CONSTANT_WER, verdict)


def test_the_order_of_endings() -> None:
    order = [
        value(1.0, 0.6, 0.3, 0.2, 0.25),
        value(1.0, 0.4, 0.95, 0.96, 0.97, verdict="collapsed"),
        value(1.0, 0.7, 0.55, verdict="too_slow"),
        value(1.0, CONSTANT_WER - 0.05),
        value(1.0, 0.3, None, verdict="diverged"),
        value(1.0, 1.0, loss=5.0, verdict="too_slow"),  # before takeoff
        value(1.88, 1.9, loss=3.7, verdict="never_learned"),
        value(0.97, 0.93, loss=6.0, verdict="never_learned"),
        value(0.99, loss=math.nan, verdict="never_learned"),
        value(0.98, None, verdict="diverged"),
    ]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    assert order[-1] == value_for_sampler([], CONSTANT_WER, None) == math.inf


def test_a_dead_trials_wer_is_not_heard_of() -> None:
    assert value(0.93, 0.97, loss=4.5, verdict="never_learned") == value(1.88, 2.5, loss=4.5, verdict="never_learned")
    assert value(0.93, loss=math.nan, verdict="never_learned") == value(1.88, loss=math.nan, verdict="never_learned")


def test_a_corpus_on_which_a_constant_scores_worse_than_nothing() -> None:
    """Its best constant sentence inserts words: a WER above 1 is then a takeoff, and still ahead of the dead."""
    dead = value_for_sampler(curve(1.5, loss=0.0), 1.5, "never_learned")
    assert value_for_sampler(curve(1.3), 1.5, "learned") < dead


def first_takeoff(seed: int, trials: int = 24) -> int:
    """In which trial (1 for the first) a sweep finds a rate that learns, where only the top twentieth of its space
    does; `trials` + 1 if it does not.

    Below, WER is noise, and the dev loss falls from the uniform output's towards F0, as in recorded runs.
    """
    some = spec(seed=seed)
    rows: list[TrialRow] = []
    curves: dict[int, list[EpochReport]] = {}
    for number in range(trials):
        values, noise = ask(some, number, rows, curves), random.Random(f"{seed}/{number}")
        missing = -1.85 - decades(values["learning_rate"])
        if missing <= 0:
            return number + 1
        rows.append(ended(number, values, noise.uniform(0.93, 1.9)))
        loss = 3.9 + 9.5 * (1 - math.exp(-missing)) + noise.gauss(0, 0.15)
        curves[rows[-1].id] = curve(rows[-1].best_wer, loss=loss)
    return trials + 1


def test_where_nearly_all_are_dead_it_finds_what_learns_sooner_than_by_wer(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [first_takeoff(seed) for seed in range(8)]
    monkeypatch.setattr(study_module, "value_for_sampler", lambda reports, *_: reports[-1].wer)
    by_wer = [first_takeoff(seed) for seed in range(8)]
    assert max(ours) <= 24, "each sweep finds it"
    assert sum(by_wer) - sum(ours) >= 16, f"two trials sooner in the mean: {ours} {by_wer}"


def test_what_is_under_way_repels() -> None:
    rows = walked(spec(), 15)
    alone = ask(spec(), 20, rows)
    under_way = [trial_row(15 + n, hyperparameters=alone) for n in range(3)]
    assert ask(spec(), 20, [*rows, *under_way]) != alone


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


@contextmanager
def optunas_own(store: Store) -> Iterator[optuna.storages.RDBStorage]:
    storage = optuna.storages.RDBStorage(store.url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def recorded(store: Store) -> list[FrozenTrial]:
    """The trials as anybody with Optuna alone reads them."""
    with optunas_own(store) as storage:
        return optuna.load_study(study_name="s", storage=storage).get_trials()


@pytest.fixture
def in_kolkata() -> Iterator[None]:
    """Half past five hours from UTC; on Windows the machine's own zone."""
    if not hasattr(time, "tzset"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


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


def test_told_by_two_at_the_same_time_one_of_them_stands(store: Store, study: Study) -> None:
    """A worker whose lease ran out, and the keeper."""
    for number in range(5):
        optuna_id = study.register(number, None, VALUES)
        trial = trial_row(number, TrialState.COMPLETE, optuna_trial_id=optuna_id, best_wer=0.25)
        with opened(store) as one, opened(store) as other, ThreadPoolExecutor(2) as pool:
            together = threading.Barrier(2)

            def tell(by: Study, trial: TrialRow = trial, together: threading.Barrier = together) -> None:
                together.wait()
                by.tell(trial, {1: 0.5, 2: 0.25})

            list(pool.map(tell, (one, other)))
        found = recorded(store)[number]
        assert (found.state, found.value, found.intermediate_values) == (OptunaState.COMPLETE, 0.25, {1: 0.5, 2: 0.25})


def test_a_tell_that_died_half_way_is_made_again(store: Store, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna_id = study.register(0, None, VALUES)
    trial = trial_row(0, TrialState.COMPLETE, optuna_trial_id=optuna_id, best_wer=0.25, reason="r")
    with monkeypatch.context() as patch:
        patch.setattr(optuna_tables, "_attributes", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.tell(trial, {1: 0.5, 2: 0.25})
    (half,) = recorded(store)
    assert (half.state, half.intermediate_values, half.datetime_complete) == (OptunaState.RUNNING, {}, None)
    with opened(store) as again:
        again.tell(trial, {1: 0.5, 2: 0.25})
    (found,) = recorded(store)
    assert (found.state, found.value, found.intermediate_values) == (OptunaState.COMPLETE, 0.25, {1: 0.5, 2: 0.25})


def test_so_is_one_of_an_earlier_version_which_wrote_each_value_for_itself(store: Store, study: Study) -> None:
    optuna_id = study.register(0, None, VALUES)
    with optunas_own(store) as storage:
        storage.set_trial_intermediate_value(optuna_id, 1, 0.75)
        storage.set_trial_user_attr(optuna_id, "verdict", "failed")
    trial = trial_row(0, TrialState.COMPLETE, optuna_trial_id=optuna_id, best_wer=0.25, verdict="learned", reason="r")
    study.tell(trial, {1: 0.5, 2: 0.25})
    (found,) = recorded(store)
    assert (found.state, found.value, found.intermediate_values) == (OptunaState.COMPLETE, 0.25, {1: 0.5, 2: 0.25})
    assert found.user_attrs == {"sweep_trial": 0, "verdict": "learned", "reason": "r"}


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED])
@pytest.mark.usefixtures("in_kolkata")
def test_optuna_itself_would_have_written_the_same(store: Store, study: Study, state: TrialState) -> None:
    optuna_id = study.register(0, "fixed", VALUES)
    trial = trial_row(0, state, optuna_trial_id=optuna_id, best_wer=0.25, verdict="learned", reason="Because: ä.")
    study.tell(trial, {1: 0.5, 2: 0.25})
    (ours,) = recorded(store)
    told = {"value": None} if ours.state is OptunaState.FAIL else {"value": 0.25}
    with optunas_own(store) as storage:
        theirs = optuna.load_study(study_name="s", storage=storage)
        theirs.add_trial(
            optuna.trial.create_trial(
                state=ours.state,
                params=ours.params,
                distributions=ours.distributions,
                user_attrs=ours.user_attrs,
                intermediate_values=ours.intermediate_values,
                **told,
            )
        )
    ours, same = recorded(store)
    assert (ours.number, same.number) == (0, 1)
    assert ours.state.name == {"FAILED": "FAIL"}.get(state.name, state.name)
    for moment in ("datetime_start", "datetime_complete"):
        mine, its = getattr(ours, moment), getattr(same, moment)
        assert timedelta(0) <= its - mine < timedelta(minutes=2)
        setattr(same, moment, mine)
    same.number, same._trial_id = ours.number, ours._trial_id
    assert same == ours


def test_trials_that_are_begun_at_the_same_time_are_numbered_one_after_the_other(store: Store, study: Study) -> None:
    with ThreadPoolExecutor(4) as pool:

        def begin(first: int) -> None:
            with opened(store) as mine:
                for number in range(first, first + 5):
                    mine.register(number, None, VALUES)

        list(pool.map(begin, range(0, 20, 5)))
    found = recorded(store)
    assert [trial.number for trial in found] == list(range(20))
    assert {trial.user_attrs["sweep_trial"] for trial in found} == set(range(20))


def test_orphans_are_failed_and_nothing_else(store: Store, study: Study) -> None:
    done, ours, orphan = (study.register(n, None, VALUES) for n in range(3))
    study.tell(trial_row(0, TrialState.COMPLETE, optuna_trial_id=done, best_wer=0.5), {})
    known = [
        trial_row(0, TrialState.COMPLETE, optuna_trial_id=done),
        trial_row(1, optuna_trial_id=ours),
        trial_row(2, TrialState.WAITING),
    ]
    for _ in range(2):
        study.fail(study.orphans(known))
    states = {trial._trial_id: trial.state for trial in recorded(store)}
    assert states == {done: OptunaState.COMPLETE, ours: OptunaState.RUNNING, orphan: OptunaState.FAIL}


def test_choices_and_parameters_that_are_absent_are_recorded_as_they_are(store: Store) -> None:
    with closing(Study(store.url, spec(space=TREE))) as study:
        for number in range(6):
            study.register(number, None, ask(spec(space=TREE), number, []))
    for number, trial in enumerate(recorded(store)):
        assert trial.params == pytest.approx(ask(spec(space=TREE), number, []))


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


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_memory_changes_no_suggestion(sampler: str) -> None:
    some, memory, rows = spec(sampler=sampler), Memory(), list[TrialRow]()
    narrow = FloatRange(low=1e-3, high=1e-2, log=True)
    for number in range(30):
        bounds = narrow if number > 20 else None
        under_way = [replace(row, state=TrialState.RUNNING) for row in rows[-2:]]
        shown = {row.id: curve(row.best_wer) for row in rows}
        several = [*rows[:-2], *under_way]
        asked = [
            suggest(some, number, several, shown, CONSTANT_WER, learning_rate=bounds, memory=known)
            for known in (None, memory)
        ]
        assert asked[0] == asked[1], number
        rate = asked[0]["learning_rate"]
        rows.append(ended(number, asked[0], min(1.0, abs(decades(rate) - decades(3e-3)))))
    assert len(memory) == (29 if sampler == "tpe" else 0)


def test_of_thousands_of_trials_the_sampler_is_shown_the_best_and_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.study.SHOWN_TRIALS", 20)
    monkeypatch.setattr("sweeps.study.SHOWN_BEST", 5)
    seen = list[list[float]]()

    def shown_to_it(trials: Sequence[FrozenTrial]) -> _Shown:
        seen.append([trial.params["learning_rate"] for trial in trials])
        return _Shown(trials)

    monkeypatch.setattr("sweeps.study._Shown", shown_to_it)
    rates = [1e-4 * (1 + n) for n in range(60)]
    rows = [ended(n, {"learning_rate": rate}, 0.6 if n % 10 else 0.1 + n / 1000) for n, rate in enumerate(rates)]
    assert 1e-5 <= ask(spec(), 60, rows)["learning_rate"] <= 2e-2
    best, latest = range(0, 50, 10), [n for n in range(60) if n % 10 or n == 50][-15:]
    assert seen == [[rates[n] for n in sorted([*best, *latest])]]
