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
from model.ctc import CTCTrainer
from model.types import EpochReport, TrainingConfig
from sweeps import checkpoints
from sweeps.checkpoints import attempts, expire, forget_earlier, has_room, save, settle, trial_files, unsettled
from sweeps.states import TrialState
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
    return trial_files(tmp_path / "checkpoints" / "s", 7, 1)


ME = {"sweep": "s1", "corpus": "abc", **TrainingConfig().model_dump()}


def resume(files: Files, identity: Mapping[str, Any], trainer: Counter, attempt: int = 1) -> list[EpochReport]:
    return checkpoints.resume(files.last.parent, 7, attempt, identity, trainer)


def put(files: Files, corpus: Corpus, epochs: int, *, identity: dict[str, Any] = ME, better: bool = False) -> None:
    reports = run(epochs, 1e-3, takeoff=2)
    save(files, "s/7", identity, Counter(epochs), TrainingConfig(), corpus, reports, better=better)


def test_each_trial_has_three_files_that_sort_by_number(tmp_path: Path) -> None:
    names = [path.name for path in vars(trial_files(tmp_path, 7, 1)).values()]
    assert names == ["00007.1.pt", "00007.1.previous.pt", "00007.1.best.pt"]


def test_trainer_and_epochs_come_back(files: Files, corpus: Corpus) -> None:
    put(files, corpus, 3)
    trainer = Counter()
    assert resume(files, ME, trainer) == run(3, 1e-3, takeoff=2)
    assert (trainer.epoch, trainer.weights.tolist()) == (3, [3.0, 3.0, 3.0])


def test_the_best_of_the_built_in_trainer_alone_is_without_its_optimizer(tmp_path: Path, corpus: Corpus) -> None:
    class Own(Counter):
        """Its state has an entry of that name as well."""

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "optimizer": {"moments": torch.ones(2)}}

    small = TrainingConfig(epochs=2, batch_size=4, channels=8, hidden=8, lstm_layers=1)
    for name, trainer, kept in (("own", Own(2), True), ("built-in", CTCTrainer(small, corpus), False)):
        mine = trial_files(tmp_path / name, 7, 1)
        save(mine, "s/7", ME, trainer, TrainingConfig(), corpus, run(2, 1e-3), better=True)
        assert "optimizer" in read(mine.last).trainer
        assert ("optimizer" in read(mine.best).trainer) == kept, name


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
    assert lengths == {"00007.1.pt": 4, "00007.1.previous.pt": 3, "00007.1.best.pt": 2}


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
    assert f"{files.last}: differs in dropout, sweep; it is not taken" in caplog.text


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
    for path, epochs, said in (
        (files.last, 2, "going on from 00007.1.previous.pt"),
        (files.previous, 0, "or at epoch 1"),
    ):
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


# attempts


def attempt(files: Files, number: int) -> Files:
    return trial_files(files.last.parent, 7, number)


def names(files: Files) -> list[str]:
    return sorted(path.name for path in files.last.parent.iterdir())


def test_the_next_attempt_goes_on_from_the_last_one_and_takes_the_best_along(files: Files, corpus: Corpus) -> None:
    put(files, corpus, 1, better=True)
    put(files, corpus, 2)
    trainer = Counter()
    assert len(resume(files, ME, trainer, attempt=2)) == trainer.epoch == 2
    assert attempts(files.last.parent, 7) == [2, 1]
    put(attempt(files, 2), corpus, 3)
    forget_earlier(files.last.parent, 7, 2)
    assert names(files) == ["00007.2.best.pt", "00007.2.pt"]
    assert len(read(attempt(files, 2).best).reports) == 1


def test_a_worker_that_wakes_after_the_end_of_its_trial_takes_nothing_away(files: Files, corpus: Corpus) -> None:
    put(attempt(files, 2), corpus, 5, better=True)
    settle(files.last.parent, 7, TrialState.COMPLETE)
    put(files, corpus, 3)  # frozen in the middle of its first attempt
    forget_earlier(files.last.parent, 7, 1)
    settle(files.last.parent, 7, TrialState.COMPLETE)
    assert names(files) == ["00007.best.pt", "00007.pt"]
    assert len(read(trial_files(files.last.parent, 7).last).reports) == 5


def test_where_the_last_was_torn_after_its_epoch_had_been_recorded_the_one_before_stays(
    files: Files, corpus: Corpus
) -> None:
    put(files, corpus, 1, better=True)
    put(files, corpus, 2)
    files.last.write_bytes(b"torn")
    assert len(resume(files, ME, Counter(), attempt=2)) == 1  # and the trial is judged by what was recorded: it is over
    settle(files.last.parent, 7, TrialState.COMPLETE)
    assert names(files) == ["00007.best.pt", "00007.pt"]
    assert len(read(trial_files(files.last.parent, 7).last).reports) == 1


def test_files_of_another_sweep_that_had_this_name_are_removed_before_training(files: Files, corpus: Corpus) -> None:
    final = trial_files(files.last.parent, 7)
    put(final, corpus, 4, better=True)
    resume(files, ME, Counter())
    assert names(files) == ["00007.best.pt", "00007.pt"], "of this sweep: its trial was ended by another attempt"
    resume(files, {**ME, "sweep": "s@later"}, Counter())
    assert names(files) == []
    final.last.write_bytes(b"torn")
    resume(files, ME, Counter())
    assert names(files) == []


def test_what_a_worker_that_was_declared_dead_writes_late_is_not_read(files: Files, corpus: Corpus) -> None:
    put(files, corpus, 2)
    resume(files, ME, Counter(), attempt=2)
    put(attempt(files, 2), corpus, 5)
    put(files, corpus, 3)  # the first attempt wakes up
    trainer = Counter()
    assert len(resume(files, ME, trainer, attempt=3)) == 5
    assert trainer.epoch == 5
    assert len(resume(files, ME, Counter(), attempt=1)) == 3, "nor does the first look at what came later"


def test_where_an_attempt_left_no_whole_checkpoint_the_one_before_is_taken(
    files: Files, corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    put(files, corpus, 2)
    put(attempt(files, 2), corpus, 3)
    attempt(files, 2).last.write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        assert len(resume(files, ME, Counter(), attempt=3)) == 2
    assert "the trial begins at an earlier one" in caplog.text


# once it is over


def test_a_complete_trial_keeps_its_last_and_its_best(files: Files, corpus: Corpus) -> None:
    for epochs in (1, 2, 3):
        put(files, corpus, epochs, better=epochs == 2)
    folder = files.last.parent
    assert list(unsettled(folder)) == [7]
    for _ in range(2):
        settle(folder, 7, TrialState.COMPLETE)
        assert names(files) == ["00007.best.pt", "00007.pt"]
    assert list(unsettled(folder)) == []
    final = trial_files(folder, 7)
    assert (len(read(final.last).reports), len(read(final.best).reports)) == (3, 2)


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.CANCELLED])
def test_one_that_came_to_nothing_is_kept_without_the_optimizer_and_for_some_days(
    files: Files, corpus: Corpus, state: TrialState
) -> None:
    class WithOptimizer(Counter):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "optimizer": torch.zeros(100_000)}

    save(files, "s/7", ME, WithOptimizer(1), TrainingConfig(), corpus, run(1, 1e-3), better=True)
    whole, folder = files.last.stat().st_size, files.last.parent
    settle(folder, 7, state)
    final = trial_files(folder, 7)
    assert final.last.stat().st_size < whole - 300_000
    assert set(read(final.last).trainer) == {"epoch", "weights"}
    assert expire(folder, [7], days=1) == 0
    assert expire(folder, [8], days=0) == 0
    assert expire(folder, [7], days=0) == 2
    assert names(files) == []


def test_what_a_killed_worker_had_not_written_to_its_end_goes_with_the_trial(files: Files, corpus: Corpus) -> None:
    folder = files.last.parent
    put(files, corpus, 1)
    (folder / ".00007.2.pt.4242.part").touch()  # its next attempt came no further
    settle(folder, 7, TrialState.COMPLETE)
    (folder / ".00008.1.best.pt.4242.part").touch()
    assert list(unsettled(folder)) == [8]
    settle(folder, 8, TrialState.FAILED)
    assert [name for name in names(files) if name.endswith(".part")] == []
    assert list(unsettled(folder)) == []


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED])
def test_a_worker_and_the_keeper_may_settle_at_the_same_time(
    files: Files, corpus: Corpus, state: TrialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(files, corpus, 2, better=True)
    rename = Path.replace

    def faster(path: Path, target: Path) -> Path:
        if path == files.last:  # the other one did it between our look and this
            rename(path, target)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", faster)
    settle(files.last.parent, 7, state)
    settle(files.last.parent, 7, state)
    assert names(files) == ["00007.best.pt", "00007.pt"]


def test_room_is_tried(tmp_path: Path) -> None:
    assert has_room(tmp_path, 3 << 20)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert not has_room(tmp_path / "file", 1)
