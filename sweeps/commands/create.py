"""`sweeps create`: a sweep for workers that are elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeps.commands.options import (
    DatabaseOption,
    ForceOption,
    HomeOption,
    JsonOption,
    ServerOption,
    corpus_progress,
    print_status,
    reached,
)
from sweeps.spec import SpecError, load_spec, text_of
from sweeps.trainers import resolved


def create(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep, in YAML; examples/ holds some")],
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    trials: Annotated[int | None, typer.Option(help="Instead of the spec's budget.trials")] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="Your own trainer; with --server, the name under which the server was given it",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a sweep and let it run, for the `sweeps work` that are there or to come; nothing is trained here.

    Without a learning-rate range test: `sweeps run` makes one. Done again with the same spec it changes nothing.

    With --server, the paths in the spec are the server's.
    """
    words = sys.stderr if as_json else sys.stdout
    text = text_of(spec_file)
    if server is None:
        load_spec(spec_file)  # its faults, by the file's name
        trainer = resolved(trainer)
    with corpus_progress(words) as progress, reached(home, database, server, progress=progress) as sweeps:
        try:
            created = sweeps.create(text, trials=trials, trainer=trainer, force=force)
        except SpecError as error:
            raise SpecError("\n".join(f"{spec_file}: {line}" for line in str(error).splitlines())) from None
    for note in created.notes:
        print(f"note: {note}", file=words, flush=True)
    print_status(created.sweep, as_json)
