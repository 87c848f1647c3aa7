"""From a config and a corpus to a trainer."""

from __future__ import annotations

from model.data import Corpus
from model.types import Trainer, TrainingConfig


def make_trainer(config: TrainingConfig, corpus: Corpus) -> Trainer:
    """The trainer of one trial. Imports torch: call it in a worker."""
    from model.ctc import CTCTrainer

    return CTCTrainer(config, corpus)
