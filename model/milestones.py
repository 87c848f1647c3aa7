"""WERs that a run is hoped to reach by certain epochs. To have missed one is no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeAlias

State: TypeAlias = Literal["met", "missed", "open", "beyond"]


@dataclass(frozen=True)
class Milestone:
    """A dev WER to fall below by the end of an epoch."""

    epoch: int | None
    """None: the last one planned."""
    wer: float


DEFAULT = (
    Milestone(1, 0.98),
    Milestone(5, 0.80),
    Milestone(10, 0.65),
    Milestone(50, 0.45),
    Milestone(200, 0.30),
    Milestone(None, 0.25),
)
"""For PHOENIX from MediaPipe, as its user hopes. At epoch 3 healthy runs also stand at 100 %, and 25 % on SI5 is better
than the best published system: read them as hopes."""


def parse(text: str) -> tuple[Milestone, ...]:
    """Milestones as an option has them: `1:98%,5:0.8,end:25%`, a WER as a percentage or a fraction; `none`: none.

    Raises:
        ValueError: it is not written so, an epoch is below 1 or stands twice, or a WER is not within 0 to 1.
    """
    if text.strip() == "none":
        return ()
    found: dict[int | None, Milestone] = {}
    for part in text.split(","):
        epoch, _, wer = (each.strip() for each in part.partition(":"))
        try:
            milestone = Milestone(
                None if epoch == "end" else int(epoch),
                float(wer.removesuffix("%")) / (100 if wer.endswith("%") else 1),
            )
        except ValueError:
            raise ValueError(f"milestone {part.strip()!r}: write EPOCH:WER, such as 5:80% or end:0.25") from None
        if not 0 < milestone.wer <= 1:
            raise ValueError(f"milestone {part.strip()!r}: the WER is a fraction above 0 up to 1, or a percentage")
        if milestone.epoch is not None and milestone.epoch < 1:
            raise ValueError(f"milestone {part.strip()!r}: the first epoch is 1")
        if milestone.epoch in found:
            raise ValueError(f"milestone {part.strip()!r}: there are two for this epoch; leave one out")
        found[milestone.epoch] = milestone
    return tuple(sorted(found.values(), key=lambda m: (m.epoch is None, m.epoch)))


def written(milestones: Sequence[Milestone]) -> str:
    """What `parse` reads."""
    return ",".join(f"{m.epoch or 'end'}:{100 * m.wer:g}%" for m in milestones) or "none"


@dataclass(frozen=True)
class Standing:
    """How a run stands to a milestone."""

    milestone: Milestone
    by_epoch: int
    """The milestone's epoch; for `end` the last one planned."""
    state: State
    """`open`: there is time left. `beyond`: the run will not have so many epochs."""
    reached: int | None
    """The first epoch below that WER; for a missed milestone a later one, if any."""
    best: float | None
    """Lowest dev WER up to the milestone's epoch, if there is one."""


def met(milestones: Sequence[Milestone], wers: Sequence[float], epochs_planned: int) -> list[Standing]:
    """How a run stands to its milestones.

    Args:
        wers: dev WER of epochs 1, 2, ... (fractions).
        epochs_planned: epochs the run will have; for a run that is over, those it had.
    """
    standings = []
    for milestone in milestones:
        by = milestone.epoch or epochs_planned
        reached = next((epoch for epoch, wer in enumerate(wers, start=1) if wer < milestone.wer), None)
        state: State
        if reached is not None and reached <= by:
            state = "met"
        elif by > epochs_planned:
            state = "beyond"
        else:
            state = "missed" if len(wers) >= by else "open"
        best = min((wer for wer in wers[:by] if isfinite(wer)), default=None)
        standings.append(Standing(milestone, by, state, reached, best))
    return standings


def lines(standings: Sequence[Standing]) -> list[str]:
    """One line a milestone, for a person; a last line says what a missed one means. None without milestones."""
    text = []
    for standing in standings:
        goal = f"WER < {100 * standing.milestone.wer:g}% by epoch {standing.by_epoch}"
        if standing.state == "met":
            how = f"met at epoch {standing.reached}"
        elif standing.state == "missed":
            later = f"; reached at epoch {standing.reached}" if standing.reached else ""
            how = "missed" if standing.best is None else f"missed ({standing.best:.1%} by then{later})"
        else:
            how = "not reached yet" if standing.state == "open" else "beyond this run"
        text.append(f"{goal}: {how}")
    if any(standing.state == "missed" for standing in standings):
        text.append("A missed milestone is no verdict: at epoch 3 a healthy run often still shows 100 %.")
    return text
