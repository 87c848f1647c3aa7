"""Optuna's pruners over our rows stop what they stop in a study of Optuna's own, at the same epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.types import EpochReport, TrainingConfig
from sweeps.optuna_pruners import InMemoryPruner, decide_by
from sweeps.optuna_pruners.in_memory import State
from sweeps.pruning import History
from sweeps.spec import (
    Hyperband,
    Median,
    OptunaPruner,
    Patient,
    Percentile,
    SuccessiveHalving,
    Threshold,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # Optuna warns of NaN, of which random curves have some.
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]

STUDY = "a study"  # Hyperband's brackets follow from the name

PRUNERS: dict[str, tuple[OptunaPruner, Callable[[], optuna.pruners.BasePruner]]] = {
    "median": (Median(n_startup_trials=1), lambda: optuna.pruners.MedianPruner(n_startup_trials=1)),
    "median at intervals": (
        Median(n_startup_trials=2, n_warmup_steps=2, interval_steps=3, n_min_trials=2),
        lambda: optuna.pruners.MedianPruner(2, 2, 3, n_min_trials=2),
    ),
    "percentile": (
        Percentile(percentile=25.0, n_startup_trials=1),
        lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=1),
    ),
    "halving": (
        SuccessiveHalving(min_resource=1, reduction_factor=2),
        lambda: optuna.pruners.SuccessiveHalvingPruner(1, 2),
    ),
    "halving, later": (
        SuccessiveHalving(min_resource=2, reduction_factor=2, min_early_stopping_rate=1, bootstrap_count=1),
        lambda: optuna.pruners.SuccessiveHalvingPruner(2, 2, 1, 1),
    ),
    "hyperband": (
        Hyperband(max_resource=8, reduction_factor=2),
        lambda: optuna.pruners.HyperbandPruner(max_resource=8, reduction_factor=2),
    ),
    "hyperband, later": (
        Hyperband(min_resource=2, max_resource=8, reduction_factor=2, bootstrap_count=1),
        lambda: optuna.pruners.HyperbandPruner(2, 8, 2, 1),
    ),
    "patient": (Patient(patience=1, min_delta=0.1), lambda: optuna.pruners.PatientPruner(None, 1, 0.1)),
    "patient around median": (
        Patient(patience=0, wrapped_pruner=Median(n_startup_trials=1)),
        lambda: optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(1), 0),
    ),
    "threshold": (
        Threshold(lower=0.1, upper=0.8, n_warmup_steps=3, interval_steps=2),
        lambda: optuna.pruners.ThresholdPruner(0.1, 0.8, 3, 2),
    ),
}
GUESSING: dict[str, tuple[OptunaPruner, Callable[[], optuna.pruners.BasePruner]]] = {
    "halving, auto": (
        SuccessiveHalving(reduction_factor=2),
        lambda: optuna.pruners.SuccessiveHalvingPruner(reduction_factor=2),
    ),
    "hyperband, auto": (Hyperband(reduction_factor=2), lambda: optuna.pruners.HyperbandPruner(reduction_factor=2)),
}

WERS = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, math.nan])
CURVES = st.lists(st.lists(WERS, min_size=1, max_size=8), min_size=1, max_size=7)


@dataclass
class Sweep:
    """Trials that take epochs in turns until each is stopped or through, beside a study of Optuna's own."""

    curves: list[list[float]]
    study: optuna.Study
    trials: list[optuna.Trial] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    stopped: int = 0

    def run(self, turns: Any, workers: int, asked: Callable[[Sweep, int], bool]) -> None:
        """`asked` must say of every epoch what the study's own pruner says."""
        while True:
            while len(self.trials) < len(self.curves) and self.states.count("RUNNING") < workers:
                self.trials.append(self.study.ask())
                self.states.append("RUNNING")
                self.epochs.append(0)
            running = [number for number, state in enumerate(self.states) if state == "RUNNING"]
            if not running:
                return
            number = turns.draw(st.sampled_from(running)) if len(running) > 1 else running[0]
            self.epochs[number] += 1
            trial, wers = self.trials[number], self.wers(number)
            trial.report(wers[-1], len(wers))
            stops = trial.should_prune()
            assert asked(self, number) == stops, (number, self.epochs, self.states)
            if stops:
                self.states[number] = "PRUNED"
                self.stopped += 1
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            elif len(wers) == len(self.curves[number]):
                self.states[number] = "COMPLETE"
                finite = [wer for wer in wers if math.isfinite(wer)]
                if finite:
                    self.study.tell(trial, min(finite))
                else:
                    self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def wers(self, number: int) -> list[float]:
        return self.curves[number][: self.epochs[number]]

    def siblings(self, number: int) -> list[tuple[int, list[float], State]]:
        others = [n for n in range(len(self.trials)) if n != number and self.epochs[n]]
        return [(n, self.wers(n), self.states[n]) for n in others]

    def history(self, number: int) -> History:
        reports = [EpochReport(i, i, {"dev/wer": wer}) for i, wer in enumerate(self.wers(number), start=1)]
        config = TrainingConfig(epochs=len(self.curves[number]), patience=99)
        state = self.states[number]
        return History(number, reports, config, 0.9, ended=state != "RUNNING", stopped=state == "PRUNED")


def sweep(curves: list[list[float]], pruner: optuna.pruners.BasePruner) -> Sweep:
    # The sampler matters not; a seedless TPE would only take its time.
    study = optuna.create_study(study_name=STUDY, pruner=pruner, sampler=optuna.samplers.RandomSampler(0))
    return Sweep(curves, study)


def in_memory(section: OptunaPruner) -> Callable[[Sweep, int], bool]:
    pruner = InMemoryPruner(section, STUDY)
    return lambda s, number: pruner.should_prune(number, s.wers(number), s.siblings(number))


def decided(section: OptunaPruner) -> Callable[[Sweep, int], bool]:
    def asked(s: Sweep, number: int) -> bool:
        siblings = [s.history(n) for n, *_ in s.siblings(number)]
        decision = decide_by(section, s.history(number), siblings, study_name=STUDY)
        again = decide_by(section, s.history(number), siblings[::-1], study_name=STUDY)
        assert decision == again, "asked twice, and in another order"
        if decision is not None:
            evidence = [*decision.numbers.values(), *decision.thresholds.values()]
            assert all(math.isfinite(value) for value in evidence)
            assert list(decision.siblings) == sorted(set(decision.siblings) - {number})
            assert decision.epoch == s.epochs[number]
        return decision is not None

    return asked


def both(section: OptunaPruner) -> Callable[[Sweep, int], bool]:
    asked = in_memory(section), decided(section)

    def agree(s: Sweep, number: int) -> bool:
        answers = [each(s, number) for each in asked]
        assert answers[0] == answers[1]
        return answers[0]

    return agree


# Optuna's own studies take most of the time.
FEW = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("name", PRUNERS)
@FEW
@given(curves=CURVES, workers=st.integers(1, 3), turns=st.data())
def test_each_pruner_stops_what_it_stops_in_a_study_of_optunas_own(
    name: str, curves: list[list[float]], workers: int, turns: st.DataObject
) -> None:
    section, theirs = PRUNERS[name]
    sweep(curves, theirs()).run(turns, workers, both(section))


@pytest.mark.parametrize("name", GUESSING)
@FEW
@given(curves=CURVES, turns=st.data())
def test_so_it_does_where_it_guesses_and_one_trial_follows_the_other(
    name: str, curves: list[list[float]], turns: st.DataObject
) -> None:
    section, theirs = GUESSING[name]
    sweep(curves, theirs()).run(turns, 1, both(section))


@pytest.mark.parametrize("name", GUESSING)
@FEW
@given(curves=CURVES, turns=st.data())
def test_where_it_guesses_and_trials_take_turns_the_one_that_is_asked_in_order_knows(
    name: str, curves: list[list[float]], turns: st.DataObject
) -> None:
    section, theirs = GUESSING[name]
    sweep(curves, theirs()).run(turns, 3, in_memory(section))


WIDE = [
    [0.9, 0.5, 0.1, 0.1],
    [1.0, 1.0, 1.0, 1.0],
    [0.95, 1.0, 1.0, 1.0],
    [0.5, 0.9, 0.9, 0.9],
    [0.9, 0.6, 0.5, 0.9],
    [math.nan, 1.0],
    [0.9],
]


@pytest.mark.parametrize("name", [*PRUNERS, *GUESSING])
def test_the_comparison_is_not_empty(name: str) -> None:
    """Each of these pruners does stop something, in trials of which some end by themselves."""
    section, theirs = (PRUNERS | GUESSING)[name]
    trials = sweep(WIDE * 3, theirs())
    trials.run(None, 1, both(section))
    assert 0 < trials.stopped < len(trials.curves)
