"""The life cycles of a sweep and of a trial. Each value stands beside the values that may follow it."""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _State(StrEnum):
    _next: frozenset[str]

    def __new__(cls, value: str, following: str = "") -> Self:
        state = str.__new__(cls, value)
        state._value_ = value
        state._next = frozenset(following.split())
        return state

    def may_become(self, other: Self) -> bool:
        """Whether the step from this state to `other` is one of the life cycle. No state may become itself."""
        return other.value in self._next


class SweepState(_State):
    """What a sweep is doing. A sweep that ended may run again (a raised budget, a mended fault), unless cancelled."""

    PENDING = "PENDING", "RUNNING PAUSED STOPPING STOPPED CANCELLING FAILED DELETING"
    RUNNING = "RUNNING", "PAUSED STOPPING STOPPED CANCELLING COMPLETE FAILED DELETING"
    PAUSED = "PAUSED", "RUNNING STOPPING CANCELLING COMPLETE FAILED DELETING"
    STOPPING = "STOPPING", "RUNNING PAUSED STOPPED CANCELLING COMPLETE FAILED DELETING"
    STOPPED = "STOPPED", "RUNNING CANCELLING DELETING"
    CANCELLING = "CANCELLING", "CANCELLED DELETING"
    CANCELLED = "CANCELLED", "DELETING"
    COMPLETE = "COMPLETE", "RUNNING DELETING"
    FAILED = "FAILED", "RUNNING CANCELLING DELETING"
    DELETING = "DELETING", ""

    @property
    def terminal(self) -> bool:
        """Whether nothing works on the sweep in this state."""
        over = (SweepState.STOPPED, SweepState.CANCELLED, SweepState.COMPLETE, SweepState.FAILED, SweepState.DELETING)
        return self in over


class TrialState(_State):
    """What a trial is doing. Back from RUNNING to WAITING: its worker handed it back, died or lost its lease."""

    WAITING = "WAITING", "RUNNING CANCELLED"
    RUNNING = "RUNNING", "WAITING COMPLETE PRUNED FAILED CANCELLED"
    COMPLETE = "COMPLETE", ""
    PRUNED = "PRUNED", ""
    FAILED = "FAILED", ""
    CANCELLED = "CANCELLED", ""

    @property
    def terminal(self) -> bool:
        """Whether the trial is over for good."""
        return not self._next
