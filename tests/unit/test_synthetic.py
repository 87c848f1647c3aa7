from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.corpus.landmarks import first_difference
from model.corpus.synthetic import GeneratedConfig, generate

SMALL = GeneratedConfig(train=12, dev=4, glosses=8)


def load(folder: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=folder))


def read(folder: Path, name: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    with np.load(folder / "features" / name.split("-")[0] / f"{name}.npz", allow_pickle=False) as stored:
        return stored["features"], stored["detection_masks"]


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load(generate(GeneratedConfig(), tmp_path_factory.mktemp("default")))


def test_the_default_is_a_sound_corpus(default: Corpus) -> None:
    assert (len(default.train), len(default.dev), default.test) == (240, 100, None)
    assert (default.width, len(default.vocabulary)) == (225, 41)
    for split in (default.train, default.dev):
        assert 60 <= split.lengths.mean() <= 95
        assert split.fits(4).all()
    facts = default.facts["splits"]
    assert facts["dev"]["oov_words"] == 0
    assert set(default.dev.signers).isdisjoint(default.train.signers)
    assert len(set(default.train.signers)) == 4
    assert 0.3 < default.facts["missing"]["left hand"] < 0.6, "it rests in half of the glosses"
    assert 0.08 < default.facts["missing"]["right hand"] < 0.3
    assert len(default.facts["constant_dimensions"]) == 2, "depth of both wrists, as in MediaPipe"


def test_sentences_are_zipfian_with_rare_repeats(default: Corpus) -> None:
    lengths = [len(t) for t in default.train.targets]
    assert (min(lengths), max(lengths)) == (2, 8)
    words = np.concatenate(default.train.targets)
    counts = np.sort(np.bincount(words))[::-1]
    assert counts[:10].sum() > 0.4 * len(words)
    repeats = sum(int((t[1:] == t[:-1]).sum()) for t in default.train.targets)
    assert 0 < repeats < 0.03 * len(words)


def test_landmarks_lie_in_the_picture_and_hands_go_missing_in_runs(tmp_path: Path) -> None:
    folder = generate(SMALL, tmp_path)
    runs, lost = 0, 0
    for i in range(12):
        x, mask = read(folder, f"train-{i:05d}")
        assert x.dtype == np.float32
        assert mask.dtype == np.bool_
        assert mask.shape == (len(x), 543)
        upper = x[:, :99].reshape(-1, 33, 3)[:, :23, :2]
        assert upper.min() > -0.3
        assert upper.max() < 1.3
        assert mask[:, :501].all()
        for hand, seen in ((x[:, 99:162], mask[:, 501:522]), (x[:, 162:225], mask[:, 522:543])):
            assert (seen.any(axis=1) == seen.all(axis=1)).all()
            assert ((hand != 0).any(axis=1) == seen[:, 0]).all()
            away = ~seen[:, 0]
            lost += int(away.sum())
            runs += int((np.diff(away.astype(int), prepend=0) == 1).sum())
    assert lost / runs > 3


def test_movement_is_smooth_without_noise(tmp_path: Path) -> None:
    folder = generate(SMALL.model_copy(update={"noise": 0.0}), tmp_path)
    for i in range(12):
        wrists = read(folder, f"train-{i:05d}")[0][:, 45:51].astype(np.float64)
        speed, jerkiness = (np.abs(np.diff(wrists, n=n, axis=0)).mean() for n in (1, 2))
        assert jerkiness < 0.8 * speed, "independent noise would give 1.7 times"
        assert np.abs(np.diff(wrists, axis=0)).max() < 0.4, "no jump between glosses"
        assert np.ptp(wrists[:, 3:5], axis=0).max() > 0.1, "the signing hand moves"


def test_no_hand_is_missing_where_none_shall_be(tmp_path: Path) -> None:
    corpus = load(generate(SMALL.model_copy(update={"missing_hands": 0.0}), tmp_path))
    assert corpus.facts["missing"] == {}


def test_the_wide_corpus_holds_the_narrow_one(tmp_path: Path) -> None:
    narrow = generate(SMALL, tmp_path)
    wide = generate(SMALL.model_copy(update={"width": 6516}), tmp_path)
    x, mask = read(wide, "train-00003")
    small, small_mask = read(narrow, "train-00003")
    assert x.shape == (len(small), 6516)
    np.testing.assert_array_equal(x[:, :225], small)
    np.testing.assert_array_equal(mask, small_mask)
    for i in range(12):
        assert first_difference(read(wide, f"train-{i:05d}")[0]) is None, "velocity and so on follow to the last bit"
    assert [m.name for m in load(wide).modalities] == ["pose", "hands", "face", "temporal"]


def test_everything_follows_from_the_seed(tmp_path: Path) -> None:
    first = load(generate(SMALL, tmp_path / "a"))
    assert load(generate(SMALL, tmp_path / "b")).hash == first.hash
    assert load(generate(SMALL.model_copy(update={"seed": 1}), tmp_path / "a")).hash != first.hash


def test_the_default_is_what_it_always_was(default: Corpus) -> None:
    """Results on it stay comparable. Machines round differently in the last bits, hence no digest."""
    x, mask = read(default.folder.parent, "train-00000")
    assert (x.shape, int(mask.sum())) == ((120, 225), 62934)
    np.testing.assert_allclose(x[[0, 10, 30], [0, 48, 120]], [0.5091005, 0.4341627, 0.57819265], rtol=1e-6)
    assert read(default.folder.parent, "dev-00099")[0].sum(dtype=np.float64) == pytest.approx(9907.922516, rel=1e-6)
    assert default.dev.references[-1].split()[:3] == ["GLOSS-21", "GLOSS-04", "GLOSS-11"]


def test_another_size_keeps_the_sentences(tmp_path: Path) -> None:
    small = generate(SMALL, tmp_path)
    large = generate(SMALL.model_copy(update={"train": 15, "test": 2}), tmp_path)
    for name in ("train-00011", "dev-00003"):
        np.testing.assert_array_equal(read(small, name)[0], read(large, name)[0])
    corpus = load(large)
    assert corpus.test is not None
    assert set(corpus.test.signers).isdisjoint({*corpus.train.signers, *corpus.dev.signers})


def test_written_once_and_reused(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    folder = generate(SMALL, tmp_path, lambda *step: steps.append(step))
    assert steps == [("train", i, 12) for i in range(1, 13)] + [("dev", i, 4) for i in range(1, 5)]
    steps.clear()
    assert generate(SMALL, tmp_path, lambda *step: steps.append(step)) == folder
    assert not steps
    assert list(tmp_path.iterdir()) == [folder], "nothing is left aside"


def test_a_torn_corpus_is_made_again(tmp_path: Path) -> None:
    folder = generate(SMALL, tmp_path)
    expected = load(folder).hash
    sequence = folder / "features" / "train" / "train-00002.npz"

    def truncate() -> None:
        sequence.write_bytes(sequence.read_bytes()[:-50])

    for tear in (sequence.unlink, truncate, (folder / "generated.json").unlink,
                 lambda: (folder / "generated.json").write_text("{}", encoding="utf-8")):  # fmt: skip
        tear()
        assert generate(SMALL, tmp_path) == folder
        assert load(folder).hash == expected
        assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupted_write_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    def interrupt(split: str, done: int, total: int) -> None:
        if split == "dev":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        folders = set(pool.map(generate, [SMALL] * 3, [tmp_path] * 3))
    assert list(tmp_path.iterdir()) == [*folders]
    assert len(load(folders.pop()).train) == 12


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"dev": 0}, {"glosses": 1}, {"width": 99}, {"missing_hands": 0.9}, {"trian": 5}]
)
def test_a_wrong_config_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GeneratedConfig.model_validate(wrong)
