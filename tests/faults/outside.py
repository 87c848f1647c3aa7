"""Faults of what is not ours: servers that die, hang or refuse. Each returns for how many seconds it lasted."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import psutil

from tests.acceptance.commands import living
from tests.faults.databases import Postgres, locked
from tests.faults.mlflow_proxy import Proxy
from tests.faults.site import Site
from tracking.server import _is_healthy

MODES = ("refuse", "hang:2", "error500", "half")
MODE_SECONDS = 3.0
"""For which MLflow goes on to fail once it was noticed."""
AWAY_SECONDS = 30.0
SHORTLY_AWAY_SECONDS = 5.0
LOCKED_SECONDS = 8.0
PATIENT_SECONDS = 60.0


def calls(site: Site, proxy: Proxy | None, postgres: Callable[[], Postgres]) -> Mapping[str, Callable[[], float]]:
    """What a fault of the action `call` may name."""
    return {
        "MLflow killed": partial(kill_server, site, supervisor=False),
        "MLflow and its supervisor killed": partial(kill_server, site, supervisor=True),
        "MLflow fails in every way": lambda: sum(fail(proxy, mode) for mode in MODES),
        **{f"MLflow: {mode}": partial(fail, proxy, mode) for mode in MODES},
        "PostgreSQL away": lambda: postgres().away(AWAY_SECONDS),
        "PostgreSQL shortly away": lambda: postgres().away(SHORTLY_AWAY_SECONDS),
        "SQLite locked": lambda: locked(site.home.root / "sweeps.db", LOCKED_SECONDS),
    }


def kill_server(site: Site, *, supervisor: bool) -> float:
    """SIGKILL every process of the MLflow server that `sweeps run` has started, and wait until it answers again."""
    (address,) = re.findall(r"dashboard: (http://[\d.:]+)", site.commands[0].words())
    until(lambda: _is_healthy(address), "no server answers")  # an earlier kill may have come just before
    begun = time.monotonic()
    killed = 0
    for process in living(site.home.root):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            is_supervisor = "tracking.server" in line
            if "mlflow.server" in line or ("mlflow server" in line and supervisor >= is_supervisor):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    assert killed >= 2 + supervisor, "there was no server"
    until(lambda: _is_healthy(address), "it was not started again")
    return time.monotonic() - begun


def fail(proxy: Proxy | None, mode: str) -> float:
    """One way to fail, until it was met and some seconds more; afterwards MLflow is well until it was asked again."""
    assert proxy is not None
    begun, name = time.monotonic(), mode.partition(":")[0]
    proxy.mode = mode
    until(lambda: proxy.seen[name] > 0, f"nobody met {mode}")
    time.sleep(MODE_SECONDS)
    proxy.mode, well = "pass", proxy.seen["pass"]
    until(lambda: proxy.seen["pass"] > well + 3, f"MLflow is not asked after {mode}")
    return time.monotonic() - begun


def until(seen: Callable[[], bool], otherwise: str) -> None:
    """Poll.

    Raises:
        AssertionError: `otherwise`, after a minute.
    """
    deadline = time.monotonic() + PATIENT_SECONDS
    while not seen():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)
