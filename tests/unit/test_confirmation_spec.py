"""Which configurations a confirmation trains, with which seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sweeps.confirmation_spec import confirmation_spec, differing
from sweeps.errors import SweepError, TrialNotFound
from sweeps.records import SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from tests.rows import VALUES, sweep_row, trial_row

SPEC = {
    "name": "parent",
    "corpus": {"generated": {}},
    "trainer": {"epochs": 10},
    "first_trials": {"original": {"learning_rate": 1e-4, "schedule": "cosine_restarts"}, "fixed": {}},
    "seed": 7,
    "budget": {"trials": 6, "hours": 3.0},
}


def parent(**fields: Any) -> SweepRow:
    spec = SweepSpec.model_validate(SPEC)
    content = {**spec.model_dump(mode="json"), "found": {"path": "/somewhere"}}
    return sweep_row(
        **{"name": "parent", "spec": content, "budget": SPEC["budget"], "state": SweepState.COMPLETE, **fields}
    )


def trial(number: int, wer: float | None, name: str | None = None, **fields: Any) -> TrialRow:
    values = {**VALUES, "learning_rate": 1e-3 * (number + 1)}
    given = {"best_wer": wer, "hyperparameters": values, "name": name, "epochs": 10, **fields}
    return trial_row(number, TrialState.COMPLETE, **given)


TRIALS = [
    trial(0, 0.95, "original", overrides={"schedule": "cosine_restarts", "seed": 3}),
    trial(1, 0.60, "fixed"),
    trial(2, 0.30),
    trial(3, 0.20),
    trial(4, 0.25),
    trial(5, 0.91),  # did not learn
]


def test_the_best_and_the_baseline_are_trained_with_each_seed() -> None:
    spec, about = confirmation_spec(parent(), TRIALS, "parent-confirm", top=2, seeds=3)
    assert [each["name"] for each in about["configurations"]] == ["original", "trial-3", "trial-4"]
    assert list(spec.first_trials)[:4] == ["original.seed-1", "trial-3.seed-1", "trial-4.seed-1", "original.seed-2"]
    assert spec.budget.model_dump(exclude_defaults=True) == {"trials": 9}  # neither its hours nor its other limits
    assert (spec.range_test, spec.pruner.name, spec.on_alarm) == (False, "none", "continue")
    config = spec.training(0, *plan_of(spec, "original.seed-1"))
    assert (config.schedule, config.learning_rate, config.epochs) == ("cosine_restarts", 1e-3, 20)


def plan_of(spec: SweepSpec, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return next((p.hyperparameters, p.overrides) for p in spec.planned() if p.name == name)


def test_a_seed_is_the_same_in_all_configurations_and_new() -> None:
    spec, _ = confirmation_spec(parent(), TRIALS, "parent-confirm", top=2, seeds=3)
    seeds: dict[str, set[tuple[int, int]]] = {}
    for number, (name, values) in enumerate(spec.first_trials.items()):
        config = spec.training(number, *plan_of(spec, name))
        assert (config.seed, config.data_seed) == (values["seed"], values["data_seed"])
        seeds.setdefault(name.partition(".")[2], set()).add((config.seed, config.data_seed))
    assert [len(pairs) for pairs in seeds.values()] == [1, 1, 1]
    used = {seed for pairs in seeds.values() for pair in pairs for seed in pair}
    assert len(used) == 6
    before = SweepSpec.model_validate(SPEC)
    chosen_with = {before.training(t.number, t.hyperparameters or {}, t.overrides).seed for t in TRIALS}
    assert not used & {*chosen_with, before.seed}


def test_another_confirmation_of_the_same_sweep_has_other_seeds() -> None:
    first, second = (confirmation_spec(parent(), TRIALS, name, top=1, seeds=1)[0] for name in ("one", "two"))
    assert first.first_trials["trial-3.seed-1"]["seed"] != second.first_trials["trial-3.seed-1"]["seed"]


def test_a_configuration_that_was_trained_twice_is_confirmed_once() -> None:
    twin = replace(TRIALS[3], id=900, number=6, best_wer=0.21, overrides={"seed": 5})
    _, about = confirmation_spec(parent(), [*TRIALS, twin], "c", top=3)
    assert [each["trial"] for each in about["configurations"]] == [0, 3, 4, 2]


def test_a_baseline_among_the_best_is_not_doubled() -> None:
    _, about = confirmation_spec(parent(), TRIALS, "c", top=3, against="4")
    assert [each["name"] for each in about["configurations"]] == ["trial-4", "trial-3", "trial-2"]
    assert about["against"] == "trial-4"


def test_without_original_the_first_named_trial_is_the_baseline() -> None:
    trials = [replace(t, name=None) if t.name == "original" else t for t in TRIALS]
    assert confirmation_spec(parent(), trials, "c", top=1)[1]["against"] == "fixed"
    nameless = [replace(t, name=None) for t in trials]
    with pytest.raises(SweepError, match="no named trial to hold the best ones against: give --against"):
        confirmation_spec(parent(), nameless, "c", top=1)


@pytest.mark.parametrize("state", [SweepState.RUNNING, SweepState.PAUSED, SweepState.PENDING, SweepState.STOPPING])
def test_a_sweep_that_is_not_over_is_not_confirmed(state: SweepState) -> None:
    with pytest.raises(SweepError, match=f"is {state}: its best trials are not known yet"):
        confirmation_spec(parent(state=state), TRIALS, "c")


def test_what_cannot_be_confirmed_says_why() -> None:
    with pytest.raises(TrialNotFound, match="did you mean 'original'"):
        confirmation_spec(parent(), TRIALS, "c", against="orginal")
    with pytest.raises(SweepError, match=r"--top 5: 4 configurations of sweep 'parent' learned.*give --top 4"):
        confirmation_spec(parent(), TRIALS, "c", top=5)
    with pytest.raises(SweepError, match=r"0 configurations of sweep 'parent' learned.*nothing to confirm"):
        confirmation_spec(parent(), [TRIALS[0], TRIALS[5]], "c", top=1)
    with pytest.raises(SweepError, match="is the best configuration itself"):
        confirmation_spec(parent(), TRIALS, "c", top=1, against="3")
    with pytest.raises(SweepError, match="was never begun"):
        confirmation_spec(parent(), [*TRIALS[1:], replace(TRIALS[0], hyperparameters=None)], "c", top=1)


def test_going_on_takes_the_same_options() -> None:
    _, about = confirmation_spec(parent(), TRIALS, "c", top=3, against="4")
    assert differing(about, {"top": None, "seeds": 5, "against": None, "epochs": None}) == []
    assert differing(about, {"against": "4"}) == differing(about, {"against": "trial-4"}) == []
    assert differing(about, {"top": 2, "against": "original"}) == ["--top 3, not 2", "--against trial-4, not original"]
