"""`sweeps confirm`: the best configurations of a sweep and a baseline, trained again on the same new seeds."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.text import Text

from sweeps import preparing, service
from sweeps.channels import channels_of
from sweeps.commands.options import (
    LEASE_SECONDS,
    CheckpointsOption,
    DatabaseOption,
    ForceOption,
    HomeOption,
    JsonOption,
    LeaseOption,
    MissingTrackingOption,
    NotifyOption,
    ShareOption,
    TrackingOption,
    TrainerOption,
    corpus_progress,
    opened,
    stopping,
)
from sweeps.commands.run import run_prepared
from sweeps.commands.tables import Column, console_for, print_table
from sweeps.confirmation import FACT
from sweeps.confirmation_spec import SEEDS_EACH, TOP, confirmation_spec, differing, name_of
from sweeps.confirming import Confirmation, confirmation_of, confirms, in_words, keep, score
from sweeps.errors import SpecError, SweepError
from sweeps.records import SweepRow
from sweeps.settings import find_home
from sweeps.sharing import decided
from sweeps.spec import SweepSpec, spec_of
from sweeps.store import Store
from tracking.server import check_server


def confirm(
    name: Annotated[str, typer.Argument(metavar="SWEEP")],
    top: Annotated[
        int | None, typer.Option(min=1, max=50, help=f"So many of the best configurations. Default: {TOP}")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help=f"Runs of each configuration. Default: {SEEDS_EACH}")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="TRIAL",
            help="The baseline, by number or name. Default: the trial `original`, else the spec's first named one",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Of each run, at most. Default: twice the sweep's")
    ] = None,
    confirmation: Annotated[
        str | None,
        typer.Option("--name", help="What the confirmation is called, which is a sweep too. Default: SWEEP-confirm"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="Instead of the sweep's workers")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    trainer: TrainerOption = None,
    force: ForceOption = False,
    allow_missing_tracking: MissingTrackingOption = False,
    checkpoints: CheckpointsOption = None,
    share_checkpoints: ShareOption = False,
    lease_seconds: LeaseOption = LEASE_SECONDS,
    notify: NotifyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the best configurations of a sweep and a baseline again, with new seeds and for longer, and say what is
    better.

    Every configuration gets the same seeds and batches. At the end the test split, if there is one, is scored once:
    asked again, the command prints what was found. Interrupted, it goes on when it is given again.
    """
    where = find_home(home)
    told = channels_of(where.notify, notify)
    words = sys.stderr if as_json else sys.stdout
    asked = {"top": top, "seeds": seeds, "against": against, "epochs": epochs}
    with opened(where, database) as store:
        parent, known = found_sweeps(store, name, confirmation)
        spec, about = planned(store, parent, known, confirmation or name_of(name), asked)
        if known is not None and (found := confirmation_of(store, known)) is not None:
            keep(store, known, found)  # whoever scored it may have been killed before it was written down
            tell(found, words)
            if as_json:
                print(json.dumps(as_values(known, found), allow_nan=False))
            return
        if workers is not None:
            spec = decided(spec, workers)
        preparing.check_trainer(parent or known or service.find_sweep(store, name), trainer)
        with corpus_progress(words) as progress:
            prepared = preparing.prepare(spec, where, progress, trainer, force=force)
        if parent is not None and prepared.corpus.hash != parent.facts["corpus_hash"]:
            raise SpecError(
                f"{prepared.corpus.folder}: changed since sweep {parent.name!r} was made: put it back, or run another "
                "sweep on it"
            )
        if tracking_uri and not allow_missing_tracking:
            check_server(tracking_uri)  # before anything is written
        about = {**about, "test_sentences": len(prepared.corpus.test or ())}
        folder = (checkpoints or where.checkpoints) / spec.name
        with stopping() as stop:
            sweep = preparing.open_sweep(store, prepared, {FACT: about})
            print(f"{sweep.name}: {len(spec.first_trials)} runs of up to {spec.trainer.epochs} epochs", file=words)
            outcome = run_prepared(
                *(store, sweep, prepared, where, database, tracking_uri, stop, as_json, words),
                allow_missing_tracking=allow_missing_tracking,
                lease_seconds=lease_seconds,
                checkpoints=checkpoints,
                share_checkpoints=share_checkpoints,
                told=told,
                ending=Scoring(store, sweep, prepared, folder, stop, words),
            )
            if stop.is_set() and confirmation_of(store, service.find_sweep(store, sweep.name)) is None:
                outcome = 130  # between the last epoch and the last score
    raise typer.Exit(outcome)


def found_sweeps(store: Store, name: str, confirmation: str | None) -> tuple[SweepRow | None, SweepRow | None]:
    """The sweep that is to be confirmed, and its confirmation if there is one already. Of a confirmation that is named
    itself only the second one.

    Raises:
        SweepNotFound: there is no sweep of that name.
        SweepError: the confirmation's name is that of another sweep.
    """
    parent = service.find_sweep(store, name)
    if FACT in parent.facts:
        if confirmation is not None:
            raise SweepError(f"sweep {name!r} is a confirmation already: leave --name out to go on with it")
        return None, parent
    known = store.find_sweep(confirmation or name_of(name))
    if known is not None and not confirms(known, parent):
        raise SweepError(
            f"sweep {known.name!r} is no confirmation of {parent.name!r} as it is now: name this one otherwise, with "
            "--name"
        )
    return parent, known


def planned(
    store: Store, parent: SweepRow | None, known: SweepRow | None, name: str, asked: Mapping[str, Any]
) -> tuple[SweepSpec, dict[str, Any]]:
    """The spec of the confirmation, and what it confirms: as it was made, where there is one.

    Raises:
        SweepError: it was made with other options, or cannot be made.
    """
    if known is None:
        assert parent is not None
        given = {option: value for option, value in asked.items() if value is not None}
        return confirmation_spec(parent, store.trials(parent.id), name, **given)
    about = known.facts[FACT]
    if unlike := differing(about, asked):
        raise SweepError(
            f"sweep {known.name!r} confirms with {', '.join(unlike)}: leave that out to go on with it, or make another "
            "one with --name"
        )
    return spec_of(known), dict(about)


@dataclass(frozen=True)
class Scoring:
    """What a confirmation does when its runs are over."""

    store: Store
    sweep: SweepRow
    prepared: preparing.Prepared
    folder: Path
    stop: threading.Event
    words: TextIO

    def conclude(self) -> None:
        with corpus_progress(self.words) as progress:
            score(self.store, self.sweep, self.prepared.corpus, self.folder, self.stop.is_set, progress)

    def tell(self) -> dict[str, Any]:
        now = service.find_sweep(self.store, self.sweep.name)
        found = confirmation_of(self.store, now)
        if found is None:
            print("\nNot confirmed yet: the same command goes on.", file=self.words)
        else:
            tell(found, self.words)
        return as_values(now, found)


def as_values(sweep: SweepRow, found: Confirmation | None) -> dict[str, Any]:
    return {"sweep": sweep.name, "state": sweep.state.value, "confirmation": found and found.as_json()}


def tell(found: Confirmation, words: TextIO) -> None:
    """The table, and what it says."""
    console = console_for(words)
    decides = {"test": "test WER", "dev": "dev WER", "run": "dev WER"}[found.split]
    against = {pair.name: pair for pair in found.pairs}
    columns = [
        *(Column("configuration"), Column(decides, right=True), Column("95 %", right=True)),
        *(Column("against baseline", right=True), Column("verdict"), Column("dev", right=True, leaves=2)),
        *(Column("in the sweep", right=True, leaves=1), Column("values", leaves=3)),
    ]
    rows = []
    for each in found.configurations:
        pair = against.get(each.name)
        wer, _, interval = in_words(each.measured).partition(" (")
        rows.append(
            [
                each.name,
                wer,
                interval.rstrip(")"),
                f"{100 * pair.difference:+.1f} points" if pair else "",
                pair.verdict if pair else "the baseline",
                f"{each.dev.wer:.1%}",
                "" if each.sweep_wer is None else f"{each.sweep_wer:.1%}",
                " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in each.values.items()),
            ]
        )
    console.print()
    print_table(columns, rows, console)
    console.print()
    for sentence in found.said:
        console.print(Text(sentence), soft_wrap=not console.is_terminal)
