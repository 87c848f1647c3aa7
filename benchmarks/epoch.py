"""How long an epoch takes beside a plain training loop with the same batches and the same losses.

    python benchmarks/epoch.py CORPUS [--batch_size 8] [--rounds 5] [--json] [trainer options]

The plain loop (benchmarks/plain.py) and the product's trainer take turns, an epoch each, in one process on one thread.
Losses are compared first, without dropout. The product's epoch has all its metrics, and the probes of the plateau in
them unless `--probe_interval 0`. `--same_model` gives the plain loop the product's network, so that what is left is the
loop.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from plain import PlainLoop, make_plain
from rows import Aim, Row, row, show

from model.commands.options import add_corpus_options, corpus_config
from model.commands.train import add_training_options, training_config
from model.corpus.data import Corpus, load_corpus
from model.ctc import CTCTrainer
from model.encoder import Student
from model.types import TrainingConfig

AIM, AIM_WIDE, WIDE = Aim(0.85, 0.75), Aim(0.9, 0.7), 6516
EQUAL = 1e-4
"""How far the losses of the first epoch may lie apart, relative."""


def loops(config: TrainingConfig, corpus: Corpus, *, same_model: bool) -> tuple[PlainLoop, CTCTrainer]:
    """Both with the same weights."""
    trainer = CTCTrainer(config, corpus)
    assert isinstance(trainer.model, Student)
    if same_model:
        return PlainLoop(config, corpus, CTCTrainer(config, corpus).model), trainer
    plain = make_plain(config, corpus)
    plain.take(trainer.model)
    return PlainLoop(config, corpus, plain), trainer


def first_losses(config: TrainingConfig, corpus: Corpus, *, same_model: bool) -> tuple[float, float]:
    """Train loss of the first epoch, of the plain loop and of the product (nats a gloss)."""
    plain, trainer = loops(config.with_values({"dropout": 0.0}), corpus, same_model=same_model)
    return plain.train_epoch()[0], trainer.train_epoch(lambda: False).metrics["train/loss"]


def taken(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of this process alone."""
    wall, own = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - own


def measured(config: TrainingConfig, corpus: Corpus, rounds: int, *, same_model: bool) -> dict[str, Any]:
    """
    Raises:
        SystemExit: the losses differ, so that the times say nothing.
    """
    theirs, ours = first_losses(config, corpus, same_model=same_model)
    if abs(ours - theirs) > EQUAL * abs(theirs):
        raise SystemExit(f"the losses of the first epoch differ: {theirs:.6f} (plain), {ours:.6f} nats a gloss")
    plain, trainer = loops(config, corpus, same_model=same_model)
    seconds = [(taken(plain.train_epoch), taken(lambda: trainer.train_epoch(lambda: False))) for _ in range(rounds)]
    return {
        "corpus": corpus.name,
        "baseline": "plain loop, the product's network" if same_model else "plain loop",
        "plain_seconds": median(a[0] for a, _ in seconds),
        "seconds": median(b[0] for _, b in seconds),
        "ratio": median(b[0] / a[0] for a, b in seconds),
        "plain_cpu_seconds": median(a[1] for a, _ in seconds),
        "cpu_seconds": median(b[1] for _, b in seconds),
        "cpu_ratio": median(b[1] / a[1] for a, b in seconds),
        "plain_loss": theirs,
        "loss": ours,
        "rounds": rounds,
    }


def as_rows(found: dict[str, Any], aim: Aim) -> list[Row]:
    note = f"train loss of the first epoch {found['loss']:.6f} and {found['plain_loss']:.6f}"
    return [
        row("an epoch", found["seconds"], "s", found["baseline"], found["plain_seconds"], found["ratio"], aim, note),
        row(
            "its processor time",
            found["cpu_seconds"],
            "s",
            found["baseline"],
            found["plain_cpu_seconds"],
            found["cpu_ratio"],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_options(parser, positional=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--same_model", action="store_true")
    parser.add_argument("--json", action="store_true")
    add_training_options(parser)
    arguments = parser.parse_args()
    # Constant, as the plain loop has no schedule.
    config = training_config(arguments).with_values({"schedule": "constant"})
    corpus = load_corpus(corpus_config(arguments))
    found = measured(config, corpus, arguments.rounds, same_model=arguments.same_model)
    if arguments.json:
        show(as_rows(found, AIM_WIDE if corpus.width >= WIDE else AIM), as_json=True)
        return
    print(
        f"{found['corpus']}: {found['seconds']:.2f} s an epoch, {found['baseline']} {found['plain_seconds']:.2f} s: "
        f"{found['ratio']:.2f} of it (of this process' own time: {found['cpu_ratio']:.2f}); train loss of the first "
        f"epoch {found['loss']:.6f} and {found['plain_loss']:.6f} nats a gloss"
    )


if __name__ == "__main__":
    main()
