"""Recorded corpora through every command of `python -m model`, as a person would give them, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import SHARED, write_csv

pytestmark = pytest.mark.slow


def command(*words: object, codes: tuple[int, ...] = (0,)) -> str:
    """What `python -m model ...` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "model", *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=280,
    )
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def last(text: str) -> dict[str, Any]:
    return json.loads(text.splitlines()[-1])  # type: ignore[no-any-return]


def an4(folder: Path) -> Path:
    return SHARED / "an4"


def asl(folder: Path) -> Path:
    script = SHARED / "asl_signs" / "make_sentences.py"
    subprocess.run([sys.executable, script, folder / "asl"], check=True, capture_output=True)
    return folder / "asl"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded corpora are not beside the project")
@pytest.mark.parametrize("make", [an4, asl])
def test_a_recorded_corpus_is_packed_checked_trained_diagnosed_and_memorised(make: Any, tmp_path: Path) -> None:
    corpus, packed, run = make(tmp_path), tmp_path / "packed", tmp_path / "run"
    pack = last(command("pack", corpus, packed, "--json"))
    checks = [json.loads(command("check", place, "--json")) for place in (corpus, packed)]
    assert [check["facts"]["hash"] for check in checks] == [pack["hash"]] * 2
    assert checks[0]["findings"] == checks[1]["findings"]
    assert {finding["severity"] for finding in checks[0]["findings"]} <= {"info"}
    options = ["--batch_size", 8, "--learning_rate", "2e-3", "--epochs", 2]
    result = last(command("train", "--data_dir", packed, "--output_dir", run, *options, "--json"))
    assert result["epochs"] == 2
    assert [f["code"] for f in result["findings"] if f["severity"] == "fatal"] == []
    page = tmp_path / "page.html"
    diagnosis = json.loads(command("diagnose", run, "--data", packed, "--json", "--html", page))
    assert "untrained" not in {finding["code"] for finding in diagnosis["findings"]}
    assert "</html>" in page.read_text(encoding="utf-8")
    memorised = json.loads(command("overfit", "--data_dir", corpus, "--json"))
    assert [finding["code"] for finding in memorised["findings"]] == ["memorised"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded clips are not beside the project")
def test_two_holistic_clips_become_a_corpus_that_the_student_trains_on(tmp_path: Path) -> None:
    corpus, clips = tmp_path / "corpus", sorted((SHARED / "holistic_clips").glob("*.npz"))
    assert len(clips) == 2
    for split in ("train", "dev"):
        made = last(command("from-landmarks", *clips, corpus / "features" / split, "--json"))
        assert len(made["sequences"]) == 2
        rows = [
            (clip.stem, "-", f"Signer{i}", text) for i, (clip, text) in enumerate(zip(clips, ("A B", "C"), strict=True))
        ]
        write_csv(corpus / "annotations" / f"{split}.corpus.csv", rows)
    pack = last(command("pack", corpus, tmp_path / "packed", "--json"))
    assert (pack["width"], pack["derived"]) == (6516, True)
    check = json.loads(command("check", tmp_path / "packed", "--json"))
    assert {finding["code"] for finding in check["findings"] if finding["severity"] == "fatal"} == set()
    result = last(
        command("train", "--data_dir", tmp_path / "packed", "--output_dir", tmp_path / "run", "--epochs", 2, "--json")
    )
    assert result["epochs"] == 2
