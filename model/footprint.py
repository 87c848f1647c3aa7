"""What one trial takes of a device's memory, found by training some steps of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from model.corpus.data import Corpus
from model.ctc import CTCTrainer, pick_device
from model.types import TrainingConfig

STEPS = 8
"""Updates on random batches: what torch keeps for batches of many lengths is more than the longest one takes."""


class Footprint(NamedTuple):
    """Memory of a device, in bytes."""

    free: int
    """Before the trial, with a process that uses the device in place."""
    trial: int
    """What torch reserved for the trial at most, features that lie there included."""


def footprint(config: TrainingConfig, corpus: Corpus, should_stop: Callable[[], bool] = lambda: False) -> Footprint:
    """Train some steps of a run and read the longest batch of dev. For a process of its own, which ends then.

    Raises:
        Stopped: `should_stop()` was true before a batch.
        CorpusError: no target fits the output stride.
        ValueError: there is no CUDA device: only its memory can be asked.
        torch.OutOfMemoryError: one trial alone does not fit.
    """
    device = pick_device(config.device)
    if device.type != "cuda":
        raise ValueError(f"device {device}: only a CUDA device says how much of its memory is free")
    free = torch.cuda.mem_get_info(device)[0]
    trainer = CTCTrainer(config, corpus)
    train_some(trainer, should_stop)
    return Footprint(free, torch.cuda.max_memory_reserved(device))


def train_some(trainer: CTCTrainer, should_stop: Callable[[], bool]) -> None:
    """Two updates on the longest batch (the second has the optimizer's moments), some on others; the longest of dev."""
    train, dev = trainer.corpus.train, trainer.corpus.dev
    rows = np.flatnonzero(trainer.fits)
    longest = rows[np.argsort(train.lengths[rows], kind="stable")][-trainer.config.batch_size :]
    trainer.begin(1)
    for group in [[longest], [longest], *trainer.groups(1)[:STEPS]]:
        trainer.update(group, trainer.config.learning_rate, should_stop)
    trainer.evaluate(dev, should_stop, np.argsort(dev.lengths, kind="stable")[-trainer.config.eval_batch_size :])
