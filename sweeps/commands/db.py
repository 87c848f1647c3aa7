"""`sweeps db`: the database's tables."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from sweeps import service, store
from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption
from sweeps.errors import SweepError
from sweeps.keeper import STALE_SECONDS
from sweeps.processes import is_known_dead
from sweeps.settings import Home, find_home

app = typer.Typer(help="How far the database's tables are, and what brings them up to date.", no_args_is_help=True)


@app.command()
def upgrade(
    home: HomeOption = None,
    database: DatabaseOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Upgrade even while a live process runs a sweep of this database")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database's tables up to date with this version.

    An SQLite file is copied beside itself first. It happens whole or not at all.
    """
    where = find_home(home)
    url, shown = _address(where, database)
    before = store.schema(url)
    if before.revision is None and url.startswith("sqlite"):
        raise SweepError(f"{shown}: holds no tables yet; the first `sweeps run` makes them, or name the right database")
    words = sys.stderr if as_json else sys.stdout
    if not before.current and not url.startswith("sqlite"):
        print(
            "note: a copy of a PostgreSQL database is yours to make (pg_dump): docs/how-to/upgrade.md", file=sys.stderr
        )
    done = store.upgrade(url, STALE_SECONDS, is_known_dead, force=force)
    if done.copy:
        print(f"copied to {done.copy}", file=words)
    if done.before == done.after:
        print(f"{shown} is up to date (revision {done.after}): nothing to do", file=words)
    else:
        print(f"upgraded {shown} from revision {done.before or 'none'} to {done.after}", file=words)
    if as_json:
        copy = str(done.copy) if done.copy else None
        print(json.dumps({"database": shown, "before": done.before, "after": done.after, "copy": copy}))


@app.command()
def current(home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Say how far the database's tables are. Exit code 1 where they are not those of this version."""
    where = find_home(home)
    url, shown = _address(where, database)
    found = store.schema(url)
    if found.current:
        said = f"{shown} is up to date (revision {found.revision})"
    elif found.newer:
        said = f"{shown} is at revision {found.revision}, which a newer version made: install that version"
    elif found.revision is None:
        said = f"{shown} holds no tables yet; the first `sweeps run` makes them"
    else:
        command = service.upgrade_command(where, database)
        said = f"{shown} is at revision {found.revision}, this version needs {found.needed}: run `{command}`"
    if as_json:
        what = {"database": shown, "revision": found.revision, "needed": found.needed, "current": found.current}
        print(json.dumps(what))
    else:
        print(said)
    raise typer.Exit(0 if found.current else 1)


def _address(home: Home, database: str | None) -> tuple[str, str]:
    """The database's URL, and as it may be printed."""
    address = store.database_url(database or home.database_url)
    return address.render_as_string(hide_password=False), address.render_as_string()
