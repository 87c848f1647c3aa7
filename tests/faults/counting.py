"""A trainer that counts instead of training, without torch: its curve is a chain, so an epoch shows all before it.

It writes a line when an epoch begins and another when it ends, into the file that `COUNTING_LOG` names: from these it
can be told which epochs were trained twice, and by whom. What a trial does besides is told by its `hidden`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model.corpus.data import Corpus
from model.types import EpochReport, Stopped, TrainingConfig, mixed_seed

LOG = "COUNTING_LOG"
STEP_SECONDS = "COUNTING_STEP_SECONDS"
"""Environment variables: where the lines go, and how long a step takes (default 0.05 s)."""

STEPS = 4
LONG_STEPS = 200

HEALTHY, CRASHES, OUT_OF_MEMORY, KILLED, DIVERGES, LONG = 16, 101, 102, 103, 104, 105
"""Values of `hidden`: an ordinary trial; one whose every attempt raises an error, or raises MemoryError, or is killed
as the kernel kills what takes too much memory; one whose second epoch diverges; one with epochs of `LONG_STEPS`."""


class CountingTrainer:
    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.config, self.epoch, self.step, self.chain = config, 0, 0, mixed_seed(config.seed, config.learning_rate)

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        number = self.epoch + 1
        _write("begin", self.config.seed, number)
        if self.config.hidden == CRASHES:
            raise RuntimeError("a fault of this trial, on purpose")
        if self.config.hidden == OUT_OF_MEMORY:
            raise MemoryError("a fault of this trial, on purpose")
        if self.config.hidden == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        seconds = float(os.environ.get(STEP_SECONDS, "0.05"))
        steps = LONG_STEPS if self.config.hidden == LONG else STEPS
        for _ in range(steps):
            if should_stop():
                raise Stopped
            time.sleep(seconds)
            self.step += 1
        _write("end", self.config.seed, number)
        return self._report(steps)

    def _report(self, steps: int) -> EpochReport:
        self.epoch += 1
        self.chain = mixed_seed(self.chain, self.epoch)
        noise = self.chain / 2**32
        metrics = {
            "dev/wer": 0.5 / self.epoch + 0.01 * noise,
            "dev/loss": 2.0 / self.epoch + 0.1 * noise,
            "train/loss": 1.8 / self.epoch + 0.1 * noise,
            "optim/lr": self.config.learning_rate,
        }
        skipped = steps if self.config.hidden == DIVERGES and self.epoch == 2 else 0
        return EpochReport(self.epoch, self.step, metrics, steps, skipped, lr_time=self.step * 1e-3)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "chain": self.chain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.chain = state["epoch"], state["step"], state["chain"]


def curve(config: TrainingConfig, epochs: int) -> list[dict[str, float]]:
    """The metrics of epochs 1 to `epochs` of a run that nothing interrupts."""
    trainer = CountingTrainer(config, None)  # type: ignore[arg-type]
    return [dict(trainer._report(STEPS).metrics) for _ in range(epochs)]


def trained(log: Path) -> list[dict[str, Any]]:
    """The lines, in order: `what` (begin or end), `seed` of the trial, `epoch`, `pid`, `at` (monotonic seconds)."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _write(what: str, seed: int, epoch: int) -> None:
    file = os.environ.get(LOG)
    if file is None:
        return
    line = json.dumps({"what": what, "seed": seed, "epoch": epoch, "pid": os.getpid(), "at": time.monotonic()})
    with Path(file).open("ab", buffering=0) as out:
        out.write(f"{line}\n".encode())
