from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model.train
from model.__main__ import main
from model.checkpoint import load_checkpoint
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.ctc import CTCTrainer
from model.files import locked
from model.train import LOCK, OVERWRITTEN, train
from model.types import METRICS, NOT_EVERY_EPOCH, EpochReport, Stopped, TrainingConfig, Value
from tests.corpora import write_corpus, write_sequence

TINY = TrainingConfig(epochs=3, hidden=16, channels=16, learning_rate=3e-3, device="cpu")
FILES = ["best.pt", "config.json", "epochs.jsonl", "last.pt", "previous.pt", "result.json", "vocabulary.txt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("signs"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=folder))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def epochs(output: Path) -> list[dict[str, Any]]:
    """The lines of epochs.jsonl without the time they took."""
    lines = (output / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_checkpoint(path)["trainer"]["model"] for path in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# train()


def test_a_run_writes_its_files(tmp_path: Path, corpus: Corpus) -> None:
    seen: list[tuple[int, str]] = []
    result = train(TINY, corpus, tmp_path / "run", lambda report, phase: seen.append((report.epoch, phase)))
    output = tmp_path / "run"
    assert sorted(p.name for p in output.iterdir()) == FILES
    assert [number for number, _ in seen] == [1, 2, 3]
    assert {phase for _, phase in seen} <= {"plateau", "learning"}
    lines = epochs(output)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(METRICS.keys() - line["metrics"].keys() <= NOT_EVERY_EPOCH for line in lines)
    wers = [line["metrics"]["dev/wer"] for line in lines]
    assert read_json(output / "result.json") == result
    assert result["best_wer"] == min(wers)
    assert result["best_epoch"] == wers.index(min(wers)) + 1
    assert (result["ended"], result["epochs"]) == ("epochs", 3)
    assert load_checkpoint(output / "best.pt")["trainer"]["epoch"] == result["best_epoch"]
    assert load_checkpoint(output / "last.pt")["trainer"]["epoch"] == 3
    facts = read_json(output / "config.json")
    assert TrainingConfig.model_validate(facts["config"]) == TINY
    assert (facts["corpus_hash"], facts["vocabulary_hash"]) == (corpus.hash, corpus.vocabulary.hash)
    assert (output / "vocabulary.txt").read_text(encoding="utf-8").split() == list(corpus.vocabulary.glosses)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted")
    train(TINY, corpus, output)
    return output


def test_going_on_after_a_stop_equals_never_stopping(tmp_path: Path, corpus: Corpus, uninterrupted: Path) -> None:
    batches = iter(range(100))
    with pytest.raises(Stopped):
        train(TINY, corpus, tmp_path, should_stop=lambda: next(batches) >= 5)  # three batches an epoch, dev included
    assert [line["epoch"] for line in epochs(tmp_path)] == [1]
    assert not (tmp_path / "result.json").exists()
    assert train(TINY, corpus, tmp_path) == read_json(uninterrupted / "result.json")
    assert epochs(tmp_path) == epochs(uninterrupted)
    assert same_weights(tmp_path / "last.pt", uninterrupted / "last.pt")
    assert same_weights(tmp_path / "best.pt", uninterrupted / "best.pt")


@pytest.mark.parametrize(
    ("writer", "call"),
    [*(("write", n) for n in range(1, 5)), ("_write_lines", 1), ("_write_lines", 3), ("_write_json", 2)],
)
def test_a_crash_while_writing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus, uninterrupted: Path, writer: str, call: int
) -> None:
    """The files of an epoch are written one by one; wherever a crash falls between them, going on mends all of them."""
    calls, write = iter(range(1, 100)), getattr(model.train, writer)

    def crashing(path: Path, content: Any, **where: Any) -> None:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        write(path, content, **where)

    monkeypatch.setattr(model.train, writer, crashing)
    with pytest.raises(OSError, match="No space"):
        train(TINY, corpus, tmp_path)
    monkeypatch.undo()
    assert train(TINY, corpus, tmp_path) == read_json(uninterrupted / "result.json")
    assert epochs(tmp_path) == epochs(uninterrupted)
    assert same_weights(tmp_path / "last.pt", uninterrupted / "last.pt")
    assert same_weights(tmp_path / "best.pt", uninterrupted / "best.pt")


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: CTCTrainer, should_stop: Callable[[], bool]) -> EpochReport:
        raise AssertionError("an epoch was trained")

    monkeypatch.setattr(CTCTrainer, "train_epoch", refuse)


def test_a_finished_run_returns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    result = train(TINY.with_values({"epochs": 1}), corpus, tmp_path)
    no_training(monkeypatch)
    assert train(TINY.with_values({"epochs": 1}), corpus, tmp_path) == result


def test_more_epochs_go_on_where_it_ended(tmp_path: Path, corpus: Corpus, uninterrupted: Path) -> None:
    train(TINY.with_values({"epochs": 2}), corpus, tmp_path)
    assert train(TINY, corpus, tmp_path) == read_json(uninterrupted / "result.json")
    assert epochs(tmp_path) == epochs(uninterrupted)


def test_a_run_of_another_config_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus, uninterrupted: Path
) -> None:
    no_training(monkeypatch)
    before = {p.name: p.read_bytes() for p in uninterrupted.iterdir()}
    other = TINY.with_values({"learning_rate": 1e-4, "dropout": 0.3, "epochs": 9})
    with pytest.raises(ValueError, match="differs in dropout, learning_rate; choose another --output_dir") as error:
        train(other, corpus, uninterrupted)
    assert str(uninterrupted) in str(error.value)
    elsewhere = load_corpus(CorpusConfig(path=write_corpus(tmp_path / "other", seed=1)))
    with pytest.raises(ValueError, match="differs in corpus;"):
        train(TINY, elsewhere, uninterrupted)
    assert {p.name: p.read_bytes() for p in uninterrupted.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [({"filter": "phoenix-si5"}, "annotation"), ({"modalities": {"a": 2, "b": 4}}, "modalities")],
)
def test_a_run_that_reads_its_corpus_otherwise_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    """Though features, annotations and vocabulary are the same files."""
    sentences = {"train": ["SUN IX RAIN", "RAIN SUN", "IX SUN"], "dev": ["IX RAIN", "SUN"]}
    folder, vocabulary = write_corpus(tmp_path / "corpus", sentences), tmp_path / "vocabulary.txt"
    vocabulary.write_text("<blank>\nSUN\nRAIN\nIX\n", encoding="utf-8")
    given = {"path": folder, "vocabulary": vocabulary}
    train(TINY.with_values({"epochs": 1}), load_corpus(CorpusConfig(**given)), tmp_path / "run")
    with pytest.raises(ValueError, match=f"differs in {named};"):
        train(TINY, load_corpus(CorpusConfig(**given, **change)), tmp_path / "run")


@pytest.mark.parametrize("state", [{"model": {}, "epoch": 7}, {"identity": "trial 3", "trainer": {}, "reports": []}])
def test_a_checkpoint_of_something_else_is_refused_and_kept(
    tmp_path: Path, corpus: Corpus, state: dict[str, Any]
) -> None:
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt: not a checkpoint that can be read here: .* another --output_dir"):
        train(TINY, corpus, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_torn_checkpoint_is_told_with_one_way_on(
    tmp_path: Path, corpus: Corpus, uninterrupted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(TINY.with_values({"epochs": 2}), corpus, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"torn")
    assert train(TINY, corpus, tmp_path) == read_json(uninterrupted / "result.json")
    assert f"{tmp_path / 'last.pt'}: not a whole checkpoint" in caplog.text
    assert "going on from previous.pt" in caplog.text
    assert "delete" not in caplog.text


# one process a folder, and no other's files


def test_two_runs_in_one_folder_are_refused_before_the_corpus_is_read(
    tmp_path: Path, folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_training(monkeypatch)
    output = tmp_path / "run"
    output.mkdir()
    with locked(output / LOCK):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* is at work in .*; wait for its end, or"):
            train(TINY, corpus, output)
        assert main(seeds_command(tmp_path / "nowhere", output)) == 2
        err = capsys.readouterr().err
        assert f"error: process {os.getpid()} on " in err
        assert err.count("\n") == 1
    assert list(output.iterdir()) == []


def test_a_run_holds_its_folder_while_it_trains(tmp_path: Path, corpus: Corpus) -> None:
    refused: list[str] = []

    def again(report: EpochReport, phase: str) -> None:
        with pytest.raises(ValueError, match="is at work in") as error:
            train(TINY, corpus, tmp_path)
        refused.append(str(error.value))

    train(TINY.with_values({"epochs": 2}), corpus, tmp_path, again)
    assert len(refused) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
def test_a_killed_run_goes_on(tmp_path: Path, folder: Path) -> None:
    words = [*seeds_command(folder, tmp_path), "--epochs", "10000"]
    process = subprocess.Popen([sys.executable, "-m", "model", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(line.startswith("epoch   1") for line in process.stdout)
    process.kill()
    process.communicate()
    assert (tmp_path / LOCK).exists()
    done = len(epochs(tmp_path))
    assert main([*seeds_command(folder, tmp_path), "--epochs", str(done + 2)]) == 0
    assert [line["epoch"] for line in epochs(tmp_path)] == list(range(1, done + 3))
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("name", OVERWRITTEN)
def test_files_that_are_no_runs_are_not_overwritten(tmp_path: Path, corpus: Corpus, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"holds {name}, though no run, and training would overwrite that"):
        train(TINY, corpus, tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"{}")]


def test_other_files_are_left_alone(tmp_path: Path, corpus: Corpus) -> None:
    """Such as the log that `| tee` has just begun."""
    (tmp_path / "log.txt").write_text("mine", encoding="utf-8")
    train(TINY.with_values({"epochs": 1}), corpus, tmp_path)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("output", ["file", "file/run"])
def test_a_file_is_no_folder(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], output: str) -> None:
    (tmp_path / "file").touch()
    assert main(seeds_command(folder, tmp_path / output)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --output_dir {tmp_path / output}: {tmp_path / 'file'} is a file, and a run writes a")
    assert err.count("\n") == 1


def test_a_run_that_never_sees_a_number_still_has_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    trained = CTCTrainer.train_epoch

    def all_skipped(self: CTCTrainer, should_stop: Callable[[], bool]) -> EpochReport:
        report = trained(self, should_stop)
        metrics = {name: float("nan") for name in report.metrics}
        return EpochReport(report.epoch, report.step, metrics, report.steps_in_epoch, report.steps_in_epoch)

    monkeypatch.setattr(CTCTrainer, "train_epoch", all_skipped)
    result = train(TINY, corpus, tmp_path)
    assert (result["verdict"], result["ended"], result["epochs"]) == ("diverged", "diverged", 1)
    assert result["best_wer"] is None
    assert set(epochs(tmp_path)[0]["metrics"].values()) == {None}  # JSON has no word for NaN


# python -m model train

SMALL = ["--hidden", "16", "--channels", "16", "--device", "cpu"]


def seeds_command(data: Path, output: Path, dashes: bool = False) -> list[str]:
    """The user's own command, with a smaller model and fewer epochs."""
    options = {
        "data_dir": data,
        "output_dir": output,
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.0005,
        "dropout": 0.1,
        "early_stopping_patience": 30,
    }
    pairs = [(name.replace("_", "-") if dashes else name, str(value)) for name, value in options.items()]
    return ["train", *(part for name, value in pairs for part in (f"--{name}", value)), *SMALL]


@pytest.mark.parametrize("dashes", [False, True])
def test_the_users_command(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], dashes: bool) -> None:
    assert main(seeds_command(folder, tmp_path, dashes)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [["epoch", "1"], ["epoch", "2"]]
    assert str(tmp_path) in lines[-1]
    config = read_json(tmp_path / "config.json")["config"]
    assert {name: config[name] for name in ("epochs", "batch_size", "learning_rate", "dropout", "patience")} == {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 0.0005,
        "dropout": 0.1,
        "patience": 30,
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


def test_every_field_is_an_option(tmp_path: Path, folder: Path) -> None:
    values: dict[str, Value] = {
        "schedule": "cosine_restarts",
        "warmup_start_factor": 0.1,
        "patience_starts": "epoch1",
        "seed": 3,
    }
    config = TINY.with_values({**values, "epochs": 1})
    options = [f"--{name}={value}" for name, value in config.changed().items()]
    assert main(["train", "--data_dir", str(folder), "--output_dir", str(tmp_path), *options]) == 0
    assert TrainingConfig.model_validate(read_json(tmp_path / "config.json")["config"]) == config


def test_stdout_is_json_alone_when_asked(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*seeds_command(folder, tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == read_json(tmp_path / "result.json")
    assert "epoch   2  plateau" in said.err
    assert "Never learned within its 2 epochs" in said.err


def test_a_corpus_forced_through_the_check_is_not_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_corpus(tmp_path / "corpus")
    for file in (data / "features").rglob("*.npz"):
        write_sequence(file, np.zeros((40, 6), np.float32))
    command = [*seeds_command(data, tmp_path / "run"), "--epochs", "1"]
    assert main(command) == 2
    assert main([*command, "--force"]) == 0
    out = capsys.readouterr().out
    assert "nothing speaks against" not in out
    assert "Never learned within its 1 epoch: " in out
    assert "The check of its corpus found all_zero: " in out
    assert "after 1 epoch.\n" in out
    result = read_json(tmp_path / "run" / "result.json")
    assert result["findings"][0]["severity"] == "fatal"
    assert "all_zero" in {finding["code"] for finding in result["findings"]}


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes there")
@pytest.mark.parametrize("command", ["train", "check"])  # the one prints as it goes, the other at its end
def test_a_reader_that_has_read_enough_is_no_error(tmp_path: Path, folder: Path, command: str) -> None:
    words = seeds_command(folder, tmp_path / "run") if command == "train" else ["check", str(folder)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "model", *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data_dir", "nowhere"], ["nowhere", "no such folder"]),
        (["--schedule", "cosine"], ["--schedule", "'cosine'", "cosine_restarts", "plateau"]),
        (["--epochs", "many"], ["--epochs", "'many'", "--help"]),
        (["--epochs", "0"], ["--epochs 0", "greater than or equal to 1"]),
        (["--learning_rate", "-1"], ["--learning_rate -1.0", "greater than 0"]),
        (["--learning_rate", "nan"], ["--learning_rate nan"]),
        (["--precision", "fp16"], ["--precision fp16: float16 ends", "Use bf16"]),
        (["--dropout", "1"], ["--dropout 1.0", "less than 1"]),
        (["--learningrate", "1"], ["--learningrate", "--help"]),
        (["--filter", "nun"], ["--filter nun", "'nun'", "phoenix-si5"]),
        (["--modalities", "pose:6"], ["--modalities pose:6", "NAME=WIDTH"]),
        (["--modalities", "pose=5"], ["pose", "5", "6 dimensions"]),
        (["--vocabulary", "nowhere.txt"], ["nowhere.txt", "check the path"]),
        (["--device", "cuda"], ["cuda", "auto or cpu"]),
    ],
)
def test_a_mistake_gives_one_clear_line(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    no_training(monkeypatch)
    code: object
    try:
        code = main([*seeds_command(folder, tmp_path / "run"), *options])
    except SystemExit as exit_:  # argparse leaves so
        code = exit_.code
    assert code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Value error" not in err
    assert "fp16: fp16" not in err
    for part in parts:
        assert part in err
    assert not (tmp_path / "run").exists()


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data_dir", "somewhere"])
    err = capsys.readouterr().err
    assert "--output_dir" in err
    assert err.count("\n") == 1


def test_another_config_in_the_same_folder_is_said_in_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(seeds_command(folder, tmp_path)) == 0
    assert main([*seeds_command(folder, tmp_path), "--batch_size", "2"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "differs in batch_size" in err


def test_ctrl_c_keeps_the_last_whole_epoch(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(seeds_command(folder, whole)) == 0
    loss_of, batches = CTCTrainer._loss, iter(range(100))

    def interrupted(self: CTCTrainer, batch: Any) -> torch.Tensor:
        if next(batches) == 3:  # in the middle of epoch 2
            raise KeyboardInterrupt
        return loss_of(self, batch)

    monkeypatch.setattr(CTCTrainer, "_loss", interrupted)
    capsys.readouterr()
    assert main(seeds_command(folder, cut)) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert load_checkpoint(cut / "last.pt")["trainer"]["epoch"] == 1
    assert [p.name for p in cut.glob("*.part")] == []
    monkeypatch.undo()
    assert main(seeds_command(folder, cut)) == 0
    assert epochs(cut) == epochs(whole)
    assert same_weights(cut / "last.pt", whole / "last.pt")


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for name in (*TrainingConfig.model_fields, "early_stopping_patience", "output-dir"):
        assert f"--{name}" in out
