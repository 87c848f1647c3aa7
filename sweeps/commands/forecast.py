"""`sweeps forecast`: what the rest of a sweep's budget will bring."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sweeps.budget import IMPROVEMENT
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, ServerOption, reached


def forecast(
    name: Annotated[str, typer.Argument(metavar="SWEEP")],
    improvement: Annotated[
        float, typer.Option(help="State the chance of a WER lower by so much (a fraction: 0.005 is half a point)")
    ] = IMPROVEMENT,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the rest of a sweep's budget will bring: hours, trials, the chance to improve the best WER."""
    with reached(home, database, server) as sweeps:
        found = sweeps.forecast(name, improvement)
    print(json.dumps(found.as_json(), allow_nan=False) if as_json else f"{name}: {found.sentence}")
