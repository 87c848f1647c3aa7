"""`sweeps work --engine ray`: a cluster of two nodes on this host, of which one dies; and the ways to end it."""

from __future__ import annotations

import itertools
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeps.engines import Resources
from sweeps.errors import SweepError
from sweeps.processes import this_runner
from sweeps.records import EventRow, TrialRow, WorkerRow
from sweeps.settings import Home
from sweeps.store import Store
from sweeps.worker import Job
from tests.acceptance.commands import MARK, Command, living, until_gone
from tests.faults import counting
from tests.faults.databases import postgresql
from tests.faults.invariants import Expected, violations
from tests.faults.site import CALM_LEASE_SECONDS, Outcome, Site, corpus, opened
from tracking.server import local_server

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(280),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]

TRIALS, EPOCHS = 5, 8
_numbers = itertools.count()
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-this-test-alone" * 3,
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Cluster:
    address: str
    nodes: tuple[Any, ...]
    """The head first: the command is one of its processes, as Ray sees it."""

    def stop(self) -> None:
        for node in reversed(self.nodes):
            for process in below(node):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def below(node: Any) -> list[psutil.Process]:
    """The raylet of a node and all that it has started: what dies with the machine."""
    found = []
    for info in node.all_processes.get("raylet", []):  # none: it was stopped
        with suppress(psutil.NoSuchProcess):
            raylet = psutil.Process(info.process.pid)
            found += [raylet, *raylet.children(recursive=True)]
    return found


@pytest.fixture
def cluster(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes, with a core and by their word a GPU each. What they start has their environment, not the command's."""
    for name, value in {**site.environment, **environment(site)}.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster as Nodes

    options = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=options)
    second = nodes.add_node(**options)
    found = Cluster(nodes.address, (nodes.head_node, second))
    try:
        yield found
    finally:
        found.stop()


def environment(site: Site) -> Mapping[str, str]:
    return {MARK: str(site.home.root), counting.LOG: str(site.log), counting.STEP_SECONDS: "0.1"}


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest, mlflow: str) -> Iterator[Site]:
    """A sweep of trials that count; in SQLite, or in PostgreSQL where the test asks for that."""
    database = request.getfixturevalue("postgres") if "postgres" in request.fixturenames else None
    spec = {
        "corpus": {"path": str(corpus(tmp_path / "corpus"))},
        "trainer": {"epochs": EPOCHS, "hidden": counting.HEALTHY, "channels": 16, "patience": 30, "device": "cpu"},
        "space": {"patience": {"low": 20, "high": 30}},
        "pruner": {"name": "none"},
        "on_alarm": "continue",
        "budget": {"trials": TRIALS},
    }
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # not tmp_path: a socket's path is short
        settings = {**LOOPBACK, "RAY_TMPDIR": folder}
        with opened(
            Site(
                tmp_path / "site",
                f"counted-{next(_numbers)}",
                database,
                mlflow,
                spec=spec,
                environment=settings,
                # Who dies here is seen to, and a machine that stalls while Ray starts loses nobody's lease.
                lease_seconds=CALM_LEASE_SECONDS,
            )
        ) as found:
            found.create()
            yield found


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with local_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.url


@pytest.fixture
def postgres() -> Iterator[str]:
    # Not below pytest's own folder: a server started by root runs as another user, who may not look in there.
    with tempfile.TemporaryDirectory(prefix="pg") as folder, postgresql(Path(folder)) as server:
        yield server.schema()


def work(site: Site, *words: str) -> Command:
    return site.start([*site.work_words(), "--engine", "ray", "--workers", "2", *words])


def rows(site: Site) -> tuple[list[TrialRow], list[WorkerRow], list[EventRow]]:
    with closing(Store(site.url)) as store:
        sweep = store.find_sweep(site.name)
        assert sweep is not None
        return store.trials(sweep.id), store.workers(), store.events(sweep.id)


def working(site: Site) -> dict[int, TrialRow]:
    """By process: the trials that have an epoch behind them and train another one."""
    trials, workers, _ = rows(site)
    pids = {worker.id: worker.pid for worker in workers}
    return {pids[t.worker]: t for t in trials if t.state == "RUNNING" and t.epochs and t.worker in pids}


def both_work(site: Site) -> Callable[[], dict[int, TrialRow]]:
    return lambda: found if len(found := working(site)) == 2 else {}


@pytest.mark.usefixtures("postgres")
def test_a_node_is_killed_and_its_trials_go_on_at_the_other(site: Site, cluster: Cluster) -> None:
    begun, begun_at = time.monotonic(), time.time()
    command = work(site, "--address", cluster.address, "--gpus-per-worker", "0.5")
    trials = command.until(both_work(site))
    assert {gpus_of(pid) for pid in trials} == {"0"}, "each node's first"
    victims = below(cluster.nodes[1])
    (lost,) = [trial for pid, trial in trials.items() if pid in {process.pid for process in victims}]
    for process in victims:
        process.kill()
    killed = time.monotonic()
    command.until(lambda: any(e.kind == "reaped" and e.trial_number == lost.number for e in rows(site)[2]))
    print(f"reaped after {time.monotonic() - killed:.1f} s")
    assert command.wait() == 0, site.words()
    seconds = time.monotonic() - begun
    assert "a place on" in command.words()
    assert "was lost" in command.words()
    cluster.stop()
    assert violations(site, Outcome(seconds, 0, begun_at, 0.0), Expected(TRIALS, math.inf, repeated=1)) == []
    after, _, events = rows(site)
    assert {trial.number: trial.attempt for trial in after if trial.attempt > 1} == {lost.number: 2}
    claims = [event.worker for event in events if event.kind == "claimed" and event.trial_number == lost.number]
    assert len(set(claims)) == 2, "another worker went on with it"


def test_a_launcher_that_ends_leaves_no_worker_and_its_trials_go_on(site: Site, cluster: Cluster) -> None:
    """Told to end, its workers hand their trials back; killed, they are killed as well, and lose the epoch in hand."""
    told = work(site, "--address", cluster.address)
    held = told.until(both_work(site))
    told.process.send_signal(signal.SIGTERM)
    handed_back_within_seconds(site)
    assert told.wait(60) == 130, told.words()
    until_ended(held)

    killed = work(site, "--address", cluster.address)
    held = killed.until(both_work(site))
    killed.process.kill()
    until_ended(held)
    cluster.stop()

    assert site.start(site.work_words()).wait() == 0, site.words()
    outcome = Outcome(0.0, 0, 0.0, 0.0)
    assert violations(site, outcome, Expected(TRIALS, math.inf, repeated=4)) == []


def test_without_a_cluster_ray_is_started_on_loopback_alone_and_ends_at_ctrl_c(site: Site) -> None:
    command = work(site, "--cpus-per-worker", "0.5")
    held = command.until(both_work(site))
    assert {gpus_of(pid) for pid in held} == {""}, "none was asked for"
    mine = {process.pid for process in living(site.home.root)}
    places = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in mine]
    assert places, "Ray listens"
    assert {place.removeprefix("::ffff:") for place in places} == {"127.0.0.1"}
    command.interrupt()  # Ray's processes hear it as well
    handed_back_within_seconds(site)
    assert command.wait(60) == 130, command.words()
    until_ended(held)
    until_gone(site.home.root)
    assert {t.state for t in rows(site)[0] if t.epochs < EPOCHS} == {"WAITING"}


def gpus_of(pid: int) -> str:
    return psutil.Process(pid).environ()["CUDA_VISIBLE_DEVICES"]


def handed_back_within_seconds(site: Site) -> None:
    asked = time.monotonic()
    while [event.kind for event in rows(site)[2]].count("handed_back") < 2:
        assert time.monotonic() - asked < 5, site.words()
        time.sleep(0.05)
    print(f"handed back after {time.monotonic() - asked:.1f} s")


def until_ended(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + 10
    while left := [pid for pid in pids if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_no_cluster_at_the_address_is_said_in_one_line(site: Site) -> None:
    command = work(site, "--address", "127.0.0.1:1")
    assert command.wait() == 2
    error = command.stderr.read_text(encoding="utf-8").strip().splitlines()[-1]
    assert error.startswith("error: --address 127.0.0.1:1: Ray could not be reached")
    assert "ray start" in error


@pytest.fixture
def job(tmp_path: Path) -> Job:
    home = Home(tmp_path)
    return Job("", "postgresql://dbhost/sweeps", (), home, home.checkpoints, home.workers)


def test_a_node_with_another_version_is_refused(job: Job) -> None:
    from sweeps.engines import ray

    workers = ray.RayWorkers(job, 1, this_runner(), Resources("auto"))
    with pytest.raises(SweepError, match=r"^elsewhere .* ctc-sweeps 0\.0\.0, and this machine .*: install one version"):
        workers._open(workers._slots[0], ray.Node("elsewhere/4026531836", "0.0.0"))


def test_a_node_of_another_host_cannot_use_sqlite(job: Job) -> None:
    from dataclasses import replace
    from importlib.metadata import version

    from sweeps.engines import ray

    job = replace(job, database_url=job.home.database_url)
    workers = ray.RayWorkers(job, 1, this_runner(), Resources("auto"))
    with pytest.raises(SweepError, match=r"^elsewhere .*SQLite database serves one machine: keep sweeps in PostgreSQL"):
        workers._open(workers._slots[0], ray.Node("elsewhere/4026531836", version("ctc-sweeps")))


def test_the_workers_of_a_lost_place_are_known_to_be_dead_and_losses_in_a_row_are_rested_from(job: Job) -> None:
    """On one host the keeper sees it by itself; of another one nobody else says so before the lease has run out."""
    from ray.exceptions import ActorDiedError

    from sweeps.engines import ray

    workers = ray.RayWorkers(job, 1, this_runner(), Resources("auto"))
    (slot,) = workers._slots
    slot.ids = {"launcher/ray-0/0", "launcher/ray-0/1"}
    assert workers._lost(slot, ActorDiedError()) == {"launcher/ray-0/0", "launcher/ray-0/1"}
    assert slot.rest_until <= time.monotonic(), "the first one is replaced at once"
    for _ in range(3):
        assert workers._lost(slot, ActorDiedError()) == set()
    assert 6 < slot.rest_until - time.monotonic() <= 7
    workers.thrive()
    workers._lost(slot, ActorDiedError())
    assert slot.rest_until <= time.monotonic()
