"""The options that several commands share, and what they open."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from model.diagnosis import counted
from sweeps import preparing, service
from sweeps.connect import connect
from sweeps.errors import SweepError
from sweeps.interface import Sweeps
from sweeps.processes import stop_signals
from sweeps.records import SweepStatus
from sweeps.settings import Home
from sweeps.states import SweepState, TrialState
from sweeps.store import Store

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Everything written lies here. Default: SWEEPS_HOME, else ./.sweeps")
]


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="SWEEPS_DATABASE",
        help="Database URL (sqlite:/// or postgresql://). Default: SQLite in home",
    ),
]

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        envvar="SWEEPS_SERVER",
        help="Ask this `sweeps serve` instead of a database; SWEEPS_TOKEN, or the file that SWEEPS_TOKEN_FILE names, "
        "holds the token",
    ),
]


TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server to use. Default: a local one is started, its database in home",
    ),
]


TrainerOption = Annotated[
    str | None,
    typer.Option(
        "--trainer",
        metavar="FILE.py:NAME",
        help="Your own trainer instead of the built-in one: NAME(config, corpus) makes it; package.module:NAME "
        "works too. Its code is run, so no spec can name it. docs/how-to/own-trainer.md has an example",
    ),
]

ForceOption = Annotated[bool, typer.Option("--force", help="Train on a corpus in which the check finds a fatal fault")]

LEASE_SECONDS = 120.0

LeaseOption = Annotated[
    float,
    typer.Option(
        "--lease-seconds",
        min=1.0,
        help="A worker that was not heard of for so long loses its trial to another one. Training renews it, however "
        "long an epoch takes",
    ),
]

CheckpointsOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoints",
        file_okay=False,
        help="Folder of the checkpoints. Shared by several machines, a trial goes on at another one where it was. "
        "Default: in home",
    ),
]

ShareOption = Annotated[
    bool,
    typer.Option(
        "--share-checkpoints",
        help="Keep each trial's last checkpoint in the artifacts of its MLflow run as well, for machines without a "
        "shared folder",
    ),
]

MissingTrackingOption = Annotated[
    bool,
    typer.Option(
        "--allow-missing-tracking",
        help="Train even while MLflow cannot be reached; what it misses waits in the database",
    ),
]

NotifyOption = Annotated[
    Path | None,
    typer.Option(
        "--notify",
        metavar="FILE",
        dir_okay=False,
        help="Whom to tell of news: docs/how-to/notify.md. Default: notify.yaml in home, if there is one",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="The last line on stdout is one JSON object")]


@contextmanager
def stopping() -> Iterator[threading.Event]:
    stop = threading.Event()
    with stop_signals(stop):
        yield stop


@contextmanager
def opened(home: Home, database: str | None, connections: int = 15) -> Iterator[Store]:
    store = service.load_home_store(home, database, connections)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def reached(
    home: Path | None,
    database: str | None,
    server: str | None,
    *,
    tracking_uri: str | None = None,
    checkpoints: Path | None = None,
    progress: preparing.Progress | None = None,
) -> Iterator[Sweeps]:
    """The sweeps of a server, or of a database.

    Args:
        tracking_uri: MLflow server, where what is asked for needs one. So `checkpoints`, their folder, and `progress`.

    Raises:
        SweepError: both, or options that a server has itself, were given.
    """
    if server is not None:
        given = {"--database": database, "--home": home, "--checkpoints": checkpoints}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise SweepError(f"{', '.join(wrong)}: belongs to the server at {server}; leave it out, or --server")
        with connect(server) as sweeps:
            yield sweeps
        return
    places = {"home": home, "tracking_uri": tracking_uri, "checkpoints": checkpoints, "progress": progress}
    with connect(database=database, **places) as sweeps:  # type: ignore[arg-type]
        yield sweeps


def print_status(status: SweepStatus, as_json: bool) -> None:
    """A sweep's state after a verb, and what it waits for."""
    sweep, running = status.sweep, status.counts[TrialState.RUNNING]
    if as_json:
        told = {"sweep": sweep.name, "state": sweep.state.value, "reason": sweep.reason, "running_trials": running}
        print(json.dumps(told))
        return
    print(f"{sweep.name}: {', '.join(filter(None, [sweep.state.value, sweep.reason]))}")
    if running:
        print(f"  {counted(running, 'trial')} under way")
    elif sweep.state is SweepState.RUNNING:
        print(f"  nobody works on it yet: sweeps work {sweep.name}")


@contextmanager
def corpus_progress(out: TextIO) -> Iterator[preparing.Progress]:
    """A bar for reading or generating a corpus, on a terminal; elsewhere silence."""
    with Progress(console=Console(file=out), transient=True, disable=not out.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield advance


def wait_for_enter(stop: threading.Event) -> None:
    """Until Enter, Ctrl-C or the end of input."""
    done = threading.Event()

    def read() -> None:
        sys.stdin.readline()
        done.set()

    threading.Thread(target=read, name="enter", daemon=True).start()
    while not (done.wait(0.2) or stop.is_set()):
        pass
