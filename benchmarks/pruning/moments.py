"""A replayed sweep as it stood after each round of epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sweep import Replayed, Trial


def moments(sweep: Replayed, workers: int) -> Iterator[list[Trial]]:
    """The trials that had begun, each as far as it was then."""
    epochs: list[int] = []
    active: list[int] = []
    while len(epochs) < len(sweep.trials) or active:
        while len(active) < workers and len(epochs) < len(sweep.trials):
            active.append(len(epochs))
            epochs.append(0)
        for at in list(active):
            epochs[at] += 1
            if epochs[at] == sweep.trials[at].epochs:
                active.remove(at)
        yield [_then(trial, done) for trial, done in zip(sweep.trials, epochs, strict=False)]


def _then(trial: Trial, epochs: int) -> Trial:
    over = epochs == trial.epochs
    return replace(trial, epochs=epochs, over=over, stop=trial.stop if over else None)
