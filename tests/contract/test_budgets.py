"""Budgets under several workers, and sweeps that end for their forecast: on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweeps.errors import LeaseLost
from sweeps.forecast import FEWEST_TO_STOP
from sweeps.forecasting import forecast_of
from sweeps.keeper import Keeper, end_if_over
from sweeps.records import Claim, SweepRow
from sweeps.spec import SweepSpec, spec_of
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.study import Study
from tests.rows import VALUES, epoch_row

SECONDS = 2.5
"""Of each epoch of `epoch_row`."""
FACTS = {"constant_wer": 0.9, "constant_loss": 4.0, "dev_constant_loss": 4.0, "uniform_loss": 20.0}


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    yield store
    store.close()


def made(store: Store, **budget: Any) -> SweepRow:
    spec = SweepSpec.model_validate({"name": "s", "corpus": "x", "trainer": {"epochs": 20}, "budget": budget})
    content = {**spec.model_dump(mode="json"), "found": {}}
    sweep = store.create_sweep("s", content, "", spec.budget.model_dump(), FACTS, [])
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    return now(store)


def now(store: Store) -> SweepRow:
    found = store.find_sweep("s")
    assert found is not None
    return found


def claimed(store: Store, sweep: SweepRow, worker: str = "w") -> Claim:
    claim = store.claim(sweep.id, worker, 60)
    assert claim is not None
    store.set_hyperparameters(claim, VALUES, None)
    return claim


def ended(store: Store, sweep: SweepRow, wers: list[float]) -> None:
    """A trial that is complete, with these WERs."""
    claim = claimed(store, sweep)
    store.record(claim, [epoch_row(epoch, wer) for epoch, wer in enumerate(wers, 1)])
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})


def trained(store: Store, sweep: SweepRow, worker: str, granted: list[tuple[float, float]]) -> None:
    """A worker as the real one: reserve an epoch, train it, record it; until there is no more."""
    while (claim := store.claim(sweep.id, worker, 60)) is not None:
        for epoch in range(claim.epochs + 1, 4):
            if not store.reserve_epoch(claim, epoch):
                store.hand_back(claim, "spent")
                return
            granted.append((time.monotonic(), SECONDS))
            time.sleep(0.02)
            store.record(claim, [epoch_row(epoch)])
        store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})


@pytest.mark.parametrize(
    "limit", [{"device_hours": 25 / 3600}, {"money": 50 / 3600, "price_per_device_hour": 2.0}], ids=["hours", "money"]
)
def test_two_workers_spend_no_more_device_hours_than_there_are_but_for_the_epochs_in_hand(
    store: Store, limit: dict[str, float]
) -> None:
    """25 seconds are ten epochs: whoever asks when nine are recorded may train, and the other as well."""
    sweep = made(store, trials=50, **limit)
    granted: list[tuple[float, float]] = []
    workers = [threading.Thread(target=trained, args=(store, sweep, name, granted)) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    seconds = sum(trial.seconds for trial in store.trials(sweep.id))
    assert seconds == sum(each for _, each in granted)
    assert 25 <= seconds <= 25 + SECONDS
    assert store.claim(sweep.id, "three", 60) is None, "no trial begins once it is spent"
    end_if_over(store, sweep.id)
    assert now(store).state is SweepState.STOPPED
    store.update_budget(sweep.id, {"trials": 50})
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    assert store.claim(sweep.id, "three", 60) is not None


def test_epochs_that_are_recorded_again_count_once(store: Store) -> None:
    sweep = made(store, trials=2, device_hours=1.0)
    claim = claimed(store, sweep)
    store.record(claim, [epoch_row(1)])
    store.record(claim, [epoch_row(1), epoch_row(2)])
    assert store.trial(sweep.id, 0).seconds == 2 * SECONDS
    store.hand_back(claim, "interrupted")
    again = claimed(store, sweep, "v")
    with pytest.raises(LeaseLost):
        store.record(claim, [epoch_row(3)])
    store.record(again, [epoch_row(3)])
    assert store.trial(sweep.id, 0).seconds == 3 * SECONDS


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"total_epochs": 1}, "1 epochs is spent; raise budget.total_epochs"),
        ({"device_hours": 1e-4}, "0.0001 device hours is spent; raise budget.device_hours"),
        ({"money": 0.5, "price_per_device_hour": 1e4, "currency": "EUR"}, "0.5 EUR is spent; raise budget.money"),
    ],
)
def test_the_reason_names_the_budget_that_is_spent(store: Store, budget: dict[str, Any], words: str) -> None:
    sweep = made(store, trials=3, **budget)
    ended(store, sweep, [0.5])
    end_if_over(store, sweep.id)
    assert (now(store).state, now(store).reason) == (
        SweepState.STOPPED,
        f"its budget of {words} and run it again to go on",
    )


# the forecast


def curve(best: float) -> list[float]:
    """It takes off at epoch 3."""
    return [1.0, 1.0, *(best + 0.4 * 0.5**n for n in range(8)), best]


def alike(store: Store, sweep: SweepRow, count: int) -> None:
    """Trials whose WERs hardly differ: another will hardly be better."""
    for number in range(count):
        ended(store, sweep, curve(0.3 + number / 10_000))


@pytest.fixture
def kept(store: Store, tmp_path: Path) -> Iterator[Keeper]:
    """A keeper of a sweep that ends where the chance to improve is below a tenth."""
    sweep = made(store, trials=30, stop_when={"chance_below": 0.1})
    with closing(Study(store.url, spec_of(sweep))) as study:
        yield Keeper(store, study, sweep, 60, tmp_path)


def test_a_sweep_that_hardly_improves_any_more_is_stopped_with_its_forecast_as_the_reason(
    store: Store, kept: Keeper
) -> None:
    alike(store, now(store), FEWEST_TO_STOP - 1)
    assert kept.make_pass().state is SweepState.RUNNING, "too few to rely on"
    alike(store, now(store), 1)
    sweep = kept.make_pass()
    assert sweep.state is SweepState.STOPPED
    chance = forecast_of(store, sweep).chance
    assert chance is not None
    assert chance < 0.1
    assert sweep.reason.startswith("the chance that the rest of its budget improves the best WER, 30.0%, by 0.5 points")
    assert sweep.reason.endswith(
        "below 10 %: lower or remove budget.stop_when, or raise the budget, and run it again to go on"
    )
    store.update_budget(sweep.id, {**sweep.budget, "stop_when": None})
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    assert kept.make_pass().state is SweepState.RUNNING


def test_trials_under_way_run_to_their_ends_first(store: Store, kept: Keeper) -> None:
    alike(store, now(store), FEWEST_TO_STOP)
    claim = claimed(store, now(store))
    store.record(claim, [epoch_row(epoch, 0.8) for epoch in range(1, 16)])
    assert kept.make_pass().state is SweepState.STOPPING
    assert store.claim(now(store).id, "v", 60) is None
    store.finish(claim, TrialState.COMPLETE, "learned", "done", "epochs", {})
    sweep = kept.make_pass()
    assert sweep.state is SweepState.STOPPED
    assert sweep.reason.endswith("and run it again to go on")


def test_a_sweep_whose_trials_differ_goes_on(store: Store, kept: Keeper) -> None:
    for number in range(FEWEST_TO_STOP + 2):
        ended(store, now(store), curve(0.3 + 0.05 * number))
    assert kept.make_pass().state is SweepState.RUNNING
    chance = forecast_of(store, now(store)).chance
    assert chance is not None
    assert chance > 0.3


def test_a_sweep_that_never_took_off_is_not_stopped_for_its_forecast(store: Store, kept: Keeper) -> None:
    for _ in range(FEWEST_TO_STOP + 2):
        ended(store, now(store), [0.95, 0.95])
    assert kept.make_pass().state is SweepState.RUNNING
    assert forecast_of(store, now(store)).chance is None


def test_the_forecast_reads_the_curve_of_a_trial_under_way(store: Store) -> None:
    """Far below the others at the same epoch, it will be the best; far above, it will not."""
    chances = []
    for wer, loss in ((0.2, 1.0), (0.9, 5.0)):
        if (before := store.find_sweep("s")) is not None:
            store.delete_sweep(before.id)
        sweep = made(store, trials=4)
        for best in (0.3, 0.4, 0.5):
            ended(store, sweep, curve(best))
        claim = claimed(store, sweep)
        metrics = {"dev/wer": wer, "dev/loss": loss}
        store.record(claim, [epoch_row(epoch, metrics=metrics) for epoch in range(1, 7)])
        chances.append(forecast_of(store, now(store)).chance)
    good, bad = chances
    assert good is not None
    assert bad is not None
    assert good > 0.5 > bad
    assert math.isfinite(bad)
