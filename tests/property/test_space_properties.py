"""What holds of every space: what is suggested in it can be trained, and has what its conditions say."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from model.types import TrainingConfig
from sweeps.records import TrialRow
from sweeps.spec import SweepSpec, digest
from sweeps.states import TrialState
from sweeps.study import suggest
from tests.curves import CONSTANT_WER
from tests.rows import trial_row

CHOICES: dict[str, list[Any]] = {
    "schedule": ["cosine_restarts", "plateau", "step", "constant"],
    "architecture": ["student", "bilstm"],
    "output_stride": [1, 2, 4, 8],
    "hidden": [64, 128, 256],
    "weight_decay": [0.0, 1e-3, 0.1],
    "dropout": [0.0, 0.25],
}
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-5, 1e-1),
    "batch_size": (1, 64),
    "restart_epochs": (1, 30),
    "plateau_factor": (0.1, 0.9),
    "lstm_layers": (1, 3),
    "clip_norm": (0.1, 5.0),
}
WHOLE = ("batch_size", "restart_epochs", "lstm_layers")


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    """A space with choices, ranges, and conditions on the choices before them."""
    space: dict[str, Any] = {}
    for name in draw(st.permutations([*CHOICES, *RANGES])):
        if not draw(st.booleans()):
            continue
        if name in CHOICES:
            some = draw(st.lists(st.sampled_from(CHOICES[name]), min_size=1, unique=True))
            space[name] = {"choices": some}
        else:
            low, high = RANGES[name]
            kind = st.integers(int(low), int(high)) if name in WHOLE else st.floats(low, high)
            edges = sorted([draw(kind), draw(kind)])
            space[name] = {"low": edges[0], "high": edges[1], "log": draw(st.booleans())}
        others = [other for other in space if other in CHOICES and other != name]
        if others and name != "learning_rate" and draw(st.booleans()):
            other = draw(st.sampled_from(others))
            allowed = draw(st.lists(st.sampled_from(space[other]["choices"]), min_size=1, unique=True))
            space[name]["when"] = {other: allowed[0] if len(allowed) == 1 else allowed}
    return space


def holds(space: dict[str, Any], name: str, values: dict[str, Any]) -> bool:
    """Whether a parameter has to be there, worked out from what the user wrote."""
    for other, allowed in space.get(name, {}).get("when", {}).items():
        if not holds(space, other, values) or values[other] not in (
            allowed if isinstance(allowed, list) else [allowed]
        ):
            return False
    return True


@settings(max_examples=40, deadline=None)
@given(spaces(), st.sampled_from(["tpe", "random"]), st.integers(0, 1000))
def test_every_suggestion_keeps_its_conditions_and_can_be_trained(
    space: dict[str, Any], sampler: str, seed: int
) -> None:
    content = {"name": "s", "corpus": "x", "space": space, "seed": seed}
    settings = {"name": sampler} | ({"startup_trials": 3} if sampler == "tpe" else {})
    spec = SweepSpec.model_validate({**content, "sampler": settings})
    rows: list[TrialRow] = []
    for number in range(7):
        values = suggest(spec, number, rows, {}, CONSTANT_WER)
        assert spec.space.contains(values)
        four = {"learning_rate", "warmup_start_factor", "dropout", "patience"}
        assert values.keys() == {name for name in {*four, *space} if holds(space, name, values)}
        for name, written in space.items():
            if name in values:
                inside = written.get("choices")
                assert values[name] in inside if inside else written["low"] <= values[name] <= written["high"]
        config = spec.training(number, values, {})
        assert isinstance(config, TrainingConfig)
        absent = space.keys() - values.keys()
        assert all(getattr(config, name) == getattr(spec.trainer, name) for name in absent)
        rows.append(trial_row(number, TrialState.COMPLETE, hyperparameters=values, best_wer=0.5, verdict="learned"))


@given(spaces())
def test_a_space_comes_back_from_the_database_the_same(space: dict[str, Any]) -> None:
    spec = SweepSpec.model_validate({"name": "s", "corpus": "x", "space": space})
    back = SweepSpec.model_validate({"name": "s", "corpus": "x", "space": spec.model_dump(mode="json")["space"]})
    assert back.space == spec.space
    assert digest(back.identity()) == digest(spec.identity())
    assert back.space.contains(back.in_the_space({}))


@given(spaces())
def test_configurations_are_all_different_and_all_in_the_space(space: dict[str, Any]) -> None:
    content = {**space, "learning_rate": 1e-3, "warmup_start_factor": 1.0, "patience": 5}
    spec = SweepSpec.model_validate({"name": "s", "corpus": "x", "space": content})
    found = spec.space.configurations()
    if found is None:
        return
    assert all(spec.space.contains(values) for values in found)
    assert len({tuple(sorted(values.items())) for values in found}) == len(found)
