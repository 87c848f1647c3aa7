"""What can be asked of sweeps, wherever they are: `SweepService` answers from a database, `Client` over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sweeps.budget import IMPROVEMENT
from sweeps.records import ActionRow, Curve, DecisionRow, EpochRow, EventRow, SweepStatus, TrialRow
from sweeps.states import SweepState, TrialState

if TYPE_CHECKING:
    from sweeps.forecast import Forecast
    from sweeps.summary import Conclusions

PAGE = 1_000
"""Most rows of one answer."""

MOST_METRICS = 8
MOST_BEYOND = 100
"""Of one request for curves."""

LOOK_SECONDS = 1.0
"""Between two looks of whoever waits."""

Spec = Mapping[str, Any] | str
"""A spec: its content, or its text in YAML."""


@dataclass(frozen=True)
class Created:
    """What came of asking for a sweep."""

    sweep: SweepStatus
    new: bool
    """False: a sweep of this name and spec was there already, and is as it was."""
    notes: tuple[str, ...]
    """What the corpus left out, and what in the spec will probably disappoint; a sentence each."""

    @property
    def name(self) -> str:
        return self.sweep.sweep.name


@dataclass(frozen=True)
class Best:
    """What a sweep came to."""

    trial: TrialRow
    command: str | None
    """Trains it again, on the machine that answers; None where a trainer of one's own did, which only a sweep runs."""


@dataclass(frozen=True)
class Change:
    """Something that happened to a sweep."""

    kind: Literal["event", "trial", "status"]
    data: EventRow | TrialRow | SweepStatus
    """What happened; a trial that is new or changed, as it is now; the sweep as it is now."""
    id: int
    """Of the last event so far: `live(after=id)` goes on from there."""


class Sweeps(Protocol):
    """Sweeps are named by their names, trials by number or name; WER is a fraction, times are UNIX seconds.

    Raises, each of them: SweepNotFound, TrialNotFound (with the nearest names), DatabaseUnavailable; a `Client` also
    ServerUnavailable and NotAllowed.
    """

    def create(
        self, spec: Spec, *, trials: int | None = None, trainer: str | None = None, force: bool = False
    ) -> Created:
        """Make a sweep and let it run, for the workers that are there or to come. Asked again it changes nothing.

        Args:
            trials: instead of the spec's budget.trials.
            trainer: a trainer that is not the built-in one. Of a server: by the name it is configured under.
            force: take a corpus that the check finds a fatal fault in.

        Raises:
            SpecError: with a line for each fault.
            SpecChanged, TrainerChanged: a sweep of that name was made from another spec, or is trained otherwise.
        """
        ...

    def sweeps(self) -> list[SweepStatus]:
        """Every sweep, the oldest first."""
        ...

    def sweep(self, name: str) -> SweepStatus: ...

    def trials(
        self, name: str, *, after: int = -1, limit: int = PAGE, state: TrialState | None = None
    ) -> list[TrialRow]:
        """Trials by number, those above `after`, at most `limit`."""
        ...

    def trial(self, name: str, trial: str | int) -> TrialRow: ...

    def curve(self, name: str, trial: str | int) -> list[EpochRow]:
        """Every epoch of a trial so far."""
        ...

    def curves(
        self,
        name: str,
        metrics: Sequence[str] = ("dev/wer",),
        *,
        after: int = -1,
        limit: int = PAGE,
        beyond: Mapping[int, int] | None = None,
    ) -> dict[int, Curve]:
        """Some metrics of every trial that has epochs, to six digits, by the trial's number: those above `after`, at
        most `limit`.

        Args:
            metrics: by name, at most MOST_METRICS.
            beyond: only these trials, by number, and only the epochs behind the one that is named: what is new to who
                knows the others.

        Raises:
            SweepError: a name that no metric has.
        """
        ...

    def latest(self, name: str, *, after: int = -1, limit: int = PAGE) -> dict[int, EpochRow]:
        """The last epoch of each trial that has one, by the trial's number: those above `after`, at most `limit`."""
        ...

    def decisions(self, name: str) -> list[DecisionRow]:
        """What condemned trials, by the trial's number."""
        ...

    def best(self, name: str) -> Best | None:
        """The trial with the lowest WER; None while no epoch was recorded."""
        ...

    def conclusions(self, name: str) -> Conclusions:
        """What was learned about the parameters, and how often the rules were wrong."""
        ...

    def forecast(self, name: str, improvement: float = IMPROVEMENT) -> Forecast:
        """What the rest of its budget will bring: hours, trials, and the chance of a WER lower by `improvement`.

        Raises:
            SweepError: an improvement that is no fraction above 0.
        """
        ...

    def events(self, name: str, *, after: int = 0, limit: int = PAGE) -> list[EventRow]:
        """What happened, in order, from behind the event `after`."""
        ...

    def pause(self, name: str) -> SweepStatus:
        """No new epoch begins; the trials under way are handed back at the end of the one in hand.

        Raises:
            WrongState: its state does not allow it; so for every verb.
        """
        ...

    def resume(self, name: str, *, trials: int | None = None) -> SweepStatus:
        """Workers may claim its trials again; one that alarmed or failed goes on as well.

        Args:
            trials: the budget's trials from now on.

        Raises:
            NothingToDo: its budget is used up.
        """
        ...

    def stop(self, name: str) -> SweepStatus:
        """No new trial begins; those under way run to their ends."""
        ...

    def cancel(self, name: str) -> SweepStatus:
        """It ends for good: the epochs in hand are dropped, no trial goes on."""
        ...

    def enqueue(
        self, name: str, values: Mapping[str, Any], *, trial_name: str | None = None, repeat: bool = False
    ) -> TrialRow:
        """Let a configuration wait that is to be trained before the sampler is asked for another. Asked again, with the
        same values or the same name, it adds no second one.

        Args:
            values: any fields of a training config; what is not named is the spec's.
            repeat: train it again, from another seed, if the sweep has it already; the repeat needs a name.

        Raises:
            SpecError: values that no training config can have.
            TrialTried: the sweep has this configuration already.
            TrialsSpent: the budget has no trial left.
        """
        ...

    def delete(self, name: str, *, keep_mlflow: bool = False, created_at: float | None = None) -> None:
        """Remove a sweep with its rows, checkpoints and pictures, and its MLflow experiment unless that is kept.

        Args:
            created_at: only the sweep that was made then, and not a later one of that name.

        Raises:
            SweepBusy: a process works on it.
        """
        ...

    def live(self, name: str, *, after: int | None = None) -> Iterator[Change]:
        """What happens from now on, or from behind the event `after`, as it happens; ends when the sweep is over, with
        its status.
        """
        ...

    def actions(self, *, after: int = 0, limit: int = PAGE) -> list[ActionRow]:
        """Who asked for what, in order, from behind the one with the id `after`."""
        ...

    def wait(self, name: str, timeout: float = float("inf")) -> SweepStatus:
        """Until the sweep is over, or paused, or `timeout` seconds have passed; returns it as it is then."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.sweep(name)
            state = status.sweep.state
            if state.terminal or state is SweepState.PAUSED or time.monotonic() > deadline:
                return status
            time.sleep(LOOK_SECONDS)
