"""How the constants of the rule were chosen, and how they do on a corpus that chose none of them.

    python benchmarks/pruning/fit.py [--settings 60] [--replays 60] [--processes 2] [--seed 0] [--json]

Random settings are replayed over every table. The cost of a setting is its regret in WER points plus a tenth of the
epochs it spent, in percent of no pruning: a point of WER is worth a tenth of a sweep. For each table the best setting
on the OTHER tables is then read off on that one, beside the constants that ship.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from policies import Named, ours
from replay import replay_policy
from sweep import Replayed
from tables import CURVES, Recorded, read_tables

from sweeps import pruning

RANGES: dict[str, tuple[float, ...]] = {
    "LEAST_CHANCE": (0.05, 0.1, 0.15, 0.2, 0.3),
    "SPREAD_AT_START": (0.3, 0.4, 0.5, 0.6, 0.7),
    "SPREAD_AT_END": (0.05, 0.1, 0.2, 0.3),
    "WEIGHT_SLOPE": (0.8, 1.0, 1.3, 1.6, 2.0),
    "LOSS_CAP": (1.1, 1.5, 2.0, 100.0),
    "ANCHORS": (1, 2, 3, 4, 6),
    "PRIOR_TRIALS": (2, 4, 8, 16, 1000),
    "GRACE_SHARE": (1 / 12, 1 / 8, 1 / 6),
}
EPOCHS_PER_POINT = 0.1
"""WER points that one percent of the epochs is worth."""

_tables: dict[str, list[Recorded]] = {}


def _begin(curves: Path) -> None:
    _tables.update(read_tables(curves))


def cost(epochs_fraction: float, regret_points: float) -> float:
    return regret_points + EPOCHS_PER_POINT * 100 * epochs_fraction


def _try(task: tuple[dict[str, float], int]) -> dict[str, Any]:
    """One setting over every table; the seeds are others than those of replay.py."""
    setting, replays = task
    kept = {name: getattr(pruning, name) for name in setting}
    try:
        for name, value in setting.items():
            setattr(pruning, name, value)
        found = {}
        for name, runs in _tables.items():
            sweeps: list[Replayed] = replay_policy(
                Named("ours", {}, ours), {name: runs}, replays, "random", 1, first_seed=100_000
            )
            epochs = float(np.mean([s.epochs / s.epochs_without for s in sweeps]))
            found[name] = (epochs, float(np.mean([100 * s.regret for s in sweeps])))
    finally:
        for name, value in kept.items():
            setattr(pruning, name, value)
    return {"setting": setting, "tables": found}


def drawn(count: int, seed: int) -> list[dict[str, float]]:
    """The shipped constants, then random settings."""
    rng = np.random.default_rng(seed)
    shipped = {name: getattr(pruning, name) for name in RANGES}
    some = [{name: values[int(rng.integers(len(values)))] for name, values in RANGES.items()} for _ in range(count)]
    return [shipped, *some]


def held_out(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each table: the setting that costs least on the others, and what it and the shipped one come to there."""
    rows = []
    for name in tried[0]["tables"]:
        best = min(tried, key=lambda t: np.mean([cost(*v) for k, v in t["tables"].items() if k != name]))
        here, shipped = best["tables"][name], tried[0]["tables"][name]
        rows.append(
            {
                "held_out": name,
                "setting": best["setting"],
                "epochs_fraction": here[0],
                "regret_points": here[1],
                "shipped_epochs_fraction": shipped[0],
                "shipped_regret_points": shipped[1],
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=60)
    parser.add_argument("--replays", type=int, default=60, help="sweeps a setting and table")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tasks = [(setting, arguments.replays) for setting in drawn(arguments.settings, arguments.seed)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes, _begin, (arguments.curves,)) as pool:
        tried = pool.map(_try, tasks, chunksize=1)
    rows = held_out(tried)
    if arguments.json:
        print(json.dumps({"held_out": rows, "tried": tried}))
        return 0
    ranked = sorted(tried, key=lambda t: np.mean([cost(*v) for v in t["tables"].values()]))
    print("The ten that cost least over all tables (epochs, regret):")
    for each in ranked[:10]:
        epochs, regret = np.mean(list(each["tables"].values()), axis=0)
        print(f"  {epochs:.1%}  {regret:.2f}  {each['setting']}")
    epochs, regret = np.mean(list(tried[0]["tables"].values()), axis=0)
    print(f"shipped: {epochs:.1%}  {regret:.2f}\n")
    print("| held out | epochs, constants of the others | regret | epochs, shipped | regret |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['held_out']} | {row['epochs_fraction']:.1%} | {row['regret_points']:.2f} | "
            f"{row['shipped_epochs_fraction']:.1%} | {row['shipped_regret_points']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
