"""What replays are judged by, with intervals that take each run as one observation, however often it was replayed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm
from sweep import Replayed, Trial
from tables import Recorded

WINNER_MARGIN = 0.005
"""A stopped trial whose full run beats the sweep's result by more (fraction of WER) was the winner, killed."""

DEAD = ("never_learned", "collapsed")
"""Verdicts that call a run dead. `too_slow` says that it would learn and not win."""

THIRD = 1 / 3


@dataclass(frozen=True)
class Estimate:
    """A mean over replays and its 95 % interval, clustered by run."""

    value: float
    low: float
    high: float


def mean_over_sweeps(
    sweeps: Sequence[Replayed], resampled: Sequence[Sequence[Replayed]], value: Callable[[Replayed], float]
) -> Estimate:
    """A mean over sweeps, and the interval that other runs of the same corpora would give.

    `resampled` holds, for tables whose runs were drawn anew with replacement, the sweeps over each (a bootstrap by
    run). The standard error is that of their means, corpus by corpus, and so holds the noise of replaying a few sweeps
    of each as well: the interval is rather too wide than too narrow.
    """
    by_table: dict[str, list[float]] = defaultdict(list)
    for sweep in sweeps:
        by_table[sweep.table].append(value(sweep))
    total = sum(map(sum, by_table.values())) / len(sweeps)
    means: dict[str, list[float]] = defaultdict(list)
    for some in resampled:
        means[some[0].table].append(float(np.mean([value(sweep) for sweep in some])))
    shares = {table: len(values) / len(sweeps) for table, values in by_table.items()}
    error = sum(shares[table] ** 2 * float(np.var(m, ddof=1)) for table, m in means.items() if len(m) > 1)
    half = norm.ppf(0.975) * math.sqrt(error)
    return Estimate(float(total), float(total - half), float(total + half))


def rate_over_runs(
    sweeps: Sequence[Replayed], among: Callable[[Trial], bool], hit: Callable[[Trial], bool], seed: int = 0
) -> Estimate:
    """Share of the trials `among` which `hit` is true, resampled by run (percentile bootstrap, 2,000 times). Where no
    or every trial is hit, the bootstrap shows no spread: then an exact binomial interval over the runs.
    """
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for sweep in sweeps:
        for trial in sweep.trials:
            if among(trial):
                count = counts[trial.run.table, trial.run.name]
                count[0] += hit(trial)
                count[1] += 1
    if not counts:
        return Estimate(math.nan, math.nan, math.nan)
    hits, seen = np.array(list(counts.values()), dtype=float).T
    rate = float(hits.sum() / seen.sum())
    if rate in (0.0, 1.0):
        exact = binomtest(round(rate * len(hits)), len(hits)).proportion_ci(method="exact")
        return Estimate(rate, float(exact.low), float(exact.high))
    drawn = np.random.default_rng(seed).integers(len(hits), size=(2000, len(hits)))
    low, high = np.percentile(hits[drawn].sum(1) / seen[drawn].sum(1), [2.5, 97.5])
    return Estimate(rate, float(low), float(high))


def called_dead(trial: Trial) -> bool:
    return trial.stop is not None and trial.stop.verdict in DEAD


def stopped_in_plateau(trial: Trial) -> bool:
    return trial.stop is not None and not trial.run.histories[trial.epochs - 1].takeoff


def never_learned(run: Recorded) -> bool:
    """It did not learn within its epochs, be it that more would have changed that."""
    return not run.learned


def winner_killed(sweep: Replayed) -> float:
    return float(any(t.stop and t.run.best < sweep.best - WINNER_MARGIN for t in sweep.trials))


def measure(
    sweeps: Sequence[Replayed], resampled: Sequence[Sequence[Replayed]], *, verdicts: bool
) -> dict[str, float | None]:
    """All measures of a policy; `*_low` and `*_high` are the ends of 95 % intervals. Rates are fractions."""
    estimates = {
        "epochs_fraction": mean_over_sweeps(sweeps, resampled, lambda s: s.epochs / s.epochs_without),
        "regret_points": mean_over_sweeps(sweeps, resampled, lambda s: 100 * s.regret),
        "winners_killed_rate": mean_over_sweeps(sweeps, resampled, winner_killed),
        "learners_stopped_in_plateau_rate": rate_over_runs(sweeps, lambda t: t.run.learned, stopped_in_plateau),
        "dead_stopped_rate": rate_over_runs(
            sweeps,
            lambda t: never_learned(t.run) and t.sibling_took_off,
            lambda t: t.stop is not None and t.epochs <= THIRD * t.run.epochs,
        ),
        "dead_stopped_before_a_takeoff_rate": rate_over_runs(
            sweeps,
            lambda t: never_learned(t.run) and not t.sibling_took_off,
            lambda t: t.stop is not None and t.epochs <= THIRD * t.run.epochs,
        ),
    }
    if verdicts:
        estimates["verdict_error_rate"] = rate_over_runs(sweeps, lambda t: t.run.learned, called_dead)
    found: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        found |= {name: _number(estimate.value)}
        found |= {f"{name}_low": _number(estimate.low), f"{name}_high": _number(estimate.high)}
    if not verdicts:
        found["verdict_error_rate"] = None
    dead = [t for s in sweeps for t in s.trials if never_learned(t.run) and t.stop]
    found["epochs_to_verdict"] = float(np.median([t.epochs for t in dead])) if dead else None
    called = {(t.run.table, t.run.name) for s in sweeps for t in s.trials if t.run.learned and called_dead(t)}
    learned = {(t.run.table, t.run.name) for s in sweeps for t in s.trials if t.run.learned}
    found["runs_learned"] = float(len(learned))
    found["runs_learned_called_dead"] = float(len(called)) if verdicts else None
    return found


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
