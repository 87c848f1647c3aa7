"""Our rules for a study of one's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial, TrialState
from pydantic import ValidationError

from model.floors import Floors
from model.types import EpochReport, TrainingConfig, Value
from sweeps.pruning import History, decide

PREFIX = "ctc-sweeps:epoch:"
"""Epoch 3 of a trial is kept in its system attribute `ctc-sweeps:epoch:3`."""


class CTCPruner(BasePruner):
    """The rules of `sweeps.pruning` for a study of one's own; see docs/how-to/pruners.md.

    Report every epoch to it, then ask the trial as usual:

        pruner = CTCPruner(constant_wer, epochs=30)
        study = optuna.create_study(direction="minimize", pruner=pruner)
        ...
        pruner.report(trial, {"dev/wer": wer, "dev/loss": loss}, epoch=epoch, step=step, lr_time=lr_time)
        if trial.should_prune():
            raise optuna.TrialPruned(pruner.why(trial))

    What was reported lies in the study's storage, so several processes may share a study, with pruners made alike.

    Args:
        floors: what knowing nothing scores on the corpus; the WER of the best constant sentence alone (a fraction)
            will do, and rules that need the others do not judge.
        epochs: of a trial that is not stopped.
        dev_sequences: sequences of dev.
        grace_epochs: nothing is stopped before; default as in `sweeps.pruning.decide`.
        rename: what a trial's parameters are called in `TrainingConfig`: {"lr": "learning_rate"}; None for one that
            means something else there. Those of the same name need not be named.
        fixed: other fields of `TrainingConfig` that are the same in all trials, such as a learning_rate.

    Raises:
        ValueError: floors that are no fraction, or a field that `TrainingConfig` does not have.
    """

    def __init__(
        self,
        floors: Floors | float,
        *,
        epochs: int,
        dev_sequences: int | None = None,
        grace_epochs: int | None = None,
        rename: Mapping[str, str | None] | None = None,
        **fixed: Value,
    ) -> None:
        if not isinstance(floors, Floors):
            floors = Floors(float(floors), "", math.nan, math.nan, math.nan)
        if not 0 < floors.constant_wer <= 1:
            raise ValueError(
                f"constant WER {floors.constant_wer:g}: a fraction above 0 and at most 1 is meant (0.92, not 92)"
            )
        self._floors = floors
        self._dev_sequences = dev_sequences
        self._grace_epochs = grace_epochs
        self._rename = dict(rename or {})
        self._fixed = {"epochs": epochs, **fixed}
        fields = TrainingConfig.model_fields.keys()
        for name in {*fixed, *self._rename.values()} - fields - {None}:
            raise ValueError(f"{name!r} is no field of TrainingConfig; these are: {', '.join(fields)}")
        try:
            TrainingConfig.model_validate(self._fixed)
        except ValidationError as error:
            name, value, rule = _first_fault(error)
            raise ValueError(f"{name}={value!r}: {rule}") from None

    def report(
        self,
        trial: BaseTrial,
        report: EpochReport | Mapping[str, float],
        *,
        epoch: int | None = None,
        step: int = 0,
        lr_time: float = 0.0,
    ) -> None:
        """Report an epoch that is over: keeps it with the trial, and its WER as Optuna's value of that step.

        As with Optuna's own `report`, an epoch that was reported before stays as it is. A trial without a study
        (`FixedTrial`, or one that has ended) takes nothing.

        Args:
            report: metrics by their names in `model.types.METRICS`, of which `dev/wer` (a fraction) must be there; or
                an EpochReport, which has the rest as well.
            epoch: 1 for the first.
            step: updates since the trial began.
            lr_time: the learning rates of all these updates, added up.

        Raises:
            ValueError: the study is not this pruner's, an epoch is left out, or what is reported cannot be used.
        """
        if not isinstance(trial, optuna.Trial):
            return
        _check_study(trial.study)
        if not isinstance(trial.study.pruner, CTCPruner):
            other = type(trial.study.pruner).__name__
            raise ValueError(f"the study's pruner is {other}: create or load the study with pruner=CTCPruner(...)")
        if isinstance(report, Mapping):
            if epoch is None:
                raise ValueError("metrics without an epoch: pass epoch=, 1 for the first")
            metrics = {key: float(value) for key, value in report.items()}
            report = EpochReport(int(epoch), int(step), metrics, lr_time=float(lr_time))
        record = trial.storage.get_trial(trial._trial_id)
        done = len(_reports(record))
        self._check(report, record, done)
        if report.epoch <= done:
            return
        # Optuna's value first: whoever is killed between the two reports this epoch again.
        if report.epoch not in record.intermediate_values:
            trial.report(report.wer, report.epoch)
        fields = {name: value for name, value in asdict(report).items() if name != "examples"}
        kept = {**fields, "metrics": report.finite()}
        trial.storage.set_trial_system_attr(trial._trial_id, f"{PREFIX}{report.epoch}", kept)

    def _check(self, report: EpochReport, record: FrozenTrial, done: int) -> None:
        """Whether a trial that has `done` epochs can take this one."""
        if not 1 <= report.epoch <= done + 1:
            raise ValueError(f"epoch {report.epoch}: {done} are reported; report every epoch, 1 for the first")
        if "dev/wer" not in report.metrics:
            raise ValueError(f"no dev/wer among {', '.join(report.metrics) or 'no metrics'}: report it every epoch")
        self._config(record)
        if report.lr_time and not report.step:
            raise ValueError(f"lr_time {report.lr_time:g} without step: report the updates so far as well")
        if report.lr_time and "learning_rate" not in self._values(record):
            raise ValueError(
                f"lr_time, but no learning_rate among {', '.join(record.params) or 'no parameters'}: pass "
                'rename={"lr": "learning_rate"} to CTCPruner, or learning_rate= if it is the same in all trials'
            )

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        _check_study(study)
        asked = self._history(trial)
        if asked is None:
            return False
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        siblings = [history for other in others if (history := self._history(other)) is not None]
        decision = decide(
            asked, siblings, self._floors, dev_sequences=self._dev_sequences, grace_epochs=self._grace_epochs
        )
        if decision is None:
            return False
        why = {
            "why": f"{decision.reason} {decision.counterfactual}",
            "rule": decision.rule,
            "verdict": decision.verdict,
        }
        for key, value in why.items():
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
        return True

    @staticmethod
    def why(trial: optuna.Trial | FrozenTrial) -> str:
        """Why the trial was stopped, and what would have kept it; empty where it was not. Its user attributes `rule`
        and `verdict` have both in a word.
        """
        record = trial.storage.get_trial(trial._trial_id) if isinstance(trial, optuna.Trial) else trial
        return str(record.user_attrs.get("why", ""))

    def _history(self, trial: FrozenTrial) -> History | None:
        """A trial as the rules see it; None where it has reported nothing."""
        reports = _reports(trial)
        if not reports:
            return None
        return History(
            trial.number,
            reports,
            self._config(trial),
            self._floors.constant_wer,
            ended=trial.state.is_finished(),
            stopped=trial.state.is_finished() and trial.state is not TrialState.COMPLETE,
        )

    def _config(self, trial: FrozenTrial) -> TrainingConfig:
        try:
            return TrainingConfig.model_validate(self._values(trial))
        except ValidationError as error:
            field, value, rule = _first_fault(error)
            name = next(name for name in trial.params if self._rename.get(name, name) == field)
            raise ValueError(
                f"trial {trial.number}: {name}={value!r} is no {field} of TrainingConfig ({rule}); if it means "
                f"something else, pass rename={{{name!r}: None}} to CTCPruner"
            ) from None

    def _values(self, trial: FrozenTrial) -> dict[str, Any]:
        """What is known of a trial, by the names of TrainingConfig."""
        named = {self._rename.get(name, name): value for name, value in trial.params.items()}
        return self._fixed | {name: value for name, value in named.items() if name in TrainingConfig.model_fields}


def _check_study(study: optuna.Study) -> None:
    if study.directions != [StudyDirection.MINIMIZE]:
        words = " and ".join(direction.name.lower() for direction in study.directions)
        raise ValueError(f"the study is to {words}: WER is to be small; create it with direction='minimize'")


def _reports(trial: FrozenTrial) -> list[EpochReport]:
    reports: list[EpochReport] = []
    while kept := trial.system_attrs.get(f"{PREFIX}{len(reports) + 1}"):
        reports.append(EpochReport(**{**kept, "metrics": {"dev/wer": math.nan, **kept["metrics"]}}))
    return reports


def _first_fault(error: ValidationError) -> tuple[str, Any, str]:
    """Field, value and rule."""
    fault = error.errors(include_url=False)[0]
    return str(fault["loc"][0]), fault["input"], fault["msg"][0].lower() + fault["msg"][1:]
