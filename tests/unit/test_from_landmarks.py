"""`python -m model from-landmarks`, as a person calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.__main__ import main
from model.corpus import landmarks
from model.corpus.data import CorpusConfig, load_corpus
from tests.corpora import SHARED, write_csv

CLIPS = SHARED / "holistic_clips"


def write_landmarks(file: Path, frames: int = 6, *, confidence: bool = True, seed: int = 0) -> Path:
    """An npz of landmarks in pixels; the left hand is lost in the first half of the frames."""
    file.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).uniform(10, 200, (frames, 543, 4)).astype(np.float32)
    x[: frames // 2, 501:522] = 0
    sure = x.any(axis=2).astype(np.float32)
    np.savez(file, landmarks=x, **({"confidence": sure} if confidence else {}))
    return file


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for i in range(3):
        write_landmarks(tmp_path / "clips" / f"clip-{i}.npz", seed=i)
    return tmp_path / "clips"


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = main(["from-landmarks", *map(str, words)])
    return code, *capsys.readouterr()


def result(out: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def test_a_folder_becomes_a_split(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "corpus" / "features" / "train"
    code, printed, said = call(capsys, clips, out, "--json")
    assert code == 0
    assert "3 sequences written" in said
    assert "left hand in 50.0%" in said
    assert "right hand in 100.0%" in said
    assert [s["outcome"] for s in result(printed)["sequences"]] == ["written"] * 3
    assert sorted(p.name for p in out.iterdir()) == [f"clip-{i}.npz" for i in range(3)], "and nothing aside"
    with np.load(clips / "clip-1.npz") as given, np.load(out / "clip-1.npz") as made:
        features, masks = landmarks.from_holistic(given["landmarks"], given["confidence"])
        np.testing.assert_array_equal(made["features"], features)
        np.testing.assert_array_equal(made["detection_masks"], masks)


def test_run_again_it_goes_on(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    call(capsys, clips, out)
    (out / "clip-1.npz").unlink()
    before = (out / "clip-0.npz").stat().st_mtime_ns
    code, said, _ = call(capsys, clips, out)
    assert code == 0
    assert "1 sequences written, 2 were there already" in said
    assert (out / "clip-0.npz").stat().st_mtime_ns == before


def test_a_file_that_says_something_else_is_not_replaced_unasked(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call(capsys, clips, out)
    write_landmarks(clips / "clip-1.npz", seed=9)
    old = (out / "clip-1.npz").read_bytes()
    code, _, err = call(capsys, clips, out)
    assert code == 2
    assert "clip-1.npz" in err
    assert "--force" in err
    assert (out / "clip-1.npz").read_bytes() == old
    assert call(capsys, clips, out, "--force")[0] == 0
    assert (out / "clip-1.npz").read_bytes() != old


def test_a_torn_output_is_not_taken_for_a_whole_one(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call(capsys, clips, out)
    whole = (out / "clip-2.npz").read_bytes()
    (out / "clip-2.npz").write_bytes(whole[: len(whole) // 2])
    assert call(capsys, clips, out)[0] == 2
    assert call(capsys, clips, out, "--force")[0] == 0
    assert (out / "clip-2.npz").read_bytes() == whole


def test_an_interrupted_write_leaves_nothing_behind(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(opened: Any, **arrays: Any) -> None:
        opened.write(b"PK half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    code, _, err = call(capsys, clips, tmp_path / "out")
    assert code == 130
    assert "goes on" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_one_bad_file_does_not_keep_the_others_back(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(clips / "clip-0.npz", landmarks=np.zeros((4, 500, 3)))
    np.savez(clips / "clip-3.npz", points=np.zeros((4, 543, 3)))
    np.savez(clips / "clip-4.npz", landmarks=np.full((4, 543, 3), "x"))
    np.savez(clips / "clip-5.npz", landmarks=np.array([{}], dtype=object))
    (clips / "clip-6.npz").write_bytes(b"PK and then nothing")
    code, printed, err = call(capsys, clips, tmp_path / "out", "--json")
    assert code == 2
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == ["clip-1", "clip-2"]
    assert "2 sequences written, 0 were there already, 5 faults" in err
    lines = err.splitlines()[:5]
    assert [line.startswith("error: ") for line in lines] == [True] * 5
    for line, words in zip(
        lines,
        ["(4, 500, 3); they must be (frames, 543", "no array 'landmarks' (it has points)", "must be numbers",
         "clip-5.npz: cannot be read as npz (", "npz: cannot be read as npz (it does not begin as one); write it"],
        strict=True,
    ):  # fmt: skip
        assert words in line
    assert [f"error: {fault}" for fault in result(printed)["faults"]] == lines


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_file_in_which_nothing_is_detected_is_named(
    value: float, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(clips / "clip-1.npz", landmarks=np.full((4, 543, 3), value))
    for outcome in ("written", "unchanged"):
        code, printed, err = call(capsys, clips, tmp_path / "out", "--json")
        assert code == 0
        (text,) = result(printed)["warnings"]
        assert text.startswith(f"{clips / 'clip-1.npz'}: no landmark is detected in any frame")
        assert err.splitlines()[0] == f"warning: {text}"
        assert "1 warnings" in err
        assert result(printed)["sequences"][1]["outcome"] == outcome
    assert call(capsys, clips, tmp_path / "out")[1].startswith(f"{tmp_path / 'out'}: 0 sequences written")


def test_it_says_how_far_it_is(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, clips, tmp_path / "out")[2] == "", "not for what takes no time"
    monkeypatch.setattr("model.commands.progress.INTERVAL_SECONDS", 0.0)
    assert call(capsys, clips, tmp_path / "out")[2].splitlines() == [f"landmarks: {i} of 3" for i in (1, 2, 3)]


def test_without_confidence_zeros_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_landmarks(tmp_path / "clip.npz", confidence=False)
    code, said, _ = call(capsys, clip, tmp_path / "out")
    assert code == 0
    assert "left hand in 50.0%" in said
    assert "confidence" in said


def test_inputs_that_cannot_be_meant_are_refused(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no landmarks", encoding="utf-8")
    twin = write_landmarks(tmp_path / "other" / "clip-0.npz", seed=5)
    for words, said in (
        ((tmp_path / "nowhere", tmp_path / "out"), "nowhere: is neither"),
        ((tmp_path / "notes.txt", tmp_path / "out"), "notes.txt: is neither"),
        ((tmp_path / "empty", tmp_path / "out"), "holds no npz"),
        ((clips, twin, tmp_path / "out"), "has the name of"),
        ((clips, clips), "another folder"),
    ):
        code, _, err = call(capsys, *words)
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    assert call(capsys, clips, clips / "clip-0.npz", tmp_path / "out")[0] == 0, "one file named twice is one file"


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"needs the real clips in {CLIPS}")
def test_the_real_clips_become_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(CLIPS.glob("*.npz"))
    corpus = tmp_path / "corpus"
    code, said, _ = call(capsys, CLIPS, corpus / "features" / "train", "--json")
    assert code == 0
    frames, left, right = [], [], []
    for sequence in result(said)["sequences"]:
        frames.append(sequence["frames"])
        left.append(sequence["detected"]["left hand"])
        right.append(sequence["detected"]["right hand"])
        assert sequence["detected"]["pose"] == sequence["detected"]["face"] == sequence["frames"]
    assert (frames, left, right) == ([43, 86], [40, 37], [43, 42])
    for file in files:
        with np.load(corpus / "features" / "train" / file.name) as made:
            assert landmarks.first_difference(made["features"]) is None
    (corpus / "features" / "dev").mkdir()
    shutil.copy(corpus / "features" / "train" / files[1].name, corpus / "features" / "dev")
    rows = [(file.stem, file.name, f"Signer{i}", "HALLO WETTER") for i, file in enumerate(files)]
    write_csv(corpus / "annotations" / "train.corpus.csv", rows)
    write_csv(corpus / "annotations" / "dev.corpus.csv", rows[1:])
    loaded = load_corpus(CorpusConfig(path=corpus))
    assert loaded.width == 6516
    assert loaded.facts["missing"]["left hand"] == pytest.approx(1 - 77 / 129)
    assert loaded.facts["missing"]["right hand"] == pytest.approx(1 - 85 / 129)
    assert all(np.isfinite(loaded.train.features(i)).all() for i in range(2))
