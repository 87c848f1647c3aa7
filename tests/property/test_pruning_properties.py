"""What holds of pruning whatever the curves are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.floors import Floors
from model.types import TrainingConfig
from sweeps.pruning import (
    ANCHORS,
    LATEST_TRIALS,
    TAKEOFF_EXPONENT,
    Decision,
    History,
    Ranking,
    decide,
    default_spread,
    outlook,
    wer_weight,
)
from tests.curves import CONSTANT_WER, report

FLOORS = Floors(CONSTANT_WER, "", 4.0, 4.0, 14.0)
WERS = st.floats(0.0, 1.3) | st.just(1.0) | st.just(math.nan) | st.just(math.inf)
LOSSES = st.floats(0.0, 40.0) | st.just(math.nan) | st.just(math.inf)
EPOCHS = st.tuples(WERS, LOSSES, st.floats(0.0, 0.02))
BUDGET = 40


@st.composite
def histories(draw: st.DrawFn, min_size: int = 1) -> History:
    """A run of up to 30 epochs; its LR-time never falls."""
    reports = []
    for epoch, (wer, loss, rate) in enumerate(draw(st.lists(EPOCHS, min_size=min_size, max_size=30)), start=1):
        lr_time = (reports[-1].lr_time if reports else 0.0) + 60 * rate
        reports.append(report(epoch, wer, rate=rate, loss=loss, lr_time=lr_time))
    config = TrainingConfig(
        epochs=BUDGET,
        learning_rate=draw(st.floats(1e-6, 0.1)),
        warmup_start_factor=draw(st.floats(0.01, 1.0)),
        warmup_epochs=draw(st.floats(0, 12)),
    )
    stopped = draw(st.booleans())
    return History(draw(st.integers(0, 99)), reports, config, CONSTANT_WER, stopped or draw(st.booleans()), stopped)


SIBLINGS = st.lists(histories(), max_size=6)


def ask(trial: History, siblings: Sequence[History] | Ranking, **options: int) -> Decision | None:
    return decide(trial, siblings, FLOORS, dev_sequences=110, **options)


@given(histories(), SIBLINGS)
def test_a_decision_is_one_that_can_be_stored(trial: History, siblings: list[History]) -> None:
    decision = ask(trial, siblings)
    if decision is not None:
        assert all(math.isfinite(value) for value in decision.evidence.values())
        assert "\n" not in decision.reason + decision.counterfactual
        assert "nan" not in decision.reason + decision.counterfactual
        assert decision.epoch == trial.reports[-1].epoch
        assert set(decision.siblings) <= {s.number for s in siblings}


@given(histories(), SIBLINGS, st.integers(1, 40))
def test_nothing_is_stopped_before_grace(trial: History, siblings: list[History], grace: int) -> None:
    if ask(trial, siblings, grace_epochs=grace) is not None:
        assert len(trial.reports) >= grace
    if ask(trial, siblings) is not None:
        assert len(trial.reports) >= 4


@given(histories(), SIBLINGS)
def test_who_took_off_is_never_called_dead(trial: History, siblings: list[History]) -> None:
    decision = ask(trial, siblings)
    if decision is not None and trial.takeoff is not None:
        assert decision.verdict == "too_slow"


@given(histories(), SIBLINGS)
def test_without_a_sibling_that_took_off_only_its_own_probes_stop_a_trial(
    trial: History, siblings: list[History]
) -> None:
    decision = ask(trial, [s for s in siblings if not s.takeoff])
    assert decision is None or decision.siblings == ()


@given(histories(), SIBLINGS)
def test_the_best_run_of_all_is_never_too_slow(trial: History, siblings: list[History]) -> None:
    if trial.takeoff and all(trial.best_wer <= s.best_wer for s in siblings):
        assert ask(trial, siblings) is None


@given(histories(), SIBLINGS)
def test_siblings_have_no_order(trial: History, siblings: list[History]) -> None:
    numbered = [replace(s, number=n) for n, s in enumerate(siblings)]
    here, there = ask(trial, numbered), ask(trial, numbered[::-1])
    assert (here and here.rule) == (there and there.rule)
    if here and there:
        assert here.siblings == there.siblings
        assert here.evidence == pytest.approx(there.evidence)


FIELD = st.lists(histories(), max_size=12, unique_by=lambda each: each.number)


@given(FIELD, st.randoms(use_true_random=False), st.integers(1, 30))
def test_a_ranking_says_what_a_look_at_every_trial_says(field: list[History], chance: Random, epoch: int) -> None:
    """Its definitions, one by one, over a list of all trials by number."""
    by_number = sorted((s for s in field if s.takeoff), key=lambda s: s.number)
    ranking = ranked(field, chance)
    assert sorted(s.number for s in ranking) == [s.number for s in by_number]
    assert len(ranking) == len(by_number)
    merits = sorted(by_number, key=lambda s: (s.stopped, s.best_wer, s.number))
    unstopped = sum(not s.stopped for s in merits)
    assert ranking.best() == merits[: min(ANCHORS, unstopped or ANCHORS)]
    assert ranking.lowest_wer() == min((s.best_wer for s in by_number), default=math.inf)
    assert ranking.latest_takeoff == max((s.takeoff or 0 for s in by_number), default=0)
    had = [s.reports[s.takeoff - 1].lr_time for s in by_number if s.takeoff]
    assert ranking.most_lr_time == max(had, default=-math.inf)
    rate = chance.choice([1e-6, 1e-3, 0.1, *(s.config.learning_rate for s in field)])
    asked = [s for s in by_number if s.takeoff and s.takeoff > 1]
    wanted = min((needed(s, rate) for s in asked), default=math.inf)
    assert min((needed(s, rate) for s in ranking.quickest), default=math.inf) == wanted
    ended = [s for s in by_number if s.ended and not s.stopped and len(s.reports) > epoch]
    assert ranking.finished_after(epoch) == ended


def needed(sibling: History, rate: float) -> float:
    """The least LR-time for a takeoff at a rate, as the sibling took off."""
    assert sibling.takeoff
    before = sibling.reports[sibling.takeoff - 2].lr_time
    return before * min(1.0, rate / sibling.config.learning_rate) ** TAKEOFF_EXPONENT


def ranked(field: list[History], chance: Random) -> Ranking:
    """As a sweep goes: trials are over in any order, and a decision comes now and then, beside others under way."""
    shuffled, ranking = chance.sample(field, len(field)), Ranking()
    for history in shuffled:
        if history.ended:
            ranking.add(history)
            ranking.beside(chance.sample(field, len(field) // 2))
    return ranking.beside(s for s in shuffled if not s.ended)


@given(histories(), FIELD, st.randoms(use_true_random=False))
def test_a_decision_is_the_same_whenever_the_other_trials_were_looked_at(
    trial: History, field: list[History], chance: Random
) -> None:
    assert ask(trial, ranked(field, chance)) == ask(trial, field)


@given(histories(), SIBLINGS, st.floats(0.3, 0.99))
def test_a_better_wer_or_loss_never_gets_a_trial_stopped(
    trial: History, siblings: list[History], factor: float
) -> None:
    if trial.takeoff is None:
        return
    better = [
        replace(r, metrics={**r.metrics, **{k: r.metrics[k] * factor for k in ("dev/wer", "dev/loss")}})
        for r in trial.reports
    ]
    improved = replace(trial, reports=better)
    if improved.takeoff == trial.takeoff and ask(trial, siblings) is None:
        assert ask(improved, siblings) is None


@given(histories(), st.lists(histories(), min_size=1, max_size=6))
def test_an_outlook_is_a_wer_with_a_chance(trial: History, siblings: list[History]) -> None:
    took_off = [s for s in siblings if s.takeoff]
    if not took_off:
        return
    seen = outlook(trial, took_off, FLOORS)
    assert seen.wer > 0
    assert seen.spread > 0
    assert 0 <= seen.chance_below(0.01) <= seen.chance_below(0.5) <= 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_with_time_predictions_are_surer(one: float, other: float) -> None:
    early, late = sorted((one, other))
    assert default_spread(early) >= default_spread(late) > 0


@given(histories())
def test_with_time_wer_counts_more_and_in_the_plateau_not_at_all(trial: History) -> None:
    weights = [wer_weight(trial, epoch, []) for epoch in range(1, len(trial.reports) + 1)]
    assert weights == sorted(weights)
    assert all(0 <= weight <= 1 for weight in weights)
    assert not math.isfinite(trial.lowest_losses[0]) or not any(weights[: (trial.takeoff or 99) - 1])


@given(histories(), SIBLINGS)
def test_in_the_plateau_wer_is_no_evidence(trial: History, siblings: list[History]) -> None:
    if trial.takeoff is not None:
        return
    flat = [replace(r, metrics={**r.metrics, "dev/wer": 1.0}) for r in trial.reports]
    here, there = ask(trial, siblings), ask(replace(trial, reports=flat), siblings)
    assert (here and here.rule) == (there and there.rule)


def test_the_spread_is_that_of_the_latest_trials() -> None:
    def ended(number: int, last: float) -> History:
        wers = [0.8 - 0.02 * (number % 7)] * 9 + [last]
        reports = [report(epoch, wer, rate=1e-3, loss=4 * wer) for epoch, wer in enumerate(wers, start=1)]
        return History(number, reports, TrainingConfig(epochs=10), CONSTANT_WER, ended=True)

    wild = [ended(number, 0.01 if number % 2 else 0.7) for number in range(200)]
    alike = [ended(200 + number, 0.3 + 0.001 * number) for number in range(LATEST_TRIALS)]
    trial = replace(wild[0], number=999, reports=wild[0].reports[:5], ended=False)
    spreads = [outlook(trial, siblings, FLOORS).spread for siblings in (wild, alike, [*wild, *alike])]
    assert spreads[2] == spreads[1] < spreads[0] / 2
