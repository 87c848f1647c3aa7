"""What Optuna's pruners decide about our trials, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from model.diagnosis import counted
from model.early_stopping import why_ended
from sweeps.optuna_pruners.in_memory import Siblings, State, ask, make_pruner
from sweeps.pruning import Decision, History
from sweeps.spec import Hyperband, Median, OptunaPruner, Patient, Percentile, SuccessiveHalving, Threshold


def decide_by(
    pruner: OptunaPruner, trial: History, siblings: Sequence[History], *, study_name: str = ""
) -> Decision | None:
    """Whether one of Optuna's pruners stops a trial after its last epoch; None lets it go on.

    Pure: the rungs that Optuna would have noted are found in the epochs themselves, so it may be asked again, and by
    any worker. What is `auto` follows from the first complete trial by number, as it does in Optuna where one trial
    is trained after the other.

    Args:
        trial: with at least one epoch.
        siblings: the sweep's other trials, finished or not.
        study_name: of the sweep; Hyperband deals its trials out to brackets by it.
    """
    rows = Siblings(study_name)
    for sibling in siblings:
        rows.put(sibling.number, _wers(sibling), _state(sibling))
    asked = rows.put(trial.number, _wers(trial), "RUNNING")
    settled = _settled(pruner, rows)
    if settled is None:
        return None
    optunas = make_pruner(settled)
    rivals = list(rows.trials.values())
    if isinstance(settled, SuccessiveHalving | Hyperband):
        rivals = _note_rungs(settled, optunas, rows, asked)
    if not ask(optunas, rows, asked):
        return None
    why = _explained(settled, asked, [t for t in rivals if t is not asked])
    return Decision(
        pruner.name,
        "too_slow",
        f"{why.said}; Optuna's {pruner.name} compares WER alone, and does not tell a dead trial from a slow one.",
        why.kept_by,
        trial.reports[-1].epoch,
        why.numbers,
        why.thresholds,
        tuple(sorted(sibling.number for sibling in why.siblings)),
    )


def _wers(trial: History) -> list[float]:
    return [report.wer if math.isfinite(report.wer) else math.nan for report in trial.reports]


def _state(trial: History) -> State:
    if not trial.ended:
        return "RUNNING"
    if trial.stopped:
        return "PRUNED"
    ended = why_ended(trial.reports, trial.config, trial.constant_wer)
    return "COMPLETE" if ended in ("epochs", "patience") else "PRUNED"


def _settled(section: OptunaPruner, rows: Siblings) -> OptunaPruner | None:
    """The section with a number for `auto`; None while Optuna would have none, and so would stop nothing.

    It guesses as soon as a trial is complete. The trials until then have passed no rungs, and are left out.
    """
    guess_first_rung = isinstance(section, SuccessiveHalving) and section.min_resource == "auto"
    guess_whole = isinstance(section, Hyperband) and section.max_resource == "auto"
    if not guess_first_rung and not guess_whole:
        return section
    first = min(rows.get_trials(states=(TrialState.COMPLETE,)), key=lambda t: t.number, default=None)
    if first is None:
        return None
    rows.trials = {n: t for n, t in rows.trials.items() if n > first.number or not t.state.is_finished()}
    epochs = len(first.intermediate_values)
    guess = {"min_resource": max(epochs // 100, 1)} if guess_first_rung else {"max_resource": epochs + 1}
    return section.model_copy(update=guess)


def _note_rungs(
    section: SuccessiveHalving | Hyperband, pruner: BasePruner, rows: Siblings, asked: FrozenTrial
) -> list[FrozenTrial]:
    """Notes on each trial the rungs it completed before this question; returns those that compete with `asked`."""
    study = cast(optuna.Study, rows)
    if isinstance(pruner, optuna.pruners.HyperbandPruner):
        pruner._try_initialization(study)

    def bracket(trial: FrozenTrial) -> int:
        if isinstance(pruner, optuna.pruners.HyperbandPruner):
            return pruner._get_bracket_id(study, trial)
        assert isinstance(section, SuccessiveHalving)
        return section.min_early_stopping_rate

    for trial in rows.trials.values():
        rung, due = 0, cast(int, section.min_resource) * section.reduction_factor ** bracket(trial)
        now = len(trial.intermediate_values) if trial is asked else None
        for epoch, wer in trial.intermediate_values.items():
            if epoch >= due and epoch != now and not math.isnan(wer):
                trial.system_attrs[_rung(rung)] = wer
                rung, due = rung + 1, due * section.reduction_factor
    return [trial for trial in rows.trials.values() if bracket(trial) == bracket(asked)]


def _rung(number: int) -> str:
    """The key under which Optuna notes the value of a trial at a rung."""
    return f"completed_rung_{number}"


class _Why(NamedTuple):
    said: str
    """What the trial was held against, without a full stop."""
    kept_by: str
    numbers: dict[str, float]
    thresholds: dict[str, float]
    siblings: Sequence[FrozenTrial] = ()


def _explained(section: OptunaPruner, asked: FrozenTrial, siblings: Sequence[FrozenTrial]) -> _Why:
    """Why this pruner stopped `asked`."""
    if isinstance(section, Patient):
        return _out_of_patience(section, asked, siblings)
    wers = list(asked.intermediate_values.values())
    epoch, wer, best = len(wers), wers[-1], _best(wers)
    if math.isnan(best if isinstance(section, Median | Percentile) else wer):
        return _Why(f"At epoch {epoch} its WER is not a number", "A number would have been compared.", {}, {})
    if isinstance(section, Threshold):
        above = section.upper is not None and wer > section.upper
        bar = cast(float, section.upper if above else section.lower)
        return _Why(
            f"WER {wer:.2%} at epoch {epoch} is {'above' if above else 'below'} {bar:.2%}",
            f"A WER of {bar:.2%} would have kept it.",
            {"wer": wer},
            {"upper" if above else "lower": bar},
        )
    if isinstance(section, Median | Percentile):
        percent = section.percentile if isinstance(section, Percentile) else 50.0
        compared = [t for t in siblings if t.state is TrialState.COMPLETE and epoch in t.intermediate_values]
        bar = float(np.nanpercentile([t.intermediate_values[epoch] for t in compared], percent))
        which = "the median" if percent == 50 else f"percentile {percent:g}"
        return _Why(
            f"Best WER {best:.2%} by epoch {epoch}, where {which} of {counted(len(compared), 'complete trial')} is "
            f"{bar:.2%}",
            f"A best WER of {bar:.2%} by then would have kept it.",
            {"best_wer": best},
            {"wer_needed": bar, "percentile": percent},
            compared,
        )
    return _not_promoted(section, asked, siblings)


def _not_promoted(section: SuccessiveHalving | Hyperband, asked: FrozenTrial, siblings: Sequence[FrozenTrial]) -> _Why:
    epoch, wer = list(asked.intermediate_values.items())[-1]
    rung = _rung(sum(key.startswith("completed_rung") for key in asked.system_attrs) - 1)
    rivals = [t for t in siblings if rung in t.system_attrs]
    among = f"WER {wer:.2%} at epoch {epoch}, a rung that {counted(len(rivals), 'other trial')} had reached"
    if len(rivals) < section.bootstrap_count:
        wanted = section.bootstrap_count
        return _Why(
            f"{among}; with fewer than {wanted} every trial is stopped there",
            f"{counted(wanted, 'other trial')} at this rung might have kept it.",
            {"wer": wer, "rivals": len(rivals)},
            {"bootstrap_count": wanted},
            rivals,
        )
    passing = max((len(rivals) + 1) // section.reduction_factor, 1)
    bar = sorted(t.system_attrs[rung] for t in rivals)[passing - 1]
    return _Why(
        f"{among}; {passing} of {len(rivals) + 1} may go on, which took {bar:.2%}",
        f"A WER of {bar:.2%} at this epoch would have kept it.",
        {"wer": wer},
        {"wer_needed": bar, "passing": passing},
        rivals,
    )


def _out_of_patience(section: Patient, asked: FrozenTrial, siblings: Sequence[FrozenTrial]) -> _Why:
    wers = list(asked.intermediate_values.values())
    last = section.patience + 1
    before, since = _best(wers[:-last]), _best(wers[-last:])
    bar = before + section.min_delta
    here = _Why(
        f"The best WER of its last {counted(last, 'epoch')} is {since:.2%}, after {before:.2%} before them",
        f"A WER of {bar:.2%} in these epochs would have kept it.",
        {"best_since": since, "best_before": before},
        {"wer_needed_since": bar},
    )
    if section.wrapped_pruner is None:
        return here
    wrapped = _explained(section.wrapped_pruner, asked, siblings)
    return _Why(
        f"{here.said}; {wrapped.said[0].lower()}{wrapped.said[1:]}",
        f"{here.kept_by} {wrapped.kept_by}",
        {**here.numbers, **wrapped.numbers},
        {**here.thresholds, **wrapped.thresholds},
        wrapped.siblings,
    )


def _best(wers: Sequence[float]) -> float:
    """The lowest that is a number, or NaN."""
    return min((wer for wer in wers if not math.isnan(wer)), default=math.nan)
