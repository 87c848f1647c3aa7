"""Where the runs of sweeps go: which MLflow server, how a sweep is mirrored there, and where a person sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sweeps import service
from sweeps.keeper import STALE_SECONDS
from sweeps.mirror import Mirror
from sweeps.processes import is_known_dead
from sweeps.records import Runner, SweepRow
from sweeps.settings import Home
from sweeps.spec import corpus_of, spec_of
from sweeps.store import Store
from sweeps.summary import best_trial, command_of, description
from tracking.links import experiment_url, without_credentials
from tracking.server import check_server, local_server, store_path, store_uri
from tracking.writer import ExperimentWriter


@dataclass(frozen=True)
class Tracking:
    """Where the runs go and where a person sees them."""

    uri: str
    """What the mirror writes to."""
    shown: str
    """What is reported: the given URI, or that of the local MLflow database."""
    pages: str
    """Base address of the pages."""
    ensure_alive: Callable[[], None] = lambda: None
    """Starts a local server again if it has died."""


@contextmanager
def tracking_server(
    home: Home, given: str | None, port: int | None = None, *, required: bool = True
) -> Iterator[Tracking]:
    """The given MLflow server, checked if it is required, or a local one that lives as long as this context."""
    if given and required:
        check_server(given)
    if given and given.startswith("http"):
        yield Tracking(given, without_credentials(given), given)
    elif given:
        yield Tracking(given, given, "")
    else:
        with local_server(home.mlflow, port=port) as server:
            yield Tracking(server.url, store_uri(home.mlflow), server.url, server.ensure_alive)


def dashboard(store: Store, sweep: SweepRow, tracking: Tracking) -> str:
    experiment = service.find_sweep(store, sweep.name).experiment_id
    if not tracking.pages:
        return f"mlflow ui --backend-store-uri {tracking.uri}"
    return experiment_url(tracking.pages, experiment) if experiment else without_credentials(tracking.pages)


def keeper_of(store: Store, sweep: SweepRow) -> Runner | None:
    """The live process that keeps the sweep, and so ships it, if it knows a tracking server."""
    if sweep.runner is None or sweep.runner_beat_at is None or sweep.runner.yields > 1:
        return None
    stale = store.now() - sweep.runner_beat_at > STALE_SECONDS
    return None if stale or is_known_dead(sweep.runner) else sweep.runner


def server_of(sweep: SweepRow, given: str | None, home: Home) -> str | None:
    """Where a sweep's runs go: the server that is given, else the one they went to; None is the local one of this home,
    which takes the place of a home that was moved, too.
    """
    before = sweep.tracking
    if given is not None or before is None or before.startswith("http"):
        return given or before
    elsewhere = before.startswith("sqlite:") and before != store_uri(home.mlflow) and store_path(before).exists()
    return before if elsewhere else None


def mirror_of(
    store: Store,
    sweep: SweepRow,
    home: Home,
    tracking: Tracking,
    *,
    may_ship: Callable[[], bool] = lambda: True,
    progress: Callable[[int, int], None] = lambda number, epochs: None,
) -> Mirror:
    """The mirror of a sweep into that server, from what the database knows of the sweep."""

    def open_() -> ExperimentWriter:
        from tracking.mlflow_writer import open_experiment

        return open_experiment(tracking.uri, sweep.name, tracking.shown)

    def describe() -> str:
        now, rows = service.find_sweep(store, sweep.name), store.trials(sweep.id)
        spec, best = spec_of(now), best_trial(rows)
        command = command_of(now, best, spec, corpus_of(now)) if best else None
        return description(now, rows, command, service.conclusions_of(store, now, lessons=now.state != "RUNNING"))

    return Mirror(
        *(store, sweep, spec_of(sweep), tags_of(sweep), open_, describe, home.pictures(sweep.name)),
        may_ship=may_ship,
        ensure_server=tracking.ensure_alive,
        progress=progress,
    )


def tags_of(sweep: SweepRow) -> dict[str, str]:
    """What every run of a sweep is tagged with, and its experiment."""
    facts = ("corpus_hash", "vocabulary_hash", "trainer", "git_commit")
    known = {name: str(sweep.facts[name]) for name in facts if name in sweep.facts}
    return {"corpus": str(corpus_of(sweep).path), **known}
