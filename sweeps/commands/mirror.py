"""`sweeps mirror`: ship to MLflow what the database holds, and build a lost MLflow anew."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import Progress

from sweeps import service
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, TrackingOption, opened, stopping
from sweeps.records import SweepRow
from sweeps.settings import Home, find_home
from sweeps.shipping import keeper_of, mirror_of, server_of, tracking_server
from sweeps.store import Store
from tracking.writer import TrackingRefused


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
