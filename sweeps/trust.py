"""Whether to trust what a sweep found: what speaks for and against its best trial, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.diagnosis import TAKEOFF_MARGIN, counted
from sweeps.audit import WINNER_MARGIN
from sweeps.confirmation import CONFIRMED, FACT
from sweeps.records import SweepRow, TrialRow
from sweeps.spec import Choices, SweepSpec
from sweeps.states import TrialState
from sweeps.summary import Conclusions, best_trial, trial_label

EDGE = 0.02
"""A best value within this share of the searched range (by ratio on a log range) of one of its ends is at the edge."""


def trust(sweep: SweepRow, trials: Sequence[TrialRow], spec: SweepSpec, found: Conclusions) -> list[str]:
    """What speaks for and against what was found, besides that the sweep is not over, or alarmed."""
    best, said = best_trial(trials), list[str]()
    if best is not None and best.best_wer is not None:
        if best.best_wer > sweep.facts["constant_wer"] - TAKEOFF_MARGIN:
            said.append(
                "No trial is clearly below what knowing nothing scores: nothing was found yet. See which rates took "
                "off, and why the trials ended."
            )
        else:
            said += [*_standing_of(best, best.best_wer, trials, sweep), *_edges(best, spec)]
    failed = sum(trial.state is TrialState.FAILED for trial in trials)
    if failed:
        said.append(f"{counted(failed, 'trial')} failed for reasons that are not their configurations'.")
    if found.audit.sentence:
        said.append(found.audit.sentence)
    elif trials:
        said.append("No rule condemned a trial.")
    return said


def _standing_of(best: TrialRow, wer: float, trials: Sequence[TrialRow], sweep: SweepRow) -> list[str]:
    """How far the best one stands out."""
    margin = f"{100 * WINNER_MARGIN:g} points"
    near = [t for t in trials if t is not best and t.best_wer is not None and t.best_wer <= wer + WINNER_MARGIN]
    said = [
        f"{counted(len(near), 'other trial')} came within {margin} of it, by which two trainings of one configuration "
        f"differ: their order says nothing ({', '.join(trial_label(t) for t in near[:5])})."
        if near
        else f"No other trial came within {margin} of it, by which two trainings of one configuration differ."
    ]
    if FACT not in sweep.facts and CONFIRMED not in sweep.facts:
        said.append(
            "Each configuration was trained once, and the lowest WER of its best epoch was chosen on dev: it is lower "
            "than it would be again. Train it with other seeds before you rely on it, and measure it on sentences that "
            f"chose nothing: `sweeps confirm {sweep.name}` does both."
        )
    if dev := sweep.facts.get("dev_sequences"):
        said.append(f"WERs are those of {counted(dev, 'dev sentence')}.")
    return said


def _edges(best: TrialRow, spec: SweepSpec) -> list[str]:
    """Searched values of the best trial that lie at an end of their range."""
    said = []
    for name, bounds in spec.space.searched().items():
        value = (best.hyperparameters or {}).get(name)
        if value is None or isinstance(bounds, Choices) or not bounds.contains(value):
            continue
        share = bounds.share(value)
        if min(share, 1 - share) <= EDGE:
            said.append(
                f"Its {name}, {shown(value)}, lies at the {'lower' if share < 0.5 else 'upper'} end of what was "
                "searched: a wider range may have a better one."
            )
    return said


def shown(value: Any) -> str:
    """A value of a configuration, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
