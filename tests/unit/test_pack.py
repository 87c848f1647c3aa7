from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import model.corpus.pack
from model.__main__ import main
from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus, CorpusConfig, Split, load_corpus
from model.corpus.features import Modality, read_recording
from model.corpus.landmarks import with_motion
from model.corpus.pack import pack, verify
from model.corpus.packed import FEATURES, Packed, open_packed
from model.corpus.synthetic import GeneratedConfig, generate
from model.corpus.vocabulary import Vocabulary
from tests.corpora import SHARED, write_corpus, write_csv, write_sequence

ROOT = Path(__file__).parents[2]
SMALL = GeneratedConfig(train=12, dev=4, test=3, glosses=8)


def load(folder: Path, **config: Any) -> Corpus:
    return load_corpus(CorpusConfig.model_validate({"path": folder, **config}))


def packed(folder: Path, out: Path, **options: Any) -> Packed:
    return pack(CorpusConfig(path=folder), out, **options)


def refused(folder: Path, out: Path, *parts: str, **options: Any) -> None:
    """Packing is refused in one line that holds all parts, and nothing stands at `out`."""
    with pytest.raises(CorpusError) as error:
        packed(folder, out, **options)
    message = str(error.value)
    assert "\n" not in message
    for text in parts:
        assert text in message


def splits(corpus: Corpus) -> list[Split]:
    return [split for split in (corpus.train, corpus.dev, corpus.test) if split is not None]


def same_corpus(a: Corpus, b: Corpus) -> None:
    """Both give the same, to the bit."""
    assert (a.hash, a.vocabulary, a.modalities, a.notes, a.facts) == (
        b.hash,
        b.vocabulary,
        b.modalities,
        b.notes,
        b.facts,
    )
    assert [s.name for s in splits(a)] == [s.name for s in splits(b)]
    for one, other in zip(splits(a), splits(b), strict=True):
        assert (one.ids, one.signers, one.references) == (other.ids, other.signers, other.references)
        assert one.needed.tolist() == other.needed.tolist()
        assert one.normalisation.mean.tobytes() == other.normalisation.mean.tobytes()
        assert one.normalisation.scale.tobytes() == other.normalisation.scale.tobytes()
        for i in range(len(one)):
            assert one.features(i).tobytes() == other.features(i).tobytes()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rewrite(folder: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Path:
    """Every recording of a corpus, changed."""
    for file in sorted((folder / "features").rglob("*.npz")):
        with np.load(file) as stored:
            arrays = dict(stored)
        np.savez(file, **{**arrays, "features": change(arrays["features"])})
    return folder


def train_file(folder: Path, number: int = 0) -> Path:
    return folder / "features" / "train" / f"train-{number}.npz"


def landmark_corpus(folder: Path, dtype: str = "<f4") -> Path:
    """6516 wide, motion derived from the landmarks in that dtype; the left hand's wrist is the origin of its depth."""
    rng = np.random.default_rng(1)
    write_corpus(folder, frames=3, width=1)
    for number, file in enumerate(sorted((folder / "features").rglob("*.npz"))):
        x = rng.uniform(0.3, 0.7, (9 + number, 1629)).astype(dtype)
        x[:, 101] = 0
        masks = rng.random((len(x), 543)) < 0.97
        masks[2:4, 501:522] = False
        write_sequence(file, with_motion(x), masks)
    return folder


# A pack is the folder it was made from


def test_a_packed_corpus_gives_what_the_folder_gives(tmp_path: Path) -> None:
    folder = generate(SMALL, tmp_path)
    np.savez(folder / "features" / "train" / "nobodys.npz", features=np.ones((5, 225), np.float32))
    made = packed(folder, tmp_path / "out")
    assert (made.manifest.dtype, made.manifest.derived, made.manifest.lost) == ("<f4", False, None)
    corpus = load(tmp_path / "out")
    same_corpus(corpus, load(folder))
    assert (corpus.name, corpus.folder) == ("out", tmp_path / "out")
    assert any("1 feature files have no annotation and are not used (nobodys)" in note for note in corpus.notes)
    features = np.load(tmp_path / "out" / FEATURES, mmap_mode="r")
    assert features.shape == (sum(int(s.lengths.sum()) for s in splits(corpus)), 225)
    verify(tmp_path / "out")


def test_of_6516_dimensions_the_landmarks_are_stored(tmp_path: Path) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    made = packed(folder, tmp_path / "out")
    assert (made.manifest.derived, made.manifest.not_derived) == (True, None)
    assert np.load(tmp_path / "out" / FEATURES, mmap_mode="r").shape[1] == 1629
    same_corpus(load(tmp_path / "out"), load(folder))
    packed(folder, tmp_path / "whole", derive="no")
    assert np.load(tmp_path / "whole" / FEATURES, mmap_mode="r").shape[1] == 6516
    same_corpus(load(tmp_path / "whole"), load(folder))
    verify(tmp_path / "out")


def test_half_precision_landmarks_stay_so(tmp_path: Path) -> None:
    folder = landmark_corpus(tmp_path / "corpus", "<f2")
    made = packed(folder, tmp_path / "out", derive="yes")
    assert (made.manifest.dtype, made.manifest.derived) == ("<f2", True)
    same_corpus(load(tmp_path / "out"), load(folder))


@pytest.mark.skipif(not (SHARED / "an4").is_dir(), reason="needs ../shared/data/an4")
def test_an4_packs(tmp_path: Path) -> None:
    made = packed(SHARED / "an4", tmp_path / "out")
    assert made.manifest.dtype == "<f2"
    same_corpus(load(tmp_path / "out"), load(SHARED / "an4"))


@pytest.mark.parametrize("normalise", [True, False])
def test_training_is_the_same_and_a_checkpoint_of_one_goes_on_with_the_other(tmp_path: Path, normalise: bool) -> None:
    folder = generate(SMALL, tmp_path)
    packed(folder, tmp_path / "out")
    options = ["--hidden", "16", "--channels", "16", "--batch_size", "4", "--device", "cpu"]
    options += [] if normalise else ["--no_normalise"]

    def train(data: Path, run: str, epochs: int) -> list[dict[str, Any]]:
        output = tmp_path / run
        command = ["train", "--data_dir", str(data), "--output_dir", str(output), "--epochs", str(epochs), *options]
        assert main(command) == 0
        lines = (output / "epochs.jsonl").read_text(encoding="utf-8").splitlines()
        return [{**json.loads(line), "seconds": None} for line in lines]

    whole = train(folder, "folder", 3)
    assert train(tmp_path / "out", "pack", 3) == whole
    train(folder, "both", 1)
    train(tmp_path / "out", "both", 2)
    assert train(folder, "both", 3) == whole


def total(split: Split) -> float:
    return float(sum(split.features(i).sum(dtype=np.float64) for i in range(len(split))))


def test_the_map_is_opened_anew_in_each_process_and_never_sent(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", frames=2000, width=20)
    packed(folder, tmp_path / "out")
    split = load(tmp_path / "out").train
    expected = total(load(folder).train)
    split.read(3)  # opens the map
    assert len(pickle.dumps(split)) < 20_000 < (tmp_path / "out" / FEATURES).stat().st_size
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(total, [split, split])) == [expected, expected]
    assert not split.read(0).x.flags.writeable


# What is stored


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "u1", "<i8"])
def test_auto_keeps_every_value_of_any_type(tmp_path: Path, dtype: str) -> None:
    folder = rewrite(write_corpus(tmp_path / "corpus"), lambda x: np.abs(x * 9).astype(dtype))
    made = packed(folder, tmp_path / "out")
    assert made.manifest.dtype == ("<f2" if dtype == "<f2" else "<f4")
    same_corpus(load(tmp_path / "out"), load(folder))
    verify(tmp_path / "out")


def test_types_may_differ_between_files(tmp_path: Path) -> None:
    folder = rewrite(write_corpus(tmp_path / "corpus"), lambda x: x.astype(np.float16))
    write_sequence(train_file(folder, 4), np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32))
    said: list[str] = []
    made = packed(folder, tmp_path / "out", say=said.append)
    assert made.manifest.dtype == "<f4"
    assert len(said) == 1
    assert str(train_file(folder, 4)) in said[0]
    assert "packing as float32 from the beginning" in said[0]
    same_corpus(load(tmp_path / "out"), load(folder))
    assert [made.read("train", f"train-{i}").x.dtype.name for i in (3, 4)] == ["float16", "float32"]


def test_values_are_rounded_only_when_asked_to(tmp_path: Path) -> None:
    folder = rewrite(write_corpus(tmp_path / "corpus"), lambda x: x.astype(np.float64) / 3)
    refused(folder, tmp_path / "out", str(train_file(folder)), "float64", "choose dtype float32 to round")
    assert not (tmp_path / "out").exists()
    made = packed(folder, tmp_path / "out", dtype="float32")
    assert made.manifest.lost is not None
    assert made.manifest.lost.startswith("Features were rounded to float32 when packed: a value changed by 0.000% of")
    corpus = load(tmp_path / "out")
    assert corpus.notes[0] == made.manifest.lost
    assert corpus.hash != load(folder).hash
    given = made.read("train", "train-0").x
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, read_recording(train_file(folder)).x.astype(np.float32))
    assert set(made.manifest.source_digests["train"]) == {f"train-{i}" for i in range(6)}
    verify(tmp_path / "out")


def test_half_precision_says_what_it_costs_and_what_it_cannot_hold(tmp_path: Path) -> None:
    folder = rewrite(write_corpus(tmp_path / "corpus"), lambda x: np.abs(x) + np.float32(0.1))
    made = packed(folder, tmp_path / "out", dtype="float16")
    x = np.concatenate([read_recording(f).x for f in sorted((folder / "features").rglob("*.npz"))]).astype(np.float64)
    relative = np.abs(x.astype(np.float16) - x) / x
    assert 0.0003 < relative.max() <= 2**-11
    assert f"changed by {relative.max():.3%} of itself at most" in str(made.manifest.lost)
    assert load(tmp_path / "out").hash != load(folder).hash
    tiny = np.load(train_file(folder, 3))["features"]
    tiny[5, 2] = 1e-6
    write_sequence(train_file(folder, 3), tiny)
    made = packed(folder, tmp_path / "tiny", dtype="float16")
    assert "(one below 6.1e-05 by" in str(made.manifest.lost)
    assert f"changed by {relative.max():.3%}" in str(made.manifest.lost), "tiny values do not count as relative error"
    tiny[7, 1] = 70_000
    write_sequence(train_file(folder, 3), tiny)
    refused(folder, tmp_path / "c", str(train_file(folder, 3)), "70000.0 at frame 7, dimension 1", "beyond float16",
            dtype="float16")  # fmt: skip


def test_a_given_type_that_holds_every_value_changes_nothing(tmp_path: Path) -> None:
    folder = rewrite(write_corpus(tmp_path / "corpus"), np.round)
    made = packed(folder, tmp_path / "out", dtype="float16")
    assert (made.manifest.dtype, made.manifest.lost) == ("<f2", None)
    same_corpus(load(tmp_path / "out"), load(folder))


# Derivation


def test_features_that_do_not_follow_from_their_landmarks_are_stored_whole(tmp_path: Path) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    x, _ = read_recording(train_file(folder, 3))
    x[4, 1629] = np.nextafter(x[4, 1629], np.float32(9))
    write_sequence(train_file(folder, 3), x)
    where = (str(train_file(folder, 3)), "velocity pose 0 x (dimension 1629)", "at frame 4", "difference")
    refused(folder, tmp_path / "out", *where, "leave derive at auto", derive="yes")
    said: list[str] = []
    made = packed(folder, tmp_path / "out", say=said.append)
    assert not made.manifest.derived
    assert all(text in said[0] and text in str(made.manifest.not_derived) for text in where)
    same_corpus(load(tmp_path / "out"), load(folder))
    assert packed(folder, tmp_path / "no", derive="no").manifest.not_derived is None


@pytest.mark.parametrize(("block", "value"), [(1, 0.0), (2, 0.0), (3, 0.5)])
def test_every_block_is_held_against_the_landmarks(tmp_path: Path, block: int, value: float) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    x, _ = read_recording(train_file(folder, 5))
    x[6, 1629 * block + 7] = value
    write_sequence(train_file(folder, 5), x)
    refused(folder, tmp_path / "out", "pose 2 y", "at frame 6", derive="yes")


def test_a_zero_of_the_other_sign_does_not_follow(tmp_path: Path) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    x, _ = read_recording(train_file(folder, 1))
    x[0, 1700] = -0.0
    write_sequence(train_file(folder, 1), x)
    refused(folder, tmp_path / "out", "is -0.0 at frame 0, but 0.0 follows", derive="yes")
    packed(folder, tmp_path / "out")
    same_corpus(load(tmp_path / "out"), load(folder))


def test_rounded_landmarks_are_held_against_their_own_motion(tmp_path: Path) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    refused(folder, tmp_path / "out", "velocity", "in float16", dtype="float16", derive="yes")
    made = packed(folder, tmp_path / "out", dtype="float16")
    assert (made.manifest.dtype, made.manifest.derived) == ("<f2", False)
    assert "in float16" in str(made.manifest.not_derived)


def test_only_6516_dimensions_are_derived(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    refused(folder, tmp_path / "out", "6 wide", "6516 only", derive="yes")
    assert packed(folder, tmp_path / "out").manifest.not_derived is None


# Constant dimensions


def test_constant_dimensions_are_named_and_left_out(tmp_path: Path) -> None:
    folder = generate(SMALL, tmp_path)
    made = packed(folder, tmp_path / "out", drop_constant=True)
    assert made.manifest.dropped == {101: "left hand 0 z", 164: "right hand 0 z"}
    corpus, whole = load(tmp_path / "out"), load(folder)
    assert corpus.width == 223
    assert corpus.modalities == (Modality("pose", 99), Modality("hands", 124))
    assert corpus.facts["constant_dimensions"] == []
    assert corpus.hash != whole.hash
    assert any("2 of 225 dimensions were constant over train and left out" in note for note in corpus.notes)
    kept = np.delete(np.arange(225), [101, 164])
    for one, other in zip(splits(corpus), splits(whole), strict=True):
        for i in range(len(one)):
            np.testing.assert_array_equal(one.features(i), other.features(i)[:, kept])
    own = load(tmp_path / "out", modalities={"body": 99, "left": 63, "right": 63})
    assert [m.width for m in own.modalities] == [99, 62, 62]
    verify(tmp_path / "out")


def test_of_derived_features_a_landmark_goes_with_all_that_follows_from_it(tmp_path: Path) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    made = packed(folder, tmp_path / "out", drop_constant=True)
    names = [f"{block}left hand 0 z" for block in ("", "velocity ", "acceleration ", "copy ")]
    assert list(made.manifest.dropped.values()) == names
    assert np.load(tmp_path / "out" / FEATURES, mmap_mode="r").shape[1] == 1628
    corpus, whole = load(tmp_path / "out"), load(folder)
    assert [m.width for m in corpus.modalities] == [99, 125, 1404, 4884]
    kept = np.delete(np.arange(6516), list(made.manifest.dropped))
    np.testing.assert_array_equal(corpus.dev.features(2), whole.dev.features(2)[:, kept])
    verify(tmp_path / "out")


def test_a_part_that_is_never_seen_goes_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = write_corpus(tmp_path / "corpus", width=225)
    rewrite(folder, lambda x: np.where(np.arange(225) < 99, rng.uniform(0.3, 0.7, x.shape), 0).astype(np.float32))
    made = packed(folder, tmp_path / "out", drop_constant=True)
    corpus = load(tmp_path / "out")
    assert corpus.modalities == (Modality("pose", 99),)
    assert made.stored.files["train"]["train-0"].zero == (0, 0, 0)
    assert corpus.facts["missing"] == {"left hand": 1.0, "right hand": 1.0}
    rewrite(folder, np.zeros_like)
    refused(folder, tmp_path / "none", "all dimensions are constant", drop_constant=True)


def test_where_nothing_is_constant_nothing_changes(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    packed(folder, tmp_path / "out", drop_constant=True)
    same_corpus(load(tmp_path / "out"), load(folder))


# Annotations, vocabulary, filter


def test_the_pack_keeps_its_filter_and_vocabulary_and_options_override_them(tmp_path: Path) -> None:
    texts = {"train": ["A1 B1", "B1 IX", "IX", "A1"], "dev": ["A1 loc-X", "B1"]}
    folder, file = write_corpus(tmp_path / "corpus", texts), tmp_path / "v.txt"
    Vocabulary(("<blank>", "B1", "A1")).to_file(file)
    pack(
        CorpusConfig(path=folder, filter="phoenix-si5", vocabulary=file, modalities={"a": 2, "b": 4}), tmp_path / "out"
    )
    corpus = load(tmp_path / "out")
    assert corpus.vocabulary.glosses == ("<blank>", "B1", "A1")
    assert [m.width for m in corpus.modalities] == [2, 4]
    same_corpus(corpus, load(folder, filter="phoenix-si5", vocabulary=file, modalities={"a": 2, "b": 4}))
    everything = load(tmp_path / "out", filter="none")
    assert everything.vocabulary.glosses == ("<blank>", "A1", "B1", "IX"), "its own vocabulary is of another filter"
    assert [m.name for m in load(tmp_path / "out", modalities={"all": 6}).modalities] == ["all"]
    Vocabulary(("<blank>", "A1", "B1", "C1")).to_file(file)
    assert len(load(tmp_path / "out", vocabulary=file).vocabulary) == 4


def test_other_annotations_may_name_fewer_of_its_recordings(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    packed(folder, tmp_path / "out")
    others = tmp_path / "others"
    write_csv(others / "train.corpus.csv", [(f"train-{i}", "-", "S", "X Y") for i in (4, 1, 2)])
    write_csv(others / "dev.corpus.csv", [("dev-2", "-", "S", "Y")])
    corpus, same = load(tmp_path / "out", annotations=others), load(folder, annotations=others)
    assert corpus.train.ids == ("train-4", "train-1", "train-2")
    assert corpus.vocabulary.glosses == ("<blank>", "X", "Y")
    same_corpus(corpus, same)
    with pytest.raises(CorpusError, match="no such folder"):
        load(tmp_path / "out", annotations=tmp_path / "nowhere")


# Where it goes


def test_packing_again_does_nothing_and_another_pack_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    packed(folder, tmp_path / "out")
    before, said = tree(tmp_path / "out"), list[str]()
    packed(folder, tmp_path / "out", say=said.append)
    assert said == [f"{tmp_path / 'out'} is packed from this corpus already, with these options."]
    assert tree(tmp_path / "out") == before
    refused(folder, tmp_path / "out", "holds another pack", dtype="float16")
    other = write_corpus(tmp_path / "other", {"train": ["A"], "dev": ["A"]})
    refused(other, tmp_path / "out", "holds another pack")
    os.utime(next((folder / "features" / "train").iterdir()), (0, 0))
    refused(folder, tmp_path / "out", f"a file of {folder / 'features'} has changed since, in size or time; delete it")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus", "other", "out"]


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work", encoding="utf-8")
    refused(folder, tmp_path / "full", "is there already and is no packed corpus")
    refused(folder, tmp_path / "full" / "thesis.txt", "is there already")
    assert (tmp_path / "full" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    for inside in (folder, folder / "packed", folder / "features" / "train", tmp_path):
        refused(folder, inside, str(inside), "lies in the corpus", "beside it")
    refused(folder / "features", folder / "features" / "packed", "lies in the corpus")
    if sys.platform != "win32":  # where links need a privilege
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        refused(folder, tmp_path / "link" / "packed", "lies in the corpus")
    packed(folder, tmp_path / "out")
    refused(tmp_path / "out", tmp_path / "again", "is packed already")
    (tmp_path / "empty").mkdir()
    packed(folder, tmp_path / "empty")
    same_corpus(load(tmp_path / "empty"), load(folder))
    deep = tmp_path / "a" / "b" / "out"
    packed(folder, deep)
    assert len(load(deep).train) == 6


def test_a_folder_of_somebody_else_is_not_packed_into(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "thesis.txt").write_text("years of work", encoding="utf-8")
    refused(folder, tmp_path / "out", "out.part", "holds something else")
    assert (tmp_path / "out.part" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_corpus_that_breaks_a_rule_is_not_packed(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    good = train_file(folder, 4).read_bytes()
    train_file(folder, 4).write_bytes(good[:-50])
    refused(folder, tmp_path / "out", str(train_file(folder, 4)), "cannot be read as npz")
    write_sequence(train_file(folder, 4), np.full((9, 6), np.inf))
    refused(folder, tmp_path / "out", str(train_file(folder, 4)), "hold inf at frame 0")
    write_sequence(train_file(folder, 4), np.ones((9, 5), np.float32))
    refused(folder, tmp_path / "out", "5 wide", str(train_file(folder, 0)), "6")
    assert not (tmp_path / "out").exists()
    train_file(folder, 4).write_bytes(good)
    packed(folder, tmp_path / "out")
    same_corpus(load(tmp_path / "out"), load(folder))
    train_file(folder, 4).unlink()
    refused(folder, tmp_path / "missing", "1 of 6 ids of train.corpus.csv have no features")


# A torn pack is never a whole one


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_pack_that_is_not_as_it_was_is_refused(tmp_path: Path) -> None:
    packed(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    for n, file in enumerate(sorted(p for p in (tmp_path / "out").rglob("*") if p.is_file())):
        for what, harm in enumerate((lambda p: p.write_bytes(p.read_bytes()[:-1]), Path.unlink, spoil)):
            if harm is spoil and file.name in (FEATURES, "pack.json"):
                continue  # that one is what --verify is for; a manifest may differ by a letter that says nothing
            copy = tmp_path / f"copy-{n}-{what}"
            shutil.copytree(tmp_path / "out", copy)
            torn = copy / file.relative_to(tmp_path / "out")
            harm(torn)
            with pytest.raises(CorpusError) as error:
                load(copy)
            if torn.exists():
                assert str(torn) in str(error.value)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    packed(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    file = tmp_path / "out" / "pack.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for change in ({"version": 2}, {"derived": None}, {"new": 1}):
        file.write_text(json.dumps({**content, **change}), encoding="utf-8")
        with pytest.raises(CorpusError, match=rf"{next(iter(change))}: .*pack the corpus again"):
            load(tmp_path / "out")


def test_what_is_not_finished_is_no_corpus(tmp_path: Path) -> None:
    packed(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    (tmp_path / "out" / "pack.json").unlink()
    with pytest.raises(
        CorpusError, match=r"no whole packed corpus, as it holds no pack\.json; run the pack command again"
    ):
        load(tmp_path / "out")


def test_verify_finds_a_changed_bit_and_names_its_recording(tmp_path: Path) -> None:
    packed(generate(SMALL, tmp_path), tmp_path / "out")
    seen: list[tuple[str, int, int]] = []
    verify(tmp_path / "out", lambda *at: seen.append(at))
    assert seen[-1] == ("test", 3, 3)
    file = tmp_path / "out" / FEATURES
    content = bytearray(file.read_bytes())
    content[-4] ^= 1  # in the last frame of the last recording
    file.write_bytes(content)
    with pytest.raises(CorpusError, match=r"features\.npy: 1 of 19 recordings are not what was packed \(test-00002\)"):
        verify(tmp_path / "out")
    load(tmp_path / "out")  # looks at sizes only


# Stopped and gone on


def in_batches(monkeypatch: pytest.MonkeyPatch, size: int = 2000) -> None:
    monkeypatch.setattr(model.corpus.pack, "BATCH_BYTES", size)


def stop_after(n: int) -> Callable[[str, int, int], None]:
    counter = itertools.count(1)

    def progress(*_: object) -> None:
        if next(counter) == n:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("stopped_after", [1, 5, 8, 9])
def test_a_stopped_pack_goes_on_after_its_last_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    folder = write_corpus(tmp_path / "corpus")  # a recording has 960 bytes
    in_batches(monkeypatch)
    packed(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        packed(folder, tmp_path / "out", progress=stop_after(stopped_after))
    assert not (tmp_path / "out").exists()
    with (tmp_path / "out.part" / FEATURES).open("ab") as file:
        file.write(b"half a recording")
    with pytest.raises(CorpusError):
        load(tmp_path / "out.part")
    seen: list[tuple[str, int, int]] = []
    packed(folder, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert len(seen) == 9 - 3 * (stopped_after // 3)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize("what", ["train-2.npz", "dev.corpus.csv"])
def test_what_changed_in_between_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    folder = write_corpus(tmp_path / "corpus")
    in_batches(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        packed(folder, tmp_path / "out", progress=stop_after(8))
    if what == "train-2.npz":
        os.utime(train_file(folder, 2), ns=(1, 1))
    else:
        write_csv(folder / "annotations" / what, [("dev-1", "-", "S", "A")])
    said: list[str] = []
    seen: list[tuple[str, int, int]] = []
    packed(folder, tmp_path / "out", progress=lambda *at: seen.append(at), say=said.append)
    assert len(said) == 1
    assert "has changed since; packing from the beginning" in said[0]
    assert (what in said[0]) == what.endswith(".npz")
    assert seen[0] == ("train", 1, 6)
    same_corpus(load(tmp_path / "out"), load(folder))


def test_other_options_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    in_batches(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        packed(folder, tmp_path / "out", progress=stop_after(8))
    said: list[str] = []
    made = packed(folder, tmp_path / "out", derive="no", say=said.append)
    assert said == ["An option or a table has changed since; packing from the beginning."]
    assert not made.manifest.derived


def test_a_torn_record_of_progress_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(tmp_path / "corpus")
    in_batches(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        packed(folder, tmp_path / "out", progress=stop_after(8))
    spoil(tmp_path / "out.part" / "state.npz")
    said: list[str] = []
    packed(folder, tmp_path / "out", say=said.append)
    assert "state.npz cannot be read" in said[0]
    same_corpus(load(tmp_path / "out"), load(folder))


@pytest.mark.parametrize("write", [lambda p: write_sequence(p, np.ones((40, 6), np.float32)), Path.unlink])
def test_a_file_that_changes_while_it_is_packed_is_an_error(tmp_path: Path, write: Callable[[Path], object]) -> None:
    folder = write_corpus(tmp_path / "corpus")

    def progress(split: str, done: int, of: int) -> None:
        if (split, done) == ("dev", 2):
            write(train_file(folder, 1))

    refused(folder, tmp_path / "out", str(train_file(folder, 1)), "changed while it was packed", progress=progress)
    assert not (tmp_path / "out").exists()


def test_a_pack_killed_before_it_got_its_name_only_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_corpus(tmp_path / "corpus")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            packed(folder, tmp_path / "out")
    seen: list[object] = []
    packed(folder, tmp_path / "out", progress=lambda *at: seen.append(at))
    assert seen == []
    same_corpus(load(tmp_path / "out"), load(folder))


def test_one_process_packs_at_a_time(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")

    def meanwhile(*_: object) -> None:
        refused(folder, tmp_path / "out", "out.part", "another process is packing into it")

    packed(folder, tmp_path / "out", progress=meanwhile)
    same_corpus(load(tmp_path / "out"), load(folder))


PACK_SLOWLY = """
import sys, time
import model.corpus.pack
from model.__main__ import main
model.corpus.pack.BATCH_BYTES = 20_000
append = model.corpus.pack._save_state
def slowly(*arguments):
    append(*arguments)
    time.sleep(0.01)
model.corpus.pack._save_state = slowly
sys.exit(main(["pack", *sys.argv[1:]]))
"""


def pack_process(folder: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PACK_SLOWLY, str(folder), str(out)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    folder = generate(GeneratedConfig(train=60, dev=10, test=5, width=6516), tmp_path)
    expected = tmp_path / "whole"
    packed(folder, expected)
    luck = random.Random(5)
    moments = 0
    for n in range(6):
        out = tmp_path / f"out-{n}"
        for _ in range(40):
            process = pack_process(folder, out)
            state = out.with_name(f"{out.name}.part") / "state.npz"
            deadline = time.monotonic() + 60
            before = state.stat().st_mtime_ns if state.exists() else None
            while process.poll() is None and time.monotonic() < deadline:  # past the start of Python, into the work
                if state.exists() and state.stat().st_mtime_ns != before:
                    break
                time.sleep(0.002)
            time.sleep(luck.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode == 0:
                break
            moments += not out.exists()
            if out.exists():
                break  # killed after its end
            if not (state.parent / "pack.json").exists():
                with pytest.raises(CorpusError):
                    load(state.parent)
        assert tree(out) == tree(expected)
    assert moments >= 8, "it was indeed killed in between"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_a_full_disk_is_said_and_gone_on_from(tmp_path: Path) -> None:
    import resource

    folder = write_corpus(tmp_path / "corpus", frames=400)
    limit = (30_000, resource.RLIM_INFINITY)
    process = pack_process(
        folder, tmp_path / "out", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "out.part" in errors
    assert "cannot be written (File too large)" in errors
    assert "goes on where it was" in errors
    packed(folder, tmp_path / "out")
    same_corpus(load(tmp_path / "out"), load(folder))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(folder, tmp_path / "locked" / "out", "locked", "Permission denied")


# The command


def test_the_command_packs_verifies_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = landmark_corpus(tmp_path / "corpus")
    assert main(["pack", str(folder), str(tmp_path / "out"), "--json", "--drop-constant"]) == 0
    out, said = capsys.readouterr()
    result = json.loads(out)
    assert result["hash"] == load(tmp_path / "out").hash
    assert (result["recordings"], result["dtype"], result["derived"]) == ({"train": 6, "dev": 3}, "<f4", True)
    assert list(result["dropped"]) == ["101", "1730", "3359", "4988"]
    assert "1628 of 6516 dimensions stored as float32, motion and copy derived from them" in said
    assert "dropped, constant over train: left hand 0 z, velocity left hand 0 z" in said
    assert main(["pack", "--verify", str(tmp_path / "out"), "--json"]) == 0
    out, said = capsys.readouterr()
    assert "all 9 recordings" in said
    assert json.loads(out) == result
    assert main(["pack", str(folder), str(tmp_path / "out"), "--drop_constant"]) == 0
    out, said = capsys.readouterr()
    assert "is packed from this corpus already" in said
    assert "1628 of 6516 dimensions" in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["corpus"], ["name OUT"]),
        (["nowhere", "out"], ["nowhere: there is no such folder"]),
        (["corpus", "out", "--dtype", "float64"], ["--dtype", "float64", "auto"]),
        (["corpus", "out", "--derive", "perhaps"], ["--derive"]),
        (["corpus", "out", "--filter", "phoenix"], ["--filter phoenix", "phoenix-si5"]),
        (["corpus", "out", "--no_normalise"], ["unrecognized arguments: --no_normalise"]),
        (["corpus", "corpus/out"], ["corpus/out: lies in the corpus"]),
        (["corpus", "--verify"], ["corpus: is not packed", "name a packed corpus"]),
        (["corpus", "out", "--verify"], ["leave out out"]),
    ],
)
def test_wrong_commands_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    parts: list[str],
) -> None:  # fmt: skip
    write_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["pack", *arguments])
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    for part in parts:
        assert part in said
    assert not (tmp_path / "out").exists()


def test_opening_a_pack_reads_no_features(tmp_path: Path) -> None:
    packed(write_corpus(tmp_path / "corpus"), tmp_path / "out")
    made = open_packed(tmp_path / "out")
    assert made.scan().width == 6
    assert "features" not in made.arrays.__dict__
