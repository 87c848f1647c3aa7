"""The options that several commands share, and what they open."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from sweeps import service
from sweeps.processes import stop_signals
from sweeps.settings import Home
from sweeps.store import Store

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Everything written lies here. Default: SWEEPS_HOME, else ./.sweeps")
]


DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="Database URL (sqlite:/// or postgresql://). Default: SQLite in home")
]


TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server to use. Default: a local one is started, its database in home",
    ),
]


JsonOption = Annotated[bool, typer.Option("--json", help="The last line on stdout is one JSON object")]


@contextmanager
def stopping() -> Iterator[threading.Event]:
    stop = threading.Event()
    with stop_signals(stop):
        yield stop


@contextmanager
def opened(home: Home, database: str | None) -> Iterator[Store]:
    store = service.load_home_store(home, database)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def corpus_progress(out: TextIO) -> Iterator[service.Progress]:
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
