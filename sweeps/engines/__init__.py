"""What runs the workers of `sweeps work`: processes of this machine (`sweeps.runner`), or places in a Ray cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from sweeps.errors import SweepError
from sweeps.records import Runner
from sweeps.runner import Workers
from sweeps.worker import Job

EngineName = Literal["local", "ray"]

RAY_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}
OWN_RAY_SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Of a Ray of our own: loopback alone, as Ray does by itself on Windows and macOS, and with a token."""


class Engine(Protocol):
    """A number of workers that are started anew when they die or want to be.

    It knows nothing of trials: the database owns them, whoever places the workers.
    """

    runner: Runner
    """The process that started them, which keeps the sweeps."""
    ids: set[str]
    """Of every worker that was started."""

    @property
    def ended(self) -> bool:
        """Whether every one of them has ended by itself, with nothing left to do."""

    def look(self) -> set[str]:
        """Start those that are missing, without waiting; returns the ids of those that died since the last look."""

    def thrive(self) -> None:
        """There was progress: the next death is not in a row with the last one."""

    def ask_to_stop(self) -> None:
        """From any thread: each drops the epoch in hand and hands its trial back."""

    def end(self) -> None:
        """Ask, wait, and only then force."""


@dataclass(frozen=True)
class Resources:
    """What a worker takes of its node, for an engine that chooses the node."""

    address: str | None = None
    """Of the cluster; None: one of its own on this machine."""
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        for option, value in (("--cpus-per-worker", self.cpus), ("--gpus-per-worker", self.gpus)):
            if not (0 <= value <= 1 or (value > 1 and float(value).is_integer())):
                raise SweepError(f"{option} {value:g}: Ray gives out fractions of one, or whole ones: 0.5, 1 or 2, say")


@contextmanager
def opened(name: EngineName, job: Job, count: int, runner: Runner, resources: Resources) -> Iterator[Engine]:
    """The engine of that name with `count` workers, none of them started yet.

    Raises:
        SweepError: it is not installed, its cluster is not there, or the options are not for it.
    """
    if name == "local":
        if resources != Resources():
            raise SweepError(
                "--address, --cpus-per-worker and --gpus-per-worker are for --engine ray: add it, or leave them out"
            )
        yield Workers(job, count, runner)
        return
    os.environ |= RAY_SETTINGS | ({} if resources.address else OWN_RAY_SETTINGS)  # read when Ray is imported
    if resources.address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the user's folder
    try:
        from sweeps.engines import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise SweepError("--engine ray: Ray is not installed: pip install 'ctc-sweeps[ray]'") from None
    with ray.connected(resources):
        yield ray.RayWorkers(job, count, runner, resources)
