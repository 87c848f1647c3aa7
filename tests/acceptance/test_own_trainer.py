"""A sweep of a trainer of one's own, from the command to MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.commands import check_everything_arrived, curves, read, run, runs, write_spec

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_trainer.py"

MINE = """
from own_trainer import WindowTrainer

class Mine(WindowTrainer):
    def train_epoch(self, should_stop):
        if self.config.dropout == 0.5:
            raise RuntimeError("no dropout of 0.5, please")
        report = super().train_epoch(should_stop)
        report.metrics["train/hidden units"] = self.config.hidden
        return report
"""


def lab(folder: Path) -> Path:
    """A trainer that imports its neighbour, the example, in a folder of their own."""
    folder.mkdir(parents=True)
    (folder / EXAMPLE.name).write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    return folder / "mine.py"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("nowhere.py:Mine", "there is no file {folder}nowhere.py: correct the path\n"),
        ("lab/mine.py:Yours", "has no Yours"),
        ("lab/mine.py", "write FILE.py:NAME or package.module:NAME"),
    ],
)
def test_a_trainer_that_cannot_be_had_gets_one_line(
    reference: str,
    words: str,
    tried: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab(tmp_path / "lab")
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    code, _, err = tried("run", write_spec(tmp_path), "--trainer", reference, "--home", home)
    lines = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert code == 2
    assert len(lines) == 1
    assert words.format(folder=f"{tmp_path}{os.sep}") in err
    assert not home.exists()


@pytest.mark.slow
def test_a_sweep_of_ones_own_trainer(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "work"
    mine = lab(folder / "my lab")
    refused = {"dropout": 0.5, "learning_rate": 1e-3}
    spec = write_spec(folder, first_trials={"refused": refused}, trainer={"epochs": 3}, budget={"trials": 4})
    own = ("--trainer", f"{mine.relative_to(folder)}:Mine")

    result = run(home, folder, "run", spec, *own, "--json").result()
    assert result["state"] == "COMPLETE"
    assert result["counts"]["FAILED"] == 1
    assert result["counts"]["COMPLETE"] + result["counts"]["PRUNED"] == 3
    (failed,) = (trial for trial in result["trials"] if trial["trial_state"] == "FAILED")
    assert failed["name"] == "refused"
    assert failed["reason"].startswith("RuntimeError: no dropout of 0.5, please")
    assert result["best"]["wer"] < 2
    assert result["best"]["command"] is None

    check_everything_arrived(home)
    for number, run_ in runs(home).items():
        assert run_.data.tags["trainer"] == "mine.py:Mine"
        if number != failed["number"]:
            assert run_.data.metrics["train/hidden units"] == 16
            assert run_.data.metrics["dev/loss"] > 0
    before = curves(home)

    without = run(home, folder, "run", spec, "--json", code=2)
    assert "trained by mine.py:Mine, not by the built-in trainer: name mine.py:Mine with --trainer" in without.words()
    assert "Traceback" not in without.words()
    assert curves(home) == before

    again = run(home, folder, "run", spec, *own, "--trials", "5", "--json").result()
    assert again["state"] == "COMPLETE"
    assert len(again["trials"]) == 5
    assert {number: curve for number, curve in curves(home).items() if number in before} == before
    assert read(home)[0].facts["trainer"] == "mine.py:Mine"
