"""What the probes cost: their share of an epoch, in the plateau and after takeoff.

    python benchmarks/probes.py CORPUS [--filter phoenix-si5] [--batch_size 8] [--steps 0] [trainer options]

Trains two epochs (`--steps N`: so many steps of one, for a corpus whose epoch takes hours, and multiplies), timing
the probes apart from the rest. A paired measurement in one process: what else the machine does hits both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from model.commands.options import add_corpus_options, corpus_config
from model.commands.train import add_training_options, training_config
from model.corpus.data import epoch_order, load_corpus, make_batch
from model.ctc import CTCTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_options(parser, positional=True)
    parser.add_argument("--steps", type=int, default=0)
    add_training_options(parser)
    arguments = parser.parse_args()
    config = training_config(arguments)
    corpus = load_corpus(corpus_config(arguments), cache=Path(".sweeps") / "scans")
    trainer = CTCTrainer(config, corpus)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    spent: list[float] = []
    probe = trainer._probe

    def timed(*given: Any) -> dict[str, float]:
        began = time.perf_counter()
        try:
            return probe(*given)
        finally:
            spent.append(time.perf_counter() - began)

    trainer._probe = timed  # type: ignore[method-assign]
    print(f"{corpus.name}: {len(corpus.train)} train, {len(corpus.dev)} dev, {parameters / 1e6:.2f} M parameters")
    if arguments.steps:
        whole = seconds_of_an_epoch(trainer, arguments.steps)
        evaluation = trainer.evaluate(corpus.dev)
        trainer.dev_wers.append(1.0)
        trainer._probe(evaluation, 1, lambda: False)  # type: ignore[misc]
        trainer.dev_wers[-1] = 0.0
        trainer._probe(evaluation, 1, lambda: False)  # type: ignore[misc]
    else:
        trainer.train_epoch(lambda: False)
        report = trainer.train_epoch(lambda: False)
        whole = report.seconds - spent[-1]
        spent.clear()
        evaluation = trainer.evaluate(corpus.dev)
        for wer in (1.0, 0.0):
            trainer.dev_wers = [wer] * trainer.epoch
            trainer._probe(evaluation, 1, lambda: False)  # type: ignore[misc]
    plateau, learning = spent
    every = config.probe_interval or 1
    print(
        f"an epoch without probes {whole:.2f} s, probes {plateau:.2f} s in the plateau, {learning:.2f} s after takeoff"
    )
    print(f"share: {plateau / whole:.1%} in the plateau, {learning / every / whole:.1%} after (every {every} epochs)")


def seconds_of_an_epoch(trainer: CTCTrainer, steps: int) -> float:
    """An epoch, from the median of so many steps, and dev once."""
    train, size = trainer.corpus.train, trainer.config.batch_size
    order = epoch_order(len(train), 0, 1)
    seconds = [_step(trainer, order[at * size : (at + 1) * size]) for at in range(steps + 1)]
    began = time.perf_counter()
    trainer.evaluate(trainer.corpus.dev)
    return median(seconds) * len(train) / size + time.perf_counter() - began


def _step(trainer: CTCTrainer, rows: Any) -> float:
    trainer.model.train()
    began = time.perf_counter()
    loss = trainer._loss(make_batch(trainer.corpus.train, rows))
    loss.backward()  # type: ignore[no-untyped-call]
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
