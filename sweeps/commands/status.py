"""`sweeps status`: every sweep in a line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sweeps.commands.options import DatabaseOption, HomeOption, JsonOption, ServerOption, reached
from sweeps.commands.tables import Column, age, console_for, percent, print_table
from sweeps.errors import SweepError
from sweeps.keeper import STALE_SECONDS
from sweeps.records import SweepStatus
from sweeps.settings import find_home
from sweeps.states import SweepState, TrialState
from sweeps.summary import trial_label

COLUMNS = (
    Column("sweep"),
    Column("state"),
    Column("done", right=True, leaves=1),
    Column("running", right=True, leaves=3),
    Column("pruned", right=True, leaves=5),
    Column("failed", right=True, leaves=6),
    Column("epochs", right=True, leaves=7),
    Column("best WER", right=True),
    Column("trial", leaves=4),
    Column("age", right=True, leaves=2),
    Column("keeper", leaves=8),
    Column("why", leaves=9),
)
MOST_FORECASTS = 3
"""Of the sweeps that run, the newest so many have their forecast below the table."""

STYLES = {SweepState.RUNNING: "green", SweepState.FAILED: "red", SweepState.PAUSED: "yellow"}


def status(
    home: HomeOption = None,
    database: DatabaseOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every sweep in a line: state, trials, best WER, who keeps it."""
    where = find_home(home)
    if server is None and database is None and not (where.root / "sweeps.db").exists():
        raise SweepError(f"{where.root}: holds no sweep yet; run one, or name the right folder with --home")
    with reached(home, database, server) as sweeps:
        found = sweeps.sweeps()
        running = [] if as_json else [s.sweep.name for s in found if s.sweep.state is SweepState.RUNNING]
        forecasts = [f"{name}: {sweeps.forecast(name).sentence}" for name in running[-MOST_FORECASTS:]]
    now = time.time()
    if as_json:
        print(json.dumps([as_object(each, now) for each in found], allow_nan=False))
        return
    if not found:
        print("no sweep yet: sweeps run SPEC, or sweeps create SPEC")
        return
    console = console_for(sys.stdout)
    print_table(COLUMNS, [row(each, now) for each in found], console, [STYLES.get(s.sweep.state, "") for s in found])
    for line in forecasts:
        print(line)


def row(of: SweepStatus, now: float) -> list[str]:
    sweep, best = of.sweep, of.best
    known = as_object(of, now)
    keeper = known["keeper"] or ""
    return [
        sweep.name,
        sweep.state.value,
        f"{known['done']}/{sweep.budget['trials']}",
        *(_count(of.counts[state]) for state in (TrialState.RUNNING, TrialState.PRUNED, TrialState.FAILED)),
        str(of.epochs),
        percent(best.best_wer) if best else "",
        trial_label(best) if best else "",
        age(now - sweep.created_at),
        f"{keeper}, silent for {age(known['keeper_silent_seconds'])}" if known["keeper_is_stale"] else keeper,
        sweep.reason,
    ]


def as_object(of: SweepStatus, now: float) -> dict[str, Any]:
    sweep, best = of.sweep, of.best
    silent = None if sweep.runner is None or sweep.runner_beat_at is None else max(0.0, now - sweep.runner_beat_at)
    return {
        "sweep": sweep.name,
        "state": sweep.state.value,
        "reason": sweep.reason,
        "trials": sweep.budget["trials"],
        "done": sum(number for state, number in of.counts.items() if state.terminal),
        "counts": {state.value: of.counts[state] for state in TrialState},
        "epochs": of.epochs,
        "best": best and {"number": best.number, "name": best.name, "wer": best.best_wer},
        "keeper": None if sweep.runner is None else str(sweep.runner),
        "keeper_silent_seconds": silent,
        "keeper_is_stale": silent is not None and silent > STALE_SECONDS,
        "created_at": sweep.created_at,
        "seconds": sweep.seconds,
    }


def _count(number: int) -> str:
    return str(number) if number else ""
