"""What is wrong with an installation: a function a check. Each looks, and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sweeps import service
from sweeps.channels import load_channels
from sweeps.errors import DatabaseUnavailable, SpecError
from sweeps.keeper import STALE_SECONDS
from sweeps.processes import is_gone, is_known_dead
from sweeps.records import Runner, SweepRow, WorkerRow
from sweeps.settings import Home
from sweeps.shadows import WAY_OUT, sentence, shadows
from sweeps.states import SweepState
from sweeps.store import Store, database_url, schema
from tracking.links import without_credentials
from tracking.server import DATABASE, LOOPBACK, check_server, server_version, store_path
from tracking.writer import TrackingUnavailable

Level: TypeAlias = Literal["ok", "warning", "fault"]

DISTRIBUTION = "ctc-sweeps"
FREE_FAULT = 200e6
"""Bytes: a checkpoint may not fit."""
FREE_WARNING = 2e9
"""Bytes: a sweep may not fit."""
CLOCK_SECONDS = 5.0
SILENT_SECONDS = 300.0
"""A worker says that it is there several times a lease, which is two minutes unless told otherwise."""
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smbfs", "smb3", "afpfs", "webdav", "9p", "ceph", "lustre", "beegfs", "macfuse"}
)
"""File systems on which SQLite's locks cannot be trusted; those of FUSE are told by their prefix."""


@dataclass(frozen=True)
class Finding:
    """What one check came to."""

    check: str
    level: Level
    sentence: str
    way_out: str = ""


class Partition(Protocol):
    """As `psutil.disk_partitions` gives them."""

    @property
    def mountpoint(self) -> str: ...

    @property
    def fstype(self) -> str: ...

    @property
    def opts(self) -> str: ...


def examine(home: Home, database: str | None, tracking_uri: str | None) -> Iterator[Finding]:
    """Every check, as it is done; those that ask a server or import torch come last.

    Args:
        database, tracking_uri: as on the command line.
    """
    yield python(platform.python_version(), _declared("Requires-Python"))
    yield packages(metadata.requires(DISTRIBUTION) or () if _is_installed(DISTRIBUTION) else None, _installed)
    yield names(Path.cwd())
    yield clock(time.time(), Path(__file__).stat().st_mtime)
    yield disk(home.root)
    yield writable(home.root)
    yield file_systems(_sqlite_files(home, database, tracking_uri), psutil.disk_partitions(all=True))
    yield from tables(home, database)
    yield notify(home.notify)
    yield mlflow_server(tracking_uri) if tracking_uri else local_mlflow()
    yield from devices(shutil.which("nvidia-smi") is not None)


# this machine


def python(version: str, needed: str | None) -> Finding:
    """Args: needed: as packaging writes it, `>=3.11`; None where it is not known."""
    if needed is None or SpecifierSet(needed).contains(version, prereleases=True):
        return Finding("python", "ok", f"Python {version} on {platform.platform()}")
    return Finding("python", "fault", f"this is Python {version}, and {needed} is needed", "install it there")


def packages(requirements: Iterable[str] | None, installed: Callable[[str], str | None]) -> Finding:
    """
    Args:
        requirements: as the distribution declares them; None where it is not installed.
        installed: from the name of a package to its version, None if it is not there.
    """
    if requirements is None:
        why = f"{DISTRIBUTION} is imported and not installed, so that nothing says what it needs"
        return Finding("packages", "warning", why, "install it with pip")
    needs = [need for need in map(Requirement, requirements) if not need.marker or need.marker.evaluate({"extra": ""})]
    wrong = []
    for need in needs:
        version = installed(need.name)
        if version is None:
            wrong.append(f"{need.name} is not installed")
        elif not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} is {version}, and {need.specifier} is needed")
    if wrong:
        return Finding("packages", "fault", "; ".join(wrong), f"run `pip install --upgrade {DISTRIBUTION}`")
    shown = ", ".join(f"{name} {installed(name)}" for name in ("torch", "mlflow", "optuna", "sqlalchemy"))
    return Finding("packages", "ok", f"{len(needs)} packages, each in a version that will do: {shown}")


def names(folder: Path) -> Finding:
    """Whether `model`, `sweeps` and `tracking` mean our packages, to this process and to a command in `folder`."""
    if found := shadows():
        return Finding("names", "fault", "; ".join(sentence(*each) for each in found.items()), WAY_OUT)
    if found := shadows([str(folder)]):
        places = ", ".join(place.name if place.parent == folder else str(place) for place in found.values())
        said = (
            f"{places} in this folder: `python -m {next(iter(found))}` runs it instead of ours when given here, and a "
            "trainer of your own that imports it gets ours"
        )
        return Finding("names", "warning", said, "rename it")
    return Finding("names", "ok", "model, sweeps and tracking are the packages of this installation")


def clock(ours: float, installed_at: float) -> Finding:
    """Args: UNIX seconds: now, and when this file was written."""
    if ours < installed_at - CLOCK_SECONDS:
        said = f"this machine's clock says {_date(ours)}, and this was installed on {_date(installed_at)}"
        return Finding("clock", "warning", said, "set the clock")
    return Finding("clock", "ok", f"{_date(ours)} by this machine's clock")


def disk(home: Path) -> Finding:
    place = _nearest(home)
    free = shutil.disk_usage(place).free
    level: Level = "fault" if free < FREE_FAULT else "warning" if free < FREE_WARNING else "ok"
    size = f"{free / 1e9:.1f} GB" if free >= 1e9 else f"{free / 1e6:.0f} MB"
    way_out = "" if level == "ok" else "free some, or name a home on another disk with --home"
    return Finding("disk", level, f"{size} free at {place}", way_out)


def writable(home: Path) -> Finding:
    try:
        if home.exists():
            with tempfile.TemporaryFile(dir=home):
                return Finding("home", "ok", f"{home} can be written to")
        place = _nearest(home)
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return Finding("home", "ok", f"{home} is not there yet, and can be made")
        why = f"{place} is no folder that you may write to"
    except OSError as error:
        why = error.strerror or str(error)
    return Finding("home", "fault", f"nothing can be written to {home} ({why})", "name another with --home")


def file_systems(files: Iterable[Path], partitions: Sequence[Partition]) -> Finding:
    """Whether SQLite files lie where several processes cannot share them."""
    far = []
    for file in files:
        place = _nearest(file.absolute())
        holding = [p for p in partitions if place.is_relative_to(p.mountpoint)]
        # Of two mounts on one place the later one is what is seen.
        _, mount = max(enumerate(holding), key=lambda each: (len(each[1].mountpoint), each[0]), default=(0, None))
        if mount is not None and _is_far(mount):
            far.append(f"{file} is an SQLite database on a network file system ({mount.fstype})")
    if far:
        way_out = "keep sweeps in PostgreSQL and runs on an MLflow server, or name a home on a disk of this machine"
        return Finding("file system", "warning", "; ".join(far), way_out)
    return Finding("file system", "ok", "no SQLite database lies on a network file system")


def _is_far(mount: Partition) -> bool:
    # Windows calls the file system of a drive by the name it has on its server, and the drive remote.
    return mount.fstype.lower() in NETWORK or mount.fstype.startswith("fuse.") or "remote" in mount.opts.split(",")


def notify(file: Path) -> Finding:
    """Whether those who are to be told of news can be: nothing is sent."""
    if not file.exists():
        return Finding("notify", "ok", f"nobody is told of news: there is no {file}")
    try:
        channels = load_channels(file)
    except SpecError as error:
        said = "; ".join(str(error).splitlines())
        return Finding("notify", "fault", said, "mend it: `sweeps run` and `sweeps work` refuse to begin with it")
    return Finding("notify", "ok", f"told of news: {', '.join(channels)}; `sweeps notify --test` tries them")


# the database


def tables(home: Home, database: str | None) -> Iterator[Finding]:
    """Whether the database is there, ours, up to date and writable, its clock, and who works on it."""
    try:
        address = database_url(database or home.database_url)
        shown, url = address.render_as_string(), address.render_as_string(hide_password=False)
        found = schema(url)
    except (DatabaseUnavailable, ValueError) as error:
        yield Finding("database", "fault", str(error))
        return
    if found.revision is None:
        yield Finding("database", "ok", f"{shown} holds no tables yet; the first `sweeps run` makes them")
    elif found.newer:
        why = f"{shown} has the tables of a newer version (revision {found.revision}, this one knows {found.needed})"
        yield Finding("database", "fault", why, "install that version")
    elif not found.current:
        why = f"{shown} has the tables of an older version (revision {found.revision}, this one needs {found.needed})"
        yield Finding("database", "fault", why, f"run `{service.upgrade_command(home, database)}`")
    else:
        try:
            with closing(Store(url)) as store:
                yield from _contents(store, shown, found.revision)
        except DatabaseUnavailable as error:
            yield Finding("database", "fault", str(error))


def _contents(store: Store, shown: str, revision: str) -> Iterator[Finding]:
    store.check_writable()
    yield Finding("database", "ok", f"{shown} can be written to, and is up to date (revision {revision})")
    before = time.time()
    now = store.now()
    ours = (before + time.time()) / 2
    sweeps, workers = store.sweeps(), store.workers()
    times = [t for s in sweeps for t in (s.created_at, s.started_at, s.finished_at, s.runner_beat_at)]
    newest = max((t for t in [*times, *(w.seen_at for w in workers)] if t is not None), default=now)
    yield database_clock(ours, now, newest)
    yield from keepers(sweeps, now, is_known_dead)
    holding = {worker.id for sweep in sweeps for worker in store.holders(sweep.id)}
    yield from living(workers, holding, now, lambda w: is_gone(w.host, w.pid, w.process_started))


def database_clock(ours: float, theirs: float, newest: float) -> Finding:
    """Args: UNIX seconds: this machine's clock and the database's at one moment, and the newest time in its rows."""
    if newest > theirs + CLOCK_SECONDS:
        said = f"the database's clock was set back: it says {_date(theirs)}, and holds rows of {_date(newest)}"
        return Finding("database clock", "warning", said, "set it right: until then leases last longer than they say")
    apart = theirs - ours
    if abs(apart) > CLOCK_SECONDS:
        direction = "ahead of" if apart > 0 else "behind"
        said = f"the database's clock is {abs(apart):.0f} s {direction} this machine's"
        return Finding(
            "database clock", "warning", said, "no harm to sweeps, whose times are all the database's; set one"
        )
    return Finding("database clock", "ok", f"{abs(apart):.1f} s from this machine's")


def keepers(sweeps: Iterable[SweepRow], now: float, is_dead: Callable[[Runner], bool]) -> list[Finding]:
    """Who keeps each sweep that is not over.

    Args:
        now: by the database's clock.
        is_dead: whether a process is known to have ended.
    """
    found = []
    for sweep in sweeps:
        silent = None if sweep.runner_beat_at is None else max(0.0, now - sweep.runner_beat_at)
        if sweep.runner and silent is not None and silent < STALE_SECONDS and not is_dead(sweep.runner):
            said = f"sweep {sweep.name!r} ({sweep.state}) is kept by {sweep.runner}, heard of {silent:.0f} s ago"
            found.append(Finding("keepers", "ok", said))
        elif sweep.state in (SweepState.RUNNING, SweepState.STOPPING, SweepState.CANCELLING):
            last = "" if silent is None else f"; {sweep.runner} was heard of {silent:.0f} s ago"
            said = f"sweep {sweep.name!r} is {sweep.state}, and no live process keeps it{last}"
            found.append(Finding("keepers", "warning", said, "run it again, or start `sweeps work`"))
    return found or [Finding("keepers", "ok", "no sweep is running")]


def living(
    workers: Iterable[WorkerRow], holding: Collection[str], now: float, is_dead: Callable[[WorkerRow], bool]
) -> list[Finding]:
    """Which workers live, and which died with a trial in hand.

    Args:
        holding: ids of workers that hold a trial.
        now: by the database's clock.
        is_dead: whether a process is known to have ended.
    """
    live, over, lost = [], 0, []
    for worker in workers:
        silent = now - (worker.seen_at or 0)
        who = f"process {worker.pid} on {worker.host}"
        if silent < SILENT_SECONDS and not is_dead(worker):
            live.append(f"{who} ({worker.device})")
        elif worker.id in holding:
            said = f"worker {who} has died or is cut off (heard of {silent:.0f} s ago) and holds a trial"
            way_out = "whoever keeps the sweep gives the trial to another worker; run the sweep if nobody does"
            lost.append(Finding("workers", "warning", said, way_out))
        else:
            over += 1
    ended = f"; {over} ended without a word in the last days" if over else ""
    return [Finding("workers", "ok", f"{len(live)} live{': ' if live else ''}{', '.join(live)}{ended}"), *lost]


# MLflow


def mlflow_server(uri: str) -> Finding:
    """The tracking server that was named, or MLflow's database."""
    shown = without_credentials(uri)
    try:
        if uri.startswith("sqlite:"):
            place = _nearest(store_path(uri))
            if not os.access(place, os.W_OK):
                return Finding("mlflow", "fault", f"{shown}: {place} cannot be written to", "name another place")
            return Finding("mlflow", "ok", f"{shown} can be written to, without a server")
        check_server(uri)
        version, ours = server_version(uri), metadata.version("mlflow")
    except (TrackingUnavailable, ValueError) as error:
        return Finding("mlflow", "fault", str(error))
    except ImportError as error:
        return Finding("mlflow", "fault", f"MLflow cannot be imported ({error})", "install it anew")
    return _compared(shown, version, ours)


def _compared(shown: str, version: str, ours: str) -> Finding:
    if version and version.partition(".")[0] != ours.partition(".")[0]:
        said = f"the server at {shown} is MLflow {version}, and {ours} is installed here"
        return Finding("mlflow", "warning", said, "bring both to one major version")
    return Finding("mlflow", "ok", f"the server at {shown} answers (MLflow {version or '?'}, here {ours})")


def local_mlflow() -> Finding:
    """Whether a local server can start."""
    version = _installed("mlflow")
    if version is None or find_spec("mlflow") is None:
        return Finding("mlflow", "fault", "MLflow is not installed", "run `pip install mlflow`, or name a server")
    try:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
    except OSError as error:
        why = f"no port of {LOOPBACK} can be had for a local MLflow server ({error.strerror or error})"
        return Finding("mlflow", "fault", why, "name a server with --tracking-uri")
    return Finding("mlflow", "ok", f"a local server can start (MLflow {version})")


# devices


def devices(has_nvidia: bool) -> Iterator[Finding]:
    """What training can run on; imports torch.

    Args:
        has_nvidia: whether this machine has an NVIDIA driver, whatever torch says.
    """
    try:
        from model.devices import devices
    except (ImportError, OSError) as error:  # the latter for a library of the system that is not there
        yield Finding("device", "fault", f"torch cannot be imported ({error})", "install it anew")
        return
    found = devices()
    for device in found:
        if not device.fault:
            yield Finding("device", "ok", f"{device.name} computes ({device.detail})")
        else:
            said = f"{device.name} ({device.detail}) is there and cannot compute ({device.fault})"
            yield Finding("device", "fault", said, "mend its driver, or train with device: cpu")
    if has_nvidia and not any(device.name.startswith("cuda") for device in found):
        said = f"this machine has an NVIDIA driver, and torch {_installed('torch')} finds no CUDA device"
        yield Finding("device", "warning", said, "install a build of torch for its CUDA version, or mend the driver")


# shared


def _declared(name: str) -> str | None:
    return metadata.metadata(DISTRIBUTION)[name] if _is_installed(DISTRIBUTION) else None


def _is_installed(name: str) -> bool:
    return _installed(name) is not None


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nearest(path: Path) -> Path:
    """The path, or the innermost folder on the way to it that exists."""
    for place in (path, *path.parents):
        try:
            if place.exists():
                return place
        except PermissionError:
            continue  # what lies in a folder that we may not look into
    return Path(path.anchor)


def _sqlite_files(home: Home, database: str | None, tracking_uri: str | None) -> list[Path]:
    url = database or home.database_url
    files = [Path(url.removeprefix("sqlite:///"))] if url.startswith("sqlite:///") else []
    return files if tracking_uri else [*files, home.mlflow / DATABASE]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
