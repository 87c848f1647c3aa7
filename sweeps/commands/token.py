"""`sweeps token create | list | revoke`, and `sweeps actions`: who may use a server, and what they asked for."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from sweeps.commands.options import (
    DatabaseOption,
    HomeOption,
    JsonOption,
    ServerOption,
    opened,
    reached,
)
from sweeps.connect import this_person
from sweeps.errors import SweepError
from sweeps.interface import PAGE
from sweeps.records import ActionRow, Scope, TokenRow
from sweeps.settings import find_home
from sweeps.tokens import new_token, sha256_of

app = typer.Typer(help="Who may use `sweeps serve`.", no_args_is_help=True)

MOST_DAYS = 36_500

Name = Annotated[str, typer.Argument(help="Whose it is, or what for: it stands beside each action")]


@app.command()
def create(
    name: Name,
    scope: Annotated[str, typer.Option(help="read, or operate: also create, change and delete sweeps")] = "operate",
    days: Annotated[float | None, typer.Option(help="That it is good for. Default: until revoked")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it: this once, as only its digest is kept."""
    scopes: dict[str, Scope] = {"read": "read", "operate": "operate"}
    if scope not in scopes:
        raise SweepError(f"--scope {scope}: there are read and operate")
    if not (name.isprintable() and 0 < len(name) <= 64):
        raise SweepError(f"token {name!r}: a name has 1 to 64 printable characters")
    if days is not None and not 0 < days <= MOST_DAYS:
        raise SweepError(f"--days {days:g}: choose up to {MOST_DAYS}, or leave it out for a token without an end")
    token = new_token()
    with opened(find_home(home), database) as store:
        store.add_action(ActionRow(this_person(), "create token", name, {"scope": scope}))
        made = store.add_token(name, sha256_of(token), scopes[scope], None if days is None else days * 86_400)
    if as_json:
        print(json.dumps({"token": token, **asdict(made)}))
        return
    print(token)
    until = "until it is revoked" if made.expires_at is None else f"until {shown(made.expires_at)}"
    typer.echo(f"Token {name} ({scope}), good {until}. It is not shown again. Use it as SWEEPS_TOKEN.", err=True)


@app.command("list")
def list_(home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Tokens with their scopes, never the tokens themselves."""
    with opened(find_home(home), database) as store:
        tokens, now = store.tokens(), store.now()
    if as_json:
        print(json.dumps([asdict(token) for token in tokens]))
        return
    for token in tokens:
        used = f"last used {shown(token.used_at)}" if token.used_at else "never used"
        print(f"{token.name}: {token.scope}, {_standing(token, now)}, {used}")
    if not tokens:
        print("no token yet: `sweeps token create NAME` makes one")


@app.command()
def revoke(name: Name, home: HomeOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Take a token back, at once."""
    with opened(find_home(home), database) as store:
        store.add_action(ActionRow(this_person(), "revoke token", name))
        token = store.revoke_token(name)
    print(json.dumps(asdict(token)) if as_json else f"token {name} is revoked")


def actions(
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    after: Annotated[int, typer.Option(min=0, help="Those behind the one with this id")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Who asked for what: sweeps created, changed and deleted, tokens made and revoked; over HTTP and from here."""
    found: list[ActionRow] = []
    with reached(home, database, server) as sweeps:
        while page := sweeps.actions(after=found[-1].id or 0 if found else after):
            found += page
            if len(page) < PAGE:
                break
    if as_json:
        print(json.dumps([asdict(action) for action in found], allow_nan=False))
        return
    for action in found:
        data = " ".join(f"{key}={value}" for key, value in action.data.items())
        print(
            f"{shown(action.at or 0.0)}  {action.actor}: {action.action} {action.target}{f' ({data})' if data else ''}"
        )


def shown(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().isoformat(sep=" ", timespec="seconds")


def _standing(token: TokenRow, now: float) -> str:
    if token.revoked_at is not None:
        return f"revoked {shown(token.revoked_at)}"
    if token.expires_at is not None:
        return f"{'expired' if token.expires_at <= now else 'good until'} {shown(token.expires_at)}"
    return "good until it is revoked"
