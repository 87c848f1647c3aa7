"""Optuna's pruners, asked without a study.

A study in a database is read whole after every epoch by its `should_prune`. So these are asked over trials in memory,
through the few attributes of a study that pruners read. Each epoch's own WER is the value reported, and the epoch is
its step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from sweeps.spec import OptunaPruner, Patient

State: TypeAlias = Literal["RUNNING", "COMPLETE", "PRUNED"]


class Siblings:
    """What Optuna's pruners read of a study: its other trials.

    The trial in question is left out: pruners look for it among the complete ones only, where it is not, and in rungs,
    to which they add its value themselves.
    """

    direction = StudyDirection.MINIMIZE

    def __init__(self, study_name: str) -> None:
        self.study_name = study_name
        self.trials: dict[int, FrozenTrial] = {}
        self.asked: FrozenTrial | None = None

    def put(self, number: int, wers: Sequence[float], state: State) -> FrozenTrial:
        """Trial `number` with these epochs; what is known of it is carried on."""
        trial = self.trials.get(number)
        if trial is None:
            nothing: dict[str, Any] = {"params": {}, "distributions": {}, "user_attrs": {}, "system_attrs": {}}
            trial = FrozenTrial(
                number, TrialState.RUNNING, None, None, None, **nothing, intermediate_values={}, trial_id=number
            )
            self.trials[number] = trial
        values = trial.intermediate_values
        for epoch in range(len(values) + 1, len(wers) + 1):
            values[epoch] = wers[epoch - 1]
        if trial.state.name != state:
            finite = [wer for wer in wers if math.isfinite(wer)]
            # As we tell Optuna: a complete trial is worth its best WER, and has failed where it has none.
            trial.state = TrialState[state] if finite or state != "COMPLETE" else TrialState.FAIL
            trial.values = [min(finite)] if finite and state == "COMPLETE" else None
        return trial

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [t for t in self.trials.values() if t is not self.asked and (states is None or t.state in states)]

    @property
    def best_trial(self) -> FrozenTrial:
        # A ValueError where none is complete, as a study raises it.
        return min(self.get_trials(states=(TrialState.COMPLETE,)), key=lambda t: cast(float, t.value))

    @property
    def _storage(self) -> Siblings:
        return self

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.trials[trial_id].system_attrs[key] = value


class _Bracket:
    """The siblings of one of Hyperband's brackets."""

    direction = StudyDirection.MINIMIZE

    def __init__(self, siblings: Siblings, within: Callable[[FrozenTrial], bool]) -> None:
        self._storage, self._within = siblings, within

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return [t for t in self._storage.get_trials(deepcopy, states) if self._within(t)]


class _HyperbandPruner(optuna.pruners.HyperbandPruner):
    """Optuna's own opens the storage, and defines a class, for each question."""

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> optuna.Study:
        bracket = _Bracket(cast(Siblings, study), lambda trial: self._get_bracket_id(study, trial) == bracket_id)
        return cast(optuna.Study, bracket)


_PRUNERS: Mapping[str, type[BasePruner]] = {
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": _HyperbandPruner,
    "patient": optuna.pruners.PatientPruner,
    "threshold": optuna.pruners.ThresholdPruner,
}


def make_pruner(section: OptunaPruner) -> BasePruner:
    """The pruner that a spec's section describes, made by Optuna with the settings of that section."""
    settings = section.model_dump(exclude={"name", "audit_share"})
    if isinstance(section, Patient):
        wrapped = section.wrapped_pruner
        settings["wrapped_pruner"] = wrapped and make_pruner(wrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _PRUNERS[section.name](**settings)


class InMemoryPruner:
    """One of Optuna's pruners, and the trials it has seen, without a study.

    It answers as `Trial.should_prune` of a study with this pruner would, as long as it is asked once after every epoch
    of every trial, in the order in which they end: successive halving and Hyperband keep the rungs that a trial has
    passed, and guess what is `auto` when they are first asked after a trial is complete.

    Args:
        pruner: a section of a spec; or a pruner that Optuna made, but for its HyperbandPruner, which wants a study.
        study_name: Hyperband deals trials out to its brackets by it and their numbers.
    """

    def __init__(self, pruner: OptunaPruner | BasePruner, study_name: str = "") -> None:
        self._pruner = pruner if isinstance(pruner, BasePruner) else make_pruner(pruner)
        self._siblings = Siblings(study_name)

    def should_prune(
        self, number: int, wers: Sequence[float], siblings: Iterable[tuple[int, Sequence[float], State]]
    ) -> bool:
        """Whether trial `number` should be stopped after its last epoch.

        Args:
            wers: its dev WER of epochs 1, 2, ... (fractions; NaN where it was not finite).
            siblings: number, WERs and state of every other trial as it is now. A trial may only have grown since.
        """
        for other in siblings:
            self._siblings.put(*other)
        return ask(self._pruner, self._siblings, self._siblings.put(number, wers, "RUNNING"))


def ask(pruner: BasePruner, siblings: Siblings, trial: FrozenTrial) -> bool:
    """Whether the pruner stops `trial`, one of `siblings`; rungs that it passes are noted there."""
    siblings.asked = trial
    with warnings.catch_warnings():
        # Remarks on NaN and missing epochs; what the pruner makes of them is its answer.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        return bool(pruner.prune(cast(optuna.Study, siblings), trial))
