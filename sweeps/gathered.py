"""Everything about one sweep, read once, from wherever it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from model.diagnosis import takeoff_epoch
from sweeps.interface import PAGE, Sweeps
from sweeps.records import DecisionRow, EpochRow, EventRow, SweepRow, TrialRow
from sweeps.spec import SweepSpec, spec_of
from sweeps.summary import Conclusions, best_trial

T = TypeVar("T")


@dataclass(frozen=True)
class Gathered:
    """A sweep as it was when it was read."""

    sweep: SweepRow
    trials: Sequence[TrialRow]
    """By number."""
    curves: Mapping[int, Sequence[EpochRow]]
    """Of each trial that has epochs, by its number."""
    decisions: Sequence[DecisionRow]
    conclusions: Conclusions
    events: Sequence[EventRow]

    @cached_property
    def spec(self) -> SweepSpec:
        return spec_of(self.sweep)

    @cached_property
    def best(self) -> TrialRow | None:
        """The trial with the lowest WER; None while there is none."""
        return best_trial(self.trials)

    def curve(self, number: int, metric: str) -> tuple[list[int], list[float]]:
        """Epochs in which a trial's metric was finite, and its values."""
        points = [(row.epoch, row.metrics[metric]) for row in self.curves.get(number, ()) if metric in row.metrics]
        return [epoch for epoch, _ in points], [value for _, value in points]

    @cached_property
    def takeoffs(self) -> Mapping[int, int]:
        """The epoch in which a trial's WER first showed that it uses its input, of those that did, by number."""
        floor = self.sweep.facts["constant_wer"]
        found = {
            number: takeoff_epoch([row.metrics.get("dev/wer", math.nan) for row in rows], floor)
            for number, rows in self.curves.items()
        }
        return {number: epoch for number, epoch in found.items() if epoch is not None}


def gather(sweeps: Sweeps, name: str) -> Gathered:
    """
    Raises:
        SweepNotFound, and what else `sweeps` raises.
    """
    sweep, trials = sweeps.sweep(name).sweep, every_trial(sweeps, name)
    return Gathered(
        sweep,
        trials,
        {trial.number: sweeps.curve(name, trial.number) for trial in trials if trial.epochs},
        sweeps.decisions(name),
        sweeps.conclusions(name),
        list(_every(lambda after: sweeps.events(name, after=after), lambda event: event.id or 0, 0)),
    )


def every_trial(sweeps: Sweeps, name: str) -> list[TrialRow]:
    """All trials of a sweep, by number."""
    return list(_every(lambda after: sweeps.trials(name, after=after), lambda trial: trial.number, -1))


def values(trial: TrialRow) -> dict[str, Any]:
    """What a trial was trained with, of what the sweep searched or the trial was given; empty before it was asked."""
    return {**(trial.hyperparameters or {}), **trial.overrides} if trial.hyperparameters else {}


def _every(page: Callable[[int], list[T]], key: Callable[[T], int], after: int) -> Iterator[T]:
    """The rows of every page."""
    while rows := page(after):
        yield from rows
        after = key(rows[-1])
        if len(rows) < PAGE:
            return
