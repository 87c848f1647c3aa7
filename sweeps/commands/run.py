"""`sweeps run`: run a sweep, or go on with it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Protocol, TextIO

import typer

from sweeps import channels, display, keeper, outbox, preparing, ramp, runner, service
from sweeps.channels import Channel
from sweeps.commands.dry_run import plan_report, print_plan
from sweeps.commands.options import (
    LEASE_SECONDS,
    CheckpointsOption,
    DatabaseOption,
    ForceOption,
    HomeOption,
    JsonOption,
    LeaseOption,
    MissingTrackingOption,
    NotifyOption,
    ShareOption,
    TrackingOption,
    TrainerOption,
    corpus_progress,
    opened,
    stopping,
    wait_for_enter,
)
from sweeps.forecasting import forecast_of
from sweeps.mirror import Mirror
from sweeps.patience import patiently
from sweeps.processes import this_runner
from sweeps.range_test import PICTURE
from sweeps.records import SweepRow
from sweeps.settings import Home, find_home
from sweeps.sharing import decided
from sweeps.shipping import dashboard, mirror_of, tracking_server
from sweeps.spec import load_spec
from sweeps.states import SweepState
from sweeps.store import Store
from sweeps.summary import best_trial, command_of, result
from sweeps.warm_start import in_words as warm_started
from sweeps.worker import Job
from tracking.server import check_server
from tracking.writer import TrackingUnavailable

ALARMED = 3
"""Exit code of `sweeps run` where the sweep alarmed and paused."""


NOBODY: Mapping[str, Channel] = MappingProxyType({})


class Ending(Protocol):
    """What a command does once every trial of its sweep is over."""

    def conclude(self) -> None:
        """While the sweep is this process's, and before the last of it goes to MLflow."""

    def tell(self) -> dict[str, Any]:
        """Print what came of it; returns it as JSON, instead of the sweep's."""


MIRROR_SECONDS = 20.0
"""What the mirror gets at the end to ship the rest."""


def run(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep, in YAML; examples/ holds some")],
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    trials: Annotated[int | None, typer.Option(help="Instead of the spec's budget.trials")] = None,
    workers: Annotated[int | None, typer.Option(help="Instead of the spec's workers and workers_per_device")] = None,
    trainer: TrainerOption = None,
    force: ForceOption = False,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SWEEP", help="Instead of the spec's warm_start: show the sampler the trials of this sweep"
        ),
    ] = None,
    skip_range_test: Annotated[
        bool, typer.Option("--skip-range-test", help="Begin without the learning-rate range test of the spec")
    ] = False,
    accept_proposal: Annotated[
        bool,
        typer.Option(
            "--accept-proposal",
            help="Go on after an alarm with the learning rates that it proposed, and one trial there",
        ),
    ] = False,
    allow_missing_tracking: MissingTrackingOption = False,
    checkpoints: CheckpointsOption = None,
    share_checkpoints: ShareOption = False,
    lease_seconds: LeaseOption = LEASE_SECONDS,
    notify: NotifyOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check spec and corpus, print the plan, stop")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep, or go on with it.

    A sweep that was stopped or killed goes on when the same command is given again: same trials, same numbers.
    Raise its budget and run it again for more trials. Ctrl-C hands every trial back and ends cleanly.

    A sweep in which nothing takes off pauses, says why, and ends with exit code 3; the same command goes on.
    """
    given = {"trials": trials, "workers": workers, "warm_start": warm_start or None}
    if workers is not None:
        given["workers_per_device"] = 1
    spec = load_spec(spec_file, **{name: value for name, value in given.items() if value is not None})
    where = find_home(home)
    told = channels.channels_of(where.notify, notify)
    words = sys.stderr if as_json else sys.stdout
    for warning in spec.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    with corpus_progress(words) as progress:
        prepared = preparing.prepare(spec, where, progress, trainer, force=force)
    for note in prepared.notes:
        print(f"corpus: {note}", file=words, flush=True)
    if dry_run:
        share = runner.share_here(spec, lambda: prepared.corpus_config, prepared.trainer, where, threading.Event())
        report = plan_report(replace(prepared, spec=decided(spec, share.workers)), where)
        print_plan(report, words)
        if as_json:
            print(json.dumps(report))
        return
    if tracking_uri and not allow_missing_tracking:
        check_server(tracking_uri)  # before anything is written
    with stopping() as stop, opened(where, database) as store:
        if accept_proposal:
            service.proposal_of(service.find_sweep(store, spec.name))
        sweep = preparing.open_sweep(store, prepared, force=force)
        if said := warm_started(sweep):
            print(said, file=words, flush=True)
        outcome = run_prepared(
            *(store, sweep, prepared, where, database, tracking_uri, stop, as_json, words),
            accept_proposal=accept_proposal,
            skip_range_test=skip_range_test,
            allow_missing_tracking=allow_missing_tracking,
            lease_seconds=lease_seconds,
            checkpoints=checkpoints,
            share_checkpoints=share_checkpoints,
            told=told,
        )
    raise typer.Exit(outcome)


def run_prepared(
    store: Store,
    sweep: SweepRow,
    prepared: preparing.Prepared,
    home: Home,
    database: str | None,
    tracking_uri: str | None,
    stop: threading.Event,
    as_json: bool,
    words: TextIO,
    *,
    accept_proposal: bool = False,
    skip_range_test: bool = False,
    allow_missing_tracking: bool = False,
    lease_seconds: float = LEASE_SECONDS,
    checkpoints: Path | None = None,
    share_checkpoints: bool = False,
    told: Mapping[str, Channel] = NOBODY,
    ending: Ending | None = None,
) -> int:
    """Run the sweep, print what it came to, keep the dashboard open for a person; returns the exit code."""
    spec = prepared.spec
    trials = store.trials(sweep.id)
    with ExitStack() as stack:
        messages = stack.enter_context(outbox.sending(store, told))
        hold = stack.enter_context(ExitStack())
        lost = threading.Event()
        # Not over, though nothing is left to do: its runner was killed between the last trial and the end.
        planned = replace(sweep, budget=spec.budget.model_dump())
        work = accept_proposal or keeper.has_work(planned, trials) or not sweep.state.terminal
        if work or ending:
            me = this_runner()  # held first: nothing of a sweep that another process runs is changed
            lost = hold.enter_context(keeper.holding(store, sweep, me))
        tracking = stack.enter_context(tracking_server(home, tracking_uri, required=not allow_missing_tracking))
        mirror = mirror_of(store, sweep, home, tracking, may_ship=lambda: not lost.is_set())
        try:
            if (work or ending) and not stop.is_set():
                store.update_budget(sweep.id, spec.budget.model_dump())
                if accept_proposal:
                    service.accept_proposal(store, sweep, spec)
                try:
                    mirror.ship()  # a refusal (a deleted experiment, say) shows before anything is trained
                except TrackingUnavailable as error:
                    if not allow_missing_tracking:
                        raise
                    print(f"warning: MLflow is away, rows wait until it is back: {error}", file=sys.stderr)
                print(f"dashboard: {dashboard(store, sweep, tracking)}", file=words, flush=True)
                job = Job(
                    worker="",
                    database_url=store.url,
                    sweeps=(spec.name,),
                    home=home,
                    checkpoints=checkpoints or home.checkpoints,
                    log=home.logs(spec.name),
                    lease_seconds=lease_seconds,
                    trainer=prepared.trainer,
                    share_through=tracking.uri if share_checkpoints else None,
                )
                if spec.range_test and not skip_range_test and ramp.is_due(sweep, trials):
                    range_test(store, sweep, prepared, home, stop, words)
                seen = {t.id: t.epochs for t in trials if not t.state.terminal}
                if work:
                    share = runner.share_here(spec, lambda: prepared.corpus_config, prepared.trainer, home, stop)
                    if spec.workers_per_device == "auto":
                        print(f"workers: {share.workers} ({share.why})", file=words, flush=True)
                    with display.view(
                        store.epochs,
                        plain=as_json,
                        out=words,
                        seen=seen,
                        forecast=lambda: forecast_of(store, service.find_sweep(store, spec.name)).sentence,
                    ) as view:
                        here = decided(spec, share.workers)
                        runner.run(store, sweep, here, job, me, mirror, view, stop, messages.note)
                if ending and store.sweep_state(sweep.id) is SweepState.COMPLETE:
                    ending.conclude()
        finally:
            finish_mirror(mirror)
        hold.close()  # looking at the dashboard spends none of the sweep's hours
        sweep = service.find_sweep(store, spec.name)
        stays_open = not stop.is_set() and not as_json and display.interactive() and bool(tracking.pages)
        # A local server that ends with this command has no address to print.
        address = f"{dashboard(store, sweep, tracking)}\n  " if stays_open or tracking_uri else ""
        command = service.ui_command(sweep.name, home, database, tracking_uri)
        print_outcome(store, sweep, prepared, f"{address}open again with: {command}", words)
        told_at_end = ending and ending.tell()
        if as_json and told_at_end is not None:
            print(json.dumps(told_at_end, allow_nan=False), flush=True)
        elif as_json:
            rows = store.trials(sweep.id)
            found = service.conclusions_of(store, sweep)
            what = result(sweep, rows, spec, prepared.corpus_config, tracking.shown, command, found)
            print(json.dumps(what, allow_nan=False), flush=True)
        if stays_open:
            print("\nThe dashboard stays open until Enter or Ctrl-C.", flush=True)
            wait_for_enter(stop)
    if sweep.state == "FAILED":
        return 1
    if stop.is_set() and sweep.state != "COMPLETE":
        return 130
    return ALARMED if sweep.state == "PAUSED" else 0


def range_test(
    store: Store, sweep: SweepRow, prepared: preparing.Prepared, home: Home, stop: threading.Event, words: TextIO
) -> None:
    """Stage 0: find the learning rates worth trying, and say so; nothing is kept of one that is interrupted."""
    spec, pictures = prepared.spec, home.pictures(sweep.name)

    def say(line: str) -> None:
        print(f"range test: {line}", file=words, flush=True)

    if why := ramp.reason_to_skip(spec, prepared.facts["trainer"], prepared.corpus):
        say(why)
        return
    say("the learning rate rises step by step, before the first trial (--skip-range-test goes without)")
    task = ramp.Ramp(spec, prepared.corpus_config, home.scans, home.logs(sweep.name) / "range-test.log", pictures)
    with corpus_progress(words) as progress:
        test = runner.run_range_test(task, stop, partial(progress, "range test"))
    if test is None:
        say("interrupted; it is made anew when the sweep is run again")
        return
    # Minutes of work: a database that blinks must not lose them.
    for line in patiently(lambda: ramp.keep(store, sweep, spec, test), stop.is_set):
        say(line)
    say(f"its picture is {pictures / PICTURE}")


def finish_mirror(mirror: Mirror) -> None:
    if not mirror.finish(MIRROR_SECONDS):
        rest = "; what could not be sent is kept, and sent when this sweep is run again" if not mirror.refused else ""
        print(f"warning: MLflow did not take everything ({mirror.trouble}){rest}", file=sys.stderr)


def print_outcome(
    store: Store, sweep: SweepRow, prepared: preparing.Prepared, dashboard_lines: str, words: TextIO
) -> None:
    rows = store.trials(sweep.id)
    best = best_trial(rows)
    command = command_of(sweep, best, prepared.spec, prepared.corpus_config) if best else None
    found = service.conclusions_of(store, sweep)
    latest = store.latest_epochs(sweep.id)
    display.print_summary(sweep, rows, latest, command, dashboard_lines, found, words)
