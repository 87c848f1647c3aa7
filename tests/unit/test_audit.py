"""What audited trials tell of the rules: how often they were wrong, what they saved; nothing where nothing ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sweeps.audit import WINNER_MARGIN, AuditReport, audit_report
from sweeps.records import DecisionRow, TrialRow
from sweeps.states import TrialState
from tests.rows import trial_row

PLANNED = 24


def decision(
    number: int, verdict: str = "never_learned", action: Any = "stopped", epoch: int = 6, **fields: Any
) -> DecisionRow:
    given = {"rule": "futile", "reason": "", "counterfactual": "", "numbers": {}, "thresholds": {}, "siblings": []}
    return DecisionRow(100 + number, number, epoch, verdict=verdict, action=action, **{**given, **fields})


def stopped(number: int, epochs: int = 6) -> TrialRow:
    return trial_row(number, TrialState.PRUNED, epochs=epochs, verdict="never_learned", best_wer=1.0)


def ended(number: int, verdict: str, best_wer: float | None = 0.5, epochs: int = PLANNED) -> TrialRow:
    state = TrialState.PRUNED if verdict == "diverged" else TrialState.COMPLETE
    evidence = {"constant_wer": 0.92}
    return trial_row(number, state, epochs=epochs, verdict=verdict, best_wer=best_wer, evidence=evidence)


def report(trials: list[TrialRow], *decisions: DecisionRow) -> AuditReport:
    return audit_report(trials, decisions, {trial.number: PLANNED for trial in trials})


def test_without_a_condemned_trial_there_is_nothing_to_say() -> None:
    found = report([ended(0, "learned")])
    assert (found.condemned, found.error_rate, found.interval, found.sentence) == (0, None, None, "")


def test_while_no_audit_has_ended_nothing_is_known_rather_than_no_error() -> None:
    running = trial_row(1, TrialState.RUNNING, epochs=9)
    found = report([ended(0, "learned"), running, stopped(2)], decision(1, action="audited"), decision(2))
    assert (found.condemned, found.audited, found.finished, found.error_rate) == (2, 1, 0, None)
    assert "not known yet" in found.sentence
    assert "0%" not in found.sentence
    assert "None" not in found.sentence


@pytest.mark.parametrize(
    ("called", "came_to", "wrong"),
    [
        ("never_learned", ended(1, "never_learned", 1.0), False),
        ("never_learned", ended(1, "learned"), True),
        ("never_learned", ended(1, "collapsed"), True),  # it did take off
        ("never_learned", ended(1, "diverged", 0.99), False),
        ("never_learned", ended(1, "diverged", None), False),
        ("never_learned", ended(1, "diverged", 0.60), True),  # it took off first
        ("collapsed", ended(1, "collapsed"), False),
        ("collapsed", ended(1, "learned"), True),
    ],
)
def test_a_trial_that_was_said_not_to_learn_and_did_is_an_error(called: str, came_to: TrialRow, wrong: bool) -> None:
    found = report([ended(0, "learned", 0.2), came_to], decision(1, called, "audited"))
    assert found.finished == 1
    assert found.wrong_verdicts == ((1,) if wrong else ())
    assert found.winners_killed == ()
    assert found.error_rate == float(wrong)


@pytest.mark.parametrize(
    ("best_wer", "killed"), [(0.5, False), (0.2, False), (0.2 - WINNER_MARGIN + 1e-6, False), (0.19, True)]
)
def test_one_called_too_slow_is_an_error_only_if_it_beats_all_others(best_wer: float, killed: bool) -> None:
    trials = [ended(0, "learned", 0.2), ended(1, "learned", best_wer), stopped(2)]
    found = report(trials, decision(1, "too_slow", "audited"), decision(2))
    assert found.winners_killed == ((1,) if killed else ())
    assert found.wrong_verdicts == ()
    assert found.error_rate == float(killed)


def test_two_audited_winners_do_not_excuse_each_other() -> None:
    trials = [ended(0, "learned", 0.2), ended(1, "learned", 0.101), ended(2, "learned", 0.1)]
    found = report(trials, decision(1, "too_slow", "audited"), decision(2, "too_slow", "audited"))
    assert found.winners_killed == (1, 2)


def test_the_interval_is_exact() -> None:
    """Clopper and Pearson's bounds for 0 of 10 and 1 of 10, as tables have them."""
    none = [ended(n, "never_learned", 1.0) for n in range(10)]
    found = report(none, *(decision(n, action="audited") for n in range(10)))
    assert found.interval == pytest.approx((0.0, 0.3085), abs=1e-4)
    one = [ended(0, "learned"), *none[1:]]
    found = report(one, *(decision(n, action="audited") for n in range(10)))
    assert found.interval == pytest.approx((0.0025, 0.4450), abs=1e-4)
    assert "1 of 10" in found.sentence
    assert "0.3% and 44.5%" in found.sentence
    assert "Trial 0: said not to learn, and did" in found.sentence


def test_what_was_saved_and_what_the_audits_cost() -> None:
    trials = [
        ended(0, "learned"),
        stopped(1, 6),
        stopped(2, 10),
        ended(3, "never_learned", 1.0, 24),
        ended(4, "diverged"),
    ]
    decisions = [decision(1), decision(2, epoch=10), decision(3, action="audited", epoch=7)]
    found = report(trials, *decisions, decision(4, "diverged", rule="diverged"))
    assert (found.condemned, found.audited) == (3, 1)
    assert found.epochs_saved == (24 - 6) + (24 - 10)
    assert found.epochs_audited == 24 - 7
    json.dumps(found.as_json(), allow_nan=False)


def test_a_failed_audit_tells_nothing() -> None:
    found = report([trial_row(0, TrialState.FAILED, epochs=9)], decision(0, action="audited"))
    assert (found.audited, found.finished, found.error_rate) == (1, 0, None)
