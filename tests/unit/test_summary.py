"""What a sweep came to, in words, in JSON and as a command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.__main__ import parser
from model.corpus.data import CorpusConfig
from model.types import TrainingConfig
from sweeps.records import DecisionRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import TrialState
from sweeps.summary import (
    Conclusions,
    best_trial,
    conclusions,
    config_of,
    in_shells,
    powershell_line,
    result,
    sentence_about,
    train_command,
)
from tests.rows import decision_row, epoch_row, sweep_row, trial_row

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x"})
CORPUS = CorpusConfig(path=Path("/data/x"))
ALARM = {
    "cause": "rates_too_low",
    "sentence": "None of 8 trials took off.",
    "advice": "Try higher rates: --accept-proposal.",
    "numbers": {},
    "trials": [0, 1],
    "proposal": {"low": 1e-3, "high": 3e-2},
}
TEST = {
    "sentences": ["It used its input at 1.0e-03.", "It diverged at 3.0e-02."],
    "low": 1e-4,
    "looks": [{"rate": 1.0}],
}
FOUND = {"constant_wer": 0.92, "constant_sentence": "A", "alarm": ALARM, "range_test": TEST}
"""Facts of a sweep that alarmed and had a range test."""


def found_in(trials: list[TrialRow], decisions: Sequence[DecisionRow] = ()) -> Conclusions:
    """What a sweep of these trials came to, each with 12 epochs at its best WER."""
    epochs = {t.id: [epoch_row(n, t.best_wer) for n in range(1, 13)] for t in trials if t.best_wer is not None}
    return conclusions(sweep_row(), trials, decisions, SPEC, epochs)


def parsed(command: str) -> tuple[Any, TrainingConfig]:
    """What `python -m model` makes of the command, typed into a POSIX shell."""
    words = shlex.split(command)
    assert words[1:4] == ["-m", "model", "train"]
    arguments = parser().parse_args(words[3:])
    return arguments, TrainingConfig.model_validate({n: getattr(arguments, n) for n in TrainingConfig.model_fields})


@pytest.fixture(autouse=True)
def posix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.summary.sys.platform", "linux")


configs = st.builds(
    TrainingConfig,
    epochs=st.integers(1, 500),
    learning_rate=st.floats(5e-324, 10),
    weight_decay=st.floats(0, 1e300),
    clip_norm=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    warmup_start_factor=st.floats(0, 1, exclude_min=True),
    warmup_epochs=st.floats(0, 100),
    dropout=st.floats(0, 1, exclude_max=True),
    schedule=st.sampled_from(["cosine_restarts", "plateau", "step", "constant"]),
    patience=st.integers(1, 100),
    patience_starts=st.sampled_from(["takeoff", "epoch1"]),
    seed=st.integers(0, 2**32 - 1),
    data_seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 8),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
)


@settings(max_examples=50)
@given(configs)
def test_the_command_is_the_config_to_the_bit(config: TrainingConfig) -> None:
    assert parsed(train_command(config, CORPUS, Path("out")))[1] == config


def test_what_decides_the_losses_stands_there_even_at_its_default() -> None:
    command = train_command(TrainingConfig(), CORPUS, Path("out"))
    assert command.endswith(
        "--data_dir /data/x --seed 0 --data_seed 0 --threads 1 --epochs 24 --batch_size 4 --learning_rate 0.0005 "
        "--warmup_start_factor 1.0 --dropout 0.1 --patience 30 --output_dir out"
    )


ODD = ["with space", "it's", 'say "hi"', "$HOME", "back\\slash", "*?;&|<>()", "ü 手", "#x", "tab\tx", "-dash"]


@pytest.mark.parametrize("name", ODD)
def test_odd_paths_survive_the_shell(name: str) -> None:
    folder = Path("/data") / name
    corpus = CorpusConfig(
        path=folder,
        annotations=folder / "csv",
        vocabulary=folder / "v.txt",
        filter="phoenix-si5",
        modalities={"pose": 99, "hands": 126},
    )
    arguments, _ = parsed(train_command(TrainingConfig(), corpus, Path(f"out {name}")))
    assert (arguments.data_dir, arguments.annotations, arguments.vocabulary) == (
        folder,
        folder / "csv",
        folder / "v.txt",
    )
    assert (arguments.filter, arguments.modalities) == ("phoenix-si5", "pose=99,hands=126")
    assert arguments.output_dir == Path(f"out {name}")


def powershell_words(line: str) -> list[str]:
    """The words PowerShell finds in a line of plain and single-quoted ones."""
    words = re.findall(r"(?:'(?:[^']|'')*'|[^\s'])+", line)
    return [word[1:-1].replace("''", "'") if word.startswith("'") else word for word in words]


def test_on_windows_it_is_a_line_for_powershell() -> None:
    words = [
        "C:\\Program Files\\python.exe",
        "-m",
        "model",
        "--data_dir",
        "C:\\it's $mine",
        "pose=99,hands=126",
        "1e-05",
    ]
    line = powershell_line(words)
    assert line == "& 'C:\\Program Files\\python.exe' -m model --data_dir 'C:\\it''s $mine' 'pose=99,hands=126' 1e-05"
    assert powershell_words(line) == ["&", *words]
    assert powershell_line(["python", "-m", "model", "C:\\data\\x", "ü"]) == "python -m model C:\\data\\x ü"


@settings(max_examples=100)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1))
def test_no_word_breaks_out_of_powershells_quotes(words: list[str]) -> None:
    line = powershell_line(["python", *words])
    assert powershell_words(line) == ["python", *words]
    bare = re.sub(r"'(?:[^']|'')*'", "", line)
    assert not set(bare) & set('$`;|&<>(){}@,"#*?%!')


def test_a_line_that_shells_read_alike_stands_once() -> None:
    assert in_shells("/opt/venv/bin/python -m model train --seed 1") == ["/opt/venv/bin/python -m model train --seed 1"]
    quoted = "/opt/venv/bin/python -m model train --data_dir '/data/my corpus'"
    assert in_shells(quoted) == [quoted]
    comma = "python -m model train --modalities a=1,b=2"
    assert in_shells(comma) == [comma, "python -m model train --modalities 'a=1,b=2'"]


def test_the_interpreter_is_named_in_full_where_no_environment_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(found: str | None) -> list[str]:
        monkeypatch.setattr(shutil, "which", lambda name, path=None: None if path else found)
        return shlex.split(train_command(TrainingConfig(), CORPUS, Path("out")))

    assert words(None)[0] == sys.executable
    assert words("/elsewhere/python")[0] == sys.executable
    assert words(str(Path(sys.executable).parent / "python"))[0] == "python"


# as JSON


def some_trials() -> list[TrialRow]:
    return [
        trial_row(0, TrialState.PRUNED, name="original", overrides={"schedule": "constant"}, best_wer=0.97, epochs=5,
                  verdict="never_learned", reason="Not learning: ..."),
        trial_row(1, TrialState.COMPLETE, name="fixed", best_wer=0.25, best_epoch=9, epochs=10, verdict="learned"),
        trial_row(2, TrialState.COMPLETE, best_wer=0.25, best_epoch=7, epochs=10, verdict="learned"),
        trial_row(3, TrialState.FAILED, reason="ValueError: a fault"),
        trial_row(4, TrialState.WAITING, hyperparameters=None),
    ]  # fmt: skip


def test_the_result_is_strict_json_with_all_that_was_promised() -> None:
    what = result(sweep_row(), some_trials(), SPEC, CORPUS, "sqlite:///m.db", "sweeps ui s", found_in(some_trials()))
    assert json.loads(json.dumps(what, allow_nan=False)) == what
    assert what.keys() >= {"sweep", "tracking_uri", "ui_command", "seconds", "best", "counts", "trials"}
    assert what["seconds"] == 12.3
    assert what["counts"] == {
        "WAITING": 1, "RUNNING": 0, "COMPLETE": 2, "PRUNED": 1, "FAILED": 1, "CANCELLED": 0,
    }  # fmt: skip
    assert what["best"].keys() == {"number", "name", "wer", "hyperparameters", "command"}
    assert (what["best"]["number"], what["best"]["name"], what["best"]["wer"]) == (1, "fixed", 0.25)
    assert parsed(what["best"]["command"])[1] == config_of(SPEC, some_trials()[1])
    assert [t["best_wer"] for t in what["trials"]] == [0.97, 0.25, 0.25, None, None]
    promised = {"number", "name", "trial_state", "verdict", "reason", "best_wer", "epochs", "hyperparameters"}
    assert all(t.keys() >= promised for t in what["trials"])
    assert (what["alarm"], what["range_test"]) == (None, None)
    assert [lesson["parameter"] for lesson in what["learned"]] == list(SPEC.space.searched())
    assert (what["audit"]["condemned"], what["audit"]["error_rate"]) == (0, None)


def test_the_result_says_what_was_condemned_audited_and_found() -> None:
    trials = [
        trial_row(0, TrialState.PRUNED, rule="too_slow", verdict="too_slow", best_wer=0.7, epochs=6, reason="Slow."),
        trial_row(1, TrialState.COMPLETE, rule="epochs", verdict="learned", best_wer=0.2, epochs=24),
        trial_row(2, TrialState.COMPLETE, rule="patience", verdict="learned", best_wer=0.5, epochs=20),
    ]
    decisions = [decision_row(0, counterfactual=""), decision_row(1, action="audited")]
    what = result(sweep_row(facts=FOUND), trials, SPEC, CORPUS, "", "", found_in(trials, decisions))
    assert json.loads(json.dumps(what, allow_nan=False)) == what
    assert [t["rule"] for t in what["trials"]] == ["too_slow", "epochs", "patience"]
    assert [t["counterfactual"] for t in what["trials"]] == [None, "A WER of 50.0% would have kept it.", None]
    assert [t["audited"] for t in what["trials"]] == [False, True, False]
    assert what["alarm"] == ALARM
    assert what["range_test"] == {"sentences": TEST["sentences"], "low": 1e-4}, "its curve is in a file of its own"
    audit = what["audit"]
    assert (audit["condemned"], audit["audited"], audit["finished"]) == (2, 1, 1)
    assert (audit["winners_killed"], audit["error_rate"], audit["epochs_saved"]) == ([1], 1.0, SPEC.trainer.epochs - 6)


def test_a_sweep_without_any_wer_has_no_best() -> None:
    what = result(sweep_row(), [trial_row(0)], SPEC, CORPUS, "", "", found_in([trial_row(0)]))
    assert what["best"] is None
    assert json.dumps(what, allow_nan=False)
    assert best_trial([]) is None


def test_a_trial_in_a_sentence() -> None:
    assert sentence_about(trial_row(0, TrialState.PRUNED, reason="Because.")) == "Because."
    assert sentence_about(trial_row(0, TrialState.RUNNING)) == "running after 0 epochs, no epoch yet"
    assert sentence_about(trial_row(0, epochs=3, best_wer=0.5)) == "running after 3 epochs, best WER 50.0%"


# as Markdown
