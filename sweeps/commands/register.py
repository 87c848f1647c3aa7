"""`sweeps register`: the confirmed model into MLflow's registry."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from sweeps import service
from sweeps.commands.options import CheckpointsOption, DatabaseOption, HomeOption, JsonOption, TrackingOption, opened
from sweeps.errors import SweepError
from sweeps.records import EventRow
from sweeps.registering import candidate
from sweeps.settings import find_home
from sweeps.shipping import best_model, server_of, tracking_server

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def register(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="One that was confirmed, or the confirmation itself")],
    alias: Annotated[str, typer.Option(help="Names this version from now on, and no other")] = "champion",
    model_name: Annotated[
        str | None, typer.Option("--model-name", metavar="NAME", help="In the registry. Default: the sweep's")
    ] = None,
    unconfirmed: Annotated[
        bool, typer.Option("--unconfirmed", help="The best trial of a sweep that was not confirmed, tagged so")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="The lowest confirmed WER, though it is not shown better than the baseline")
    ] = False,
    checkpoints: CheckpointsOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register the confirmed model of a sweep in MLflow, with the evidence in its tags and description.

    Done again it makes no second version of the same model.
    """
    where, called = find_home(home), model_name or name
    for option, value in (("--model-name", called), ("--alias", alias)):
        if not NAME.fullmatch(value):
            raise SweepError(f"{option} {value!r}: use letters, digits, dot, dash and underscore, 128 at most")
    from tracking.mlflow_writer import open_experiment
    from tracking.registry import register as registered

    with opened(where, database) as store:
        sweep = service.find_sweep(store, name)
        chosen = candidate(store, sweep, unconfirmed=unconfirmed, force=force)
        of, trial = chosen.sweep, chosen.trial
        model = best_model(store, where, of.name, trial, checkpoints)
        if model is None or trial.best_epoch is None:
            raise SweepError(
                f"{of.name}/{trial.name or trial.number}: its weights are not on this machine, or are those of a "
                "trainer of one's own, which only its own code can load; register it where it was trained, or name "
                "the folder with --checkpoints"
            )
        with tracking_server(where, server_of(of, tracking_uri, where)) as tracking:
            experiment = open_experiment(tracking.uri, of.name, tracking.shown)
            if trial.run_id is None or not experiment.holds(trial.run_id):
                raise SweepError(
                    f"MLflow at {tracking.shown} has not the runs of {of.name!r}: `sweeps mirror {of.name}` sends them"
                )
            model_id = experiment.log_model(trial.run_id, trial.best_epoch, model)
            made = registered(
                *(tracking.uri, called, model_id, trial.run_id, alias, chosen.description), tags=chosen.tags
            )
        if made.new:
            said = f"{of.name}/{trial.name or trial.number} is version {made.version} of {made.name}, {chosen.verdict}"
            data = {"model": made.name, "version": made.version, "alias": alias, "verdict": chosen.verdict}
            store.add_event(sweep.id, EventRow("registered", said, data=data))
    if as_json:
        found = {
            "model": made.name,
            "version": made.version,
            "alias": made.alias,
            "uri": made.uri,
            "new": made.new,
            "sweep": of.name,
            "trial": trial.number,
            "verdict": chosen.verdict,
            "wer": chosen.wer,
            "tracking_uri": tracking.shown,
        }
        print(json.dumps(found, allow_nan=False))
        return
    before = "" if made.new else " (it was registered before)"
    print(f"{made.uri} is version {made.version}{before}, {chosen.verdict}, WER {chosen.wer:.1%}, in {tracking.shown}")
