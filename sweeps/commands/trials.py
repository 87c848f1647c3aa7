"""`sweeps trials`: the trials of a sweep, a line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sweeps import warm_start
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, ServerOption, reached
from sweeps.commands.tables import Column, console_for, percent, print_table
from sweeps.display import STYLES
from sweeps.errors import SweepError
from sweeps.gathered import every_trial, values
from sweeps.records import TrialRow
from sweeps.spec import spec_of
from sweeps.states import TrialState
from sweeps.summary import parameters, sentence_about

COLUMNS = (
    Column("trial", right=True),
    Column("name", leaves=3),
    Column("state"),
    Column("verdict", leaves=1),
    Column("best WER", right=True),
    Column("at", right=True, leaves=4),
    Column("epochs", right=True, leaves=2),
    Column("parameters", leaves=5),
    Column("why", leaves=6),
)
KEYS: dict[str, Callable[[TrialRow], Any]] = {
    "number": lambda trial: trial.number,
    "wer": lambda trial: trial.best_wer,
    "epochs": lambda trial: trial.epochs,
    "state": lambda trial: list(TrialState).index(trial.state),
    "verdict": lambda trial: trial.verdict,
}


def trials(
    name: Annotated[str, typer.Argument(metavar="SWEEP")],
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="number, wer, epochs, state, verdict, or a parameter; -KEY: backwards")
    ] = "number",
    state: Annotated[
        TrialState | None, typer.Option(case_sensitive=False, help="Only those in this state", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many. Default: all")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """The trials of a sweep, a line each: state, verdict, best WER, parameters. `sweeps show SWEEP/TRIAL` has one."""
    with reached(home, database, server) as sweeps:
        sweep = sweeps.sweep(name).sweep
        searched = spec_of(sweep).space.parameters()
        found = every_trial(sweeps, name)
    chosen = in_order([trial for trial in found if state in (None, trial.state)], sort, list(searched))[:limit]
    if as_json:
        print(json.dumps([asdict(trial) for trial in chosen], allow_nan=False))
        return
    styles = [STYLES.get(trial.verdict or "", "") for trial in chosen]
    print_table(COLUMNS, [row(trial) for trial in chosen], console_for(sys.stdout), styles)
    if sys.stdout.isatty():  # a pipe gets the table alone
        if len(chosen) < len(found):
            print(f"{len(chosen)} of {len(found)} trials")
        if began_from := warm_start.in_words(sweep):
            print(began_from)


def row(trial: TrialRow) -> list[str]:
    return [
        str(trial.number),
        trial.name or "",
        trial.state.value,
        trial.verdict or "",
        percent(trial.best_wer),
        "" if trial.best_epoch is None else str(trial.best_epoch),
        str(trial.epochs or ""),
        parameters(trial),
        sentence_about(trial),
    ]


def in_order(trials: list[TrialRow], sort: str, searched: list[str]) -> list[TrialRow]:
    """Sorted by a key; those that have no value come last, and equal ones by number.

    Raises:
        SweepError: no such key.
    """
    backwards, name = sort.startswith("-"), sort.removeprefix("-")
    if name not in KEYS and name not in searched and not any(name in values(trial) for trial in trials):
        raise SweepError(f"--sort {sort}: there are {', '.join([*KEYS, *searched])}; with - in front backwards")
    value_of = KEYS.get(name) or (lambda trial: values(trial).get(name))
    known = [trial for trial in trials if value_of(trial) is not None]
    known.sort(key=lambda trial: _comparable(value_of(trial)), reverse=backwards)  # stable: equal ones stay by number
    return known + [trial for trial in trials if value_of(trial) is None]


def _comparable(value: Any) -> tuple[bool, float, str]:
    """Numbers before texts: an override may be either."""
    return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))
