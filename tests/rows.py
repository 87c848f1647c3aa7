"""Rows of the database, made without one."""

from __future__ import annotations

from typing import Any

from sweeps.records import DecisionRow, EpochRow, SweepRow, TrialRow
from sweeps.states import SweepState, TrialState

VALUES = {"learning_rate": 1e-3, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 5}


def trial_row(number: int = 0, state: TrialState = TrialState.RUNNING, **fields: Any) -> TrialRow:
    """A trial with values for all hyperparameters; `fields` win."""
    given: dict[str, Any] = {
        "id": 100 + number,
        "sweep_id": 1,
        "number": number,
        "name": None,
        "in_space": True,
        "overrides": {},
        "hyperparameters": dict(VALUES),
        "state": state,
        "attempt": 1,
        "worker": "w",
        "verdict": None,
        "rule": None,
        "reason": "",
        "evidence": {},
        "best_wer": None,
        "best_epoch": None,
        "epochs": 0,
        "optuna_trial_id": None,
        "run_id": None,
        "revision": 1,
        "mirrored_revision": 0,
        "created_at": 0.0,
        "started_at": None,
        "finished_at": None,
    }
    return TrialRow(**{**given, **fields})


def sweep_row(**fields: Any) -> SweepRow:
    """A running sweep; `fields` win."""
    given: dict[str, Any] = {
        "id": 1,
        "name": "s",
        "spec": {},
        "digest": "",
        "budget": {"trials": 20},
        "facts": {"constant_wer": 0.92, "constant_sentence": "A"},
        "state": SweepState.RUNNING,
        "reason": "",
        "runner": None,
        "runner_beat_at": None,
        "tracking": None,
        "experiment_id": None,
        "created_at": 0.0,
        "started_at": None,
        "resumed_at": None,
        "finished_at": None,
        "seconds": 12.34,
    }
    return SweepRow(**{**given, **fields})


def epoch_row(epoch: int, wer: float | None = 0.5, **fields: Any) -> EpochRow:
    """An epoch of 10 steps; without a WER it was not finite."""
    metrics = {"dev/loss": 5.0, "spread/time": 0.25, "optim/lr": 1e-3} | ({} if wer is None else {"dev/wer": wer})
    given: dict[str, Any] = {
        "epoch": epoch,
        "step": 10 * epoch,
        "metrics": metrics,
        "steps_in_epoch": 10,
        "skipped_steps": 0,
        "lr_time": 0.01 * epoch,
        "seconds": 2.5,
        "phase": "plateau",
    }
    return EpochRow(**{**given, **fields})


def decision_row(number: int, **fields: Any) -> DecisionRow:
    """A trial that was stopped as too slow; `fields` win."""
    given: dict[str, Any] = {
        "trial_id": 100 + number,
        "number": number,
        "epoch": 6,
        "rule": "too_slow",
        "verdict": "too_slow",
        "reason": "Learns, but too slowly.",
        "counterfactual": "A WER of 50.0% would have kept it.",
        "numbers": {"best_wer": 0.7},
        "thresholds": {"median": 0.5},
        "siblings": [1, 2, 3],
        "action": "stopped",
    }
    return DecisionRow(**{**given, **fields})
