"""Where a fault can strike, and plans of faults: what `armed.py` reads and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

PLAN = "FAULTS_PLAN"
"""Environment variable: the folder of the plan."""

When: TypeAlias = Literal["before", "after"]
Who: TypeAlias = Literal["worker", "keeper"]


@dataclass(frozen=True)
class Point:
    step: str
    """Of docs/explanation/one-trial.md."""
    target: str
    """`module:name` or `module:Class.method`, looked up where it is called."""
    who: Who = "worker"


POINTS: Mapping[str, Point] = {
    "start": Point("start", "sweeps.store:Store.register_worker"),
    "claim": Point("1 claim", "sweeps.store:Store.claim"),
    "suggest": Point("2 ask", "sweeps.worker:suggested"),
    "register": Point("2 ask", "sweeps.study:Study.register"),
    "parameters": Point("2 ask", "sweeps.store:Store.set_hyperparameters"),
    "resume": Point("3 train", "sweeps.checkpoints:resume"),
    "epoch": Point("3 train", "sweeps.worker:make_trainer"),  # its train_epoch
    "batch": Point("3 train", "sweeps.lease:Lease.should_stop"),
    "renew": Point("3 train", "sweeps.store:Store.renew"),
    "save": Point("3 train", "sweeps.checkpoints:save"),
    "flush": Point("3 train", "os:fsync"),
    "replace": Point("3 train", "model.files:_replace"),
    "forget": Point("3 train", "sweeps.checkpoints:forget_earlier"),
    "record": Point("4 record", "sweeps.store:Store.record"),
    "decide": Point("5 decide", "sweeps.judging:Judge.finish_if_over"),
    "reserve": Point("5 decide", "sweeps.store:Store.reserve_epoch"),
    "hand back": Point("5 decide", "sweeps.store:Store.hand_back"),
    "finish": Point("6 finish", "sweeps.store:Store.finish"),
    "settle": Point("6 finish", "sweeps.checkpoints:settle"),
    "tell": Point("6 tell", "sweeps.study:Study.tell"),
    "told": Point("6 tell", "sweeps.store:Store.mark_told"),
    "transaction": Point("a write", "sweeps.store:_tell"),
    "ship": Point("7 mirror", "sweeps.mirror:Mirror._ship_trial", "keeper"),
    "make run": Point("7 mirror", "tracking.mlflow_writer:_MlflowExperiment._create", "keeper"),
    "note run": Point("7 mirror", "sweeps.store:Store.set_run_id", "keeper"),
    "log epochs": Point("7 mirror", "tracking.mlflow_writer:_MlflowRun.log_epochs", "keeper"),
    "set status": Point("7 mirror", "tracking.mlflow_writer:_MlflowRun.set_status", "keeper"),
    "mark mirrored": Point("7 mirror", "sweeps.store:Store.mark_mirrored", "keeper"),
    "pass": Point("keeper", "sweeps.keeper:Keeper.make_pass", "keeper"),
    "reap": Point("keeper", "sweeps.store:Store.reap", "keeper"),
    "beat": Point("keeper", "sweeps.store:Store.beat", "keeper"),
}

ACTIONS = ("kill", "term", "stop", "hang", "full disk", "tear", "corrupt", "clock", "meet", "call")
MAY_COST_AN_ATTEMPT = frozenset({"kill", "stop", "hang", "tear", "corrupt"})
"""Actions that may leave an attempt without a new epoch. After three such in a row a trial is given up, as it should
be: so they pass over an attempt with two before it, and strike at the next time that they can."""


@dataclass(frozen=True)
class Fault:
    """At the `nth` time that a process of this kind comes to `point`, over all of them, it does `action` to itself; or
    later, where that may cost an attempt and the worker holds a trial that would be given up for it."""

    point: str
    when: When
    nth: int
    action: str
    seconds: float = 0.0
    """Of a hang or a full disk; by how much the clock is wrong; how long to wait for others to meet."""
    name: str = ""
    """Of what the harness is called for."""

    def __post_init__(self) -> None:
        assert self.point in POINTS, self.point
        assert self.action in ACTIONS, self.action

    def __str__(self) -> str:
        return f"{self.name or self.action} {self.when} {self.point} #{self.nth}"


@dataclass(frozen=True)
class Fired:
    """A fault that has struck."""

    fault: int
    """Its place in the plan."""
    pid: int
    at: float
    """Monotonic seconds."""
    number: int | None
    """Of the trial, where the point knows it."""
    attempt: int | None


@dataclass(frozen=True)
class Plan:
    """The faults of one sweep, in a folder that all its processes see."""

    folder: Path
    faults: Sequence[Fault] = field(default_factory=tuple)

    def write(self) -> None:
        (self.folder / "passed").mkdir(parents=True, exist_ok=True)
        content = json.dumps([asdict(fault) for fault in self.faults])
        (self.folder / "plan.json").write_text(content, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        content: list[dict[str, Any]] = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        return cls(folder, [Fault(**each) for each in content])

    def fired(self) -> list[Fired]:
        """In order; those that have not struck yet are not among them."""
        file = self.folder / "fired"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [Fired(**json.loads(line)) for line in lines]

    def silent(self) -> list[Fault]:
        """Those that have not struck."""
        struck = {fired.fault for fired in self.fired()}
        return [fault for i, fault in enumerate(self.faults) if i not in struck]
