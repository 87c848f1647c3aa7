"""Where a load is put: a database, a sweep of nothing in it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from sweeps import preparing
from sweeps.settings import Home
from sweeps.spec import SweepSpec
from sweeps.states import SweepState
from sweeps.store import Store
from tests.corpora import write_corpus
from tests.faults.databases import postgresql
from tests.load import nothing

TRAINER = f"{Path(nothing.__file__).resolve()}:Nothing"
ROOT = Path(__file__).parents[2]
NAME = "load"
CONNECTIONS = 300
"""PostgreSQL's own limit is 100."""


@dataclass(frozen=True)
class Database:
    url: str
    ask: Callable[[str], int] | None
    """One number, from a query; None where the server keeps no such numbers."""

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return (
            self.ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") if self.ask else 0
        )

    @property
    def deadlocks(self) -> int:
        """How many there were."""
        return self.ask("SELECT sum(deadlocks) FROM pg_stat_database") if self.ask else 0


@contextmanager
def database(kind: str) -> Iterator[Database]:
    """An empty one: `sqlite` or `postgresql`."""
    with tempfile.TemporaryDirectory(prefix="load") as folder:
        if kind == "sqlite":
            yield Database(f"sqlite:///{(Path(folder) / 'sweeps.db').as_posix()}", None)
            return
        with postgresql(Path(folder)) as server:
            with psycopg.connect(server.server.get_uri(), autocommit=True) as connection:
                connection.execute(f"ALTER SYSTEM SET max_connections = {CONNECTIONS}")
            server.away(0, "fast")
            with psycopg.connect(server.server.get_uri(), autocommit=True) as connection:

                def ask(query: str) -> int:
                    row = connection.execute(query.encode()).fetchone()
                    assert row is not None
                    return int(row[0])

                yield Database(server.schema(), ask)


def created(folder: Path, url: str, trials: int, epochs: int, sampler: str, *, reserves: bool = False) -> SweepSpec:
    """A sweep that runs, and that nobody works on yet.

    Args:
        reserves: whether each epoch is reserved from a budget of epochs, which never runs out.
    """
    sentences = {split: [f"{a} {b}" for a in "ABCD" for b in "ABCD" if a != b] for split in ("train", "dev")}
    content = {
        "name": NAME,
        "corpus": str(write_corpus(folder / "corpus", sentences, width=225)),
        "trainer": {"epochs": epochs},
        "space": {"patience": {"low": 1, "high": 20}},
        "sampler": sampler,
        "budget": {"trials": trials, "total_epochs": 2 * trials * epochs if reserves else None},
    }
    prepared = preparing.prepare(SweepSpec.model_validate(content), Home(folder / "home"), trainer=TRAINER)
    with closing(Store(url)) as store:
        sweep = preparing.open_sweep(store, prepared)
        store.set_sweep_state(sweep.id, SweepState.RUNNING)
    return prepared.spec
