"""`sweeps work`: workers for the sweeps of a database, on this machine."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from sweeps import channels, engines, outbox, service
from sweeps.commands.options import (
    LEASE_SECONDS,
    CheckpointsOption,
    DatabaseOption,
    HomeOption,
    LeaseOption,
    MissingTrackingOption,
    NotifyOption,
    ShareOption,
    TrackingOption,
    opened,
    stopping,
)
from sweeps.display import EventLog
from sweeps.engines import Engine, EngineName, Resources
from sweeps.errors import DatabaseUnavailable, SweepError
from sweeps.house import AT_WORK, House
from sweeps.keeper import BEAT_SECONDS, News, has_work, no_news
from sweeps.mirror import Mirror
from sweeps.patience import wait
from sweeps.preparing import corpus_config_here
from sweeps.processes import this_runner
from sweeps.records import SweepRow
from sweeps.runner import POLL_SECONDS, share_here
from sweeps.settings import Home, find_home
from sweeps.shipping import Tracking, mirror_of, tracking_server
from sweeps.spec import spec_of
from sweeps.store import Store
from sweeps.trainers import load_trainer, resolved
from sweeps.worker import Job

log = logging.getLogger(__name__)

LET_GO_SECONDS = 60.0
"""What the keeper of a sweep gets to complete it, or to let it go, once our workers have nothing left to do."""


def work(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SWEEP]...", help="Default: every sweep")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that train, a trial each. Default: the workers_per_device of the sweep, if one is named",
        ),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="Where they run: on this machine, or wherever Ray finds them a place")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|auto", help="With ray: the cluster. Default: one is started on this machine"),
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="With ray: cores that are set aside for each worker")] = 1.0,
    gpus_per_worker: Annotated[
        float, typer.Option(help="With ray: GPUs for each worker, 0.5 where two share one; with 0 it sees none")
    ] = 0.0,
    trainer: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:NAME", help="For sweeps with a trainer of their own: where it is here"),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Where the corpus is on this machine, if not where the sweep was made")
    ] = None,
    checkpoints: CheckpointsOption = None,
    share_checkpoints: ShareOption = False,
    lease_seconds: LeaseOption = LEASE_SECONDS,
    allow_missing_tracking: MissingTrackingOption = False,
    notify: NotifyOption = None,
    until_done: Annotated[bool, typer.Option("--until-done", help="End once no sweep has a trial left")] = False,
) -> None:
    """Train the trials of sweeps that run, until Ctrl-C: any number of these, on any machine that reaches the database.

    Ctrl-C or SIGTERM drops the epochs in hand and hands the trials back; another worker goes on with them.

    One of these processes keeps each sweep: it takes trials from workers that died, and ships to MLflow. Where
    --database names a shared one, only those that are given a --tracking-uri ship.
    """
    ships = tracking_uri is not None or database is None
    where, me = find_home(home), replace(this_runner(), yields=1 if ships else 2)
    resources = Resources(address, cpus_per_worker, gpus_per_worker)
    if share_checkpoints and tracking_uri is None:
        raise SweepError("--share-checkpoints needs --tracking-uri: a server that every machine reaches")
    trainer = resolved(trainer)
    if trainer is not None:
        load_trainer(trainer)
    told = channels.channels_of(where.notify, notify)
    with stopping() as stop, opened(where, database) as store, outbox.sending(store, told) as messages:
        for name in names or ():
            service.find_sweep(store, name)
        job = Job(
            worker="",
            database_url=store.url,
            sweeps=tuple(names or ()),
            home=where,
            checkpoints=checkpoints or where.checkpoints,
            log=where.workers,
            lease_seconds=lease_seconds,
            trainer=trainer,
            corpus=corpus,
            until_done=until_done,
            share_through=tracking_uri if share_checkpoints else None,
        )
        count = workers or _workers_here(store, job, engine, stop)
        with ExitStack() as started:

            @cache
            def tracking() -> Tracking:
                """A local server is started when the first sweep is kept, not by every process that works."""
                required = not allow_missing_tracking
                return started.enter_context(tracking_server(where, tracking_uri, required=required))

            if not ships:
                print("no --tracking-uri: another process ships to MLflow, or `sweeps mirror` does", flush=True)
            elif tracking_uri is not None:
                tracking()
            running = started.enter_context(engines.opened(engine, job, count, me, resources))
            fine = work_on(store, where, job, running, tracking if ships else None, stop, messages.note)
    raise typer.Exit(130 if stop.is_set() else 0 if fine else 1)


def work_on(
    store: Store,
    home: Home,
    job: Job,
    workers: Engine,
    tracking: Callable[[], Tracking] | None,
    stop: threading.Event,
    news: News = no_news,
) -> bool:
    """Until `stop` is set, or the workers have ended; False if one of them could not work on a sweep."""

    def mirrored(sweep: SweepRow, is_kept: Callable[[], bool]) -> Mirror:
        assert tracking is not None
        return mirror_of(store, sweep, home, tracking(), may_ship=is_kept)

    make_mirror = None if tracking is None else mirrored
    house = House(store, workers.runner, job.lease_seconds, job.checkpoints, make_mirror, news)
    events = EventLog(store, lambda event: event.worker is None or event.worker in workers.ids)
    dead: set[str] = set()
    pass_at = 0.0
    print(f"working on {', '.join(job.sweeps) or 'every sweep'}; logs are in {job.log}", flush=True)
    # At once, whatever a pass over the sweeps waits for: a mirror that ends, a server that starts.
    threading.Thread(target=_pass_on, args=(stop, workers), name="stop", daemon=True).start()
    try:
        until = math.inf
        while not stop.is_set() and time.monotonic() < until:
            if workers.ended:
                until = min(until, time.monotonic() + LET_GO_SECONDS)
                if not _are_to_be_completed(store, job.sweeps):
                    break
            dead |= workers.look()
            wait(POLL_SECONDS, stop.is_set)
            if not dead and time.monotonic() < pass_at:
                continue
            pass_at = time.monotonic() + BEAT_SECONDS
            try:
                house.make_pass(service.sweeps_named(store, job.sweeps), dead)
                if events.show(service.sweeps_named(store, job.sweeps), sys.stdout):
                    workers.thrive()
                dead = set()
            except DatabaseUnavailable as error:
                log.warning("%s; trying again", error)
    finally:  # whatever went wrong: nobody else may keep these sweeps while this process beats
        workers.end()
        try:
            house.close(workers.ids)
            events.show(service.sweeps_named(store, job.sweeps), sys.stdout)
        except DatabaseUnavailable as error:
            log.warning("%s; the trials of this process wait until their leases run out", error)
    for name, trouble in house.trouble.items():
        print(f"warning: {name}: MLflow did not take everything ({trouble}); `sweeps mirror` sends it", file=sys.stderr)
    return not events.refused


def _workers_here(store: Store, job: Job, engine: EngineName, stop: threading.Event) -> int:
    """How many workers, where nobody said: what the one sweep that is named leaves to the device of this machine."""
    if engine != "local" or len(job.sweeps) != 1:
        return 1
    sweep = service.find_sweep(store, job.sweeps[0])
    spec = spec_of(sweep)
    if spec.workers_per_device == 1:
        return 1
    share = share_here(spec, lambda: corpus_config_here(sweep, job.home, job.corpus), job.trainer, job.home, stop)
    print(f"workers: {share.workers} ({share.why})", flush=True)
    return share.workers


def _are_to_be_completed(store: Store, names: Sequence[str]) -> bool:
    """Whether a sweep has no trial left, and still runs: its keeper has not seen that yet, or was just told to stop,
    and then it is ours to complete and to ship.
    """
    try:
        sweeps = [sweep for sweep in service.sweeps_named(store, names) if sweep.state in AT_WORK]
        return any(not has_work(sweep, store.siblings(sweep)) for sweep in sweeps)
    except DatabaseUnavailable:
        return True


def _pass_on(stop: threading.Event, workers: Engine) -> None:
    stop.wait()
    workers.ask_to_stop()
