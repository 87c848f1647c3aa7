"""What a sweep is asked to do: read from YAML, checked whole, frozen."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model import milestones
from model.corpus.data import CorpusConfig
from model.corpus.synthetic import GeneratedConfig
from model.types import Hyperparameters, TrainingConfig, mixed_seed
from sweeps.errors import SweepError


class SpecError(SweepError):
    """A spec that cannot be run; says where, what and how to mend it."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FloatRange(Section):
    """A number between `low` and `high`, drawn evenly, or evenly in its logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        _check_range(self.low, self.high, self.log)
        return self


class IntRange(Section):
    """A whole number between `low` and `high`, both included."""

    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        _check_range(self.low, self.high, self.log)
        return self


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; swap them")
    if log and low <= 0:
        raise ValueError(f"low {low:g} has no logarithm; set low above 0 or log: false")


Range = FloatRange | IntRange


class SearchSpace(Section):
    """What the sampler may choose. A plain number instead of a range fixes that parameter."""

    learning_rate: FloatRange = FloatRange(low=1e-5, high=2e-2, log=True)
    warmup_start_factor: FloatRange = FloatRange(low=0.05, high=1.0)
    dropout: FloatRange = FloatRange(low=0.0, high=0.5)
    patience: IntRange | None = Field(None, description="default: 5 to half the epochs")

    @field_validator("*", mode="before")
    @classmethod
    def _fixed(cls, value: Any) -> Any:
        if isinstance(value, str):  # YAML reads 1e-4, without a dot, as text
            with contextlib.suppress(ValueError):
                value = float(value)
        if value is None or isinstance(value, Mapping | Section):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r}: write one number, or {{low: ..., high: ...}}")
        return {"low": value, "high": value}

    def ranges(self) -> dict[str, Range]:
        """Name to range, in a fixed order; patience must have been filled in."""
        ranges = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in ranges.items() if value is not None}

    def contains(self, values: Hyperparameters) -> bool:
        """Whether these are values for all parameters, each within its range."""
        ranges = self.ranges()
        return values.keys() == ranges.keys() and all(r.low <= values[n] <= r.high for n, r in ranges.items())  # type: ignore[operator]


class Sampler(Section):
    name: Literal["tpe", "random"] = "tpe"
    startup_trials: int = Field(10, ge=1, description="tpe: so many trials are spread over the space before it learns")


class Pruner(Section):
    name: Literal["plateau", "none"] = "plateau"
    grace_epochs: int | None = Field(None, ge=1, description="no trial is pruned before; default: a fifth, at least 4")


class Budget(Section):
    """How much a sweep may spend. Not part of its identity: raise it and run again."""

    trials: int = Field(20, ge=1, description="trials in all, named ones included")
    total_epochs: int | None = Field(None, ge=1, description="epochs over all trials")
    hours: float | None = Field(None, gt=0, description="hours of running, all runs of the sweep together")


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


SEEDS = ("seed", "data_seed")
"""Fields that follow from the sweep's seed, unless a named trial sets them."""


class SweepSpec(Section):
    """A sweep: corpus, trainer, space, first trials, sampler, pruner, budget, workers."""

    name: str
    corpus: CorpusSpec
    trainer: TrainingConfig = TrainingConfig()
    space: SearchSpace = SearchSpace()
    first_trials: dict[str, dict[str, Any]] = Field(default_factory=dict)
    seed: int = Field(0, ge=0, lt=2**32)
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    budget: Budget = Budget()
    workers: int = Field(1, ge=1, le=64)
    milestones: str = Field(
        milestones.written(milestones.DEFAULT),
        description="WERs hoped for, EPOCH:WER,...: `sweeps show` has what was met",
    )

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

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
        for name, bounds in self.space.ranges().items():
            for edge in (bounds.low, bounds.high):
                _check_values(self.trainer, {name: edge}, "space")
        checked = {
            name: _check_values(self.trainer, values, f"first_trials.{name}")
            for name, values in self.first_trials.items()
        }
        object.__setattr__(self, "first_trials", checked)
        if len(self.first_trials) > self.budget.trials:
            raise ValueError(
                f"budget.trials: {self.budget.trials} is less than the {len(self.first_trials)} first_trials; raise it"
            )
        return self

    def planned(self) -> Iterator[PlannedValues]:
        """The named first trials: what the sampler would know them by, and what they override beyond that."""
        for name, values in self.first_trials.items():
            base = self.trainer.model_dump()
            # What a trial does not name is the trainer's value, moved into the space: so the sampler can learn from it.
            sampled = {
                key: values.get(key, min(max(base[key], bounds.low), bounds.high))
                for key, bounds in self.space.ranges().items()
            }
            overrides = {k: v for k, v in values.items() if k not in sampled and (v != base[k] or k in SEEDS)}
            yield PlannedValues(name, sampled, overrides, not overrides and self.space.contains(sampled))

    def training(self, number: int, hyperparameters: Hyperparameters, overrides: Hyperparameters) -> TrainingConfig:
        """The full config of one trial. All trials see the same batches; each has its own initialisation."""
        seeds = {"seed": mixed_seed(self.seed, "trial", number), "data_seed": self.seed}
        return self.trainer.with_values({**seeds, **hyperparameters, **overrides})

    def warnings(self) -> list[str]:
        """What is allowed but will probably disappoint."""
        said = []
        epochs, patience = self.trainer.epochs, self.space.ranges()["patience"]
        if patience.high >= epochs - 1:
            said.append(
                f"space.patience: {patience.high:g} cannot act within {epochs} epochs; lower it or raise trainer.epochs"
            )
        for plan in self.planned():
            if plan.hyperparameters["patience"] >= plan.overrides.get("epochs", epochs) - 1:
                said.append(
                    f"first_trials.{plan.name}.patience: {plan.hyperparameters['patience']} cannot act within "
                    f"{plan.overrides.get('epochs', epochs)} epochs"
                )
        return said

    def identity(self) -> dict[str, Any]:
        """What makes this sweep this sweep, as plain JSON: all but budget, workers, hopes, and the corpus' place."""
        content = self.model_dump(mode="json", exclude={"budget", "workers", "milestones"})
        for place in ("path", "annotations", "vocabulary"):
            del content["corpus"][place]
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
        raise ValueError("\n".join(_explain(error, TrainingConfig, where))) from None
    return {key: getattr(checked, key) for key in values}


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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file; examples/ holds specs to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date without such a day, a number without end
        raise SpecError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SpecError(f"{path}: a spec is a mapping that begins with `name:` and `corpus:`")
    if "trials" in changes:
        budget = content.get("budget") or {}
        content["budget"] = {**budget, "trials": changes.pop("trials")} if isinstance(budget, dict) else budget
    content.update(changes)
    try:
        return SweepSpec.model_validate(content)
    except ValidationError as error:
        raise SpecError("\n".join(f"{path}: {line}" for line in _explain(error, SweepSpec))) from None


def _explain(error: ValidationError, model: type[BaseModel], where: str = "") -> list[str]:
    """A line for each fault: its path, its value, the rule, and the nearest known key for an unknown one."""
    lines = []
    for fault in error.errors(include_url=False):
        loc = [str(part) for part in fault["loc"] if part != "[key]"]
        loc = [part if part.isprintable() else repr(part) for part in loc]  # a key may hold a line break
        path = ".".join([where, *loc] if where else loc)
        if fault["type"] == "extra_forbidden":
            known = _keys_at(model, loc[:-1])
            near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"{path}: unknown key; {hint}")
        elif fault["type"] == "missing":
            lines.append(f"{path}: is missing")
        elif fault["type"] == "invalid_key" or "[key]" in fault["loc"]:
            lines.append(f"{path}: a key must be text; write it in quotes")
        elif fault["type"] in ("model_type", "dict_type"):
            lines.append(f"{path}: {fault['input']!r}: must be a mapping, `key: value`")
        elif fault["type"] == "value_error":
            text = str(fault["ctx"]["error"])
            # A rule over several fields names its own path.
            lines += [f"{path}: {line}" if path else line for line in text.splitlines()]
        else:
            rule = fault["msg"][0].lower() + fault["msg"][1:]
            lines.append(f"{path}: {fault['input']!r}: {rule}")
    return lines


def _keys_at(model: type[BaseModel], loc: Sequence[str]) -> list[str]:
    """The known keys of the section at `loc`."""
    for part in loc:
        field = model.model_fields.get(part)
        kinds = typing.get_args(field.annotation) or (field.annotation,) if field else ()
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
