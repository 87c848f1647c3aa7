"""The learning-rate range test held against the curve tables: what it proposes, what it would have ruled out, its cost.

    python benchmarks/ranges.py [--tables NAME ...] [--steps 320] [--seeds 2] [--processes 2] [--json]

For each table (benchmarks/curves.py) one range test a seed, on its corpus and with the other parameters in the middle
of their ranges, as a sweep does. A recorded run is *good* if its best WER is within 5 points of the table's best, and
*dead* if it never learned. No good run may be ruled out; of the dead ones, as many as possible. What it costs stands in
epochs of training, which are timed in the same process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent / "pruning"))

from curves import DROPOUTS, START_FACTORS, TABLES
from tables import read_tables

from model.corpus.data import CorpusConfig, load_corpus
from model.ctc import CTCTrainer
from model.range_test import STEPS, RangeTest, range_test
from model.types import TrainingConfig

NEAR_BEST = 0.05


@dataclass(frozen=True)
class Held:
    """One range test, against the runs of its table."""

    table: str
    seed: int
    steps: int
    low: float | None
    high: float | None
    suggested: float | None
    epochs: float
    """Of training that take as long."""
    good: int
    good_lost: int
    """Of these, ruled out."""
    dead: int
    dead_lost: int


def held(task: tuple[str, int, int]) -> tuple[Held, RangeTest]:
    name, steps, seed = task
    torch.set_num_threads(1)
    table = next(each for each in TABLES if each.name == name)
    middles = {"dropout": sum(DROPOUTS) / 2, "warmup_start_factor": sum(START_FACTORS) / 2}
    config = TrainingConfig.model_validate({**table.config, **middles, "seed": seed, "data_seed": seed})
    corpus = load_corpus(CorpusConfig(path=table.path()))
    trainer = CTCTrainer(config, corpus)
    seconds = [trainer.train_epoch(lambda: False).seconds]
    test = range_test(config, corpus, steps=steps)
    seconds.append(trainer.train_epoch(lambda: False).seconds)
    runs = read_tables(names=[name])[name]
    best = min(run.best for run in runs)
    good = [run.config.learning_rate for run in runs if run.best <= best + NEAR_BEST]
    dead = [run.config.learning_rate for run in runs if not run.learned]

    def lost(rates: list[float]) -> int:
        return sum(not (test.low or 0.0) <= rate <= (test.high or 1.0) for rate in rates)

    told = Held(
        *(name, seed, steps, test.low, test.high, test.suggested, test.seconds / median(seconds)),
        *(len(good), lost(good), len(dead), lost(dead)),
    )
    return told, test


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tables", nargs="+", choices=[table.name for table in TABLES], help="default: all")
    options.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    options.add_argument("--seeds", type=int, default=2, help="default: %(default)s")
    options.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    options.add_argument("--json", action="store_true", help="with every look")
    arguments = options.parse_args()
    names = arguments.tables or [table.name for table in TABLES]
    tasks = [(name, arguments.steps, seed) for name in names for seed in range(arguments.seeds)]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        found = pool.map(held, tasks, chunksize=1)
    if arguments.json:
        print(json.dumps([{**asdict(told), "test": test.as_json()} for told, test in found], indent=1))
        return
    print("| table | seed | proposed | first trial | epochs | good ruled out | dead ruled out |")
    print("|---|---|---|---|---|---|---|")
    for told, _ in found:
        low, high, first = (f"{rate:.1e}" if rate else "any" for rate in (told.low, told.high, told.suggested))
        print(
            f"| {told.table} | {told.seed} | {low} to {high} | {first} | {told.epochs:.1f} | "
            f"{told.good_lost} of {told.good} | {told.dead_lost} of {told.dead} |"
        )


if __name__ == "__main__":
    main()
