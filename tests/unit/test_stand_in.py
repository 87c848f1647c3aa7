"""Generated features for real annotations, and `python -m model generate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.__main__ import main
from model.corpus.annotations import CorpusError
from model.corpus.data import CorpusConfig, load_corpus
from model.corpus.landmarks import first_difference
from model.corpus.stand_in import LAYOUTS, generate_like
from model.corpus.synthetic import GeneratedConfig, generate
from tests.corpora import SHARED, write_csv

SI5 = SHARED / "phoenix2014-si5" / "annotations"
HEADER = "id|folder|signer|annotation|num_frames"
ROWS = {
    "train.SI5": [
        ("t-0", "t-0/1/*.png", "Signer04", "__ON__ REGEN loc-NORD WIND", "61"),
        ("t-1", "t-1/1/*.png", "Signer01", "WIND REGEN REGEN", "40"),
        ("t-2", "t-2/1/*.png", "Signer04", "loc-SUED", "27"),
        ("t-3", "t-3/1/*.png", "Signer01", "SONNE", "33"),
    ],
    "dev.SI5": [("d-0", "d-0/1/*.png", "Signer05", "WIND SCHNEE", "50"), ("d-1", "-", "Signer05", "REGEN", "1")],
}
SMALL = GeneratedConfig(width=225)


def write_annotations(folder: Path, header: str = HEADER) -> Path:
    width = header.count("|") + 1
    for split, rows in ROWS.items():
        write_csv(folder / f"{split}.corpus.csv", [row[:width] for row in rows], header)
    return folder


def read(file: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    with np.load(file, allow_pickle=False) as stored:
        return stored["features"], stored["detection_masks"]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "annotations")


def test_every_sentence_has_features_of_its_length(annotations: Path, tmp_path: Path) -> None:
    where = generate_like(annotations, tmp_path / "out", SMALL, filter_name="phoenix-si5")
    assert where == tmp_path / "out" / "features"
    for split, rows in ROWS.items():
        for name, _, _, _, frames in rows:
            features, masks = read(where / split.removesuffix(".SI5") / f"{name}.npz")
            assert (features.shape, features.dtype) == ((int(frames), 225), np.float32)
            assert masks.shape == (int(frames), 543)
    for table in annotations.iterdir():
        assert (tmp_path / "out" / "annotations" / table.name).read_bytes() == table.read_bytes()
    corpus = load_corpus(CorpusConfig(path=tmp_path / "out", filter="phoenix-si5"))
    assert corpus.train.ids == ("t-0", "t-1", "t-3"), "t-2 has no gloss after the filter"
    assert corpus.vocabulary.glosses == ("<blank>", "REGEN", "WIND", "SONNE")
    assert set(corpus.dev.signers) == {"Signer05"}


def wrist_path(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The right wrist over time at twenty places of the sentence (20, 2), relative to the shoulder."""
    at = np.linspace(0, len(features) - 1, 20).round().astype(int)
    pose = features[:, :99].reshape(-1, 33, 3)[at]
    return pose[:, 16, :2] - pose[:, 12, :2]


def test_a_gloss_has_its_own_motion_whoever_signs_it_however_long(tmp_path: Path) -> None:
    words = ["REGEN", "WIND", "SONNE", "SCHNEE"]
    rows = [(f"{w}-{i}", "-", f"Signer{i % 2}", w, str(20 + 10 * i)) for w in words for i in range(6)]
    write_csv(tmp_path / "a" / "train.corpus.csv", rows, HEADER)
    still = SMALL.model_copy(update={"noise": 0.0})
    where = generate_like(tmp_path / "a", tmp_path / "out", still)
    paths = {w: [wrist_path(read(where / "train" / f"{w}-{i}.npz")[0]) for i in range(6)] for w in words}
    for word in words:
        for one in paths[word]:
            near = {w: np.mean([np.abs(one - path).mean() for path in paths[w] if path is not one]) for w in words}
            assert min(near, key=lambda w: near[w]) == word


def test_words_that_the_filter_drops_have_no_motion(annotations: Path, tmp_path: Path) -> None:
    still = SMALL.model_copy(update={"noise": 0.0})
    signed, resting = (
        wrist_path(read(generate_like(annotations, tmp_path / name, still, filter_name=name) / "train" / "t-2.npz")[0])
        for name in ("none", "phoenix-si5")
    )
    assert np.ptp(signed, axis=0).max() > 0.1
    assert np.ptp(resting, axis=0).max() < 0.01


def test_without_num_frames_a_sentence_is_as_long_as_signing_it_takes(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path / "annotations", "id|folder|signer|annotation")
    where = generate_like(annotations, tmp_path / "out", SMALL)
    four, three, one = (len(read(where / "train" / f"t-{i}.npz")[0]) for i in (0, 1, 3))
    assert 4 * 8 < four < 4 * 25
    assert one < three < four


def test_wide_features_follow_the_derivation_to_the_last_bit(annotations: Path, tmp_path: Path) -> None:
    where = generate_like(annotations, tmp_path / "wide", SMALL.model_copy(update={"width": 6516}))
    narrow = generate_like(annotations, tmp_path / "narrow", SMALL)
    features, masks = read(where / "train" / "t-0.npz")
    assert first_difference(features) is None
    small, small_masks = read(narrow / "train" / "t-0.npz")
    np.testing.assert_array_equal(features[:, :225], small)
    np.testing.assert_array_equal(masks, small_masks)


def test_an_interrupted_call_goes_on_and_comes_to_the_same(annotations: Path, tmp_path: Path) -> None:
    def interrupt(split: str, done: int, total: int) -> None:
        if (split, done) == ("train", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_like(annotations, tmp_path / "a", SMALL, progress=interrupt)
    kept = tmp_path / "a" / "features" / "train" / "t-0.npz"
    assert sorted(p.name for p in kept.parent.iterdir()) == ["t-0.npz", "t-1.npz"]
    before = kept.stat().st_mtime_ns
    generate_like(annotations, tmp_path / "a", SMALL)
    assert kept.stat().st_mtime_ns == before
    generate_like(annotations, tmp_path / "b", SMALL)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_limit_takes_the_first_sentences_and_can_be_raised(annotations: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate_like(annotations, out, SMALL, limit=1)
    corpus = load_corpus(CorpusConfig(path=out))
    assert (corpus.train.ids, corpus.dev.ids) == (("t-0",), ("d-0",))
    generate_like(annotations, out, SMALL)
    generate_like(annotations, tmp_path / "whole", SMALL)
    assert files(out) == files(tmp_path / "whole")


def test_a_folder_that_holds_something_else_is_left_alone(annotations: Path, tmp_path: Path) -> None:
    """Above all features that were extracted: `--layout phoenix` names the folders they lie in."""
    real = tmp_path / "project" / LAYOUTS["phoenix"].features / "train" / "t-0.npz"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"extracted")
    with pytest.raises(ValueError, match="holds other files"):
        generate_like(annotations, tmp_path / "project", SMALL, layout="phoenix")
    assert files(tmp_path / "project") == {real.relative_to(tmp_path / "project").as_posix(): b"extracted"}


def test_a_corpus_generated_otherwise_is_left_alone(annotations: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate_like(annotations, out, SMALL)
    before = files(out)
    with pytest.raises(ValueError, match=r"with other options \(seed\); delete"):
        generate_like(annotations, out, SMALL.model_copy(update={"seed": 1}))
    with pytest.raises(ValueError, match=r"options \(filter, layout\);"):
        generate_like(annotations, out, SMALL, filter_name="phoenix-si5", layout="phoenix")
    (annotations / "dev.SI5.corpus.csv").write_text(HEADER + "\nd-9|-|S|WIND|9\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"options \(annotations\);"):
        generate_like(annotations, out, SMALL)
    assert files(out) == before
    (out / "generated.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"generated\.json: does not say"):
        generate_like(annotations, out, SMALL)


@pytest.mark.parametrize("frames", ["0", "-3", "many", "12.5"])
def test_a_length_that_counts_no_frames_is_refused(annotations: Path, tmp_path: Path, frames: str) -> None:
    write_csv(annotations / "train.SI5.corpus.csv", [("t-7", "-", "S", "WIND", frames)], HEADER)
    with pytest.raises(CorpusError, match=rf"t-7 has num_frames '{frames}'"):
        generate_like(annotations, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


# The command


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Exit code, and what was said on either stream."""
    code = main(["generate", *map(str, words)])
    return code, "".join(capsys.readouterr())


def test_the_command_writes_the_ordinary_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert call(capsys, out, "--train", "5", "--dev", "2", "--glosses", "6", "--missing-hands", "0.3")[0] == 0
    config = GeneratedConfig(train=5, dev=2, glosses=6, missing_hands=0.3)
    same = generate(config, tmp_path)
    assert load_corpus(CorpusConfig(path=out)).hash == load_corpus(CorpusConfig(path=same)).hash
    before = files(out)
    (out / "features" / "train" / "train-00002.npz").unlink()
    assert call(capsys, out, "--train", "5", "--dev", "2", "--glosses", "6", "--missing-hands", "0.3")[0] == 0
    assert files(out) == before
    code, said = call(capsys, out, "--train", "6", "--dev", "2", "--glosses", "6")
    assert code == 2
    assert "other options (missing_hands, train);" in said


def test_the_command_says_what_it_wrote_and_what_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(tmp_path / "out"), "--train", "3", "--dev", "2", "--glosses", "3"]
    assert main([*words, "--json"]) == 0
    printed, said = capsys.readouterr()
    size = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*.npz"))
    expected = {"path": str(tmp_path / "out"), "sequences": {"train": 3, "dev": 2}, "written": 5, "bytes": size}
    assert json.loads(printed) == expected
    assert f"5 sequences, {size / 1e6:.1f} MB; 5 of them written in " in said
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**expected, "written": 0}
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("MB; all of them were there already\n")


def test_the_command_goes_by_annotations(annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--like", annotations, "--filter", "phoenix-si5", "--layout", "phoenix", "--limit", "3", "--noise", "0")
    code, said = call(capsys, tmp_path / "out", *words)
    assert code == 0, said
    where = tmp_path / "out" / "data" / "teacher_features" / "mediapipe_full"
    assert str(where) in said
    assert sorted(p.stem for p in where.rglob("*.npz")) == ["d-0", "d-1", "t-0", "t-1", "t-2"]
    settings = json.loads(json.loads((tmp_path / "out" / "generated.json").read_text(encoding="utf-8"))["identity"])
    assert (settings["noise"], settings["filter"]) == (0.0, "phoenix-si5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--like", "ANNOTATIONS", "--glosses", "40"], "--glosses follows from the annotations"),
        (["--limit", "3"], "name their folder with --like"),
        (["--like", "nowhere"], "nowhere: there is no such folder"),
        (["--like", "."], "holds no train*.csv"),
        (["--like", "ANNOTATIONS", "--filter", "phenix"], "use one of none, phoenix-si5"),
        (["--like", "ANNOTATIONS", "--limit", "0"], "limit is 0"),
        (["--train", "0"], "--train 0"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    annotations: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, err = call(capsys, "out", *(str(annotations) if word == "ANNOTATIONS" else word for word in words))
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# The layout of the release


@pytest.mark.skipif(not SI5.is_dir(), reason=f"needs the annotations in {SI5}")
def test_the_annotations_are_found_from_the_folder_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = GeneratedConfig(width=225)
    generate_like(SI5, tmp_path, narrow, filter_name="phoenix-si5", layout="phoenix", limit=8)
    monkeypatch.chdir(tmp_path)
    corpus = load_corpus(CorpusConfig(path=Path("data/teacher_features/mediapipe_full"), filter="phoenix-si5"))
    assert corpus.annotations == tmp_path / LAYOUTS["phoenix"].annotations
    assert (len(corpus.train), len(corpus.dev)) == (8, 8)
    assert corpus.train.lengths[:2].tolist() == [176, 116]
    assert corpus.train.references[0].split()[:3] == ["LIEB", "ZUSCHAUER", "ABEND"]
