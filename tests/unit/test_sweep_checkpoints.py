"""A trial's checkpoint: what it brings back, and when it is left alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.types import EpochReport
from sweeps.checkpoints import checkpoint_path, resume, save
from tests.curves import run


class Counter:
    """A trainer whose whole state is a tensor and the epochs it has trained."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self.weights = torch.full((3,), float(epoch))

    @property
    def step(self) -> int:
        return 10 * self.epoch

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.weights = state["epoch"], state["weights"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return checkpoint_path(tmp_path / "checkpoints" / "s", 7)


def test_each_trial_has_two_files_that_sort_by_number(tmp_path: Path) -> None:
    assert checkpoint_path(tmp_path, 7) == tmp_path / "00007.pt"
    assert checkpoint_path(tmp_path, 7, best=True) == tmp_path / "00007.best.pt"


def test_trainer_and_epochs_come_back(file: Path) -> None:
    reports = run(3, 1e-3, takeoff=2)
    save(file, "me", Counter(3), reports)
    trainer = Counter()
    assert resume(file, "me", trainer) == reports
    assert (trainer.epoch, trainer.weights.tolist()) == (3, [3.0, 3.0, 3.0])


def test_metrics_that_are_not_finite_come_back_as_they_were(file: Path) -> None:
    (report,) = run(1, 1e-3)
    torn = replace(report, metrics={**report.metrics, "dev/wer": math.nan, "dev/loss": math.inf}, skipped_steps=4)
    save(file, "me", Counter(1), [torn])
    (back,) = resume(file, "me", Counter())
    assert math.isnan(back.wer)
    assert back.metrics["dev/loss"] == math.inf
    assert {**back.metrics, "dev/wer": 0.0} == {**torn.metrics, "dev/wer": 0.0}
    assert back.skipped_steps == 4


def test_a_newer_one_takes_its_place_and_leaves_nothing_behind(file: Path) -> None:
    for epochs in (1, 2):
        save(file, "me", Counter(epochs), run(epochs, 1e-3))
    assert len(resume(file, "me", Counter())) == 2
    assert [found.name for found in file.parent.iterdir()] == ["00007.pt"]


def test_without_one_the_trial_begins_at_epoch_1(file: Path) -> None:
    trainer = Counter()
    assert resume(file, "me", trainer) == []
    assert trainer.epoch == 0


def test_that_of_another_trial_is_not_taken(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(file, "another", Counter(3), run(3, 1e-3))
    trainer = Counter()
    with caplog.at_level(logging.WARNING):
        assert resume(file, "me", trainer) == []
    assert trainer.epoch == 0
    assert f"{file}: belongs to another trial; this one begins at epoch 1" in caplog.text


@pytest.mark.parametrize("content", [b"", b"torn", "half"])
def test_one_that_is_not_whole_is_not_taken(file: Path, content: bytes | str, caplog: pytest.LogCaptureFixture) -> None:
    save(file, "me", Counter(3), run(3, 1e-3))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    trainer = Counter()
    with caplog.at_level(logging.WARNING):
        assert resume(file, "me", trainer) == []
    assert trainer.epoch == 0
    assert "the trial begins at epoch 1" in caplog.text


def test_one_of_another_maker_is_not_taken(file: Path) -> None:
    file.parent.mkdir(parents=True)
    torch.save({"state": torch.zeros(2)}, file)
    assert resume(file, "me", Counter()) == []
    torch.save([1, 2], file)
    assert resume(file, "me", Counter()) == []
