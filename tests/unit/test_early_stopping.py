from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from model.early_stopping import out_of_patience, why_ended
from model.types import EpochReport, TrainingConfig

NAN = math.nan
CONFIG = TrainingConfig(epochs=100, patience=3)


def curve(wers: Sequence[float], skipped: int = 0) -> list[EpochReport]:
    """A run of these dev WERs, 200 batches an epoch, `skipped` of them not finite in the last one."""
    reports = [EpochReport(i, 200 * i, {"dev/wer": wer}, steps_in_epoch=200) for i, wer in enumerate(wers, start=1)]
    last = reports.pop()
    return [*reports, EpochReport(last.epoch, last.step, last.metrics, 200, skipped)]


def ended_after(wers: Sequence[float], config: TrainingConfig, constant_wer: float = 0.93) -> tuple[int, str] | None:
    """Epoch at which a run with this curve ends, and why."""
    for epoch in range(1, len(wers) + 1):
        if reason := why_ended(curve(wers[:epoch]), config, constant_wer):
            return epoch, reason
    return None


@pytest.mark.parametrize(
    ("wers", "takeoff", "starts", "out"),
    [
        ([], None, "epoch1", False),
        ([1.0, 1.0, 1.0], None, "epoch1", False),
        ([1.0, 1.0, 1.0, 1.0], None, "epoch1", True),
        ([1.0] * 50, None, "takeoff", False),  # the plateau costs no patience
        ([1.0] * 9 + [0.8, 0.8, 0.8], 10, "takeoff", False),
        ([1.0] * 9 + [0.8, 0.8, 0.8, 0.8], 10, "takeoff", True),  # an equal WER is not a better one
        ([1.0] * 9 + [0.8, 0.9, 0.79, 0.9, 0.9], 10, "takeoff", False),
        ([1.0] * 9 + [0.8, NAN, NAN, NAN], 10, "takeoff", True),  # NaN is never better
        ([NAN, NAN, NAN, 0.9], None, "epoch1", False),
        ([0.9, NAN, NAN, NAN], None, "epoch1", True),
    ],
)
def test_patience(wers: list[float], takeoff: int | None, starts: str, out: bool) -> None:
    assert out_of_patience(wers, takeoff, 3, starts) is out  # type: ignore[arg-type]


def test_from_epoch_1_a_slow_starter_dies_on_the_plateau_and_from_takeoff_it_lives() -> None:
    wers = [1.0] * 12 + [0.8, 0.6, 0.5, 0.45, 0.45, 0.46, 0.47]
    assert ended_after(wers, CONFIG.with_values({"patience_starts": "epoch1"})) == (4, "patience")
    assert ended_after(wers, CONFIG) == (19, "patience")
    assert ended_after(wers[:-1], CONFIG) is None


def test_the_users_original_patience() -> None:
    config = TrainingConfig(epochs=500, patience=15, patience_starts="epoch1")
    assert ended_after([1.0] * 40, config) == (16, "patience")


def test_takeoff_is_judged_by_the_corpus_floor() -> None:
    wers = [0.9] * 10
    assert ended_after(wers, CONFIG, constant_wer=0.93) is None  # 0.9 is a constant sentence's work
    assert ended_after(wers, CONFIG, constant_wer=0.99) == (4, "patience")


def test_the_epochs_asked_for_are_the_end() -> None:
    config = TrainingConfig(epochs=5)
    assert ended_after([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], config) == (5, "epochs")
    assert why_ended(curve([1.0] * 7), config, 0.93) == "epochs"  # fewer were asked for when it went on
    assert why_ended([], config, 0.93) is None


def test_more_than_one_percent_of_skipped_steps_ends_a_run() -> None:
    assert why_ended(curve([0.8, 0.7], skipped=2), CONFIG, 0.93) is None
    assert why_ended(curve([0.8, 0.7], skipped=3), CONFIG, 0.93) == "diverged"
    assert why_ended(curve([0.8] * 100, skipped=3), CONFIG, 0.93) == "diverged"  # it says more than "epochs"
