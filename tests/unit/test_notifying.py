"""What is told of a sweep, and when."""

from __future__ import annotations

from typing import Any

from sweeps.notifying import OLD_SECONDS, QUIET_SECONDS, notices
from sweeps.records import NotificationRow, SweepRow, TrialRow
from sweeps.states import SweepState, TrialState
from tests.rows import sweep_row, trial_row

FACTS = {"constant_wer": 0.8, "constant_sentence": "A"}
LATER = QUIET_SECONDS + 1
ALARM = {"cause": "learning_rate_too_low", "sentence": "Nothing takes off.", "advice": "Raise it.", "proposal": None}


def sweep(**fields: Any) -> SweepRow:
    return sweep_row(**{"name": "demo", "facts": FACTS, "resumed_at": 0.0, **fields})


def learned(number: int, wer: float, state: TrialState = TrialState.COMPLETE) -> TrialRow:
    return trial_row(number, state, best_wer=wer, best_epoch=7, epochs=9)


def told(key: str, kind: str, created_at: float = 0.0, **data: Any) -> NotificationRow:
    return NotificationRow(1, "demo", 0.0, key, "team", kind, "", data, created_at, 1, None, 1.0, "")


def kinds(of: SweepRow, trials: list[TrialRow], *before: NotificationRow, now: float = 1.0) -> list[str]:
    return [notice.kinds[0] for notice in notices(of, trials, before, now, breaker=False)]


def test_the_first_takeoff_is_told_once() -> None:
    trials = [learned(0, 0.95, TrialState.RUNNING), learned(1, 0.6, TrialState.RUNNING)]
    (notice,) = notices(sweep(), trials, [], 1.0, breaker=False)
    assert (notice.key, notice.kinds) == ("takeoff", ("takeoff",))
    assert notice.text == ("demo: trial 1 took off, dev WER 60.0% at epoch 7; the best constant sentence scores 80.0%.")
    assert notice.data["trial"] == {"number": 1, "name": None, "wer": 0.6, "epoch": 7}
    assert kinds(sweep(), [*trials, learned(2, 0.5, TrialState.RUNNING)], told("takeoff", "takeoff")) == []


def test_a_wer_just_below_that_of_knowing_nothing_is_no_takeoff() -> None:
    assert kinds(sweep(), [learned(0, 0.79)]) == []


def test_an_alarm_says_what_to_do() -> None:
    paused = sweep(facts={**FACTS, "alarm": ALARM}, state=SweepState.PAUSED)
    (notice,) = notices(paused, [], [], 1.0, breaker=False)
    assert notice.kinds == ("alarm",)
    assert notice.text == "demo: Nothing takes off. Raise it. The sweep is paused."
    assert kinds(paused, [], told("alarm", "alarm")) == []


def test_a_new_best_is_told_at_the_end_of_its_trial_and_not_in_the_first_minutes() -> None:
    took_off, running = told("takeoff", "takeoff"), learned(0, 0.5, TrialState.RUNNING)
    assert kinds(sweep(), [learned(0, 0.5)], took_off, now=60.0) == []
    assert kinds(sweep(), [running], took_off, now=LATER) == []
    assert kinds(sweep(), [learned(0, 0.5)], took_off, now=LATER) == ["new_best"]
    assert kinds(sweep(), [learned(0, 0.9)], took_off, now=LATER) == []  # has not taken off


def test_the_next_best_waits_and_then_only_the_best_is_told() -> None:
    before = (told("takeoff", "takeoff"), told("best/0", "new_best", LATER, trial={"wer": 0.5}))
    trials = [learned(0, 0.5), learned(1, 0.4), learned(2, 0.3)]
    assert kinds(sweep(), trials, *before, now=LATER + 60) == []
    found = notices(sweep(), trials, before, 2 * LATER, breaker=False)
    assert [(notice.key, notice.data["trial"]["number"]) for notice in found] == [("best/2", 2)]
    assert kinds(sweep(), trials[:1], *before, now=9 * LATER) == []  # nothing better since


def test_an_end_names_state_reason_best_and_counts() -> None:
    over = sweep(state=SweepState.STOPPED, reason="its budget is spent", finished_at=100.0, seconds=7200.0)
    trials = [learned(0, 0.5), trial_row(1, TrialState.FAILED)]
    (notice,) = notices(over, trials, [told("takeoff", "takeoff")], LATER, breaker=False)
    assert notice.kinds == ("end",)
    assert notice.text == (
        "demo is STOPPED (its budget is spent). Best: trial 0, dev WER 50.0% at epoch 7; the best constant sentence "
        "scores 80.0%. 2 trials (1 complete, 1 failed) in 2.0 h."
    )
    assert notice.data["best"]["wer"] == 0.5
    assert kinds(over, trials, told("takeoff", "takeoff"), told(notice.key, "end")) == []


def test_a_sweep_that_goes_on_and_ends_again_is_told_again() -> None:
    first = sweep(state=SweepState.COMPLETE, finished_at=100.0)
    (one,) = notices(first, [], [], 101.0, breaker=False)
    again = sweep(state=SweepState.COMPLETE, finished_at=200.0)
    assert kinds(again, [], told(one.key, "end"), now=201.0) == ["end"]


def test_failures_in_a_row_are_the_breaker_and_an_end() -> None:
    failed = sweep(state=SweepState.FAILED, finished_at=1.0)
    assert notices(failed, [], [], 2.0, breaker=True)[0].kinds == ("breaker", "end")
    assert notices(failed, [], [], 2.0, breaker=False)[0].kinds == ("end",)


def test_nothing_is_told_of_a_sweep_that_ended_long_ago_or_is_deleted() -> None:
    trials = [learned(0, 0.5)]
    assert kinds(sweep(state=SweepState.COMPLETE, finished_at=0.0), trials, now=OLD_SECONDS + 1) == []
    assert kinds(sweep(state=SweepState.DELETING), trials) == []


def test_a_sweep_without_a_wer_ends_in_words_too() -> None:
    (notice,) = notices(sweep(state=SweepState.CANCELLED, finished_at=1.0), [], [], 2.0, breaker=False)
    assert notice.text == "demo is CANCELLED. No trial has a WER. 0 trials in 0.0 h."
