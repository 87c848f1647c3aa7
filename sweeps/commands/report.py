"""`sweeps report`: a sweep as one HTML file."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from model.files import written_aside
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, ServerOption, TrackingOption, reached
from sweeps.errors import SweepError
from sweeps.gathered import Gathered, gather
from sweeps.settings import Home, find_home
from sweeps.shipping import server_of, tracking_server


def report(
    name: Annotated[str, typer.Argument(metavar="SWEEP")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Default: SWEEP-report.html", dir_okay=False)
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Also put it into MLflow, to the run of the best trial")
    ] = False,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a sweep as one HTML file: what was asked and found, whether to trust it, pictures, decisions, commands.

    It needs no network and no scripts, and prints on A4.
    """
    from sweeps.report import ARTIFACT  # the pictures: only this command draws
    from sweeps.report import report as page

    with reached(home, database, server) as sweeps:
        of = gather(sweeps, name)
    content = page(of).encode()
    file = output or Path(f"{of.sweep.name}-report.html")
    with written_aside(file) as out:
        out.write(content)
    words = sys.stderr if as_json else sys.stdout
    print(f"{file}: {len(content) / 1e6:.1f} MB, everything in it", file=words)
    run = None
    if attach:
        run = attached(of, content, tracking_uri, find_home(home), elsewhere=server is not None)
        print(f"attached to run {run} in MLflow as {ARTIFACT}", file=words)
    if as_json:
        print(json.dumps({"sweep": name, "file": str(file.resolve()), "bytes": len(content), "attached_to": run}))


def attached(of: Gathered, content: bytes, given: str | None, home: Home, *, elsewhere: bool) -> str:
    """Put the page into the artifacts of the best trial's run; returns the run's id.

    Args:
        given: MLflow server, if one was named.
        elsewhere: the sweep was asked for from a server, so that a local MLflow is that machine's.

    Raises:
        SweepError: MLflow has no such run yet, or it is that of another machine or another home.
        TrackingUnavailable, TrackingRefused, ServerDidNotStart: MLflow cannot be used.
    """
    from sweeps.report import ARTIFACT
    from tracking.mlflow_writer import open_experiment

    sweep, best = of.sweep, of.best
    if best is None or best.run_id is None or sweep.experiment_id is None:
        raise SweepError(
            f"--attach: MLflow has no run of a best trial of {sweep.name!r} yet: `sweeps mirror {sweep.name}` sends it"
        )
    uri = server_of(sweep, given, home)
    if elsewhere and not (uri or "").startswith("http"):
        raise SweepError(f"--attach: the MLflow of {sweep.name!r} is local to its server: name one with --tracking-uri")
    if uri is not None and not uri.startswith("http"):  # artifacts go through a server
        raise SweepError(f"--attach: the runs of {sweep.name!r} are in {uri}, of another home: name that with --home")
    with tracking_server(home, uri) as tracking, tempfile.TemporaryDirectory(prefix="sweeps-report") as folder:
        experiment = open_experiment(tracking.uri, sweep.name, tracking.shown)
        if not experiment.holds(best.run_id):
            raise SweepError(
                f"--attach: MLflow at {tracking.shown} has not the runs of {sweep.name!r}: "
                f"`sweeps mirror {sweep.name} --rebuild` sends them"
            )
        file = Path(folder) / ARTIFACT
        file.write_bytes(content)
        experiment.existing(best.run_id).log_artifact(file)
    return best.run_id
