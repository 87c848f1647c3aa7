"""Sweeps to be looked at, made without a database."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.corpus.data import CorpusConfig
from sweeps.gathered import Gathered
from sweeps.preparing import stored
from sweeps.records import DecisionRow, EpochRow, EventRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.summary import conclusions
from tests.rows import VALUES, decision_row, epoch_row, sweep_row, trial_row

FLOOR = 0.92


def sweep_of(
    trials: Sequence[TrialRow],
    curves: dict[int, list[EpochRow]] | None = None,
    decisions: Sequence[DecisionRow] = (),
    events: Sequence[EventRow] = (),
    *,
    facts: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    **fields: Any,
) -> Gathered:
    """A sweep of these trials; `facts` and `spec` are added to its own, `fields` are those of its row."""
    asked = SweepSpec.model_validate({"name": "demo", "corpus": "/data/x", **(spec or {})})
    row = sweep_row(
        name="demo",
        spec=stored(asked, CorpusConfig(path=Path("/data/x"))),
        facts={"constant_wer": FLOOR, "constant_sentence": "A", "corpus_hash": "c" * 64, **(facts or {})},
        **{"state": SweepState.COMPLETE, **fields},
    )
    by_id = {trial.id: (curves or {}).get(trial.number, []) for trial in trials}
    found = conclusions(row, trials, decisions, asked, by_id)
    return Gathered(row, trials, {n: rows for n, rows in (curves or {}).items() if rows}, decisions, found, events)


def typical(**more: Any) -> Gathered:
    """Twelve trials: the nearer the rate to 1e-3 the better, the two lowest never take off; one stopped, one failed."""
    trials, curves = [], {}
    for number in range(12):
        rate = 10 ** (-5 + number * 0.3)
        best = 0.95 if number < 2 else round(0.2 + 0.15 * abs(math.log10(rate) + 3), 4)
        curves[number] = [epoch_row(n, max(best, 1.0 - 0.08 * n)) for n in range(1, 13)]
        verdict = "never_learned" if number < 2 else "learned"
        trials.append(
            trial_row(number, TrialState.COMPLETE, verdict=verdict, best_wer=best, best_epoch=12, epochs=12,
                      hyperparameters={**VALUES, "learning_rate": rate, "dropout": 0.04 * number})
        )  # fmt: skip
    curves[12] = [epoch_row(n, 0.9) for n in range(1, 7)]
    trials.append(trial_row(12, TrialState.PRUNED, name="original", verdict="too_slow", rule="too_slow", epochs=6,
                            best_wer=0.9, best_epoch=1, reason="Learns, but too slowly."))  # fmt: skip
    trials.append(trial_row(13, TrialState.FAILED, reason="The disk was full.", hyperparameters=None))
    versions = {"python": "3.11.9", "torch": "2.13"}
    events = [EventRow("claimed", "", n, data={"host": "h1/4026", "device": "cpu", "versions": versions})
              for n in range(13)]  # fmt: skip
    return sweep_of(trials, curves, [decision_row(12)], events, **{"spec": {"first_trials": {"original": {}}}, **more})
