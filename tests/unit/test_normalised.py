"""Normalised features beside those of a pack."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus, CorpusConfig, Split, load_corpus
from model.corpus.normalised import add_normalised
from model.corpus.pack import pack, verify
from model.corpus.packed import Packed, PackedReader
from model.corpus.synthetic import GeneratedConfig, generate
from model.ctc import CTCTrainer
from model.types import TrainingConfig
from tests.corpora import write_corpus

ROOT = Path(__file__).parents[2]


def load(folder: Path, **config: Any) -> Corpus:
    return load_corpus(CorpusConfig.model_validate({"path": folder, **config}))


def packed(folder: Path, out: Path) -> Packed:
    return pack(CorpusConfig(path=folder), out)


def splits(corpus: Corpus) -> list[Split]:
    return [split for split in (corpus.train, corpus.dev, corpus.test) if split is not None]


def ready(split: Split) -> bool:
    assert isinstance(split.read, PackedReader)
    return split.read.ready_for is split.normalisation


@pytest.mark.parametrize("width", [225, 6516])
def test_normalised_features_are_those_that_follow_from_the_pack(tmp_path: Path, width: int) -> None:
    folder = generate(GeneratedConfig(train=6, dev=3, test=2, glosses=8, width=width), tmp_path)
    pack_of = packed(folder, tmp_path / "packed")
    before = load(pack_of.path)
    assert not ready(before.train)
    size = add_normalised(pack_of)
    after = load(pack_of.path)
    assert after.hash == before.hash
    for a, b in zip(splits(before), splits(after), strict=True):
        assert all(np.array_equal(a.features(i), b.features(i)) for i in range(len(a)))
    assert size == (pack_of.path / "normalised.npy").stat().st_size
    for split in splits(after):
        assert ready(split)
        assert split.resident is None, "no worker keeps a copy of what all share"
    marked = np.load(pack_of.path / "normalised.npy", mmap_mode="r+")
    marked[0, 0] = 77.0
    marked.flush()
    assert load(pack_of.path).train.features(0)[0, 0] == 77.0, "it is read from there"
    with pytest.raises(
        CorpusError, match=r"normalised\.npy: .* of train is not what follows .* delete normalised\.json"
    ):
        verify(pack_of.path)


def test_another_normalisation_is_computed(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    pack_of = packed(folder, tmp_path / "packed")
    add_normalised(pack_of)
    stored = load(pack_of.path, normalise=False)
    assert not ready(stored.train)
    assert np.array_equal(stored.train.features(0), load(folder, normalise=False).train.features(0))
    tables = tmp_path / "fewer"
    tables.mkdir()
    for csv in (pack_of.path / "annotations").iterdir():
        lines = csv.read_text(encoding="utf-8").splitlines(keepends=True)
        (tables / csv.name).write_text("".join(lines[:-1] if "train" in csv.name else lines), encoding="utf-8")
    fewer = load(pack_of.path, annotations=tables)
    assert not ready(fewer.train), "the statistics of train are others"
    assert len(fewer.train) == len(stored.train) - 1


def test_adding_normalised_features_again_writes_nothing_and_a_torn_file_is_refused(tmp_path: Path) -> None:
    pack_of = packed(write_corpus(tmp_path / "corpus"), tmp_path / "packed")
    add_normalised(pack_of)
    file = pack_of.path / "normalised.npy"
    before = file.stat()
    add_normalised(pack_of)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    verify(pack_of.path)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        CorpusError, match=r"normalised\.npy: has \d+ bytes, but was written with \d+; delete normalised"
    ):
        load(pack_of.path)
    add_normalised(pack_of)  # as the message says
    verify(pack_of.path)
    assert ready(load(pack_of.path).train)
    (pack_of.path / "normalised.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"normalised\.json: cannot be used .* pack with --normalised"):
        load(pack_of.path)
    (pack_of.path / "normalised.json").unlink()
    assert not ready(load(pack_of.path).train)
    add_normalised(pack_of)
    assert ready(load(pack_of.path).train)


def test_a_full_disk_leaves_the_pack_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_of = packed(write_corpus(tmp_path / "corpus"), tmp_path / "packed")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("model.corpus.normalised.np.lib.format.write_array_header_1_0", full)
    with pytest.raises(CorpusError, match=r"normalised\.npy: cannot be written \(No space left.* The pack is whole"):
        add_normalised(pack_of)
    assert {p.name for p in pack_of.path.iterdir() if "normalised" in p.name} == set()
    verify(pack_of.path)


def test_training_on_normalised_features_is_the_same_to_the_bit(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    pack_of = packed(folder, tmp_path / "packed")
    add_normalised(pack_of)
    config = TrainingConfig(epochs=2, batch_size=2, channels=16, hidden=16)
    losses = []
    for path in (folder, pack_of.path):
        trainer = CTCTrainer(config, load(path))
        losses.append([trainer.train_epoch(lambda: False).metrics for _ in range(2)])
    assert [str(epoch) for epoch in losses[0]] == [str(epoch) for epoch in losses[1]]


def test_the_command_adds_them_and_says_so(tmp_path: Path) -> None:
    folder, out = write_corpus(tmp_path / "corpus"), tmp_path / "packed"
    for expected in (None, "normalised beside them"):
        words = [sys.executable, "-m", "model", "pack", str(folder), str(out)] + (["--normalised"] if expected else [])
        done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True, cwd=ROOT)
        assert (json.loads(done.stdout)["normalised_bytes"] is not None) == bool(expected)
        assert (expected or "stored as") in done.stderr
