"""Every finding on a run: one that must have it, and a healthy or slow one that must not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from model.diagnosis import judge, run_findings
from model.findings import Finding
from model.floors import Floors
from model.symptoms import schedule_finding
from model.types import EpochReport, TrainingConfig

FLOORS = Floors(
    constant_wer=0.91,
    constant_sentence="A B",
    constant_loss=3.9,
    dev_constant_loss=3.9,
    uniform_loss=13.6,
)
"""Of the generated corpus at T/4."""
NAN = math.nan
DEV = 100
STEPS = 60
CONFIG = TrainingConfig(epochs=24, learning_rate=1e-3, schedule="constant")


def report(epoch: int, *, rate: float = 1e-3, steps: int = STEPS, skipped: int = 0, **metrics: float) -> EpochReport:
    """An epoch in an ordinary plateau; keywords such as `dev_wer` replace its metrics."""
    plateau = {
        "train/loss": 3.9,
        "train/wer": NAN,
        "train/infeasible": 0.0,
        "dev/loss": 3.9,
        "dev/wer": 1.0,
        "dev/sub": 0.0,
        "dev/del": 1.0,
        "dev/ins": 0.0,
        "optim/lr": rate,
        "optim/grad_norm": 2.0,
        "optim/clipped": 0.5,
        "optim/step_ratio": 0.25,
        "spread/range": 8.0,
        "decode/hypotheses": 1.0,
        "decode/length": 0.0,
        "decode/top_gloss": 0.0,
        "probe/sequences": float(DEV),
        "probe/swap_gap": 0.01,
        "probe/swap_t": 0.5,
        "probe/permuted_gap": 0.01,
        "probe/permuted_t": 0.5,
    }
    given = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    assert given.keys() <= plateau.keys(), given.keys() - plateau.keys()
    wer = given.get("dev/wer", 1.0)
    if "dev/wer" in given and not {"dev/sub", "dev/del", "dev/ins"} & given.keys():
        given |= {"dev/sub": wer / 2, "dev/del": wer / 2, "dev/ins": 0.0}
        given.setdefault("decode/length", 1 - wer / 2)
    return EpochReport(epoch, epoch * steps, plateau | given, steps, skipped, epoch * steps * rate)


def learned(epochs: int = 12) -> list[EpochReport]:
    """A healthy run: the swap gap shows at epoch 2, WER falls from epoch 5."""
    run = []
    for epoch in range(1, epochs + 1):
        wer = max(0.25, 1.0 - 0.12 * max(0, epoch - 4))
        probes = {"probe_swap_t": 3.0 * epoch, "probe_swap_gap": 0.3 * epoch, "probe_permuted_gap": 0.2 * epoch}
        run.append(
            report(
                epoch,
                train_loss=3.9 / epoch,
                dev_loss=3.9 / epoch**0.5,
                dev_wer=wer,
                train_wer=wer - 0.1 if epoch > 4 else NAN,
                decode_hypotheses=90.0,
                decode_top_gloss=0.1,
                **probes,
            )
        )
    return run


def slow(epochs: int = 12) -> list[EpochReport]:
    """A slow starter at WER 1, with a loss that has only just come down and nothing to be seen of the swap gap."""
    return [
        report(e, rate=1e-4, train_loss=3.9 + 3 / e, dev_loss=4.0 + 9 / e, probe_swap_t=0.2 * e)
        for e in range(1, 1 + epochs)
    ]


def found(run: Sequence[EpochReport], config: TrainingConfig = CONFIG) -> dict[str, Finding]:
    return {finding.code: finding for finding in run_findings(run, config, FLOORS, dev_sequences=DEV)}


def with_last(run: Sequence[EpochReport], epochs: int = 1, **metrics: float) -> list[EpochReport]:
    """The run with metrics of its last epochs replaced."""
    given = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    changed = [
        EpochReport(r.epoch, r.step, {**r.metrics, **given}, r.steps_in_epoch, r.skipped_steps, r.lr_time)
        for r in run[-epochs:]
    ]
    return [*run[:-epochs], *changed]


# the runs that nothing may be said against


@pytest.mark.parametrize("epochs", range(1, 25))
def test_a_healthy_run_has_no_warning_at_any_epoch(epochs: int) -> None:
    assert [f for f in found(learned(epochs)).values() if f.severity != "info"] == []


@pytest.mark.parametrize("epochs", range(1, 41))
def test_a_slow_starter_is_never_called_dead(epochs: int) -> None:
    assert [f for f in found(slow(epochs)).values() if f.severity == "fatal"] == []


def test_no_finding_from_what_was_not_measured() -> None:
    run = [EpochReport(e, e * STEPS, {"dev/wer": 1.0}, STEPS) for e in range(1, 60)]
    assert found(run) == {}
    assert found([EpochReport(e, e * STEPS, {}.fromkeys(report(1).metrics, NAN), STEPS) for e in range(1, 60)]) == {}


def test_no_epochs_no_findings() -> None:
    assert run_findings([], CONFIG, FLOORS) == []


def test_every_finding_says_what_to_do_and_what_would_change_it() -> None:
    runs = [slow(), learned(), with_last(learned(), dev_loss=-1.0), [report(1, skipped=2, optim_clipped=1.0)]]
    for finding in (f for run in runs for f in found(run).values()):
        assert finding.evidence.endswith("."), finding
        assert finding.advice.endswith("."), finding
        assert finding.would_change.endswith("."), finding


# diverged


def test_diverged() -> None:
    finding = found([report(1), report(2, skipped=1, steps=60)])["diverged"]
    assert (finding.severity, finding.number, finding.threshold) == ("fatal", 1 / 60, 0.01)


def test_one_bad_step_in_a_hundred_is_no_divergence() -> None:
    run = found([report(1, skipped=1, steps=100), report(2, steps=100)])
    assert "diverged" not in run
    assert run["skipped_steps"].severity == "info"


def test_large_gradients_at_the_start_are_no_divergence() -> None:
    assert "diverged" not in found([report(1, optim_grad_norm=350.0)])


# losses that cannot be


@pytest.mark.parametrize("key", ["train_loss", "dev_loss"])
def test_a_negative_loss_is_a_missing_log_softmax(key: str) -> None:
    assert found([report(1, **{key: -0.5})])["missing_log_softmax"].severity == "fatal"


def test_a_loss_of_zero_is_none() -> None:
    assert "missing_log_softmax" not in found([*learned(), report(13, train_loss=0.0, dev_loss=-1e-9, dev_wer=0.2)])


def test_flat_outputs_beside_a_trained_loss_are_a_contradiction() -> None:
    finding = found([report(1, train_loss=3.5, dev_loss=13.5, spread_range=0.005)])["wrong_weights"]
    assert finding.severity == "fatal"
    assert "13.50" in finding.evidence
    assert "3.50" in finding.evidence


def test_flat_outputs_are_none_in_the_first_steps() -> None:
    assert "wrong_weights" not in found([report(1, steps=50, train_loss=3.5, dev_loss=13.5, spread_range=0.005)])


def test_flat_outputs_are_none_where_the_loss_is_as_high() -> None:
    assert "wrong_weights" not in found([report(1, train_loss=12.4, dev_loss=13.6, spread_range=1.5)])


def test_the_lag_of_eval_mode_in_a_slow_run_is_none() -> None:
    """As in the old warm-up's epoch 4 and 5: train 9.0 and 5.0, dev 11.8 and 9.8, range 2.0 and 3.0."""
    assert "wrong_weights" not in found([report(4, train_loss=9.0, dev_loss=11.8, spread_range=2.0)])
    assert "wrong_weights" not in found([report(5, train_loss=5.0, dev_loss=9.8, spread_range=3.0)])


def test_eval_mode_that_lags_for_long_at_a_tiny_rate_is_none_either() -> None:
    """A run of the curve tables at 2.4e-5, epoch 22: train 4.25, dev 10.9, range 2.0. The weights are the same."""
    tiny = [replace(r, lr_time=0.022) for r in [report(22, train_loss=4.25, dev_loss=12.9, spread_range=2.0)]]
    assert "wrong_weights" not in found(tiny)
    assert "wrong_weights" in found([replace(r, lr_time=0.3) for r in tiny])


# infeasible targets


def test_more_than_one_percent_without_an_alignment() -> None:
    assert found([report(1, train_infeasible=3.0)])["infeasible_targets"].severity == "fatal"  # of 60 batches of 4
    assert found([report(1, train_infeasible=2.0)])["infeasible_targets"].severity == "info"
    assert "infeasible_targets" not in found([report(1)])


# the evaluator


@pytest.mark.parametrize(
    "metrics",
    [
        {"dev_wer": 1.0, "dev_sub": 0.0, "dev_del": 0.0, "dev_ins": 0.0},  # except: wer = 1.0
        {"dev_wer": 87.0, "dev_sub": 0.4, "dev_del": 0.4, "dev_ins": 0.07},  # a percentage
        {"dev_wer": 1.0, "dev_sub": 0.3, "dev_del": 0.7, "dev_ins": 0.0, "decode_length": 0.9},  # other hypotheses
    ],
)
def test_errors_that_do_not_add_up(metrics: dict[str, float]) -> None:
    assert found([report(1, **metrics)])["evaluator_failed"].severity == "fatal"


@pytest.mark.parametrize(
    "metrics",
    [
        {},  # honestly empty
        {
            "dev_wer": 1.0,
            "dev_sub": 0.2,
            "dev_del": 0.8,
            "dev_ins": 0.0,
            "decode_length": 0.2,
        },  # one wrong word for all
        {"dev_wer": 2.9, "dev_sub": 0.9, "dev_del": 0.0, "dev_ins": 2.0, "decode_length": 3.0},  # an untrained output
    ],
)
def test_errors_that_add_up(metrics: dict[str, float]) -> None:
    assert "evaluator_failed" not in found([report(1, **metrics)])


# is the input used?


def test_an_output_that_is_the_same_for_any_input() -> None:
    """All-zero features: known from the first epoch on."""
    run = [report(1, probe_swap_gap=0.0, probe_swap_t=0.0)]
    assert found(run)["input_not_used"].severity == "fatal"
    assert "plateau" not in found(run)


def test_its_flat_output_in_eval_mode_is_not_another_fault() -> None:
    run = [report(1, probe_swap_gap=0.0, probe_swap_t=0.0, dev_loss=13.9, train_loss=3.8, spread_range=1.5)]
    assert "wrong_weights" not in found(run)


def test_train_learned_by_heart_with_nothing_on_dev() -> None:
    """Shuffled labels: train loss falls far below the floor, the swap gap stays at nothing."""
    run = [report(e, train_loss=3.9 * 0.93 ** (e - 1), probe_swap_t=(-1) ** e * 1.5) for e in range(1, 9)]
    assert "by heart" in found(run)["input_not_used"].evidence
    assert "input_not_used" not in found(run[:5])


def test_the_input_is_used_where_the_swap_gap_shows_while_train_is_learned() -> None:
    run = [report(e, train_loss=3.9 * 0.93 ** (e - 1), probe_swap_t=2.6) for e in range(1, 20)]
    assert "input_not_used" not in found(run)
    assert found(run)["input_used"].severity == "info"


def test_nothing_after_ample_training() -> None:
    """Not normalised features and the like: the loss stays at the floor."""
    assert "after 1500 steps" in found([report(e) for e in range(1, 26)])["input_not_used"].evidence
    assert "input_not_used" not in found([report(e) for e in range(1, 25)])
    long = [report(e, steps=1094) for e in range(1, 11)]  # PHOENIX in batches of 4
    assert "input_not_used" in found(long)
    assert "input_not_used" not in found(long[:-1])


@pytest.mark.parametrize("change", [{"probe_swap_t": 2.1}, {"probe_swap_t": NAN}, {"dev_wer": 0.7}])
def test_ample_training_is_no_evidence_with(change: dict[str, float]) -> None:
    run = [report(e) for e in range(1, 30)]
    assert "input_not_used" not in found(with_last(run, 1 if "dev_wer" in change else len(run), **change))


def test_a_takeoff_by_guessing_how_long_sentences_are_uses_no_input() -> None:
    """ASL with its labels dealt anew: 76 % where the best constant sentence scores 82 %."""
    run = [report(e, dev_wer=FLOORS.constant_wer - 0.06) for e in range(1, 30)]
    assert "input_not_used" in found(run)


def test_ample_training_counts_the_learning_rate() -> None:
    assert "input_not_used" not in found([report(e, rate=1e-4) for e in range(1, 60)])  # 3,540 steps, LR-time 0.35
    assert "input_not_used" in found([report(e, rate=1e-4) for e in range(1, 200)])


def test_a_throttled_run_has_not_had_ample_training() -> None:
    run = [report(e, optim_step_ratio=0.02) for e in range(1, 60)]
    assert "input_not_used" not in found(run)
    assert "step_throttled" in found(run)


def test_an_input_that_is_hardly_used() -> None:
    """A BiLSTM saturated by pixels: t of 9, a gap of 0.15, and the loss stays at the floor."""
    run = [report(e, probe_swap_t=9.0, probe_swap_gap=0.15, train_loss=3.8, dev_loss=3.79) for e in range(1, 26)]
    assert found(run)["input_hardly_used"].severity == "warning"
    assert "input_used" not in found(run)
    assert "input_hardly_used" not in found(run[:-1])
    assert "input_hardly_used" not in found(with_last(run, train_loss=3.5, dev_loss=3.6))


def test_too_few_dev_sequences() -> None:
    run = [report(1, probe_swap_t=NAN, probe_permuted_t=NAN, probe_sequences=40.0)]
    assert found(run)["not_enough_evidence"].number == 40
    assert "not_enough_evidence" not in found([report(1)])
    assert "not_enough_evidence" not in found(with_last(learned(), probe_sequences=40.0))


def test_a_network_that_does_not_know_when() -> None:
    run = [
        report(e, probe_swap_t=8.0, probe_swap_gap=1.0, probe_permuted_gap=(0.05, 0.28, -0.2)[e % 3])
        for e in range(1, 5)
    ]
    assert found(run)["time_collapsed"].severity == "fatal"


@pytest.mark.parametrize(
    "probes",
    [
        {"swap_t": 8.0, "swap_gap": 1.0, "permuted_gap": 0.56},  # a live run's lowest share
        {"swap_t": 4.0, "swap_gap": 1.0, "permuted_gap": 0.05},  # not clear yet
        {"swap_t": 0.5, "swap_gap": 0.01, "permuted_gap": 0.0},  # the plateau
        {"swap_t": 6.5, "swap_gap": 0.03, "permuted_gap": 0.007},  # a live run of the curve tables at a rate of 4e-5
    ],
)
def test_a_network_of_which_that_is_not_known(probes: dict[str, float]) -> None:
    run = [report(e, **{f"probe_{key}": value for key, value in probes.items()}) for e in range(1, 9)]
    assert "time_collapsed" not in found(run)


def test_a_single_early_probe_does_not_tell_about_time() -> None:
    assert "time_collapsed" not in found([report(1, probe_swap_t=9.0, probe_swap_gap=1.0, probe_permuted_gap=0.0)])


def test_a_run_that_learns_may_need_no_order() -> None:
    """Signs that were recorded one by one: the share falls to 0.2 once they are learned."""
    assert "time_collapsed" not in found(with_last(learned(), 8, probe_permuted_gap=0.0))


# slow


def test_a_throttled_step() -> None:
    config = CONFIG.with_values({"adam_eps": 1e-3})
    run = [
        report(1, optim_step_ratio=0.3),
        *(report(e, optim_step_ratio=0.11, train_loss=9.0, dev_loss=9.0) for e in range(2, 8)),
    ]
    finding = found(run, config)["step_throttled"]
    assert (finding.severity, finding.number) == ("warning", 0.11)
    assert "0.001" in finding.evidence
    assert "learning_rate_too_low" not in found(run, config)  # not the rate, the step


def test_a_small_step_at_a_small_eps_is_of_small_gradients() -> None:
    advice = found([report(e, optim_step_ratio=0.06) for e in range(1, 8)])["step_throttled"].advice
    assert "adam_eps" not in advice
    assert "not normalised" in advice


def test_a_small_step_after_takeoff_is_no_throttle() -> None:
    """Once train is learned gradients vanish, and Adam's step with them."""
    assert "step_throttled" not in found(with_last(learned(20), 10, optim_step_ratio=0.04))


def test_nor_is_one_in_the_first_steps() -> None:
    assert "step_throttled" not in found([report(1, optim_step_ratio=0.05)])


def test_a_loss_that_comes_down_too_slowly() -> None:
    run = [report(e, rate=2e-4, train_loss=13.6 - e, dev_loss=13.6 - e) for e in range(1, 6)]
    assert found(run)["learning_rate_too_low"].severity == "warning"
    assert "learning_rate_too_low" not in found(run[:4])


def test_a_warm_up_that_takes_the_learning_rate_away() -> None:
    """The user's own: 1e-4 from a tenth of it over five epochs."""
    config = CONFIG.with_values({"learning_rate": 1e-4, "warmup_start_factor": 0.1, "warmup_epochs": 5})
    run = [report(e, rate=5.5e-5, train_loss=5.0, dev_loss=9.8) for e in range(1, 6)]
    finding = found(run, config)["learning_rate_too_low"]
    assert "warm-up of 5 epochs" in finding.evidence
    assert "Shorten the warm-up" in finding.advice


def test_a_warm_up_of_an_epoch_is_fine() -> None:
    config = CONFIG.with_values({"warmup_start_factor": 0.1, "warmup_epochs": 1})
    assert "learning_rate_too_low" not in found([report(e) for e in range(1, 9)], config)


def test_a_loss_that_has_risen_is_no_low_rate() -> None:
    run = [report(e) for e in range(1, 6)] + [report(6, train_loss=8.0, dev_loss=9.0)]
    assert "learning_rate_too_low" not in found(run)


def test_once_the_input_is_used_the_rate_will_do() -> None:
    run = [report(e, rate=5e-5, train_loss=8.0, dev_loss=8.0, probe_swap_t=3.0) for e in range(1, 9)]
    assert "learning_rate_too_low" not in found(run)


# the plateau


def test_the_ordinary_plateau_is_called_so() -> None:
    for run in ([report(1)], slow()[-3:], [report(3, train_loss=5.0, dev_loss=4.2)]):
        assert found(run)["plateau"].severity == "info"


def test_a_run_past_it_is_not() -> None:
    assert "plateau" not in found(learned())
    assert "plateau" not in found([report(2, train_loss=8.0, dev_loss=9.0)])
    assert "plateau" not in found([report(2, probe_swap_t=6.0)])


# collapses


def test_one_gloss_for_everything_after_takeoff() -> None:
    run = with_last(learned(), dev_wer=0.97, dev_sub=0.17, dev_del=0.8, decode_length=0.2, decode_hypotheses=2.0,
                    decode_top_gloss=0.9)  # fmt: skip
    assert found(run)["single_gloss_collapse"].number == 0.9


def test_one_gloss_for_everything_after_ten_epochs() -> None:
    haar = {"dev_sub": 0.2, "dev_del": 0.8, "decode_length": 0.2, "decode_hypotheses": 1.0, "decode_top_gloss": 1.0}
    assert "single_gloss_collapse" in found([report(e, **haar) for e in range(1, 11)])
    assert "single_gloss_collapse" not in found([report(e, **haar) for e in range(1, 10)])
    assert "single_gloss_collapse" not in found([report(e, **haar, probe_swap_t=4.0) for e in range(1, 30)])


@pytest.mark.parametrize(
    "output",
    [
        {"decode_hypotheses": 7.0, "decode_top_gloss": 0.9},
        {"decode_hypotheses": 3.0, "decode_top_gloss": 0.4},
        {"decode_hypotheses": 1.0, "decode_top_gloss": 0.0},  # all empty
    ],
)
def test_output_that_is_no_single_gloss(output: dict[str, float]) -> None:
    assert "single_gloss_collapse" not in found([report(e, **output) for e in range(1, 12)])


def test_ever_shorter_output_after_takeoff() -> None:
    run = with_last(learned(12), 5, dev_wer=0.85, dev_sub=0.1, dev_del=0.75, decode_length=0.25)
    assert found(run)["blank_collapse"].number == 0.25


def test_short_output_that_grows_is_a_beginning() -> None:
    run = learned(12)
    for back, length in zip(range(5, 0, -1), (0.2, 0.22, 0.25, 0.28, 0.3), strict=True):
        index = len(run) - back
        run[index : index + 1] = with_last([run[index]], dev_wer=0.85, dev_sub=0.1, dev_del=0.75, decode_length=length)
    assert "blank_collapse" not in found(run)


def test_empty_output_in_the_plateau_is_no_collapse() -> None:
    assert "blank_collapse" not in found([report(e) for e in range(1, 30)])


# overfitting


def overfitted(train_wer: float) -> list[EpochReport]:
    """The last eleven epochs of 24 without a better WER than 0.25."""
    return [*learned(12), *(report(e, dev_wer=0.5, train_wer=train_wer, decode_top_gloss=0.1) for e in range(13, 23))]


def test_overfitting() -> None:
    finding = found(overfitted(0.05))["overfitting"]
    assert (finding.severity, finding.number) == ("warning", pytest.approx(0.45))


def test_a_few_bad_epochs_are_none() -> None:
    assert "overfitting" not in found(overfitted(0.05)[:-2])


def test_train_that_is_no_better_is_none() -> None:
    assert "overfitting" not in found(overfitted(0.35))
    assert "overfitting" not in found(with_last(overfitted(NAN), 22, train_wer=NAN))


def test_a_rising_dev_loss_while_wer_falls_is_none() -> None:
    run = [report(e, dev_loss=2.0 + e, dev_wer=0.8 - 0.02 * e, train_wer=0.01) for e in range(1, 25)]
    assert "overfitting" not in found(run)


# the schedule


@pytest.mark.parametrize(
    ("settings", "acts"),
    [
        ({"schedule": "plateau", "epochs": 24, "plateau_patience": 10}, True),
        ({"schedule": "plateau", "epochs": 11, "plateau_patience": 10}, False),
        ({"schedule": "plateau", "epochs": 24, "learning_rate": 1e-6}, False),  # at its minimum from the beginning
        ({"schedule": "step", "epochs": 50, "step_epochs": 50}, False),
        ({"schedule": "step", "epochs": 51, "step_epochs": 50}, True),
        ({"schedule": "cosine_restarts", "epochs": 2, "restart_epochs": 10}, True),
        ({"schedule": "cosine_restarts", "epochs": 4, "warmup_epochs": 5, "warmup_start_factor": 0.1}, False),
        ({"schedule": "plateau", "epochs": 17, "warmup_epochs": 5, "warmup_start_factor": 0.1}, False),
        ({"schedule": "plateau", "epochs": 18, "warmup_epochs": 5, "warmup_start_factor": 0.1}, True),
        ({"schedule": "constant", "epochs": 3}, True),  # by choice
    ],
)
def test_a_dry_run_of_the_schedule(settings: dict[str, Any], acts: bool) -> None:
    assert (schedule_finding(TrainingConfig(**settings), STEPS) is None) is acts


def test_the_original_script_and_the_proposed_fix_act() -> None:
    original = {"schedule": "cosine_restarts", "restart_epochs": 10, "warmup_start_factor": 0.1, "epochs": 500}
    fixed = {"schedule": "plateau", "plateau_patience": 10, "epochs": 500}
    assert schedule_finding(TrainingConfig(**original), 1094) is None
    assert schedule_finding(TrainingConfig(**fixed), 1094) is None


# clipping


def test_clipping_as_a_rule_is_worth_a_word() -> None:
    assert found([report(1, optim_clipped=0.95)])["clipped"].severity == "info"
    assert "clipped" not in found([report(1, optim_clipped=0.85)])


# the judgement


def test_a_judgement_of_nothing() -> None:
    judgement = judge([], CONFIG, FLOORS)
    assert (judgement.phase, judgement.takeoff_epoch, judgement.verdict) == ("checking", None, None)
    assert judgement.sentence.startswith("No epoch has ended")


def test_a_run_that_goes_on_has_no_verdict() -> None:
    judgement = judge(learned(), CONFIG, FLOORS)
    assert (judgement.phase, judgement.takeoff_epoch, judgement.verdict) == ("learning", 6, None)
    assert judgement.sentence.startswith("Learning: took off at epoch 6, best dev WER 25.0% at epoch 11 of 12")


def test_one_that_is_over_has() -> None:
    assert judge(learned(), CONFIG, FLOORS, ended=True).verdict == "learned"
    assert judge(slow(), CONFIG, FLOORS, ended=True).verdict == "never_learned"
    assert judge([report(1, skipped=30)], CONFIG, FLOORS, ended=True).verdict == "diverged"
    lost = with_last(learned(), 3, dev_wer=1.0, dev_sub=0.5, dev_del=0.5, decode_length=0.5)
    judgement = judge(lost, CONFIG, FLOORS, ended=True)
    assert judgement.verdict == "collapsed"
    assert judgement.sentence.startswith("Learned and lost it again")


def test_what_is_fatal_is_said_first() -> None:
    judgement = judge([report(e) for e in range(1, 30)], CONFIG, FLOORS)
    assert judgement.findings[0].code == "input_not_used"
    assert judgement.sentence.startswith("Input not used, as of epoch 29. Swap gap")


def test_the_plateau_is_said_to_be_no_evidence() -> None:
    assert "WER is no evidence before takeoff" in judge(slow(4), CONFIG, FLOORS).sentence
    sentence = judge([report(1, probe_swap_t=3.0)], CONFIG, FLOORS).sentence
    assert "depends on the input (swap gap t = 3.0" in sentence


def test_a_run_that_ended_in_the_plateau_never_learned_and_may_not_have_had_its_chance() -> None:
    """The verdict and the sentence are of one mind."""
    judgement = judge(slow(2), CONFIG, FLOORS, ended=True)
    assert judgement.verdict == "never_learned"
    assert judgement.sentence.startswith("Never learned within its 2 epochs: best dev WER")
    assert "nothing shows that it could not have in more epochs (swap gap t = " in judgement.sentence
    used = judge([report(1, probe_swap_t=3.0)], CONFIG, FLOORS, ended=True).sentence
    assert used.startswith("Never learned within its 1 epoch: ")
    assert "; but its output depends on the input (swap gap t = 3.0" in used


def test_a_run_that_ended_dead_never_learned_and_why() -> None:
    sentence = judge([report(e) for e in range(1, 30)], CONFIG, FLOORS, ended=True).sentence
    assert sentence.startswith("Never learned within its 29 epochs: ")
    assert ". Swap gap" in sentence


@pytest.mark.parametrize("epochs", [slow(2), learned(), [report(e) for e in range(1, 30)]])
def test_what_speaks_against_the_corpus_stands_in_the_judgement(epochs: list[EpochReport]) -> None:
    zero = Finding("all_zero", "fatal", 1.0, 0.5, "All of train is zero.", "Extract it again.")
    judgement = judge(epochs, CONFIG, FLOORS, ended=True, known=[zero])
    assert judgement.findings[0] == zero
    assert "The check of its corpus found all_zero: All of train is zero." in judgement.sentence
    assert "nothing" not in judgement.sentence
