"""What a sweep is asked to do: read from YAML, checked whole, frozen."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import re
import typing
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from model import milestones
from model.corpus.data import CorpusConfig
from model.corpus.synthetic import GeneratedConfig
from model.diagnosis import counted
from model.types import Hyperparameters, TrainingConfig, Value, mixed_seed
from sweeps.budget import IMPROVEMENT
from sweeps.errors import SpecError as SpecError
from sweeps.records import SweepRow


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    later: typing.ClassVar[Collection[str]] = ()
    """Fields that came after the first specs were stored: left out at their defaults, so those keep their digest."""

    @model_serializer(mode="wrap")
    def _without_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        unset = [name for name in self.later if getattr(self, name) == type(self).model_fields[name].default]
        return {name: value for name, value in content.items() if name not in unset}


def _in_a_list(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: [only] if isinstance(only, str | int | float) else only for name, only in value.items()}


Conditions: TypeAlias = Annotated[dict[str, tuple[Value, ...]] | None, BeforeValidator(_in_a_list)]
_WHEN = "parameters with choices, and the values of each at which this one exists"


class FloatRange(Section):
    """A number between `low` and `high`, drawn evenly, or evenly in its logarithm."""

    later = ("when",)

    low: float
    high: float
    log: bool = False
    when: Conditions = Field(None, description=_WHEN)

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        _check_range(self.low, self.high, self.log)
        return self

    @property
    def count(self) -> float:
        """How many values there are."""
        return 1 if self.low == self.high else math.inf

    def contains(self, value: Value) -> bool:
        return not isinstance(value, str) and self.low <= value <= self.high

    def nearest(self, value: Value) -> Value:
        assert not isinstance(value, str)
        return min(max(value, self.low), self.high)

    def at(self, share: float) -> float:
        """The value at `share` (0 to 1)."""
        return min(_at(self.low, self.high, self.log, share), self.high)

    def middle(self) -> float:
        """The value half-way, by ratio where it is drawn by its logarithm."""
        return math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    def share(self, value: Value) -> float:
        """Where a value within lies, 0 to 1."""
        return _share(self.low, self.high, self.log, float(value))


class IntRange(Section):
    """A whole number between `low` and `high`, both included."""

    later = ("when",)

    low: int = Field(ge=-1_000_000, le=1_000_000)
    high: int = Field(ge=-1_000_000, le=1_000_000)
    log: bool = False
    when: Conditions = Field(None, description=_WHEN)

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        _check_range(self.low, self.high, self.log)
        return self

    @property
    def count(self) -> float:
        return self.high - self.low + 1

    @property
    def values(self) -> Sequence[Value]:
        """Each there is, in order."""
        return range(self.low, self.high + 1)

    def contains(self, value: Value) -> bool:
        return not isinstance(value, str) and self.low <= value <= self.high

    def nearest(self, value: Value) -> Value:
        assert not isinstance(value, str)
        return min(max(value, self.low), self.high)

    def at(self, share: float) -> int:
        return min(int(_at(float(self.low), float(self.high) + 1, self.log, share)), self.high)

    def middle(self) -> int:
        return round(math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2)

    def share(self, value: Value) -> float:
        return _share(self.low, self.high, self.log, float(value))


class Choices(Section):
    """One of several values, in no order."""

    later = ("when",)

    choices: tuple[Value, ...] = Field(min_length=1, max_length=100)
    when: Conditions = Field(None, description=_WHEN)

    @property
    def count(self) -> float:
        return len(self.choices)

    @property
    def values(self) -> Sequence[Value]:
        return self.choices

    def contains(self, value: Value) -> bool:
        return value in self.choices

    def nearest(self, value: Value) -> Value:
        return value if value in self.choices else self.choices[0]

    def at(self, share: float) -> Value:
        return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]

    def share(self, value: Value) -> float:
        return self.choices.index(value) / (len(self.choices) - 1) if len(self.choices) > 1 else 0.5


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; swap them")
    if log and low <= 0:
        raise ValueError(f"low {low:g} has no logarithm; set low above 0 or log: false")


def _at(low: float, high: float, log: bool, share: float) -> float:
    return low * (high / low) ** share if log else low + share * (high - low)


def _share(low: float, high: float, log: bool, value: float) -> float:
    if low == high:
        return 0.5
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


Parameter: TypeAlias = FloatRange | IntRange | Choices
"""What a sampler may choose of one field of the trainer."""


def in_words(parameter: Parameter) -> str:
    """What may be chosen, and when, for a person."""
    if isinstance(parameter, Choices):
        said = " or ".join(map(str, parameter.choices))
    else:
        said = f"{parameter.low:g} to {parameter.high:g}{' (log)' if parameter.log else ''}"
    conditions = [f"{other} {' or '.join(map(str, allowed))}" for other, allowed in (parameter.when or {}).items()]
    return f"{said}, with {' and '.join(conditions)}" if conditions else said


def _kind(value: Any) -> str:
    return "Choices" if isinstance(value, Choices) or (isinstance(value, Mapping) and "choices" in value) else "range"


FloatParameter: TypeAlias = Annotated[
    Annotated[FloatRange, Tag("range")] | Annotated[Choices, Tag("Choices")], Discriminator(_kind)
]
IntParameter: TypeAlias = Annotated[
    Annotated[IntRange, Tag("range")] | Annotated[Choices, Tag("Choices")], Discriminator(_kind)
]

NOT_SEARCHED: Mapping[str, str] = {
    "epochs": "trials of different lengths do not compare; set trainer.epochs",
    "seed": "each trial has one of its own, from the sweep's `seed`",
    "data_seed": "all trials see the same batches, by the sweep's `seed`",
    "threads": "it changes how fast a trial is, not what it comes to; set trainer.threads",
    "device": "where a trial is trained is up to its worker; set trainer.device",
    "eval_batch_size": "it changes how fast dev is read, not what a trial comes to; set trainer.eval_batch_size",
    "probe_interval": "it changes what is measured, not what a trial comes to; set trainer.probe_interval",
}
"""Fields of the trainer that no space may have, and why."""

LATER_TRAINER = ("length_buckets",)
"""Fields of the trainer that came after the first specs were stored: left out of a sweep's identity at their defaults,
so those keep their digest."""

_THE_FOUR = ("learning_rate", "warmup_start_factor", "dropout", "patience")

JOINING: Mapping[str, Any] = {
    name: {float: FloatParameter, int: IntParameter}.get(typing.cast(type, field.annotation), Choices)
    for name, field in TrainingConfig.model_fields.items()
    if name not in NOT_SEARCHED and name not in _THE_FOUR
}
"""Fields of the trainer that may join the four in a space, and what is chosen of them."""

_joined: Any = {name: (kind | None, None) for name, kind in JOINING.items()}
_Joined: Any = create_model("_Joined", __base__=Section, **_joined)

MOST_CONFIGURATIONS = 10_000
"""A space of more is not counted: nothing is tried twice by chance in it."""


class SearchSpace(_Joined):
    """What the sampler may choose: four parameters, and any other field of the trainer that is named (`JOINING`).

    A plain value instead of a range or choices fixes that parameter.
    """

    later = tuple(JOINING)

    learning_rate: FloatRange = FloatRange(low=1e-5, high=2e-2, log=True)
    warmup_start_factor: FloatParameter = FloatRange(low=0.05, high=1.0)
    dropout: FloatParameter = FloatRange(low=0.0, high=0.5)
    patience: IntParameter | None = Field(None, description="default: 5 to half the epochs")

    @field_validator("*", mode="before")
    @classmethod
    def _fixed(cls, value: Any, info: ValidationInfo) -> Any:
        number = TrainingConfig.model_fields[str(info.field_name)].annotation in (int, float)
        if isinstance(value, str) and number:  # YAML reads 1e-4, without a dot, as text
            with contextlib.suppress(ValueError):
                value = float(value)
        if value is None or isinstance(value, Mapping | Section):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float if number else int | float | str):
            form = "one number, or {low: ..., high: ...}" if number else "one value, or {choices: [..., ...]}"
            raise ValueError(f"{_shown(value)}: write {form}")
        return {"low": value, "high": value} if number else {"choices": [value]}

    def parameters(self) -> dict[str, Parameter]:
        """By name, in a fixed order: the four, then the others as the trainer has them. Patience must have been filled
        in.
        """
        found = {name: getattr(self, name) for name in (*_THE_FOUR, *JOINING)}
        return {name: parameter for name, parameter in found.items() if parameter is not None}

    def searched(self) -> dict[str, Parameter]:
        """Those that are not fixed."""
        return {name: parameter for name, parameter in self.parameters().items() if parameter.count > 1}

    def conditional(self) -> bool:
        """Whether some parameters are absent from some trials."""
        return any(parameter.when for parameter in self.parameters().values())

    def active(self, values: Mapping[str, Any]) -> dict[str, Parameter]:
        """The parameters that a trial with these values has: those whose conditions hold."""
        parameters = self.parameters()

        def holds(name: str) -> bool:
            when = parameters[name].when or {}
            return all(holds(other) and values.get(other) in allowed for other, allowed in when.items())

        return {name: parameter for name, parameter in parameters.items() if holds(name)}

    def only_active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without the values of parameters whose conditions do not hold."""
        return {name: values[name] for name in self.active(values)}

    def contains(self, values: Hyperparameters) -> bool:
        """Whether these are the values of one trial: of each parameter whose condition holds, and within it."""
        active = self.active(values)
        return values.keys() == active.keys() and all(p.contains(values[name]) for name, p in active.items())

    def configurations(self) -> list[dict[str, Any]] | None:
        """Every configuration there is; None where they are more than MOST_CONFIGURATIONS."""
        found: list[dict[str, Any]] = [{}]
        for name, parameter in self._parents_first().items():
            if parameter.count > MOST_CONFIGURATIONS:
                return None
            values = [parameter.low] if isinstance(parameter, FloatRange) else parameter.values
            found = [
                more
                for known in found
                for more in ([{**known, name: v} for v in values] if self._joins(parameter, known) else [known])
            ]
            if len(found) > MOST_CONFIGURATIONS:
                return None
        return found

    @staticmethod
    def _joins(parameter: Parameter, known: Mapping[str, Any]) -> bool:
        return all(known.get(other) in allowed for other, allowed in (parameter.when or {}).items())

    def _parents_first(self) -> dict[str, Parameter]:
        """The parameters, each behind those that its condition names."""
        parameters, found = self.parameters(), dict[str, Parameter]()

        def add(name: str) -> None:
            for other in parameters[name].when or {}:
                add(other)
            found.setdefault(name, parameters[name])

        for name in parameters:
            add(name)
        return found


class Sampler(Section):
    later = ("repeats",)

    name: Literal["tpe", "random"] = "tpe"
    startup_trials: int = Field(
        10, ge=1, le=1_000_000, description="tpe: so many trials are spread over the space before it learns"
    )
    repeats: bool = Field(False, description="train a configuration again, from another seed, once all were tried")


def _named(value: Any) -> Any:
    """A name alone stands for a section of that name."""
    return {"name": value} if isinstance(value, str) else value


class NoPruner(Section):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"

    @model_validator(mode="before")
    @classmethod
    def _as_stored_before(cls, value: Any) -> Any:
        # Until there were several pruners, `none` was stored with the grace epochs of the other.
        return {k: v for k, v in value.items() if k != "grace_epochs"} if isinstance(value, Mapping) else value


class Pruning(Section):
    """What all pruners have in common."""

    audit_share: float = Field(0.1, ge=0, le=1, description="share of condemned trials that run on all the same")


class Plateau(Pruning):
    """The rules of `sweeps.pruning`."""

    name: Literal["plateau"] = "plateau"
    grace_epochs: int | None = Field(
        None, ge=1, le=1_000_000, description="no trial is pruned before; default: a twelfth, at least 2"
    )


class _Interval(Pruning):
    n_warmup_steps: int = Field(0, ge=0, le=1_000_000, description="no trial is pruned before this epoch")
    interval_steps: int = Field(1, ge=1, le=1_000_000, description="epochs between two checks")


class _AmongComplete(_Interval):
    n_startup_trials: int = Field(5, ge=0, le=1_000_000, description="no trial is pruned before so many are complete")
    n_min_trials: int = Field(1, ge=1, le=1_000_000, description="nor at an epoch that fewer of them have reached")


class Median(_AmongComplete):
    """`optuna.pruners.MedianPruner`."""

    name: Literal["median"] = "median"


class Percentile(_AmongComplete):
    """`optuna.pruners.PercentilePruner`."""

    name: Literal["percentile"] = "percentile"
    percentile: float = Field(ge=0, le=100, description="a trial must be among so many percent, the best")


def _epochs_or_auto(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000):
        return value
    raise ValueError(f"{_shown(value)}: write a number of epochs from 1, or auto; 1000000 at most")


EpochsOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_epochs_or_auto)]


class SuccessiveHalving(Pruning):
    """`optuna.pruners.SuccessiveHalvingPruner`: asynchronous, which is ASHA."""

    name: Literal["successive_halving"] = "successive_halving"
    min_resource: EpochsOrAuto = Field("auto", description="epoch of the first rung; from 1")
    reduction_factor: int = Field(
        4, ge=2, le=1_000_000, description="one in so many passes a rung, and each rung is so many times as late"
    )
    min_early_stopping_rate: int = Field(0, ge=0, le=100, description="rungs left out at the beginning")
    bootstrap_count: int = Field(
        0, ge=0, le=1_000_000, description="so many trials end at each rung before one may pass"
    )

    @model_validator(mode="after")
    def _no_guess_for_bootstrap(self) -> SuccessiveHalving:
        if self.bootstrap_count and self.min_resource == "auto":
            raise ValueError("bootstrap_count needs a number as min_resource; set it, or leave bootstrap_count at 0")
        return self


class Hyperband(Pruning):
    """`optuna.pruners.HyperbandPruner`."""

    name: Literal["hyperband"] = "hyperband"
    min_resource: int = Field(1, ge=1, le=1_000_000, description="epoch of the first rung in the most eager bracket")
    max_resource: EpochsOrAuto = Field("auto", description="epochs of a whole trial; from 1")
    reduction_factor: int = Field(
        3, ge=2, le=1_000_000, description="one in so many passes a rung, and each rung is so many times as late"
    )
    bootstrap_count: int = Field(
        0, ge=0, le=1_000_000, description="so many trials end at each rung before one may pass"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Hyperband:
        if self.max_resource == "auto":
            if self.bootstrap_count:
                raise ValueError(
                    "bootstrap_count needs a number as max_resource; set it, or leave bootstrap_count at 0"
                )
        elif self.max_resource < self.min_resource:
            raise ValueError(
                f"max_resource {self.max_resource} is below min_resource {self.min_resource}: there would be no "
                "bracket; raise it to the epochs of a trial"
            )
        return self


class Threshold(_Interval):
    """`optuna.pruners.ThresholdPruner`."""

    name: Literal["threshold"] = "threshold"
    lower: float | None = Field(None, description="a trial with a WER below is stopped (fraction)")
    upper: float | None = Field(None, description="a trial with a WER above is stopped (fraction)")

    @model_validator(mode="after")
    def _one_of_them(self) -> Threshold:
        if self.lower is None and self.upper is None:
            raise ValueError("name a threshold: upper: 0.95, say")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower {self.lower:g} is above upper {self.upper:g}; swap them")
        return self


class Patient(Pruning):
    """`optuna.pruners.PatientPruner`.

    It wraps no pruner with rungs: those would move to wherever patience happens to ask.
    """

    name: Literal["patient"] = "patient"
    patience: int = Field(ge=0, le=1_000_000, description="epochs that may be no better than those before")
    min_delta: float = Field(0.0, ge=0, description="WER (fraction) by which they must be worse")
    wrapped_pruner: Annotated[Median | Percentile | Threshold, Field(discriminator="name")] | None = Field(
        None, description="asked when patience is out; none: the trial is stopped"
    )

    @field_validator("wrapped_pruner", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return _named(value)

    @field_validator("wrapped_pruner")
    @classmethod
    def _one_share(cls, wrapped: Pruning | None) -> Pruning | None:
        if wrapped is not None and wrapped.audit_share != type(wrapped).model_fields["audit_share"].default:
            raise ValueError("audit_share belongs to the patient pruner itself; set it there")
        return wrapped


OptunaPruner: TypeAlias = Median | Percentile | SuccessiveHalving | Hyperband | Patient | Threshold
Pruner: TypeAlias = Plateau | NoPruner | OptunaPruner


class StopWhen(Section):
    """A sweep that has trials enough ends where the rest of its budget hardly improves its best WER."""

    chance_below: float = Field(0.05, gt=0, lt=1, description="it ends where the chance is below")
    improvement: float = Field(
        IMPROVEMENT, gt=0, lt=1, description="the chance of what: a WER lower by so much (fraction)"
    )


class Budget(Section):
    """How much a sweep may spend. Not part of its identity: raise it and run again."""

    trials: int = Field(20, ge=1, le=1_000_000, description="trials in all, named ones included")
    total_epochs: int | None = Field(None, ge=1, le=1_000_000_000, description="epochs over all trials")
    hours: float | None = Field(
        None, gt=0, le=1_000_000, description="hours of running, all runs of the sweep together"
    )
    device_hours: float | None = Field(
        None, gt=0, le=1_000_000, description="hours of training, those of all workers added up"
    )
    money: float | None = Field(None, gt=0, le=1e12, description="what the device hours may cost")
    price_per_device_hour: float | None = Field(None, gt=0, le=1e9, description="what one of them costs")
    currency: str | None = Field(None, min_length=1, max_length=16, description="a word behind sums of money")
    stop_when: StopWhen | None = Field(None, description="end the sweep where it hardly improves any more")

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.money is not None and self.price_per_device_hour is None:
            raise ValueError(f"money: {self.money:g} says nothing without a price; set price_per_device_hour")
        return self


class CorpusSpec(Section):
    """Either a corpus on disk (`path`) or one to generate (`generated`)."""

    path: Path | None = None
    annotations: Path | None = None
    vocabulary: Path | None = None
    filter: str | None = None
    modalities: dict[str, int] | None = None
    normalise: bool = True
    generated: GeneratedConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        if value == "generated":
            return {"generated": {}}
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSpec:
        if (self.path is None) == (self.generated is None):
            raise ValueError("name either a path, or `generated: {...}`, not both")
        # The loader's own rules, told now; pydantic adds its faults to ours.
        CorpusConfig(path=self.path or Path(), filter=self.filter, modalities=self.modalities)
        return self

    def config(self, generated: Path | None = None) -> CorpusConfig:
        """What the loader needs, with every path absolute; `generated` is where that corpus lies."""
        path = generated or self.path
        assert path is not None
        return CorpusConfig(
            path=path.expanduser().resolve(),
            annotations=self.annotations and self.annotations.expanduser().resolve(),
            vocabulary=self.vocabulary and self.vocabulary.expanduser().resolve(),
            filter=self.filter,
            modalities=self.modalities,
            normalise=self.normalise,
        )


NAME = re.compile(
    # Windows keeps these for devices, with any extension, and drops a dot at the end.
    r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9_-])?",
    re.ASCII | re.IGNORECASE,
)


OWN_TRIALS = ("range-test", "proposal")
"""Trials that a sweep adds: the rate that its range test suggests, the middle of what its alarm proposes."""

SEEDS = ("seed", "data_seed")
"""Fields that follow from the sweep's seed, unless a named trial sets them."""


MOST_WORKERS = 64


def _workers_or_auto(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_WORKERS):
        return value
    raise ValueError(f"{_shown(value)}: write a number of workers from 1 to {MOST_WORKERS}, or auto")


class SweepSpec(Section):
    """A sweep: corpus, trainer, space, first trials, sampler, pruner, budget, workers."""

    later = ("warm_start", "workers_per_device")

    name: str
    corpus: CorpusSpec
    trainer: TrainingConfig = TrainingConfig()
    space: SearchSpace = SearchSpace()
    first_trials: dict[str, dict[str, Any]] = Field(default_factory=dict, max_length=1_000)
    seed: int = Field(0, ge=0, lt=2**32)
    range_test: bool = Field(True, description="find the learning rates worth trying, before the first trial")
    sampler: Sampler = Sampler()
    pruner: Pruner = Field(Plateau(), discriminator="name")
    on_alarm: Literal["pause", "continue"] = Field("pause", description="what a sweep does where nothing takes off")
    budget: Budget = Budget()
    warm_start: tuple[str, ...] = Field(
        (), max_length=20, description="earlier sweeps whose trials the sampler is shown"
    )
    workers: int = Field(1, ge=1, le=MOST_WORKERS)
    workers_per_device: Annotated[int | Literal["auto"], BeforeValidator(_workers_or_auto)] = Field(
        1, description="instead of `workers`: how many share the device of a machine; from 1 to 64, or `auto`"
    )
    milestones: str = Field(
        milestones.written(milestones.DEFAULT),
        max_length=2_000,
        description="WERs hoped for, EPOCH:WER,...: `sweeps show` has what was met",
    )
    system_metrics: bool = Field(False, description="each epoch's load of CPU, memory and GPU, as `system/...` metrics")

    @field_validator("sampler", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return _named(value)

    @field_validator("pruner", mode="before")
    @classmethod
    def _plateau_unless_named(cls, value: Any) -> Any:
        value = _named(value)
        if not isinstance(value, Mapping):
            return value
        if value.get("name") == "wilcoxon":
            raise ValueError(
                "wilcoxon compares scores on the same folds or sentences; epochs of a curve are no such sample, and in "
                "a plateau all of them are ties; take median, or patient around it"
            )
        return {"name": "plateau", **value}

    @field_validator("warm_start", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("milestones")
    @classmethod
    def _readable(cls, text: str) -> str:
        return milestones.written(milestones.parse(text))

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{name!r}: use letters, digits, dot, dash and underscore, 64 at most, no dot at the end and no device "
                "of Windows: it names folders and tags"
            )
        return name

    @field_validator("first_trials")
    @classmethod
    def _plain_names(cls, trials: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in trials:
            if not NAME.fullmatch(name) or name.isdigit():
                raise ValueError(f"{name!r}: a trial's name is letters, digits, dots, dashes; not digits alone")
            if name in OWN_TRIALS:
                raise ValueError(f"{name!r}: a trial that the sweep adds itself has this name; take another")
        return trials

    @model_validator(mode="after")
    def _consistent(self) -> SweepSpec:
        for name in SEEDS:
            if getattr(self.trainer, name):
                raise ValueError(f"trainer.{name}: follows from the sweep's `seed`; set that instead")
        if self.space.patience is None:
            high = max(1, self.trainer.epochs // 2)
            patience = IntRange(low=min(5, high), high=high)
            object.__setattr__(self, "space", self.space.model_copy(update={"patience": patience}))
        object.__setattr__(self, "space", _checked_space(self.trainer, self.space))
        checked = {
            name: _check_values(self.trainer, values, f"first_trials.{name}")
            for name, values in self.first_trials.items()
        }
        object.__setattr__(self, "first_trials", checked)
        if self.workers != 1 and self.workers_per_device != 1:
            raise ValueError(
                f"workers_per_device: {self.workers_per_device}: says how many workers a machine gets, and so does "
                f"workers: {self.workers}; leave one of them out"
            )
        if len(set(self.warm_start)) < len(self.warm_start) or self.name in self.warm_start:
            raise ValueError(f"warm_start: {', '.join(self.warm_start)}: name other sweeps, each once")
        if len(self.first_trials) > self.budget.trials:
            raise ValueError(
                f"budget.trials: {self.budget.trials} is less than the {len(self.first_trials)} first_trials; raise it"
            )
        return self

    def planned(self) -> Iterator[PlannedValues]:
        """The named first trials: what the sampler would know them by, and what they override beyond that."""
        for name, values in self.first_trials.items():
            base = self.trainer.model_dump()
            sampled = self.in_the_space(values)
            overrides = {k: v for k, v in values.items() if k not in sampled and (v != base[k] or k in SEEDS)}
            yield PlannedValues(name, sampled, overrides, not overrides and self.space.contains(sampled))

    def in_the_space(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A value for each parameter of the space that such a trial has. What `values` does not name is the trainer's,
        moved into the space: so the sampler can learn from it.
        """
        base = self.trainer.model_dump()
        parameters = self.space.parameters().items()
        return self.space.only_active({name: values.get(name, p.nearest(base[name])) for name, p in parameters})

    def most_configurations(self) -> int | None:
        """How many different trials the space has, where they can be counted and none is to be repeated."""
        found = None if self.sampler.repeats else self.space.configurations()
        return None if found is None else len(found)

    def training(self, number: int, hyperparameters: Hyperparameters, overrides: Hyperparameters) -> TrainingConfig:
        """The full config of one trial. All trials see the same batches; each has its own initialisation."""
        seeds = {"seed": mixed_seed(self.seed, "trial", number), "data_seed": self.seed}
        return self.trainer.with_values({**seeds, **hyperparameters, **overrides})

    def warnings(self) -> list[str]:
        """What is allowed but will probably disappoint."""
        said = []
        epochs, patience = self.trainer.epochs, self.space.parameters()["patience"]
        longest = max(patience.choices) if isinstance(patience, Choices) else patience.high
        if longest >= epochs - 1:  # type: ignore[operator]
            said.append(
                f"space.patience: {longest} cannot act within {epochs} epochs; lower it or raise trainer.epochs"
            )
        for plan in self.planned():
            waits = plan.hyperparameters.get("patience")
            if waits is not None and waits >= plan.overrides.get("epochs", epochs) - 1:
                said.append(
                    f"first_trials.{plan.name}.patience: {waits} cannot act within "
                    f"{plan.overrides.get('epochs', epochs)} epochs"
                )
        count = self.most_configurations()
        if count is not None and count < self.budget.trials:
            said.append(
                f"space: has {counted(count, 'configuration')}, and budget.trials is {self.budget.trials}: the sweep "
                "ends when all were tried; sampler.repeats: true trains them again, from other seeds"
            )
        return said

    def identity(self) -> dict[str, Any]:
        """What makes this sweep this sweep, as plain JSON: all but how long and how it is run, hopes, and the corpus'
        place.
        """
        content = self.model_dump(
            mode="json",
            exclude={"budget", "workers", "workers_per_device", "on_alarm", "milestones", "system_metrics"},
        )
        for place in ("path", "annotations", "vocabulary"):
            del content["corpus"][place]
        for name in LATER_TRAINER:
            if content["trainer"][name] == TrainingConfig.model_fields[name].default:
                del content["trainer"][name]
        content["corpus"]["filter"] = self.corpus.filter or "none"
        return content


class PlannedValues(typing.NamedTuple):
    name: str
    hyperparameters: dict[str, Any]
    overrides: dict[str, Any]
    in_space: bool


def _check_values(trainer: TrainingConfig, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` as the trainer's config understands them (1e-4 read as text becomes a number)."""
    try:
        checked = trainer.with_values(values)
    except ValidationError as error:
        raise ValueError("\n".join(explained(error, TrainingConfig, where))) from None
    return {key: getattr(checked, key) for key in values}


def _checked_space(trainer: TrainingConfig, space: SearchSpace) -> SearchSpace:
    """The space with its choices as the trainer's config understands them.

    Raises:
        ValueError: with a line for each value that the config refuses, and each condition that cannot be.
    """
    faults = []

    def each(check: Callable[[str, Parameter], Parameter]) -> None:
        nonlocal space
        for name, parameter in space.parameters().items():
            try:
                space = space.model_copy(update={name: check(name, parameter)})
            except ValueError as error:
                faults.append(str(error))

    each(partial(_checked_values, trainer))
    each(lambda name, parameter: _checked_condition(space, name, parameter))
    if faults:
        raise ValueError("\n".join(faults))
    return space


def _checked_values(trainer: TrainingConfig, name: str, parameter: Parameter) -> Parameter:
    where = f"space.{name}"
    if not isinstance(parameter, Choices):
        for edge in (parameter.low, parameter.high):
            _check_values(trainer, {name: edge}, "space")
        return parameter
    if any(isinstance(value, bool) for value in parameter.choices):
        raise ValueError(f"{where}.choices: true and false are no values of {name}; in YAML, on and yes mean true")
    choices = tuple(_check_values(trainer, {name: value}, "space")[name] for value in parameter.choices)
    twice = next((value for value in choices if choices.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{where}.choices: {_shown(twice)}: stands there twice; leave one out")
    return parameter.model_copy(update={"choices": choices})


def _checked_condition(space: SearchSpace, name: str, parameter: Parameter) -> Parameter:
    parameters = space.parameters()
    for other, allowed in (parameter.when or {}).items():
        where, known = f"space.{name}.when.{other}", parameters.get(other)
        if name == "learning_rate":
            raise ValueError(f"{where}: every trial has a learning rate; leave the condition out")
        if not isinstance(known, Choices):
            rule = "is no parameter of the space" if known is None else "is a range, and a condition needs values"
            raise ValueError(f"{where}: {rule}; write space.{other}: {{choices: [..., ...]}}")
        there = _cut(", ".join(map(str, known.choices)))
        if not allowed:
            raise ValueError(f"{where}: names no value; name some of {there}")
        for value in allowed:
            if value not in known.choices or isinstance(value, bool):
                raise ValueError(f"{where}: {_shown(value)}: is none of its choices; there are {there}")
        if _depends(parameters, other, name, ()):
            raise ValueError(f"{where}: {other} itself depends on {name}; leave one of the conditions out")
    return parameter


def _depends(parameters: Mapping[str, Parameter], name: str, on: str, behind: tuple[str, ...]) -> bool:
    """Whether a parameter's conditions lead to that other one, or are it."""
    if name == on or name in behind or name not in parameters:
        return name == on
    return any(_depends(parameters, other, on, (*behind, name)) for other in parameters[name].when or {})


def digest(content: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def differing_paths(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two plain JSON values differ, as dotted paths with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            line for k in keys for line in differing_paths(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))
        ]
    return [] if old == new else [f"{path} ({json.dumps(old)} -> {json.dumps(new)})"]


def load_spec(path: Path, **changes: Any) -> SweepSpec:
    """Read a spec; `changes` (budget trials, workers) come from the command line.

    Raises:
        SpecError: with a line for each fault.
    """
    return read_spec(text_of(path), str(path), **changes)


def text_of(path: Path) -> str:
    """
    Raises:
        SpecError: there is no such file, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file; examples/ holds specs to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error})") from None


def read_spec(
    given: Mapping[str, Any] | str, where: str = "spec", *, trusted: bool = True, **changes: Any
) -> SweepSpec:
    """A spec from its content, or its text in YAML.

    Args:
        where: what the messages call it.
        trusted: False refuses what only somebody hostile would write: a text of a kilobyte can stand for gigabytes.

    Raises:
        SpecError: with a line for each fault.
    """
    try:
        content = _loaded(given, trusted) if isinstance(given, str) else dict(given)
    # ValueError: a date without such a day; the others: `!!bool maybe`, `!!int ""`, a number too large for a float.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise SpecError(f"{where}: not valid YAML: {_cut(' '.join(str(error).split()))}") from None
    except RecursionError:
        raise SpecError(f"{where}: nested too deeply; a spec has three levels") from None
    if not isinstance(content, dict):
        raise SpecError(f"{where}: a spec is a mapping that begins with `name:` and `corpus:`")
    if "trials" in changes:
        budget = content.get("budget") or {}
        content["budget"] = {**budget, "trials": changes.pop("trials")} if isinstance(budget, dict) else budget
    content.update(changes)
    try:
        for path, text in _texts(content):
            if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in text):
                raise SpecError(f"{where}: {path}: {_cut(repr(text))}: has control characters; take them out")
        return SweepSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError("\n".join(f"{where}: {line}" for line in explained(error, SweepSpec))) from None
    except RecursionError:
        raise SpecError(f"{where}: nested too deeply; a spec has three levels") from None


MOST_NODES = 5_000
DEEPEST = 20
LONGEST_NUMBER = 2_000
"""Of a text from elsewhere. A spec has some hundred values, and a bare word of a megabyte may be a number of which
reading it takes minutes."""


def _loaded(text: str, trusted: bool) -> Any:
    if not trusted:
        _check_harmless(text)
    return yaml.safe_load(text)


def _check_harmless(text: str) -> None:
    """
    Raises:
        ValueError: only somebody hostile writes this.
    """
    depth = 0
    # One by one: what follows the first that is refused is not read.
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"an alias (*{_cut(str(event.anchor))}); write the value out")
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent) and event.tag is not None:
            raise ValueError(f"a tag ({_cut(event.tag)}); leave it out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError("nested too deeply; a spec has three levels")
        if isinstance(event, yaml.ScalarEvent) and event.style is None and len(event.value) > LONGEST_NUMBER:
            raise ValueError(f"more than {LONGEST_NUMBER} characters without quotes: {_cut(event.value)}")
        if count > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} values; a spec has some hundred")


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in plain values, keys included, with its path."""
    match value:
        case str():
            yield path, value
        case dict():
            for key, inner in value.items():
                below = f"{path}.{_cut(str(key))}" if path else _cut(str(key))
                yield from _texts(key, repr(below) if not below.isprintable() else below)
                yield from _texts(inner, below)
        case list():
            for i, inner in enumerate(value):
                yield from _texts(inner, f"{path}[{i}]")


MOST_FAULTS = 20


def _cut(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def _shown(value: Any) -> str:
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # a number of more digits than Python writes out; what contains itself
        return f"a {type(value).__name__} too large to show"


def explained(error: ValidationError, model: type[BaseModel], where: str = "") -> list[str]:
    """A line for each fault: its path, its value, the rule, and the nearest known key for an unknown one."""
    lines = []
    faults = error.errors(include_url=False)
    for fault in faults[:MOST_FAULTS]:
        loc = [str(part) for part in fault["loc"] if part != "[key]"]
        loc = [part if part.isprintable() else repr(part) for part in loc]  # a key may hold a line break
        loc, known = _placed(model, loc)
        path = ".".join([where, *loc] if where else loc)
        if fault["type"] == "extra_forbidden" and loc[:-1] == ["space"] and loc[-1] in NOT_SEARCHED:
            lines.append(f"{path}: cannot be searched: {NOT_SEARCHED[loc[-1]]}")
        elif fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"{path}: unknown key; {hint}")
        elif fault["type"] == "union_tag_invalid":  # a section that is one of several, told apart by their names
            name, choices = fault["ctx"]["tag"], fault["ctx"]["expected_tags"].replace("'", "")
            near = difflib.get_close_matches(name, choices.split(", "), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {choices}"
            lines.append(f"{path}.name: {name!r}: unknown; {hint}")
        elif fault["type"] == "union_tag_not_found":
            lines.append(f"{path}.name: is missing")
        elif fault["type"] == "missing":
            lines.append(f"{path}: is missing")
        elif fault["type"] == "invalid_key" or "[key]" in fault["loc"]:
            lines.append(f"{path}: a key must be text; write it in quotes")
        elif fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
            lines.append(f"{path}: {_shown(fault['input'])}: must be a mapping, `key: value`")
        elif fault["type"] == "value_error":
            text = str(fault["ctx"]["error"])
            # A rule over several fields names its own path.
            lines += [f"{path}: {line}" if path else line for line in text.splitlines()]
        else:
            rule = fault["msg"][0].lower() + fault["msg"][1:]
            lines.append(f"{path}: {_shown(fault['input'])}: {rule}")
    if len(faults) > MOST_FAULTS:
        lines.append(f"and {len(faults) - MOST_FAULTS} more faults")
    return lines


def _placed(model: type[BaseModel], loc: Sequence[str]) -> tuple[list[str], list[str]]:
    """The path of a fault as the user wrote it, and the known keys of the section that its last key stands in.

    Inside a section that is one of several, pydantic puts the name of that one into the path.
    """
    path: list[str] = []
    holders, sections = [model], [model]
    for part in loc:
        named = [s for s in sections if _tag(s) == part] if len(sections) > 1 else []
        if named:
            sections = named
            continue
        path.append(part)
        holders = sections
        fields = [s.model_fields[part] for s in sections if part in s.model_fields]
        sections = [section for field in fields for section in _sections(field.annotation)]
    return path, [key for section in holders for key in section.model_fields]


def _tag(section: type[BaseModel]) -> str:
    """What pydantic calls it among several."""
    if "name" in section.model_fields:
        return str(section.model_fields["name"].default)
    return "Choices" if section is Choices else "range"


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for kind in typing.get_args(annotation) for section in _sections(kind)]


def spec_of(sweep: SweepRow) -> SweepSpec:
    """The spec a sweep was made from, with its budget of today."""
    content = {k: v for k, v in sweep.spec.items() if k != "found"}
    return SweepSpec.model_validate({**content, "budget": sweep.budget})


def corpus_of(sweep: SweepRow) -> CorpusConfig:
    """Where a sweep's corpus was when the sweep was made."""
    return CorpusConfig.model_validate(sweep.spec["found"])
