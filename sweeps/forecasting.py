"""The forecast of a sweep in the database, and the end of one that is not worth going on with."""

from __future__ import annotations

import logging

from sweeps import forecast
from sweeps.budget import IMPROVEMENT
from sweeps.forecast import Forecast, percent, points
from sweeps.judging import history_of
from sweeps.records import SweepRow
from sweeps.spec import StopWhen, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import CONFIGURATIONS, Store

log = logging.getLogger(__name__)


def forecast_of(store: Store, sweep: SweepRow, improvement: float = IMPROVEMENT) -> Forecast:
    """
    Args:
        improvement: WER (fraction), above 0.
    """
    spec, trials = spec_of(sweep), store.siblings(sweep)
    per_device = spec.workers_per_device
    workers = spec.workers if per_device == "auto" else max(spec.workers, per_device)
    wanted = [trial for trial in forecast.read_for(trials) if trial.hyperparameters is not None]
    curves = store.epochs_of([trial.id for trial in wanted])
    histories = [history_of(spec, sweep, trial, [row.report() for row in curves[trial.id]]) for trial in wanted]
    return forecast.forecast(
        *(sweep, trials, histories, workers, spec.trainer.epochs, improvement),
        configurations=sweep.facts.get(CONFIGURATIONS),
    )


def end_if_not_worth_it(store: Store, sweep: SweepRow) -> None:
    """Stop a running sweep whose chance to improve has fallen below what its budget asks (`stop_when`), once enough
    trials are over for that chance to be relied on. No new trial begins; those under way run to their ends.
    """
    if sweep.budget.get("stop_when") is None or sweep.state is not SweepState.RUNNING:
        return
    asked = StopWhen.model_validate(sweep.budget["stop_when"])
    found = forecast_of(store, sweep, asked.improvement)
    if found.can_stop and found.chance is not None and found.chance < asked.chance_below:
        why = (
            f"the chance that the rest of its budget improves the best WER, {found.best_wer:.1%}, by "
            f"{points(asked.improvement)} is {percent(found.chance)}, below {percent(asked.chance_below)}: lower or "
            "remove budget.stop_when, or raise the budget, and run it again to go on"
        )
        log.info("the sweep ends: %s", found.sentence)
        running = any(trial.state is TrialState.RUNNING for trial in store.siblings(sweep))
        then = SweepState.STOPPING if running else SweepState.STOPPED
        store.set_sweep_state(sweep.id, then, why, (SweepState.RUNNING,))
