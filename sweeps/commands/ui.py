"""`sweeps ui`: open a sweep's dashboard."""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated

import typer

from sweeps import service
from sweeps.commands.options import DatabaseOption, HomeOption, TrackingOption, opened, stopping, wait_for_enter
from sweeps.errors import SweepError
from sweeps.settings import find_home
from sweeps.shipping import dashboard, tracking_server


def ui(
    name: Annotated[str | None, typer.Argument(metavar="SWEEP", help="Default: the newest sweep")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    port: Annotated[int | None, typer.Option(help="Port of the local server. Default: a free one")] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser as well")] = False,
) -> None:
    """Open a sweep's dashboard: starts the MLflow server on this home until Ctrl-C, prints the address."""
    where = find_home(home)
    with stopping() as stop, opened(where, database) as store:
        known = store.sweeps()
        if name is None and not known:
            raise SweepError(f"{where.root}: holds no sweep yet; run one, or name the right folder with --home")
        sweep = service.find_sweep(store, name or known[-1].name)
        with tracking_server(where, tracking_uri, port) as tracking:
            address = dashboard(store, sweep, tracking)
            print(address, flush=True)
            if browser and tracking.pages:
                webbrowser.open(address)
            if tracking_uri is None:
                print("Until Enter or Ctrl-C." if sys.stdin.isatty() else "Until Ctrl-C.", flush=True)
                if sys.stdin.isatty():
                    wait_for_enter(stop)
                else:
                    while not stop.wait(0.5):  # in steps: on Windows an endless wait hears no Ctrl-C
                        pass
