"""`sweeps replay`: a trial trained again, and whether it comes out the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from model.types import Stopped
from sweeps import display, service
from sweeps.commands.options import (
    DatabaseOption,
    HomeOption,
    JsonOption,
    corpus_progress,
    opened,
    stopping,
)
from sweeps.errors import SweepError
from sweeps.records import EpochRow
from sweeps.replaying import Difference
from sweeps.replaying import replay as trained_again
from sweeps.settings import find_home
from sweeps.trainers import resolved


def replay(
    path: Annotated[str, typer.Argument(metavar="SWEEP/TRIAL", help="By number or name")],
    epochs: Annotated[int | None, typer.Option(help="The first so many only. Default: all that it has")] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the replay. Default: in home", file_okay=False)
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="For sweeps with a trainer of their own: where it is here"),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Where the corpus is on this machine, if not where the sweep was made")
    ] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a trial again as its row says, and compare: every metric of every epoch, bit for bit.

    On another machine than the one that trained it, where rounding differs: whether its WER lies within chance. Exit
    code 1 where it is not reproduced. The trial stays as it is.
    """
    if "/" not in path:
        raise SweepError(f"replay {path}: name a trial, SWEEP/TRIAL; `sweeps trials {path}` lists them")
    where = find_home(home)

    def say(row: EpochRow, difference: Difference | None) -> None:
        same = "the same" if difference is None else f"differs: {difference.metric}"
        print(f"{display.epoch_line(row)}  {same}", file=sys.stderr, flush=True)

    with stopping() as stop, opened(where, database) as store:
        sweep, trial = service.find_trial(store, path)
        try:
            with corpus_progress(sys.stderr) as progress:
                found = trained_again(
                    *(store, where, sweep, trial),
                    epochs=epochs,
                    output=output,
                    trainer=resolved(trainer),
                    corpus=corpus,
                    progress=progress,
                    on_epoch=say,
                    should_stop=stop.is_set,
                )
        except Stopped:
            print("interrupted; given again it goes on", file=sys.stderr)
            raise typer.Exit(130) from None
    print(json.dumps(found.as_json(), allow_nan=False) if as_json else found.sentence)
    raise typer.Exit(0 if found.reproduced else 1)
