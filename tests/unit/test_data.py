from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

import model.corpus.data
from model.corpus.annotations import CorpusError
from model.corpus.data import CorpusConfig, check_fit, epoch_order, fit_note, infeasible, load_corpus, make_batch
from model.corpus.features import Modality
from model.corpus.synthetic import GeneratedConfig, generate
from model.corpus.vocabulary import Vocabulary
from tests.corpora import HEADER, SHARED, write_corpus, write_sequence


def load(folder: Path, **config: object) -> model.corpus.data.Corpus:
    return load_corpus(CorpusConfig.model_validate({"path": folder, **config}))


def refused(folder: Path, *parts: str, **config: object) -> None:
    """The corpus is refused in one line that holds all parts."""
    with pytest.raises(CorpusError) as error:
        load(folder, **config)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def train_file(folder: Path, number: int = 0) -> Path:
    return folder / "features" / "train" / f"train-{number}.npz"


def train_csv(folder: Path) -> Path:
    return folder / "annotations" / "train.corpus.csv"


# What a good corpus gives


def test_a_corpus_in_one_folder(tmp_path: Path) -> None:
    corpus = load(write_corpus(tmp_path / "signs"))
    assert (corpus.name, corpus.width, corpus.modalities) == ("signs", 6, (Modality("features", 6),))
    assert corpus.vocabulary.glosses == ("<blank>", "A", "B", "C")
    assert corpus.test is None
    assert corpus.train.ids == tuple(f"train-{i}" for i in range(6))
    assert corpus.train.signers == tuple(f"Signer{i % 2}" for i in range(6))
    assert [t.tolist() for t in corpus.train.targets] == [[1, 2], [2, 3], [3, 1, 2], [1], [3, 3], [2, 1]]
    assert corpus.train.references[2] == "C A B"
    assert corpus.train.lengths.dtype == np.int64
    assert corpus.train.lengths.tolist() == [40] * 6
    assert corpus.train.needed.tolist() == [2, 2, 3, 1, 3, 2]
    assert len(corpus.dev) == 3
    assert corpus.notes == ("No test split, which is optional (a CSV and a folder of features would make one).",)
    json.dumps(corpus.facts)


def test_train_is_normalised_and_dev_by_the_same_numbers(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    corpus = load(folder)
    x = np.concatenate([corpus.train.features(i) for i in range(6)])
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-5)
    raw = np.concatenate([np.load(train_file(folder, i))["features"] for i in range(6)]).astype(np.float64)
    dev = np.load(folder / "features" / "dev" / "dev-1.npz")["features"]
    expected = (dev - raw.mean(axis=0)) / raw.std(axis=0)
    np.testing.assert_allclose(corpus.dev.features(1), expected, rtol=1e-5, atol=1e-5)


def test_statistics_do_not_cancel_at_large_means(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    rng = np.random.default_rng(1)
    for i in range(6):  # sums of squares in float64 would leave a standard deviation of noise here
        write_sequence(train_file(folder, i), 4e6 + rng.normal(0, 1, (40, 6)))
    corpus = load(folder)
    x = np.concatenate([corpus.train.features(i) for i in range(6)])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-4)


def test_constant_dimensions_become_zero_and_are_counted(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    for i in range(6):
        x = np.load(train_file(folder, i))["features"]
        x[:, 2] = 0.1
        x[:, 4] *= 1e-9  # small, but it varies at its own scale
        write_sequence(train_file(folder, i), x)
    corpus = load(folder)
    assert corpus.facts["constant_dimensions"] == [2]
    assert any("1 of 6 dimensions are constant" in note for note in corpus.notes)
    assert not corpus.dev.features(0)[:, 2].any()
    assert corpus.train.features(0)[:, 4].std() > 0.5


def landmarks(frames: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(0.3, 0.7, (frames, width)).astype(np.float32)


@pytest.mark.parametrize("width", [225, 6516])
def test_a_missing_hand_is_zero_and_does_not_count(tmp_path: Path, width: int) -> None:
    folder, rng = write_corpus(tmp_path, frames=12, width=width), np.random.default_rng(2)
    # columns of the left hand, and frames without it: a difference needs every frame it is made of
    blocks = [[*range(4, 9)], [0, *range(4, 10)], [0, 1, *range(4, 11)], [*range(4, 9)]]
    left = [(slice(b + 99, b + 162), gone) for b, gone in zip(range(0, width, 1629), blocks, strict=False)]
    raw = []
    for split, i in [*itertools.product(["train"], range(6)), ("dev", 0), ("dev", 1), ("dev", 2)]:
        x = landmarks(12, width, rng)
        for columns, _ in left:
            x[4:9, columns] = 0
        write_sequence(folder / "features" / split / f"{split}-{i}.npz", x)
        raw += [x] if split == "train" else []
    corpus = load(folder)
    for columns, gone in left:
        seen = np.concatenate([np.delete(x, gone, axis=0) for x in raw])
        x = np.concatenate([np.delete(corpus.train.features(i), gone, axis=0) for i in range(6)])
        assert not corpus.train.features(3)[gone, columns].any()
        assert not corpus.dev.features(1)[gone, columns].any()
        np.testing.assert_allclose(x[:, columns].std(axis=0), 1, atol=1e-4)
        np.testing.assert_allclose(corpus.train.normalisation.mean[columns], seen[:, columns].mean(axis=0), rtol=1e-5)
    assert corpus.train.features(3)[4:9, 162:225].all(), "the other hand was seen"
    assert corpus.facts["missing"] == {"left hand": pytest.approx(5 / 12)}
    assert "The left hand is missing in 42% of the train frames." in corpus.notes


def test_detection_masks_name_missing_parts(tmp_path: Path) -> None:
    folder, rng = write_corpus(tmp_path, width=6516, frames=12), np.random.default_rng(3)
    columns = {"pose": (0, 33), "left": (501, 522), "right": (522, 543), "face": (33, 501)}
    frames_of = [1, 2, 3, 1]  # how many a position, a velocity, an acceleration and a copy are made of
    starts = {"pose": (0, 99), "left": (99, 162), "right": (162, 225), "face": (225, 1629)}
    for i in range(6):
        masks = np.ones((12, 543), dtype=bool)
        for frame, (a, b) in enumerate(columns.values(), start=3):
            masks[frame, a:b] = False
        write_sequence(train_file(folder, i), landmarks(12, 6516, rng), masks)
    x = load(folder).train.features(0)
    for lost, (name, (a, b)) in enumerate(starts.items(), start=3):
        for block, made_of in enumerate(frames_of):
            gone = {*range(made_of - 1), *range(lost, lost + made_of)}
            for frame in range(12):
                values = x[frame, 1629 * block + a : 1629 * block + b]
                assert values.any() == (frame not in gone), (frame, block, name)
    assert x[9:].all()


def test_a_reappearing_hand_is_no_velocity(tmp_path: Path) -> None:
    config = GeneratedConfig(train=8, dev=1, glosses=6, width=6516)
    lost, kept = (load(generate(config.model_copy(update={"missing_hands": share}), tmp_path)) for share in (0.1, 0.0))
    assert lost.facts["missing"]["left hand"] > 0.2
    for block in (1629, 2 * 1629):  # velocity, acceleration
        hand = slice(block + 102, block + 162)  # without its wrist, whose depth is constant
        ratio = kept.train.normalisation.scale[hand] / lost.train.normalisation.scale[hand]
        assert 0.7 < np.median(ratio) < 1.4, "jumps from and to zero would give several times the deviation"
    still = lost.train.normalisation
    np.testing.assert_array_equal(still.mean[:1629], still.mean[-1629:])
    np.testing.assert_array_equal(still.scale[:1629], still.scale[-1629:])


def test_a_velocity_of_zero_is_seen_where_its_landmarks_are(tmp_path: Path) -> None:
    folder, rng = write_corpus(tmp_path, width=6516, frames=8), np.random.default_rng(6)
    for i in range(6):
        x = landmarks(8, 6516, rng)
        x[4, 1629 + 99 : 1629 + 162] = 0  # the hand rests
        write_sequence(train_file(folder, i), x)
    x = load(folder).train.features(0)[:, 1629 + 99 : 1629 + 162]
    assert x[4].all()
    assert not x[0].any()


@pytest.mark.parametrize("modalities", [None, {"first": 2, "rest": 4}])
def test_frames_of_zeros_are_missing_only_in_landmarks(tmp_path: Path, modalities: dict[str, int] | None) -> None:
    folder = write_corpus(tmp_path)
    for file in (folder / "features").rglob("*.npz"):
        write_sequence(file, np.tile(np.array([[0.0], [5.0]], np.float32), (20, 6)))
    corpus = load(folder, modalities=modalities)
    np.testing.assert_array_equal(corpus.train.features(0), np.tile([[-1.0], [1.0]], (20, 6)))
    assert corpus.facts["missing"] == {}
    assert corpus.facts["constant_dimensions"] == []


def test_a_split_of_ones_own_leaves_landmarks_what_they_are(tmp_path: Path) -> None:
    folder, rng = write_corpus(tmp_path, width=225), np.random.default_rng(7)
    masks = np.ones((40, 543), dtype=bool)
    masks[10:20, 501:522] = False
    for i in range(6):
        write_sequence(train_file(folder, i), landmarks(40, 225, rng), masks)
    known, own = load(folder), load(folder, modalities={"pose": 99, "left": 63, "right": 63})
    assert [m.width for m in own.modalities] == [99, 63, 63]
    assert own.facts["missing"] == known.facts["missing"] == {"left hand": pytest.approx(1 / 4)}
    np.testing.assert_array_equal(own.train.features(0), known.train.features(0))
    assert not own.train.features(0)[10:20, 99:162].any()


def test_one_seen_landmark_is_enough(tmp_path: Path) -> None:
    folder, rng = write_corpus(tmp_path, width=225), np.random.default_rng(4)
    masks = np.zeros((40, 543), dtype=bool)
    masks[:, [5, 510, 540]] = True
    for i in range(6):
        write_sequence(train_file(folder, i), landmarks(40, 225, rng), masks)
    assert load(folder).facts["missing"] == {}


def test_a_wrist_depth_of_rounding_noise_is_constant(tmp_path: Path) -> None:
    folder, rng = write_corpus(tmp_path, width=225), np.random.default_rng(5)
    for i in range(6):
        x = landmarks(40, 225, rng)
        x[:, 101] = rng.normal(0, 1e-8, 40)  # MediaPipe measures a hand's depth from its wrist
        write_sequence(train_file(folder, i), x)
    assert load(folder).facts["constant_dimensions"] == [101]


def test_modalities_follow_the_width_or_the_config(tmp_path: Path) -> None:
    known = load(write_corpus(tmp_path / "a", width=225)).modalities
    assert known == (Modality("pose", 99), Modality("hands", 126))
    wide = load(write_corpus(tmp_path / "b", width=6516, frames=12)).modalities
    assert [m.width for m in wide] == [99, 126, 1404, 4887]
    own = load(write_corpus(tmp_path / "c"), modalities={"lips": 2, "rest": 4})
    assert own.modalities == (Modality("lips", 2), Modality("rest", 4))
    refused(tmp_path / "c", "add up to 5", "6 dimensions", modalities={"lips": 2, "rest": 3})


def test_small_corpora_stay_in_memory_and_large_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(tmp_path)
    small = load(folder).train
    assert small.features(0) is small.features(0)
    with pytest.raises(ValueError, match="read-only"):
        small.features(0)[0, 0] = 1
    monkeypatch.setattr(model.corpus.data, "RESIDENT_BYTES", 40 * 6 * 4 * 9)
    large = load(folder).train
    assert large.features(0) is not large.features(0)
    np.testing.assert_array_equal(large.features(0), small.features(0))


def test_a_file_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    corpus = load(folder)
    write_sequence(train_file(folder), np.ones((39, 6), np.float32))
    with pytest.raises(CorpusError, match=r"train-0\.npz: is \(39, 6\) now"):
        corpus.train.features(0)
    train_file(folder, 1).unlink()
    with pytest.raises(CorpusError, match=r"train-1\.npz"):
        corpus.train.features(1)


def test_a_split_can_be_sent_to_another_process(tmp_path: Path) -> None:
    split = load(write_corpus(tmp_path)).train
    copy = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(copy.features(2), split.features(2))


# Where things lie


def test_the_users_own_layout(tmp_path: Path) -> None:
    write_corpus(tmp_path / "made")
    data = tmp_path / "data" / "teacher_features" / "mediapipe_full"
    shutil.copytree(tmp_path / "made" / "features", data)
    manual = tmp_path / "data" / "raw_data" / "phoenix-2014-signerindependent-SI5" / "annotations" / "manual"
    manual.mkdir(parents=True)
    for split in ("train", "dev"):
        shutil.copy(tmp_path / "made" / "annotations" / f"{split}.corpus.csv", manual / f"{split}.SI5.corpus.csv")
    corpus = load(data)
    assert corpus.annotations == manual.resolve()
    assert corpus.folder == data.resolve()
    assert corpus.hash == load(tmp_path / "made").hash
    other = manual.parents[2] / "phoenix-2014-multisigner" / "annotations" / "manual"
    shutil.copytree(manual, other)
    refused(data, str(manual), str(other), "say which")
    assert load(data, annotations=other).annotations == other.resolve()


@pytest.mark.parametrize("place", ["features/annotations", "annotations", "../annotations", "../annotations/manual"])
def test_annotations_are_found_in_and_beside_the_folder(tmp_path: Path, place: str) -> None:
    folder = write_corpus(tmp_path / "deep" / "corpus")
    target = folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder / "annotations").rename(tmp_path / "moved")
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "moved").rename(target)
    assert load(folder).annotations == target.resolve()
    assert load(folder / "features").annotations == target.resolve()


def test_relative_paths_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path / "corpus" / "features")
    assert load(Path()).annotations == (tmp_path / "corpus" / "annotations").resolve()


@pytest.mark.parametrize("name", ["train.corpus.csv", "train.SI5.corpus.csv", "train.csv", "train_v2.csv"])
def test_names_of_the_csv(tmp_path: Path, name: str) -> None:
    folder = write_corpus(tmp_path)
    train_csv(folder).rename(folder / "annotations" / name)
    assert len(load(folder).train) == 6


def test_the_plain_name_wins_and_ties_are_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    plain = train_csv(folder)
    shutil.copy(plain, plain.with_name("train.SI5.corpus.csv"))
    assert len(load(folder).train) == 6
    plain.rename(plain.with_name("train.SI6.corpus.csv"))
    refused(folder, "train.SI5.corpus.csv, train.SI6.corpus.csv could all be train")


def test_missing_places_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", str(tmp_path / "nowhere"), "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no train/", "features/train")
    folder = write_corpus(tmp_path / "corpus")
    refused(folder, "no such folder", annotations=tmp_path / "nowhere")
    refused(folder, "no train.corpus.csv", annotations=tmp_path / "empty")
    shutil.rmtree(folder / "features" / "dev")
    refused(folder, str(folder / "features" / "dev"), "dev.corpus.csv")
    (folder / "annotations" / "dev.corpus.csv").unlink()
    refused(folder, "dev*.csv")
    shutil.rmtree(folder / "annotations")
    refused(folder, "annotations", "train*.csv")


def test_a_test_split_is_optional(tmp_path: Path) -> None:
    texts = {"train": ["A B", "B"], "dev": ["A"], "test": ["B A", "X"]}
    folder = write_corpus(tmp_path, texts)
    corpus = load(folder)
    assert corpus.test is not None
    assert corpus.test.references == ("B A", "X")
    (folder / "annotations" / "test.corpus.csv").write_text(HEADER + "\n", encoding="utf-8")
    refused(folder, "test.corpus.csv", "no sentences below its first line; delete it to go without a test split")
    shutil.rmtree(folder / "features" / "test")
    assert load(folder).test is None


# The table


def test_bom_crlf_quotes_more_columns_and_no_signer(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    lines = ["\ufeffid|folder|annotation|num_frames", 'train-0|C:\\video\\1|"A B|40', "train-1|x| C  A |40", ""]
    train_csv(folder).write_bytes("\r\n".join(lines).encode())
    corpus = load(folder)
    assert corpus.train.references == ('"A B', "C A")
    assert corpus.train.signers == ("unknown", "unknown")
    assert any("names no signer" in note for note in corpus.notes)
    assert any("4 feature files have no annotation and are not used (train-2, train-3, train-4, train-5)" in note
               for note in corpus.notes)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"id|folder|signer\na|b|c\n", ["no column 'annotation'", "id, folder, signer", HEADER]),
        (b"name|annotation\na|A\n", ["no column 'id'"]),
        (b"id,folder,signer,annotation\na,b,c,A\n", ["no column 'id'"]),
        (b"", ["no column 'id' (it has none)"]),
        (b"id|folder|signer|annotation\n", ["no sentences"]),
        (b"id|folder|signer|annotation\na|b|c\n", ["line 2 has 3 cells, the header 4"]),
        (b"id|folder|signer|annotation\na|b|c|A|B\n", ["line 2 has 5 cells"]),
        (b"id|annotation\na|A\nb|A\na|B\n", ["line 4 repeats the id 'a'"]),
        (b"id|annotation\n../../secret|A\n", ["line 2 has the id '../../secret'", "not a path"]),
        (b"id|annotation\n..|A\n", ["not a path"]),
        (b"id|annotation\n/etc/passwd|A\n", ["not a path"]),
        (b"id|annotation\nC:\\clips\\a|A\n", ["not a path"]),
        (b"id|annotation\n..\\a|A\n", ["not a path"]),
        (b"id|annotation\n|A\n", ["the id ''"]),
        ("id|annotation\na|ÜBER\n".encode("latin-1"), ["not UTF-8", "save it as UTF-8"]),
        (b"id|annotation\na|" + b"A" * 200_000 + b"\n", ["cannot be read as a table"]),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    folder = write_corpus(tmp_path)
    train_csv(folder).write_bytes(content)
    refused(folder, str(train_csv(folder)), *parts)


# The feature files


def test_broken_feature_files_are_named(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    file = train_file(folder, 3)
    whole = file.read_bytes()
    x = np.load(file)["features"]

    def written(**arrays: NDArray[np.generic]) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]

    for torn in (b"", b"not an npz", whole[:100], whole[:-30], whole[:400] + bytes(100) + whole[500:]):
        file.write_bytes(torn)
        refused(folder, str(file), "cannot be read as npz", "write it again")
    written(features=np.array([[1, "a", None]], dtype=object))
    refused(folder, str(file), "cannot be read as npz", "allow_pickle=False")
    written(features=x)
    locked = bytearray(file.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(header) + flags] |= 1
    file.write_bytes(locked)
    refused(folder, str(file), "cannot be read as npz", "encrypted", "write it again")
    written(landmarks=x)
    refused(folder, str(file), "no array 'features' (it has landmarks)", "np.savez")
    for wrong in (x[0], x[None], x[:, :0], x.astype(str), x > 0, x * 1j):
        written(features=wrong)
        refused(folder, str(file), f"features are {wrong.dtype} {wrong.shape}", "(frames, dimensions)")
    written(features=x[:, :5])
    refused(folder, str(file), "5 wide", str(train_file(folder, 0)), "6")
    with file.open("wb") as bare:
        np.save(bare, x)
    refused(folder, str(file), "cannot be read as npz (it holds one bare array)")
    file.write_bytes(b"torn")
    refused(folder, str(file), "cannot be read as npz (it does not begin as one); write it again")


def test_an_error_without_a_message_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(tmp_path)

    def torn(*_: object, **__: object) -> None:
        raise EOFError  # as zipfile does where a file ends too early

    monkeypatch.setattr(np, "load", torn)
    refused(folder, str(train_file(folder)), "cannot be read as npz (EOFError)")


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e39, "1e+39")])
def test_a_number_that_is_none_is_named_with_its_place(tmp_path: Path, value: float, shown: str) -> None:
    folder = write_corpus(tmp_path)
    file = folder / "features" / "dev" / "dev-1.npz"
    x = np.load(file)["features"].astype(np.float64 if np.isfinite(value) else np.float32)
    x[7, 4] = x[9, 0] = value
    write_sequence(file, x)
    refused(folder, str(file), f"hold {shown} at frame 7, dimension 4 (2 such values)", "finite")


def test_masks_must_fit_their_landmarks(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, width=225)
    write_sequence(train_file(folder), np.load(train_file(folder))["features"], np.ones((39, 543), dtype=bool))
    refused(folder, str(train_file(folder)), "(39, 543)", "(40, 543)")
    other = write_corpus(tmp_path / "other")
    write_sequence(train_file(other), np.load(train_file(other))["features"], np.ones((3, 7), dtype=bool))
    assert len(load(other).train) == 6, "masks say nothing about features that are no landmarks"


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "uint8", ">f4"])
def test_any_real_number_type_will_do(tmp_path: Path, dtype: str) -> None:
    folder = write_corpus(tmp_path)
    for file in (folder / "features").rglob("*.npz"):
        write_sequence(file, np.abs(np.load(file)["features"] * 9).astype(dtype))
    assert load(folder).train.features(0).dtype == np.float32


# Rules on sentences


def test_ids_without_features_are_counted_up_to_one_percent(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, {"train": ["A B"] * 200, "dev": ["A"]}, frames=8, width=2)
    train_file(folder, 5).unlink()
    train_file(folder, 9).unlink()
    corpus = load(folder)
    assert len(corpus.train) == 198
    assert "train: 2 of 200 sentences have no features and are left out (train-5, train-9)." in corpus.notes
    assert corpus.facts["splits"]["train"]["missing"] == ["train-5", "train-9"]
    train_file(folder, 7).unlink()
    refused(folder, "3 of 200 ids of train.corpus.csv have no features (train-5, train-7, train-9)", "1%")


def test_long_lists_are_cut_in_notes_and_whole_in_facts(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, {"train": ["A"] * 12 + [""] * 10, "dev": ["A"]}, frames=8, width=2)
    corpus = load(folder)
    ids = [f"train-{i}" for i in range(12, 22)]
    assert any(note.endswith(f"are dropped ({', '.join(ids)}).") for note in corpus.notes)
    for i in range(12):
        train_file(folder, 30 + i).write_bytes(b"")
    corpus = load(folder)
    assert any(note.endswith(", train-39 and 2 more).") for note in corpus.notes)
    assert corpus.facts["splits"]["train"]["unannotated"] == [f"train-{30 + i}" for i in range(12)]


def test_annotations_that_were_made_for_a_filter_get_a_note_that_names_it(tmp_path: Path) -> None:
    texts = {"train": ["SUN IX RAIN", "RAIN loc-NORD SUN", "SUN RAIN"], "dev": ["SUN"]}
    told = "25% of train's words are markers to the filter phoenix-si5; with it there are 3 classes instead of 5."
    folder = write_corpus(tmp_path / "marked", texts)
    assert any(note.startswith(told) for note in load(folder).notes)
    assert not any("filter" in note for note in load(folder, filter="phoenix-si5").notes)
    assert not any("filter" in note for note in load(write_corpus(tmp_path / "plain")).notes)  # of letters alone
    letters = write_corpus(
        tmp_path / "spelt", {"train": ["C A T", "SIXTEEN DOGS A B C", "SUN RAIN SNOW"], "dev": ["A"]}
    )
    assert not any("filter" in note for note in load(letters).notes), "they are words elsewhere; IX stands in SIXTEEN"


def test_the_blank_written_as_a_word_is_refused_with_its_place(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, {"train": ["A B", "A <blank> B"], "dev": ["A"]})
    refused(folder, "train.corpus.csv: the annotation of train-1 has the word <blank>", "delete it there")


def test_features_saved_as_npy_are_named(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    for file in (folder / "features" / "train").glob("*.npz"):
        file.rename(file.with_suffix(".npy"))
    said = "save train-0.npy, train-1.npy, train-2.npy and 3 more, which are not read, again with np.savez"
    refused(folder, "6 of 6 ids of train.corpus.csv have no features", said)


def test_empty_targets_are_dropped_and_counted(tmp_path: Path) -> None:
    texts = {"train": ["A1 B1", "IX __ON__", "", "B1"], "dev": ["A1", "loc-X"]}
    corpus = load(write_corpus(tmp_path, texts), filter="phoenix-si5")
    assert corpus.train.ids == ("train-0", "train-3")
    assert corpus.dev.ids == ("dev-0",)
    assert "train: 2 of 4 sentences have an empty target after the filter and are dropped (train-1, train-2)." in (
        corpus.notes
    )


def test_every_sentence_says_how_many_frames_it_needs(tmp_path: Path) -> None:
    texts = {"train": ["A B", "A B C", "A A", "A A B", "B", "C"], "dev": ["A B C", "A A", "A B", "B B"]}
    folder = write_corpus(tmp_path, texts, frames=11)  # two output frames at stride 4
    write_sequence(folder / "features" / "dev" / "dev-3.npz", np.ones((3, 6), np.float32))
    corpus = load(folder)
    assert (len(corpus.train), len(corpus.dev)) == (6, 4), "the corpus does not know the model's stride"
    assert corpus.train.needed.tolist() == [2, 3, 3, 4, 1, 1], "a repeat needs one more frame"
    assert corpus.train.fits(4).tolist() == [True, False, False, False, True, True], "an equal number is enough"
    assert corpus.dev.fits(4).tolist() == [False, False, True, False]
    assert corpus.train.fits(1).all()
    assert infeasible(corpus.train, 4) == ["train-1", "train-2", "train-3"]
    assert infeasible(corpus.dev, 4) == ["dev-0", "dev-1", "dev-3"]
    assert fit_note(corpus.train, 1) is None
    assert fit_note(corpus.train, 4) == (
        "train: 3 of 6 sentences are too short for their target at output stride 4 and are left out of training "
        "(train-1, train-2, train-3)."
    )
    assert "and are kept for WER but not for the loss (dev-0, dev-1, dev-3)" in str(fit_note(corpus.dev, 4))


def test_train_of_which_over_one_percent_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, {"train": ["A"] * 198 + ["A B"] * 3, "dev": ["A"]}, frames=8, width=2)
    train = load(folder).train
    check_fit(train, 4)
    with pytest.raises(CorpusError, match=r"train: 3 of 201 .* \(train-198, train-199, train-200\) at output stride 8"):
        check_fit(train, 8)
    shorter = load(write_corpus(tmp_path / "b", {"train": ["A"] * 199 + ["A B"] * 2, "dev": ["A"]}, frames=8, width=2))
    check_fit(shorter.train, 8)
    with pytest.raises(ValueError, match="stride is 0"):
        check_fit(train, 0)


def test_dev_words_out_of_the_vocabulary_stay_errors_of_the_model(tmp_path: Path) -> None:
    texts = {"train": ["A B", "B A"], "dev": ["A X B", "X Y", "A A"]}
    corpus = load(write_corpus(tmp_path, texts))
    assert corpus.dev.references == ("A X B", "X Y", "A A")
    assert [t.tolist() for t in corpus.dev.targets] == [[1, 2], [], [1, 1]]
    assert corpus.dev.needed.tolist() == [2, 0, 3]
    assert corpus.dev.fits(1).tolist() == [True, False, True]
    assert infeasible(corpus.dev, 1) == [], "where no gloss is known, nothing can be too short"
    assert corpus.facts["splits"]["dev"]["unknown"] == ["dev-1"]
    assert (
        "dev: 1 of 3 sentences hold no word of the vocabulary and are kept for WER but not for the loss (dev-1)."
        in (corpus.notes)
    )
    assert "dev: 3 of 7 words (42.86%) are out of the vocabulary (X, Y)." in corpus.notes


def test_a_vocabulary_that_does_not_fit_is_refused_with_the_filter_that_would(tmp_path: Path) -> None:
    texts = {"train": ["A1 loc-NORD", "B1 IX"] * 60, "dev": ["A1 B1"]}
    folder = write_corpus(tmp_path, texts, frames=12, width=2)
    file = tmp_path / "v.txt"
    Vocabulary(("<blank>", "B1", "A1", "C1")).to_file(file)
    refused(folder, str(file), "50.0% of the words of train.corpus.csv", "(loc-NORD, IX)", "set filter to phoenix-si5",
            vocabulary=file)  # fmt: skip
    corpus = load(folder, vocabulary=file, filter="phoenix-si5")
    assert corpus.vocabulary.glosses == ("<blank>", "B1", "A1", "C1")
    assert "1 of 3 glosses of the vocabulary never occur in train." in corpus.notes
    Vocabulary(("<blank>", "X")).to_file(file)
    refused(folder, "100.0%", "made for this annotation", vocabulary=file)


def test_a_few_unknown_words_of_train_are_dropped(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, {"train": ["A B"] * 100 + ["X"], "dev": ["A"]}, frames=8, width=2)
    file = tmp_path / "v.txt"
    Vocabulary(("<blank>", "A", "B")).to_file(file)
    corpus = load(folder, vocabulary=file)
    assert len(corpus.train) == 100
    assert corpus.facts["splits"]["train"]["unknown"] == ["train-100"]
    assert "train: 1 of 101 sentences hold no word of the vocabulary and are excluded (train-100)." in corpus.notes


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    refused(write_corpus(tmp_path / "a", {"train": ["IX", "A"], "dev": ["A1"]}), "holds no gloss", filter="phoenix-si5")
    refused(write_corpus(tmp_path / "b", {"train": ["A1"], "dev": ["IX"]}), "no sentence is left (1 empty)",
            filter="phoenix-si5")  # fmt: skip


@pytest.mark.parametrize("wrong", [{"filter": "phoenix"}, {"modalities": {}}, {"modalities": {"a": 0}}, {"patth": "x"}])
def test_a_wrong_config_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CorpusConfig.model_validate({"path": tmp_path, **wrong})


# Hash and cache


def test_the_hash_is_of_content_alone(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "a")
    before = load(folder).hash
    moved = tmp_path / "elsewhere" / "b"
    shutil.copytree(folder, moved)
    for file in (moved / "features").rglob("*.npz"):
        np.savez_compressed(file, features=np.load(file)["features"])
    csv_file = train_csv(moved)
    csv_file.write_bytes(b"\xef\xbb\xbf" + csv_file.read_bytes().replace(b"\n", b"\r\n"))
    assert load(moved).hash == before

    x = np.load(train_file(moved))["features"]
    changed = x.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
    write_sequence(train_file(moved), changed)
    assert load(moved).hash != before
    write_sequence(train_file(moved), x)
    assert load(moved).hash == before
    csv_file.write_text(csv_file.read_text(encoding="utf-8-sig").replace("B C", "B B"), encoding="utf-8")
    assert load(moved).hash != before


def test_the_cache_saves_the_scan_and_nothing_else(tmp_path: Path) -> None:
    folder, cache = write_corpus(tmp_path / "corpus"), tmp_path / "cache"
    config = CorpusConfig(path=folder)
    seen: list[tuple[str, int, int]] = []

    def scanned() -> model.corpus.data.Corpus:
        seen.clear()
        return load_corpus(config, cache=cache, progress=lambda *step: seen.append(step))

    first = scanned()
    assert seen == [("train", i, 6) for i in range(1, 7)] + [("dev", i, 3) for i in range(1, 4)]
    again = scanned()
    assert seen == []
    assert (again.hash, again.notes, again.facts) == (first.hash, first.notes, first.facts)
    np.testing.assert_array_equal(again.train.features(1), first.train.features(1))
    assert [p.suffix for p in cache.iterdir()] == [".npz"]

    x = np.load(train_file(folder))["features"]
    write_sequence(train_file(folder), -x)  # the same size, another time
    os.utime(train_file(folder), ns=(time.time_ns(), time.time_ns() + 1_000_000_000))
    assert scanned().hash != first.hash
    assert seen
    config = CorpusConfig(path=folder, modalities={"a": 3, "b": 3})
    assert [m.width for m in scanned().modalities] == [3, 3]
    assert not seen, "statistics do not depend on how the columns are split"


def test_torn_and_foreign_cache_files_are_not_trusted(tmp_path: Path) -> None:
    folder, cache = write_corpus(tmp_path / "corpus"), tmp_path / "cache"
    other = write_corpus(tmp_path / "other", seed=1)
    config = CorpusConfig(path=folder)
    seen: list[tuple[str, int, int]] = []

    def scanned() -> str:
        seen.clear()
        return load_corpus(config, cache=cache, progress=lambda *step: seen.append(step)).hash

    expected = scanned()
    file = next(cache.iterdir())
    whole = file.read_bytes()
    load_corpus(CorpusConfig(path=other), cache=tmp_path / "other-cache")
    foreign = next((tmp_path / "other-cache").iterdir()).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for broken in (b"", whole[:-40], whole[: len(whole) // 2], foreign, b"\x93NUMPY", bytes(flipped)):
        file.write_bytes(broken)
        assert scanned() == expected
        assert seen, "a broken file means another scan"
        assert scanned() == expected
        assert not seen, "which mends the file"


# Order and batches


def test_epoch_order_is_a_function_of_its_arguments() -> None:
    assert sorted(epoch_order(100, 3, 5)) == list(range(100))
    np.testing.assert_array_equal(epoch_order(100, 3, 5), epoch_order(100, 3, 5))
    orders = {tuple(epoch_order(100, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
    assert epoch_order(8, 0, 1).tolist() == EPOCH_ORDER, "every stored result depends on this order"
    assert epoch_order(0, 0, 0).tolist() == []


EPOCH_ORDER = [7, 4, 5, 1, 6, 2, 0, 3]


def test_a_batch_is_padded_with_zeros_and_targets_laid_end_to_end(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    write_sequence(train_file(folder, 3), np.ones((25, 6), np.float32))
    split = load(folder).train
    batch = make_batch(split, np.array([2, 3, 4]))
    assert batch.features.shape == (3, 40, 6)
    assert batch.features.dtype == np.float32
    assert batch.features.flags.writeable
    assert batch.lengths.tolist() == [40, 25, 40]
    assert batch.targets.tolist() == [3, 1, 2, 1, 3, 3]
    assert batch.target_lengths.tolist() == [3, 1, 2]
    assert batch.indices.tolist() == [2, 3, 4]
    assert {a.dtype for a in (batch.lengths, batch.targets, batch.target_lengths, batch.indices)} == {np.dtype("i8")}
    np.testing.assert_array_equal(batch.features[1, :25], split.features(3))
    assert not batch.features[1, 25:].any()


# Real recordings


@pytest.mark.skipif(not (SHARED / "an4").is_dir(), reason="needs ../shared/data/an4")
def test_an4_loads(tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig(path=SHARED / "an4"), cache=tmp_path)
    assert corpus.test is not None
    assert [len(s) for s in (corpus.train, corpus.dev, corpus.test)] == [835, 113, 130]
    assert [len(set(s.signers)) for s in (corpus.train, corpus.dev, corpus.test)] == [65, 9, 10]
    assert (corpus.width, len(corpus.vocabulary)) == (13, 99)
    assert re.search(r"dev: 1 of 625 words .* \(APRIL\)", " ".join(corpus.notes))
    assert {corpus.train.lengths.min(), corpus.train.lengths.max()} <= set(range(69, 640))
    assert all(np.isfinite(corpus.dev.features(i)).all() for i in range(113))


@pytest.mark.skipif(not (SHARED / "phoenix2014-si5").is_dir(), reason="needs ../shared/data/phoenix2014-si5")
def test_si5_annotations_load_over_features_of_the_real_lengths(tmp_path: Path) -> None:
    si5 = SHARED / "phoenix2014-si5"
    for split in ("train", "dev"):
        lines = (si5 / "annotations" / f"{split}.SI5.corpus.csv").read_text(encoding="utf-8").splitlines()[1:]
        (tmp_path / split).mkdir()
        for line in lines:
            name, *_, frames = line.split("|")
            x = np.arange(int(frames), dtype=np.float16)[:, None]
            with (tmp_path / split / f"{name}.npz").open("wb") as file:
                np.savez(file, features=x)
    for vocabulary in (None, si5 / "vocab_si5_973.txt"):
        config = CorpusConfig(
            path=tmp_path, annotations=si5 / "annotations", vocabulary=vocabulary, filter="phoenix-si5"
        )
        corpus = load_corpus(config, cache=tmp_path / "cache")
        assert (len(corpus.vocabulary), len(corpus.train), len(corpus.dev)) == (973, 4372, 111)
        facts = corpus.facts["splits"]
        assert len(facts["train"]["empty"]) == 3
        assert (facts["dev"]["oov_words"], facts["dev"]["words"]) == (9, 1025)
        assert [len(infeasible(corpus.train, stride)) for stride in (4, 8, 16, 32)] == [0, 62, 2881, 4308]
        check_fit(corpus.train, 4)
        with pytest.raises(CorpusError, match="62 of 4372 sentences are too short for their target"):
            check_fit(corpus.train, 8)
