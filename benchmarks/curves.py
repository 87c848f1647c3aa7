"""Curve tables: real training curves of this project's trainer, to replay pruning policies over.

    python benchmarks/curves.py record [--tables NAME ...] [--runs N] [--workers 2]
    python benchmarks/curves.py list
    python benchmarks/curves.py check

`record` trains what is not there yet, to its last epoch, probing after each: one file a run below `benchmarks/curves/`,
written when the run ends, so that an interrupted call goes on where it was. `check` trains twelve recorded runs anew
and says whether the tables still hold: do it after a change of numerics.

The runs of a table are the points of one Halton sequence over learning rate (log), start factor, dropout, schedule and
warm-up, so any first N of them cover the space. Beside them stand lanes: the same corpus with its data broken.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lanes import HOME, InfiniteIsZero, Lane, TimeCollapsed, all_left_in, corpus_at, shuffled
from scipy.stats import qmc, sem, t

from model.corpus.check import check_corpus
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.corpus.synthetic import GeneratedConfig, generate
from model.findings import finite
from model.floors import floors
from model.types import EpochReport, TrainingConfig

HERE = Path(__file__).parent
FOLDER = HERE / "curves"
SHARED = HERE.parents[1] / "shared" / "data"


@dataclass(frozen=True)
class Table:
    """One corpus and how it is trained on."""

    name: str
    corpus: GeneratedConfig | Path
    runs: int
    config: dict[str, Any]
    every: float
    """Of so many frames one is kept in the lane of infeasible targets: about half of train then has no alignment."""

    def path(self) -> Path:
        return generate(self.corpus, HOME) if isinstance(self.corpus, GeneratedConfig) else self.corpus


TABLES = (
    Table("generated", GeneratedConfig(train=240, dev=110), 66, {"epochs": 24, "batch_size": 4}, 1.12),
    # More glosses, fewer examples of each, harder signers: slower to take off, and far from a WER of 0.
    Table(
        "generated-hard",
        GeneratedConfig(train=320, dev=110, glosses=80, noise=0.01, signer_variation=1.5, seed=1),
        42,
        {"epochs": 30, "batch_size": 8},
        1.12,
    ),
    Table("asl", Path("data/asl"), 30, {"epochs": 24, "batch_size": 8}, 1.3),
    Table("an4", SHARED / "an4", 22, {"epochs": 20, "batch_size": 8}, 4.0),
)

SCHEDULES: tuple[dict[str, Any], ...] = (
    {"schedule": "constant"},
    {"schedule": "plateau", "plateau_patience": 4},
    {"schedule": "cosine_restarts", "restart_epochs": 10},
    {"schedule": "step", "step_epochs": 8},
)
RATES = (1e-5, 2e-2)
START_FACTORS = (0.05, 1.0)
DROPOUTS = (0.0, 0.5)
WARMUPS = (2, 5)

LANES = (
    *(
        Lane("shuffled labels", False, "input_not_used", {"learning_rate": r}, change=shuffled)
        for r in (1e-3, 4e-3, 3e-4)
    ),
    Lane("zero features", False, "nothing_varies", {"learning_rate": 1e-3}, scale=0.0),
    Lane(
        "pixels, not normalised",
        False,
        "not_normalised",
        {"learning_rate": 1e-3, "architecture": "bilstm"},
        {"normalise": False},
        scale=1000.0,
    ),
    Lane(
        "T/16, zero_infinity",
        False,
        "infeasible_targets",
        {"learning_rate": 1e-3, "output_stride": 16},
        change=all_left_in,
        every=0,  # the table's own
        trainer=InfiniteIsZero,
    ),
    Lane("time collapsed", False, "time_collapsed", {"learning_rate": 1e-3}, trainer=TimeCollapsed),
)
HEALTHY = Lane("", True, "")
BY_CHECK = ("nothing_varies", "not_normalised", "infeasible_targets")
NAMED_BY_CHECK_EPOCHS = 6
"""The lanes of data that the check of a corpus names, before the first step: a few epochs show what they look like."""


@dataclass(frozen=True)
class Run:
    """One unit of work: trained whole or not at all."""

    table: Table
    name: str
    config: TrainingConfig
    lane: Lane = field(default=HEALTHY)

    @property
    def file(self) -> Path:
        return FOLDER / self.table.name / f"{self.name}.json"


def sampled(table: Table, number: int) -> TrainingConfig:
    """Point `number` of the table's Halton sequence."""
    sequence = qmc.Halton(5, scramble=True, rng=TABLES.index(table))
    rate, start, dropout, schedule, warmup = sequence.fast_forward(number).random(1)[0].tolist()
    return TrainingConfig.model_validate(
        {
            **table.config,
            **SCHEDULES[int(schedule * len(SCHEDULES))],
            "learning_rate": float(f"{RATES[0] * (RATES[1] / RATES[0]) ** rate:.3g}"),
            "warmup_start_factor": round(START_FACTORS[0] + start * (START_FACTORS[1] - START_FACTORS[0]), 3),
            "warmup_epochs": WARMUPS[int(warmup * len(WARMUPS))],
            "dropout": round(DROPOUTS[0] + dropout * (DROPOUTS[1] - DROPOUTS[0]), 3),
            "patience": table.config["epochs"],
            "seed": number,
            "probe_interval": 1,
        }
    )


def runs_of(table: Table, count: int | None = None) -> list[Run]:
    """The healthy-data runs of a table, then its lanes."""
    plain = [Run(table, f"{n:03}", sampled(table, n)) for n in range(count or table.runs)]
    lanes = []
    for lane in LANES:
        epochs = NAMED_BY_CHECK_EPOCHS if lane.says in BY_CHECK else table.config["epochs"]
        fixed = {"epochs": epochs, "schedule": "constant", "probe_interval": 1}
        config = TrainingConfig.model_validate({**table.config, **fixed, **lane.config})
        name = lane.name.replace(" ", "-").replace("/", "").replace(",", "")
        lanes.append(Run(table, f"{name}.{config.learning_rate:g}", config, lane))
    return plain + lanes


def in_turns(lists: list[list[Run]]) -> Iterator[Run]:
    """One after another from each list, in proportion to its length: stopped at any point, all are equally far."""
    places = [((i + 1) / len(runs), n, i) for n, runs in enumerate(lists) for i in range(len(runs))]
    return (lists[n][i] for _, n, i in sorted(places))


@functools.lru_cache(2)
def corpus_of(path: Path, settings: tuple[tuple[str, Any], ...]) -> Corpus:
    return load_corpus(CorpusConfig(path=path, **dict(settings)))


def load(run: Run) -> Corpus:
    """The run's corpus, broken as its lane says."""
    every = run.lane.every or run.table.every
    path = corpus_at(run.table.path(), run.lane.scale, every)
    return run.lane.change(corpus_of(path, tuple(run.lane.corpus.items())))


def rounded(value: float) -> float | None:
    """Seven digits, as float32 has; None where there is no number."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def as_columns(reports: list[EpochReport]) -> dict[str, list[Any]]:
    """A curve by metric, which is a third of the size of a list of epochs."""
    keys = sorted({key for report in reports for key in report.metrics})
    columns: dict[str, list[Any]] = {
        "step": [r.step for r in reports],
        "skipped_steps": [r.skipped_steps for r in reports],
        "lr_time": [rounded(r.lr_time) for r in reports],
        "seconds": [round(r.seconds, 2) for r in reports],
        "not_finite": [r.not_finite for r in reports],
    }
    return columns | {key: [rounded(r.value(key)) for r in reports] for key in keys}


def checked(run: Run) -> list[str]:
    """The codes of what the check of a corpus finds before the first step."""
    path = corpus_at(run.table.path(), run.lane.scale, run.lane.every or run.table.every)
    report = check_corpus(CorpusConfig(path=path, **run.lane.corpus), run.config.output_stride)
    return sorted({finding.code for finding in report.findings})


def train(run: Run) -> list[EpochReport]:
    """Every epoch of a run."""
    trainer = run.lane.trainer(run.config, load(run))
    return [trainer.train_epoch(lambda: False) for _ in range(run.config.epochs)]


def commit_of_trainer() -> str:
    """The last commit that touched the trainer."""
    command = ["git", "log", "-1", "--format=%h", "--", "model"]
    found = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout.strip()
    if not found:
        raise RuntimeError("git knows no commit of model/: record from a clone, so that each run says its trainer")
    return found


def find(table: str, name: str) -> Run:
    """The run of that name."""
    return next(run for t in TABLES if t.name == table for run in runs_of(t, count=1000) if run.name == name)


def record(place: tuple[str, str]) -> str:
    """Train a run (named by table and name: its functions do not cross processes) and write its file; a line on it."""
    run = find(*place)
    return record_run(run, run.file)


def record_run(run: Run, file: Path) -> str:
    """Train a run and write it to a file; a line on it."""
    began = time.monotonic()
    reports = train(run)
    corpus = load(run)
    config = run.config
    about = {
        "table": run.table.name,
        "lane": run.lane.name,
        "says": run.lane.says,
        "check": checked(run) if run.lane.name else [],
        "corpus_hash": corpus.hash,
        "dev_sequences": len(corpus.dev),
        "trainer": version("ctc-sweeps"),
        "commit": commit_of_trainer(),
        "config": config.changed() | {"epochs": config.epochs, "learning_rate": config.learning_rate},
        "floors": finite(asdict(floors(corpus, config.output_stride))),
        "steps_in_epoch": reports[0].steps_in_epoch,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in about.items()]
    curve = [f"  {json.dumps(key)}: {json.dumps(column)}" for key, column in as_columns(reports).items()]
    text = "{\n" + ",\n".join(lines) + ',\n"curve": {\n' + ",\n".join(curve) + "\n}}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    aside.write_text(text, encoding="utf-8", newline="\n")
    aside.replace(file)
    best = min(report.wer for report in reports)
    return (
        f"{run.table.name}/{run.name}: learning rate {config.learning_rate:g}, best WER {best:.1%}, "
        f"{time.monotonic() - began:.0f} s"
    )


def pending(tables: list[Table], count: int | None) -> list[Run]:
    return [run for run in in_turns([runs_of(table, count) for table in tables]) if not run.file.exists()]


def record_all(tables: list[Table], count: int | None, workers: int) -> None:
    """Train what is not there yet."""
    for table in tables:
        table.path()  # generated once, before several processes want it
    todo = pending(tables, count)
    print(f"{len(todo)} runs to record", flush=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, line in enumerate(pool.imap_unordered(record, [(r.table.name, r.name) for r in todo]), 1):
            print(f"[{done}/{len(todo)}] {line}", flush=True)


def spot_check(tables: list[Table]) -> int:
    """Train twelve recorded runs anew; 1 if one of them differs in what is read from it."""
    there = [[run for run in runs_of(table) if not run.lane.name and run.file.exists()] for table in tables]
    chosen = [runs[i * len(runs) // 3] for runs in there if runs for i in range(3)]
    gaps, same, turned = [], 0, 0
    for run in chosen:
        content = json.loads(run.file.read_text(encoding="utf-8"))
        recorded, floor = content["curve"]["dev/wer"], content["floors"]["constant_wer"] - 0.05
        now = as_columns(train(run))["dev/wer"]
        gaps.append(100 * (min(now) - min(recorded)))
        same += recorded == now
        turned += (min(recorded) <= floor) != (min(now) <= floor)
        print(f"{run.table.name}/{run.name}: best WER {min(recorded):.1%}, now {min(now):.1%}", flush=True)
    if same == len(chosen):
        print("every run has the same WER in every epoch: the tables hold")
        return 0
    # Other rounding, or another draw of dropout, is another draw of the run: what must not have moved is where such
    # draws lie.
    mean, half = float(np.mean(gaps)), float(t.ppf(0.975, len(gaps) - 1) * sem(gaps))
    holds = abs(mean) <= half and turned <= 1
    print(
        f"{same} of {len(chosen)} runs have the same WER in every epoch; best WER moved by {mean:+.1f} points on "
        f"average (95 % interval {mean - half:+.1f} to {mean + half:+.1f}, largest {max(gaps, key=abs):+.1f}); "
        f"{turned} learned in one and not in the other: the tables "
        + ("hold" if holds else "do not hold (the interval leaves 0 out, or more than one turned): record them again")
    )
    return 0 if holds else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "list", "check"))
    parser.add_argument("--tables", nargs="*", choices=[t.name for t in TABLES], default=[t.name for t in TABLES])
    parser.add_argument("--runs", type=int, help="runs a table (default: each table's own number)")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    tables = [table for table in TABLES if table.name in arguments.tables]
    if arguments.command == "check":
        return spot_check(tables)
    if arguments.command == "record":
        record_all(tables, arguments.runs, arguments.workers)
    else:
        for table in tables:
            runs = runs_of(table, arguments.runs)
            print(f"{table.name}: {sum(run.file.exists() for run in runs)} of {len(runs)} runs recorded")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
