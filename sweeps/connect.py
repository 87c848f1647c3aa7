"""The sweeps of a server, or of a database: the same calls."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sweeps import preparing
from sweeps.client import Client
from sweeps.interface import Sweeps
from sweeps.records import SweepRow
from sweeps.service import SweepService, load_home_store
from sweeps.settings import find_home
from sweeps.shipping import server_of, tracking_server


@contextmanager
def connect(
    server: str | None = None,
    token: str | None = None,
    *,
    home: str | Path | None = None,
    database: str | None = None,
    tracking_uri: str | None = None,
    checkpoints: Path | None = None,
    progress: preparing.Progress | None = None,
) -> Iterator[Sweeps]:
    """
    Args:
        server: address of a `sweeps serve`; what follows the token belongs to it, then, and is not given.
        token: default: see `sweeps.client.token_of_environment`.
        home: folder of an installation. Default: SWEEPS_HOME, else ./.sweeps
        database: its URL. Default: SQLite in home.
        tracking_uri: MLflow server that a sweep is deleted from. Default: the one it was shipped to.
        checkpoints: folder of the checkpoints. Default: in home.
        progress: told how far the reading of a corpus is.

    Raises:
        DatabaseUnavailable, DatabaseOutdated, ValueError: see `Store`.
    """
    if server is not None:
        with Client(server, token) as client:
            yield client
        return
    where = find_home(None if home is None else Path(home))

    def delete_experiment(of: SweepRow, run_id: str | None) -> None:
        if of.experiment_id is None:
            return
        from tracking import mlflow_writer

        with tracking_server(where, server_of(of, tracking_uri, where)) as tracking:
            mlflow_writer.delete_experiment(tracking.uri, of.experiment_id, of.name, run_id)

    with closing(load_home_store(where, database)) as store:
        yield SweepService(
            *(store, where, this_person()),
            delete_experiment=delete_experiment,
            checkpoints=checkpoints,
            progress=progress,
        )


def this_person() -> str:
    """Whoever sits at this command line."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
