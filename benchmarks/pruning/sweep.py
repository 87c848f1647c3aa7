"""A sweep over recorded runs: trials are drawn, trained an epoch at a time by reading on, and stopped by a policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import optuna
from tables import Recorded

from model.diagnosis import Verdict
from model.types import mixed_seed
from sweeps.pruning import Decision, History
from sweeps.study import value_for_sampler

TRIALS = 24
"""Trials of a replayed sweep."""

Sampler = Literal["random", "tpe"]


@dataclass
class Trial:
    """A recorded run as far as it was read."""

    run: Recorded
    epochs: int = 0
    over: bool = False
    sibling_took_off: bool = False
    """Whether another trial had taken off when this one began."""
    stop: Stop | None = None

    @property
    def history(self) -> History:
        """The trial as a rule sees it now."""
        if self.stop is not None:
            return self.run.stopped[self.epochs - 1]
        return self.run.whole if self.over else self.run.histories[self.epochs - 1]

    @property
    def best(self) -> float:
        """Best finite WER so far."""
        return min((wer for wer in self.run.wers[: self.epochs] if math.isfinite(wer)), default=math.inf)


@dataclass(frozen=True)
class Stop:
    """What a policy said when it stopped a trial."""

    rule: str
    verdict: Verdict | None
    """None: it gives none, it compares."""

    @classmethod
    def of(cls, decision: Decision | None) -> Stop | None:
        return decision and cls(decision.rule, decision.verdict)


class Policy(Protocol):
    """Decides after each epoch of a trial; one object for each sweep, so it may keep what it saw."""

    def __call__(self, trial: Trial, others: Sequence[Trial]) -> Stop | None: ...


MakePolicy = Callable[[int], Policy]
"""A policy for one sweep, from a seed."""


@dataclass(frozen=True)
class Replayed:
    """What a sweep came to."""

    trials: list[Trial] = field(repr=False)
    unpruned: Replayed | None = field(default=None, repr=False)
    """The same sweep without pruning, where its sampler drew other trials there; else these trials, each to its end."""

    @property
    def table(self) -> str:
        """The table its runs are of."""
        return self.trials[0].run.table

    @property
    def epochs(self) -> int:
        return sum(trial.epochs for trial in self.trials)

    @property
    def epochs_without(self) -> int:
        """What the sweep costs if no trial is stopped."""
        return self.unpruned.epochs if self.unpruned else sum(trial.run.end for trial in self.trials)

    @property
    def best(self) -> float:
        return min(trial.best for trial in self.trials)

    @property
    def best_without(self) -> float:
        return self.unpruned.best if self.unpruned else min(trial.run.best for trial in self.trials)

    @property
    def regret(self) -> float:
        """WER lost to pruning (fraction)."""
        return self.best - self.best_without


def replay(
    make_policy: MakePolicy, draw: Iterator[Recorded] | Draw, seed: int, count: int = TRIALS, workers: int = 1
) -> Replayed:
    """One sweep. With several workers their trials take epochs in turns."""
    policy = make_policy(seed)
    trials: list[Trial] = []
    active: list[Trial] = []
    while len(trials) < count or active:
        while len(active) < workers and len(trials) < count:
            took_off = any(t.epochs and t.run.histories[t.epochs - 1].takeoff for t in trials)
            run = draw(trials) if callable(draw) else next(draw)
            active.append(Trial(run, sibling_took_off=took_off))
            trials.append(active[-1])
        for trial in list(active):
            trial.epochs += 1
            if trial.epochs == trial.run.end:
                trial.over = True
            else:
                others = [t for t in trials if t is not trial and t.epochs]
                trial.stop = policy(trial, others)
                trial.over = trial.stop is not None
            if trial.over:
                active.remove(trial)
    return Replayed(trials)


Draw = Callable[[Sequence[Trial]], Recorded]


def side_by_side(runs: Sequence[Recorded], rungs: Mapping[float, int]) -> Replayed:
    """All trials begun at once and halved at each rung: a share of the epochs, and how many go on from there. Ranked by
    dev loss at first and by best WER in the end.

    No pruner can do this: it would have to ask for a trial before it stops another, set that aside, and go on with it
    later. It shows what is lost by deciding on trials one after the other.
    """
    trials = [Trial(run) for run in runs]
    live = list(trials)
    for share, kept in rungs.items():
        for trial in live:
            trial.epochs = min(trial.run.end, max(1, round(share * trial.run.epochs)))
        by_wer = sorted(live, key=lambda t: t.best)
        by_loss = sorted(live, key=lambda t: min(r.value("dev/loss") for r in t.run.reports[: t.epochs]))
        weight = min(1.0, 1.5 * share)
        rank = {id(t): weight * by_wer.index(t) + (1 - weight) * by_loss.index(t) for t in live}
        live = sorted(live, key=lambda t: rank[id(t)])[:kept]
    for trial in trials:
        if trial in live:
            trial.epochs = trial.run.end
        elif trial.epochs < trial.run.end:
            trial.stop = Stop("side_by_side", None)
        trial.over = True
    return Replayed(trials)


def in_random_order(runs: Sequence[Recorded], seed: int) -> Iterator[Recorded]:
    """The table's runs in an order of that seed; the same for every policy, so that policies are compared in pairs."""
    order = np.random.default_rng(mixed_seed(seed, "order")).permutation(len(runs))
    return (runs[i] for i in order)


SPACE = ("learning_rate", "warmup_start_factor", "dropout")


def by_tpe(runs: Sequence[Recorded], seed: int) -> Draw:
    """Optuna's TPE, each suggestion answered by the nearest recorded run that the sweep has not had.

    The distance is Euclidean over the ranges of the tables (learning rate in its logarithm). Every policy tells it
    what the product does: `sweeps.study.value_for_sampler`.
    """
    points = np.array([_point(run) for run in runs])
    low, high = points.min(0), points.max(0)
    places = (points - low) / (high - low)
    sampler = optuna.samplers.TPESampler(
        seed=mixed_seed(seed, "tpe"), n_startup_trials=8, multivariate=True, constant_liar=True
    )
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in SPACE
    }
    study = optuna.create_study(sampler=sampler)
    asked: list[tuple[optuna.Trial, int]] = []

    def draw(trials: Sequence[Trial]) -> Recorded:
        for (told, _), trial in zip(list(asked), trials, strict=True):
            if trial.over and told.number in open_numbers:
                open_numbers.discard(told.number)
                verdict = trial.stop.verdict if trial.stop else None
                reports = trial.run.reports[: trial.epochs]
                study.tell(told, value_for_sampler(reports, trial.run.floors.constant_wer, verdict))
        ask = study.ask(space)
        wanted = np.array([ask.params[name] for name in SPACE])
        gaps = ((places - wanted) ** 2).sum(1)
        gaps[[index for _, index in asked]] = math.inf
        asked.append((ask, int(gaps.argmin())))
        open_numbers.add(ask.number)
        return runs[asked[-1][1]]

    open_numbers: set[int] = set()
    return draw


def _point(run: Recorded) -> tuple[float, ...]:
    return (math.log(run.config.learning_rate), run.config.warmup_start_factor, run.config.dropout)
