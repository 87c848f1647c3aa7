"""The lanes: runs that are healthy, slow, or dead in a known way, to hold the diagnosis against.

    python benchmarks/lanes.py run [--out benchmarks/lanes] [--seeds 3] [--only NAME ...]
    python benchmarks/lanes.py table

`run` trains every lane and keeps each epoch's report, a line an epoch (a run that is there is not trained again);
`table` reads them, asks the diagnosis after each epoch, and prints the confusion table of docs/lanes.md.

The lanes are those that a swap gap was first measured on: three healthy learning rates, the user's old warm-up (slow,
alive), features that are all zero, not normalised, or labels shuffled between sentences, output at T/16 with
zero_infinity, a network that averages over time, and AdamW with eps 1e-3.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.corpus.check import check_corpus
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.corpus.synthetic import GeneratedConfig, generate
from model.ctc import CTCTrainer
from model.diagnosis import run_findings, takeoff_epoch
from model.findings import Finding, finite
from model.floors import Floors, floors
from model.jagged import BiLSTM, Frames
from model.types import EpochReport, TrainingConfig

HERE = Path(__file__).parent
HOME = Path(".sweeps") / "corpora"
EPOCHS = 24
DEV = 110
SEEDS = 3


class InfiniteIsZero(CTCTrainer):
    """The mistake of many scripts: sequences that no alignment fits stay in, their infinite loss set to zero."""

    def _loss(self, batch: Any) -> Tensor:
        log_probs, lengths = self.forward(batch)
        targets, target_lengths = torch.from_numpy(batch.targets), torch.from_numpy(batch.target_lengths)
        return F.ctc_loss(
            log_probs.transpose(0, 1), targets, lengths, target_lengths, reduction="sum", zero_infinity=True
        )


def all_left_in(corpus: Corpus) -> Corpus:
    """Every train target is taken to fit, whether it does or not: nothing is left out, nothing is counted."""
    return replace(corpus, train=replace(corpus.train, needed=np.ones_like(corpus.train.needed)))


class TimeMean(nn.Module):
    """A BiLSTM that is given, in every frame, the mean over the sequence's frames: time has collapsed."""

    def __init__(self, lstm: BiLSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        return self.lstm(frames.mean(x)[frames.sequence], frames)  # type: ignore[no-any-return]


class TimeCollapsed(CTCTrainer):
    """A network that averages over time before its BiLSTM."""

    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        super().__init__(config, corpus)
        self.model.lstm = TimeMean(self.model.lstm)


def shuffled(corpus: Corpus) -> Corpus:
    """Each train sentence gets the target of another one of nearly its length, so that it still fits; none its own."""
    train = corpus.train
    order = np.argsort(train.lengths, kind="stable")
    dealt = np.empty(len(order), dtype=np.int64)
    dealt[order] = np.roll(order, 7)
    targets = tuple(train.targets[i] for i in dealt)
    references = tuple(train.references[i] for i in dealt)
    return replace(corpus, train=replace(train, targets=targets, references=references, needed=train.needed[dealt]))


@dataclass(frozen=True)
class Lane:
    """A way to train, and what is true of it."""

    name: str
    alive: bool
    says: str
    """The code of the finding that names it rightly; of a live lane: none is expected."""
    config: dict[str, Any] = field(default_factory=dict)
    corpus: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Corpus], Corpus] = lambda corpus: corpus
    trainer: type[CTCTrainer] = CTCTrainer
    scale: float = 1.0
    """The stored features are multiplied by it."""
    every: float = 1.0
    """Of so many frames one is kept. 1.12 leaves two thirds of train without an alignment at T/16, as on SI5."""
    epochs: int = EPOCHS

    def __str__(self) -> str:
        return self.name


OLD = {
    "learning_rate": 1e-4,
    "warmup_start_factor": 0.1,
    "warmup_epochs": 5,
    "schedule": "cosine_restarts",
    "restart_epochs": 10,
}

LANES = (
    Lane("healthy 5e-4", True, "", {"learning_rate": 5e-4}),
    Lane("healthy 1e-3", True, "", {"learning_rate": 1e-3}),
    Lane("healthy 4e-3", True, "", {"learning_rate": 4e-3}),
    Lane("old warm-up", True, "learning_rate_too_low", OLD, epochs=2 * EPOCHS),
    Lane("zero features", False, "nothing_varies", {"learning_rate": 1e-3}, scale=0.0),
    # Pixels instead of shares of the picture saturate an LSTM. The student bears them: it normalises batches.
    Lane(
        "pixels, not normalised",
        False,
        "not_normalised",
        {"learning_rate": 1e-3, "architecture": "bilstm"},
        {"normalise": False},
        scale=1000.0,
    ),
    Lane("not normalised", True, "", {"learning_rate": 1e-3}, {"normalise": False}),
    Lane("shuffled labels", False, "input_not_used", {"learning_rate": 1e-3}, change=shuffled),
    Lane(
        "T/16, zero_infinity",
        False,
        "infeasible_targets",
        {"learning_rate": 1e-3, "output_stride": 16},
        change=all_left_in,
        every=1.12,
        trainer=InfiniteIsZero,
    ),
    Lane("time collapsed", False, "time_collapsed", {"learning_rate": 1e-3}, trainer=TimeCollapsed),
    Lane("eps 1e-3", True, "step_throttled", {"learning_rate": 1e-3, "adam_eps": 1e-3}),
)


def corpus_at(base: Path, scale: float, every: float) -> Path:
    """A corpus folder, its features multiplied by `scale`, of `every` so many frames one."""
    corpus = base.resolve()
    if (scale, every) == (1, 1):
        return corpus
    scaled = HOME / f"{corpus.name}-times-{scale:g}-every-{every:g}"
    for file in corpus.rglob("*"):
        copy = scaled / file.relative_to(corpus)
        if file.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".npz":
                with np.load(file) as stored:
                    x = stored["features"]
                    np.savez(copy, features=x[np.arange(0, len(x), every).astype(int)] * np.float32(scale))
            else:
                copy.write_bytes(file.read_bytes())
    return scaled


def config_of(lane: Lane, seed: int) -> TrainingConfig:
    plain = TrainingConfig(epochs=lane.epochs, seed=seed, data_seed=seed, schedule="constant")
    return plain.with_values(lane.config)


def train_lane(lane: Lane, seed: int, base: Path) -> Iterator[EpochReport]:
    """The reports of a lane, an epoch at a time."""
    data = lane.change(load_corpus(CorpusConfig(path=corpus_at(base, lane.scale, lane.every), **lane.corpus)))
    trainer = lane.trainer(config_of(lane, seed), data)
    for _ in range(lane.epochs):
        yield trainer.train_epoch(lambda: False)


def file_of(folder: Path, lane: Lane, seed: int) -> Path:
    """Where a run's reports lie."""
    return folder / f"{lane.name.replace(' ', '-').replace('/', '').replace(',', '')}.{seed}.jsonl"


def as_line(report: EpochReport) -> str:
    metrics = {k: float(f"{v:.9g}") for k, v in report.metrics.items() if math.isfinite(v)}
    return json.dumps({**asdict(report), "seconds": round(report.seconds, 2), "metrics": metrics})


def floors_of(lane: Lane, base: Path) -> Floors:
    """What knowing nothing scores in a lane."""
    corpus = load_corpus(CorpusConfig(path=corpus_at(base, lane.scale, lane.every)))
    return floors(corpus, lane.config.get("output_stride", 4))


def run(folder: Path, base: Path, seeds: int, only: list[str]) -> None:
    """Train the lanes that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {lane.name: finite(asdict(floors_of(lane, base))) for lane in LANES}
    (folder / "floors.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8", newline="\n")
    for seed in range(seeds):
        for lane in LANES:
            file = file_of(folder, lane, seed)
            if file.exists() or (only and lane.name not in only):
                continue
            began, lines = time.monotonic(), []
            for report in train_lane(lane, seed, base):
                lines.append(as_line(report))
                m = report.metrics
                t = {key: report.value(f"probe/{key}_t") for key in ("swap", "permuted")}
                print(
                    f"{lane.name:22} seed {seed} epoch {report.epoch:2}  loss {m['train/loss']:7.3f} "
                    f"dev {m['dev/loss']:7.3f}  WER {m['dev/wer']:6.1%}  swap t {t['swap']:6.2f}  "
                    f"permuted t {t['permuted']:6.2f}  step {m['optim/step_ratio']:.3f}  {report.seconds:.1f} s",
                    flush=True,
                )
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
            print(f"{file.name}: {time.monotonic() - began:.0f} s", flush=True)


@dataclass(frozen=True)
class Named:
    """When a run was first given a finding, and when it was first called dead."""

    epoch: int | None
    """0: by the check, before the first step. None: never."""
    dead: int | None
    dead_by: str
    wrongly: tuple[str, ...]
    """Findings that call it dead and are not the expected one."""


def named(lane: Lane, reports: list[EpochReport], static: list[Finding], floor: Floors) -> Named:
    """Ask the check before the first step, then the diagnosis after each epoch, as if it did not know the rest."""
    config = config_of(lane, 0)
    seen = {0: static}
    for n in range(1, len(reports) + 1):
        seen[n] = run_findings(reports[:n], config, floor, dev_sequences=DEV)
    right = next((n for n, found in seen.items() if lane.says in {f.code for f in found}), None)
    fatal = {n: [f.code for f in found if f.severity == "fatal"] for n, found in seen.items()}
    dead = next((n for n, codes in fatal.items() if codes), None)
    wrongly = {code for codes in fatal.values() for code in codes} if lane.alive else set()
    return Named(right, dead, fatal[dead][0] if dead is not None else "", tuple(sorted(wrongly)))


def table(folder: Path, base: Path) -> None:
    """The confusion table, in Markdown."""
    print("| lane | truth | seed | took off | best WER | expected finding | at epoch | called dead at epoch | by |")
    print("|---|---|---|---|---|---|---|---|---|")
    totals = dict.fromkeys(("faulty", "faulty, called dead", "faulty, named", "live", "live, called dead"), 0)
    for lane in LANES:
        path = corpus_at(base, lane.scale, lane.every)
        stride = lane.config.get("output_stride", 4)
        check = check_corpus(CorpusConfig(path=path, **lane.corpus), stride)
        floor = floors_of(lane, base)
        for seed in range(SEEDS):
            file = file_of(folder, lane, seed)
            if not file.exists():
                continue
            reports = [EpochReport(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
            found = named(lane, reports, check.findings, floor)
            wers = [report.wer for report in reports]
            cells = [
                lane.name,
                "live" if lane.alive else "faulty",
                seed,
                takeoff_epoch(wers, floor.constant_wer),
                f"{min(wers):.1%}",
                f"`{lane.says}`" if lane.says else "none",
                found.epoch if lane.says else None,
                found.dead,
                f"`{found.dead_by}`" if found.dead_by else "",
            ]
            print("| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |")
            totals["live" if lane.alive else "faulty"] += 1
            totals["live, called dead" if lane.alive else "faulty, called dead"] += found.dead is not None
            totals["faulty, named"] += not lane.alive and found.epoch is not None
    print()
    print(", ".join(f"{name}: {count}" for name, count in totals.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--out", type=Path, default=HERE / "lanes")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument(
        "--corpus", type=Path, help="a corpus folder of about 100 dev sentences (default: a generated one)"
    )
    arguments = parser.parse_args()
    base = arguments.corpus or generate(GeneratedConfig(train=240, dev=DEV), HOME)
    if arguments.command == "run":
        run(arguments.out, base, arguments.seeds, arguments.only)
    else:
        table(arguments.out, base)


if __name__ == "__main__":
    main()
