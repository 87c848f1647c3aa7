"""`sweeps show`: what sweeps and trials came to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, TypeVar

import typer

from model import milestones
from model.diagnosis import takeoff_epoch
from model.findings import finite
from sweeps import display, service
from sweeps.commands.options import (
    DatabaseOption,
    HomeOption,
    JsonOption,
    ServerOption,
    TrackingOption,
    reached,
)
from sweeps.errors import SweepError
from sweeps.interface import PAGE, Sweeps
from sweeps.records import DecisionRow, EpochRow, SweepRow
from sweeps.settings import find_home
from sweeps.spec import corpus_of, spec_of
from sweeps.summary import command_of, config_of, parameters, result, sentence_about
from tracking.links import experiment_url, without_credentials
from tracking.server import store_uri

T = TypeVar("T")


def show(
    path: Annotated[str | None, typer.Argument(metavar="[SWEEP[/TRIAL]]", help="A trial by number or name")] = None,
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    tracking_uri: TrackingOption = None,
    events: Annotated[
        bool,
        typer.Option("--events", help="What happened to it, in order: claimed, handed back, reaped, refused, ended"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List sweeps, or show one sweep, or one trial with its epochs."""
    where = find_home(home)
    if server is None and database is None and not (where.root / "sweeps.db").exists():
        raise SweepError(f"{where.root}: holds no sweep yet; run one, or name the right folder with --home")
    if events and path is None:
        raise SweepError("--events: name the sweep, or SWEEP/TRIAL")
    with reached(home, database, server) as sweeps:
        if path is None:
            show_sweeps(sweeps, as_json)
        elif events:
            show_events(sweeps, path, as_json)
        elif "/" in path:
            show_trial(sweeps, path, as_json)
        elif server is not None:
            sweep = sweeps.sweep(path).sweep
            uri, experiment = sweep.tracking or "", sweep.experiment_id
            seen = uri.startswith("http") and experiment is not None
            show_sweep(sweeps, sweep, uri, experiment_url(uri, experiment or "") if seen else uri, as_json)
        else:
            sweep = sweeps.sweep(path).sweep
            words = service.ui_command(sweep.name, where, database, tracking_uri)
            uri = without_credentials(tracking_uri) if tracking_uri else store_uri(where.mlflow)
            show_sweep(sweeps, sweep, uri, words, as_json)


def show_sweeps(sweeps: Sweeps, as_json: bool) -> None:
    listing = [{"sweep": s.sweep.name, "state": s.sweep.state.value, "reason": s.sweep.reason} for s in sweeps.sweeps()]
    if as_json:
        print(json.dumps(listing))
    for row in [] if as_json else listing:
        print(f"{row['sweep']}: {row['state']}  {row['reason']}")


def show_sweep(sweeps: Sweeps, sweep: SweepRow, tracking_uri: str, opened_with: str, as_json: bool) -> None:
    spec, corpus = spec_of(sweep), corpus_of(sweep)
    rows = list(every(lambda after: sweeps.trials(sweep.name, after=after), lambda trial: trial.number, -1))
    found = sweeps.conclusions(sweep.name)
    what = result(sweep, rows, spec, corpus, tracking_uri, opened_with, found)
    if as_json:
        print(json.dumps(what, allow_nan=False))
        return
    command = what["best"] and what["best"]["command"]
    latest: dict[int, EpochRow] = {}
    while page := sweeps.latest(sweep.name, after=max(latest, default=-1)):
        latest |= page
        if len(page) < PAGE:
            break
    display.print_summary(sweep, rows, latest, command, f"open with: {opened_with}", found, sys.stdout)


def every(page: Callable[[int], list[T]], key: Callable[[T], int], after: int) -> Iterator[T]:
    """The rows of every page."""
    while rows := page(after):
        yield from rows
        after = key(rows[-1])
        if len(rows) < PAGE:
            return


def show_events(sweeps: Sweeps, path: str, as_json: bool) -> None:
    name, _, trial = path.partition("/")
    sweep = sweeps.sweep(name).sweep
    number = sweeps.trial(name, trial).number if trial else None
    told = [
        event
        for event in every(lambda after: sweeps.events(name, after=after), lambda event: event.id or 0, 0)
        if number is None or event.trial_number == number
    ]
    if as_json:
        print(json.dumps([asdict(event) for event in told], allow_nan=False))
        return
    for event in told:
        at = datetime.fromtimestamp(event.at or 0.0).astimezone().isoformat(sep=" ", timespec="seconds")
        print(f"{at}  {display.event_line(sweep, event)}{f'  [{event.worker}]' if event.worker else ''}")


def show_trial(sweeps: Sweeps, path: str, as_json: bool) -> None:
    name, _, wanted = path.partition("/")
    sweep, trial, rows = sweeps.sweep(name).sweep, sweeps.trial(name, wanted), sweeps.curve(name, wanted)
    spec, corpus = spec_of(sweep), corpus_of(sweep)
    command = command_of(sweep, trial, spec, corpus) if trial.hyperparameters else None
    judgement = service.judgement_of(sweep, trial, rows)
    findings = judgement.findings if judgement else ()
    epochs_planned = len(rows) if trial.state.terminal else config_of(spec, trial).epochs
    decision = next((each for each in sweeps.decisions(name) if each.number == trial.number), None)
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
