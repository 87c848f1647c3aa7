from __future__ import annotations

import pickle

import pytest

from sweeps.states import SweepState, TrialState

SWEEP_STEPS = {
    "PENDING": {"RUNNING", "PAUSED", "STOPPING", "STOPPED", "CANCELLING", "FAILED", "DELETING"},
    "RUNNING": {"PAUSED", "STOPPING", "STOPPED", "CANCELLING", "COMPLETE", "FAILED", "DELETING"},
    "PAUSED": {"RUNNING", "STOPPING", "CANCELLING", "COMPLETE", "FAILED", "DELETING"},
    "STOPPING": {"RUNNING", "PAUSED", "STOPPED", "CANCELLING", "COMPLETE", "FAILED", "DELETING"},
    "STOPPED": {"RUNNING", "CANCELLING", "DELETING"},
    "CANCELLING": {"CANCELLED", "DELETING"},
    "CANCELLED": {"DELETING"},
    "DELETING": set(),
    "COMPLETE": {"RUNNING", "DELETING"},
    "FAILED": {"RUNNING", "CANCELLING", "DELETING"},
}
TRIAL_STEPS = {
    "WAITING": {"RUNNING", "CANCELLED"},
    "RUNNING": {"WAITING", "COMPLETE", "PRUNED", "FAILED", "CANCELLED"},
    "COMPLETE": set(),
    "PRUNED": set(),
    "FAILED": set(),
    "CANCELLED": set(),
}


@pytest.mark.parametrize(("states", "steps"), [(SweepState, SWEEP_STEPS), (TrialState, TRIAL_STEPS)])
def test_the_life_cycle_has_these_steps_and_no_other(
    states: type[SweepState] | type[TrialState], steps: dict[str, set[str]]
) -> None:
    drawn = {state.value: {other.value for other in states if state.may_become(other)} for state in states}  # type: ignore[arg-type]
    assert drawn == steps


def test_the_terminal_states() -> None:
    assert {s for s in SweepState if s.terminal} == {"STOPPED", "CANCELLED", "COMPLETE", "FAILED", "DELETING"}
    assert {s for s in TrialState if s.terminal} == {"COMPLETE", "PRUNED", "FAILED", "CANCELLED"}


def test_a_state_is_its_name_and_survives_a_process_boundary() -> None:
    for state in (*SweepState, *TrialState):
        assert state == state.name == state.value == str(state) == f"{state}"
        assert pickle.loads(pickle.dumps(state)) is state
        assert type(state)(state.value) is state
