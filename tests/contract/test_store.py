"""What every database under the store must do: run on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from model.types import METRICS, EpochReport
from sweeps import migrations, tables
from sweeps import store as stores
from sweeps.errors import (
    DatabaseUnavailable,
    LeaseLost,
    SweepBusy,
    SweepExists,
    SweepNotFound,
    TokenExists,
    TokenNotFound,
    TrialNotFound,
    TrialsSpent,
    WrongState,
)
from sweeps.records import (
    ActionRow,
    Claim,
    DecisionRow,
    EpochRow,
    EventRow,
    PlannedTrial,
    PriorRow,
    Runner,
    ScoreRow,
    SweepRow,
    TrialRow,
    WorkerRow,
)
from sweeps.states import SweepState, TrialState
from sweeps.store import Store, database_url
from sweeps.tables import metadata

PROCESSES = 8
EXPIRED = -1.0
"""A lease of so many seconds has run out already."""


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


@pytest.fixture
def engine(store: Store) -> Iterator[Engine]:
    """The same database without the store between."""
    engine = create_engine(store.url)
    yield engine
    engine.dispose()


def running_sweep(
    store: Store, *, name: str = "sweep", planned: int = 0, budget: dict[str, Any] | None = None
) -> SweepRow:
    first = [PlannedTrial(f"named-{i}", {"learning_rate": 1e-4}, {"epochs": 3}, False) for i in range(planned)]
    sweep = store.create_sweep(name, {"corpus": "c"}, "digest", budget or {"trials": 40}, {}, first)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    return sweep


_workers = itertools.count()


def claimed(store: Store, sweep: SweepRow, worker: str | None = None, lease_seconds: float = 60) -> Claim:
    """A claim; by default of a worker of its own, as each holds one trial."""
    claim = store.claim(sweep.id, worker or f"worker {next(_workers)}", lease_seconds)
    assert claim is not None
    return claim


def asked(store: Store, sweep: SweepRow) -> Claim:
    """A claim whose trial has parameters."""
    claim = claimed(store, sweep)
    store.set_hyperparameters(claim, {"learning_rate": 1e-3}, None)
    return claim


def epoch_row(epoch: int, wer: float = 1.0) -> EpochRow:
    return EpochRow(epoch, 10 * epoch, {"dev/wer": wer, "dev/loss": 5.0}, 10, 0, 0.1 * epoch, 2.5, "plateau")


def against(claim: Claim, action: Any = "stopped", **fields: Any) -> DecisionRow:
    """A decision against a trial; `fields` win."""
    given = {
        "trial_id": claim.trial_id,
        "number": claim.number,
        "epoch": 4,
        "rule": "futile",
        "verdict": "never_learned",
        "reason": "Größe 手語.",
        "counterfactual": "A learning rate above 1e-4 would have kept it.",
        "numbers": {"spread": 0.02},
        "thresholds": {"spread_needed": 0.3},
        "siblings": [0, 2],
        "action": action,
    }
    return DecisionRow(**{**given, **fields})


def row_of(store: Store, claim: Claim) -> TrialRow:
    return store.trial(claim.sweep_id, claim.number)


def sweep_now(store: Store, name: str = "sweep") -> SweepRow:
    sweep = store.find_sweep(name)
    assert sweep is not None
    return sweep


# many processes at once

_together: Any = None


def _enter(barrier: Any) -> None:
    global _together
    _together = barrier


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[..., list[Any]]]:
    """Runs a function in 8 processes, which all wait at `_together` until the last has come; gives its 8 results."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, _enter, (spawn.Barrier(PROCESSES),)) as pool:

        def run(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            futures = [pool.submit(function, *arguments) for _ in range(PROCESSES)]
            return [future.result(timeout=120) for future in futures]

        yield run


def _claim_all(url: str, sweep_id: int) -> list[int]:
    store = Store(url)
    numbers: list[int] = []
    _together.wait(60)
    while claim := store.claim(sweep_id, f"worker {os.getpid()}", 60):
        numbers.append(claim.number)
        if len(numbers) == 1:
            _together.wait(60)  # so that no process is done before another has begun
        store.finish(claim, TrialState.COMPLETE, "learned", "it ran all its epochs", None, {})
    store.close()
    return numbers


def test_the_trial_budget_is_exact_under_many_processes(store: Store, processes: Callable[..., list[Any]]) -> None:
    sweep = running_sweep(store, planned=10, budget={"trials": 40})
    taken = processes(_claim_all, store.url, sweep.id)
    assert sorted(n for numbers in taken for n in numbers) == list(range(40))
    assert all(taken)
    trials = store.trials(sweep.id)
    assert [t.number for t in trials] == list(range(40))
    assert [t.name for t in trials] == [f"named-{i}" for i in range(10)] + [None] * 30
    assert {(t.state, t.attempt) for t in trials} == {(TrialState.COMPLETE, 1)}


def _train_until_spent(url: str, sweep_id: int) -> int:
    store = Store(url)
    claim = store.claim(sweep_id, f"worker {os.getpid()}", 60)
    assert claim is not None
    epoch = 0
    _together.wait(60)
    while store.reserve_epoch(claim, epoch + 1):
        epoch += 1
        store.record(claim, [epoch_row(epoch)])
    store.close()
    return epoch


def test_the_epoch_budget_is_exact_under_many_processes(store: Store, processes: Callable[..., list[Any]]) -> None:
    sweep = running_sweep(store, budget={"trials": 100, "total_epochs": 50})
    trained = processes(_train_until_spent, store.url, sweep.id)
    assert sum(trained) == 50
    assert sum(t.epochs for t in store.trials(sweep.id)) == 50
    assert store.claim(sweep.id, "late", 60) is None, "a trial without an epoch left for it"


def _open(url: str) -> int:
    _together.wait(60)
    store = Store(url)
    count = len(store.sweeps())
    store.close()
    return count


def test_many_processes_may_open_a_new_database_at_once(store_url: str, processes: Callable[..., list[Any]]) -> None:
    assert processes(_open, store_url) == [0] * PROCESSES


# opening and schema


def _differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection, opts=migrations.OPTIONS), metadata))


@pytest.mark.parametrize("optuna_first", [True, False])
def test_the_migrations_make_the_tables_and_leave_those_of_optuna_alone(store_url: str, optuna_first: bool) -> None:
    address = database_url(store_url)
    Path(address.database or "").parent.mkdir(exist_ok=True)
    if not optuna_first:
        Store(store_url).close()
    storage = optuna.storages.RDBStorage(address.render_as_string(hide_password=False))
    store = Store(store_url)
    engine = create_engine(address)
    try:
        study = optuna.create_study(storage=storage, study_name="s")
        study.tell(study.ask(), 1.0)
        assert len(study.trials) == 1
        assert {"alembic_version", "sweep_alembic_version", "trials", "sweep_trials"} <= set(
            inspect(engine).get_table_names()
        )
        assert _differences(engine) == []
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE sweep_trials ADD COLUMN other INTEGER"))
            connection.execute(text("ALTER TABLE trials ADD COLUMN other INTEGER"))
        (difference,) = _differences(engine)
        assert difference[0] == "remove_column", difference
        assert difference[2] == "sweep_trials", difference
    finally:
        storage.remove_session()
        storage.engine.dispose()
        engine.dispose()
        store.close()


def test_a_database_of_a_newer_version_is_refused(store: Store, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE sweep_alembic_version SET version_num = 'from_the_future'"))
    with pytest.raises(DatabaseUnavailable, match=r"from_the_future.*newer version"):
        Store(store.url)


def test_what_cannot_be_opened_is_named_in_one_line_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text, and a long one, where a database should be" * 20)
    (tmp_path / "file").write_text("a file where a folder should be")
    for url, named in [
        (f"sqlite:///{(tmp_path / 'text.db').as_posix()}", "text.db"),
        (f"sqlite:///{(tmp_path / 'file' / 'sweeps.db').as_posix()}", "sweeps.db"),
        ("postgresql://somebody:secret@127.0.0.1:1/sweeps?connect_timeout=5", "127.0.0.1"),
    ]:
        with pytest.raises(DatabaseUnavailable) as error:
            Store(url)
        assert named in str(error.value)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://root:secret@host/x",
        "postgresql://u:secret@host:port/x",
        "sweeps.db",
        "",
    ],
)
def test_a_database_that_processes_cannot_share_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="use sqlite:///PATH or postgresql://") as error:
        Store(url)
    assert "secret" not in str(error.value)


def test_the_driver_is_chosen_for_the_user() -> None:
    for url in ("postgresql://u:p@h/d", "postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"):
        assert database_url(url).render_as_string(hide_password=False) == "postgresql+psycopg://u:p@h/d"


def test_sqlite_is_set_up_to_be_shared_and_to_survive_a_power_cut(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}")
    with store._read() as connection:
        got = {name: connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")}
    assert got == {"journal_mode": "wal", "synchronous": 2}
    store.close()


def test_a_file_that_another_program_writes_at_the_moment_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "sweeps.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE theirs (id INTEGER)")
    commit = threading.Timer(0.3, other.execute, ["COMMIT"])
    commit.start()
    Store(f"sqlite:///{file.as_posix()}").close()
    assert not commit.is_alive()
    assert other.execute("SELECT count(*) FROM theirs").fetchone() == (0,)
    other.close()


def _write_while_the_server_hangs_up(store: Store, engine: Engine) -> None:
    with store._write() as connection, engine.begin() as other:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        other.execute(text("SELECT pg_terminate_backend(:backend, 5000)"), {"backend": backend})
        connection.execute(text("SELECT 1"))


def test_a_database_that_is_away_for_a_while_is_named_and_then_goes_on(store: Store, engine: Engine) -> None:
    sweep = running_sweep(store)
    if engine.name == "sqlite":
        with store._read() as connection:
            connection.execute(text("PRAGMA busy_timeout = 50"))
        with engine.connect() as other:
            other.exec_driver_sql("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable, match="database is locked"):
                store.claim(sweep.id, "worker", 60)
    else:
        with pytest.raises(DatabaseUnavailable, match="terminating connection"):
            _write_while_the_server_hangs_up(store, engine)
    assert claimed(store, sweep).number == 0


def test_a_connection_that_the_server_closed_while_it_lay_idle_is_made_anew(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.name == "sqlite":
        return  # no server
    running_sweep(store)

    def hang_up() -> None:
        with store._read() as connection:
            backend = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        with engine.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:backend, 5000)"), {"backend": backend})

    monkeypatch.setattr("sweeps.store._SURELY_THERE_SECONDS", 3600.0)
    hang_up()
    with pytest.raises(DatabaseUnavailable):  # used a moment ago, so not asked whether it is there
        store.sweeps()
    (sweep,) = store.sweeps()
    monkeypatch.setattr("sweeps.store._SURELY_THERE_SECONDS", 0.0)
    hang_up()
    assert store.sweeps() == [sweep]


def test_a_new_connection_is_not_asked_whether_it_is_there(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that goes once more just then is told by the statement, as an error that is waited out."""
    if engine.name == "sqlite":
        return  # no server

    def ping(_: Any) -> None:
        raise AssertionError("it was asked")

    store.close()  # the pool is empty; it fills again
    monkeypatch.setattr(store._engine.dialect, "do_ping", ping)
    monkeypatch.setattr("sweeps.store._SURELY_THERE_SECONDS", 3600.0)
    assert store.sweeps() == store.sweeps() == []


def test_a_row_cannot_point_at_nothing(store: Store) -> None:
    with pytest.raises(IntegrityError), store._write() as connection:
        connection.execute(
            text(
                "INSERT INTO sweep_epochs (trial_id, epoch, step, metrics, steps_in_epoch, skipped_steps, lr_time,"
                " seconds, phase, recorded_at) VALUES (77, 1, 1, '{}', 1, 0, 0, 0, 'plateau', 0)"
            )
        )


def test_every_time_is_that_of_the_database(store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    true = time.time()
    monkeypatch.setattr(time, "time", lambda: true + 86_400)
    sweep = running_sweep(store)
    store.create_sweep("warm", {}, "", {"trials": 1}, {}, [], priors=[PriorRow(0, "s", 0, {}, None, None, None)])
    store.take_runner(sweep.id, Runner("r", "host", 1), 30, lambda _: False)
    claim = claimed(store, sweep, lease_seconds=0)
    store.record(claim, [epoch_row(1)])
    store.mark_mirrored(claim.trial_id, None, [1], 99)
    store.audit(claim, against(claim))
    store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    store.mark_told(claim.trial_id)
    held = claimed(store, sweep, lease_seconds=0)
    store.register_worker(WorkerRow("w", "host", 1, 0.0, "cpu", {}))
    store.set_sweep_state(sweep.id, SweepState.COMPLETE)
    store.add_token("t", "digest", "read", 30)
    store.good_token("digest")
    store.revoke_token("t")
    store.add_action(ActionRow("somebody", "create", "s"))
    store.add_scores(sweep.id, [ScoreRow(claim.trial_id, "dev", 1, ["a"], [0], [1])])
    store.add_notification(sweep.id, ["told", "waiting"], "end", "end", "It is over.", {})
    told = store.take_notification(["told"], 30)
    assert told is not None
    store.notification_sent(told)
    with engine.connect() as connection:
        times = {
            f"{table.name}.{column.name}": [
                value for value in connection.scalars(table.select().with_only_columns(column)) if value is not None
            ]
            for table in metadata.tables.values()
            for column in table.c
            if column.name.endswith("_at")
        }
    assert all(times.values()), f"never written: {[name for name, values in times.items() if not values]}"
    assert {name: values for name, values in times.items() if any(abs(v - true) > 60 for v in values)} == {}
    assert abs(store.now() - true) < 60
    assert row_of(store, held).state == TrialState.RUNNING


# sweeps


def test_a_sweep_comes_back_as_it_was_made(store: Store) -> None:
    spec = {"z": 1, "a": [1.0, 2, None, True, "Größe 手語"], "nested": {"low": 1e-5}}
    planned = [PlannedTrial("original", {"learning_rate": 1e-4}, {"patience": 15}, False)]
    made = store.create_sweep("größe", spec, "d1", {"trials": 3, "hours": 1.5}, {"constant_wer": 0.927}, planned)
    assert made == store.find_sweep("größe")
    assert list(made.spec) == ["z", "a", "nested"]
    assert made.spec == spec
    assert isinstance(made.spec["a"][0], float)
    assert (made.digest, made.budget, made.facts) == ("d1", {"trials": 3, "hours": 1.5}, {"constant_wer": 0.927})
    assert (made.state, made.reason, made.runner, made.seconds) == (SweepState.PENDING, "", None, 0.0)
    (trial,) = store.trials(made.id)
    assert (trial.number, trial.name, trial.in_space, trial.state) == (0, "original", False, TrialState.WAITING)
    assert (trial.hyperparameters, trial.overrides) == ({"learning_rate": 1e-4}, {"patience": 15})
    store.forget_mirrored(made.id, "http://a", "7")
    store.update_budget(made.id, {"trials": 5})
    again = sweep_now(store, "größe")
    assert (again.experiment_id, again.budget) == ("7", {"trials": 5})
    assert store.find_sweep("other") is None
    assert [s.name for s in store.sweeps()] == ["größe"]
    with pytest.raises(SweepNotFound):
        store.update_budget(made.id + 1, {"trials": 5})


def test_a_name_is_taken_once_and_a_refused_sweep_leaves_nothing(store: Store) -> None:
    running_sweep(store, planned=2)
    with pytest.raises(SweepExists, match="'sweep' exists already"):
        running_sweep(store, planned=3)
    twice = [PlannedTrial("same", {}, {}, True)] * 2
    with pytest.raises(IntegrityError):
        store.create_sweep("second", {}, "d", {"trials": 1}, {}, twice)
    assert [(s.name, len(store.trials(s.id))) for s in store.sweeps()] == [("sweep", 2)]


def test_facts_are_added_and_replaced_by_key(store: Store) -> None:
    made = store.create_sweep("s", {}, "d", {"trials": 1}, {"constant_wer": 0.9, "nested": {"a": 1}}, [])
    store.update_facts(made.id, {"bounds": {"low": 1e-5, "high": 1e-3}})
    store.update_facts(made.id, {"nested": {"b": 2}, "wörter": "手語"})
    wanted = {"constant_wer": 0.9, "nested": {"b": 2}, "bounds": {"low": 1e-5, "high": 1e-3}, "wörter": "手語"}
    assert sweep_now(store, "s") == dataclasses.replace(made, facts=wanted)
    with pytest.raises(SweepNotFound):
        store.update_facts(made.id + 1, {})


def _add_fact(url: str, sweep_id: int) -> str:
    store = Store(url)
    name = f"process {multiprocessing.current_process().pid}"
    _together.wait(60)
    for count in range(10):
        store.update_facts(sweep_id, {f"{name}, {count}": count})
    store.close()
    return name


def test_no_fact_is_lost_under_many_processes(store: Store, processes: Callable[..., list[Any]]) -> None:
    sweep = running_sweep(store)
    names = processes(_add_fact, store.url, sweep.id)
    assert sweep_now(store).facts == {f"{name}, {count}": count for name in names for count in range(10)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_with_its_path(store: Store, bad: float) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep)
    before = (store.sweeps(), store.trials(sweep.id))
    planned = [PlannedTrial("p", {"dropout": bad}, {}, True)]
    writes: dict[str, Callable[[], object]] = {
        "spec.space.low": lambda: store.create_sweep("b", {"space": {"low": bad}}, "d", {"trials": 1}, {}, []),
        r"facts.list\[1\]": lambda: store.create_sweep("b", {}, "d", {"trials": 1}, {"list": [1, bad]}, []),
        "hyperparameters.dropout": lambda: store.create_sweep("b", {}, "d", {"trials": 1}, {}, planned),
        "facts.low": lambda: store.update_facts(sweep.id, {"low": bad}),
        "hyperparameters.dropout ": lambda: store.enqueue(sweep.id, planned[0]),
        "budget.hours": lambda: store.update_budget(sweep.id, {"trials": 1, "hours": bad}),
        "hyperparameters.lr": lambda: store.set_hyperparameters(claim, {"lr": bad}, None),
        "metrics.dev/wer": lambda: store.record(claim, [epoch_row(1), epoch_row(2, wer=bad)]),
        "lr_time": lambda: store.record(claim, [dataclasses.replace(epoch_row(1), lr_time=bad)]),
        "evidence.spread": lambda: store.finish(claim, TrialState.PRUNED, None, "r", "r", {"spread": bad}),
        "numbers.spread": lambda: store.audit(claim, against(claim, numbers={"spread": bad})),
        "thresholds.share": lambda: store.finish(
            claim, TrialState.PRUNED, None, "r", "r", {}, against(claim, thresholds={"share": bad})
        ),
        "alarm.numbers.rate": lambda: store.raise_alarm(sweep.id, {"numbers": {"rate": bad}}, "it alarmed"),
    }
    for path, write in writes.items():
        with pytest.raises(ValueError, match=f"^{path.strip()} is .*only finite numbers"):
            write()
    assert (store.sweeps(), store.trials(sweep.id)) == before
    assert store.epochs(claim.trial_id) == []


def test_a_sweep_goes_only_where_its_life_cycle_allows(store: Store) -> None:
    sweep = running_sweep(store)
    started = sweep_now(store).started_at
    assert started is not None
    store.set_sweep_state(sweep.id, SweepState.STOPPING, "asked to")
    with pytest.raises(
        ValueError,
        match=r"'sweep' is STOPPING and cannot become PENDING.*RUNNING, PAUSED, STOPPED, CANCELLING, COMPLETE",
    ):
        store.set_sweep_state(sweep.id, SweepState.PENDING)
    store.set_sweep_state(sweep.id, SweepState.STOPPING)
    assert sweep_now(store).reason == "asked to"
    store.set_sweep_state(sweep.id, SweepState.STOPPING, "asked twice")
    assert sweep_now(store).reason == "asked twice"
    store.set_sweep_state(sweep.id, SweepState.STOPPED, "stopped")
    assert sweep_now(store).finished_at is not None
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    resumed = sweep_now(store)
    assert (resumed.finished_at, resumed.started_at, resumed.reason) == (None, started, "")
    with pytest.raises(SweepNotFound):
        store.set_sweep_state(sweep.id + 1, SweepState.RUNNING)


def test_a_step_may_be_bound_to_where_a_sweep_is(store: Store) -> None:
    sweep = running_sweep(store)
    assert not store.set_sweep_state(sweep.id, SweepState.STOPPED, "late", only_from=[SweepState.STOPPING])
    assert (sweep_now(store).state, sweep_now(store).reason) == (SweepState.RUNNING, "")
    assert store.set_sweep_state(sweep.id, SweepState.PAUSED, "asked", only_from=[SweepState.RUNNING])
    assert store.sweep_state(sweep.id) is SweepState.PAUSED
    with pytest.raises(SweepNotFound):
        store.sweep_state(sweep.id + 1)


def test_a_deleted_sweep_takes_its_rows_along_and_no_others(store: Store, engine: Engine) -> None:
    gone, kept = running_sweep(store, name="gone", planned=1), running_sweep(store, name="sweep", planned=1)
    for sweep in (gone, kept):
        claim = claimed(store, sweep)
        store.record(claim, [epoch_row(1)])
        store.finish(claim, TrialState.PRUNED, "too_slow", "r", "too_slow", {}, against(claim))
    before = (store.trials(kept.id), store.events(kept.id), store.decisions(kept.id), store.sweep_epochs(kept.id))
    store.delete_sweep(gone.id)
    store.delete_sweep(gone.id)
    assert [s.name for s in store.sweeps()] == ["sweep"]
    assert before == (
        store.trials(kept.id),
        store.events(kept.id),
        store.decisions(kept.id),
        store.sweep_epochs(kept.id),
    )
    with engine.connect() as connection:
        for table in (tables.trials, tables.events):
            assert not connection.execute(table.select().where(table.c.sweep_id == gone.id)).all()
        assert len(connection.execute(tables.epochs.select()).all()) == 1
        assert len(connection.execute(tables.decisions.select()).all()) == 1


# events and workers


def test_every_change_of_state_has_its_event(store: Store) -> None:
    sweep = running_sweep(store, planned=1)
    one = claimed(store, sweep, "one")
    store.hand_back(one, "interrupted")
    two = claimed(store, sweep, "two", lease_seconds=EXPIRED)
    store.reap(sweep.id)
    three = claimed(store, sweep, "three")
    assert store.attempt_failed(three, "RuntimeError: no") is TrialState.WAITING
    four = claimed(store, sweep, "four")
    store.record(four, [epoch_row(1)])
    store.finish(four, TrialState.COMPLETE, "learned", "Learned.", "epochs", {})
    store.enqueue(sweep.id, PlannedTrial("proposal", {"learning_rate": 1e-3}, {}, True))
    assert store.cancel_waiting(sweep.id, "asked to") == 1
    store.set_sweep_state(sweep.id, SweepState.CANCELLING, "asked to")
    store.add_event(sweep.id, EventRow("note", "a note", data={"free": 1}))
    told = store.events(sweep.id)
    assert [(e.kind, e.trial_number, e.attempt) for e in told] == [
        ("created", None, None),
        ("running", None, None),
        ("claimed", 0, 1),
        ("handed_back", 0, 1),
        ("claimed", 0, 2),
        ("reaped", 0, 2),
        ("claimed", 0, 3),
        ("attempt_failed", 0, 3),
        ("claimed", 0, 4),
        ("complete", 0, 4),
        ("enqueued", 1, None),
        ("cancelled", 1, None),
        ("cancelling", None, None),
        ("note", None, None),
    ]
    assert [e.worker for e in told if e.kind == "claimed"] == ["one", "two", "three", "four"]
    assert told[9].data == {"verdict": "learned", "rule": "epochs"}
    assert two.attempt == 2
    assert [e.kind for e in store.events(sweep.id, after=told[-2].id or 0)] == ["note"]
    assert [e.kind for e in store.events(sweep.id, limit=2)] == ["created", "running"]
    assert all(e.at is not None for e in told)


def test_a_worker_is_known_until_it_goes_and_those_that_hold_a_trial_are_found(store: Store) -> None:
    sweep = running_sweep(store)
    for name in ("one", "two"):
        store.register_worker(WorkerRow(name, "host", 7, 123.5, "cpu", {"torch": "2"}))
    store.register_worker(WorkerRow("one", "host", 8, 124.5, "cpu", {"torch": "2"}))
    claim = claimed(store, sweep, "two")
    assert [w.id for w in store.holders(sweep.id)] == ["two"]
    told = store.events(sweep.id)[-1]
    assert (told.kind, told.data) == ("claimed", {"host": "host", "device": "cpu", "versions": {"torch": "2"}})
    began = {w.id: w for w in store.workers()}
    assert (began["one"].pid, began["one"].process_started, began["one"].versions) == (8, 124.5, {"torch": "2"})
    assert store.renew(claim, 60)
    store.see_worker("one")
    for worker in store.workers():
        assert worker.seen_at is not None
        assert worker.seen_at > (began[worker.id].seen_at or 0)
    store.forget_worker("one")
    assert [w.id for w in store.workers()] == ["two"]


def test_a_claim_whose_answer_was_lost_is_given_again(store: Store) -> None:
    """The connection broke after the commit: the worker asks again, and must not hold two trials."""
    sweep = running_sweep(store, budget={"trials": 2})
    first = claimed(store, sweep, "one")
    again = claimed(store, sweep, "one")
    assert (again.number, again.attempt) == (first.number, first.attempt + 1)
    assert claimed(store, sweep, "two").number == 1
    store.attempt_failed(again, "x", max_attempts=2)
    assert store.trial(sweep.id, 0).state is TrialState.WAITING, "the lost answer was no attempt"


def test_a_trial_may_be_handed_back_twice_by_the_same_attempt(store: Store) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep)
    for _ in range(2):
        store.hand_back(claim, "preempted")
    kinds = [event.kind for event in store.events(sweep.id)]
    assert kinds.count("handed_back") == 1
    assert "late_write_refused" not in kinds
    reaped = claimed(store, sweep, "other", EXPIRED)
    store.reap(sweep.id)
    with pytest.raises(LeaseLost):  # it waits as well, but not because its worker has said so
        store.hand_back(reaped, "late")


def test_an_end_may_be_written_twice_by_the_same_attempt(store: Store) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep)
    for _ in range(2):
        store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    assert [e.kind for e in store.events(sweep.id)][-2:] == ["claimed", "complete"]
    with pytest.raises(LeaseLost):
        store.finish(claim, TrialState.FAILED, None, "done", None, {})


def test_an_attempt_that_failed_is_made_again_until_the_last(store: Store) -> None:
    sweep = running_sweep(store)
    states = []
    for epoch in (None, None, 1, None, None, None):
        claim = claimed(store, sweep)
        assert claim.number == 0
        if epoch:
            store.record(claim, [epoch_row(epoch)])
        states.append(store.attempt_failed(claim, "MemoryError: out of memory"))
    assert states == [TrialState.WAITING] * 5 + [TrialState.FAILED]
    trial = store.trial(sweep.id, 0)
    assert "out of memory (attempts in a row without a new epoch: 3 at most)" in trial.reason
    assert (trial.rule, trial.epochs) == ("fault", 1)
    assert trial.finished_at is not None


def test_a_reaper_may_spare_leases_that_ran_out(store: Store) -> None:
    """After an outage of the database every lease has run out."""
    sweep = running_sweep(store)
    one, two = (claimed(store, sweep, name, lease_seconds=EXPIRED) for name in ("one", "two"))
    assert store.reap(sweep.id, dead_workers=["two"], expired=False) == [(two.trial_id, TrialState.WAITING)]
    assert store.renew(one, 60)


def test_a_keeper_that_yields_gives_way_to_one_that_does_not(store: Store) -> None:
    sweep = running_sweep(store)
    works, runs = Runner("works-1.00", "a", 1, yields=1), Runner("runs-1.00", "b", 2)
    store.take_runner(sweep.id, works, 60, lambda holder: False)
    with pytest.raises(SweepBusy):
        store.take_runner(sweep.id, Runner("other-1.00", "c", 3, yields=1), 60, lambda holder: False)
    store.take_runner(sweep.id, runs, 60, lambda holder: False)
    assert sweep_now(store).runner == runs
    assert not store.beat(sweep.id, works.id)
    for late in (works, Runner("other-1.00", "c", 3)):
        with pytest.raises(SweepBusy):
            store.take_runner(sweep.id, late, 60, lambda holder: False)


def test_a_sweep_that_is_about_to_be_deleted_is_claimed_from_no_more_and_one_at_work_is_refused(store: Store) -> None:
    sweep = running_sweep(store)
    store.register_worker(WorkerRow("w", "host/1", 7, 0.0, "cpu", {}))
    claimed(store, sweep, "w")
    with pytest.raises(SweepBusy, match="process 7 on host "):
        store.begin_delete(sweep.id, lambda worker: False)
    assert sweep_now(store).state is SweepState.RUNNING
    assert store.begin_delete(sweep.id, lambda worker: worker.pid == 7) is SweepState.RUNNING
    assert sweep_now(store).state is SweepState.DELETING
    assert store.claim(sweep.id, "another", 60) is None
    store.end_delete(sweep.id, SweepState.RUNNING)
    assert sweep_now(store).state is SweepState.RUNNING
    store.begin_delete(sweep.id, lambda worker: worker.pid == 7)
    for go_on in (
        lambda: store.set_sweep_state(sweep.id, SweepState.RUNNING),
        lambda: store.raise_budget(sweep.id, 99),
        lambda: store.enqueue(sweep.id, PlannedTrial("late", {}, {}, False)),
    ):
        with pytest.raises(WrongState, match="is DELETING"):
            go_on()
    store.delete_sweep(sweep.id)
    claim = Claim(sweep.id, 1, 0, None, 1, None, {}, True, None, 0, "w")
    with pytest.raises(LeaseLost):
        store.hand_back(claim, "late")  # of a sweep that is gone: no event is left


def _claim_and_hand_back(url: str, sweep_id: int) -> int:
    store = Store(url)
    _together.wait(60)
    done = 0
    for _ in range(25):
        claim = store.claim(sweep_id, f"worker {os.getpid()}", 60)
        if claim is not None:
            store.record(claim, [epoch_row(1)])
            store.hand_back(claim, "on purpose")
            done += 1
        store.reap(sweep_id)
        store.forget_mirrored(sweep_id)
    store.close()
    return done


def test_workers_and_keepers_do_not_wait_for_each_other_in_a_circle(
    store: Store, processes: Callable[..., list[Any]]
) -> None:
    """An event points at the sweep: it must not wait for who holds the sweep and waits for the trial."""
    sweep = running_sweep(store, planned=4, budget={"trials": 12})
    assert sum(processes(_claim_and_hand_back, store.url, sweep.id)) > 100


ALARM = {"cause": "undecided", "sentence": "Nothing has taken off.", "proposal": None}


def test_a_sweep_alarms_once(store: Store) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep)
    assert store.raise_alarm(sweep.id, ALARM, "it alarmed")
    paused = sweep_now(store)
    assert (paused.state, paused.reason, paused.facts) == (SweepState.PAUSED, "it alarmed", {"alarm": ALARM})
    assert store.claim(sweep.id, "worker", 60) is None
    store.hand_back(claim, "the sweep is paused")
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    assert not store.raise_alarm(sweep.id, {**ALARM, "cause": "rates_too_low"}, "again")
    assert (sweep_now(store).state, sweep_now(store).facts) == (SweepState.RUNNING, {"alarm": ALARM})
    assert claimed(store, sweep).number == 0


def test_a_sweep_may_alarm_and_go_on_but_not_where_it_does_not_run(store: Store) -> None:
    sweep = running_sweep(store)
    store.set_sweep_state(sweep.id, SweepState.PAUSED, "interrupted")
    assert not store.raise_alarm(sweep.id, ALARM, "it alarmed")
    assert (sweep_now(store).reason, sweep_now(store).facts) == ("interrupted", {})
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    assert store.raise_alarm(sweep.id, ALARM, None)
    assert (sweep_now(store).state, sweep_now(store).reason) == (SweepState.RUNNING, "")
    with pytest.raises(SweepNotFound):
        store.raise_alarm(sweep.id + 1, ALARM, "it alarmed")


def _alarm(url: str, sweep_id: int) -> bool:
    store = Store(url)
    _together.wait(60)
    raised = store.raise_alarm(sweep_id, ALARM, "it alarmed")
    store.close()
    return raised


def test_one_of_many_processes_raises_the_alarm(store: Store, processes: Callable[..., list[Any]]) -> None:
    sweep = running_sweep(store)
    assert sorted(processes(_alarm, store.url, sweep.id)) == [False] * (PROCESSES - 1) + [True]


def test_one_process_runs_a_sweep_until_it_goes_dies_or_falls_silent(store: Store) -> None:
    sweep = running_sweep(store)
    first, second, third = (Runner(name, "host", i) for i, name in enumerate(["first", "second", "third"]))

    def alive(_: Runner) -> bool:
        return False

    store.take_runner(sweep.id, first, 30, alive)
    store.take_runner(sweep.id, first, 30, alive)
    with pytest.raises(SweepBusy, match="process 0 on host"):
        store.take_runner(sweep.id, second, 30, alive)
    assert sweep_now(store).runner == first
    store.take_runner(sweep.id, second, 30, lambda holder: holder == first)
    assert sweep_now(store).runner == second
    assert store.beat(sweep.id, "first") is False
    store.release_runner(sweep.id, "first")
    assert sweep_now(store).runner == second
    assert store.beat(sweep.id, "second") is True
    store.take_runner(sweep.id, third, 0, lambda _: pytest.fail("a silent holder is not asked after"))
    assert sweep_now(store).runner == third
    store.release_runner(sweep.id, "third")
    free = sweep_now(store)
    assert (free.runner, free.runner_beat_at) == (None, None)
    store.take_runner(sweep.id, first, 30, alive)


def test_the_seconds_of_a_sweep_are_those_under_its_runners(store: Store, engine: Engine) -> None:
    sweep = running_sweep(store)

    def later(seconds: float) -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE sweep_sweeps SET runner_beat_at = runner_beat_at - :s"), {"s": seconds})

    for runner in ("first", "second"):
        store.take_runner(sweep.id, Runner(runner, "host", 1), 30, lambda _: False)
        later(50)
        store.beat(sweep.id, runner)
        later(20)
        store.release_runner(sweep.id, runner)
        later(1000)
    assert sweep_now(store).seconds == pytest.approx(140, abs=5)
    store.take_runner(sweep.id, Runner("third", "host", 1), 30, lambda _: False)
    later(30_000)  # the machine slept
    store.beat(sweep.id, "third")
    assert sweep_now(store).seconds == pytest.approx(200, abs=5)


# claims


def test_a_claim_takes_what_has_epochs_then_the_oldest_then_a_new_trial(store: Store) -> None:
    sweep = running_sweep(store, planned=3, budget={"trials": 4})
    claims = [claimed(store, sweep) for _ in range(3)]
    assert [(c.number, c.name, c.attempt, c.in_space, c.epochs) for c in claims] == [
        (i, f"named-{i}", 1, False, 0) for i in range(3)
    ]
    assert claims[0].hyperparameters == {"learning_rate": 1e-4}
    assert claims[0].overrides == {"epochs": 3}
    store.record(claims[2], [epoch_row(1)])
    for claim in claims:
        store.hand_back(claim, "preempted")
    assert [(c.number, c.attempt, c.epochs) for c in (claimed(store, sweep) for _ in range(3))] == [
        (2, 2, 1),
        (0, 2, 0),
        (1, 2, 0),
    ]
    new = claimed(store, sweep)
    assert (new.number, new.name, new.attempt, new.hyperparameters, new.overrides, new.in_space) == (
        3,
        None,
        1,
        None,
        {},
        True,
    )
    assert store.claim(sweep.id, "worker", 60) is None
    store.update_budget(sweep.id, {"trials": 5})
    assert claimed(store, sweep).number == 4
    assert store.claim(sweep.id, "worker", 60) is None


def test_an_enqueued_trial_is_added_once_and_claimed_before_a_new_one(store: Store) -> None:
    sweep = running_sweep(store, planned=1, budget={"trials": 3})
    middle = PlannedTrial("middle", {"learning_rate": 1e-3}, {"epochs": 5}, True)
    running = claimed(store, sweep)
    assert store.enqueue(sweep.id, middle) == 1
    assert store.enqueue(sweep.id, PlannedTrial("middle", {"learning_rate": 7.0}, {}, False)) == 1
    claim = claimed(store, sweep)
    assert (claim.number, claim.name, claim.hyperparameters, claim.overrides, claim.in_space) == (
        1,
        "middle",
        {"learning_rate": 1e-3},
        {"epochs": 5},
        True,
    )
    store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    assert store.enqueue(sweep.id, middle) == 1, "a replay after its end"
    assert claimed(store, sweep).number == 2
    with pytest.raises(TrialsSpent, match=r"'sweep' has all 3 trials of its budget: raise budget\.trials"):
        store.enqueue(sweep.id, PlannedTrial("another", {}, {}, True))
    assert [t.number for t in store.trials(sweep.id)] == [0, 1, 2]
    assert row_of(store, running).state == TrialState.RUNNING


def test_facts_come_with_an_enqueued_trial_or_not_at_all(store: Store) -> None:
    sweep = running_sweep(store, planned=1, budget={"trials": 2})
    before = sweep_now(store).facts
    store.enqueue(sweep.id, PlannedTrial("first", {}, {}, True), {"bounds": [1, 2]})
    assert sweep_now(store).facts == {**before, "bounds": [1, 2]}
    with pytest.raises(TrialsSpent):
        store.enqueue(sweep.id, PlannedTrial("second", {}, {}, True), {"bounds": [3, 4]})
    assert sweep_now(store).facts["bounds"] == [1, 2]


def _enqueue_all(url: str, sweep_id: int) -> list[int]:
    store = Store(url)
    _together.wait(60)
    numbers = [store.enqueue(sweep_id, PlannedTrial(f"added-{i}", {}, {}, True)) for i in range(10)]
    store.close()
    return numbers


def test_trials_that_many_processes_enqueue_are_added_once(store: Store, processes: Callable[..., list[Any]]) -> None:
    sweep = running_sweep(store, planned=5)
    assert processes(_enqueue_all, store.url, sweep.id) == [list(range(5, 15))] * PROCESSES
    assert [t.name for t in store.trials(sweep.id)[5:]] == [f"added-{i}" for i in range(10)]


def test_nothing_is_claimed_from_a_sweep_that_does_not_run(store: Store) -> None:
    sweep = store.create_sweep("sweep", {}, "d", {"trials": 3}, {}, [PlannedTrial("p", {}, {}, True)])
    assert store.claim(sweep.id, "worker", 60) is None
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claimed(store, sweep)
    for state in (SweepState.PAUSED, SweepState.STOPPING, SweepState.STOPPED):
        store.set_sweep_state(sweep.id, state)
        assert store.claim(sweep.id, "worker", 60) is None
    assert len(store.trials(sweep.id)) == 1


def test_sweeps_do_not_mix(store: Store) -> None:
    one, two = running_sweep(store, name="one", planned=1), running_sweep(store, name="two", budget={"trials": 1})
    claim = claimed(store, two, "worker", lease_seconds=EXPIRED)
    assert (claim.sweep_id, claim.number) == (two.id, 0)
    assert store.claim(two.id, "another", 60) is None
    store.record(claim, [epoch_row(1)])
    store.set_hyperparameters(claim, {"lr": 1}, 5)
    assert store.reap(one.id, dead_workers=["worker"]) == []
    assert store.sweep_epochs(one.id) == {store.trial(one.id, 0).id: []}
    assert [p.trial.sweep_id for p in store.pending(one.id)] == [one.id]
    store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    assert store.untold(one.id) == []
    assert [t.id for t in store.untold(two.id)] == [claim.trial_id]


def _late_writes() -> dict[str, Callable[[Store, Claim], object]]:
    return {
        "record": lambda store, claim: store.record(claim, [epoch_row(2, wer=0.1)]),
        "record a replay": lambda store, claim: store.record(claim, [epoch_row(1)]),
        "finish": lambda store, claim: store.finish(claim, TrialState.FAILED, "late", "late", "late", {"late": 1}),
        "stop": lambda store, claim: store.finish(claim, TrialState.PRUNED, "late", "late", "late", {}, against(claim)),
        "audit": lambda store, claim: store.audit(claim, against(claim, "audited")),
        "hand_back": lambda store, claim: store.hand_back(claim, "late"),
        "set_hyperparameters": lambda store, claim: store.set_hyperparameters(claim, {"late": 1}, 99),
        "reserve_epoch": lambda store, claim: store.reserve_epoch(claim, 2),
    }


@pytest.mark.parametrize("after", ["reaped", "handed back", "claimed by another", "finished"])
def test_a_worker_that_lost_its_trial_writes_nothing(store: Store, engine: Engine, after: str) -> None:
    sweep = running_sweep(store, budget={"trials": 1})
    old = claimed(store, sweep, "old", EXPIRED)
    store.record(old, [epoch_row(1)])
    if after == "handed back":
        store.hand_back(old, "preempted")
    elif after == "finished":
        store.finish(old, TrialState.PRUNED, "never_learned", "flat", "futility", {})
    else:
        store.reap(sweep.id)
    if after == "claimed by another":
        assert claimed(store, sweep, "new").attempt == old.attempt + 1

    def everything() -> list[Any]:
        with engine.connect() as connection:
            kept = [table for table in metadata.tables.values() if table is not tables.events]
            return [connection.execute(table.select()).all() for table in kept]

    before = everything()
    writes = _late_writes()
    if after == "finished":
        writes.pop("stop")  # to the same end: the answer to the first time was lost
    if after == "handed back":
        writes.pop("hand_back")  # likewise
    for name, write in writes.items():
        with pytest.raises(LeaseLost, match="trial 0 is no longer held by its attempt 1"):
            write(store, old)
        assert everything() == before, name
        last = store.events(sweep.id)[-1]
        assert (last.kind, last.trial_number, last.attempt) == ("late_write_refused", 0, 1), name
    assert store.renew(old, 60) is False
    assert everything() == before


def test_a_worker_that_still_holds_its_trial_can_do_all_of_these(store: Store) -> None:
    for number, write in enumerate(_late_writes().values()):
        sweep = running_sweep(store, name=f"sweep-{number}")
        claim = claimed(store, sweep, lease_seconds=EXPIRED)  # run out, but not reaped: still its own
        store.record(claim, [epoch_row(1)])
        write(store, claim)


def test_a_renewed_lease_is_not_reaped(store: Store) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep, lease_seconds=EXPIRED)
    assert store.renew(claim, 60) is True
    assert store.reap(sweep.id) == []


# epochs


def test_epochs_come_back_as_they_were_recorded(store: Store) -> None:
    sweep = running_sweep(store)
    claim, other = claimed(store, sweep), claimed(store, sweep)
    rows = [epoch_row(1, 1.0), epoch_row(2, 0.4), epoch_row(3, 0.4), epoch_row(4, 0.7)]
    store.record(claim, rows[:1])
    store.record(claim, rows[1:])
    got = store.epochs(claim.trial_id)
    assert [dataclasses.replace(row, recorded_at=None) for row in got] == rows
    assert all(row.recorded_at is not None for row in got)
    assert store.sweep_epochs(sweep.id) == {claim.trial_id: got, other.trial_id: []}
    trial = row_of(store, claim)
    assert (trial.epochs, trial.best_wer, trial.best_epoch) == (4, 0.4, 2)


def test_an_epoch_without_a_finite_wer_is_recorded_and_never_the_best(store: Store) -> None:
    claim = claimed(store, running_sweep(store))
    store.record(claim, [dataclasses.replace(epoch_row(1), metrics={"dev/loss": 5.0})])
    assert (row_of(store, claim).best_wer, row_of(store, claim).epochs) == (None, 1)
    store.record(claim, [epoch_row(2, 0.9), dataclasses.replace(epoch_row(3), metrics={})])
    assert (row_of(store, claim).best_wer, row_of(store, claim).best_epoch) == (0.9, 2)


def test_a_replay_changes_nothing(store: Store, engine: Engine) -> None:
    claim = claimed(store, running_sweep(store))
    store.record(claim, [epoch_row(1, 0.9), epoch_row(2, 0.8)])
    before = (store.trials(claim.sweep_id), store.epochs(claim.trial_id))
    store.record(claim, [epoch_row(1, 0.9), epoch_row(2, 0.8)])
    store.record(claim, [epoch_row(2, 0.1)])
    store.record(claim, [])
    assert (store.trials(claim.sweep_id), store.epochs(claim.trial_id)) == before
    store.record(claim, [epoch_row(2, 0.1), epoch_row(3, 0.7)])
    after = store.epochs(claim.trial_id)
    assert after[:2] == before[1]
    assert [row.metrics["dev/wer"] for row in after] == [0.9, 0.8, 0.7]
    assert row_of(store, claim).best_wer == 0.7


def test_a_report_survives_the_database_but_for_what_is_not_finite(store: Store) -> None:
    metrics = dict.fromkeys(METRICS, 0.5) | {"dev/loss": math.inf, "optim/grad_norm": math.nan}
    report = EpochReport(3, 30, metrics, 10, 2, 0.25, 1.5)
    claim = claimed(store, running_sweep(store))
    store.record(claim, [EpochRow.of(report, "learning")])
    (row,) = store.epochs(claim.trial_id)
    assert row.phase == "learning"
    assert set(METRICS) - set(row.metrics) == {"dev/loss", "optim/grad_norm"}
    back = row.report()
    assert set(back.metrics) == set(METRICS)
    assert math.isnan(back.metrics["dev/loss"])
    assert back.finite() == report.finite()
    assert dataclasses.replace(back, metrics={}) == dataclasses.replace(report, metrics={})


def test_an_epoch_in_hand_counts_until_its_trial_is_let_go(store: Store) -> None:
    for number, let_go in enumerate(["hand_back", "reap", "finish"]):
        sweep = running_sweep(store, name=let_go, budget={"trials": 9, "total_epochs": 3})
        claim, other = claimed(store, sweep, "one"), claimed(store, sweep, "two")
        assert store.reserve_epoch(claim, 1), number
        store.record(claim, [epoch_row(1)])
        assert store.reserve_epoch(claim, 2)
        assert store.reserve_epoch(other, 1)
        assert store.reserve_epoch(claim, 2), "asked twice, counted once"
        assert store.reserve_epoch(claim, 1), "an epoch that is recorded costs nothing"
        assert not store.reserve_epoch(other, 2)
        assert not store.reserve_epoch(claim, 3)
        assert store.claim(sweep.id, "late", 60) is None
        if let_go == "hand_back":
            store.hand_back(claim, "preempted")
        elif let_go == "reap":
            store.reap(sweep.id, ["one"])
        else:
            store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
        assert store.reserve_epoch(other, 2), f"{let_go} kept the epoch in hand"
        assert not store.reserve_epoch(other, 3)


def test_no_epoch_and_no_trial_once_the_hours_are_spent(store: Store, engine: Engine) -> None:
    sweep = running_sweep(store, budget={"trials": 9, "hours": 0.5})
    claim = claimed(store, sweep)
    assert store.reserve_epoch(claim, 1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE sweep_sweeps SET seconds = 1799"))
    assert store.reserve_epoch(claim, 1)
    with engine.begin() as connection:
        connection.execute(text("UPDATE sweep_sweeps SET seconds = 1800"))
    assert not store.reserve_epoch(claim, 1)
    assert store.claim(sweep.id, "worker", 60) is None
    store.update_budget(sweep.id, {"trials": 9, "hours": 0.6})
    assert store.reserve_epoch(claim, 2)


# ends


def test_a_trial_ends_once_with_its_reason(store: Store) -> None:
    claim = claimed(store, running_sweep(store))
    for state in (TrialState.WAITING, TrialState.RUNNING):
        with pytest.raises(ValueError, match=f"cannot finish as {state}"):
            store.finish(claim, state, None, "r", None, {})
    assert row_of(store, claim).state == TrialState.RUNNING
    evidence = {"spread/time": 0.02, "threshold": 0.3, "siblings": [1, 2]}
    store.finish(claim, TrialState.PRUNED, "never_learned", "flat since epoch 1", "futility", evidence)
    trial = row_of(store, claim)
    assert (trial.state, trial.verdict, trial.rule) == (TrialState.PRUNED, "never_learned", "futility")
    assert (trial.reason, trial.evidence) == ("flat since epoch 1", evidence)
    assert trial.worker is not None
    assert trial.started_at is not None
    assert trial.finished_at is not None


def test_a_decision_is_kept_with_what_it_does(store: Store) -> None:
    sweep = running_sweep(store)
    spared, stopped, untouched = (asked(store, sweep) for _ in range(3))
    assert (store.decisions(sweep.id), store.decision(stopped.trial_id)) == ([], None)
    store.finish(stopped, TrialState.PRUNED, "never_learned", "flat", "futile", {}, against(stopped))
    store.audit(spared, against(spared, "audited", siblings=[]))
    store.finish(untouched, TrialState.COMPLETE, "learned", "done", "epochs", {})
    kept = store.decisions(sweep.id)
    assert [dataclasses.replace(row, recorded_at=None) for row in kept] == [
        against(spared, "audited", siblings=[]),
        against(stopped),
    ]
    assert all(row.recorded_at is not None for row in kept)
    assert [store.decision(claim.trial_id) for claim in (spared, stopped, untouched)] == [*kept, None]
    assert {p.trial.id: p.decision for p in store.pending(sweep.id)} == {
        spared.trial_id: kept[0],
        stopped.trial_id: kept[1],
        untouched.trial_id: None,
    }
    assert row_of(store, spared).state == TrialState.RUNNING, "it runs on"
    other = running_sweep(store, name="other")
    assert store.decisions(other.id) == []


def test_the_first_decision_against_a_trial_stays_whatever_is_replayed(store: Store) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep, "first", EXPIRED)
    store.audit(claim, against(claim, "audited"))
    (first,) = store.decisions(sweep.id)
    store.audit(claim, against(claim, "audited", epoch=7, rule="exhausted"))
    store.reap(sweep.id)
    again = claimed(store, sweep, "second")
    store.audit(again, against(again, "audited", epoch=9))
    store.hand_back(again, "interrupted")
    last = claimed(store, sweep, "third")
    diverged = against(last, rule="diverged", verdict="diverged", epoch=11)
    store.finish(last, TrialState.PRUNED, "diverged", "Diverged.", "diverged", {}, diverged)
    assert store.decisions(sweep.id) == [first]
    assert row_of(store, last).rule == "diverged"


def test_a_lease_that_ran_out_and_a_dead_worker_give_their_trials_back(store: Store) -> None:
    sweep = running_sweep(store)
    dead = claimed(store, sweep, "dead")
    slow = claimed(store, sweep, "slow", EXPIRED)
    live = claimed(store, sweep, "live")
    done = claimed(store, sweep, "done", EXPIRED)
    store.finish(done, TrialState.COMPLETE, "learned", "done", None, {})
    assert store.reap(sweep.id, ["dead", "done", "unknown"]) == [
        (dead.trial_id, TrialState.WAITING),
        (slow.trial_id, TrialState.WAITING),
    ]
    assert store.reap(sweep.id, ["dead"]) == []
    assert row_of(store, live).worker == "live"
    trial = row_of(store, dead)
    assert (trial.state, trial.worker, trial.finished_at) == (TrialState.WAITING, None, None)
    assert trial.reason == "worker dead died or let its lease run out"
    assert [claimed(store, sweep).trial_id for _ in range(2)] == [dead.trial_id, slow.trial_id]


def test_only_attempts_in_a_row_without_a_new_epoch_end_a_trial(store: Store) -> None:
    sweep = running_sweep(store, budget={"trials": 1})
    states = []
    for attempt in range(1, 20):
        claim = store.claim(sweep.id, f"worker-{attempt}", 60)
        if claim is None:
            break
        if attempt == 3:
            store.record(claim, [epoch_row(1)])
        if attempt > 3:
            store.record(claim, [epoch_row(1)])  # trained again from the start: not new
        if attempt in (2, 5, 6, 7):
            store.hand_back(claim, "preempted")
        else:
            ((_, state),) = store.reap(sweep.id, [f"worker-{attempt}"], max_attempts=3)
            states.append((attempt, str(state)))
    assert states == [(1, "WAITING"), (3, "WAITING"), (4, "WAITING"), (8, "WAITING"), (9, "FAILED")]
    trial = store.trial(sweep.id, 0)
    assert (trial.state, trial.attempt, trial.worker, trial.epochs) == (TrialState.FAILED, 9, "worker-9", 1)
    assert trial.reason == (
        "worker worker-9 died or let its lease run out (attempts in a row without a new epoch: 3 at most): see its log"
    )
    assert trial.finished_at is not None


def test_the_sampler_is_told_of_its_own_trials_once(store: Store) -> None:
    sweep = running_sweep(store, planned=1)
    named, asked, going = (claimed(store, sweep) for _ in range(3))
    store.set_hyperparameters(asked, {"learning_rate": 3e-4}, 11)
    store.set_hyperparameters(going, {"learning_rate": 4e-4}, 12)
    for claim in (named, asked):
        store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    (untold,) = store.untold(sweep.id)
    assert (untold.id, untold.optuna_trial_id, untold.hyperparameters) == (asked.trial_id, 11, {"learning_rate": 3e-4})
    store.mark_told(asked.trial_id)
    assert store.untold(sweep.id) == []


def test_a_trial_is_found_by_number_and_by_name(store: Store) -> None:
    sweep = running_sweep(store, planned=2)
    assert store.trial(sweep.id, 1) == store.trial(sweep.id, "1") == store.trial(sweep.id, "named-1")
    with pytest.raises(TrialNotFound, match=r"'sweep' has no trial 'named-7': did you mean 'named-[01]' or"):
        store.trial(sweep.id, "named-7")
    with pytest.raises(TrialNotFound, match="has no trial '2': name it by its number"):
        store.trial(sweep.id, 2)


def test_events_are_seen_in_the_order_of_their_ids(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on behind the last event that it has seen misses none, however slow the writer of another is."""
    told, inside = stores._tell, threading.Event()
    sweep = store.create_sweep("s", {}, "d", {"trials": 1}, {}, [])

    def slowly(connection: Any, sweep_id: int, event: EventRow) -> None:
        told(connection, sweep_id, event)
        if event.text == "slow":
            inside.set()
            time.sleep(1.0)

    monkeypatch.setattr(stores, "_tell", slowly)
    slow = threading.Thread(target=store.add_event, args=(sweep.id, EventRow("noted", "slow")))
    fast = threading.Thread(target=store.add_event, args=(sweep.id, EventRow("noted", "fast")))
    slow.start()
    assert inside.wait(10)
    fast.start()
    seen: list[str] = []
    last, deadline = 0, time.monotonic() + 10
    while len(seen) < 3 and time.monotonic() < deadline:
        for event in store.events(sweep.id, last):
            seen.append(event.text)
            last = event.id or 0
        time.sleep(0.01)
    slow.join()
    fast.join()
    assert seen[1:] == ["slow", "fast"]


# access


def test_a_token_is_good_until_it_expires_or_is_revoked(store: Store) -> None:
    assert store.good_token() is None
    store.add_token("short", "d1", "read", 0.5)
    made = store.add_token("long", "d2", "operate", None)
    assert (made.name, made.scope, made.expires_at, made.revoked_at, made.used_at) == (
        "long",
        "operate",
        None,
        None,
        None,
    )
    assert store.good_token("d1") is not None
    assert store.good_token("d3") is None
    time.sleep(0.6)
    assert store.good_token("d1") is None
    found = store.good_token("d2")
    assert found is not None
    assert found.scope == "operate"
    assert [token.used_at is not None for token in store.tokens()] == [True, True]
    with pytest.raises(TokenExists, match="'long'"):
        store.add_token("long", "d4", "read", None)
    first = store.revoke_token("long")
    assert store.revoke_token("long") == first
    assert store.good_token("d2") is None
    assert store.good_token() is None
    with pytest.raises(TokenNotFound, match="did you mean 'long'"):
        store.revoke_token("lung")


def test_who_asked_for_what_outlives_what_it_was(store: Store) -> None:
    sweep = running_sweep(store)
    store.add_action(ActionRow("token a", "create", sweep.name, {"n": 1}))
    store.add_action(ActionRow("ann@host", "delete", sweep.name))
    store.delete_sweep(sweep.id)
    first, second = store.actions()
    assert (first.actor, first.action, first.target, first.data) == ("token a", "create", sweep.name, {"n": 1})
    assert store.actions(after=first.id or 0) == [second]
    assert store.actions(limit=1) == [first]


def test_a_status_is_what_the_trials_are(store: Store) -> None:
    sweep, other = running_sweep(store, budget={"trials": 4}), running_sweep(store, name="other")
    wers = (0.5, 0.25, 0.25)
    for wer in wers:
        claim = claimed(store, sweep)
        store.record(claim, [epoch_row(1, wer=wer), epoch_row(2, wer=wer + 0.1)])
        store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    held = claimed(store, sweep)
    first, second = store.statuses()
    assert [first, second] == [store.statuses(sweep.name)[0], store.statuses(other.name)[0]]
    assert first.counts == {**dict.fromkeys(TrialState, 0), TrialState.COMPLETE: 3, TrialState.RUNNING: 1}
    assert first.epochs == 6
    assert first.best == store.trial(sweep.id, 1)
    assert (second.epochs, second.best, second.sweep.name) == (0, None, "other")
    assert store.statuses("none of them") == []
    assert {number: row.epoch for number, row in store.latest_epochs(sweep.id).items()} == {0: 2, 1: 2, 2: 2}
    assert store.trials(sweep.id, after=0, limit=1) == [store.trial(sweep.id, 1)]
    assert store.trials(sweep.id, states=[TrialState.RUNNING]) == [store.trial(sweep.id, held.number)]


# the mirror

PLACE = ("http://a", "1")


def set_run(
    store: Store, claim: Claim, run_id: str, instead_of: str | None = None, place: tuple[str, str] = PLACE
) -> str | None:
    return store.set_run_id(claim.sweep_id, claim.trial_id, run_id, instead_of=instead_of, place=place)


def test_the_mirror_gets_each_change_until_it_says_it_has_it(store: Store) -> None:
    sweep = running_sweep(store)
    claim = asked(store, sweep)
    store.record(claim, [epoch_row(1), epoch_row(2)])
    (first,) = store.pending(sweep.id)
    assert first.trial == row_of(store, claim)
    assert [row.epoch for row in first.epochs] == [1, 2]
    store.record(claim, [epoch_row(3)])
    store.forget_mirrored(sweep.id, *PLACE)
    set_run(store, claim, "run-1")
    store.mark_mirrored(claim.trial_id, "run-1", [1, 2], first.trial.revision)
    (second,) = store.pending(sweep.id)
    assert [row.epoch for row in second.epochs] == [3]
    assert second.trial.run_id == "run-1"
    store.mark_mirrored(claim.trial_id, "run-1", [3], second.trial.revision)
    assert store.pending(sweep.id) == []
    store.mark_mirrored(claim.trial_id, "run-0", [1, 2], first.trial.revision)  # of a run that is its no more
    assert store.pending(sweep.id) == []
    store.mark_mirrored(claim.trial_id, "run-1", [1, 2], first.trial.revision)  # a late one has set the state back
    (late,) = store.pending(sweep.id)
    assert late.epochs == []
    store.mark_mirrored(claim.trial_id, "run-1", [], late.trial.revision)
    assert store.pending(sweep.id) == []
    store.finish(claim, TrialState.COMPLETE, "learned", "done", None, {})
    (third,) = store.pending(sweep.id)
    assert (third.trial.state, third.epochs) == (TrialState.COMPLETE, [])


def test_a_trial_stays_pending_while_an_epoch_of_it_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.store._EPOCHS_AT_ONCE", 3)
    sweep = running_sweep(store)
    claims = [asked(store, sweep) for _ in range(3)]
    for claim in claims:
        store.record(claim, [epoch_row(epoch) for epoch in (1, 2)])
    seen: Counter[tuple[int, int]] = Counter()
    rounds = 0
    while pending := store.pending(sweep.id, limit=2):
        rounds += 1
        assert len(pending) <= 2
        assert sum(len(each.epochs) for each in pending) in range(1, 4)
        for each in pending:
            seen.update((each.trial.number, row.epoch) for row in each.epochs)
            store.mark_mirrored(each.trial.id, None, [row.epoch for row in each.epochs], each.trial.revision)
    assert seen == Counter({(number, epoch): 1 for number in range(3) for epoch in (1, 2)})
    assert rounds == 2


def test_of_two_that_set_the_run_the_first_wins(store: Store) -> None:
    sweep = running_sweep(store)
    claim = asked(store, sweep)
    store.record(claim, [epoch_row(1)])
    assert set_run(store, claim, "run-1") is None, "the sweep's runs belong nowhere yet"
    store.forget_mirrored(sweep.id, *PLACE)
    assert set_run(store, claim, "run-1") == "run-1"
    assert set_run(store, claim, "run-2") == "run-1", "another was faster"
    store.mark_mirrored(claim.trial_id, "run-1", [1], row_of(store, claim).revision)
    assert store.count_pending(sweep.id) == (0, 0)
    assert set_run(store, claim, "run-2", instead_of="run-1") == "run-2"
    assert [row.epoch for each in store.pending(sweep.id) for row in each.epochs] == [1], "run-1 had it"
    assert set_run(store, claim, "run-3", instead_of="run-2", place=("http://b", "1")) is None
    assert row_of(store, claim).run_id == "run-2"
    for run_id, stands in (("range-1", "range-1"), ("range-2", "range-1")):
        assert store.set_run_id(sweep.id, None, run_id, instead_of=None, place=PLACE) == stands
    found = store.find_sweep(sweep.name)
    assert found is not None
    assert found.facts["range_test_run"] == "range-1"


def test_what_was_mirrored_is_forgotten_as_one(store: Store) -> None:
    sweep, other = running_sweep(store), running_sweep(store, name="other")
    for each in (sweep, other):
        store.forget_mirrored(each.id, *PLACE)
        store.set_run_id(each.id, None, "range", instead_of=None, place=PLACE)
        claim = asked(store, each)
        store.record(claim, [epoch_row(1), epoch_row(2)])
        set_run(store, claim, "run")
        store.mark_mirrored(claim.trial_id, "run", [1, 2], row_of(store, claim).revision)
        assert store.count_pending(each.id) == (0, 0)
    store.update_facts(sweep.id, {"kept": 1})
    store.forget_mirrored(sweep.id)
    found = store.find_sweep(sweep.name)
    assert found is not None
    assert (found.tracking, found.experiment_id) == (None, None)
    assert "range_test_run" not in found.facts
    assert found.facts["kept"] == 1
    (again,) = store.pending(sweep.id)
    assert again.trial.run_id is None
    assert [row.epoch for row in again.epochs] == [1, 2]
    assert store.count_pending(sweep.id) == (1, 2)
    assert store.count_pending(other.id) == (0, 0)


def test_pages_of_what_is_pending_follow_one_another(store: Store) -> None:
    sweep = running_sweep(store)
    claims = [asked(store, sweep) for _ in range(5)]
    seen, last = [], -1
    while page := store.pending(sweep.id, after=last, limit=2):
        last = page[-1].trial.number
        seen += [each.trial.number for each in page]
    assert seen == [claim.number for claim in claims]


def test_a_trial_without_parameters_has_nothing_to_show(store: Store) -> None:
    sweep = running_sweep(store)
    claim = claimed(store, sweep)
    assert (store.pending(sweep.id), store.count_pending(sweep.id)) == ([], (0, 0))
    store.set_hyperparameters(claim, {"lr": 1.0}, None)
    assert [each.trial.id for each in store.pending(sweep.id)] == [claim.trial_id]


def test_the_revision_counts_what_a_reader_of_the_run_would_see(store: Store) -> None:
    sweep = running_sweep(store)
    store.forget_mirrored(sweep.id, *PLACE)
    claim = claimed(store, sweep)

    def steps(change: Callable[[], object]) -> int:
        before = row_of(store, claim).revision
        change()
        return row_of(store, claim).revision - before

    assert row_of(store, claim).revision > 0
    assert steps(lambda: store.set_hyperparameters(claim, {"lr": 1.0}, 1)) == 1
    assert steps(lambda: store.record(claim, [epoch_row(1)])) == 1
    for unseen in (
        lambda: store.record(claim, [epoch_row(1)]),
        lambda: store.renew(claim, 60),
        lambda: store.reserve_epoch(claim, 2),
        lambda: set_run(store, claim, "run"),
        lambda: store.mark_mirrored(claim.trial_id, "run", [1], 1),
        lambda: store.mark_told(claim.trial_id),
    ):
        assert steps(unseen) == 0
    assert steps(lambda: store.audit(claim, against(claim, "audited"))) == 1
    assert steps(lambda: store.hand_back(claim, "preempted")) == 1
    assert steps(lambda: claimed(store, sweep, "again", EXPIRED)) == 1
    assert steps(lambda: store.reap(sweep.id)) == 1
    again = claimed(store, sweep)
    assert steps(lambda: store.finish(again, TrialState.COMPLETE, "learned", "done", None, {})) == 1
