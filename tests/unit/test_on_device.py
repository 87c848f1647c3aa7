"""Features in a device's memory, and what a trial takes of it: on the CPU, which is asked for as if it were one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import on_device as module
from model.corpus.data import Corpus, CorpusConfig, load_corpus, make_batch
from model.corpus.pack import pack
from model.ctc import CTCTrainer
from model.on_device import OnDevice, fits, on_device, size_of
from model.types import TrainingConfig
from tests.unit.test_ctc import epochs, measured, never, write_learnable

TINY = TrainingConfig(batch_size=4, eval_batch_size=4, hidden=16, channels=16, learning_rate=3e-3, device="cpu")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_learnable(tmp_path_factory.mktemp("learnable"))


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "corpus.packed"
    pack(CorpusConfig(path=folder), out)
    return out


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    module._kept.clear()


def load(path: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=path))


class Counted:
    """A reader that knows how often each sequence was read."""

    def __init__(self, read: Any) -> None:
        self.inner, self.times = read, []

    def write(self, i: int, *rest: Any) -> None:
        self.times.append(i)
        self.inner.write(i, *rest)


def counted(corpus: Corpus) -> tuple[Corpus, Counted]:
    read = Counted(corpus.train.read)
    return replace(corpus, train=replace(corpus.train, read=read)), read


@pytest.mark.parametrize("source", ["folder", "packed"])
def test_losses_and_probes_are_those_of_batches_from_the_host(source: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(source)
    config = TINY.with_values({"dropout": 0.3, "accumulate": 2, "probe_interval": 1})
    host, device = CTCTrainer(config, load(path)), CTCTrainer(config, load(path), features_on_device=True)
    assert isinstance(device.corpus.train.gather, OnDevice)
    found = epochs(device, 2)
    assert found == epochs(host, 2)
    assert all("probe/swap_gap" in report["metrics"] and "probe/permuted_gap" in report["metrics"] for report in found)
    for name, value in host.model.state_dict().items():
        assert torch.equal(device.model.state_dict()[name], value), name


def test_a_batch_has_the_same_features_and_zeros_behind_them(folder: Path) -> None:
    corpus = load(folder)
    moved = on_device(corpus, CPU, wanted=True)
    for split, there in ((corpus.train, moved.train), (corpus.dev, moved.dev)):
        rows = [5, 0, 11, 5]  # in any order, and twice
        own, gathered = make_batch(split, rows), make_batch(there, rows)
        assert isinstance(gathered.features, torch.Tensor)
        assert np.array_equal(gathered.features.numpy(), own.features)
        assert len(set(own.lengths.tolist())) > 1
        for name in ("lengths", "targets", "target_lengths", "indices"):
            assert np.array_equal(getattr(gathered, name), getattr(own, name)), name


def test_on_a_cpu_nothing_lies_there_unless_it_is_asked_for(folder: Path) -> None:
    corpus = load(folder)
    trainer = CTCTrainer(TINY, corpus)
    assert trainer.corpus is corpus
    assert corpus.train.gather is None
    assert module._kept == []
    moved = CTCTrainer(TINY, corpus, features_on_device=True).corpus
    assert moved is not corpus
    assert CTCTrainer(TINY, corpus, features_on_device=False).corpus is corpus


def test_the_trials_of_a_process_read_each_sequence_once(folder: Path) -> None:
    corpus, read = counted(load(folder))
    for seed in (1, 2):
        CTCTrainer(TINY.with_values({"seed": seed}), corpus, features_on_device=True).train_epoch(never)
    assert sorted(read.times) == list(range(24))
    assert corpus.train.resident == {}, "the host keeps no copy beside it"


def test_another_corpus_takes_the_place_and_the_first_goes_on_from_the_host(folder: Path) -> None:
    first, second = load(folder), load(folder)
    config = TINY.with_values({"probe_interval": 0})
    expected = epochs(CTCTrainer(config, first), 2)
    trainer = CTCTrainer(config, first, features_on_device=True)
    found = [measured(trainer.train_epoch(never))]
    gather = trainer.corpus.train.gather
    assert isinstance(gather, OnDevice)
    moved = on_device(second, CPU, wanted=True)
    assert gather(np.array([0])) is None
    assert on_device(second, CPU, wanted=True) is moved
    assert [*found, measured(trainer.train_epoch(never))] == expected
    assert [kept for kept, _, _ in module._kept] == [second]


@pytest.mark.parametrize(("free", "there"), [(2999, False), (3000, True), (0, False)])
def test_a_third_of_what_is_free_may_be_taken(free: int, there: bool) -> None:
    assert fits(1000, free) is there


def test_the_size_is_what_is_allocated(folder: Path) -> None:
    corpus = load(folder)
    moved = on_device(corpus, CPU, wanted=True)
    gathers = [split.gather for split in (moved.train, moved.dev)]
    assert sum(4 * g._rows.numel() for g in gathers if isinstance(g, OnDevice)) == size_of(corpus)  # type: ignore[union-attr]


def test_where_another_process_took_the_memory_batches_come_from_the_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, made = load(folder), []

    class Full(OnDevice):
        def __init__(self, *given: Any) -> None:
            if made:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate 20.00 GiB")
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(module, "OnDevice", Full)
    with caplog.at_level(logging.WARNING):
        assert on_device(corpus, CPU, wanted=True) is corpus
    assert "stay in the host's memory: CUDA out of memory. Tried to allocate" in caplog.text
    assert made[0](np.array([0])) is None, "what was taken is given back"
    assert module._kept == []
