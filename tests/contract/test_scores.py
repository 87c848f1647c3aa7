"""Scores by sentence: what was looked at once stays as it was seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sweeps.records import PlannedTrial, ScoreRow, SweepRow
from sweeps.store import Store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


def sweep_of(store: Store, name: str = "s") -> SweepRow:
    planned = [PlannedTrial(f"t{n}", {"learning_rate": 1e-3}, {}, False) for n in range(2)]
    return store.create_sweep(name, {}, "digest", {"trials": 2}, {}, planned)


def rows_of(store: Store, sweep: SweepRow) -> list[ScoreRow]:
    return [
        ScoreRow(trial.id, split, 3, ["a", "b"], [trial.number, 1], [4, 2])
        for trial in store.trials(sweep.id)
        for split in ("dev", "test")
    ]


def test_scores_come_back_by_trial_and_split(store: Store) -> None:
    sweep = sweep_of(store)
    rows = rows_of(store, sweep)
    before = store.now()
    store.add_scores(sweep.id, [*reversed(rows)])
    found = store.scores(sweep.id)
    assert [replace(row, scored_at=None) for row in found] == rows
    assert all(before <= (row.scored_at or 0) <= store.now() for row in found)


def test_the_first_look_counts(store: Store) -> None:
    sweep = sweep_of(store)
    rows = rows_of(store, sweep)
    store.add_scores(sweep.id, rows[:2])
    seen = store.scores(sweep.id)
    store.add_scores(sweep.id, [replace(row, errors=[9, 9]) for row in rows])
    assert store.scores(sweep.id)[:2] == seen
    assert [row.errors for row in store.scores(sweep.id)] == [[0, 1], [0, 1], [9, 9], [9, 9]]


def test_the_first_look_at_test_is_an_event_and_no_other(store: Store) -> None:
    sweep, untouched = sweep_of(store), sweep_of(store, "untouched")
    rows = rows_of(store, sweep)
    store.add_scores(sweep.id, [row for row in rows if row.split == "dev"])
    store.add_scores(untouched.id, [row for row in rows_of(store, untouched) if row.split == "dev"])
    assert store.looks_at_test() == {}
    for row in (*rows, *rows):
        store.add_scores(sweep.id, [row])
    told = [event for event in store.events(sweep.id) if event.kind == "test_scored"]
    assert [event.data for event in told] == [{"sentences": 2}]
    assert [event for event in store.events(untouched.id) if event.kind == "test_scored"] == []
    first = next(row.scored_at for row in store.scores(sweep.id) if row.split == "test")
    assert store.looks_at_test() == {sweep.id: first}


def test_a_sweep_that_is_deleted_takes_its_scores_along(store: Store) -> None:
    sweep, other = sweep_of(store), sweep_of(store, "other")
    for each in (sweep, other):
        store.add_scores(each.id, rows_of(store, each))
    store.delete_sweep(sweep.id)
    assert store.scores(sweep.id) == []
    assert len(store.scores(other.id)) == 4
    assert store.looks_at_test().keys() == {other.id}
