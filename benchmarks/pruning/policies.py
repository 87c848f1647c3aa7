"""What decides in a replayed sweep: ours, Optuna's pruners, single signals, and two ends of the scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sweep import MakePolicy, Stop, Trial

from sweeps import pruning


@dataclass(frozen=True)
class Named:
    """A policy with the words that stand in the tables."""

    family: str
    settings: dict[str, Any]
    make: MakePolicy
    verdicts: bool = False
    """Whether it says what a stopped trial came to, or only compares."""

    def __str__(self) -> str:
        return f"{self.family} {' '.join(f'{k}={v}' for k, v in self.settings.items())}".strip()


def never(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
    return lambda trial, others: None


def oracle(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
    """Knows the end of every run: after the first epoch it stops all that will not beat the best so far."""

    def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
        best = min((other.best for other in others), default=math.inf)
        verdict = "too_slow" if trial.run.learned else "never_learned"
        if trial.run.best >= best or trial.best <= trial.run.best:
            return Stop("oracle", verdict)
        return None

    return stops


def ours(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
    """The rule that sweeps use, as they use it."""

    def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
        run, siblings = trial.run, [other.history for other in others]
        return Stop.of(pruning.decide(trial.history, siblings, run.floors, dev_sequences=run.dev_sequences))

    return stops


def signal_percentile(key: str, percentile: float, epoch: int, *, low_is_good: bool = True, every: bool) -> MakePolicy:
    """Stops what is worse than a percentile of the others at the same epoch, by one signal alone."""

    def make(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
        sign = 1.0 if low_is_good else -1.0

        def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
            n = trial.epochs
            if n < epoch or (n > epoch and not every):
                return None
            seen = [sign * o.run.reports[n - 1].value(key) for o in others if o.epochs >= n]
            if len(seen) < 3:
                return None
            mine = sign * trial.run.reports[n - 1].value(key)
            return Stop(key, None) if not mine <= np.percentile(seen, percentile) else None

        return stops

    return make


def signal_threshold(key: str, threshold: float, epoch: int) -> MakePolicy:
    """Stops at one epoch what has a signal below a threshold."""

    def make(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
        def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
            below = trial.epochs == epoch and trial.run.reports[epoch - 1].value(key) < threshold
            return Stop(key, None) if below else None

        return stops

    return make


def signals() -> Iterator[Named]:
    for epoch in (2, 3, 5):
        for percentile in (25.0, 50.0, 75.0):
            settings = {"percentile": percentile, "epoch": epoch}
            yield Named("dev loss alone", settings, signal_percentile("dev/loss", percentile, epoch, every=False))
    for epoch in (3, 5, 8):
        for percentile in (25.0, 50.0, 75.0):
            settings = {"percentile": percentile, "epoch": epoch}
            yield Named("WER alone", settings, signal_percentile("dev/wer", percentile, epoch, every=False))
    for epoch in (3, 5):
        for threshold in (0.15, 0.3, 0.6):
            settings = {"below": threshold, "epoch": epoch}
            yield Named("time spread alone", settings, signal_threshold("spread/time", threshold, epoch))


def all_policies() -> list[Named]:
    return [
        Named("none", {}, never),
        Named("oracle", {}, oracle, verdicts=True),
        Named("ours", {}, ours, verdicts=True),
        *signals(),
    ]
