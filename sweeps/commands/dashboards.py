"""Where the runs go, and where a person sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sweeps import service
from sweeps.records import SweepRow
from sweeps.settings import Home
from sweeps.store import Store
from tracking.links import experiment_url, without_credentials
from tracking.server import check_server, local_server, store_uri


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
