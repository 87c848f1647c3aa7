"""`sweeps doctor`: what is wrong with an installation."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from sweeps import doctor as checks
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, TrackingOption
from sweeps.settings import find_home


def doctor(
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with this installation: Python, packages, disk, database, MLflow, devices. Changes nothing.

    Exit code 1 where something must be mended before a sweep can run.
    """
    found = []
    for finding in checks.examine(find_home(home), database, tracking_uri):
        found.append(finding)
        if not as_json:
            way_out = f": {finding.way_out}" if finding.way_out else ""
            print(f"{finding.level:<8} {finding.check}: {finding.sentence}{way_out}", flush=True)
    faults = sum(finding.level == "fault" for finding in found)
    if as_json:
        print(json.dumps({"faults": faults, "checks": [asdict(finding) for finding in found]}))
    raise typer.Exit(1 if faults else 0)
