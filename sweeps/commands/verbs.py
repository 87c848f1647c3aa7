"""`sweeps pause | resume | stop | cancel | enqueue | delete`: what a person says to a sweep."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
import yaml

from sweeps.commands.options import (
    CheckpointsOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    ServerOption,
    TrackingOption,
    print_status,
    reached,
)
from sweeps.errors import SweepError
from sweeps.summary import parameters

Name = Annotated[str, typer.Argument(metavar="SWEEP")]


def pause(
    name: Name,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a sweep rest: trials are handed back at the end of the epoch in hand, and go on when it is resumed."""
    with reached(home, database, server) as sweeps:
        print_status(sweeps.pause(name), as_json)


def resume(
    name: Name,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    trials: Annotated[int | None, typer.Option(help="The budget's trials from now on")] = None,
    as_json: JsonOption = False,
) -> None:
    """Let a paused, stopped or failed sweep go on, with the workers that are there (`sweeps work`, `sweeps run`)."""
    with reached(home, database, server) as sweeps:
        print_status(sweeps.resume(name, trials=trials), as_json)


def stop(
    name: Name,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a sweep after the trials under way: no new one begins. It can be resumed."""
    with reached(home, database, server) as sweeps:
        print_status(sweeps.stop(name), as_json)


def cancel(
    name: Name,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a sweep for good: epochs in hand are dropped, and no trial goes on. What was recorded stays."""
    with reached(home, database, server) as sweeps:
        print_status(sweeps.cancel(name), as_json)


def enqueue(
    name: Name,
    values: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="learning_rate=5e-4 dropout=0.2 ...")],
    trial_name: Annotated[str | None, typer.Option("--name", help="Of the trial. Default: from its values")] = None,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Train it again, from another seed, if the sweep has it; needs --name")
    ] = False,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a configuration trained next: any field of the spec's trainer; what is not named is as the spec has it.

    It takes one of the budget's trials. Asked again with the same values it adds no second one, and one that the sweep
    has already is refused, unless it is to be repeated.
    """
    with reached(home, database, server) as sweeps:
        trial = sweeps.enqueue(name, read_values(values), trial_name=trial_name, repeat=repeat)
    if as_json:
        print(json.dumps(asdict(trial), allow_nan=False))
    else:
        print(f"{name}/{trial.name or trial.number}: {trial.state.value}, number {trial.number}: {parameters(trial)}")


def read_values(words: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` words, each value as YAML reads it.

    Raises:
        SweepError: a word of another form.
    """
    values = {}
    for word in words:
        key, equals, text = word.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if not equals or not key or isinstance(value, dict | list):
            raise SweepError(f"{word!r}: write KEY=VALUE, learning_rate=5e-4 say")
        values[key] = value
    return values


def delete(
    name: Name,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    tracking_uri: TrackingOption = None,
    checkpoints: CheckpointsOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    keep_mlflow: Annotated[bool, typer.Option("--keep-mlflow", help="Leave its experiment in MLflow")] = False,
) -> None:
    """Remove a sweep: its rows, checkpoints and pictures, and its MLflow experiment, which MLflow keeps in its bin."""
    with reached(home, database, server, tracking_uri=tracking_uri, checkpoints=checkpoints) as sweeps:
        status = sweeps.sweep(name)
        trials = sum(status.counts.values())
        if not yes:
            if not sys.stdin.isatty():
                raise SweepError(f"sweep {name!r} has {trials} trials: give --yes to delete it without being asked")
            question = f"Delete sweep {name} with its {trials} trials, {status.epochs} epochs"
            typer.confirm(f"{question}{'' if keep_mlflow else ' and its MLflow experiment'}?", abort=True)
        sweeps.delete(name, keep_mlflow=keep_mlflow)
    print(f"sweep {name} is deleted")
