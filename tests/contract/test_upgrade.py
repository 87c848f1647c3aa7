"""A database that an older version filled: refused, upgraded, nothing lost. Rows are written as that version did."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from sweeps import migrations
from sweeps.errors import DatabaseOutdated, DatabaseUnavailable, SweepBusy
from sweeps.records import DecisionRow, EpochRow, Runner
from sweeps.states import SweepState, TrialState
from sweeps.store import Store, Upgraded, database_url, schema, upgrade
from sweeps.tables import metadata

STALE_SECONDS = 60.0
JSON_COLUMNS = frozenset(["spec", "budget", "facts", "overrides", "hyperparameters", "evidence", "metrics"])
NEEDED = migrations.schema(None).needed

SWEEP = {
    "id": 1,
    "name": "größe",
    "spec": {"name": "größe", "corpus": {"folder": "x"}},
    "digest": "d",
    "budget": {"trials": 9, "total_epochs": 40},
    "facts": {"corpus_hash": "c", "constant_wer": 0.9},
    "state": "PAUSED",
    "reason": "interrupted",
    "experiment_id": "7",
    "created_at": 100.5,
    "started_at": 101.5,
    "seconds": 33.25,
}
STOPPED = {"epoch": 2, "spread": 0.25}
TRIALS: list[dict[str, Any]] = [
    {"state": "COMPLETE", "verdict": "learned", "rule": "epochs", "epochs": 2, "best_wer": 0.25, "best_epoch": 2},
    {"state": "PRUNED", "verdict": "never_learned", "rule": "futile", "epochs": 2, "evidence": STOPPED},
    {"state": "WAITING", "epochs": 1, "attempt": 2, "fruitless_attempts": 1, "reason": "handed back"},
    {"state": "WAITING", "attempt": 0, "hyperparameters": None, "optuna_trial_id": None, "run_id": None},
    {"state": "FAILED", "verdict": None, "rule": "fault", "reason": "ValueError: no."},
]


def trial(number: int) -> dict[str, Any]:
    over = TRIALS[number]["state"] in ("COMPLETE", "PRUNED", "FAILED")
    common = {
        "id": number + 10,
        "sweep_id": 1,
        "number": number,
        "name": "original" if number == 0 else None,
        "in_space": number != 0,
        "overrides": {"epochs": 3} if number == 0 else {},
        "hyperparameters": {"learning_rate": 1e-4, "patience": 15},
        "attempt": 1,
        "fruitless_attempts": 0,
        "verdict": None,
        "rule": None,
        "reason": "Why.",
        "evidence": {},
        "best_wer": None,
        "best_epoch": None,
        "epochs": 0,
        "reserved_epochs": TRIALS[number].get("epochs", 0),
        "optuna_trial_id": number + 1,
        "told_at": 120.5 if over else None,
        "run_id": f"run{number}",
        "revision": 5,
        "mirrored_revision": 5,
        "created_at": 100.5,
        "started_at": 102.5,
        "finished_at": 120.5 if over else None,
    }
    return {**common, **TRIALS[number]}


def epoch(trial_id: int, number: int) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "epoch": number,
        "step": 10 * number,
        "metrics": {"dev/wer": 1 / (2 * number)},
        "steps_in_epoch": 10,
        "skipped_steps": 0,
        "lr_time": 0.125 * number,
        "seconds": 2.5,
        "phase": "plateau",
        "recorded_at": 110.5 + number,
        "mirrored_at": 111.5 + number,
    }


def rows_of_the_old_version(revision: str) -> dict[str, list[dict[str, Any]]]:
    trials = [trial(number) for number in range(len(TRIALS))]
    rows = {
        "sweep_sweeps": [SWEEP],
        "sweep_trials": trials,
        "sweep_epochs": [epoch(t["id"], n) for t in trials for n in range(1, t["epochs"] + 1)],
    }
    if revision >= "0002":
        decision = {
            "trial_id": 11,
            "epoch": 2,
            "rule": "futile",
            "verdict": "never_learned",
            "reason": "Why.",
            "counterfactual": "Had it.",
            "numbers": STOPPED,
            "thresholds": {"spread": 0.5},
            "siblings": [0],
            "action": "stopped",
            "recorded_at": 120.5,
        }
        rows["sweep_decisions"] = [decision]
    return rows


@pytest.fixture
def engine(store_url: str) -> Iterator[sa.Engine]:
    """The database without the store between; its folder is there."""
    address = database_url(store_url)
    if address.get_backend_name() == "sqlite":
        Path(address.database or "").parent.mkdir()
    engine = sa.create_engine(address)
    yield engine
    engine.dispose()


@pytest.fixture
def old(engine: sa.Engine) -> Callable[[str], None]:
    """Makes the database one of a given revision, filled."""

    def make(revision: str) -> None:
        with engine.begin() as connection:
            migrations.upgrade(connection, revision)
            for table, rows in rows_of_the_old_version(revision).items():
                for row in rows:
                    columns = [
                        sa.column(n, sa.JSON(none_as_null=True) if json_in(n, v) else None) for n, v in row.items()
                    ]
                    connection.execute(sa.insert(sa.table(table, *columns)).values(**row))

    return make


def json_in(name: str, value: Any) -> bool:
    return name in JSON_COLUMNS or isinstance(value, dict | list)


def upgraded(url: str, **options: Any) -> Upgraded:
    return upgrade(url, STALE_SECONDS, lambda _: False, **options)


def contents(engine: sa.Engine, tables: list[str] | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table (or of those), as they are, and the columns."""
    with engine.connect() as connection:
        found = {}
        for table in sorted(tables or sa.inspect(connection).get_table_names()):
            rows = connection.execute(sa.text(f"SELECT * FROM {table}"))
            found[table] = [tuple(rows.keys()), *sorted(tuple(map(repr, row)) for row in rows)]
        return found


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_older_database_is_refused_and_upgraded_with_all_it_holds(
    store_url: str, engine: sa.Engine, old: Callable[[str], None], revision: str
) -> None:
    old(revision)
    with pytest.raises(DatabaseOutdated, match=f"revision {revision}.*needs {NEEDED}.*sweeps db upgrade --database"):
        Store(store_url)
    done = upgraded(store_url)
    assert (done.before, done.after) == (revision, NEEDED)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=migrations.OPTIONS), metadata) == []
    with closing(Store(store_url)) as store:
        (sweep,) = store.sweeps()
        kept = {name: value for name, value in SWEEP.items() if name not in ("state",)}
        assert {name: getattr(sweep, name) for name in kept} == kept
        assert (sweep.state, sweep.runner, sweep.finished_at) == (SweepState.PAUSED, None, None)
        for number, row in enumerate(store.trials(1)):
            given = trial(number)
            names = given.keys() & row.__dataclass_fields__.keys() - {"state"}
            assert {n: getattr(row, n) for n in names} == {n: given[n] for n in names}
            assert row.state == TrialState(given["state"])
            written = [epoch(row.id, n) for n in range(1, row.epochs + 1)]
            fields = EpochRow.__dataclass_fields__
            assert store.epochs(row.id) == [EpochRow(**{f: e[f] for f in fields}) for e in written]
        assert len(store.trials(1)) == len(TRIALS)
        assert [t.seconds for t in store.trials(1)] == [2.5 * t["epochs"] if "epochs" in t else 0 for t in TRIALS]
        (decision,) = store.decisions(1)
        expected = {"counterfactual": "Had it.", "thresholds": {"spread": 0.5}, "siblings": [0]}
        if revision == "0001":  # which kept neither
            expected = {"counterfactual": "", "thresholds": {}, "siblings": []}
        common = {"reason": "Why.", "numbers": STOPPED, "action": "stopped", "recorded_at": 120.5}
        assert decision == DecisionRow(11, 1, 2, "futile", "never_learned", **common, **expected)


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_upgraded_sweep_goes_on(store_url: str, old: Callable[[str], None], revision: str) -> None:
    old(revision)
    upgraded(store_url)
    with closing(Store(store_url)) as store:
        store.set_sweep_state(1, SweepState.RUNNING)
        claims = [store.claim(1, f"worker-{n}", 60) for n in range(3)]
        # The one with an epoch behind it, the other that waits, a new one.
        assert [(c.number, c.epochs, c.attempt) for c in claims if c] == [(2, 1, 3), (3, 0, 1), (5, 0, 1)]
        assert claims[0] is not None
        written = {**epoch(0, 2), "recorded_at": None}
        store.record(claims[0], [EpochRow(**{f: written[f] for f in EpochRow.__dataclass_fields__})])
        assert store.trial(1, 2).epochs == 2


def test_upgrading_again_changes_nothing(store_url: str, engine: sa.Engine, old: Callable[[str], None]) -> None:
    old("0001")
    upgraded(store_url)
    before = contents(engine)
    assert upgraded(store_url) == Upgraded(NEEDED, NEEDED, None)
    assert contents(engine) == before


def test_an_empty_database_gets_its_tables(store_url: str, engine: sa.Engine) -> None:
    assert schema(store_url).revision is None
    assert upgraded(store_url) == Upgraded(None, NEEDED, None)
    assert schema(store_url).current
    with closing(Store(store_url)) as store:
        assert store.sweeps() == []


def test_looking_makes_no_file(tmp_path: Path) -> None:
    found = schema(f"sqlite:///{(tmp_path / 'sub' / 'sweeps.db').as_posix()}")
    assert (found.revision, found.needed, found.newer, found.current) == (None, NEEDED, False, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_upgrade_that_fails_half_way_changes_nothing(
    store_url: str, engine: sa.Engine, old: Callable[[str], None], nth: int
) -> None:
    old("0001")
    before = contents(engine)
    seen: list[str] = []

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("CREATE", "ALTER", "UPDATE", "INSERT")):
            seen.append(statement)
            if len(seen) == 2 * nth:
                raise InterruptedError("the power went")

    sa.event.listen(sa.Engine, "after_cursor_execute", fail)
    try:
        with pytest.raises(DatabaseUnavailable, match="the power went"):
            upgraded(store_url)
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", fail)
    assert len(seen) == 2 * nth
    assert contents(engine) == before
    assert schema(store_url).revision == "0001"
    assert upgraded(store_url).after == NEEDED


def test_the_tables_of_optuna_are_left_alone(store_url: str, engine: sa.Engine, old: Callable[[str], None]) -> None:
    storage = optuna.storages.RDBStorage(database_url(store_url).render_as_string(hide_password=False))
    study = optuna.create_study(storage=storage, study_name="s")
    study.tell(study.ask(), 1.0)
    storage.remove_session()
    storage.engine.dispose()
    theirs = sorted(sa.inspect(engine).get_table_names())
    before = contents(engine, theirs)
    assert {"trials", "alembic_version"} <= set(theirs)
    old("0001")
    upgraded(store_url)
    assert contents(engine, theirs) == before


def test_a_newer_database_is_refused(store_url: str, engine: sa.Engine, old: Callable[[str], None]) -> None:
    old("0002")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sweep_alembic_version SET version_num = 'from_the_future'"))
    assert schema(store_url).newer
    with pytest.raises(DatabaseUnavailable, match=r"from_the_future.*newer version"):
        upgraded(store_url)


def hold(engine: sa.Engine, seconds_ago: float) -> None:
    """As a runner of the old version did."""
    with engine.begin() as connection:
        clock = {"sqlite": "(julianday('now') - 2440587.5) * 86400.0", "postgresql": "extract(epoch FROM now())"}
        connection.execute(
            sa.text(
                "UPDATE sweep_sweeps SET runner_id = 'far-9-1.00', runner_host = 'far', runner_pid = 9, "
                f"runner_beat_at = {clock[engine.name]} - {seconds_ago}"
            )
        )


def test_a_database_that_is_worked_on_is_not_upgraded(
    store_url: str, engine: sa.Engine, old: Callable[[str], None]
) -> None:
    old("0001")
    hold(engine, 3)
    before = contents(engine)
    asked: list[Runner] = []
    with pytest.raises(SweepBusy, match="process 9 on far"):
        upgrade(store_url, STALE_SECONDS, lambda runner: bool(asked.append(runner)))
    assert asked == [Runner("far-9-1.00", "far", 9)]
    assert contents(engine) == before
    assert upgraded(store_url, force=True).after == NEEDED


@pytest.mark.parametrize(("seconds_ago", "dead"), [(3, True), (600, False)])
def test_a_process_that_is_gone_holds_up_nothing(
    store_url: str, engine: sa.Engine, old: Callable[[str], None], seconds_ago: float, dead: bool
) -> None:
    old("0001")
    hold(engine, seconds_ago)
    assert upgrade(store_url, STALE_SECONDS, lambda _: dead).after == NEEDED


# the copy of an SQLite file


@pytest.fixture
def sqlite_file(tmp_path: Path) -> Path:
    """An SQLite database of revision 0001, filled, with rows that are not in the file itself yet."""
    file = tmp_path / "my sweeps.db"
    engine = sa.create_engine(f"sqlite:///{file.as_posix()}")
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        sweep = {name: value for name, value in SWEEP.items() if name not in JSON_COLUMNS}
        empty = dict.fromkeys(("spec", "budget", "facts"), "{}")
        columns = [sa.column(name) for name in {**sweep, **empty}]
        connection.execute(sa.insert(sa.table("sweep_sweeps", *columns)).values(**sweep, **empty))
    engine.dispose()
    return file


def test_an_sqlite_file_is_copied_as_it_was(sqlite_file: Path) -> None:
    with closing(sqlite3.connect(sqlite_file)) as open_elsewhere:
        open_elsewhere.execute("PRAGMA journal_mode = WAL")
        open_elsewhere.execute("UPDATE sweep_sweeps SET reason = 'in the log, not in the file'")
        open_elsewhere.commit()
        done = upgraded(f"sqlite:///{sqlite_file.as_posix()}")
    assert done.copy is not None
    assert done.copy.parent == sqlite_file.parent
    assert done.copy.name.startswith("my sweeps-0001-2")
    assert done.copy.suffix == ".db"
    with closing(sqlite3.connect(done.copy)) as copy:
        assert copy.execute("SELECT version_num FROM sweep_alembic_version").fetchone() == ("0001",)
        assert copy.execute("SELECT name, reason FROM sweep_sweeps").fetchall() == [
            (SWEEP["name"], "in the log, not in the file")
        ]
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not list(sqlite_file.parent.glob(".*.part"))
    assert upgraded(f"sqlite:///{done.copy.as_posix()}").before == "0001", "the copy is a database like any other"


def test_without_room_for_the_copy_nothing_is_changed(sqlite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_self: Path, _target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(DatabaseUnavailable, match="No space left"):
            upgraded(f"sqlite:///{sqlite_file.as_posix()}")
    assert [f.name for f in sqlite_file.parent.iterdir()] == [sqlite_file.name]
    assert schema(f"sqlite:///{sqlite_file.as_posix()}").revision == "0001"


def test_rows_that_refer_to_nothing_are_named_and_the_upgrade_undone(sqlite_file: Path) -> None:
    with closing(sqlite3.connect(sqlite_file)) as connection:
        connection.execute("INSERT INTO sweep_epochs VALUES (99, 1, 1, '{}', 1, 0, 0, 1, 'plateau', 1, NULL)")
        connection.commit()
    with pytest.raises(DatabaseUnavailable, match="rows of sweep_epochs refer to rows of sweep_trials"):
        upgraded(f"sqlite:///{sqlite_file.as_posix()}")
    assert schema(f"sqlite:///{sqlite_file.as_posix()}").revision == "0001"


def test_a_table_can_be_made_anew_under_rows_that_refer_to_it(
    store_url: str, old: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    old("0002")
    to_head = migrations.upgrade

    def make_anew(connection: sa.Connection) -> None:
        """As a later migration may: the only way to change a column in SQLite."""
        to_head(connection)
        with Operations(MigrationContext.configure(connection)).batch_alter_table("sweep_trials") as table:
            table.alter_column("reason", existing_type=sa.Text(), type_=sa.String(), existing_server_default="")

    monkeypatch.setattr(migrations, "upgrade", make_anew)
    upgraded(store_url)
    with closing(Store(store_url)) as store:
        assert [t.number for t in store.trials(1)] == list(range(len(TRIALS)))
        assert len(store.epochs(10)) == 2
