"""Which fields of the trainer a space may have, with what, and when."""

from __future__ import annotations

from typing import Any, Literal, get_origin

import pytest

from model.types import TrainingConfig
from sweeps.spec import JOINING, NOT_SEARCHED, Choices, FloatRange, IntRange, SpecError, SweepSpec, digest, read_spec

SCHEDULES = {"choices": ["plateau", "cosine_restarts"]}
RESTARTS = {"low": 5, "high": 20, "when": {"schedule": "cosine_restarts"}}
FIXED = {"learning_rate": 1e-3, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 9}
FOUR = ("learning_rate", "warmup_start_factor", "dropout", "patience")


def spec(space: dict[str, Any], **sections: Any) -> SweepSpec:
    return read_spec({"name": "s", "corpus": "x", "space": space, **sections})


def test_the_four_keep_the_digest_that_sweeps_of_before_were_stored_with() -> None:
    """Written down with the release that had no other parameters, no repeats and no warm start."""
    assert digest(spec({}).identity()) == "27bc6ddd8f4d91eb631473ab4145dc02d90326e6e0500ddb55da9d247952566e"
    narrow = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": 0.25,
              "patience": {"low": 3, "high": 6}}  # fmt: skip
    assert digest(spec(narrow).identity()) == "f1c37b6c76903a5d7490b8ce0c7d2a2596d654d6d68db3d72a523d3a91870f8d"


def test_every_field_of_the_trainer_joins_or_has_a_reason_not_to() -> None:
    assert {*JOINING, *NOT_SEARCHED, *FOUR} == TrainingConfig.model_fields.keys()
    assert len(JOINING) + len(NOT_SEARCHED) + len(FOUR) == len(TrainingConfig.model_fields)


@pytest.mark.parametrize("name", JOINING)
def test_a_field_is_fixed_by_a_value_and_searched_in_its_own_type(name: str) -> None:
    field = TrainingConfig.model_fields[name]
    fixed = spec({name: field.default})
    assert name not in fixed.space.searched()
    assert fixed.in_the_space({})[name] == field.default
    kinds = {int: IntRange, float: FloatRange}
    assert type(fixed.space.parameters()[name]) is kinds.get(field.annotation, Choices)  # type: ignore[arg-type]
    if get_origin(field.annotation) is not Literal:
        chosen = spec({name: {"choices": [field.default]}})
        assert chosen.space.parameters()[name] == Choices(choices=(field.default,))


def test_choices_are_what_the_trainer_understands() -> None:
    space = spec({"hidden": {"choices": ["64", 128]}, "weight_decay": {"choices": ["1e-3", 0]}}).space
    assert [space.parameters()[name] for name in ("weight_decay", "hidden")] == [
        Choices(choices=(0.001, 0.0)),
        Choices(choices=(64, 128)),
    ]


def test_conditions_may_be_chained_and_name_several_values() -> None:
    space = spec(
        {
            **FIXED,
            "architecture": {"choices": ["student", "bilstm"]},
            "hidden": {"choices": [64, 128, 256], "when": {"architecture": "bilstm"}},
            "lstm_layers": {"low": 1, "high": 2, "when": {"hidden": [64, 128]}},
        }
    ).space
    all_of_them = {**FIXED, "architecture": "bilstm", "hidden": 64, "lstm_layers": 2}
    assert space.contains(all_of_them)
    assert space.only_active({**all_of_them, "architecture": "student"}) == {**FIXED, "architecture": "student"}
    assert space.only_active({**all_of_them, "hidden": 256}) == {**FIXED, "architecture": "bilstm", "hidden": 256}
    assert not space.contains({**all_of_them, "architecture": "student"})
    assert not space.contains({**FIXED, "architecture": "bilstm", "hidden": 64})
    assert len(space.configurations() or []) == 1 + 2 * 2 + 1


def test_a_named_trial_has_only_what_exists_in_it() -> None:
    made = spec(
        {"schedule": SCHEDULES, "restart_epochs": RESTARTS},
        first_trials={"restarts": {"schedule": "cosine_restarts", "restart_epochs": 7}, "odd": {"restart_epochs": 7},
                      "other": {"schedule": "step"}, "plain": {}},
    )  # fmt: skip
    planned = {plan.name: plan for plan in made.planned()}
    assert planned["restarts"].hyperparameters["restart_epochs"] == 7
    assert planned["restarts"].in_space
    assert "restart_epochs" not in planned["plain"].hyperparameters
    assert planned["plain"].in_space
    assert (planned["odd"].overrides, planned["odd"].in_space) == ({"restart_epochs": 7}, False)
    assert (planned["other"].hyperparameters["schedule"], planned["other"].in_space) == ("step", False)


CONDITION = "write space.{}: {{choices: [..., ...]}}"


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({"epochs": 9}, "space.epochs: cannot be searched: trials of different lengths do not compare; set "
                        "trainer.epochs"),
        *(({name: 1}, f"space.{name}: cannot be searched: {why}") for name, why in NOT_SEARCHED.items()),
        ({"weight_dcay": 0.1}, "space.weight_dcay: unknown key; did you mean weight_decay?"),
        ({"hidden": {"lw": 8, "high": 9}}, "space.hidden.lw: unknown key; did you mean low?"),
        ({"schedule": "platau"},
         "space.schedule: 'platau': input should be 'cosine_restarts', 'plateau', 'step' or 'constant'"),
        ({"schedule": {"low": 1, "high": 2}}, "space.schedule.choices: is missing"),
        ({"schedule": True}, "space.schedule: True: write one value, or {choices: [..., ...]}"),
        ({"hidden": {"choices": []}},
         "space.hidden.choices: []: tuple should have at least 1 item after validation, not 0"),
        ({"hidden": {"choices": [3, 64]}}, "space.hidden: 3: input should be greater than or equal to 8"),
        ({"hidden": {"choices": [64, "64"]}}, "space.hidden.choices: 64: stands there twice; leave one out"),
        ({"hidden": {"low": 4, "high": 64}}, "space.hidden: 4: input should be greater than or equal to 8"),
        ({"batch_size": 4.5},
         "space.batch_size.low: 4.5: input should be a valid integer, got a number with a fractional part"),
        ({"output_stride": {"choices": [3]}}, "space.output_stride: 3: input should be 1, 2, 4, 8 or 16"),
        ({"output_stride": {"choices": [2, True]}},
         "space.output_stride.choices: true and false are no values of output_stride; in YAML, on and yes mean true"),
        ({"restart_epochs": RESTARTS},
         "space.restart_epochs.when.schedule: is no parameter of the space; " + CONDITION.format("schedule")),
        ({"restart_epochs": {**RESTARTS, "when": {"dropout": 0.1}}},
         "space.restart_epochs.when.dropout: is a range, and a condition needs values; " + CONDITION.format("dropout")),
        ({"schedule": {"choices": ["plateau", "step"]}, "restart_epochs": RESTARTS},
         "space.restart_epochs.when.schedule: 'cosine_restarts': is none of its choices; there are plateau, step"),
        ({"schedule": SCHEDULES, "restart_epochs": {**RESTARTS, "when": {"schedule": []}}},
         "space.restart_epochs.when.schedule: names no value; name some of plateau, cosine_restarts"),
        ({"schedule": {**SCHEDULES, "when": {"schedule": "plateau"}}},
         "space.schedule.when.schedule: schedule itself depends on schedule; leave one of the conditions out"),
        ({"schedule": {**SCHEDULES, "when": {"hidden": 64}},
          "hidden": {"choices": [64], "when": {"schedule": "plateau"}}},
         "space.schedule.when.hidden: hidden itself depends on schedule; leave one of the conditions out"),
        ({"schedule": SCHEDULES, "learning_rate": {"low": 1e-4, "high": 1e-3, "when": {"schedule": "plateau"}}},
         "space.learning_rate.when.schedule: every trial has a learning rate; leave the condition out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_path_value_rule_and_way_out(space: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError) as refused:
        spec(space)
    assert f"spec: {line}" in str(refused.value).splitlines()


def test_a_space_that_is_smaller_than_the_budget_says_so() -> None:
    few = {**FIXED, "schedule": SCHEDULES}
    assert any("has 2 configurations, and budget.trials is 20" in line for line in spec(few).warnings())
    assert not any("configurations" in line for line in spec(few, budget={"trials": 2}).warnings())
    assert not any("configurations" in line for line in spec(few, sampler={"repeats": True}).warnings())


def test_a_space_that_cannot_be_counted_is_not() -> None:
    assert spec({}).space.configurations() is None
    assert spec({**FIXED, "hidden": {"low": 8, "high": 60_000}}).space.configurations() is None
    both = {"hidden": {"low": 8, "high": 500}, "channels": {"low": 8, "high": 500}}
    assert spec({**FIXED, **both}).space.configurations() is None
