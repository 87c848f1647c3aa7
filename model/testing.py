"""`TrainerContract`: what every trainer must hold so that a sweep can compare, stop, move and resume its trials, for
people who bring their own.

class TestMyTrainer(TrainerContract):
    @pytest.fixture
    def make_trainer(self):
        return my_module.make_trainer  # called with a TrainingConfig and a Corpus
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import load_checkpoint, save_checkpoint
from model.corpus.data import Corpus, CorpusConfig, Split, load_corpus
from model.corpus.features import Normalisation, Recording
from model.corpus.synthetic import GeneratedConfig, generate
from model.types import EpochReport, Stopped, Trainer, TrainingConfig

MakeTrainer: TypeAlias = Callable[[TrainingConfig, Corpus], Trainer]

NEEDED = frozenset({"dev/wer"})
"""Metrics that a report must have. Every other key of `METRICS` may be missing: a rule that asks for it then does not
judge, and a curve is not drawn."""

METRIC_NAME = re.compile(r"[\w\-. :/]+")
"""What MLflow takes as the name of a metric."""

HYPERPARAMETERS: Mapping[str, Any] = {
    "learning_rate": 3e-3,
    "warmup_start_factor": 0.3,
    "dropout": 0.4,
    "patience": 2,
    "weight_decay": 0.1,
    "hidden": 16,
    "seed": 5,
}
"""In what two trials of one sweep may differ, and still see the same batches."""

Reads: TypeAlias = list[tuple[str, int]]
"""Split and index of every sequence read, in order."""


class TrainerContract:
    """Give the fixture `make_trainer`; `corpus` and `config` may be given as well, for a trainer that needs others."""

    @pytest.fixture
    def corpus(self, tmp_path: Path) -> Corpus:
        """Ten generated sentences to train on, three of dev, 225 wide."""
        generated = GeneratedConfig(train=10, dev=3, glosses=5)
        return load_corpus(CorpusConfig(path=generate(generated, tmp_path)))

    @pytest.fixture
    def config(self) -> TrainingConfig:
        return TrainingConfig(
            epochs=8, batch_size=4, eval_batch_size=4, hidden=8, channels=8, dropout=0.2, device="cpu"
        )

    def test_epochs_count_from_one_and_are_told(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus
    ) -> None:
        trainer = make_trainer(config, corpus)
        assert isinstance(trainer, Trainer), f"{type(trainer).__name__} lacks a part of model.types.Trainer"
        assert trainer.epoch == 0, "before the first epoch `epoch` is 0"
        reports = train(trainer, 2)
        assert trainer.epoch == 2, "`epoch` counts the epochs that are finished"
        assert [report.epoch for report in reports] == [1, 2], "the first report is that of epoch 1"
        assert reports[0].step < reports[1].step, "`step` of a report counts updates since the run began"
        for report in reports:
            assert report.metrics.keys() >= NEEDED, f"metrics must have {', '.join(NEEDED)}"
            assert report.wer >= 0 or math.isnan(report.wer), "dev/wer is a fraction; NaN where there is none"
            assert {type(value) for value in report.metrics.values()} <= {int, float}, "metrics must be plain numbers"
            for name in report.metrics:
                assert METRIC_NAME.fullmatch(name), f"{name!r}: MLflow takes letters, digits, _ - . : / and spaces"

    @pytest.mark.parametrize("epochs", [1, 2])
    def test_resuming_equals_never_stopping(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus, tmp_path: Path, epochs: int
    ) -> None:
        scramble(1)
        uninterrupted = make_trainer(config, corpus)
        whole = train(uninterrupted, 4)
        scramble(2)
        first = make_trainer(config, corpus)
        reports = train(first, epochs)
        state = {"trainer": first.state_dict(), "reports": [asdict(report) for report in reports]}
        save_checkpoint(tmp_path / "last.pt", state)
        saved = load_checkpoint(tmp_path / "last.pt")  # as weights only: tensors, numbers, text, lists and dicts
        scramble(3)
        second = make_trainer(config, corpus)
        second.load_state_dict(saved["trainer"])
        assert second.epoch == epochs, "`epoch` must come back with the state"
        both = [EpochReport(**report) for report in saved["reports"]] + train(second, 4 - epochs)
        for report, wanted in zip(both, whole, strict=True):
            same(report, wanted, "it was not trained as without a stop")
        for resumed, never_stopped in zip(
            tensors(second.state_dict()), tensors(uninterrupted.state_dict()), strict=True
        ):
            torch.testing.assert_close(resumed, never_stopped, rtol=0, atol=0, equal_nan=True)

    def test_a_state_is_taken_over_whole_and_not_shared(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus
    ) -> None:
        second = train(make_trainer(config, corpus), 2)[1]
        source, used = make_trainer(config, corpus), make_trainer(config, corpus)
        other = make_trainer(config.with_values({"learning_rate": 3e-3, "seed": 5}), corpus)
        train(source, 1)
        train(used, 3)
        train(other, 2)
        used.load_state_dict(source.state_dict())
        other.load_state_dict(source.state_dict())  # as when one trial is forked from another
        assert used.epoch == other.epoch == 1, "`epoch` must come with the state"
        same(train(used, 1)[0], second, "something of its own past was left after load_state_dict")
        same(train(source, 1)[0], second, "another trainer's epoch moved it: load_state_dict must copy")
        assert train(other, 1)[0].epoch == 2

    def test_every_trial_sees_the_same_batches(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus
    ) -> None:
        (order,) = batches_of(make_trainer, config, corpus, epochs=1)
        assert order, "nothing was read of corpus.train in train_epoch: call its features(i) for each sentence"
        differing = [
            name
            for name, value in HYPERPARAMETERS.items()
            if batches_of(make_trainer, config.with_values({name: value}), corpus, epochs=1) != [order]
        ]
        assert differing == [], f"the order of the sentences must not depend on {', '.join(differing)}"

    def test_the_order_follows_the_data_seed_and_the_epoch(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus
    ) -> None:
        first, second = batches_of(make_trainer, config, corpus, epochs=2)
        (other,) = batches_of(make_trainer, config.with_values({"data_seed": 9}), corpus, epochs=1)
        assert first != second, "the order must change from epoch to epoch"
        assert first != other, "the order must follow data_seed"

    def test_should_stop_is_read_before_each_batch_and_step_moves(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus
    ) -> None:
        corpus, sequences = watched(corpus)
        trainer = make_trainer(config, corpus)
        stop = Stop(trainer, sequences=sequences)
        before = trainer.step
        trainer.train_epoch(stop)
        batches = [sequences[start:end] for start, end in pairwise([0, *stop.sequences_at, len(sequences)])]
        largest = max(sum(split == "train" for split, _ in batch) for batch in batches)
        assert largest <= config.batch_size, f"{largest} sentences were read without a look at should_stop"
        assert stop.steps == sorted(stop.steps), "`step` went back"
        steps = math.ceil(len(corpus.train) / config.batch_size)
        assert len({*stop.steps, trainer.step}) > steps, "`step` must move with each batch, not once an epoch"
        assert trainer.step - before >= steps, "`step` must count batches"

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_a_stop_between_steps_is_honoured(
        self, make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus, share: float
    ) -> None:
        uninterrupted, trainer = make_trainer(config, corpus), make_trainer(config, corpus)
        train(uninterrupted, 1)
        never = Stop(uninterrupted)
        second = uninterrupted.train_epoch(never)
        train(trainer, 1)
        state = deepcopy(trainer.state_dict())
        stop = Stop(trainer, after=round(share * (len(never.steps) - 1)))
        with pytest.raises(Stopped):
            trainer.train_epoch(stop)
        assert trainer.epoch == 1, "an epoch that was stopped does not count"
        assert trainer.step <= stop.steps[-1] + 1, "it trained on after should_stop had said yes"
        trainer.load_state_dict(state)
        same(train(trainer, 1)[0], second, "an epoch that was stopped must leave nothing behind")


class Stop:
    """A `should_stop` that says no `after` times, and then yes; notes what it sees each time."""

    def __init__(self, trainer: Trainer, after: float = math.inf, sequences: Reads | None = None) -> None:
        self.trainer, self.after = trainer, after
        self.sequences = [] if sequences is None else sequences
        self.steps: list[int] = []
        self.sequences_at: list[int] = []

    def __call__(self) -> bool:
        self.steps.append(self.trainer.step)
        self.sequences_at.append(len(self.sequences))
        return len(self.steps) > self.after


def train(trainer: Trainer, epochs: int) -> list[EpochReport]:
    """So many epochs, never stopped."""
    return [trainer.train_epoch(lambda: False) for _ in range(epochs)]


def same(got: EpochReport, wanted: EpochReport, rule: str) -> None:
    """Both say the same to the last bit, but for the time they took; NaN equals NaN.

    Raises:
        AssertionError: names the rule and what differs.
    """
    a, b = ({**asdict(report), **report.metrics, "metrics": "", "seconds": 0.0} for report in (got, wanted))
    differing = [f"{n} {a.get(n)} for {b.get(n)}" for n in {**a, **b} if repr(a.get(n)) != repr(b.get(n))]
    assert not differing, f"{rule}: epoch {wanted.epoch} has {', '.join(differing)}"


def tensors(state: Any) -> Iterator[Tensor]:
    """Every tensor of a state, in order."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def scramble(seed: int) -> None:
    """Leave the random states as another process, or another trial in this one, would have left them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Watched:
    """The reader of a split that notes what it reads."""

    def __init__(self, split: Split, reads: Reads) -> None:
        self._split, self._reads = split, reads

    def __call__(self, i: int) -> Recording:
        self._reads.append((self._split.name, int(i)))
        return self._split.read(i)

    def write(self, i: int, normalisation: Normalisation, out: NDArray[np.float32]) -> None:
        self._reads.append((self._split.name, int(i)))
        self._split.read.write(i, normalisation, out)


def watched(corpus: Corpus) -> tuple[Corpus, Reads]:
    """The corpus, and a list that grows with every sequence that is read from it."""
    reads: Reads = []

    def watch(split: Split) -> Split:
        read = Watched(split, reads)
        return replace(split, read=cast(Any, read), resident=None)  # kept in memory, a sequence is read only once

    return replace(corpus, train=watch(corpus.train), dev=watch(corpus.dev)), reads


def batches_of(make_trainer: MakeTrainer, config: TrainingConfig, corpus: Corpus, epochs: int) -> list[list[int]]:
    """The training sequences of each epoch in the order in which they were read."""
    corpus, reads = watched(corpus)
    trainer = make_trainer(config, corpus)
    orders = []
    for _ in range(epochs):
        reads.clear()
        train(trainer, 1)
        # What is read of train after dev is a probe, not a batch.
        orders.append([i for _, i in takewhile(lambda read: read[0] == "train", reads)])
    return orders
