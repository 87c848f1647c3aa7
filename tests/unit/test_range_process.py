"""The range test as a process of its own: stopped, failing, killed; and the command of the model."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path

import psutil
import pytest

from model.__main__ import main
from model.corpus.data import CorpusConfig
from model.range_test import FEWEST_STEPS, LOW
from sweeps import runner
from sweeps.errors import RangeTestFailed
from sweeps.ramp import Ramp
from sweeps.range_test import NUMBERS, PICTURE
from sweeps.spec import SweepSpec
from tests.corpora import write_corpus


@pytest.fixture
def ramp(tmp_path: Path) -> Ramp:
    """Of a corpus of noise: 200 updates in 100 epochs."""
    trainer = {"epochs": 100, "batch_size": 3, "hidden": 8, "channels": 8, "probe_interval": 0, "device": "cpu"}
    spec = SweepSpec.model_validate({"name": "s", "corpus": "x", "trainer": trainer})
    corpus = CorpusConfig(path=write_corpus(tmp_path / "corpus"))
    return Ramp(spec, corpus, tmp_path / "scans", tmp_path / "logs" / "range-test.log", tmp_path / "pictures")


def no_child_lives() -> bool:
    return multiprocessing.active_children() == []


def test_it_is_stopped_within_seconds_and_leaves_nothing(ramp: Ramp) -> None:
    stop, stopped_at = threading.Event(), 0.0

    def stop_soon(done: int, steps: int) -> None:
        nonlocal stopped_at
        assert steps == FEWEST_STEPS
        if not stop.is_set():
            stopped_at = time.monotonic()
            stop.set()

    assert runner.run_range_test(ramp, stop, stop_soon) is None
    assert time.monotonic() - stopped_at < 10
    assert not ramp.pictures.exists()
    assert no_child_lives()
    assert "stopped; nothing is kept" in ramp.log.read_text(encoding="utf-8")


def test_why_it_failed_is_told(ramp: Ramp) -> None:
    missing = Ramp(ramp.spec, CorpusConfig(path=ramp.corpus.path / "gone"), ramp.scans, ramp.log, ramp.pictures)
    with pytest.raises(RangeTestFailed, match=r"CorpusError.*gone.*--skip-range-test"):
        runner.run_range_test(missing, threading.Event(), lambda done, steps: None)
    assert "Traceback" in ramp.log.read_text(encoding="utf-8")
    assert no_child_lives()


@pytest.mark.slow
def test_it_comes_back_whole(ramp: Ramp) -> None:
    seen: list[int] = []
    test = runner.run_range_test(ramp, threading.Event(), lambda done, steps: seen.append(done))
    assert test is not None
    assert seen == list(range(1, len(seen) + 1))
    assert test.low is None, "noise teaches nothing"
    assert json.loads((ramp.pictures / NUMBERS).read_text(encoding="utf-8")) == json.loads(json.dumps(test.as_json()))
    assert (ramp.pictures / PICTURE).stat().st_size < 200_000
    assert no_child_lives()


@pytest.mark.slow
def test_a_killed_one_is_told_with_its_exit_code(ramp: Ramp) -> None:
    def kill(done: int, steps: int) -> None:
        for child in multiprocessing.active_children():
            psutil.Process(child.pid).kill()

    with pytest.raises(RangeTestFailed, match=r"it died with exit code -?[0-9]+"):
        runner.run_range_test(ramp, threading.Event(), kill)
    assert no_child_lives()


@pytest.mark.slow
def test_the_command_prints_draws_and_answers_in_json(
    ramp: Ramp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["range-test", "--data_dir", str(ramp.corpus.path), "--steps", str(FEWEST_STEPS), "--epochs", "50"]
    # Three dev sentences of noise: with one seed in four it seems to use its input.
    words += ["--batch_size", "3", "--hidden", "8", "--channels", "8", "--device", "cpu", "--seed", "1"]
    assert main([*words, "--json", "--output", str(tmp_path / "p.png")]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["steps"] == FEWEST_STEPS
    assert found["looks"][0]["rate"] == LOW
    assert found["looks"][0]["swap_t"] is None
    assert "never used its input" in err
    assert err.splitlines()[-1] == f"picture: {tmp_path / 'p.png'}"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_what_makes_no_sense(ramp: Ramp, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["range-test", "--data_dir", str(ramp.corpus.path), "--low", "1", "--high", "0.1"]) == 2
    assert capsys.readouterr().err.startswith("error: rates from 1 to 0.1")
