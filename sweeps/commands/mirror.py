"""`sweeps mirror`: ship to MLflow what the database holds, and build a lost MLflow anew."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import Progress

from sweeps import service
from sweeps.commands.dashboards import Tracking, tracking_server
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, TrackingOption, opened, stopping
from sweeps.keeper import STALE_SECONDS
from sweeps.mirror import Mirror
from sweeps.processes import is_known_dead
from sweeps.records import Runner, SweepRow
from sweeps.settings import Home, find_home
from sweeps.spec import corpus_of, spec_of
from sweeps.store import Store
from sweeps.summary import best_trial, command_of, description
from tracking.server import store_path, store_uri
from tracking.writer import ExperimentWriter, TrackingRefused


@dataclass
class Shipped:
    """What came of one sweep."""

    sweep: str
    trials: int
    """Of which MLflow had not all."""
    epochs: int
    keeper: str | None
    """The live process that ships this sweep, so that nothing was sent from here."""
    trouble: str
    """What MLflow did not take; empty if it took everything."""


def mirror(
    name: Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="Default: every sweep")] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Ship everything again, for an MLflow that was lost or set back")
    ] = False,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ship to MLflow what it has not seen of a sweep.

    Nothing is trained. What MLflow has already is not changed by sending it again. A sweep goes to the server that it
    went to before, unless another is named; there it is sent whole.

    Where a process runs the sweep at this moment, that one ships; --rebuild then only tells it to send everything.
    """
    where = find_home(home)
    words = sys.stderr if as_json else sys.stdout
    with stopping() as stop, opened(where, database) as store:
        chosen = [service.find_sweep(store, name)] if name is not None else store.sweeps()
        done = [ship(store, sweep, where, tracking_uri, rebuild, stop, words) for sweep in chosen if not stop.is_set()]
    if as_json:
        print(json.dumps([vars(each) for each in done], allow_nan=False))
    if stop.is_set():
        raise typer.Exit(130)
    raise typer.Exit(1 if any(each.trouble for each in done) else 0)


def ship(
    store: Store, sweep: SweepRow, home: Home, given: str | None, rebuild: bool, stop: threading.Event, words: TextIO
) -> Shipped:
    """Ship one sweep, and say what came of it.

    Raises:
        TrackingUnavailable, ServerDidNotStart: MLflow cannot be reached.
    """
    keeper = keeper_of(store, sweep)
    if rebuild:
        store.forget_mirrored(sweep.id)
    if keeper is not None:
        trials, epochs = store.count_pending(sweep.id)
        todo = f"sends everything again ({trials} trials, {epochs} epochs)" if rebuild else "ships it"
        print(f"{sweep.name}: {keeper} runs it, and {todo}", file=words, flush=True)
        return Shipped(sweep.name, 0, 0, str(keeper), "")
    sent: Counter[int] = Counter()
    trouble = ""
    with (
        tracking_server(home, server_of(sweep, given, home)) as tracking,
        Progress(console=Console(file=words), transient=True, disable=not words.isatty()) as bar,
    ):
        task = bar.add_task(sweep.name, total=None)

        def progress(number: int, epochs: int) -> None:
            if not sent:
                bar.update(task, total=epochs + store.count_pending(sweep.id)[1])
            sent[number] += epochs
            bar.advance(task, epochs)

        way = mirror_of(*(store, sweep, home, tracking), may_ship=lambda: not stop.is_set(), progress=progress)
        try:
            while way.ship(final=True) and not stop.is_set():
                pass
            trouble = "; ".join(f"trial {number} is left out: {why}" for number, why in way.refused.items())
        except TrackingRefused as error:
            trouble = str(error)
        shown = tracking.shown
    print(f"{sweep.name}: {len(sent)} trials, {sent.total()} epochs to {shown}", file=words, flush=True)
    if trouble:
        print(f"{sweep.name}: {trouble}", file=sys.stderr)
    return Shipped(sweep.name, len(sent), sent.total(), None, trouble)


def keeper_of(store: Store, sweep: SweepRow) -> Runner | None:
    """The live process that keeps the sweep, and so ships it, if it knows a tracking server."""
    if sweep.runner is None or sweep.runner_beat_at is None or sweep.runner.yields > 1:
        return None
    stale = store.now() - sweep.runner_beat_at > STALE_SECONDS
    return None if stale or is_known_dead(sweep.runner) else sweep.runner


def server_of(sweep: SweepRow, given: str | None, home: Home) -> str | None:
    """Where a sweep's runs go: the server that is given, else the one they went to; None is the local one of this home,
    which takes the place of a home that was moved, too.
    """
    before = sweep.tracking
    if given is not None or before is None or before.startswith("http"):
        return given or before
    elsewhere = before.startswith("sqlite:") and before != store_uri(home.mlflow) and store_path(before).exists()
    return before if elsewhere else None


def mirror_of(
    store: Store,
    sweep: SweepRow,
    home: Home,
    tracking: Tracking,
    *,
    may_ship: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda number, epochs: None,
) -> Mirror:
    """The mirror of a sweep into that server, from what the database knows of the sweep."""

    def open_() -> ExperimentWriter:
        from tracking.mlflow_writer import open_experiment

        return open_experiment(tracking.uri, sweep.name, tracking.shown)

    def describe() -> str:
        now, rows = service.find_sweep(store, sweep.name), store.trials(sweep.id)
        spec, best = spec_of(now), best_trial(rows)
        command = command_of(now, best, spec, corpus_of(now)) if best else None
        return description(now, rows, command, service.conclusions_of(store, now, lessons=now.state != "RUNNING"))

    return Mirror(
        *(store, sweep, spec_of(sweep), tags_of(sweep), open_, describe, home.pictures(sweep.name)),
        may_ship=may_ship,
        ensure_server=tracking.ensure_alive,
        progress=progress,
    )


def tags_of(sweep: SweepRow) -> dict[str, str]:
    """What every run of a sweep is tagged with, and its experiment."""
    facts = ("corpus_hash", "vocabulary_hash", "trainer", "git_commit")
    known = {name: str(sweep.facts[name]) for name in facts if name in sweep.facts}
    return {"corpus": str(corpus_of(sweep).path), **known}
