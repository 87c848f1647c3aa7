"""Sweeps on AN4 to a dev WER of 0.35, live: ours beside an unpruned one, as pairs that run at the same time.

    python benchmarks/live.py CORPUS [--pairs 8] [--target 0.35] [--quick] [--json]

Each sweep is `sweeps run` with one worker on one thread, in a home of its own, over the space of the recorded runs
(benchmarks/curves.py), and is stopped as soon as an epoch has reached the target. The two of a pair share the machine,
a core each, and differ in pruner, range test and first trials alone: the unpruned one draws at random, as the replays
do. What is counted is all epochs that were recorded until then, and the seconds from the sweep's making to that epoch.
A range test counts for as many epochs as it takes: by so much later the first epoch of ours begins than that of the
unpruned one, which has the same start without it. Over the pairs: expected running times, as in
benchmarks/efficiency.py, whose replays of recorded runs this is held against.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from curves import DROPOUTS, RATES, SCHEDULES, START_FACTORS, WARMUPS
from efficiency import EPOCHS, Estimate, beginnings, costs, expected, times_faster, ways
from efficiency import Cost as Spent
from rows import ROOT, Aim, Row, parser, row, show
from tables import read_tables

sys.path.insert(0, str(ROOT))

from sweeps.settings import Home
from sweeps.store import Store

NAME = "race"
MOST_TRIALS = 60
LOOK_SECONDS = 0.5
WITHIN = Aim(1.25, of="ratio")
"""How far the live ratio and that of the replays may lie apart, as a factor."""
FASTER = Aim(1.7, 3, most=False)
OURS: Mapping[str, Any] = {}
UNPRUNED: Mapping[str, Any] = {"pruner": "none", "range_test": False, "on_alarm": "continue", "sampler": "random"}
"""As Optuna's TPE draws its first ten trials, where ours spreads them out; few sweeps need more than ten."""


@dataclass
class Racer:
    """A sweep under way."""

    home: Home
    process: subprocess.Popen[bytes]
    found: Found | None = None


@dataclass(frozen=True)
class Found:
    """What a sweep had spent when it got there."""

    epochs: int
    epoch_seconds: float
    """Mean of these epochs."""
    start: float
    """Seconds from its making until its first epoch began."""
    seconds: float
    """... until it got there."""

    def beside(self, unpruned: Found) -> Spent:
        """With its range test, if it had one."""
        return Spent(self.epochs + (self.start - unpruned.start) / self.epoch_seconds, self.seconds, True)


def spec(corpus: Path, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    low, high = RATES
    fixed = {name: value for each in SCHEDULES for name, value in each.items() if name != "schedule"}
    return {
        "name": NAME,
        "corpus": str(corpus.resolve()),
        "seed": seed,
        "workers": 1,
        "trainer": {"epochs": EPOCHS, "batch_size": 8, **fixed},
        "space": {
            "learning_rate": {"low": low, "high": high, "log": True},
            "warmup_start_factor": dict(zip(("low", "high"), START_FACTORS, strict=True)),
            "warmup_epochs": {"choices": list(WARMUPS)},
            "schedule": {"choices": [each["schedule"] for each in SCHEDULES]},
            "dropout": dict(zip(("low", "high"), DROPOUTS, strict=True)),
            "patience": EPOCHS,
        },
        "budget": {"trials": MOST_TRIALS},
        **changes,
    }


def started(folder: Path, content: Mapping[str, Any]) -> Racer:
    folder.mkdir(parents=True)
    file, home = folder / "spec.yaml", Home(folder / "home")
    file.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SWEEPS_", "MLFLOW_TRACKING"))}
    # MLflow's server would take a part of the cores: nobody answers there.
    words = [sys.executable, "-m", "sweeps.cli", "run", str(file), "--home", str(home.root)]
    words += ["--tracking-uri", "http://127.0.0.1:9", "--allow-missing-tracking"]
    with (folder / "log").open("wb") as log:
        return Racer(
            home, subprocess.Popen(words, cwd=ROOT, env={**kept, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
        )


def look(racer: Racer, target: float) -> Found | None:
    """What it has spent, once an epoch has got there."""
    with closing(Store(racer.home.database_url)) as store:
        sweep = store.find_sweep(NAME)
        if sweep is None:
            return None
        rows = [row for rows in store.sweep_epochs(sweep.id).values() for row in rows]
    begun = sweep.created_at
    rows.sort(key=lambda row: row.recorded_at or 0.0)
    for place, row_ in enumerate(rows, start=1):
        if row_.metrics.get("dev/wer", 2.0) <= target:
            start = (rows[0].recorded_at or 0.0) - rows[0].seconds - begun
            each = sum(row.seconds for row in rows[:place]) / place
            return Found(place, each, start, (row_.recorded_at or 0.0) - begun)
    return None


def raced(folder: Path, corpus: Path, seed: int, target: float) -> tuple[Spent, Spent]:
    """One pair: unpruned, and ours."""
    racers = [
        started(folder / name, spec(corpus, seed, changes))
        for name, changes in (("unpruned", UNPRUNED), ("ours", OURS))
    ]
    try:
        while any(racer.found is None for racer in racers):
            time.sleep(LOOK_SECONDS)
            for racer in racers:
                if racer.found is not None:
                    continue
                if (racer.home.root / "sweeps.db").exists():
                    racer.found = look(racer, target)
                if racer.found is not None:
                    racer.process.send_signal(signal.SIGINT)
                elif racer.process.poll() is not None:
                    raise SystemExit(f"{racer.home.root}: ended before it got there; see its log")
    finally:
        for racer in racers:
            if racer.process.poll() is None:
                racer.process.send_signal(signal.SIGINT)
        for racer in racers:
            racer.process.wait(60)
    unpruned, ours = (racer.found for racer in racers)
    assert unpruned is not None
    assert ours is not None
    return unpruned.beside(unpruned), ours.beside(unpruned)


def replayed(target: float, orders: int) -> Estimate:
    """What the recorded runs say: how many times fewer epochs, with TPE as in a sweep."""
    runs = read_tables(names=["an4"])["an4"]
    by_name = {way.name: way for way in ways("tpe")}
    found = {
        name: costs(by_name[name].policy, runs, "tpe", beginnings() if by_name[name].with_test else [], orders, target)
        for name in ("unpruned", "ours")
    }
    return times_faster(found["unpruned"], found["ours"], "epochs")


def as_rows(pairs: Sequence[tuple[Spent, Spent]], said: Estimate) -> list[Row]:
    slow, fast = zip(*pairs, strict=True)
    each = "; ".join(f"{a.epochs:.0f} and {b.epochs:.1f}" for a, b in pairs)
    note = f"{len(pairs)} pairs, epochs of each: {each}"
    rows = []
    for of, unit, scale in (("epochs", "epochs", 1), ("seconds", "h", 3600)):
        faster = times_faster(slow, fast, of)
        word = f"95 %: {faster.low:.2f} to {faster.high:.2f}; {note}" if of == "epochs" else ""
        mine, theirs = (expected(some, of) / scale for some in (fast, slow))
        name = f"{'epochs' if of == 'epochs' else 'hours'} to the target, ours, live"
        rows.append(row(name, mine, unit, "unpruned, live", theirs, faster.value, FASTER, word))
    live = times_faster(slow, fast, "epochs").value
    apart = max(live / said.value, said.value / live)
    rows.append(row("times faster, live", live, "", "the replays", said.value, apart, WITHIN, "apart by this factor"))
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("corpus", type=Path)
    options.add_argument("--pairs", type=int, help="default: 8, and 1 with --quick")
    options.add_argument("--target", type=float, help="dev WER (fraction); default: 0.35, and 0.95 with --quick")
    arguments = options.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    quick, pairs = arguments.quick, list[tuple[Spent, Spent]]()
    target = arguments.target or (0.95 if quick else 0.35)
    with tempfile.TemporaryDirectory(prefix="live") as folder:
        for seed in range(arguments.pairs or (1 if quick else 8)):
            pairs.append(raced(Path(folder) / str(seed), arguments.corpus, seed, target))
            each = (f"{spent.epochs:.1f} epochs, {spent.seconds:.0f} s" for spent in pairs[-1])
            print(f"pair {seed}: unpruned {next(each)}; ours {next(each)}", file=sys.stderr, flush=True)
    show(as_rows(pairs, replayed(target, 24 if quick else 204)), as_json=arguments.json)


if __name__ == "__main__":
    main()
