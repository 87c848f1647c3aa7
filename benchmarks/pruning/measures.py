"""What replays are judged by, with intervals that take each run as one observation, however often it was replayed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sweep import TRIALS, Replayed, Trial
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


def mean_over_sweeps(sweeps: Sequence[Replayed], value: Callable[[Replayed], float]) -> Estimate:
    """A mean over sweeps whose trials were drawn from a finite table.

    The mean over all draws of m from n runs is a U-statistic; its standard error for the n runs being a sample follows
    from its first projection: m / sqrt(n) times the spread, over runs, of the mean of the sweeps a run is in (Hoeffding
    1948). The noise of having replayed a part of the draws is taken off the spread, and added as what it is.
    """
    values = np.array([value(sweep) for sweep in sweeps])
    total, count = values.mean(), len(values)
    error = values.var(ddof=1) / count if count > 1 else 0.0
    for runs, inside in _by_table(sweeps):
        chosen = [values[rows] for rows in inside.values() if len(rows) > 1]
        if len(chosen) < 2:
            continue
        projected = np.array([c.mean() for c in chosen])
        noise = float(np.mean([c.var(ddof=1) / len(c) for c in chosen]))
        spread = max(0.0, float(projected.var(ddof=1)) - noise)
        share = sum(len(s.trials) > 0 and s.trials[0].run.table == runs for s in sweeps) / count
        error += share**2 * TRIALS**2 * spread / len(inside)
    half = norm.ppf(0.975) * math.sqrt(error)
    return Estimate(float(total), float(total - half), float(total + half))


def _by_table(sweeps: Sequence[Replayed]) -> list[tuple[str, dict[str, list[int]]]]:
    """For each table, the replays that each of its runs takes part in."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, sweep in enumerate(sweeps):
        for trial in sweep.trials:
            found[trial.run.table][trial.run.name].append(place)
    return [(name, dict(inside)) for name, inside in found.items()]


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
    """It did not learn, and more epochs would hardly have changed that."""
    return not run.learned


def winner_killed(sweep: Replayed) -> float:
    return float(any(t.stop and t.run.best < sweep.best - WINNER_MARGIN for t in sweep.trials))


def measure(sweeps: Sequence[Replayed], *, verdicts: bool) -> dict[str, float | None]:
    """All measures of a policy; `*_low` and `*_high` are the ends of 95 % intervals. Rates are fractions."""
    estimates = {
        "epochs_fraction": mean_over_sweeps(sweeps, lambda s: s.epochs / s.epochs_without),
        "regret_points": mean_over_sweeps(sweeps, lambda s: 100 * s.regret),
        "winners_killed_rate": mean_over_sweeps(sweeps, winner_killed),
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


def share_of_table(runs: Sequence[Recorded]) -> NDArray[np.float64]:
    """Best WER of every run, for reports on a table as a whole."""
    return np.array([run.best for run in runs])
