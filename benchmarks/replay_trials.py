"""Does a trial trained again give the same numbers, to the last bit?

    python benchmarks/replay_trials.py [--trials 16] [--count 10] [--seed 0] [--json]

A real sweep on a generated corpus, with two workers, range test and pruner. In the middle it is interrupted as by
Ctrl-C, so that some trials begin in one process and end in another. Then so many of its trials, drawn at random with
pruned and interrupted ones among them, are trained again by `sweeps replay`, each in a process of its own. Exit code 1
where one is not bitwise the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeps.records import TrialRow
from sweeps.settings import Home
from sweeps.states import TrialState
from sweeps.store import Store

NAME = "replayed"
SPEC: dict[str, Any] = {
    "name": NAME,
    "corpus": {"generated": {"train": 120, "dev": 60, "glosses": 16}},
    "trainer": {"epochs": 12, "hidden": 48, "channels": 48, "batch_size": 8, "warmup_epochs": 2},
    "space": {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}, "patience": {"low": 3, "high": 8}},
    "first_trials": {
        "original": {
            "learning_rate": 1e-4,
            "warmup_start_factor": 0.1,
            "schedule": "cosine_restarts",
            "patience": 15,
            "patience_starts": "epoch1",
        },
        "fixed": {"learning_rate": 4e-3, "warmup_start_factor": 1.0, "patience": 30},
    },
    "on_alarm": "continue",
    "workers": 2,
    "seed": 5,
}
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16, help="of the sweep (default: 16)")
    parser.add_argument("--count", type=int, default=10, help="of these, trained again (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--json", action="store_true", help="print a list of rows; all else goes to stderr")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replay") as folder:
        home = Path(folder) / "home"
        sweep(home, given.trials)
        rows = [replayed(home, trial) for trial in drawn(trials_of(home), given.count, given.seed)]
    same = sum(row["reproduced"] and row["check"] == "bitwise" for row in rows)
    if given.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items()))
        pruned, again = sum(r["state"] == "PRUNED" for r in rows), sum(r["attempts"] > 1 for r in rows)
        print(f"{same} of {len(rows)} bitwise the same; {pruned} of them pruned, {again} interrupted and resumed")
    sys.exit(0 if same == len(rows) else 1)


def command(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "sweeps.cli", *words, "--home", str(home)]


def sweep(home: Path, trials: int) -> None:
    """Run it, interrupt it once two trials are in the middle of their epochs, and run it to its end."""
    home.mkdir(parents=True)
    spec = home / "spec.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "budget": {"trials": trials}}), encoding="utf-8")
    words = command(home, "run", str(spec), "--json")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SWEEPS_")}
    first = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=sys.stderr, env=environment)
    while first.poll() is None and not in_the_middle(home):
        time.sleep(0.2)
    if first.poll() is not None:
        raise SystemExit(f"the sweep ended with {first.poll()} before two trials were under way")
    first.send_signal(signal.SIGINT)
    first.wait(120)
    subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=sys.stderr, env=environment, check=True)


def trials_of(home: Path) -> list[TrialRow]:
    if not (home / "sweeps.db").exists():
        return []
    with closing(Store(Home(home).database_url)) as store:
        found = store.find_sweep(NAME)
        return store.trials(found.id) if found else []


def in_the_middle(home: Path) -> bool:
    return sum(trial.state is TrialState.RUNNING and trial.epochs >= 2 for trial in trials_of(home)) >= 2


def drawn(trials: list[TrialRow], count: int, seed: int) -> list[TrialRow]:
    """So many at random; drawn anew until a pruned and an interrupted one are among them, if there are such."""
    able, source = [trial for trial in trials if trial.epochs], random.Random(seed)
    wanted = [kind for kind in (is_pruned, was_interrupted) if any(map(kind, able))]
    while True:
        chosen = source.sample(able, min(count, len(able)))
        if all(any(map(kind, chosen)) for kind in wanted):
            return chosen


def is_pruned(trial: TrialRow) -> bool:
    return trial.state is TrialState.PRUNED


def was_interrupted(trial: TrialRow) -> bool:
    return trial.attempt > 1


def replayed(home: Path, trial: TrialRow) -> dict[str, Any]:
    began = time.monotonic()
    words = command(home, "replay", f"{NAME}/{trial.number}", "--json")
    ended = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr, check=False)
    found = json.loads(ended.stdout)
    return {
        "trial": trial.number,
        "state": trial.state.value,
        "verdict": trial.verdict,
        "attempts": trial.attempt,
        "epochs": found["epochs"],
        "reproduced": found["reproduced"],
        "check": found["check"],
        "difference": found["difference"],
        "seconds": round(time.monotonic() - began, 1),
    }


if __name__ == "__main__":
    main()
