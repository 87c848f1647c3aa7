"""What `sweeps doctor` says of a database, on SQLite and on PostgreSQL, and that it changes nothing there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from sweeps import migrations
from sweeps.doctor import Finding, tables
from sweeps.processes import started_at, this_host, this_runner
from sweeps.records import Runner, WorkerRow
from sweeps.settings import Home
from sweeps.states import SweepState
from sweeps.store import Store, database_url, schema


@pytest.fixture
def look(store_url: str, tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """What the doctor says of a database, by check; of this one unless another is named."""

    def call(url: str = store_url) -> dict[str, Finding]:
        return {found.check: found for found in tables(Home(tmp_path), url)}

    return call


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


def levels(found: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.level for check, finding in found.items()}


def test_a_new_database_is_well_and_not_touched(
    look: Callable[..., dict[str, Finding]], store_url: str, tmp_path: Path
) -> None:
    found = look()
    assert levels(found) == {"database": "ok"}
    assert "no tables yet" in found["database"].sentence
    assert schema(store_url).revision is None
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_use_is_well(look: Callable[..., dict[str, Finding]], store: Store) -> None:
    sweep = store.create_sweep("s", {}, "d", {"trials": 1}, {}, [])
    started, me = started_at(psutil.Process()), this_runner()
    store.take_runner(sweep.id, me, 60, lambda _: False)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.register_worker(WorkerRow("w", me.host, me.pid, started, "cpu", {"torch": "2"}))
    assert store.claim(sweep.id, "w", 60)
    found = look()
    assert levels(found) == dict.fromkeys(["database", "database clock", "keepers", "workers"], "ok")
    assert "up to date" in found["database"].sentence
    assert f"kept by process {me.pid} on" in found["keepers"].sentence
    assert found["workers"].sentence.startswith("1 live: process")


def test_dead_keepers_and_workers_are_named(look: Callable[..., dict[str, Finding]], store: Store) -> None:
    sweep = store.create_sweep("s", {}, "d", {"trials": 1}, {}, [])
    host, nobody = this_host(), 2**22 + 1  # Linux has no process of that number
    store.take_runner(sweep.id, Runner(f"{host}-{nobody}-1.00", host, nobody), 60, lambda _: False)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    store.register_worker(WorkerRow("w", host, nobody, 1.0, "cpu", {}))
    assert store.claim(sweep.id, "w", 60)
    found = look()
    assert levels(found) == {"database": "ok", "database clock": "ok", "keepers": "warning", "workers": "warning"}
    assert "holds a trial" in found["workers"].sentence


def test_an_older_database(look: Callable[..., dict[str, Finding]], store_url: str, tmp_path: Path) -> None:
    address = database_url(store_url)
    Path(address.database or "").parent.mkdir(exist_ok=True)
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
    engine.dispose()
    found = look()
    assert levels(found) == {"database": "fault"}
    assert "sweeps db upgrade --home" in found["database"].way_out
    assert schema(store_url).revision == "0001"


def test_a_newer_database(look: Callable[..., dict[str, Finding]], store: Store) -> None:
    engine = sa.create_engine(store.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sweep_alembic_version SET version_num = 'from_the_future'"))
    engine.dispose()
    found = look()
    assert levels(found) == {"database": "fault"}
    assert "newer version (revision from_the_future" in found["database"].sentence


def test_rows_of_the_future(look: Callable[..., dict[str, Finding]], store: Store) -> None:
    store.create_sweep("s", {}, "d", {"trials": 1}, {}, [])
    engine = sa.create_engine(store.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE sweep_sweeps SET created_at = created_at + 3600"))
    engine.dispose()
    found = look()
    assert levels(found)["database clock"] == "warning"


def test_a_database_that_cannot_be_written(
    store_url: str, store: Store, look: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if store_url.startswith("sqlite"):
        # As if the file were read-only, which it never is for root.
        monkeypatch.setattr("sweeps.store._PRAGMAS", ("query_only = ON",))
        found = look()
    else:
        found = look(f"{store_url}%20-cdefault_transaction_read_only%3Don")
    assert levels(found) == {"database": "fault"}
    assert "read" in found["database"].sentence, "read-only, readonly"


def test_what_is_no_database_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is a text, and a long one, where a database should be" * 20)
    for url, named in [
        (f"sqlite:///{(tmp_path / 'text.db').as_posix()}", "not a database"),
        ("postgresql://somebody:secret@127.0.0.1:1/sweeps?connect_timeout=5", "127.0.0.1"),
        ("mysql://root:secret@host/x", "it must be a file or a server"),
    ]:
        (found,) = tables(Home(tmp_path), url)
        assert found.level == "fault"
        assert named in found.sentence
        assert "secret" not in found.sentence
