"""`sweeps serve`: the HTTP API."""

from __future__ import annotations

import ipaddress
import logging
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from sweeps.commands.options import CheckpointsOption, DatabaseOption, HomeOption, TrackingOption, opened
from sweeps.errors import SweepError
from sweeps.policy import Policy
from sweeps.processes import keep_little_memory
from sweeps.records import SweepRow
from sweeps.service import SweepService
from sweeps.settings import find_home
from sweeps.store import Store
from sweeps.trainers import load_trainer, resolved
from tracking.server import check_server

PORT = 8765
GRACE_SECONDS = 3
"""What answers under way get at the end."""
MOST_CONNECTIONS = 500
CONNECTIONS = 45
"""To the database: requests are answered in 40 threads."""


def serve(
    host: Annotated[str, typer.Option(help="Interface to listen on; any but loopback asks for tokens")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one")] = PORT,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    corpus_root: Annotated[
        list[Path] | None,
        typer.Option(
            "--corpus-root",
            envvar="SWEEPS_CORPUS_ROOTS",
            help="Folder below which corpora may be named; again for more. Without one: generated corpora only",
        ),
    ] = None,
    trainer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE.py:NAME", help="A trainer that a request may name; again for more"),
    ] = None,
    checkpoints: CheckpointsOption = None,
    require_token: Annotated[bool, typer.Option("--require-token", help="Ask for a token on loopback as well")] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Another name that this server is asked for by, as behind a proxy"),
    ] = None,
    rate: Annotated[str, typer.Option(help="How often one client may ask")] = "1200/minute",
) -> None:
    """Serve the sweeps of a database over HTTP, until Ctrl-C: `--server URL` and `sweeps.Client` ask it.

    Nothing is trained here: `sweeps work` does that, on any machine that reaches the database.

    On loopback nobody is asked for a token. Any other --host wants one (`sweeps token create`) and a proxy in front
    that speaks TLS; so does --allowed-host.
    """
    keep_little_memory()
    where = find_home(home)
    roots = tuple(corpus_roots(corpus_root or []))
    trainers = dict(named_trainer(word) for word in trainer or [])
    if tracking_uri is not None:
        check_server(tracking_uri)

    def delete_experiment(of: SweepRow, run_id: str | None) -> None:
        from tracking import mlflow_writer

        assert tracking_uri is not None
        if of.experiment_id is not None:
            mlflow_writer.delete_experiment(tracking_uri, of.experiment_id, of.name, run_id)

    from sweeps.api.access import Access  # FastAPI takes half a second to import: no other command waits for it
    from sweeps.api.app import make_app

    with ExitStack() as stack:
        store = stack.enter_context(opened(where, database, CONNECTIONS))
        # Behind a proxy everybody comes from loopback.
        required = require_token or bool(allowed_host) or not is_loopback(host)
        if required:
            check_token(store, host)
        service = SweepService(
            *(store, where, "", Policy(roots, trainers)),
            delete_experiment=delete_experiment if tracking_uri else None,
            checkpoints=checkpoints,
        )
        sock = stack.enter_context(listening(host, port))
        bound = sock.getsockname()[1]
        hosts = {"localhost", "127.0.0.1", "::1", host, socket.gethostname(), *(allowed_host or [])}
        app = make_app(service, Access(store, required=required, rate=rate), hosts, tracking_uri)
        shown = f"[{host}]" if ":" in host else host
        print(f"serving http://{shown}:{bound} ({'with' if required else 'without'} tokens)", flush=True)
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=MOST_CONNECTIONS,
            proxy_headers=False,  # anybody could write them: who asks is whoever is connected
        )
        uvicorn.Server(config).run(sockets=[sock])


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(store: Store, host: str) -> None:
    """
    Raises:
        SweepError: there is no token that anybody could show.
    """
    if store.good_token() is None:
        raise SweepError(
            f"--host {host}: tokens are asked for, and the database holds none that is good: "
            "make one first with `sweeps token create NAME`"
        )


def listening(host: str, port: int) -> socket.socket:
    """
    Raises:
        SweepError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise SweepError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}): choose another"
        ) from None


def corpus_roots(given: list[Path]) -> list[Path]:
    """
    Raises:
        SweepError: one that is no folder.
    """
    for root in given:
        if not root.is_dir():
            raise SweepError(f"--corpus-root {root}: is no folder here; correct it, or make it")
    return [root.resolve() for root in given]


def named_trainer(word: str) -> tuple[str, str]:
    """
    Raises:
        SweepError: not of the form NAME=REFERENCE.
        TrainerNotFound: there is no such trainer.
    """
    name, _, reference = word.partition("=")
    if not name or not reference:
        raise SweepError(f"--trainer {word}: write NAME=FILE.py:NAME, where requests use the first name")
    full = resolved(reference)
    load_trainer(full)
    assert full is not None
    return name, full
