"""Workers on the nodes of a Ray cluster. Ray finds them a place, and knows nothing of trials: the database owns them.

A place is an actor: it holds the resources on its node, and is to its one worker process what `sweeps work` is on one
machine. A launcher that ends asks the places to end first: workers then hand their trials back. When an actor dies,
with its node or because its launcher has died, Ray kills what runs below it, and a worker that is left over all the
same stops by itself, as the pipe to its parent is broken. The trials go on from their last checkpoints elsewhere.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from sweeps.engines import Resources
from sweeps.errors import SweepError
from sweeps.processes import this_host, this_runner
from sweeps.records import Runner, shown_host
from sweeps.runner import KILL_SECONDS, LONGEST_REST_SECONDS, STOP_SECONDS, Workers
from sweeps.worker import Job

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
CREDENTIALS = ("PGPASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""Environment variables that a worker is given: a node's own environment is that of whoever started Ray there."""

PATIENCE_SECONDS = 15.0
"""After so long without a place for every worker a person is told."""
REACH_SECONDS = 5.0
"""Ray itself tries for many minutes."""
OBJECT_STORE_BYTES = 80_000_000
"""Of a Ray of our own, the least that Ray takes: no data goes through it."""


@dataclass(frozen=True)
class Node:
    """Where a place is."""

    host: str
    version: str
    """Of ctc-sweeps."""


@dataclass(frozen=True)
class Seen:
    """What a place knows of its worker, which may have been started several times."""

    ids: frozenset[str]
    dead: frozenset[str]
    """Died since the last look."""
    ended: bool
    last_death: str


class Place:
    """The actor. Its methods are called one after the other, and none but `end` waits."""

    _workers: Workers

    def node(self) -> Node:
        return Node(this_host(), version("ctc-sweeps"))

    def open(self, job: Job, runner_id: str, credentials: Mapping[str, str], hide_gpus: bool) -> None:
        os.environ.update(credentials)
        if hide_gpus:  # Ray sets this where it gives out a GPU, and leaves all of them in sight where it gives none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._workers = Workers(job, 1, replace(this_runner(), id=runner_id))

    def look(self) -> Seen:
        dead = frozenset(self._workers.look())
        return Seen(frozenset(self._workers.ids), dead, self._workers.ended, self._workers.last_death)

    def thrive(self) -> None:
        self._workers.thrive()

    def ask_to_stop(self) -> None:
        self._workers.ask_to_stop()

    def end(self) -> None:
        self._workers.end()


@dataclass
class _Slot:
    """One of the workers that were asked for, wherever it is."""

    actor: Any = None
    """None: it rests, or has ended."""
    answer: Any = None
    """The one that is waited for: a `Node`, from then on `Seen`."""
    node: Node | None = None
    """None: Ray has found no place yet."""
    ids: set[str] = field(default_factory=set)
    last_death: str = ""
    ended: bool = False
    losses: int = 0
    """Places lost in a row."""
    rest_until: float = 0.0


class RayWorkers:
    """A number of workers, each at a place of its own: see `sweeps.engines.Engine`."""

    def __init__(self, job: Job, count: int, runner: Runner, resources: Resources) -> None:
        self.runner = runner
        self.ids: set[str] = set()
        self._job = _absolute(job)
        self._gpus = resources.gpus
        # A plain class, so that a node imports it instead of taking it from here. Places are never restarted by Ray:
        # it would not say which workers were lost.
        self._place: Any = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0)(Place)
        self._slots = [_Slot() for _ in range(count)]
        self._placed = 0
        self._told_at = time.monotonic()
        self._warned = False

    @property
    def ended(self) -> bool:
        return all(slot.ended for slot in self._slots)

    def look(self) -> set[str]:
        """
        Raises:
            SweepError: a node has not got what a worker needs.
        """
        now = time.monotonic()
        for slot in self._slots:
            if slot.actor is None and not slot.ended and now >= slot.rest_until:
                slot.actor, slot.node = self._place.remote(), None
                slot.answer = slot.actor.node.remote()
        waiting = [slot.answer for slot in self._slots if slot.actor is not None]
        ready = set(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]) if waiting else set()
        dead: set[str] = set()
        for slot in self._slots:
            if slot.actor is not None and slot.answer in ready:
                dead |= self._heard(slot)
        self._tell_of_waiting(now)
        return dead

    def thrive(self) -> None:
        for slot in self._slots:
            slot.losses = 0
            if slot.actor is not None and slot.node is not None:
                slot.actor.thrive.remote()

    def ask_to_stop(self) -> None:
        for slot in list(self._slots):
            actor = slot.actor
            if actor is not None and slot.node is not None:
                actor.ask_to_stop.remote()

    def end(self) -> None:
        asked = [slot.actor.end.remote() for slot in self._slots if slot.actor is not None and slot.node is not None]
        try:
            if asked:  # each asks, waits and forces by itself
                ray.wait(asked, num_returns=len(asked), timeout=STOP_SECONDS + 3 * KILL_SECONDS)
        except KeyboardInterrupt:  # a second Ctrl-C
            log.warning("workers are killed")
        for slot in self._slots:
            self._give_up(slot)

    def _heard(self, slot: _Slot) -> set[str]:
        """Take the answer, and ask the next; returns the ids of workers that died."""
        try:
            heard: Node | Seen = ray.get(slot.answer)
        except ActorUnavailableError:  # its node cannot be reached for the moment
            slot.answer = slot.actor.node.remote() if slot.node is None else slot.actor.look.remote()
            return set()
        except RayActorError as error:
            if error.actor_init_failed:
                raise _cannot_work(
                    "a node of the cluster", f"ctc-sweeps cannot be loaded there: {_last_line(error)}"
                ) from None
            return self._lost(slot, error)
        except RayTaskError as error:  # its home cannot be written there, say
            raise _cannot_work("a node of the cluster", _last_line(error)) from None
        if isinstance(heard, Node):
            self._open(slot, heard)
            return set()
        slot.ids |= heard.ids
        self.ids |= heard.ids
        if heard.last_death != slot.last_death:
            assert slot.node is not None
            log.error("a worker on %s died with %s", shown_host(slot.node.host), heard.last_death)
            slot.last_death = heard.last_death
        if heard.ended:
            slot.ended = True
            self._give_up(slot)  # its resources are another's
        else:
            slot.answer = slot.actor.look.remote()
        return set(heard.dead)

    def _open(self, slot: _Slot, node: Node) -> None:
        ours, host = version("ctc-sweeps"), shown_host(node.host)
        if node.version != ours:
            raise _cannot_work(host, f"it has ctc-sweeps {node.version}, and this machine {ours}: install one version")
        if self._job.database_url.startswith("sqlite") and node.host != self.runner.host:
            raise _cannot_work(host, "an SQLite database serves one machine: keep sweeps in PostgreSQL (--database)")
        if node.host != self.runner.host and not self._warned and self._checkpoints_stay():
            log.warning(
                "a trial that comes to another node begins at epoch 1: no --checkpoints, no --share-checkpoints"
            )
            self._warned = True
        slot.node = node
        name = f"ray-{self._placed}"
        self._placed += 1
        job = replace(self._job, log=self._job.log / name)
        credentials = {key: os.environ[key] for key in CREDENTIALS if key in os.environ}
        slot.actor.open.remote(job, f"{self.runner.id}/{name}", credentials, not self._gpus)
        slot.answer = slot.actor.look.remote()
        print(f"a worker has a place on {host}; its log is there in {job.log}", flush=True)

    def _checkpoints_stay(self) -> bool:
        """On the node that wrote them, as far as anybody has said."""
        return self._job.share_through is None and self._job.checkpoints == self._job.home.checkpoints

    def _lost(self, slot: _Slot, error: RayActorError) -> set[str]:
        """Ray has given the actor up, and with it what ran below it: nobody would stop that worker any more."""
        where = shown_host(slot.node.host) if slot.node else "a node"
        log.error("a place on %s was lost (%s); another one is asked for", where, _last_line(error))
        lost, slot.ids, slot.actor = slot.ids, set(), None
        slot.losses += 1
        slot.rest_until = time.monotonic() + min(LONGEST_REST_SECONDS, 2.0 ** min(slot.losses - 1, 6) - 1)
        return lost

    def _give_up(self, slot: _Slot) -> None:
        if slot.actor is not None:
            ray.kill(slot.actor)
            slot.actor = None

    def _tell_of_waiting(self, now: float) -> None:
        waiting = sum(slot.actor is not None and slot.node is None for slot in self._slots)
        if not waiting:
            self._told_at = now
        elif now - self._told_at > PATIENCE_SECONDS:
            self._told_at = float("inf")  # once, until all have a place again
            resources = ray.cluster_resources()
            has = ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
            log.warning("%d of %d workers wait for a place: the cluster has %s", waiting, len(self._slots), has)


@contextmanager
def connected(resources: Resources) -> Iterator[None]:
    """Inside, this process belongs to the cluster at that address, or to one of its own on this machine alone.

    Raises:
        SweepError: there is no such cluster, or it has another version of Python or Ray.
    """
    address = resources.address
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if address is None else {}
    if own:
        print("no --address: Ray is started on this machine, for this command alone", flush=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address not in (None, "auto"):
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        ray.init(
            address or "local",
            logging_level=logging.WARNING,
            log_to_driver=False,
            **own,
        )
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        why = " ".join(str(error).split())[:300]
        raise SweepError(
            f"--address {address or 'left out'}: Ray could not be reached ({why}): "
            "give the HOST:PORT that `ray start --head` said, and run this on a node of that cluster"
        ) from None
    finally:  # Ray's own would end this process at once, and the trials would be left lying
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _absolute(job: Job) -> Job:
    """The job without paths that depend on where a process was started."""
    url = job.database_url
    if url.startswith(SQLITE):
        url = SQLITE + Path(url.removeprefix(SQLITE)).absolute().as_posix()
    return replace(
        job,
        database_url=url,
        checkpoints=job.checkpoints.absolute(),
        corpus=job.corpus and job.corpus.absolute(),
    )


def _cannot_work(host: str, why: str) -> SweepError:
    return SweepError(f"{host} was given a worker by Ray and cannot run it: {why}")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
