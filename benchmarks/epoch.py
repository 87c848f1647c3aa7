"""How long an epoch takes beside a plain training loop with the same batches and the same losses.

    python benchmarks/epoch.py CORPUS [--batch_size 8] [--rounds 5] [--dev N] [--json] [trainer options]

The plain loop (benchmarks/plain.py), the product's trainer and the same with length buckets take turns, an epoch each,
in one process on one thread. Losses are compared first, without dropout: see `compared`. The product's epoch has all
its metrics, and the probes of the plateau in them unless `--probe_interval 0`. `--same_model` gives the plain loop the
product's network, so that what is left is the loop. `--dev` leaves only the first sentences of dev, where the corpus is
a part of a larger one and should keep its proportions. At full width a step's FLOP/s are held against those of a matrix
product, in turns as well (benchmarks/flops.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flops import SIDE, matmul_rate, step_flops
from plain import PlainLoop, make_plain
from rows import Aim, Row, row, show

import model.ctc
from model.commands.options import add_corpus_options, corpus_config
from model.commands.train import add_training_options, training_config
from model.corpus.data import Corpus, load_corpus, make_batch
from model.ctc import CTCTrainer
from model.encoder import Student
from model.types import TrainingConfig

AIM, AIM_WIDE, WIDE = Aim(0.85, 0.75), Aim(0.9, 0.7), 6516
AIM_RATE = Aim(0.35, 0.5, most=False)
EQUAL = 1e-4
"""How far the losses of the first epoch may lie apart, relative."""
EXACT = 1e-8
"""And in float64, where float32's rounding is out of play: what is left would be another computation."""
BUCKETS = 8
"""Batches that are sorted by length together, unless `--length_buckets` says how many."""
STEPS = 12
"""Steps whose FLOP/s are measured."""


def with_dev(corpus: Corpus, sentences: int) -> Corpus:
    """With only the first sentences of dev."""
    dev, kept = corpus.dev, slice(sentences)
    cut = replace(
        dev,
        ids=dev.ids[kept],
        signers=dev.signers[kept],
        lengths=dev.lengths[kept],
        targets=dev.targets[kept],
        references=dev.references[kept],
        needed=dev.needed[kept],
    )
    return replace(corpus, dev=cut)


def loops(config: TrainingConfig, corpus: Corpus, *, same_model: bool) -> tuple[PlainLoop, CTCTrainer]:
    """Both with the same weights."""
    trainer = CTCTrainer(config, corpus)
    assert isinstance(trainer.model, Student)
    if same_model:
        return PlainLoop(config, corpus, CTCTrainer(config, corpus).model), trainer
    plain = make_plain(config, corpus)
    plain.take(trainer.model)
    return PlainLoop(config, corpus, plain), trainer


def first_losses(
    config: TrainingConfig, corpus: Corpus, *, same_model: bool, dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Train loss of the first epoch, of the plain loop and of the product (nats a gloss)."""
    plain, trainer = loops(config, corpus, same_model=same_model)
    for network in (plain.model, trainer.model):
        network.to(dtype).register_forward_pre_hook(lambda _, given: (given[0].to(dtype), given[1]))
    return plain.train_epoch()[0], trainer.train_epoch(lambda: False).metrics["train/loss"]


def first_step(config: TrainingConfig, corpus: Corpus, *, same_model: bool) -> tuple[float, float]:
    """The loss of the first batch alone."""
    plain, trainer = loops(config, corpus, same_model=same_model)
    (rows,) = trainer.groups(1)[0]
    trainer.begin(1)
    update = trainer.update([rows], config.learning_rate)
    assert update is not None
    return plain.step(rows[trainer.fits[rows]])[0], update.loss / update.glosses


def apart(losses: tuple[float, float]) -> float:
    """Relative to the first."""
    return abs(losses[1] - losses[0]) / abs(losses[0])


def compared(config: TrainingConfig, corpus: Corpus, *, same_model: bool) -> str:
    """What says that both loops compute the same: the train loss of the first epoch in float32, within EQUAL.

    The first steps of AdamW move each weight by the learning rate, however small its gradient, so on a network of
    millions of weights rounding grows tenfold in a few steps. Where it has carried the epochs apart, the first batch in
    float32 must be within EQUAL, and the whole epoch in float64 within EXACT.

    Raises:
        SystemExit: they do not, so that the times say nothing.
    """
    config = config.with_values({"dropout": 0.0, "probe_interval": 0})
    theirs, ours = found = first_losses(config, corpus, same_model=same_model)
    said = f"train loss of the first epoch {ours:.6f} and {theirs:.6f}"
    if apart(found) <= EQUAL:
        return said
    step = first_step(config, corpus, same_model=same_model)
    exact = first_losses(config, corpus, same_model=same_model, dtype=torch.float64)
    said += (
        f" in float32, where rounding grows (of its first batch {step[1]:.6f} and {step[0]:.6f}); "
        f"in float64 {exact[1]:.6f} both, {apart(exact):.0e} apart"
    )
    if not (apart(step) <= EQUAL and apart(exact) <= EXACT):
        raise SystemExit(f"the losses differ, ours and the plain loop's: {said}")
    return said


def taken(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of this process alone."""
    wall, own = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - own


def longest(trainer: CTCTrainer) -> int:
    """Frames of the longest sentence of each batch of the first epoch, added up."""
    lengths = trainer.corpus.train.lengths
    return sum(int(lengths[rows].max()) for group in trainer.groups(1) for rows in group)


def rates(trainer: CTCTrainer) -> list[tuple[int, float, float]]:
    """Of some steps the FLOP counted, and the FLOP/s of the step and of a matrix product beside it.

    A step is forward, loss, backward, clipping and the optimizer, on a batch that has been read.
    """
    assert isinstance(trainer.model, Student)
    found = []
    trainer.begin(trainer.epoch + 1)
    for group in trainer.groups(trainer.epoch + 1)[:STEPS]:
        batches = [rows[trainer.fits[rows]] for rows in group]
        read = [make_batch(trainer.corpus.train, rows) for rows in batches if len(rows)]
        if not read:
            continue
        flops = sum(sum(step_flops(trainer.model, batch.lengths.tolist())) for batch in read)
        rate = matmul_rate()
        with patch.object(model.ctc, "make_batch", side_effect=read):
            seconds, _ = taken(lambda group=group: trainer.update(group, trainer.config.learning_rate))  # type: ignore[misc]
        found.append((flops, flops / seconds, rate))
    return found


def measured(config: TrainingConfig, corpus: Corpus, rounds: int, *, same_model: bool) -> dict[str, Any]:
    """
    Raises:
        SystemExit: the losses differ, so that the times say nothing.
    """
    buckets, config = config.length_buckets or BUCKETS, config.with_values({"length_buckets": 0})
    same = compared(config, corpus, same_model=same_model)
    plain, trainer = loops(config, corpus, same_model=same_model)
    bucketed = CTCTrainer(config.with_values({"length_buckets": buckets}), corpus)
    epochs = (
        plain.train_epoch,
        lambda: trainer.train_epoch(lambda: False),
        lambda: bucketed.train_epoch(lambda: False),
    )
    seconds = np.array([[taken(epoch) for epoch in epochs] for _ in range(rounds)])  # (rounds, loops, wall and own)
    theirs, ours, sorted_ours = np.median(seconds, axis=0).tolist()
    ratio, cpu_ratio = np.median(seconds[:, 1] / seconds[:, 0], axis=0).tolist()
    found = {
        "corpus": corpus.name,
        "baseline": "plain loop, the product's network" if same_model else "plain loop",
        "plain_seconds": theirs[0],
        "seconds": ours[0],
        "ratio": ratio,
        "plain_cpu_seconds": theirs[1],
        "cpu_seconds": ours[1],
        "cpu_ratio": cpu_ratio,
        "same": same,
        "buckets": buckets,
        "bucketed_seconds": sorted_ours[0],
        "bucketed_ratio": median((seconds[:, 2] / seconds[:, 1])[:, 0].tolist()),
        "bucketed_longest": longest(bucketed) / longest(trainer),
        "rounds": rounds,
    }
    if corpus.width < WIDE:
        return found
    steps = rates(trainer)
    return found | {
        "step_gflop": median(flops for flops, _, _ in steps) / 1e9,
        "step_gflops": median(rate for _, rate, _ in steps) / 1e9,
        "matmul_gflops": median(rate for _, _, rate in steps) / 1e9,
        "matmul_share": median(rate / best for _, rate, best in steps),
    }


def as_rows(found: dict[str, Any], aim: Aim) -> list[Row]:
    baseline = found["baseline"]
    cpu = (found["cpu_seconds"], "s", baseline, found["plain_cpu_seconds"], found["cpu_ratio"])
    note = (
        f"`length_buckets` {found['buckets']}: another order, so losses of its own; "
        f"the longest of each batch come to {found['bucketed_longest']:.2f}"
    )
    rows = [
        row("an epoch", found["seconds"], "s", baseline, found["plain_seconds"], found["ratio"], aim, found["same"]),
        row("its processor time", *cpu),
        row(
            "an epoch with length buckets",
            found["bucketed_seconds"],
            "s",
            "without",
            found["seconds"],
            found["bucketed_ratio"],
            note=note,
        ),
    ]
    if "matmul_share" in found:
        rows.append(
            row(
                "share of the matrix multiply rate over a step",
                found["step_gflops"],
                "GFLOP/s",
                f"products of {SIDE} x {SIDE}",
                found["matmul_gflops"],
                found["matmul_share"],
                AIM_RATE,
                f"{found['step_gflop']:.1f} GFLOP a step, counted without what goes element by element",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_options(parser, positional=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dev", type=int, help="of dev the first N sentences only", metavar="N")
    parser.add_argument("--same_model", action="store_true")
    parser.add_argument("--json", action="store_true")
    add_training_options(parser)
    arguments = parser.parse_args()
    # Constant, as the plain loop has no schedule.
    config = training_config(arguments).with_values({"schedule": "constant"})
    corpus = load_corpus(corpus_config(arguments))
    if arguments.dev is not None:
        corpus = with_dev(corpus, arguments.dev)
    found = measured(config, corpus, arguments.rounds, same_model=arguments.same_model)
    aim = AIM_WIDE if corpus.width >= WIDE else AIM
    if arguments.json:
        show(as_rows(found, aim), as_json=True)
        return
    print(found["corpus"])
    show(as_rows(found, aim), as_json=False)


if __name__ == "__main__":
    main()
