"""The `sweeps` command: parses, prints, and calls the service."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from model import milestones
from model.corpus.annotations import CorpusError
from model.diagnosis import takeoff_epoch
from model.findings import finite
from model.types import BUILT_IN
from sweeps import display, ramp, runner, service
from sweeps.errors import SweepError
from sweeps.mirror import Mirror
from sweeps.processes import stop_signals, this_runner
from sweeps.range_test import PICTURE
from sweeps.records import DecisionRow, SweepRow
from sweeps.settings import Home, find_home
from sweeps.spec import load_spec
from sweeps.store import Store
from sweeps.summary import best_trial, command_of, config_of, description, parameters, result, sentence_about
from sweeps.worker import Job
from tracking.links import experiment_url, without_credentials
from tracking.server import ServerDidNotStart, check_server, local_server, store_uri
from tracking.writer import ExperimentWriter, TrackingRefused, TrackingUnavailable

app = typer.Typer(
    help="Hyperparameter sweeps for CTC sequence models, every curve in MLflow.\n\n"
    "Begin with `sweeps run examples/demo.yaml`; `sweeps run SPEC --dry-run` checks a spec and its corpus first.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Everything written lies here. Default: SWEEPS_HOME, else ./.sweeps")
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database", help="Database URL (sqlite:/// or postgresql://). Default: SQLite in home")
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        envvar="MLFLOW_TRACKING_URI",
        help="MLflow server to use. Default: a local one is started, its database in home",
    ),
]
ALARMED = 3
"""Exit code of `sweeps run` where the sweep alarmed and paused."""

MIRROR_SECONDS = 20.0
"""What the mirror gets at the end to ship the rest."""

JsonOption = Annotated[bool, typer.Option("--json", help="The last line on stdout is one JSON object")]


@dataclass(frozen=True)
class Tracking:
    """Where the runs go and where a person sees them."""

    uri: str
    """What the mirror writes to."""
    shown: str
    """What is reported: the given URI, or that of the local MLflow database."""
    pages: str
    """Base address of the pages."""


@contextmanager
def tracking_server(home: Home, given: str | None, port: int | None = None) -> Iterator[Tracking]:
    """The given MLflow server, checked, or a local one that lives as long as this context."""
    if given and given.startswith("http"):
        check_server(given)
        yield Tracking(given, without_credentials(given), given)
    elif given:
        check_server(given)
        yield Tracking(given, given, "")
    else:
        with local_server(home.mlflow, port=port) as server:
            yield Tracking(server.url, store_uri(home.mlflow), server.url)


@app.command()
def run(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC", help="The sweep, in YAML; examples/ holds some")],
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    trials: Annotated[int | None, typer.Option(help="Instead of the spec's budget.trials")] = None,
    workers: Annotated[int | None, typer.Option(help="Instead of the spec's workers")] = None,
    trainer: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="Your own trainer instead of the built-in one: NAME(config, corpus) makes it; package.module:NAME "
            "works too. Its code is run, so no spec can name it. docs/how-to/own-trainer.md has an example",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train on a corpus in which the check finds a fatal fault")
    ] = False,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check spec and corpus, print the plan, stop")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep, or go on with it.

    A sweep that was stopped or killed goes on when the same command is given again: same trials, same numbers.
    Raise its budget and run it again for more trials. Ctrl-C hands every trial back and ends cleanly.

    A sweep in which nothing takes off pauses, says why, and ends with exit code 3; the same command goes on.
    """
    changes = {name: value for name, value in (("trials", trials), ("workers", workers)) if value is not None}
    spec = load_spec(spec_file, **changes)
    where = find_home(home)
    words = sys.stderr if as_json else sys.stdout
    for warning in spec.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    with corpus_progress(words) as progress:
        prepared = service.prepare(spec, where, progress, trainer, force=force)
    for note in prepared.notes:
        print(f"corpus: {note}", file=words, flush=True)
    if dry_run:
        report = plan_report(prepared, where)
        print_plan(report, words)
        if as_json:
            print(json.dumps(report))
        return
    if tracking_uri:
        check_server(tracking_uri)  # before anything is written
    with stopping() as stop, opened(where, database) as store:
        if accept_proposal:
            service.proposal_of(service.find_sweep(store, spec.name))
        sweep = service.open_sweep(store, prepared)
        outcome = run_prepared(
            *(store, sweep, prepared, where, database, tracking_uri, stop, as_json, words),
            accept_proposal=accept_proposal,
            skip_range_test=skip_range_test,
        )
    raise typer.Exit(outcome)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    stop = threading.Event()
    with stop_signals(stop):
        yield stop


@contextmanager
def opened(home: Home, database: str | None) -> Iterator[Store]:
    store = service.load_home_store(home, database)
    try:
        yield store
    finally:
        store.close()


def run_prepared(
    store: Store,
    sweep: SweepRow,
    prepared: service.Prepared,
    home: Home,
    database: str | None,
    tracking_uri: str | None,
    stop: threading.Event,
    as_json: bool,
    words: TextIO,
    *,
    accept_proposal: bool = False,
    skip_range_test: bool = False,
) -> int:
    """Run the sweep, print what it came to, keep the dashboard open for a person; returns the exit code."""
    spec = prepared.spec
    trials = store.trials(sweep.id)
    with ExitStack() as stack:
        hold = stack.enter_context(ExitStack())
        # Not over, though nothing is left to do: its runner was killed between the last trial and the end.
        planned = replace(sweep, budget=spec.budget.model_dump())
        work = accept_proposal or runner.has_work(planned, trials) or not sweep.state.terminal
        if work:
            me = this_runner()  # held first: nothing of a sweep that another process runs is changed
            hold.enter_context(runner.holding(store, sweep, me))
        tracking = stack.enter_context(tracking_server(home, tracking_uri))
        mirror = make_mirror(store, sweep, prepared, home, tracking)
        try:
            if work and not stop.is_set():
                store.update_budget(sweep.id, spec.budget.model_dump())
                if accept_proposal:
                    service.accept_proposal(store, sweep, spec)
                mirror.ship()  # a refusal (a deleted experiment, say) shows before anything is trained
                print(f"dashboard: {dashboard(store, sweep, tracking)}", file=words, flush=True)
                job = Job(
                    worker="",
                    database_url=store.url,
                    sweep=spec.name,
                    spec=spec,
                    corpus=prepared.corpus_config,
                    corpus_hash=prepared.corpus.hash,
                    sweep_key=f"{sweep.name}@{sweep.created_at:.3f}",
                    checkpoints=home.checkpoints(spec.name),
                    scans=home.scans,
                    log=home.logs(spec.name),
                    trainer=prepared.trainer,
                )
                if spec.range_test and not skip_range_test and ramp.is_due(sweep, trials):
                    range_test(store, sweep, prepared, home, stop, words)
                seen = {t.id: t.epochs for t in trials if not t.state.terminal}
                with display.view(store.epochs, plain=as_json, out=words, seen=seen) as view:
                    runner.run(store, sweep, spec, job, me, mirror, view, stop)
        finally:
            finish_mirror(mirror)
        hold.close()  # looking at the dashboard spends none of the sweep's hours
        sweep = service.find_sweep(store, spec.name)
        stays_open = not stop.is_set() and not as_json and display.interactive() and bool(tracking.pages)
        # A local server that ends with this command has no address to print.
        address = f"{dashboard(store, sweep, tracking)}\n  " if stays_open or tracking_uri else ""
        command = service.ui_command(sweep.name, home, database, tracking_uri)
        print_outcome(store, sweep, prepared, f"{address}open again with: {command}", words)
        if as_json:
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
    store: Store, sweep: SweepRow, prepared: service.Prepared, home: Home, stop: threading.Event, words: TextIO
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
    for line in ramp.keep(store, sweep, spec, test):
        say(line)
    say(f"its picture is {pictures / PICTURE}")


def finish_mirror(mirror: Mirror) -> None:
    if not mirror.finish(MIRROR_SECONDS):
        rest = "; what could not be sent is kept, and sent when this sweep is run again" if not mirror.refused else ""
        print(f"warning: MLflow did not take everything ({mirror.trouble}){rest}", file=sys.stderr)


def make_mirror(store: Store, sweep: SweepRow, prepared: service.Prepared, home: Home, tracking: Tracking) -> Mirror:
    """The mirror of this sweep into that server."""
    from tracking.mlflow_writer import open_experiment

    tags = {
        "corpus": str(prepared.corpus.folder),
        "corpus_hash": prepared.corpus.hash,
        "vocabulary_hash": prepared.corpus.vocabulary.hash,
        "trainer": prepared.facts["trainer"],
        "git_commit": git_commit(),
    }

    def open_() -> ExperimentWriter:
        return open_experiment(tracking.uri, sweep.name)

    def describe() -> str:
        now, rows = service.find_sweep(store, sweep.name), store.trials(sweep.id)
        found = service.conclusions_of(store, now, lessons=now.state != "RUNNING")
        return description(now, rows, best_command(now, store, prepared), found)

    return Mirror(store, sweep, prepared.spec, tags, open_, describe, home.pictures(sweep.name))


def best_command(sweep: SweepRow, store: Store, prepared: service.Prepared) -> str | None:
    best = best_trial(store.trials(sweep.id))
    return command_of(sweep, best, prepared.spec, prepared.corpus_config) if best else None


def git_commit() -> str:
    """The commit of the working directory, for the record; empty where there is none."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False, encoding="utf-8"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def dashboard(store: Store, sweep: SweepRow, tracking: Tracking) -> str:
    experiment = service.find_sweep(store, sweep.name).experiment_id
    if not tracking.pages:
        return f"mlflow ui --backend-store-uri {tracking.uri}"
    return experiment_url(tracking.pages, experiment) if experiment else without_credentials(tracking.pages)


def print_outcome(
    store: Store, sweep: SweepRow, prepared: service.Prepared, dashboard_lines: str, words: TextIO
) -> None:
    rows, command = store.trials(sweep.id), best_command(sweep, store, prepared)
    found = service.conclusions_of(store, sweep)
    display.print_summary(sweep, rows, store.epochs, command, dashboard_lines, found, words)


def wait_for_enter(stop: threading.Event) -> None:
    """Until Enter, Ctrl-C or the end of input."""
    done = threading.Event()

    def read() -> None:
        sys.stdin.readline()
        done.set()

    threading.Thread(target=read, name="enter", daemon=True).start()
    while not (done.wait(0.2) or stop.is_set()):
        pass


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(metavar="SWEEP", help="Default: the newest sweep")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    port: Annotated[int | None, typer.Option(help="Port of the local server. Default: a free one")] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser as well")] = False,
) -> None:
    """Open a sweep's dashboard: starts the MLflow server on this home until Ctrl-C, prints the address."""
    where = find_home(home)
    with stopping() as stop, opened(where, database) as store:
        known = store.sweeps()
        if name is None and not known:
            raise SweepError(f"{where.root}: holds no sweep yet; run one, or name the right folder with --home")
        sweep = service.find_sweep(store, name or known[-1].name)
        with tracking_server(where, tracking_uri, port) as tracking:
            address = dashboard(store, sweep, tracking)
            print(address, flush=True)
            if browser and tracking.pages:
                webbrowser.open(address)
            if tracking_uri is None:
                print("Until Enter or Ctrl-C." if sys.stdin.isatty() else "Until Ctrl-C.", flush=True)
                if sys.stdin.isatty():
                    wait_for_enter(stop)
                else:
                    while not stop.wait(0.5):  # in steps: on Windows an endless wait hears no Ctrl-C
                        pass


@app.command()
def show(
    path: Annotated[str | None, typer.Argument(metavar="[SWEEP[/TRIAL]]", help="A trial by number or name")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """List sweeps, or show one sweep, or one trial with its epochs."""
    where = find_home(home)
    if database is None and not (where.root / "sweeps.db").exists():
        raise SweepError(f"{where.root}: holds no sweep yet; run one, or name the right folder with --home")
    with opened(where, database) as store:
        if path is None:
            listing = [{"sweep": s.name, "state": s.state.value, "reason": s.reason} for s in store.sweeps()]
            if as_json:
                print(json.dumps(listing))
            for row in [] if as_json else listing:
                print(f"{row['sweep']}: {row['state']}  {row['reason']}")
        elif "/" in path:
            show_trial(store, path, as_json)
        else:
            sweep = service.find_sweep(store, path)
            spec, corpus = service.spec_of(sweep), service.corpus_of(sweep)
            words = service.ui_command(sweep.name, where, database, tracking_uri)
            uri = without_credentials(tracking_uri) if tracking_uri else store_uri(where.mlflow)
            rows = store.trials(sweep.id)
            found = service.conclusions_of(store, sweep)
            what = result(sweep, rows, spec, corpus, uri, words, found)
            if as_json:
                print(json.dumps(what, allow_nan=False))
            else:
                command = what["best"] and what["best"]["command"]
                display.print_summary(sweep, rows, store.epochs, command, f"open with: {words}", found, sys.stdout)


def show_trial(store: Store, path: str, as_json: bool) -> None:
    sweep, trial = service.find_trial(store, path)
    rows = store.epochs(trial.id)
    spec, corpus = service.spec_of(sweep), service.corpus_of(sweep)
    command = command_of(sweep, trial, spec, corpus) if trial.hyperparameters else None
    judgement = service.judgement_of(sweep, trial, rows)
    findings = judgement.findings if judgement else ()
    epochs_planned = len(rows) if trial.state.terminal else config_of(spec, trial).epochs
    decision = store.decision(trial.id)
    standings = milestones.met(milestones.parse(spec.milestones), [r.report().wer for r in rows], epochs_planned)
    if as_json:
        epochs = [{"epoch": r.epoch, "phase": r.phase, **r.metrics} for r in rows]
        what: dict[str, Any] = {
            "sweep": sweep.name,
            "number": trial.number,
            "name": trial.name,
            "trial_state": trial.state.value,
            "verdict": trial.verdict,
            "rule": trial.rule,
            "reason": trial.reason,
            "evidence": trial.evidence,
            "decision": decision and decision.as_json(),
            "best_wer": trial.best_wer,
            "hyperparameters": trial.hyperparameters,
            "overrides": trial.overrides,
            "command": command,
            "findings": [finding.as_json() for finding in findings],
            "milestones": finite([asdict(standing) for standing in standings]),
            "epochs": epochs,
        }
        print(json.dumps(what, allow_nan=False))
        return
    print(f"{sweep.name}/{trial.name or trial.number}: {trial.state.value} {trial.verdict or ''}")
    print(f"  {parameters(trial)}\n  {sentence_about(trial)}")
    if decision:
        for line in decision_lines(decision):
            print(f"  {line}")
    elif trial.evidence:
        print(f"  {numbers(trial.evidence)}")
    takeoff = takeoff_epoch([r.report().wer for r in rows], sweep.facts["constant_wer"])
    print(f"  took off at epoch {takeoff}" if takeoff else "  has not taken off")
    for row in rows:
        print(f"  {display.epoch_line(row)}")
    for finding in findings:
        if finding.severity != "info":
            print(f"  {finding.severity}: {finding.code}: {finding.evidence} {finding.advice}")
    for line in milestones.lines(standings) if rows else []:
        print(f"  {line}")
    if command:
        print(f"  {command}")


def decision_lines(decision: DecisionRow) -> list[str]:
    """What condemned a trial: what was measured beside what it was held against, and against whom."""
    audited = decision.action == "audited"
    lines = [f"condemned at epoch {decision.epoch} by {decision.rule}, as {decision.verdict}"]
    if audited:
        lines = [f"{lines[0]}, and audited: it ran on all the same", decision.reason, decision.counterfactual]
    lines.append(f"measured   {numbers(decision.numbers)}")
    if decision.thresholds:
        lines.append(f"against    {numbers(decision.thresholds)}")
    if decision.siblings:
        lines.append(f"compared with trials {', '.join(map(str, decision.siblings))}")
    return [line for line in lines if line]


def numbers(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name}={value:.4g}" for name, value in values.items())


@contextmanager
def corpus_progress(out: TextIO) -> Iterator[service.Progress]:
    """A bar for reading or generating a corpus, on a terminal; elsewhere silence."""
    with Progress(console=Console(file=out), transient=True, disable=not out.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield advance


def plan_report(prepared: service.Prepared, home: Home) -> dict[str, Any]:
    spec, corpus = prepared.spec, prepared.corpus
    plan = service.plan(prepared)
    return {
        "sweep": spec.name,
        "home": str(home.root),
        "corpus": {
            "folder": str(corpus.folder),
            "hash": corpus.hash,
            "sentences": {s.name: len(s) for s in (corpus.train, corpus.dev, corpus.test) if s is not None},
            "width": corpus.width,
            "modalities": {m.name: m.width for m in corpus.modalities},
            "classes": len(corpus.vocabulary),
            "vocabulary_hash": corpus.vocabulary.hash,
            "notes": list(prepared.notes),
            "splits": corpus.facts["splits"],
        },
        "constant_wer": prepared.floors.constant_wer,
        "constant_sentence": prepared.floors.constant_sentence,
        "space": {name: bounds.model_dump() for name, bounds in spec.space.ranges().items()},
        "first_trials": {p.name: {**p.hyperparameters, **p.overrides} for p in spec.planned()},
        "budget": spec.budget.model_dump(),
        "workers": spec.workers,
        "trainer": prepared.facts["trainer"],
        "parameters": plan.parameters,
        "seconds_per_epoch": plan.seconds_per_epoch,
        "epochs_at_most": plan.epochs,
        "hours_at_most": plan.hours,
        "disk_bytes": plan.disk_bytes,
    }


def duration(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes" if hours > 0.03 else "under 2 minutes"


def print_plan(report: dict[str, Any], out: TextIO) -> None:
    corpus = report["corpus"]
    sentences = ", ".join(f"{n} {split}" for split, n in corpus["sentences"].items())
    modalities = ", ".join(f"{name} {width}" for name, width in corpus["modalities"].items())
    space = [f"{n} {b['low']:g}..{b['high']:g}{' log' if b['log'] else ''}" for n, b in report["space"].items()]
    size, epoch = f"{report['parameters'] / 1e6:.2f}", f"about {report['seconds_per_epoch']:.1f} s an epoch"
    lines = [
        f"sweep      {report['sweep']}, everything under {report['home']}",
        f"corpus     {corpus['folder']}: {sentences}",
        f"features   {corpus['width']} wide ({modalities}), {corpus['classes']} classes",
        f"floor      {report['constant_wer']:.1%} WER by the best constant sentence, {report['constant_sentence']!r}",
        f"space      {'; '.join(space)}",
        f"trials     {report['budget']['trials']} on {report['workers']} workers, of these named: "
        + (", ".join(report["first_trials"]) or "none"),
        f"student    {size} M parameters, {epoch} (measured: a few untrained steps, and dev once)"
        if report["trainer"] == BUILT_IN
        else f"trainer    {report['trainer']}, {size} M numbers in its state, {epoch} (measured: a few steps; dev is "
        "not among them)",
        f"cost       at most {report['epochs_at_most']} epochs, {duration(report['hours_at_most'])}, if nothing is "
        f"pruned; {report['disk_bytes'] / 1e6:.0f} MB of disk",
        "dry run: nothing was trained",
    ]
    for line in lines:
        print(line, file=out)


def main() -> None:
    """The entry point: expected errors become one line and exit code 2."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the mirror says itself, in one line, that MLflow is away
    try:
        app()
    except (SweepError, CorpusError, TrackingUnavailable, TrackingRefused, ServerDidNotStart, ValueError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; free or correct that place, or name another", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
