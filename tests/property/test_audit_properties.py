"""Who is audited: a seeded share, the same whoever asks and whenever. A trial is condemned once."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sweeps.audit import audit_report, is_audited
from sweeps.records import DecisionRow
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.rows import trial_row

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(0, 1)


@given(SEEDS, st.integers(0, 10**6), SHARES, SHARES)
def test_a_trial_that_is_audited_at_a_share_is_so_at_any_higher_one(
    seed: int, number: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert is_audited(seed, number, low) <= is_audited(seed, number, high)
    assert is_audited(seed, number, low) == is_audited(seed, number, low)
    assert not is_audited(seed, number, 0.0)
    assert is_audited(seed, number, 1.0)


def test_the_share_is_met_over_many_trials_and_over_many_sweeps() -> None:
    for share in (0.02, 0.1, 0.5, 0.9):
        for audited in (
            sum(is_audited(7, number, share) for number in range(4000)),
            sum(is_audited(seed, 3, share) for seed in range(4000)),
        ):
            assert binomtest(audited, 4000, share).pvalue > 1e-4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"sqlite:///{(tmp_path_factory.mktemp('audit') / 'sweeps.db').as_posix()}")
    yield store
    store.close()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["audit", "hand back", "die"]), max_size=6), st.sampled_from(["stop", "end"]))
def test_a_trial_keeps_the_first_decision_against_it_whatever_becomes_of_its_workers(
    store: Store, steps: list[str], ending: str
) -> None:
    sweep = store.create_sweep(uuid.uuid4().hex, {}, "", {"trials": 1}, {}, [])
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claim, first = store.claim(sweep.id, "worker", 60), None
    for epoch, step in enumerate([*steps, ending], start=1):
        assert claim is not None
        action = "audited" if step == "audit" else "stopped"
        row = DecisionRow(claim.trial_id, 0, epoch, "r", "never_learned", "", "", {}, {}, [], action)
        if step == "audit":
            store.audit(claim, row)
        elif step == "stop":
            store.finish(claim, TrialState.PRUNED, "never_learned", "", "r", {}, row)
        elif step == "end":
            store.finish(claim, TrialState.COMPLETE, "learned", "", "epochs", {})
        else:
            if step == "hand back":
                store.hand_back(claim, "interrupted")
            else:
                store.reap(sweep.id, ["worker"], max_attempts=99)
            claim = store.claim(sweep.id, "worker", 60)
        if step in ("audit", "stop"):
            first = first or row
    assert [replace(kept, recorded_at=None) for kept in store.decisions(sweep.id)] == ([first] if first else [])


VERDICTS = st.sampled_from(["never_learned", "collapsed", "too_slow"])
ENDS = st.sampled_from(["learned", "never_learned", "collapsed", "diverged", None])
TRIALS = st.lists(
    st.tuples(
        st.sampled_from([None, "stopped", "audited"]),
        VERDICTS,
        ENDS,
        st.none() | st.floats(0, 2),
        st.integers(1, 24),
        st.integers(0, 24),
    ),
    max_size=30,
)


@given(TRIALS)
def test_whatever_happened_the_report_adds_up(
    drawn: list[tuple[str | None, str, str | None, float | None, int, int]],
) -> None:
    trials, decisions = [], []
    for number, (action, called, end, wer, epoch, more) in enumerate(drawn):
        epochs = epoch if action == "stopped" else epoch + more
        state = TrialState.RUNNING if end is None else TrialState.COMPLETE
        if action == "stopped" or end == "diverged":
            state = TrialState.PRUNED
        trials.append(trial_row(number, state, verdict=end, best_wer=wer, epochs=epochs))
        if action:
            decisions.append(DecisionRow(trials[-1].id, number, epoch, "r", called, "", "", {}, {}, [], action))  # type: ignore[arg-type]
    report = audit_report(trials, decisions, {trial.number: 48 for trial in trials})
    assert report.finished <= report.audited <= report.condemned == len(decisions)
    errors = len(report.wrong_verdicts) + len(report.winners_killed)
    assert errors <= report.finished
    assert (report.error_rate is None) == (report.interval is None) == (report.finished == 0)
    assert report.epochs_saved >= 0
    assert report.epochs_audited >= 0
    if report.interval is not None and report.error_rate is not None:
        assert 0 <= report.interval[0] <= report.error_rate <= report.interval[1] <= 1
        assert report.interval[1] > 0, "never certain that there are no errors"
    assert bool(report.sentence) == bool(decisions)
