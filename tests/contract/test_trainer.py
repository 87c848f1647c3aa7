"""The shipped trainers keep the contract of trainers, and the contract notices a trainer that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.corpus.data import Corpus
from model.ctc import CTCTrainer
from model.testing import MakeTrainer, TrainerContract
from model.types import EpochReport, Stopped, TrainingConfig
from sweeps.trainers import load_trainer

WindowTrainer: Any = load_trainer(f"{Path(__file__).parents[2] / 'examples' / 'own_trainer.py'}:WindowTrainer")


class TestCTCTrainer(TrainerContract):
    @pytest.fixture
    def make_trainer(self) -> MakeTrainer:
        return CTCTrainer


@pytest.mark.slow
class TestCTCTrainerOtherwiseConfigured(TrainerContract):
    @pytest.fixture
    def make_trainer(self) -> MakeTrainer:
        return CTCTrainer

    @pytest.fixture(
        params=[
            {"architecture": "bilstm", "output_stride": 8, "lstm_layers": 2, "schedule": "cosine_restarts"},
            {"output_stride": 1, "output_bias": "floor", "accumulate": 2, "precision": "bf16", "probe_interval": 1},
            # Takes off at once, and is probed on train as well from then on.
            {"learning_rate": 1e-2, "hidden": 64, "channels": 64, "batch_size": 2, "eval_batch_size": 2},
        ]
    )
    def config(self, request: pytest.FixtureRequest) -> TrainingConfig:
        small = {"epochs": 8, "batch_size": 4, "eval_batch_size": 4, "hidden": 8, "channels": 8, "device": "cpu"}
        return TrainingConfig.model_validate({**small, **request.param})


class ForgetsTheMoments(WindowTrainer):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.epoch, self.step, self.dev_losses = state["epoch"], state["step"], list(state["dev_losses"])


class SharesTheMoments(WindowTrainer):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


class KeepsItsPast(WindowTrainer):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        moments = deepcopy(self.optimizer.state_dict())
        super().load_state_dict(state)
        if moments["state"]:
            self.optimizer.load_state_dict(moments)


class DrawsFromTheGlobalState(WindowTrainer):
    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        super().__init__(config, corpus)
        self.model[0].weight.data *= float(np.random.rand())


class SavesObjects(WindowTrainer):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "config": self.config}


class OrdersByItsSeed(WindowTrainer):
    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        super().__init__(config.with_values({"data_seed": config.seed + 1}), corpus)


class SameOrderInEveryEpoch(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        epoch, self.epoch = self.epoch, 0
        super().train_epoch(should_stop)
        self.epoch = epoch + 1
        return EpochReport(self.epoch, self.step, {"dev/wer": 1.0})


class LooksOnceAnEpoch(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        report: EpochReport = super().train_epoch(lambda: False)
        if should_stop():
            raise Stopped
        return report


class NeverStops(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        report: EpochReport = super().train_epoch(lambda: should_stop() and False)
        return report


class CountsEpochsAsSteps(WindowTrainer):
    step = property(lambda self: self.epoch, lambda self, value: None)


class CountsFromZero(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        report = super().train_epoch(should_stop)
        return replace(report, epoch=report.epoch - 1)


class TellsNoWer(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        return replace(super().train_epoch(should_stop), metrics={"dev/loss": 1.0})


class TellsNumpyNumbers(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        return replace(super().train_epoch(should_stop), metrics={"dev/wer": np.float64(1.0)})


class NamesAMetricOddly(WindowTrainer):
    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        return replace(super().train_epoch(should_stop), metrics={"dev/wer": 1.0, "train/accuracy (%)": 1.0})


Check = Callable[[TrainerContract, Any, TrainingConfig, Corpus, Path], None]


def resume(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_resuming_equals_never_stopping(broken, config, corpus, folder, 1)


def take_over(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_a_state_is_taken_over_whole_and_not_shared(broken, config, corpus)


def batches(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_every_trial_sees_the_same_batches(broken, config, corpus)


def order(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_the_order_follows_the_data_seed_and_the_epoch(broken, config, corpus)


def looks(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_should_stop_is_read_before_each_batch_and_step_moves(broken, config, corpus)


def stop(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_a_stop_between_steps_is_honoured(broken, config, corpus, 0.5)


def report(contract: TrainerContract, broken: Any, config: TrainingConfig, corpus: Corpus, folder: Path) -> None:
    contract.test_epochs_count_from_one_and_are_told(broken, config, corpus)


class TestWindowTrainer(TrainerContract):
    @pytest.fixture
    def make_trainer(self) -> Any:
        return WindowTrainer

    @pytest.mark.parametrize(
        ("broken", "check", "words"),
        [
            (ForgetsTheMoments, resume, "not trained as without a stop: epoch 2 has dev/loss"),
            (SharesTheMoments, take_over, "load_state_dict must copy"),
            (KeepsItsPast, take_over, "something of its own past"),
            (DrawsFromTheGlobalState, resume, "not trained as without a stop: epoch 1 has dev/loss"),
            (SavesObjects, resume, "not a whole checkpoint"),
            (OrdersByItsSeed, batches, "must not depend on seed"),
            (OrdersByItsSeed, order, "must follow data_seed"),
            (SameOrderInEveryEpoch, order, "from epoch to epoch"),
            (LooksOnceAnEpoch, looks, "without a look at should_stop"),
            (LooksOnceAnEpoch, stop, "does not count"),
            (NeverStops, stop, "DID NOT RAISE"),
            (CountsEpochsAsSteps, looks, "must move with each batch"),
            (CountsFromZero, report, "that of epoch 1"),
            (TellsNoWer, report, "dev/wer"),
            (TellsNumpyNumbers, report, "plain numbers"),
            (NamesAMetricOddly, report, "MLflow takes letters"),
        ],
    )
    def test_a_broken_one_is_noticed(
        self, broken: Any, check: Check, words: str, config: TrainingConfig, corpus: Corpus, tmp_path: Path
    ) -> None:
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception), match=words):
            check(self, broken, config, corpus, tmp_path)
