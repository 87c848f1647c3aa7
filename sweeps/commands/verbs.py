"""`sweeps pause | resume | stop | cancel | delete`: what a person says to a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from sweeps import service
from sweeps.commands.dashboards import tracking_server
from sweeps.commands.mirror import server_of
from sweeps.commands.options import (
    CheckpointsOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    TrackingOption,
    opened,
    print_state,
)
from sweeps.errors import SweepError
from sweeps.records import SweepRow
from sweeps.settings import find_home
from sweeps.store import Store

Name = Annotated[str, typer.Argument(metavar="SWEEP")]


def pause(name: Name, home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Let a sweep rest: trials are handed back at the end of the epoch in hand, and go on when it is resumed."""
    _say(name, service.pause, home, database, as_json)


def resume(name: Name, home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Let a paused, stopped or failed sweep go on, with the workers that are there (`sweeps work`, `sweeps run`)."""
    _say(name, service.resume, home, database, as_json)


def stop(name: Name, home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """End a sweep after the trials under way: no new one begins. It can be resumed."""
    _say(name, service.stop, home, database, as_json)


def cancel(name: Name, home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """End a sweep for good: epochs in hand are dropped, and no trial goes on. What was recorded stays."""
    _say(name, service.cancel, home, database, as_json)


def _say(
    name: str, verb: Callable[[Store, str], SweepRow], home: HomeOption, database: DatabaseOption, as_json: bool
) -> None:
    with opened(find_home(home), database) as store:
        print_state(verb(store, name), store, as_json)


def delete(
    name: Name,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    checkpoints: CheckpointsOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    keep_mlflow: Annotated[bool, typer.Option("--keep-mlflow", help="Leave its experiment in MLflow")] = False,
) -> None:
    """Remove a sweep: its rows, checkpoints and pictures, and its MLflow experiment, which MLflow keeps in its bin."""
    where = find_home(home)
    with opened(where, database) as store:
        sweep = service.find_sweep(store, name)
        trials = store.trials(sweep.id)
        if not yes:
            if not sys.stdin.isatty():
                raise SweepError(
                    f"sweep {name!r} has {len(trials)} trials: give --yes to delete it without being asked"
                )
            question = f"Delete sweep {name} with its {len(trials)} trials, {sum(t.epochs for t in trials)} epochs"
            typer.confirm(f"{question}{'' if keep_mlflow else ' and its MLflow experiment'}?", abort=True)

        def delete_experiment(of: SweepRow) -> None:
            if of.experiment_id is None or keep_mlflow:
                return
            from tracking import mlflow_writer

            with tracking_server(where, server_of(of, tracking_uri, where)) as tracking:
                mlflow_writer.delete_experiment(tracking.uri, of.experiment_id)

        service.delete(store, name, where, checkpoints, delete_experiment)
    print(f"sweep {name} is deleted")
