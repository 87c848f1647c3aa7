from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.__main__ import main
from tests.corpora import write_corpus


def test_a_report_for_a_person(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(tmp_path / "signs", width=225)
    assert main(["check", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "info: shared_signers"
    assert "  vocabulary       4 classes with blank, from train" in lines
    assert "         1  2  4  8  16  32" in lines
    assert "  train, left hand   100.0%    0.0%      0.0%      Signer0 100%, Signer1 100%" in lines
    assert lines[-1].startswith(f"{folder}: This corpus can be trained on: nothing is wrong with it")
    assert max(map(len, lines[:-1])) <= 120, "it fits a terminal"


def test_a_fatal_finding_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(tmp_path)
    (folder / "features" / "train" / "train-2.npz").unlink()
    assert main(["check", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fatal: coverage", "worst first"
    assert lines[-1].endswith("Training on this corpus is impossible or pointless: coverage.")


def test_the_stride_of_the_model_decides_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(tmp_path)
    assert main(["check", str(folder), "--stride", "32", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    found = next(finding for finding in findings if finding["code"] == "infeasible_targets")
    assert (found["severity"], found["number"], found["threshold"]) == ("fatal", pytest.approx(5 / 6), 0.01)


def test_json_is_one_object_alone_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(tmp_path / "signs")
    assert main(["check", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    whole = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert whole.keys() == {"findings", "facts"}
    keys = ["code", "severity", "number", "threshold", "evidence", "advice", "would_change"]
    assert [*whole["findings"][0]] == keys
    assert whole["facts"]["name"] == "signs"
    assert whole["facts"]["splits"]["train"]["fit"]["infeasible_at"]["4"] == 0
    assert whole["facts"]["floors"]["constant_loss"] > 0


def test_what_is_no_corpus_is_said_in_the_same_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "nowhere"), "--json"]) == 1
    whole = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in whole["findings"]] == ["not_a_corpus"]
    assert whole["facts"] == {}
    assert main(["check", str(tmp_path / "nowhere")]) == 1
    assert "there is no such folder" in capsys.readouterr().out


def test_the_page_is_written_where_it_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = write_corpus(tmp_path / "signs"), tmp_path / "page.html"
    assert main(["check", str(folder), "--html", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == f"page: {file}\n"
    assert "few_dev_sentences" in out, "the report is printed as well"
    html = file.read_text(encoding="utf-8")
    assert "<title>Check of signs</title>" in html
    assert html.count("<svg") == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stride", "0"], "error: stride is 0"),
        (["--stride", "four"], "invalid int value: 'four'"),
        (["--filter", "some"], "'some' is no filter"),
        (["--html", "no/such/folder/page.html"], "there is no folder"),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_a_usage_error_is_exit_code_two_and_one_line(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: int | str | None = main(["check", str(write_corpus(tmp_path)), *options])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "train", "diagnose", "overfit", "pack", "generate", "from-landmarks"])
def test_help_says_each_default_once_and_none_where_there_is_none(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert not re.search(r"default: (None|False|==SUPPRESS==)|default:[^()]*\) \(default", said)
    assert ("(default: 4)" in said) == (command in ("check", "train", "overfit", "generate"))
    assert ("--no_normalise" in said) == (command in ("check", "train", "diagnose", "overfit"))


def test_checking_needs_no_torch() -> None:
    seen = "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    code = f"import sys, model.commands.check, model.corpus.check; {seen}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
