"""Plans of faults at random: `python -m tests.faults.soak --plans 200 --seed 0 --real 20 --out FILE`.

Each plan follows from the seed and its number alone. FILE gets a JSON line a plan; plans that it has are left out, so
the same command goes on where it ended. One plan again: `--only NUMBER`.

`--real` of the plans train the built-in trainer on a tiny generated corpus with one worker: every metric of every
epoch must come out as in the uninterrupted sweep, to the last bit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.ground import Ground, prepared
from tests.faults.outside import MODES
from tests.faults.points import POINTS, Fault
from tests.faults.scenarios import DAY, Scenario

DATABASES = ("sqlite", "postgresql")

HARD = ("kill", "kill", "stop", "hang", "tear", "corrupt")
"""What may leave an attempt without a new epoch. Three such in a row end a trial, as they should: so at most two."""
MOST_HARD = 2

SOFT = ("term", "full disk", "clock", "MLflow", "database")

OFTEN = {
    "start": 3,
    "batch": 60,
    "renew": 3,
    "flush": 24,
    "replace": 36,
    "transaction": 20,
    "pass": 8,
    "reap": 8,
    "beat": 8,
}
"""How often a point is passed in a sweep of 18 epochs; the others about as often as there are trials, or epochs."""
PER_EPOCH = (
    "epoch",
    "save",
    "forget",
    "record",
    "decide",
    "reserve",
    "log epochs",
    "set status",
    "mark mirrored",
    "ship",
)
PER_TRIAL_TIMES, PER_EPOCH_TIMES = 5, 14
RARE = ("hand back", "resume")
"""Passed only where something else has happened, or in every attempt at once."""


def plan_of(seed: int, number: int, *, real: bool) -> tuple[Scenario, str]:
    """The plan, and the database it is for."""
    rng = random.Random(f"{seed}/{number}")
    workers = 1 if real else rng.choice((1, 2, 2, 3))
    command = "run" if real else rng.choice(("run", "run", "work"))
    database = DATABASES[number % 2]
    hard = [a_fault(rng, rng.choice(HARD), keeper=not real) for _ in range(rng.randint(0, MOST_HARD))]
    kinds = rng.sample(SOFT, rng.randint(0 if hard else 1, 2))
    if len(hard) == MOST_HARD and "database" in kinds:
        hard.pop()  # an outage costs each worker an attempt
    proxied = "MLflow" in kinds
    soft = [soft_fault(rng, kind, database) for kind in kinds]
    scenario = Scenario(
        f"{'real' if real else 'plan'} {number}",
        f"seed {seed}, plan {number}",
        tuple(hard + soft),
        command=command,  # type: ignore[arg-type]
        workers=workers,
        trials=4 if real else 6,
        epochs=2 if real else 3,
        tracking="proxy" if proxied else "server",
        step_seconds=0.15 if proxied else 0.05,
        real=real,
    )
    return replace(scenario, repeated=scenario.may_repeat + loses_workers(scenario)), database


def a_fault(rng: random.Random, action: str, *, keeper: bool) -> Fault:
    """A fault at a point that is passed in nearly every sweep."""
    if action in ("tear", "corrupt"):
        return Fault("save", "after", rng.randint(1, PER_EPOCH_TIMES // 2), action)
    names = [n for n, p in POINTS.items() if n not in RARE and (p.who == "worker" or (keeper and action == "kill"))]
    point = rng.choice(names)
    most = OFTEN.get(point, PER_EPOCH_TIMES if point in PER_EPOCH else PER_TRIAL_TIMES)
    seconds = 8.0 if action == "hang" else 0.0  # more than a lease
    return Fault(point, rng.choice(("before", "after")), rng.randint(1, most), action, seconds)


def soft_fault(rng: random.Random, kind: str, database: str) -> Fault:
    match kind:
        case "term":
            return a_fault(rng, "term", keeper=False)
        case "full disk":
            return Fault("flush", "before", rng.randint(1, 20), "full disk", rng.choice((2.0, 7.0)))
        case "clock":
            return Fault("start", "after", 1, "clock", rng.choice((DAY, -DAY)))
        case "MLflow":
            return Fault("record", "after", rng.randint(1, 4), "call", name=f"MLflow: {rng.choice(MODES)}")
        case _:
            name = "SQLite locked" if database == "sqlite" else "PostgreSQL shortly away"
            return Fault("record", "after", rng.randint(1, 8), "call", name=name)


def loses_workers(scenario: Scenario) -> int:
    """Epochs that end with the process that keeps the sweep, or with a database that was away."""
    keepers = sum(POINTS[f.point].who == "keeper" and f.action == "kill" for f in scenario.faults)
    per_keeper = scenario.workers if scenario.command == "run" else 1
    widely = [
        f for f in scenario.faults if f.action in ("full disk", "term") or f.name.startswith(("SQLite", "Postgre"))
    ]
    return keepers * per_keeper + len(widely) * scenario.workers


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=int, default=20, help="so many of the plans train the built-in trainer")
    parser.add_argument("--out", type=Path, default=Path("build/soak.jsonl"))
    parser.add_argument("--only", type=int, help="this plan alone, whether it was done or not")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no plan after so many")
    given = parser.parse_args(words)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    every = max(1, given.plans // given.real) if given.real else math.inf
    done = read(given.out, given.seed)
    if given.only is None:
        todo = [number for number in range(given.plans) if number not in done]
    else:
        done, todo = {}, [given.only]
    deadline = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="soak") as folder, prepared(Path(folder)) as ground:
        for number in todo:
            if time.monotonic() > deadline:
                break
            line = strike(ground, given.seed, number, real=number % every == every - 1)
            done[number] = line
            with given.out.open("a", encoding="utf-8") as out:
                out.write(f"{json.dumps(line)}\n")
    broken = [number for number, line in sorted(done.items()) if line["violations"]]
    print(f"{len(done)} of {given.plans} plans, {len(broken)} in which a rule was broken")
    for number in broken:
        print(f"  --plans {given.plans} --seed {given.seed} --real {given.real} --only {number}")
    return bool(broken)


def strike(ground: Ground, seed: int, number: int, *, real: bool) -> dict[str, Any]:
    """One plan; the line that is kept of it."""
    begun = time.monotonic()
    scenario, database = plan_of(seed, number, real=real)
    line = {"seed": seed, "plan": number, "faults": [str(fault) for fault in scenario.faults]}
    try:
        row = ground.strike(scenario, database, all_strike=False)
    except AssertionError as error:  # it did not end
        print(f"plan {number}, {line['faults']}: {error}", file=sys.stderr, flush=True)
        return {**line, "violations": [str(error).splitlines()[0]]}
    struck = ", ".join(row.struck) or "nothing struck"
    times = f"{row.seconds:.0f} of {row.allowed:.0f} s, {time.monotonic() - begun:.0f} s in all"
    print(f"{row.scenario} {row.database}: {struck}: {times}", flush=True)
    if row.violations:
        print("\n".join([*row.violations, row.words]), file=sys.stderr, flush=True)
    return {**line, **row.as_json()}


def read(file: Path, seed: int) -> dict[int, dict[str, Any]]:
    """The plans of this seed that were done, by number."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["plan"]: line for line in lines if line["seed"] == seed}


if __name__ == "__main__":
    sys.exit(main())
