"""`sweeps watch`: a sweep as it happens."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import chain
from typing import Annotated

import typer

from sweeps import display
from sweeps.commands.options import DatabaseOption, HomeOption, ServerOption, reached
from sweeps.display import LiveTable, PlainLog
from sweeps.gathered import every_trial
from sweeps.interface import Sweeps
from sweeps.records import SweepRow, SweepStatus, TrialRow
from sweeps.states import SweepState
from sweeps.summary import best_trial, trial_label


def watch(
    name: Annotated[str, typer.Argument(metavar="SWEEP")],
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Each change as one JSON object on a line")] = False,
) -> None:
    """Follow a sweep until it ends, or Ctrl-C, which leaves it alone: a live table; a line an epoch where piped.

    Exit code 1 where the sweep FAILED.
    """
    try:
        with reached(home, database, server) as sweeps:
            sweep = follow_as_json(sweeps, name) if as_json else follow(sweeps, name)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not as_json:
        print(f"{name}: {', '.join(filter(None, [sweep.state.value, sweep.reason]))}")
    raise typer.Exit(1 if sweep.state is SweepState.FAILED else 0)


def follow_as_json(sweeps: Sweeps, name: str) -> SweepRow:
    sweep = sweeps.sweep(name).sweep
    for change in sweeps.live(name):
        sweep = change.data.sweep if isinstance(change.data, SweepStatus) else sweep
        print(json.dumps(asdict(change), allow_nan=False), flush=True)
    return sweep


def follow(sweeps: Sweeps, name: str) -> SweepRow:
    """Until it is over; returns it as it is then."""
    changes = sweeps.live(name)
    begun = next(changes)  # from here on nothing is missed: what is read below is at least as new
    sweep, trials = sweeps.sweep(name).sweep, {trial.number: trial for trial in every_trial(sweeps, name)}
    numbers = {trial.id: trial.number for trial in trials.values()}
    over = {number for number, trial in trials.items() if trial.state.terminal}
    seen = {trial.id: trial.epochs for trial in trials.values()}
    with display.view(
        lambda id: sweeps.curve(name, numbers[id]),
        plain=False,
        out=sys.stdout,
        seen=seen,
        forecast=lambda: sweeps.forecast(name).sentence,
    ) as view:
        plain = isinstance(view, PlainLog)
        if plain:
            print(so_far(name, trials), flush=True)

        def update() -> None:
            # A log tells what is new; a table shows all.
            told = [trials[number] for number in sorted(trials) if not plain or number not in over]
            view.update(sweep, told, "")

        update()
        for change in chain([begun], changes):
            if isinstance(change.data, SweepStatus):
                sweep = change.data.sweep
            elif isinstance(change.data, TrialRow):
                known = trials.get(change.data.number)
                if known is None or known.revision <= change.data.revision:
                    trials[change.data.number] = change.data
                    numbers[change.data.id] = change.data.number
            if isinstance(change.data, SweepStatus) or (plain and isinstance(change.data, TrialRow)):
                update()  # the sweep itself comes last of what one look finds: a table needs no more
        update()
        if isinstance(view, LiveTable):
            print(so_far(name, trials))
    return sweep


def so_far(name: str, trials: dict[int, TrialRow]) -> str:
    best = best_trial(list(trials.values()))
    over = sum(trial.state.terminal for trial in trials.values())
    found = "no WER yet" if best is None else f"best WER {best.best_wer:.1%} (trial {trial_label(best)})"
    return f"{name}: {over} of {len(trials)} trials over, {found}"
