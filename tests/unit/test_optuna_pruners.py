"""What Optuna's pruners say of our trials, and our rules in a study of one's own."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from model.floors import Floors
from model.types import EpochReport, TrainingConfig
from sweeps.optuna_pruners import CTCPruner, decide_by
from sweeps.pruning import History, decide
from sweeps.spec import (
    Hyperband,
    Median,
    OptunaPruner,
    Patient,
    Percentile,
    SuccessiveHalving,
    Threshold,
)
from tests.curves import CONSTANT_WER, STEPS

optuna.logging.set_verbosity(optuna.logging.ERROR)

EPOCHS = 12


def trial(number: int, wers: Sequence[float], *, ended: bool = False, epochs: int | None = None) -> History:
    """A trial with these WERs; one that ended did so by itself, unless it has more `epochs` than WERs."""
    reports = [EpochReport(epoch, epoch * STEPS, {"dev/wer": wer}) for epoch, wer in enumerate(wers, start=1)]
    planned = epochs or (len(wers) if ended else EPOCHS)
    return History(number, reports, TrainingConfig(epochs=planned, patience=99), CONSTANT_WER, ended=ended)


COMPLETE = [
    trial(1, [1.0, 1.0, 0.8, 0.5], ended=True),
    trial(2, [1.0, 1.0, 0.9, 0.7], ended=True),
    trial(3, [1.0, 1.0, 1.0, 0.6], ended=True),
]

# Optuna's pruners: what they say


@pytest.mark.parametrize(
    ("pruner", "wers", "said", "kept_by", "numbers", "thresholds", "siblings"),
    [
        (
            Median(n_startup_trials=3),
            [1.0, 1.0, 1.0],
            "Best WER 100.00% by epoch 3, where the median of 3 complete trials is 90.00%; ",
            "A best WER of 90.00% by then would have kept it.",
            {"best_wer": 1.0},
            {"wer_needed": 0.9, "percentile": 50.0},
            (1, 2, 3),
        ),
        (
            Percentile(percentile=25.0, n_startup_trials=1),
            [1.0, 1.0, 0.9, 0.8],
            "Best WER 80.00% by epoch 4, where percentile 25 of 3 complete trials is 55.00%; ",
            "A best WER of 55.00% by then would have kept it.",
            {"best_wer": 0.8},
            {"wer_needed": 0.55, "percentile": 25.0},
            (1, 2, 3),
        ),
        (
            SuccessiveHalving(min_resource=4, reduction_factor=2),
            [1.0, 1.0, 0.9, 0.62],
            "WER 62.00% at epoch 4, a rung that 3 other trials had reached; 2 of 4 may go on, which took 60.00%; ",
            "A WER of 60.00% at this epoch would have kept it.",
            {"wer": 0.62},
            {"wer_needed": 0.6, "passing": 2},
            (1, 2, 3),
        ),
        (
            SuccessiveHalving(min_resource=4, reduction_factor=2, bootstrap_count=9),
            [1.0, 1.0, 0.9, 0.1],
            "WER 10.00% at epoch 4, a rung that 3 other trials had reached; with fewer than 9 every trial is stopped ",
            "9 other trials at this rung might have kept it.",
            {"wer": 0.1, "rivals": 3},
            {"bootstrap_count": 9},
            (1, 2, 3),
        ),
        (
            Threshold(upper=0.95, n_warmup_steps=3),
            [1.0, 1.0, 1.0],
            "WER 100.00% at epoch 3 is above 95.00%; ",
            "A WER of 95.00% would have kept it.",
            {"wer": 1.0},
            {"upper": 0.95},
            (),
        ),
        (
            Threshold(lower=0.2),
            [0.1],
            "WER 10.00% at epoch 1 is below 20.00%; ",
            "A WER of 20.00% would have kept it.",
            {"wer": 0.1},
            {"lower": 0.2},
            (),
        ),
        (
            Patient(patience=1, min_delta=0.1),
            [0.5, 0.4, 0.9, 0.8],
            "The best WER of its last 2 epochs is 80.00%, after 40.00% before them; ",
            "A WER of 50.00% in these epochs would have kept it.",
            {"best_since": 0.8, "best_before": 0.4},
            {"wer_needed_since": 0.5},
            (),
        ),
        (
            Patient(patience=0, wrapped_pruner=Median(n_startup_trials=1)),
            [0.9, 0.9, 1.0],
            "The best WER of its last 1 epoch is 100.00%, after 90.00% before them; best WER 90.00% by epoch 3, where",
            "A WER of 90.00% in these epochs would have kept it. A best WER of",
            {"best_since": 1.0, "best_before": 0.9, "best_wer": 0.9},
            {"wer_needed_since": 0.9, "wer_needed": 0.8, "percentile": 50.0},
            (1,),
        ),
        (
            Median(n_startup_trials=1),
            [math.nan],
            "At epoch 1 its WER is not a number; ",
            "A number would have been compared.",
            {},
            {},
            (),
        ),
    ],
)  # fmt: skip
def test_a_stop_is_told_with_the_numbers_it_was_held_against(
    pruner: OptunaPruner,
    wers: list[float],
    said: str,
    kept_by: str,
    numbers: dict[str, float],
    thresholds: dict[str, float],
    siblings: tuple[int, ...],
) -> None:
    others = COMPLETE[: len(siblings) or 1]
    decision = decide_by(pruner, trial(0, wers), others)
    assert decision is not None
    assert (decision.rule, decision.verdict, decision.epoch) == (pruner.name, "too_slow", len(wers))
    assert decision.reason.startswith(said)
    assert decision.reason.endswith(f"Optuna's {pruner.name} compares WER alone, and does not tell a dead trial from a "
                                    "slow one.")  # fmt: skip
    assert decision.counterfactual.startswith(kept_by)
    assert decision.numbers == pytest.approx(numbers)
    assert decision.thresholds == pytest.approx(thresholds)
    assert decision.siblings == siblings


@pytest.mark.parametrize(
    ("pruner", "stopped", "kept"),
    [
        (Median(n_startup_trials=3), [1.0, 1.0, 0.91], [1.0, 1.0, 0.9]),
        (Percentile(percentile=25.0, n_startup_trials=3), [1.0, 1.0, 1.0, 0.56], [1.0, 1.0, 1.0, 0.55]),
        (SuccessiveHalving(min_resource=4, reduction_factor=2), [1.0, 1.0, 1.0, 0.61], [1.0, 1.0, 1.0, 0.6]),
        (Threshold(upper=0.95), [0.96], [0.95]),
        (Patient(patience=1, min_delta=0.1), [0.4, 0.9, 0.51], [0.4, 0.9, 0.5]),
    ],
)
def test_what_would_have_kept_a_trial_would_have(pruner: OptunaPruner, stopped: list[float], kept: list[float]) -> None:
    decision = decide_by(pruner, trial(0, stopped), COMPLETE)
    assert decision is not None
    assert f"{kept[-1]:.2%}" in decision.counterfactual
    assert decide_by(pruner, trial(0, kept), COMPLETE) is None


def test_a_trial_counts_as_complete_only_if_it_ended_by_itself() -> None:
    running, pruned = trial(1, [0.1]), trial(1, [0.1], ended=True, epochs=EPOCHS)
    assert decide_by(Median(n_startup_trials=1), trial(0, [1.0]), [running]) is None
    assert decide_by(Median(n_startup_trials=1), trial(0, [1.0]), [pruned]) is None
    assert decide_by(Median(n_startup_trials=1), trial(0, [1.0]), [trial(1, [0.1], ended=True)]) is not None


def test_the_brackets_of_hyperband_follow_from_the_name_of_the_sweep() -> None:
    pruner = Hyperband(min_resource=1, max_resource=9, reduction_factor=3)
    better = [trial(number, [0.1]) for number in range(90, 100)]
    stopped = {
        name: [n for n in range(20) if decide_by(pruner, trial(n, [1.0]), better, study_name=name)]
        for name in ("one", "another")
    }
    assert stopped["one"] != stopped["another"]
    assert all(0 < len(numbers) < 20 for numbers in stopped.values())


# our rules in a study of one's own

FLAT, LEARNS = [1.0] * EPOCHS, [1.0, 1.0, 0.6, 0.4, 0.3, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
LATE = [1.0, 1.0, 1.0, 0.7, 0.45, 0.3, 0.2, 0.15, 0.12, 0.1, 0.1, 0.1]
"""Takes off later, and ends best of all."""
LATE_LOSS = [5.0, 4.0, 2.6, 1.7, 1.3, 1.1, 1.0, 0.9, 0.8, 0.75, 0.7, 0.7]
"""Its loss falls while its WER shows nothing yet."""

Metrics = dict[str, float]


def losses(wers: Sequence[float], values: Sequence[float] | None = None) -> list[Metrics]:
    """Metrics of each epoch; a dev loss that falls with WER, unless it is given."""
    values = values or [5.0 * wer for wer in wers]
    return [{"dev/wer": wer, "dev/loss": loss} for wer, loss in zip(wers, values, strict=True)]


def made(**settings: Any) -> CTCPruner:
    given = {"floors": CONSTANT_WER, "epochs": EPOCHS, **settings}
    return CTCPruner(given.pop("floors"), **given)


def study_with(pruner: optuna.pruners.BasePruner, storage: Any = None, **settings: Any) -> optuna.Study:
    return optuna.create_study(study_name="mine", pruner=pruner, storage=storage, **settings)


def ask(study: optuna.Study, rate: float = 1e-3) -> optuna.Trial:
    return study.ask({"learning_rate": optuna.distributions.FloatDistribution(rate, rate)})


def run(
    study: optuna.Study, pruner: CTCPruner, epochs: Sequence[Metrics], rate: float = 1e-3, *, prune: bool = True
) -> optuna.Trial:
    """One trial, as an objective trains it."""
    return go_on(study, pruner, ask(study, rate), epochs, prune=prune)


def go_on(
    study: optuna.Study, pruner: CTCPruner, asked: optuna.Trial, epochs: Sequence[Metrics], *, prune: bool = True
) -> optuna.Trial:
    lr_time_an_epoch = STEPS * asked.params["learning_rate"]
    for epoch, metrics in enumerate(epochs, start=1):
        pruner.report(asked, metrics, epoch=epoch, step=epoch * STEPS, lr_time=epoch * lr_time_an_epoch)
        if prune and asked.should_prune():
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
            return asked
    study.tell(asked, min(metrics["dev/wer"] for metrics in epochs))
    return asked


def state(study: optuna.Study, asked: optuna.Trial) -> str:
    return study.trials[asked.number].state.name


def test_a_flat_trial_is_stopped_and_says_why_and_a_late_one_is_not() -> None:
    pruner = made()
    study = study_with(pruner)
    for factor in (1.0, 1.6, 0.8):
        run(study, pruner, losses([min(1.0, factor * wer) for wer in LEARNS]), prune=False)
    late = run(study, pruner, losses(LATE, LATE_LOSS))
    assert (state(study, late), pruner.why(late)) == ("COMPLETE", "")
    assert decide_by(Median(n_startup_trials=1), trial(0, LATE[:3]), [trial(1, LEARNS, ended=True)]) is not None

    flat = run(study, pruner, losses(FLAT))
    assert state(study, flat) == "PRUNED"
    frozen = study.trials[flat.number]
    assert frozen.last_step is not None
    assert frozen.last_step < EPOCHS / 2
    assert pruner.why(flat) == pruner.why(frozen) == frozen.user_attrs["why"]
    assert "would have kept it" in pruner.why(flat)
    assert frozen.user_attrs["verdict"] in ("never_learned", "too_slow")
    assert frozen.user_attrs["rule"]


def test_it_decides_as_the_rules_do() -> None:
    pruner = made(dev_sequences=120, grace_epochs=3)
    study = study_with(pruner)
    learning = run(study, pruner, losses(LEARNS))
    flat = run(study, pruner, losses(FLAT), rate=1e-7)

    def history(asked: optuna.Trial, epochs: Sequence[Metrics], rate: float, ended: bool) -> History:
        reports = [
            EpochReport(epoch, epoch * STEPS, metrics, lr_time=epoch * STEPS * rate)
            for epoch, metrics in enumerate(epochs, start=1)
        ]
        config = TrainingConfig(epochs=EPOCHS, learning_rate=asked.params["learning_rate"])
        return History(asked.number, reports, config, CONSTANT_WER, ended=ended)

    siblings = [history(learning, losses(LEARNS), 1e-3, ended=True)]
    floors = Floors(CONSTANT_WER, "", math.nan, math.nan, math.nan)
    for epoch in range(1, EPOCHS):
        asked = history(flat, losses(FLAT)[:epoch], 1e-7, ended=False)
        decision = decide(asked, siblings, floors, dev_sequences=120, grace_epochs=3)
        if decision:
            break
    assert decision is not None
    assert study.trials[flat.number].last_step == decision.epoch >= 3
    assert pruner.why(flat) == f"{decision.reason} {decision.counterfactual}"


def test_wer_alone_is_enough_to_compare_those_that_took_off() -> None:
    pruner = made()
    study = study_with(pruner)
    only_wer = [{"dev/wer": wer} for wer in LEARNS]
    for _ in range(4):
        run(study, pruner, only_wer)
    slow = [{"dev/wer": max(0.85 - 0.005 * epoch, 0.8)} for epoch in range(EPOCHS)]
    run(study, pruner, slow)
    assert study.trials[4].user_attrs["rule"] == "too_slow"
    flat = run(study, pruner, [{"dev/wer": 1.0}] * 3)
    assert state(study, flat) == "COMPLETE", "in the plateau WER is no evidence"


def test_an_epoch_report_is_taken_whole() -> None:
    pruner = made()
    study = study_with(pruner)
    asked = ask(study)
    pruner.report(asked, EpochReport(1, 60, {"dev/wer": 0.9, "dev/loss": math.nan}, 60, 1, 0.1, 2.0, "head, batch 3"))
    (kept,) = study.trials[0].system_attrs.values()
    assert kept == {
        "epoch": 1,
        "step": 60,
        "metrics": {"dev/wer": 0.9},  # JSON has no NaN
        "steps_in_epoch": 60,
        "skipped_steps": 1,
        "lr_time": 0.1,
        "seconds": 2.0,
        "not_finite": "head, batch 3",
    }
    assert study.trials[0].intermediate_values == {1: 0.9}


def test_an_epoch_that_is_reported_again_stays_as_it_was() -> None:
    pruner = made()
    study = study_with(pruner)
    asked = study.ask()
    for wer in (0.9, 0.1):
        pruner.report(asked, {"dev/wer": wer}, epoch=1)
    asked.report(0.8, 2)  # a value that somebody reported to Optuna alone
    pruner.report(asked, {"dev/wer": 0.7}, epoch=2)
    assert study.trials[0].intermediate_values == {1: 0.9, 2: 0.8}
    assert [each["metrics"]["dev/wer"] for each in study.trials[0].system_attrs.values()] == [0.9, 0.7]


def test_nan_is_a_wer() -> None:
    pruner = made()
    study = study_with(pruner)
    run(study, pruner, losses(LEARNS))
    asked = ask(study)
    for epoch in range(1, 4):
        pruner.report(asked, {"dev/wer": math.nan, "dev/loss": math.inf}, epoch=epoch)
        asked.should_prune()
    assert all(math.isnan(value) for value in study.trials[1].intermediate_values.values())


@pytest.mark.parametrize("where", ["memory", "database"])
def test_processes_share_a_study_through_its_storage(where: str, tmp_path: Path) -> None:
    """Each with a pruner and a study of its own; a killed trial is gone on with by another."""
    storage: Any = optuna.storages.InMemoryStorage()
    if where == "database":
        storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    first, second = made(), made()
    one = study_with(first, storage)
    two = optuna.load_study(study_name="mine", storage=storage, pruner=second)
    for study, pruner in ((one, first), (two, second), (one, first)):
        run(study, pruner, losses(LEARNS))
    begun = ask(one)
    first.report(begun, losses(FLAT)[0], epoch=1)

    taken_over = optuna.Trial(two, begun._trial_id)
    go_on(two, second, taken_over, losses(FLAT))
    assert state(one, begun) == "PRUNED"
    assert first.why(begun) == second.why(taken_over) != ""
    assert list(one.trials[3].intermediate_values) == list(range(1, (one.trials[3].last_step or 0) + 1))
    if where == "database":
        storage.remove_session()
        storage.engine.dispose()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda pruner: pickle.loads(pickle.dumps(pruner))])
def test_a_copy_decides_the_same(copied: Callable[[CTCPruner], CTCPruner]) -> None:
    stopped = []
    for pruner in (made(rename={"lr": "learning_rate"}), copied(made(rename={"lr": "learning_rate"}))):
        study = study_with(pruner)
        for epochs in (LEARNS, LEARNS, FLAT):
            asked = run(study, pruner, losses(epochs))
        stopped.append((study.trials[2].last_step, pruner.why(asked)))
    assert stopped[0] == stopped[1]
    assert stopped[0][1]


def test_an_objective_runs_without_a_study_too() -> None:
    """`objective(FixedTrial(...))` and `objective(study.best_trial)` are how one tries a trial again."""
    pruner = made()
    study = study_with(pruner)
    run(study, pruner, losses(LEARNS))
    for again in (optuna.trial.FixedTrial({"learning_rate": 1e-3}), study.best_trial):
        pruner.report(again, {"dev/wer": 1.0}, epoch=1)
        assert not again.should_prune()
    assert pruner.why(study.best_trial) == ""


# what is refused


def ask_with(study: optuna.Study, **params: Any) -> optuna.Trial:
    study.enqueue_trial(params)
    space = {name: optuna.distributions.CategoricalDistribution([value]) for name, value in params.items()}
    return study.ask(space)


@pytest.mark.parametrize(
    ("reported", "words"),
    [
        ({"epoch": 0}, "epoch 0: 0 are reported; report every epoch, 1 for the first"),
        ({"epoch": 3}, "epoch 3: 0 are reported; report every epoch, 1 for the first"),
        ({}, "metrics without an epoch: pass epoch=, 1 for the first"),
        ({"report": {"wer": 1.0}, "epoch": 1}, "no dev/wer among wer: report it every epoch"),
        ({"report": {}, "epoch": 1}, "no dev/wer among no metrics: report it every epoch"),
        ({"epoch": 1, "lr_time": 0.1}, "lr_time 0.1 without step: report the updates so far as well"),
        ({"epoch": 1, "lr_time": 0.1, "step": 9}, "lr_time, but no learning_rate among lr: pass rename="),
    ],
)
def test_a_report_that_cannot_be_used_is_refused(reported: dict[str, Any], words: str) -> None:
    pruner = made()
    study = study_with(pruner)
    given = {"report": {"dev/wer": 1.0}, **reported}
    with pytest.raises(ValueError, match=words):
        pruner.report(ask_with(study, lr=1e-3), given.pop("report"), **given)
    assert study.trials[0].intermediate_values == {}


@pytest.mark.parametrize("settings", [{"rename": {"lr": "learning_rate"}}, {"learning_rate": 1e-3}])
def test_the_learning_rate_may_have_another_name_or_be_fixed(settings: dict[str, Any]) -> None:
    pruner = made(**settings)
    pruner.report(ask_with(study_with(pruner), lr=1e-3), {"dev/wer": 1.0}, epoch=1, lr_time=0.1, step=9)


def test_a_parameter_that_means_something_else_is_told_and_can_be_left_out() -> None:
    pruner = made()
    with pytest.raises(ValueError, match=r"trial 0: schedule='cosine' is no schedule of TrainingConfig .*rename="):
        pruner.report(ask_with(study_with(pruner), schedule="cosine"), {"dev/wer": 1.0}, epoch=1)
    pruner = made(rename={"schedule": None})
    pruner.report(ask_with(study_with(pruner), schedule="cosine"), {"dev/wer": 1.0}, epoch=1)


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]])
def test_a_study_that_does_not_minimize_is_refused(directions: list[str]) -> None:
    pruner = made()
    study = optuna.create_study(pruner=pruner, directions=directions)
    with pytest.raises(ValueError, match="create it with direction='minimize'"):
        pruner.report(study.ask(), {"dev/wer": 1.0}, epoch=1)
    with pytest.raises(ValueError, match="create it with direction='minimize'"):
        pruner.prune(study, study.get_trials()[0])


def test_so_is_a_study_that_has_another_pruner() -> None:
    with pytest.raises(ValueError, match=r"the study's pruner is MedianPruner: .* with pruner=CTCPruner\(...\)"):
        made().report(optuna.create_study().ask(), {"dev/wer": 1.0}, epoch=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"floors": 92}, r"constant WER 92: a fraction above 0 and at most 1 is meant \(0.92, not 92\)"),
        ({"floors": math.nan}, "constant WER nan: a fraction"),
        ({"epochs": 0}, "epochs=0: input should be greater than or equal to 1"),
        ({"lr": 1e-3}, "'lr' is no field of TrainingConfig; these are: epochs, "),
        ({"rename": {"lr": "learning_rat"}}, "'learning_rat' is no field of TrainingConfig"),
    ],
)
def test_a_pruner_that_cannot_be_made_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(**settings)
