"""`sweeps create`: a sweep for workers that are elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sweeps import service
from sweeps.commands.options import (
    DatabaseOption,
    ForceOption,
    HomeOption,
    JsonOption,
    TrainerOption,
    corpus_progress,
    opened,
    print_state,
)
from sweeps.settings import find_home
from sweeps.spec import load_spec
from sweeps.states import SweepState


def create(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep, in YAML; examples/ holds some")],
    home: HomeOption = None,
    database: DatabaseOption = None,
    trials: Annotated[int | None, typer.Option(help="Instead of the spec's budget.trials")] = None,
    trainer: TrainerOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a sweep and let it run, for the `sweeps work` that are there or to come; nothing is trained here.

    Without a learning-rate range test: `sweeps run` makes one. Done again with the same spec it changes nothing.
    """
    spec = load_spec(spec_file, **({} if trials is None else {"trials": trials}))
    where = find_home(home)
    words = sys.stderr if as_json else sys.stdout
    for warning in spec.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    with corpus_progress(words) as progress:
        prepared = service.prepare(spec, where, progress, trainer, force=force)
    for note in prepared.notes:
        print(f"corpus: {note}", file=words, flush=True)
    with opened(where, database) as store:
        sweep = service.open_sweep(store, prepared)
        if sweep.state is SweepState.PENDING:
            store.set_sweep_state(sweep.id, SweepState.RUNNING)
        print_state(service.find_sweep(store, spec.name), store, as_json)
