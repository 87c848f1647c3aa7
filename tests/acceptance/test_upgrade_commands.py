"""`sweeps db` and `sweeps doctor` as they are typed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import pytest
import sqlalchemy as sa

from sweeps import migrations
from sweeps.settings import Home
from sweeps.store import Store

Tried: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A home with a database as the first version made it."""
    home = tmp_path / "my home"
    home.mkdir()
    engine = sa.create_engine(Home(home).database_url)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        connection.execute(
            sa.text(
                "INSERT INTO sweep_sweeps (id, name, spec, digest, budget, facts, state, created_at)"
                """ VALUES (1, 'old', '{}', 'd', '{"trials": 9}', '{}', 'PAUSED', 100.5)"""
            )
        )
    engine.dispose()
    return home


def test_an_older_database_is_refused_with_the_command_that_upgrades_it(tried: Tried, old_home: Path) -> None:
    needed = migrations.schema(None).needed
    code, _, err = tried("show", "--home", old_home)
    assert code == 2
    (line,) = err.splitlines()
    assert f"revision 0001, this one needs {needed}): run `" in line
    assert line.endswith(f"sweeps db upgrade --home '{old_home}'`")

    code, out, _ = tried("db", "current", "--home", old_home)
    assert code == 1
    assert "is at revision 0001" in out
    assert line.rpartition("run ")[2] in out

    code, out, _ = tried("db", "upgrade", "--home", old_home)
    assert code == 0
    copied, upgraded = out.splitlines()
    assert upgraded.endswith(f"from revision 0001 to {needed}")
    with closing(sqlite3.connect(copied.removeprefix("copied to "))) as copy:
        assert copy.execute("SELECT version_num FROM sweep_alembic_version").fetchone() == ("0001",)

    assert tried("show", "--home", old_home)[1] == "old: PAUSED  \n"
    code, out, _ = tried("db", "current", "--home", old_home)
    assert (code, "is up to date" in out) == (0, True)
    code, out, _ = tried("db", "upgrade", "--home", old_home)
    assert (code, "nothing to do" in out) == (0, True)
    assert len(list(old_home.glob("*.db"))) == 2, "no second copy"


def test_the_same_in_json(tried: Tried, old_home: Path) -> None:
    needed, shown = migrations.schema(None).needed, Home(old_home).database_url
    code, out, _ = tried("db", "current", "--home", old_home, "--json")
    assert code == 1
    assert json.loads(out) == {"database": shown, "revision": "0001", "needed": needed, "current": False}
    _, out, err = tried("db", "upgrade", "--home", old_home, "--json")
    what = json.loads(out)
    assert Path(what.pop("copy")).is_file()
    assert what == {"database": shown, "before": "0001", "after": needed}
    assert "upgraded" in err
    assert json.loads(tried("db", "upgrade", "--home", old_home, "--json")[1])["copy"] is None


def test_a_database_that_is_worked_on_is_upgraded_by_force_alone(tried: Tried, old_home: Path) -> None:
    with closing(sqlite3.connect(old_home / "sweeps.db")) as connection:
        connection.execute(
            "UPDATE sweep_sweeps SET runner_id = 'far-9-1.00', runner_host = 'far', runner_pid = 9,"
            " runner_beat_at = (julianday('now') - 2440587.5) * 86400.0"
        )
        connection.commit()
    code, _, err = tried("db", "upgrade", "--home", old_home)
    assert code == 2
    assert "sweep 'old' is being run by process 9 on far" in err
    assert tried("db", "current", "--home", old_home)[0] == 1
    assert tried("db", "upgrade", "--home", old_home, "--force")[0] == 0


def test_no_database_is_made_by_a_wrong_name(tried: Tried, tmp_path: Path) -> None:
    code, _, err = tried("db", "upgrade", "--home", tmp_path / "typo")
    assert (code, "holds no tables yet" in err) == (2, True)
    code, out, _ = tried("db", "current", "--home", tmp_path / "typo")
    assert (code, "holds no tables yet" in out) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_ends_with_1_where_something_must_be_mended(
    tried: Tried, old_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = tried("doctor", "--home", old_home)
    assert code == 1
    faults = [line for line in out.splitlines() if line.startswith("fault")]
    assert len(faults) == 1, out
    assert faults[0].startswith("fault    database: ")
    assert "sweeps db upgrade" in faults[0]
    tried("db", "upgrade", "--home", old_home)
    assert tried("doctor", "--home", old_home)[0] == 0


def test_the_doctor_in_json(tried: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    Store(Home(home).database_url).close()
    code, out, _ = tried("doctor", "--home", home, "--json")
    what = json.loads(out)
    assert (code, what["faults"]) == (0, 0), out
    assert all(check.keys() == {"check", "level", "sentence", "way_out"} for check in what["checks"])
    assert {"database", "database clock", "mlflow", "device"} <= {check["check"] for check in what["checks"]}
