"""What is done to a sweep, by name: the faults, and what they may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.faults import counting
from tests.faults.points import POINTS, Fault, When
from tests.faults.site import LEASE_SECONDS

TRIALS, EPOCHS, STEP_SECONDS = 6, 3, 0.05
"""Of the uninterrupted sweep that all are measured by."""

DAY = 86_400.0

COSTS_AN_EPOCH = {
    *(("epoch", "before"), ("epoch", "after"), ("batch", "before"), ("batch", "after")),
    *(("renew", "before"), ("renew", "after"), ("save", "before"), ("flush", "before"), ("flush", "after")),
    *(("replace", "before"), ("replace", "after")),
}
"""Where a worker that dies loses what it has trained since its last checkpoint. Anywhere else it loses nothing."""


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    """For the table."""
    faults: tuple[Fault, ...]
    command: Literal["run", "work"] = "run"
    """One `sweeps run` with `workers` workers, or as many `sweeps work` with one each."""
    workers: int = 2
    trials: int = TRIALS
    epochs: int = EPOCHS
    step_seconds: float = STEP_SECONDS
    first_trials: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    states: Mapping[int, str] = field(default_factory=dict)
    repeated: int | None = None
    """Epochs that may be begun once more; None: one for each fault that strikes where it costs one."""
    rest: float = 0.0
    """Seconds that are rested on purpose, or trained beside the ordinary epochs."""
    databases: tuple[str, ...] = ("sqlite", "postgresql")
    tracking: Literal["server", "own", "proxy"] = "server"
    """A server that is always there, one that `sweeps run` starts, or one behind a proxy with faults."""

    real: bool = False
    """Whether the built-in trainer trains, and not the one that counts."""

    def spec(self, corpus: str) -> dict[str, Any]:
        small = {"channels": 16, "patience": 30, "batch_size": 8, "device": "cpu"}
        return {
            "corpus": {"path": corpus},
            "trainer": {"epochs": self.epochs, "hidden": counting.HEALTHY, **small},
            "sampler": {"startup_trials": 2},
            "on_alarm": "continue",
            "space": {"patience": {"low": 20, "high": 30}},
            "first_trials": {name: dict(values) for name, values in self.first_trials.items()},
            "pruner": {"name": "none"},
            "budget": {"trials": self.trials, "total_epochs": self._epochs_given},
            "workers": self.workers,
            "range_test": False,
        }

    @property
    def _epochs_given(self) -> int | None:
        """A budget that never runs out, but makes a worker reserve its epochs, where that is what a fault strikes."""
        return 2 * self.trials * self.epochs if any(fault.point == "reserve" for fault in self.faults) else None

    @property
    def uninterrupted(self) -> Scenario:
        """What its time is measured by: every counting one by the same."""
        if self.real:
            return replace(self, name="uninterrupted real", faults=(), tracking="server")
        return Scenario(f"uninterrupted {self.command}", "nothing", (), command=self.command)

    @property
    def may_repeat(self) -> int:
        if self.repeated is not None:
            return self.repeated
        return sum(costs_an_epoch(fault) for fault in self.faults)

    def allowed(self, uninterrupted: float, start: float, outage: float) -> float:
        """Seconds: 1.5 times the uninterrupted ones, the outage, and for each fault two leases and what starting a
        process anew takes, where it ended one.

        Args:
            uninterrupted: of the sweep that all are measured by.
            start: of these, until the first epoch began.
        """
        epochs = self.trials * self.epochs
        training = uninterrupted - start
        training *= 1 if self.real else epochs / (TRIALS * EPOCHS)
        training += epochs * counting.STEPS * (self.step_seconds - STEP_SECONDS) / self.workers + self.rest
        return 1.5 * (start + training) + outage + sum(cost(fault, start) for fault in self.faults)


def costs_an_epoch(fault: Fault) -> bool:
    # A process that wakes, or is told to end, may begin an epoch before it hears that it must not.
    return fault.action in ("tear", "corrupt", "stop", "hang") or (fault.point, fault.when) in COSTS_AN_EPOCH


def cost(fault: Fault, start: float) -> float:
    """Seconds that a fault may cost, beside its outage."""
    if fault.action in ("clock", "meet"):
        return 0.0
    return 2 * LEASE_SECONDS + (start if fault.action in ("kill", "term", "tear", "corrupt") else 0.0)


def each(action: str, *places: tuple[str, When, int]) -> tuple[Fault, ...]:
    return tuple(Fault(point, when, nth, action) for point, when, nth in places)


def meetings(*numbers: int) -> tuple[Fault, ...]:
    """Two workers wait for each other before their claims number n and n + 1, at the given n."""
    return tuple(Fault("claim", "before", n + i, "meet") for n in numbers for i in (0, 1))


SCENARIOS = (
    Scenario(
        "killed at 1 to 2",
        "SIGKILL of a worker: claim, ask",
        each(
            "kill",
            *(("claim", "after", 2), ("claim", "before", 9), ("suggest", "before", 4), ("suggest", "after", 7)),
            *(("register", "before", 8), ("register", "after", 11), ("parameters", "before", 12)),
            *(("parameters", "after", 15), ("start", "after", 5)),
        ),
        trials=16,  # each that is struck stands between two that are not
        epochs=1,
    ),
    Scenario(
        "killed at 3",
        "SIGKILL of a worker: epoch, checkpoint; with its last checkpoint torn, with one in which 64 bytes are others",
        (
            *each(
                "kill", ("epoch", "before", 3), ("batch", "before", 24), ("epoch", "after", 8), ("save", "before", 10)
            ),
            *each("kill", ("replace", "before", 19), ("replace", "after", 34), ("renew", "after", 5)),
            Fault("save", "after", 5, "tear"),
            Fault("save", "after", 13, "corrupt"),
        ),
        step_seconds=0.15,  # renewed in each trial
    ),
    Scenario(
        "killed at 4 to 5",
        "SIGKILL of a worker: record, decide",
        each(
            "kill",
            *(("record", "before", 3), ("record", "after", 6), ("decide", "before", 11), ("decide", "after", 15)),
            *(("reserve", "after", 15), ("transaction", "after", 9)),
        ),
    ),
    Scenario(
        "killed at 6",
        "SIGKILL of a worker: finish, tell",
        each(
            "kill",
            *(("finish", "before", 1), ("finish", "after", 3), ("settle", "before", 3), ("tell", "before", 3)),
            *(("tell", "after", 5), ("told", "after", 5)),
        ),
        trials=12,
        epochs=1,
    ),
    Scenario(
        "frozen at 1 to 3",
        "SIGSTOP, later SIGCONT, of a worker: claim, ask, epoch, checkpoint",
        each(
            "stop",
            *(("claim", "before", 2), ("claim", "after", 4), ("register", "after", 4), ("parameters", "before", 6)),
            *(("epoch", "before", 7), ("batch", "before", 40), ("save", "before", 9), ("save", "after", 13)),
        ),
        workers=3,
    ),
    Scenario(
        "frozen at 4 to 6",
        "SIGSTOP, later SIGCONT, of a worker: record, decide, finish, tell; a trainer that does nothing for 12 s",
        (
            *each("stop", ("record", "before", 3), ("record", "after", 7), ("decide", "after", 12)),
            *each("stop", ("reserve", "after", 14), ("finish", "before", 3), ("finish", "after", 4)),
            # The keeper tells of trials whose worker is frozen: so few are left to tell.
            *each("stop", ("tell", "before", 3), ("told", "after", 3)),
            Fault("epoch", "before", 10, "hang", 12.0),
        ),
        workers=3,
    ),
    Scenario(
        "ended at 1 to 6",
        "SIGTERM of a worker: before or after each of its steps",
        each(
            "term",
            *(("claim", "after", 2), ("parameters", "before", 4), ("batch", "before", 30), ("save", "before", 7)),
            *(("record", "before", 9), ("decide", "after", 17), ("finish", "before", 4), ("tell", "before", 5)),
        ),
    ),
    Scenario(
        "killed at 7",
        "SIGKILL of the `sweeps work` of two that keeps the sweep: mirror",
        each(
            "kill",
            *(
                ("make run", "before", 1),
                ("make run", "after", 2),
                ("note run", "after", 3),
                ("log epochs", "after", 5),
            ),
            *(("set status", "after", 7), ("mark mirrored", "before", 7)),  # no more than trials: a pass may send all
        ),
        command="work",
        repeated=6,  # its worker ends with it
        trials=8,
    ),
    Scenario(
        "run killed",
        "SIGKILL of `sweeps run`",
        each("kill", ("pass", "before", 4), ("reap", "after", 8)),
        repeated=4,  # both of its workers end with it
    ),
    Scenario(
        "keeper killed",
        "SIGKILL of the `sweeps work` of two that keeps the sweep: in its pass",
        each("kill", ("pass", "before", 2), ("beat", "after", 4)),
        command="work",
        repeated=2,
    ),
    Scenario(
        "MLflow killed",
        "SIGKILL of the MLflow server; then of it and of its supervisor",
        (
            Fault("record", "after", 4, "call", name="MLflow killed"),
            Fault("record", "after", 16, "call", name="MLflow and its supervisor killed"),
        ),
        trials=8,
        epochs=4,
        step_seconds=0.2,
        tracking="own",
    ),
    Scenario(
        "MLflow away",
        "MLflow down, slow, answering 500, taking half a batch",
        (Fault("record", "after", 2, "call", name="MLflow fails in every way"),),
        trials=8,
        epochs=4,
        step_seconds=0.25,
        tracking="proxy",
    ),
    Scenario(
        "PostgreSQL away",
        "PostgreSQL stopped as by a crash, started again after 30 s",
        (Fault("record", "after", 5, "call", name="PostgreSQL away"),),
        databases=("postgresql",),
        repeated=2,
    ),
    Scenario(
        "SQLite locked",
        "another process holds SQLite's write lock for 8 s",
        (Fault("record", "after", 5, "call", name="SQLite locked"),),
        databases=("sqlite",),
        repeated=2,
    ),
    Scenario(
        "frozen in a write of PostgreSQL",
        "SIGSTOP of a worker inside a transaction, for longer than PostgreSQL lets a session idle there (30 s)",
        (Fault("transaction", "before", 6, "stop", 38.0),),
        databases=("postgresql",),
        repeated=2,  # nobody can renew a lease meanwhile
    ),
    Scenario(
        "frozen in a write of SQLite",
        "SIGSTOP of a worker inside a transaction, for 8 s",
        (Fault("transaction", "before", 6, "stop", 8.0),),
        databases=("sqlite",),
        repeated=2,
    ),
    Scenario(
        "full disk",
        "no room for a checkpoint, for 8 s",
        (Fault("flush", "before", 9, "full disk", 8.0),),
        repeated=2,  # both workers meet it
    ),
    Scenario(
        "clocks and race",
        "clocks of two workers and of the keeper a day off; two workers claim at the same moment, five trials in all",
        (
            *meetings(1, 3, 5),
            Fault("start", "after", 1, "clock", DAY),
            Fault("start", "after", 2, "clock", -DAY),
            Fault("pass", "before", 1, "clock", DAY),
        ),
        trials=5,
    ),
    Scenario(
        "long epoch",
        "an epoch of 10 s under a lease of 5 s",
        (),
        first_trials={"long": {"hidden": counting.LONG, "epochs": 1}},
        trials=3,
        rest=counting.LONG_STEPS * STEP_SECONDS,
    ),
    Scenario(
        "crashes",
        "a trial that always crashes; one that diverges",
        (),
        first_trials={"crashes": {"hidden": counting.CRASHES}, "diverges": {"hidden": counting.DIVERGES}},
        states={0: "FAILED", 1: "PRUNED"},
        repeated=2,
        rest=4.0,
    ),
    Scenario(
        "out of memory",
        "a trial whose attempts raise MemoryError; one whose workers are killed for memory",
        (),
        first_trials={"memory": {"hidden": counting.OUT_OF_MEMORY}, "killed": {"hidden": counting.KILLED}},
        states={0: "FAILED", 1: "FAILED"},
        repeated=4,
        rest=24.0,  # four rests after failed attempts, and three starts
    ),
)

assert {fault.point for scenario in SCENARIOS for fault in scenario.faults} <= POINTS.keys()
