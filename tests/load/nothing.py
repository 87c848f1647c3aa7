"""A trainer that does nothing, in no time: what is left of a trial is the sweep's own work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log10
from typing import Any

from model.corpus.data import Corpus
from model.types import EpochReport, Stopped, TrainingConfig, mixed_seed

BEST_RATE = 1e-3


class Nothing:
    """Its WER is the lower, the nearer the learning rate is to `BEST_RATE`, so that the sampler has what to learn."""

    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.config, self.epoch, self.step = config, 0, 0

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        if should_stop():
            raise Stopped
        self.epoch, self.step = self.epoch + 1, self.step + 1
        noise = mixed_seed(self.config.seed, self.epoch) / 2**32
        wer = (0.1 + 0.1 * abs(log10(self.config.learning_rate / BEST_RATE)) + 0.05 * noise) / self.epoch
        metrics = {"dev/wer": wer, "dev/loss": 4 * wer, "train/loss": 4 * wer, "optim/lr": self.config.learning_rate}
        return EpochReport(self.epoch, self.step, metrics, steps_in_epoch=1, lr_time=self.step * 1e-3)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
