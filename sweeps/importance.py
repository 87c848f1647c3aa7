"""How much of the differences in WER each searched parameter explains. Pure.

What can be claimed of a parameter says `learned`; this says how much there is to claim, and draws a bar.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from sweeps.learned import FEWEST_TRIALS, Vector, groups_share, partial_spearman
from sweeps.records import TrialRow
from sweeps.spec import Choices, SweepSpec
from sweeps.states import TrialState


def importance(trials: Sequence[TrialRow], spec: SweepSpec) -> dict[str, float]:
    """Share (0 to 1) of the variation in the ranks of WER that each parameter explains, less what chance explains;
    empty for less than FEWEST_TRIALS trials.

    Of the learning rate: a parabola over its logarithm. Of the others: what they explain (squared rank correlation; of
    choices the variation between them) of what the learning rate leaves, as a sampler gathers its trials around the
    best one in all parameters at once; of a conditional one over the trials that had it. Trials that took off and
    trials that did not count alike, one that was stopped as too slow with the WER predicted for it.

    Args:
        trials: of one sweep; those that are not over, failed, or ran under settings of their own are left out.
    """
    judged = [
        (trial.hyperparameters, _wer(trial, trial.best_wer))
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.hyperparameters and not trial.overrides and trial.best_wer is not None
    ]  # fmt: skip
    if len(judged) < FEWEST_TRIALS:
        return {}
    found = {}
    for name, parameter in spec.space.searched().items():
        had = [(values, wer) for values, wer in judged if name in values]
        if len(had) < FEWEST_TRIALS:
            continue
        wers = np.array([wer for _, wer in had])
        rates = np.log([values["learning_rate"] for values, _ in had])
        centred = rates - rates.mean()
        given = np.stack([centred**power for power in range(min(3, len(np.unique(rates))))], axis=1)
        if name == "learning_rate":
            found[name] = _explained(given, stats.rankdata(wers))
        elif isinstance(parameter, Choices):
            found[name] = _beyond_chance(*groups_share([values[name] for values, _ in had], wers, given))
        else:
            column = np.array([float(values[name]) for values, _ in had])
            correlation, _ = partial_spearman(np.log(column) if parameter.log else column, wers, given)
            found[name] = _beyond_chance(correlation**2, 1, len(wers) - given.shape[1] - 1)
    return found


def _wer(trial: TrialRow, best: float) -> float:
    predicted = trial.evidence.get("predicted_wer") if trial.verdict == "too_slow" else None
    return best if predicted is None else min(best, float(predicted))


def _explained(design: Vector, y: Vector) -> float:
    """Of the variation of `y` (n,), by the columns of `design` (n, k), the first of them constant."""
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        return 0.0
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return _beyond_chance(1 - float((rest**2).sum()) / total, design.shape[1] - 1, len(y) - design.shape[1])


def _beyond_chance(share: float, columns: int, free: int) -> float:
    """The adjusted share (Ezekiel 1930): on average 0 where there is nothing."""
    return max(0.0, 1 - (1 - share) * (free + columns) / free) if free > 0 else 0.0
