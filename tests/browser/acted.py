"""A trainer that acts out runs as they are known from real ones, in milliseconds and without torch: near the middle of
the rates it takes off, below it never does, above it it collapses after it had taken off.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.corpus.data import Corpus
from model.examples import Examples, examples, is_example_epoch, rows_of
from model.types import METRICS, EpochReport, Stopped, TrainingConfig

STEPS = 12
EPOCH_SECONDS = 0.05
TRAINER = f"{Path(__file__).resolve()}:ActedTrainer"
BEST_RATE = 1e-3


FRAMES = 40
"""Of the sentence that is drawn."""


class ActedTrainer:
    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.config, self.corpus, self.epoch, self.step = config, corpus, 0, 0

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        for _ in range(STEPS):
            if should_stop():
                raise Stopped
            time.sleep(EPOCH_SECONDS / STEPS)
            self.step += 1
        self.epoch += 1
        report = acted(self.config, self.epoch)
        return replace(report, examples=self._examples(report.wer)) if is_example_epoch(self.epoch) else report

    def _examples(self, wer: float) -> Examples:
        """Sentences read right where luck wills it, nothing else; a picture that gets darker as WER falls."""
        dev, glosses = self.corpus.dev, self.corpus.vocabulary.glosses
        lucky = random.Random(f"{self.config.seed}/{self.epoch}")
        sentences = [
            (dev.ids[row], dev.references[row], dev.references[row] if lucky.random() > wer else glosses[1])
            for row in rows_of(len(dev))
        ]
        log_probs = np.full((FRAMES, len(glosses)), -8.0)
        log_probs[np.arange(FRAMES), np.arange(FRAMES) // 10] = -8.0 * min(wer, 1.0)
        return examples(sentences, dev.ids[0], dev.targets[0].tolist(), log_probs, glosses)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]


def acted(config: TrainingConfig, epoch: int) -> EpochReport:
    """That epoch of the run that `config` stands for."""
    decades = math.log10(config.learning_rate / BEST_RATE)
    noise = random.Random(f"{config.seed}/{epoch}").uniform(-0.02, 0.02)
    takeoff = 4 + round(3 * abs(decades))
    learns = abs(decades) < 1 and epoch >= takeoff and not (decades > 0.6 and epoch > takeoff + 3)
    floor = 0.15 + 0.2 * abs(decades) + 0.1 * abs(config.dropout - 0.2)
    wer = floor + (0.8 - floor) * 0.7 ** (epoch - takeoff) + noise if learns else 1.0
    spread = 0.05 * epoch if abs(decades) < 1 else 0.004
    metrics = dict.fromkeys(METRICS, 0.1) | {
        "dev/wer": wer,
        "dev/loss": 4 * wer + 0.5,
        "dev/sub": 0.5 * wer,
        "dev/del": 0.4 * wer,
        "dev/ins": 0.1 * wer,
        "train/loss": 4 * wer + 0.2,
        "optim/lr": config.learning_rate,
        "spread/time": 2.0 if learns else spread,
        "spread/min": -7.0 - epoch,
        "spread/max": -0.1,
        "spread/range": 6.9 + epoch,
    }
    return EpochReport(epoch, epoch * STEPS, metrics, STEPS, lr_time=epoch * STEPS * config.learning_rate,
                       seconds=EPOCH_SECONDS)  # fmt: skip
