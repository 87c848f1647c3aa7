"""Replays pruning policies over the recorded curve tables, and says what each cost and how often it was wrong.

    python benchmarks/pruning/replay.py [--json] [--replays 1000] [--sampler random|tpe|both]
                                        [--curves FOLDER] [--tables NAME ...] [--families NAME ...]
                                        [--workers 1] [--processes 2] [--docs]

A replay is a sweep of 24 trials over one table: trials are drawn (in random order, or by Optuna's TPE with each
suggestion answered by the nearest recorded run), read on an epoch at a time, and stopped by the policy. Replays are
spread evenly over the tables, and the same seeds draw the same sweeps for every policy. `--docs` writes the table and
the picture of docs/explanation/pruning.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from measures import measure
from policies import Named, all_policies, never
from report import as_markdown, as_picture, auc_rows, docs_page
from sweep import TRIALS, Replayed, by_tpe, in_random_order, replay
from tables import CURVES, Recorded, read_lanes, read_tables

from model.types import mixed_seed

REPLAYS = 1000
RESAMPLED = 20
"""Tables drawn anew from each corpus's runs, for the intervals."""


def replay_policy(
    policy: Named,
    tables: dict[str, list[Recorded]],
    replays: int,
    sampler: str,
    workers: int,
    first_seed: int = 0,
) -> list[Replayed]:
    """`replays` sweeps, spread evenly over the tables."""
    sweeps = []
    for place, runs in enumerate(tables.values()):
        for seed in range(first_seed, first_seed + replays // len(tables) + (place < replays % len(tables))):
            count = min(len(runs), TRIALS)
            if policy.whole:
                sweeps.append(policy.whole([*islice(in_random_order(runs, seed), count)]))
            elif sampler == "random":
                sweeps.append(replay(policy.make, in_random_order(runs, seed), seed, count, workers))
            else:  # what it draws depends on what was stopped: held against the sweep it draws where nothing is
                found = replay(policy.make, by_tpe(runs, seed), seed, count, workers)
                sweeps.append(Replayed(found.trials, _unpruned(tuple(map(id, runs)), runs, seed, count, workers)))
    return sweeps


_known: dict[tuple[Any, ...], Replayed] = {}


def _unpruned(table: tuple[int, ...], runs: list[Recorded], seed: int, count: int, workers: int) -> Replayed:
    """TPE's sweep without pruning: the same for every policy, so kept."""
    key = (table, seed, count, workers)
    if key not in _known:
        _known[key] = replay(never, by_tpe(runs, seed), seed, count, workers)
    return _known[key]


def resampled_policy(
    policy: Named, tables: dict[str, list[Recorded]], replays: int, sampler: str, workers: int
) -> list[list[Replayed]]:
    """Sweeps over tables whose runs were drawn anew with replacement, for the intervals: RESAMPLED such tables of each
    corpus, as many sweeps in all.
    """
    groups = []
    each = max(2, replays // (len(tables) * RESAMPLED))
    for name, runs in tables.items():
        for number in range(RESAMPLED):
            drawn = np.random.default_rng(mixed_seed(name, "resampled", number)).integers(len(runs), size=len(runs))
            table = {name: [runs[i] for i in drawn]}
            groups.append(replay_policy(policy, table, each, sampler, workers, first_seed=1000 * (number + 1)))
    return groups


_tables: dict[str, list[Recorded]] = {}
_policies: list[Named] = []


def _begin(curves: Path, names: list[str], families: list[str]) -> None:
    """Each process reads the tables itself: policies hold functions, which do not cross processes."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    _tables.update(read_tables(curves, names))
    _policies.extend(p for p in all_policies() if not families or p.family in families)


def _measure(task: tuple[int, int, str, int]) -> dict[str, Any]:
    index, replays, sampler, workers = task
    policy, began = _policies[index], time.monotonic()
    sweeps = replay_policy(policy, _tables, replays, sampler, workers)
    row: dict[str, Any] = {"policy": policy.family, "settings": policy.settings, "sampler": sampler}
    resampled = resampled_policy(policy, _tables, replays, sampler, workers)
    row |= {"workers": workers, "replays": len(sweeps)} | measure(sweeps, resampled, verdicts=policy.verdicts)
    each = {name: [s for s in sweeps if s.table == name] for name in _tables}
    row["tables"] = {
        name: {
            "epochs_fraction": round(float(np.mean([s.epochs / s.epochs_without for s in some])), 5),
            "regret_points": round(float(np.mean([100 * s.regret for s in some])), 5),
        }
        for name, some in each.items()
        if some
    }
    row["seconds"] = round(time.monotonic() - began, 1)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects instead of a table")
    parser.add_argument("--replays", type=int, default=REPLAYS, help="sweeps a policy and sampler")
    parser.add_argument("--sampler", choices=("random", "tpe", "both"), default="random")
    parser.add_argument("--curves", type=Path, default=CURVES, help="a folder of curve tables")
    parser.add_argument("--tables", nargs="*", default=[], help="default: all")
    parser.add_argument("--families", nargs="*", default=[], help="policies by family; default: all")
    parser.add_argument("--workers", type=int, default=1, help="trials of a sweep that train at once")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--docs", action="store_true", help="write docs/explanation/pruning.md's table and picture")
    arguments = parser.parse_args()
    try:
        tables = read_tables(arguments.curves, arguments.tables)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    policies = [p for p in all_policies() if not arguments.families or p.family in arguments.families]
    if not policies:
        known = ", ".join(dict.fromkeys(p.family for p in all_policies()))
        print(f"error: no policy of {arguments.families}; there are {known}", file=sys.stderr)
        return 2
    samplers = ("random", "tpe") if arguments.sampler == "both" else (arguments.sampler,)
    tasks = [
        (i, arguments.replays, sampler, arguments.workers)
        for sampler in samplers
        for i, policy in enumerate(policies)
        if sampler == "random" or policy.with_tpe
    ]
    rows: list[dict[str, Any]] = []
    with multiprocessing.get_context("spawn").Pool(
        arguments.processes, _begin, (arguments.curves, arguments.tables, arguments.families)
    ) as pool:
        for row in pool.imap(_measure, tasks):
            rows.append(row)
            print(f"[{len(rows)}/{len(tasks)}] {row['policy']} {row['settings']}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print(as_markdown(rows))
    if arguments.docs:
        docs_page(rows, tables, read_lanes(arguments.curves, arguments.tables), auc_rows(tables))
        as_picture(rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
