"""A sweep that begins from the trials of earlier ones: which of them its sampler may be shown, and as what. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from model.diagnosis import counted
from model.types import BUILT_IN, EpochReport, TrainingConfig
from sweeps.records import PriorRow, SweepRow, TrialRow
from sweeps.spec import NOT_SEARCHED, SweepSpec, spec_of
from sweeps.study import counts_for_sampler

FACT = "warm_start"
"""The fact that holds what was taken: a `Taken` of each earlier sweep."""

FARTHEST = 2.0
"""A sweep whose trials are more than so many times as long, or as short, says too little of this one's."""


@dataclass(frozen=True)
class Taken:
    """What a sweep took from an earlier one."""

    sweep: str
    trials: int
    left_out: dict[str, int]
    """Why, and of how many trials."""

    def __str__(self) -> str:
        left = "; ".join(f"{number} left out, {why}" for why, number in self.left_out.items())
        return f"{counted(self.trials, 'trial')} of {self.sweep}" + (f" ({left})" if left else "")


def other_task(earlier: SweepRow, facts: Mapping[str, Any]) -> list[str]:
    """Where what an earlier sweep measured is not what this one measures, as `name (old -> new)`."""
    was = {"trainer": BUILT_IN, **earlier.facts}
    names = ("corpus_hash", "vocabulary_hash", "constant_wer", "trainer")
    return [
        f"{name} ({_short(was.get(name))} -> {_short(facts[name])})" for name in names if was.get(name) != facts[name]
    ]


def other_trainer(earlier: SweepRow, spec: SweepSpec) -> list[str]:
    """The settings of the trainer that neither sweep searches and that differ, as `trainer.name (old -> new)`.

    A trial of the other one would come to another WER. Epochs may differ up to FARTHEST times.
    """
    before = spec_of(earlier)
    searched = {*before.space.parameters(), *spec.space.parameters()}
    old, new = before.trainer.model_dump(), spec.trainer.model_dump()
    differing = [name for name in old if name not in searched and name not in NOT_SEARCHED and old[name] != new[name]]
    if max(old["epochs"], new["epochs"]) > FARTHEST * min(old["epochs"], new["epochs"]):
        differing.insert(0, "epochs")
    return [f"trainer.{name} ({old[name]} -> {new[name]})" for name in differing]


def taken(
    earlier: SweepRow, siblings: Sequence[tuple[TrialRow, Sequence[EpochReport]]], spec: SweepSpec
) -> tuple[list[PriorRow], Taken]:
    """The trials of an earlier sweep in the space of this one, by number from 0.

    A parameter that the earlier sweep did not search has its trainer's value. A longer trial is cut at this sweep's
    epochs, as its own would be.
    """
    before, constant_wer = spec_of(earlier), earlier.floors.constant_wer
    priors: list[PriorRow] = []
    left_out: Counter[str] = Counter()
    for trial, reports in siblings:
        if not trial.state.terminal or trial.hyperparameters is None:
            left_out["not over"] += 1
            continue
        seen = reports[: spec.trainer.epochs]
        value = counts_for_sampler(trial, seen, constant_wer)
        config = before.training(trial.number, trial.hyperparameters, trial.overrides)
        values = spec.in_the_space(config.model_dump())
        if value is None:
            left_out["which a fault cut short"] += 1
        elif not spec.space.contains(values):
            left_out["outside the space"] += 1
        elif why := _different(config, spec.training(0, values, {}), trial, before):
            left_out[f"with another {why}"] += 1
        else:
            best = min((report.wer for report in seen if report.wer == report.wer), default=None)
            finite = value if value < float("inf") else None
            row = PriorRow(len(priors), earlier.name, trial.number, values, finite, best, trial.verdict)
            priors.append(row)
    return priors, Taken(earlier.name, len(priors), dict(left_out))


def _different(config: TrainingConfig, here: TrainingConfig, trial: TrialRow, before: SweepSpec) -> str | None:
    """The first setting of a trial itself, searched or its own, that this sweep cannot have."""
    own = {*before.space.parameters(), *trial.overrides} - NOT_SEARCHED.keys()
    return next((name for name in sorted(own) if getattr(config, name) != getattr(here, name)), None)


def numbered(priors: Sequence[PriorRow]) -> list[PriorRow]:
    """Those of several sweeps, one after the other."""
    return [replace(prior, number=number) for number, prior in enumerate(priors)]


def as_fact(taken: Sequence[Taken]) -> list[dict[str, Any]]:
    return [asdict(each) for each in taken]


def in_words(sweep: SweepRow) -> str | None:
    """`warm start: 14 trials of demo`; None for a sweep that began from nothing."""
    found = [Taken(**each) for each in sweep.facts.get(FACT, ())]
    return f"warm start: {', '.join(map(str, found))}" if found else None


def _short(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 else text
