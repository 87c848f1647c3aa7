"""What decides in a replayed sweep: ours, Optuna's pruners, single signals, and two ends of the scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import optuna
from sweep import MakePolicy, Replayed, Stop, Trial, side_by_side
from tables import Recorded

from sweeps import pruning
from sweeps.optuna_pruners import InMemoryPruner
from sweeps.spec import Hyperband, Median, OptunaPruner, Patient, Percentile, SuccessiveHalving, Threshold


@dataclass(frozen=True)
class Named:
    """A policy with the words that stand in the tables."""

    family: str
    settings: dict[str, Any]
    make: MakePolicy
    verdicts: bool = False
    """Whether it says what a stopped trial came to, or only compares."""
    whole: Callable[[Sequence[Recorded]], Replayed] | None = None
    """For what decides on all trials of a sweep together, in place of `make`."""

    @property
    def with_tpe(self) -> bool:
        """Whether it is replayed with TPE as well, which takes minutes a policy: one setting of each family that its
        users would try.
        """
        return (self.family, self.settings) in WITH_TPE

    def __str__(self) -> str:
        return f"{self.family} {' '.join(f'{k}={v}' for k, v in self.settings.items())}".strip()


WITH_TPE: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("ours", {}),
    ("Median", {"startup": 5, "warmup": 5}),
    ("Percentile", {"percentile": 25.0, "startup": 3, "warmup": 5}),
    ("SuccessiveHalving", {"min_resource": 4, "reduction_factor": 2}),
    ("ASHA", {"grace": 4, "reduction_factor": 2}),
    ("Hyperband", {"min_resource": 1, "reduction_factor": 3}),
]


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


def ours_at(least_chance: float) -> MakePolicy:
    """The rule with another trade-off between epochs and regret."""

    def make(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
        shipped = ours(0)

        def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
            kept, pruning.LEAST_CHANCE = pruning.LEAST_CHANCE, least_chance
            try:
                return shipped(trial, others)
            finally:
                pruning.LEAST_CHANCE = kept

        return stops

    return make


def by_optuna(pruner: OptunaPruner | optuna.pruners.BasePruner, rule: str) -> MakePolicy:
    """One of Optuna's pruners, on the WER of each epoch."""

    def make(seed: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
        asked = InMemoryPruner(pruner, f"replay {seed}")
        numbers: dict[int, int] = {}  # by object: a resampled table may hold a run twice
        told: set[int] = set()

        def row(trial: Trial) -> tuple[int, list[float], Any]:
            number = numbers.setdefault(id(trial), len(numbers))
            state = "PRUNED" if trial.stop else "COMPLETE" if trial.over else "RUNNING"
            return number, trial.run.wers[: trial.epochs], state

        def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
            # Who was told to be over has not changed since.
            news = [row(other) for other in others if id(other) not in told]
            told.update(id(other) for other in others if other.over)
            number, wers, _ = row(trial)
            return Stop(rule, None) if asked.should_prune(number, wers, news) else None

        return stops

    return make


def asha(grace: int, reduction_factor: int) -> MakePolicy:
    """ASHA in its stopping form, as Ray Tune's AsyncHyperBandScheduler has it: at each rung a trial goes on if it is
    among the best 1/eta of those that came there before it (Li et al. 2018, arXiv 1810.05934).
    """

    def make(_: int) -> Callable[[Trial, Sequence[Trial]], Stop | None]:
        rungs: dict[int, list[float]] = defaultdict(list)

        def stops(trial: Trial, others: Sequence[Trial]) -> Stop | None:
            passed = math.log(trial.epochs / grace, reduction_factor) if trial.epochs >= grace else -1.0
            if passed < 0 or abs(passed - round(passed)) > 1e-9:
                return None
            wer, before = trial.run.wers[trial.epochs - 1], rungs[trial.epochs]
            cut = np.nanpercentile(before, 100 / reduction_factor) if before else math.inf
            before.append(wer)
            return None if wer <= cut else Stop("asha", None)

        return stops

    return make


def optunas() -> Iterator[Named]:
    """Optuna's pruners over a grid of settings each.

    Not WilcoxonPruner: it tests whether paired values of many problems differ. The epochs of a curve are no sample, and
    in the plateau they are ties.
    """
    for startup, warmup in product((1, 3, 5), (0, 2, 5, 8)):
        median = Median(n_startup_trials=startup, n_warmup_steps=warmup)
        settings: dict[str, Any] = {"startup": startup, "warmup": warmup}
        yield Named("Median", settings, by_optuna(median, "median"))
    for percentile, warmup in product((10.0, 25.0, 75.0), (2, 5, 8)):
        section = Percentile(percentile=percentile, n_startup_trials=3, n_warmup_steps=warmup)
        settings = {"percentile": percentile, "startup": 3, "warmup": warmup}
        yield Named("Percentile", settings, by_optuna(section, "percentile"))
    for least, factor in product((1, 2, 3, 4, 6, 8), (2, 3, 4)):
        halving = SuccessiveHalving(min_resource=least, reduction_factor=factor)
        settings = {"min_resource": least, "reduction_factor": factor}
        yield Named("SuccessiveHalving", settings, by_optuna(halving, "successive_halving"))
        yield Named("ASHA", {"grace": least, "reduction_factor": factor}, asha(least, factor))
    for least, factor in product((1, 2, 4), (2, 3, 4)):
        hyperband = Hyperband(min_resource=least, max_resource=24, reduction_factor=factor)
        settings = {"min_resource": least, "reduction_factor": factor}
        yield Named("Hyperband", settings, by_optuna(hyperband, "hyperband"))
    for patience, wrapped in product((3, 5, 8), (None, Median(n_startup_trials=3))):
        patient = Patient(patience=patience, wrapped_pruner=wrapped)
        settings = {"patience": patience, "wrapped": "median" if wrapped else "none"}
        yield Named("Patient", settings, by_optuna(patient, "patient"))
    for upper, warmup in product((0.7, 0.9, 0.95, 0.98), (5, 10)):
        threshold = Threshold(upper=upper, n_warmup_steps=warmup)
        settings = {"upper": upper, "warmup": warmup}
        yield Named("Threshold", settings, by_optuna(threshold, "threshold"))


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


SIDE_BY_SIDE: tuple[dict[float, int], ...] = (
    {0.125: 8, 0.25: 4, 0.5: 2},
    {0.125: 12, 0.25: 6, 0.5: 3},
    {0.15: 12, 0.3: 8, 0.6: 5},
    {0.15: 12, 0.35: 8, 0.65: 4},
    {0.25: 12, 0.5: 8, 0.75: 6},
)


def _words(rungs: dict[float, int]) -> str:
    return ", ".join(f"the best {kept} at {share:.0%}" for share, kept in rungs.items())


def all_policies() -> list[Named]:
    return [
        Named("none", {}, never),
        Named("oracle", {}, oracle, verdicts=True),
        *(
            Named("side by side", {"rungs": _words(rungs)}, never, whole=partial(side_by_side, rungs=rungs))
            for rungs in SIDE_BY_SIDE
        ),
        Named("ours", {}, ours, verdicts=True),
        *(
            Named("ours", {"least_chance": c}, ours_at(c), verdicts=True)
            for c in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
        ),
        *optunas(),
        *signals(),
    ]
