"""What holds of a spec whatever it says."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from model.types import TrainingConfig
from sweeps import preparing, service
from sweeps.spec import SpecError, SweepSpec, differing_paths, digest, load_spec
from tests.rows import sweep_row

NAMES = st.from_regex(r"\A[a-z][a-z0-9._-]{0,20}[a-z0-9]\Z").filter(
    lambda name: name[:3] not in ("con", "prn", "aux", "nul", "com", "lpt")
)


@st.composite
def ranges(draw: st.DrawFn, low: float, high: float) -> Any:
    """A range within these bounds, or a number."""
    first, second = draw(st.floats(low, high)), draw(st.floats(low, high))
    if draw(st.booleans()):
        return first
    return {
        "low": min(first, second),
        "high": max(first, second),
        "log": draw(st.booleans()) and min(first, second) > 0,
    }


TRIAL = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-9, 10),
        "patience": st.integers(1, 50),
        "schedule": st.sampled_from(["constant", "plateau"]),
        "epochs": st.integers(1, 100),
        "weight_decay": st.floats(0, 1),
    },
)
PRUNERS = st.sampled_from(["plateau", "none", "median", "hyperband"]) | st.sampled_from(
    [
        {"grace_epochs": 3},
        {"name": "plateau", "audit_share": 0.5},
        {"name": "median", "n_startup_trials": 2, "interval_steps": 3},
        {"name": "percentile", "percentile": 12.5},
        {"name": "successive_halving", "min_resource": 2, "bootstrap_count": 3},
        {"name": "successive_halving", "reduction_factor": 2, "audit_share": 0.0},
        {"name": "hyperband", "max_resource": 40},
        {"name": "threshold", "upper": 0.9},
        {"name": "patient", "patience": 2},
        {"name": "patient", "patience": 2, "wrapped_pruner": {"name": "percentile", "percentile": 80}},
    ]
)
SPECS = st.fixed_dictionaries(
    {"name": NAMES, "corpus": st.sampled_from(["generated", "some/path"])},
    optional={
        "trainer": st.fixed_dictionaries(
            {},
            optional={"epochs": st.integers(1, 200), "warmup_epochs": st.integers(0, 9), "dropout": st.floats(0, 0.9)},
        ),
        "space": st.fixed_dictionaries(
            {}, optional={"learning_rate": ranges(1e-9, 1), "dropout": ranges(0, 0.9), "patience": st.integers(1, 99)}
        ),
        "first_trials": st.dictionaries(NAMES, TRIAL, max_size=3),
        "seed": st.integers(0, 2**32 - 1),
        "pruner": PRUNERS,
        "budget": st.fixed_dictionaries({"trials": st.integers(3, 99)}, optional={"hours": st.floats(0.01, 1e6)}),
        "workers": st.integers(1, 64),
    },
)  # fmt: skip


@given(SPECS)
def test_a_spec_comes_back_from_the_database_the_same(content: dict[str, Any]) -> None:
    spec = SweepSpec.model_validate(content)
    corpus = spec.corpus.config(Path("generated") if spec.corpus.generated else None)
    row = sweep_row(spec=preparing.stored(spec, corpus), budget=spec.budget.model_dump())
    assert yaml.safe_load(yaml.safe_dump(row.spec)) == row.spec
    back = service.spec_of(row).model_copy(update={"budget": spec.budget})
    assert back == spec
    assert digest(back.identity()) == digest(spec.identity())
    assert list(back.planned()) == list(spec.planned())


@given(SPECS, SPECS)
def test_two_specs_differ_somewhere_or_have_one_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    old, new = (SweepSpec.model_validate(content).identity() for content in (one, other))
    assert bool(differing_paths(old, new)) == (digest(old) != digest(new))


@given(SPECS, st.integers(0, 10_000))
def test_a_named_trial_trains_what_it_says(content: dict[str, Any], number: int) -> None:
    spec = SweepSpec.model_validate(content)
    for plan in spec.planned():
        config = spec.training(number, plan.hyperparameters, plan.overrides)
        trainer = spec.trainer.model_dump()
        inside = {name: min(max(trainer[name], b.low), b.high) for name, b in spec.space.parameters().items()}
        base = trainer | inside | spec.first_trials[plan.name]
        seeds = {"seed": config.seed, "data_seed": spec.seed}
        assert config == TrainingConfig.model_validate(base | seeds)
        assert plan.hyperparameters.keys() == spec.space.parameters().keys()
        assert not plan.in_space or (spec.space.contains(plan.hyperparameters) and not plan.overrides)


PRUNER_NAMES = st.sampled_from(["plateau", "none", "median", "percentile", "hyperband", "patient", "threshold"])
PLAIN = PRUNER_NAMES | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
KEYS = st.sampled_from(
    [*SweepSpec.model_fields, "low", "high", "log", "choices", "when", "path", "generated", "trials", "train",
     "dropout", "patience", "schedule", "hidden", "restart_epochs", "epochs", "wrapped_pruner", "upper"]
)  # fmt: skip
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | PLAIN, inner, max_size=5), max_leaves=20
)


@given(
    ANYTHING
    | st.fixed_dictionaries(
        {"name": st.just("s"), "corpus": ANYTHING},
        optional=dict.fromkeys(("space", "trainer", "first_trials", "budget", "pruner"), ANYTHING),
    )
)
def test_whatever_stands_in_the_file_it_is_a_spec_or_a_clear_error(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.yaml"
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        assert all(line.startswith(f"{file}: ") for line in faults(file))


def faults(file: Path) -> list[str]:
    """The lines of the error that loading the file ends in; none if it is a spec."""
    try:
        load_spec(file)
    except SpecError as error:
        return str(error).split("\n")
    return []


@given(st.text())
def test_whatever_text_is_in_it(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SpecError):
            load_spec(file)
