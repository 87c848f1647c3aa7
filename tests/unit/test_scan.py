from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import model.corpus.scan
from model.corpus.annotations import CorpusError
from model.corpus.data import CorpusConfig, load_corpus
from model.corpus.features import base_parts, dimension_name, modalities_of, parts_of, read_recording, seen_parts
from model.corpus.folder import open_folder
from model.corpus.landmarks import with_motion
from model.corpus.scan import FileScan, Scan, in_order, scan_arrays, scan_corpus, scan_of
from tests.corpora import write_corpus, write_sequence

RNG = np.random.default_rng(0)


def scanned(folder: Path, *, stop_at_fault: bool = True) -> Scan:
    return scan_corpus(open_folder(folder).listings, stop_at_fault=stop_at_fault)


def train_file(folder: Path, number: int = 0) -> Path:
    return folder / "features" / "train" / f"train-{number}.npz"


def hands_come_and_go(folder: Path, width: int) -> Path:
    """Landmarks of sequences of several lengths, whose hands are missing here and there, by mask or as zeros."""
    write_corpus(folder, frames=4, width=width)
    for number, file in enumerate(sorted((folder / "features").rglob("*.npz"))):
        frames = 17 + 5 * number
        x = RNG.normal(0.5, 0.1, (frames, 1629 if width == 6516 else width)).astype(np.float32)
        masks = RNG.random((frames, 543)) < 0.9
        masks[3:7, 501:522] = False
        x[8:10, 162:225] = 0
        if number == 2:
            masks[:, 522:543] = False  # never seen in this one
        write_sequence(file, with_motion(x) if width == 6516 else x, masks)
    return folder


# Statistics


def plain_statistics(files: list[Path], width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation, one file after the other and one part at a time: as they were before there were threads."""
    parts = parts_of(width)
    mean, squares, counts = np.zeros(width), np.zeros(width), np.zeros(len(parts), dtype=np.int64)
    for file in files:
        x, detected = read_recording(file)
        seen = seen_parts(detected, parts)
        for i, part in enumerate(parts):
            rows = x[seen[:, i], part.columns].astype(np.float64)
            if not len(rows):
                continue
            own = rows.mean(axis=0)
            apart = own - mean[part.columns]
            share = len(rows) / (counts[i] + len(rows))
            squares[part.columns] += np.square(rows - own).sum(axis=0) + apart**2 * counts[i] * share
            mean[part.columns] += apart * share
            counts[i] += len(rows)
    each = np.repeat(np.maximum(counts, 1), [part.columns.stop - part.columns.start for part in parts])
    return mean, np.sqrt(squares / each)


@pytest.mark.parametrize("width", [1, 6, 225, 1025, 6516])
def test_statistics_are_to_the_bit_those_of_a_plain_loop(tmp_path: Path, width: int) -> None:
    if width in (225, 6516):
        hands_come_and_go(tmp_path, width)
    else:
        write_corpus(tmp_path, width=width)
    scan = scanned(tmp_path)
    for split, n in (("train", 6), ("dev", 3)):
        mean, std = plain_statistics([tmp_path / "features" / split / f"{split}-{i}.npz" for i in range(n)], width)
        assert scan.statistics[split].mean.tobytes() == mean.tobytes()
        assert scan.statistics[split].std.tobytes() == std.tobytes()


def test_statistics_do_not_depend_on_threads_or_on_how_arrays_lie_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hands_come_and_go(tmp_path, 225)
    several = scanned(folder)
    monkeypatch.setattr(model.corpus.scan, "_THREADS", 1)
    monkeypatch.setattr(model.corpus.scan, "_AHEAD", 1)
    for file in (folder / "features").rglob("*.npz"):
        with np.load(file) as stored:
            x, masks = stored["features"], stored["detection_masks"]
        write_sequence(file, np.asfortranarray(x), masks)
    one = scanned(folder)
    assert one.files == several.files
    assert one.statistics["train"].squares.tobytes() == several.statistics["train"].squares.tobytes()


# What each file holds


def test_a_file_scan_counts_by_part(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, frames=10, width=225)
    x = RNG.uniform(0.3, 0.7, (10, 225)).astype(np.float32)
    x[4:8, 99:162] = 0  # the left hand is gone for four frames, ...
    x[6:9, :99] = x[5, :99]  # the pose stands still for three
    masks = np.ones((10, 543), dtype=bool)
    masks[0, 501:522] = False  # ... and undetected in another
    write_sequence(train_file(folder), x, masks)
    found = scanned(folder).files["train"]["train-0"]
    assert [part.name for part in base_parts(parts_of(225))] == ["pose", "left hand", "right hand"]
    assert (found.frames, found.width, found.dtype) == (10, 225, "<f4")
    assert (found.zero, found.frozen, found.seen) == ((0, 4, 0), (3, 0, 0), (10, 5, 10))
    assert (found.not_finite, found.fault) == (0, None)


def test_all_columns_are_one_part_of_other_features_and_zeros_are_seen(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, frames=10)
    x = np.ones((10, 6), np.float32)
    x[2:5] = 0
    write_sequence(train_file(folder), x)
    found = scanned(folder).files["train"]["train-0"]
    assert (found.zero, found.frozen, found.seen) == ((3,), (5,), (10,)), "frames of zeros are not frozen ones"


def test_equal_digests_are_equal_recordings(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, frames=10, width=225)
    x, masks = RNG.uniform(0.3, 0.7, (10, 225)).astype(np.float32), np.ones((10, 543), dtype=bool)
    unseen = masks.copy()
    unseen[0, :33] = False
    partly = masks.copy()
    partly[0, 0] = False  # 32 landmarks of the pose are left
    for i, (features, found) in enumerate([(x, masks), (x, None), (x, partly), (x, unseen), (x.astype("<f8"), masks)]):
        write_sequence(train_file(folder, i), features, found)
    digests = [file.digest for file in scanned(folder).files["train"].values()]
    assert digests[0] == digests[1] == digests[2], "what is detected counts, not how it is said"
    assert len({digests[0], digests[3], digests[4], digests[5]}) == 4


def test_a_scan_is_the_same_after_being_stored(tmp_path: Path) -> None:
    scan = scanned(hands_come_and_go(tmp_path / "corpus", 225))
    np.savez(tmp_path / "scan.npz", **scan_arrays(scan))
    with np.load(tmp_path / "scan.npz") as stored:
        again = scan_of(stored)
    assert again.files == scan.files
    assert again.digest == scan.digest
    for split, statistics in scan.statistics.items():
        assert again.statistics[split].std.tobytes() == statistics.std.tobytes()
        assert again.statistics[split].parts == statistics.parts


# Faults


def test_bad_files_are_faults_and_the_others_count(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    whole = train_file(folder, 1).read_bytes()
    x = np.load(train_file(folder, 2))["features"]
    train_file(folder, 1).write_bytes(whole[:-40])
    x[3, 2:5] = np.nan
    write_sequence(train_file(folder, 2), x)
    write_sequence(train_file(folder, 3), np.ones((40, 5), np.float32))
    write_sequence(train_file(folder, 4), np.zeros((0, 6), np.float32))
    seen: list[tuple[str, int, int]] = []
    scan = scan_corpus(open_folder(folder).listings, lambda *at: seen.append(at), stop_at_fault=False)
    found = {name: file for files in scan.files.values() for name, file in files.items()}
    assert list(found) == [f"train-{i}" for i in range(6)] + [f"dev-{i}" for i in range(3)]
    assert seen[-1] == ("dev", 3, 3)
    faults = {name: file.fault for name, file in found.items() if file.fault is not None}
    assert list(faults) == ["train-1", "train-2", "train-3", "train-4"]
    assert "cannot be read as npz" in faults["train-1"]
    assert "hold nan at frame 3, dimension 2 (3 such values)" in faults["train-2"]
    assert "features are 5 wide, those of" in faults["train-3"]
    assert "features are float32 (0, 6)" in faults["train-4"]
    assert found["train-1"] == FileScan(fault=faults["train-1"])
    assert (found["train-2"].not_finite, found["train-2"].frames) == (3, 40)
    assert all(str(train_file(folder, i)) in faults[f"train-{i}"] for i in range(1, 5))

    assert scan.statistics["train"].seen.tolist() == [80], "two whole files"
    assert np.isfinite(scan.statistics["train"].std).all()
    with pytest.raises(CorpusError, match=r"train-1\.npz: cannot be read"):
        scanned(folder)
    with pytest.raises(CorpusError, match=r"train-1\.npz: cannot be read"):
        load_corpus(CorpusConfig(path=folder))


def test_where_no_file_can_be_read_there_is_a_scan_without_statistics(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    for file in (folder / "features").rglob("*.npz"):
        file.write_bytes(b"")
    scan = scanned(folder, stop_at_fault=False)
    assert (scan.width, scan.statistics) == (0, {})
    assert all(file.fault for files in scan.files.values() for file in files.values())


# Names and widths


def test_dimensions_have_names() -> None:
    assert dimension_name(13, 7) == "features 7"
    assert [dimension_name(225, d) for d in (0, 98, 101, 224)] == [
        "pose 0 x",
        "pose 32 z",
        "left hand 0 z",
        "right hand 20 z",
    ]
    assert [dimension_name(6516, d) for d in (1628, 1629, 3258 + 99, 6515)] == [
        "face 467 z",
        "velocity pose 0 x",
        "acceleration left hand 0 x",
        "copy face 467 z",
    ]


def test_parts_and_modalities_shrink_with_the_dimensions_that_are_kept() -> None:
    kept = np.ones(225, dtype=bool)
    kept[[0, 1, 98, 101]] = False
    kept[162:] = False
    parts = parts_of(225, kept)
    assert [(part.name, part.width) for part in parts] == [("pose", 96), ("left hand", 62), ("right hand", 0)]
    assert parts[1].columns == slice(96, 158)
    assert [(m.name, m.width) for m in modalities_of(225, None, kept)] == [("pose", 96), ("hands", 62)]
    own = {"body": 162, "right": 63}
    assert [(m.name, m.width) for m in modalities_of(225, own, kept)] == [("body", 158)], (
        "an empty block has no encoder"
    )


# Threads


def test_work_is_done_ahead_but_not_without_bound_and_comes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.scan, "_THREADS", 3)
    monkeypatch.setattr(model.corpus.scan, "_AHEAD", 4)
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(20):
            taken += 1
            yield i

    def work(i: int) -> int:
        time.sleep(0.003 if i % 2 else 0)
        return i

    for given, i in enumerate(in_order(work, items())):
        assert i == given
        assert taken <= given + 4


def test_an_error_in_a_thread_is_raised_in_its_turn_and_stops_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.corpus.scan, "_THREADS", 2)
    monkeypatch.setattr(model.corpus.scan, "_AHEAD", 4)
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 3:
            raise CorpusError("torn")
        return i

    given: list[int] = []
    before = threading.active_count()
    with pytest.raises(CorpusError, match="torn"):
        given.extend(in_order(work, range(100)))
    assert given == [0, 1, 2]
    assert len(begun) <= 7
    assert threading.active_count() == before
