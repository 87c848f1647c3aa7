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

from model.checkpoint import Files, read
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.types import EpochReport, TrainingConfig
from sweeps.checkpoints import resume, save, trial_files
from tests.corpora import write_corpus
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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CorpusConfig(path=write_corpus(tmp_path_factory.mktemp("signs"))))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return trial_files(tmp_path / "checkpoints" / "s", 7)


ME = {"sweep": "s1", "corpus": "abc", **TrainingConfig().model_dump()}


def put(files: Files, corpus: Corpus, epochs: int, *, identity: dict[str, Any] = ME, better: bool = False) -> None:
    reports = run(epochs, 1e-3, takeoff=2)
    save(files, "s/7", identity, Counter(epochs), TrainingConfig(), corpus, reports, better=better)


def test_each_trial_has_three_files_that_sort_by_number(tmp_path: Path) -> None:
    names = [path.name for path in vars(trial_files(tmp_path, 7)).values()]
    assert names == ["00007.pt", "00007.previous.pt", "00007.best.pt"]


def test_trainer_and_epochs_come_back(files: Files, corpus: Corpus) -> None:
    put(files, corpus, 3)
    trainer = Counter()
    assert resume(files, ME, trainer) == run(3, 1e-3, takeoff=2)
    assert (trainer.epoch, trainer.weights.tolist()) == (3, [3.0, 3.0, 3.0])


def test_metrics_that_are_not_finite_come_back_as_they_were(files: Files, corpus: Corpus) -> None:
    (report,) = run(1, 1e-3)
    torn = replace(report, metrics={**report.metrics, "dev/wer": math.nan, "dev/loss": math.inf}, skipped_steps=4)
    save(files, "s/7", ME, Counter(1), TrainingConfig(), corpus, [torn], better=False)
    (back,) = resume(files, ME, Counter())
    assert math.isnan(back.wer)
    assert back.metrics["dev/loss"] == math.inf
    assert {**back.metrics, "dev/wer": 0.0} == {**torn.metrics, "dev/wer": 0.0}
    assert back.skipped_steps == 4


def test_the_last_two_and_the_best_are_kept_and_nothing_else(files: Files, corpus: Corpus) -> None:
    for epochs in range(1, 5):
        put(files, corpus, epochs, better=epochs == 2)
    lengths = {path.name: len(read(path).reports) for path in files.last.parent.iterdir()}
    assert lengths == {"00007.pt": 4, "00007.previous.pt": 3, "00007.best.pt": 2}


def test_without_one_the_trial_begins_at_epoch_1(files: Files) -> None:
    trainer = Counter()
    assert resume(files, ME, trainer) == []
    assert trainer.epoch == 0


def test_that_of_another_trial_is_not_taken(files: Files, corpus: Corpus, caplog: pytest.LogCaptureFixture) -> None:
    put(files, corpus, 3, identity={**ME, "sweep": "s2", "dropout": 0.4})
    trainer = Counter()
    with caplog.at_level(logging.WARNING):
        assert resume(files, ME, trainer) == []
    assert trainer.epoch == 0
    assert f"{files.last}: differs in dropout, sweep; the trial begins at epoch 1" in caplog.text


def test_a_setting_that_came_later_is_no_difference_at_its_default(files: Files, corpus: Corpus) -> None:
    old = {name: value for name, value in ME.items() if name != "output_stride"}
    put(files, corpus, 3, identity=old)
    assert len(resume(files, ME, Counter())) == 3
    assert resume(files, {**ME, "output_stride": 2}, Counter()) == []


@pytest.mark.parametrize("content", [b"", b"torn", "half"])
def test_where_the_last_is_not_whole_the_one_before_is_taken(
    files: Files, corpus: Corpus, content: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    put(files, corpus, 2)
    put(files, corpus, 3)
    for path, epochs, said in ((files.last, 2, "going on from 00007.previous.pt"), (files.previous, 0, "at epoch 1")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
        trainer = Counter()
        with caplog.at_level(logging.WARNING):
            assert len(resume(files, ME, trainer)) == trainer.epoch == epochs
        assert said in caplog.text


def test_a_torn_one_never_takes_the_place_of_the_one_before(files: Files, corpus: Corpus) -> None:
    for epochs in (1, 2):
        put(files, corpus, epochs)
    files.last.write_bytes(b"torn")
    assert len(resume(files, ME, Counter())) == 1
    put(files, corpus, 2)
    files.last.unlink()  # a crash between the renames of the next save
    assert len(resume(files, ME, Counter())) == 1


def test_a_crash_between_the_two_renames_loses_one_epoch(files: Files, corpus: Corpus) -> None:
    put(files, corpus, 2)
    put(files, corpus, 3)
    files.last.replace(files.previous)  # the old one moved away, the new one not yet in its place
    assert len(resume(files, ME, Counter())) == 3


def test_one_of_another_maker_is_not_taken(files: Files) -> None:
    files.last.parent.mkdir(parents=True)
    torch.save({"state": torch.zeros(2)}, files.last)
    assert resume(files, ME, Counter()) == []
    torch.save([1, 2], files.last)
    assert resume(files, ME, Counter()) == []
