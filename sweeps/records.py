"""What the store takes and gives: frozen values, never live rows.

Times (`*_at`) are UNIX seconds in UTC by the clock of the database. WER is a fraction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, TypeAlias

from model.floors import Floors
from model.types import METRICS, EpochReport
from sweeps.states import SweepState, TrialState

BEST_WER = "best/wer"
"""A metric that a trial has beside those of its trainer: trackers sort runs by the last point of one."""

Scope: TypeAlias = Literal["read", "operate"]
"""What a token is good for: looking, or also creating, changing and deleting sweeps."""


def shown_host(host: str) -> str:
    """A host as people know it: without what tells its process tables apart (`sweeps.processes.this_host`)."""
    return host.partition("/")[0]


@dataclass(frozen=True)
class Runner:
    """The one process that keeps a sweep's house: see `sweeps.keeper`."""

    id: str
    """Unique to one start of a process: a process id alone is used again."""
    host: str
    pid: int
    yields: int = 0
    """It gives way to one with a lower number: 0 for `sweeps run`, 1 for `sweeps work`, 2 for one that cannot ship."""

    def __str__(self) -> str:
        return f"process {self.pid} on {shown_host(self.host)}"


@dataclass(frozen=True)
class PlannedTrial:
    """A named trial that a sweep begins with."""

    name: str
    hyperparameters: Mapping[str, Any]
    overrides: Mapping[str, Any]
    """Trainer fields outside the search space."""
    in_space: bool
    """Whether the sampler may hear of it."""


@dataclass(frozen=True)
class SweepRow:
    id: int
    name: str
    spec: dict[str, Any]
    digest: str
    """Of the spec without its budget: two specs of one digest are the same sweep."""
    budget: dict[str, Any]
    """`trials`, and what else of `spec.Budget` is limited."""
    facts: dict[str, Any]
    """What was found out when the sweep was made: corpus and vocabulary hash, WER of the best constant sentence."""
    state: SweepState
    reason: str
    runner: Runner | None
    runner_beat_at: float | None
    tracking: str | None
    """The tracking server that the experiment and the trials' runs belong to."""
    experiment_id: str | None
    created_at: float
    started_at: float | None
    resumed_at: float | None
    """When it was last told to run."""
    finished_at: float | None
    seconds: float
    """Wall time under a beating runner, over all runners, up to the last beat."""

    @property
    def floors(self) -> Floors:
        """What knowing nothing scores on the sweep's corpus; NaN for what was not kept."""
        return Floors(**{field.name: self.facts.get(field.name, math.nan) for field in fields(Floors)})


@dataclass(frozen=True)
class TrialRow:
    id: int
    sweep_id: int
    number: int
    """0 for the sweep's first."""
    name: str | None
    in_space: bool
    overrides: dict[str, Any]
    hyperparameters: dict[str, Any] | None
    """None until the sampler was asked."""
    state: TrialState
    attempt: int
    """Times it was claimed; the fencing token of the last claim."""
    worker: str | None
    verdict: str | None
    rule: str | None
    reason: str
    evidence: dict[str, Any]
    best_wer: float | None
    best_epoch: int | None
    epochs: int
    """The last epoch recorded, 0 for none."""
    optuna_trial_id: int | None
    run_id: str | None
    revision: int
    """Counts the changes that somebody who reads the run would see."""
    mirrored_revision: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    seconds: float = 0.0
    """Of training: the sum over its recorded epochs."""


@dataclass(frozen=True)
class PriorRow:
    """A trial of an earlier sweep that the sampler of this one is shown. It is none of its trials."""

    number: int
    """0 for the first."""
    source: str
    """The earlier sweep, which may be gone."""
    source_trial: int
    """The trial's number there."""
    hyperparameters: dict[str, Any]
    """In the space of this sweep."""
    value: float | None
    """What it counts for with the sampler, lower is better; None: infinite."""
    best_wer: float | None
    verdict: str | None


@dataclass(frozen=True)
class EpochRow:
    """One epoch of one trial: an `EpochReport` and the phase the run was in. Only finite metrics are kept."""

    epoch: int
    step: int
    metrics: dict[str, float]
    steps_in_epoch: int
    skipped_steps: int
    lr_time: float
    seconds: float
    phase: str
    recorded_at: float | None = None

    @classmethod
    def of(cls, report: EpochReport, phase: str, best_wer: float = math.nan) -> Self:
        """
        Args:
            best_wer: the lowest of the epochs up to this one.
        """
        best = {BEST_WER: best_wer} if math.isfinite(best_wer) else {}
        return cls(
            epoch=report.epoch,
            step=report.step,
            metrics={**report.finite(), **best},
            steps_in_epoch=report.steps_in_epoch,
            skipped_steps=report.skipped_steps,
            lr_time=report.lr_time,
            seconds=report.seconds,
            phase=phase,
        )

    def report(self) -> EpochReport:
        """The report it came from, with NaN for every metric that was not finite."""
        return EpochReport(
            epoch=self.epoch,
            step=self.step,
            metrics=dict.fromkeys(METRICS, math.nan) | self.metrics,
            steps_in_epoch=self.steps_in_epoch,
            skipped_steps=self.skipped_steps,
            lr_time=self.lr_time,
            seconds=self.seconds,
        )


@dataclass(frozen=True)
class Curve:
    """Metrics of one trial by epoch, in columns: for pictures, where rows would be ten times as large."""

    epochs: list[int]
    metrics: dict[str, list[float | None]]
    """As many of each; None where it was not finite, or not measured."""


@dataclass(frozen=True)
class DecisionRow:
    """Why a trial was condemned: stopped, or let run on all the same to see whether that was right. One a trial, the
    first; see `sweeps.pruning.Decision`.
    """

    trial_id: int
    number: int
    """Of the trial."""
    epoch: int
    """The epoch after which it was condemned."""
    rule: str
    verdict: str
    reason: str
    counterfactual: str
    """What would have kept it; empty where that was not kept."""
    numbers: dict[str, float]
    thresholds: dict[str, float]
    siblings: list[int]
    """Numbers of the trials it was compared with."""
    action: Literal["stopped", "audited"]
    recorded_at: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What is not of the trial, in JSON types only."""
        return {name: value for name, value in asdict(self).items() if name not in ("trial_id", "number")}


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at a glance."""

    sweep: SweepRow
    counts: dict[TrialState, int]
    """Trials by state, those of each."""
    epochs: int
    """Recorded, over all trials."""
    best: TrialRow | None
    """The trial with the lowest WER, whatever its state; the earlier of equals."""


@dataclass(frozen=True)
class TokenRow:
    """Somebody's right to use the service over the network; never the token itself."""

    name: str
    scope: Scope
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    used_at: float | None
    """When it was last used, to the minute."""


@dataclass(frozen=True)
class ActionRow:
    """Who asked for what. It was asked for: what came of it stands among the sweep's events."""

    actor: str
    """`token NAME`, or `USER@HOST` for somebody at the command line."""
    action: str
    target: str
    """A sweep, a trial or a token."""
    data: dict[str, Any] = field(default_factory=dict)
    at: float | None = None
    id: int | None = None
    """Ascending within a database."""


@dataclass(frozen=True)
class WorkerRow:
    """A process that trains trials, one at a time."""

    id: str
    """Unique to one start of a process."""
    host: str
    pid: int
    process_started: float
    """By its host's clock, UNIX seconds: a process id alone is used again."""
    device: str
    versions: dict[str, str]
    started_at: float | None = None
    seen_at: float | None = None


@dataclass(frozen=True)
class EventRow:
    """A change of a sweep's or a trial's state, or what was refused."""

    kind: str
    text: str
    """For a person; may be empty."""
    trial_number: int | None = None
    """None: of the sweep."""
    attempt: int | None = None
    worker: str | None = None
    """Who did it."""
    data: dict[str, Any] = field(default_factory=dict)
    at: float | None = None
    id: int | None = None
    """Ascending within a database."""


@dataclass(frozen=True)
class NotificationRow:
    """What somebody is to be told of a sweep, by one channel."""

    sweep_id: int
    sweep: str
    sweep_created_at: float
    key: str
    """What makes it this one."""
    channel: str
    kind: str
    """Of `notifying.News`."""
    text: str
    data: dict[str, Any]
    created_at: float
    tries: int
    try_at: float | None
    """Not before; None: it was sent, or given up."""
    sent_at: float | None
    trouble: str
    """Why the last try failed."""


@dataclass(frozen=True)
class Claim:
    """A worker's right to one trial, for as long as `attempt` is the trial's last and its lease was not reaped."""

    sweep_id: int
    trial_id: int
    number: int
    name: str | None
    attempt: int
    hyperparameters: dict[str, Any] | None
    """None: the sampler was not asked yet."""
    overrides: dict[str, Any]
    in_space: bool
    optuna_trial_id: int | None
    epochs: int
    """The last epoch recorded, 0 for none."""
    worker: str | None = None
    """Who holds it."""


@dataclass(frozen=True)
class ScoreRow:
    """How the best checkpoint of a trial read each sentence of a split, by greedy decoding."""

    trial_id: int
    split: Literal["dev", "test"]
    epoch: int
    """Of the checkpoint; 0: the trial has none, as no epoch of it had a finite WER, and reads nothing."""
    sentences: list[str]
    """Their ids."""
    errors: list[int]
    """Wrong words of each."""
    words: list[int]
    """Words of its reference."""
    scored_at: float | None = None


@dataclass(frozen=True)
class Pending:
    """What the tracking server has not seen of one trial."""

    trial: TrialRow
    epochs: list[EpochRow]
    decision: DecisionRow | None
    """What condemned it, if anything did."""
