"""`sweeps notify`: try the channels, and send what waits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sweeps.channels import chosen, load_channels, sample, send
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, NotifyOption, opened
from sweeps.errors import CannotTell, SweepError
from sweeps.outbox import send_due
from sweeps.settings import find_home


def notify(
    channel: Annotated[str | None, typer.Argument(metavar="[CHANNEL]", help="Default: every channel")] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a sample, and nothing that waits")] = False,
    notify: NotifyOption = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send now what waits because a channel could not be reached; with --test, a sample.

    Exit code 1 where something was not told.
    """
    where = find_home(home)
    channels = chosen(load_channels(file_of(where.notify, notify)), channel)
    told: list[dict[str, Any]]
    if test:
        told = []
        for name, message in sample(list(channels)):
            try:
                send(channels[name], message)
                told.append({"channel": name, "event": "test", "sweep": None, "trouble": None})
            except CannotTell as error:
                told.append({"channel": name, "event": "test", "sweep": None, "trouble": str(error)})
        sent = sum(each["trouble"] is None for each in told)
    else:
        with opened(where, database) as store:
            store.hasten_notifications(list(channels))
            sent = send_due(store, channels)
            waiting = store.waiting_notifications(list(channels))
        told = [{"channel": r.channel, "event": r.kind, "sweep": r.sweep, "trouble": r.trouble} for r in waiting]
    failed = [each for each in told if each["trouble"] is not None]
    if as_json:
        print(json.dumps({"sent": sent, "waiting" if not test else "tried": told}))
    else:
        print(f"{sent} sent")
        for each in failed:
            about = each["event"] + (f" of {each['sweep']}" if each["sweep"] else "")
            print(f"{each['channel']}: not told of {about}: {each['trouble']}", file=sys.stderr)
    raise typer.Exit(1 if failed else 0)


def file_of(default: Path, given: Path | None) -> Path:
    """
    Raises:
        SweepError: there is no such file: nobody is to be told.
    """
    if given is None and not default.exists():
        raise SweepError(f"{default}: is not there, so nobody is told; docs/how-to/notify.md has one to begin with")
    return given or default
