"""Curves of training runs, built from a few numbers, for tests of the rules that read them."""

from __future__ import annotations

import math

from model.types import METRICS, EpochReport

CONSTANT_WER = 0.92
"""WER of the best constant sentence of the corpus these runs are of."""

PLATEAU_WER = 1.0
STEPS = 60
"""Updates an epoch: 240 sentences in batches of 4, as in the measured runs."""


def report(epoch: int, wer: float, *, rate: float = 1e-3, spread: float = 1.0, lr_time: float | None = None,
           steps: int = STEPS, loss: float = 0.5) -> EpochReport:  # fmt: skip
    """One epoch of a run at a constant learning rate; `loss` is that of train and dev (nats per gloss)."""
    metrics = dict.fromkeys(METRICS, 0.5) | {"dev/wer": wer, "spread/time": spread, "optim/lr": rate}
    metrics |= {"train/loss": loss, "dev/loss": loss}
    return EpochReport(
        epoch=epoch,
        step=epoch * steps,
        metrics=metrics,
        steps_in_epoch=steps,
        lr_time=epoch * steps * rate if lr_time is None else lr_time,
        seconds=1.0,
    )


def run(
    epochs: int,
    rate: float,
    *,
    takeoff: int | None = None,
    falls_to: float = 0.3,
    spread_at_3: float = 0.05,
    steps: int = STEPS,
) -> list[EpochReport]:
    """A run whose time spread grows evenly, with WER 1 before epoch `takeoff` and then halving its way to
    `falls_to`.
    """
    curve = []
    for epoch in range(1, epochs + 1):
        wer = PLATEAU_WER
        if takeoff is not None and epoch >= takeoff:
            wer = falls_to + (0.8 - falls_to) * 0.5 ** (epoch - takeoff)
        curve.append(report(epoch, wer, rate=rate, spread=spread_at_3 * epoch / 3, steps=steps))
    return curve


def without_metrics(curve: list[EpochReport], *names: str, value: float = math.nan) -> list[EpochReport]:
    """The run with these metrics not finite (all of them, if none is named)."""
    bad = dict.fromkeys(names or METRICS, value)
    return [
        EpochReport(r.epoch, r.step, {**r.metrics, **bad}, r.steps_in_epoch, r.skipped_steps, r.lr_time, r.seconds)
        for r in curve
    ]
