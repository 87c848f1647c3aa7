"""The corpus folder: one npz a sequence and one PHOENIX CSV a split, checked, normalised and batched.

A corpus is read once from end to end (`_scan`): every file is validated and counted into the statistics and the hash.
What that pass found may be kept in a cache folder, so that worker processes start without another pass.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.vocabulary import FILTERS, Vocabulary, build_vocabulary

Progress = Callable[[str, int, int], None]
"""Called as (split, files done, files in the split)."""

SPLITS = ("train", "dev", "test")
MODALITIES: Mapping[int, Mapping[str, int]] = {
    225: {"pose": 99, "hands": 126},
    6516: {"pose": 99, "hands": 126, "face": 1404, "temporal": 4887},
}
"""Feature widths that are known to be MediaPipe landmarks, and the blocks they are made of."""

RESIDENT_BYTES = 1 << 30
"""A corpus below this size (float32) stays in memory once read; a larger one is read from its files every time."""
MISSING_SHARE = 0.01
"""More ids without features, or more words of train out of the vocabulary, than this share stop the load."""
INFEASIBLE_SHARE = 0.5
"""More training sentences too short for their target than this share stop the load."""

_SCAN_VERSION = 2  # part of the cache key: raise it when `_scan` computes anything differently
_MASK_WIDTH = 543
# name, width, columns of detection_masks: one block of landmarks in the features' order (225 has no face)
_LANDMARKS = (
    ("pose", 99, (0, 33)),
    ("left hand", 63, (501, 522)),
    ("right hand", 63, (522, 543)),
    ("face", 1404, (33, 501)),
)
# how many frames, this one and those before it, a value of the block is made of; 225 has the first block only
_BLOCKS = (("", 1), ("velocity ", 2), ("acceleration ", 3), ("copy ", 1))
# What reading an npz that is torn, encrypted (RuntimeError) or packed in an unknown way may raise.
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class CorpusError(ValueError):
    """The corpus breaks a rule; the message names the file, the value, the rule and the way out."""


class CorpusConfig(BaseModel):
    """Where a corpus lies and how its annotation is read.

    Raises:
        pydantic.ValidationError: an unknown field, an unknown filter, or a modality without columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="folder that holds features/ and annotations/, or train/ dev/ test/")
    annotations: Path | None = Field(None, description="folder of the CSVs (default: looked for beside the features)")
    vocabulary: Path | None = Field(None, description="vocabulary file (default: built from train)")
    filter: str = Field("none", description=f"which words are glosses: {', '.join(FILTERS)}")
    modalities: dict[str, int] | None = Field(None, description="blocks of the feature vector: name to width")

    @field_validator("filter")
    @classmethod
    def _known_filter(cls, name: str) -> str:
        if name not in FILTERS:
            raise ValueError(f"{name!r} is no filter; use one of {', '.join(FILTERS)}")
        return name

    @field_validator("modalities")
    @classmethod
    def _positive_widths(cls, modalities: dict[str, int] | None) -> dict[str, int] | None:
        if modalities is not None and (not modalities or min(modalities.values()) < 1):
            raise ValueError(f"{modalities} has a block without columns; give every modality a width of at least 1")
        return modalities


@dataclass(frozen=True)
class Modality:
    """Adjacent columns of the feature vector that one encoder reads."""

    name: str
    width: int


class _Part(NamedTuple):
    """Adjacent columns that are seen or missing together in a frame, such as one hand."""

    name: str
    columns: slice
    landmarks: slice  # the columns it is made of: its own, or the positions of which it is the velocity
    mask: slice | None  # their columns of detection_masks; None: no landmarks, which are never missing
    frames: int  # how many frames, this one and those before it, it is made of


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Zero mean and unit deviation over the train frames in which a part was seen; a missing part is zero.

    Only landmarks can be missing: in features of another width a frame of zeros is a frame like any other.
    """

    parts: tuple[_Part, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    """1 / standard deviation (D,); 0 for a constant dimension."""

    def __call__(self, x: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Normalise features (T, D), with detection_masks (T, 543) where there are any."""
        out = ((x - self.mean) * self.scale).astype(np.float32)
        seen = _seen(x, mask, self.parts)
        if not seen.all():
            widths = [part.columns.stop - part.columns.start for part in self.parts]
            out[~np.repeat(seen, widths, axis=1)] = 0
        return out


@dataclass(frozen=True, eq=False)
class Split:
    """The sentences of one split that take part, in the order of the CSV."""

    name: str
    ids: tuple[str, ...]
    signers: tuple[str, ...]
    lengths: NDArray[np.int64]
    """Frames of each sequence (N,)."""
    targets: tuple[NDArray[np.int64], ...]
    """Class indices; words out of the vocabulary are dropped, the blank never occurs."""
    references: tuple[str, ...]
    """Filtered annotation, words joined by one space; a word out of the vocabulary stays: it is an error to count."""
    feasible: NDArray[np.bool_]
    """Whether an alignment fits: T // stride >= glosses + adjacent repeats, and at least one gloss is known.

    All true in train; elsewhere the others count for WER but not for the loss.
    """
    files: tuple[Path, ...]
    normalisation: Normalisation
    resident: dict[int, NDArray[np.float32]] | None = field(repr=False)
    """Sequences read so far; None where the corpus is too large to keep."""

    def __len__(self) -> int:
        return len(self.ids)

    def features(self, i: int) -> NDArray[np.float32]:
        """Normalised features (T, D) of sequence i, read-only.

        Raises:
            CorpusError: the file has become unreadable, or has changed since the corpus was checked.
        """
        if self.resident is not None and i in self.resident:
            return self.resident[i]
        x = self.normalisation(*_read(self.files[i]))
        if x.shape != (self.lengths[i], len(self.normalisation.mean)):
            raise CorpusError(f"{self.files[i]}: is {x.shape} now, but was checked otherwise; load the corpus again")
        x.flags.writeable = False
        if self.resident is not None:
            self.resident[i] = x
        return x


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus that was read once from end to end and keeps every rule."""

    name: str
    folder: Path
    """Holds train/ dev/ test/."""
    annotations: Path
    vocabulary: Vocabulary
    modalities: tuple[Modality, ...]
    width: int
    """Columns of the features (D)."""
    train: Split
    dev: Split
    test: Split | None
    hash: str
    """SHA-256 of the features and annotations of all splits (hex); neither paths nor times count."""
    notes: tuple[str, ...]
    """What was dropped, excluded or missing, a sentence each."""
    facts: dict[str, Any]
    """The numbers behind the notes, as JSON types."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences padded with zeros, and their targets laid end to end, as CTC loss takes them."""

    features: NDArray[np.float32]
    """(B, T, D), T the longest of the batch."""
    lengths: NDArray[np.int64]
    """Frames (B,)."""
    targets: NDArray[np.int64]
    """Class indices (sum of target_lengths,)."""
    target_lengths: NDArray[np.int64]
    """Glosses (B,)."""
    indices: NDArray[np.int64]
    """Which sequences of the split (B,)."""


def epoch_order(n: int, data_seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of n training sequences in an epoch: a permutation, and a function of the arguments alone."""
    # Raw bits of a named bit generator, unlike Generator.permutation, are the same in every numpy release.
    bits = np.random.PCG64(np.random.SeedSequence([data_seed, epoch]))
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int64)


def make_batch(split: Split, indices: Iterable[int]) -> Batch:
    """The sequences at these indices as one batch.

    Raises:
        CorpusError: see `Split.features`.
    """
    rows = [int(i) for i in indices]
    sequences = [split.features(i) for i in rows]
    targets = [split.targets[i] for i in rows]
    features = np.zeros((len(rows), max(map(len, sequences)), sequences[0].shape[1]), dtype=np.float32)
    for padded, sequence in zip(features, sequences, strict=True):
        padded[: len(sequence)] = sequence
    return Batch(
        features=features,
        lengths=np.array([len(x) for x in sequences], dtype=np.int64),
        targets=np.concatenate(targets),
        target_lengths=np.array([len(t) for t in targets], dtype=np.int64),
        indices=np.array(rows, dtype=np.int64),
    )


def load_corpus(
    config: CorpusConfig, *, stride: int = 4, cache: Path | None = None, progress: Progress | None = None
) -> Corpus:
    """Check a corpus from end to end and make it ready to train on.

    Args:
        stride: input frames per output frame of the model; decides which targets an alignment fits.
        cache: folder where the result of the pass over all files is kept. It is used again while names, sizes and
            times of the files stay the same; without it every call reads every file.
        progress: called after each file of that pass.

    Raises:
        CorpusError: a rule is broken; one line names file, value, rule and way out.
        ValueError: the vocabulary file is malformed, or stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}; it counts input frames per output frame, so give 1 or more")
    folder, annotations = _locate(config)
    listings = [listing for name in SPLITS if (listing := _list_split(name, folder, annotations)) is not None]
    words = {s.name: [_glosses(row, config.filter) for row in s.rows] for s in listings}
    if config.vocabulary is None:
        vocabulary = build_vocabulary(words["train"])
    else:
        vocabulary = Vocabulary.from_file(config.vocabulary)
        _check_vocabulary(vocabulary, config, listings[0])
    if len(vocabulary) == 1:
        raise CorpusError(
            f"{listings[0].csv}: holds no gloss after the filter {config.filter!r}; choose another filter"
        )

    # Checked on one file, before the pass over all of them.
    modalities = _modalities(_read(listings[0].first)[0].shape[1], config.modalities)
    scan = _cached_scan(listings, folder, cache, progress)
    parts = _parts(scan.width)
    constant = _constant(scan, parts)
    scale = np.divide(1.0, scan.std, out=np.zeros_like(scan.std), where=~constant)
    normalisation = Normalisation(parts, scan.mean, scale)
    size = 4 * scan.width * sum(int(scan.lengths[s.name].sum()) for s in listings)

    notes: list[str] = []
    facts: dict[str, Any] = {
        "width": scan.width,
        "classes": len(vocabulary),
        "bytes": size,
        "constant_dimensions": np.flatnonzero(constant).tolist(),
        "missing": _missing_shares(scan, parts),
        "splits": {},
    }
    splits: dict[str, Split] = {}
    for s in listings:
        splits[s.name], facts["splits"][s.name] = _make_split(
            s, words[s.name], scan.lengths[s.name], vocabulary, stride, normalisation, keep=size < RESIDENT_BYTES
        )
        notes += _notes(s, facts["splits"][s.name], stride)
    if "test" not in splits:
        notes.append("No test split, which is optional (a CSV and a folder of features would make one).")
    if unused := set(vocabulary.glosses[1:]).difference(*words["train"]):
        notes.append(f"{len(unused)} of {len(vocabulary) - 1} glosses of the vocabulary never occur in train.")
    if constant.any():
        notes.append(f"{constant.sum()} of {scan.width} dimensions are constant over train and read as zero.")
    notes += [
        f"The {part} is missing in {share:.0%} of the train frames."
        for part, share in facts["missing"].items()
        if share >= 0.01
    ]
    return Corpus(
        name=config.path.resolve().name,
        folder=folder,
        annotations=annotations,
        vocabulary=vocabulary,
        modalities=modalities,
        width=scan.width,
        train=splits["train"],
        dev=splits["dev"],
        test=splits.get("test"),
        hash=_hash(scan.digest, [(s.name, [list(r) for r in s.rows]) for s in listings]),
        notes=tuple(notes),
        facts=facts,
    )


# Where things lie


def _locate(config: CorpusConfig) -> tuple[Path, Path]:
    """The folder of train/ dev/ test/ and the folder of the CSVs."""
    path = config.path.resolve()
    if not path.is_dir():
        raise CorpusError(f"{config.path}: there is no such folder; name the one that holds features/ or train/")
    folder = path / "features" if (path / "features").is_dir() else path
    if not (folder / "train").is_dir():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise CorpusError(
            f"{folder}: holds no train/ (it holds {found}); name the folder that holds features/train or train"
        )
    if config.annotations is not None:
        if not config.annotations.is_dir():
            raise CorpusError(f"{config.annotations}: there is no such folder; name the one that holds the CSVs")
        return folder, config.annotations.resolve()
    for place in (folder, *folder.parents[:3]):
        for pattern in ("annotations", "annotations/manual", "raw_data/*/annotations/manual"):
            found_in = [p for p in sorted(place.glob(pattern)) if any(p.glob("train*.csv"))]
            if len(found_in) > 1:
                raise CorpusError(
                    f"{place}: annotations lie in {', '.join(map(str, found_in))}; say which with annotations"
                )
            if found_in:
                return folder, found_in[0]
    raise CorpusError(
        f"{config.path}: no annotations/ with a train*.csv lies in it or beside it; name their folder with annotations"
    )


def _find_csv(annotations: Path, split: str) -> Path | None:
    for pattern in (f"{split}.corpus.csv", f"{split}.*.corpus.csv", f"{split}*.csv"):
        found = sorted(annotations.glob(pattern))
        if len(found) > 1:
            raise CorpusError(
                f"{annotations}: {', '.join(p.name for p in found)} could all be {split}; "
                f"leave one, or name one {split}.corpus.csv"
            )
        if found:
            return found[0]
    return None


class _Row(NamedTuple):
    id: str
    signer: str
    annotation: str


def _read_csv(file: Path) -> list[_Row]:
    """The sentences of a split: columns id and annotation; signer where there is one; others are not read."""
    rows: dict[str, _Row] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
            header = [name.strip() for name in next(table, [])]
            for column in ("id", "annotation"):
                if column not in header:
                    raise CorpusError(
                        f"{file}: has no column {column!r} (it has {', '.join(header) or 'none'}); "
                        "the first line reads id|folder|signer|annotation"
                    )
            for cells in table:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise CorpusError(
                        f"{file}: line {table.line_num} has {len(cells)} cells, the header {len(header)}; "
                        "cells are parted by | and may not hold one"
                    )
                row = dict(zip(header, map(str.strip, cells), strict=True))
                name = row["id"]
                if name in rows:
                    raise CorpusError(f"{file}: line {table.line_num} repeats the id {name!r}; an id names one file")
                if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
                    raise CorpusError(
                        f"{file}: line {table.line_num} has the id {name!r}; an id is a file's name without .npz, "
                        "not a path"
                    )
                rows[name] = _Row(name, row.get("signer") or "unknown", row["annotation"])
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise CorpusError(f"{file}: cannot be read as a table ({error}); it is text parted by |") from error
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    return list(rows.values())


@dataclass(frozen=True)
class _Listing:
    """What a split's CSV and folder say before any feature is read."""

    name: str
    csv: Path
    rows: list[_Row]
    files: dict[str, Path]  # by id, in the order of the rows; an id without features is absent
    unannotated: list[str]

    @property
    def first(self) -> Path:
        """The file whose width all others must have."""
        return next(iter(self.files.values()))


def _list_split(name: str, folder: Path, annotations: Path) -> _Listing | None:
    table, place = _find_csv(annotations, name), folder / name
    if name == "test" and (table is None or not place.is_dir()):
        return None
    if table is None:
        raise CorpusError(f"{annotations}: there is no {name}.corpus.csv nor any {name}*.csv; train and dev need one")
    if not place.is_dir():
        raise CorpusError(f"{place}: there is no such folder; the features of {table.name} belong there")
    rows = _read_csv(table)
    if not rows:
        way_out = "delete it to go without a test split" if name == "test" else "train and dev need some"
        raise CorpusError(f"{table}: has no sentences below its first line; {way_out}")
    present = {p.stem: p for p in place.glob("*.npz") if not p.name.startswith(".")}
    files = {row.id: present.pop(row.id) for row in rows if row.id in present}
    missing = [row.id for row in rows if row.id not in files]
    if len(missing) > MISSING_SHARE * len(rows):
        raise CorpusError(
            f"{place}: {len(missing)} of {len(rows)} ids of {table.name} have no features ({_some(missing)}); at most "
            f"{MISSING_SHARE:.0%} may be missing, so extract them or delete their lines"
        )
    return _Listing(name, table, rows, files, sorted(present))


def _some(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


# Targets


def _glosses(row: _Row, filter_name: str) -> list[str]:
    return list(filter(FILTERS[filter_name], row.annotation.split()))


def _oov_share(vocabulary: Vocabulary, rows: Sequence[_Row], filter_name: str) -> tuple[float, list[str]]:
    words = [word for row in rows for word in _glosses(row, filter_name)]
    oov = vocabulary.oov(words)
    return len(oov) / max(len(words), 1), oov


def _check_vocabulary(vocabulary: Vocabulary, config: CorpusConfig, train: _Listing) -> None:
    share, oov = _oov_share(vocabulary, train.rows, config.filter)
    if share <= MISSING_SHARE:
        return
    fitting = [name for name in FILTERS if _oov_share(vocabulary, train.rows, name)[0] <= MISSING_SHARE]
    way_out = f"set filter to {fitting[0]}" if fitting else "name the vocabulary that was made for this annotation"
    raise CorpusError(
        f"{config.vocabulary}: {share:.1%} of the words of {train.csv.name} are out of this vocabulary "
        f"({_some(list(dict.fromkeys(oov)))}); at most {MISSING_SHARE:.0%} may be, so {way_out} or leave it out"
    )


def _make_split(
    listing: _Listing,
    words: list[list[str]],
    lengths: NDArray[np.int64],
    vocabulary: Vocabulary,
    stride: int,
    normalisation: Normalisation,
    *,
    keep: bool,
) -> tuple[Split, dict[str, Any]]:
    """Choose the sentences that take part. Returns the split and the ids of those that do not, by reason."""
    frames = dict(zip(listing.files, lengths.tolist(), strict=True))
    out: dict[str, list[str]] = {reason: [] for reason in ("missing", "empty", "short", "unknown", "infeasible")}
    kept: list[tuple[_Row, list[str], NDArray[np.int64], bool]] = []
    for row, reference in zip(listing.rows, words, strict=True):
        target = vocabulary.encode(reference)
        if row.id not in frames:
            out["missing"].append(row.id)
        elif not reference:
            out["empty"].append(row.id)
        elif frames[row.id] < stride:
            out["short"].append(row.id)
        else:
            # CTC needs a blank between two equal neighbours.
            needed = len(target) + int((target[1:] == target[:-1]).sum())
            feasible = len(target) > 0 and frames[row.id] // stride >= needed
            if not feasible:
                out["infeasible" if len(target) else "unknown"].append(row.id)
            if feasible or listing.name != "train":
                kept.append((row, reference, target, feasible))
    too_short = out["short"] + out["infeasible"]
    if listing.name == "train" and len(too_short) > INFEASIBLE_SHARE * len(frames):
        raise CorpusError(
            f"{listing.csv}: {len(too_short)} of {len(frames)} sentences are too short for their target "
            f"({_some(too_short)}) at output stride {stride}: T // {stride} must reach glosses + adjacent repeats; "
            "lower the output stride, or check that these annotations belong to these features"
        )
    if not kept:
        reasons = ", ".join(f"{len(ids)} {reason}" for reason, ids in out.items() if ids)
        raise CorpusError(f"{listing.csv}: no sentence is left ({reasons}); check the filter and the features")
    references = [reference for _, reference, _, _ in kept]
    oov = [word for reference in references for word in vocabulary.oov(reference)]
    split = Split(
        name=listing.name,
        ids=tuple(row.id for row, *_ in kept),
        signers=tuple(row.signer for row, *_ in kept),
        lengths=np.array([frames[row.id] for row, *_ in kept], dtype=np.int64),
        targets=tuple(target for _, _, target, _ in kept),
        references=tuple(" ".join(reference) for reference in references),
        feasible=np.array([feasible for *_, feasible in kept]),
        files=tuple(listing.files[row.id] for row, *_ in kept),
        normalisation=normalisation,
        resident={} if keep else None,
    )
    return split, {
        "annotated": len(listing.rows),
        "sentences": len(split),
        "frames": int(split.lengths.sum()),
        "signers": len(set(split.signers)),
        "words": sum(map(len, references)),
        "oov_words": len(oov),
        "oov": list(dict.fromkeys(oov)),
        "unannotated": listing.unannotated,
        **out,
    }


def _notes(listing: _Listing, facts: Mapping[str, Any], stride: int) -> list[str]:
    fate, short = "kept for WER but not for the loss", "left out of WER and loss"
    if listing.name == "train":
        fate = short = "excluded"
    sentences = {
        "missing": "have no features and are left out",
        "empty": "have an empty target after the filter and are dropped",
        "short": f"are shorter than one output frame ({stride} frames) and are {short}",
        "unknown": f"hold no word of the vocabulary and are {fate}",
        "infeasible": f"are too short for their target at output stride {stride} and are {fate}",
    }
    notes = [
        f"{listing.name}: {len(facts[reason])} of {facts['annotated']} sentences {text} ({_some(facts[reason], 10)})."
        for reason, text in sentences.items()
        if facts[reason]
    ]
    if facts["unannotated"]:
        found = facts["unannotated"]
        notes.append(
            f"{listing.name}: {len(found)} feature files have no annotation and are not used ({_some(found, 10)})."
        )
    if facts["oov_words"]:
        notes.append(
            f"{listing.name}: {facts['oov_words']} of {facts['words']} words "
            f"({facts['oov_words'] / facts['words']:.2%}) are out of the vocabulary ({_some(facts['oov'], 10)})."
        )
    if all(row.signer == "unknown" for row in listing.rows):
        notes.append(f"{listing.name}: {listing.csv.name} names no signer; all read as unknown.")
    return notes


# Features


@contextmanager
def _open_npz(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with file.open("rb") as opened:  # np.load leaves a broken file open
        stored = np.load(opened, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array")
        yield stored


def _read(file: Path) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """`features` (T, D) as stored and `detection_masks` (T, 543) where they fit the landmarks of the features."""
    way_out = "write it again, or delete it: an id without features is counted and left out"
    try:
        with _open_npz(file) as stored:
            if "features" not in stored:
                raise CorpusError(
                    f"{file}: has no array 'features' (it has {', '.join(stored) or 'none'}); "
                    "save it with np.savez(file, features=...)"
                )
            x = stored["features"]
            mask = stored.get("detection_masks")
    except CorpusError:
        raise
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"{file}: cannot be read as npz ({reason}); {way_out}") from error
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "fiu":
        raise CorpusError(f"{file}: features are {x.dtype} {x.shape}; they must be numbers (frames, dimensions)")
    # Beyond float32 a number is as useless to the model as infinity.
    finite = np.isfinite(x) if x.dtype.itemsize <= 4 else np.abs(x) <= np.finfo(np.float32).max
    if not finite.all():
        t, d = (int(i) for i in np.argwhere(~finite)[0])
        raise CorpusError(
            f"{file}: features hold {x[t, d]} at frame {t}, dimension {d} ({(~finite).sum()} such values); "
            f"features must be finite, so {way_out}"
        )
    if mask is None or x.shape[1] not in MODALITIES:
        return x, None
    if mask.shape != (len(x), _MASK_WIDTH):
        raise CorpusError(
            f"{file}: detection_masks are {mask.shape}, but {len(x)} frames of landmarks need "
            f"({len(x)}, {_MASK_WIDTH}); {way_out}"
        )
    return x, mask.astype(bool)


def _modalities(width: int, configured: Mapping[str, int] | None) -> tuple[Modality, ...]:
    blocks = configured or MODALITIES.get(width, {"features": width})
    if sum(blocks.values()) != width:
        raise CorpusError(
            f"modalities {dict(blocks)} add up to {sum(blocks.values())}, but the features have {width} dimensions; "
            "make the widths add up, or leave modalities out"
        )
    return tuple(Modality(name, size) for name, size in blocks.items())


def _parts(width: int) -> tuple[_Part, ...]:
    """What can be missing on its own in features that wide, however the config splits them for the encoders."""
    if width not in MODALITIES:
        whole = slice(0, width)
        return (_Part("features", whole, whole, None, 1),)
    landmarks = _LANDMARKS if "face" in MODALITIES[width] else _LANDMARKS[:3]
    parts = []
    start = 0
    for prefix, frames in _BLOCKS[: width // sum(size for _, size, _ in landmarks)]:
        block = start
        for name, size, mask in landmarks:
            source = slice(start - block, start - block + size)
            parts.append(_Part(prefix + name, slice(start, start + size), source, slice(*mask), frames))
            start += size
    return tuple(parts)


def _seen(x: NDArray[Any], mask: NDArray[np.bool_] | None, parts: tuple[_Part, ...]) -> NDArray[np.bool_]:
    """Which parts are seen in which frames (T, P): their landmarks are not all zero, and not all undetected.

    A velocity or acceleration takes landmarks seen in every frame it is made of: where a hand reappears, it is the
    jump from zero. For the same reason it is not seen in the first frames of a sequence: what stands there is the 0 of
    a difference without a frame before it, and an acceleration made of that 0.
    """
    seen = np.ones((len(x), len(parts)), dtype=np.bool_)
    for i, part in enumerate(parts):
        if part.mask is None:
            continue
        found: NDArray[np.bool_] = np.any(x[:, part.landmarks], axis=1)
        if mask is not None:
            found &= mask[:, part.mask].any(axis=1)
        for ago in range(part.frames):
            seen[:ago, i] = False
            seen[ago:, i] &= found[: max(len(x) - ago, 0)]
    return seen


@dataclass(frozen=True, eq=False)
class _Scan:
    """What one pass over every file found. Statistics are over all annotated train files, whatever the filter."""

    lengths: dict[str, NDArray[np.int64]]  # frames of each file of a split
    mean: NDArray[np.float64]  # (D,)
    std: NDArray[np.float64]  # (D,)
    seen: NDArray[np.int64]  # train frames in which a part was seen (P,)
    digest: str

    @property
    def width(self) -> int:
        return len(self.mean)


def _scan(listings: Sequence[_Listing], progress: Progress | None) -> _Scan:
    first = listings[0].first
    width = _read(first)[0].shape[1]
    parts = _parts(width)
    mean, squares = np.zeros(width), np.zeros(width)
    seen = np.zeros(len(parts), dtype=np.int64)
    digest = hashlib.sha256()
    lengths = {}
    for listing in listings:
        frames = []
        for done, (name, file) in enumerate(listing.files.items(), start=1):
            x, mask = _read(file)
            if x.shape[1] != width:
                raise CorpusError(
                    f"{file}: features are {x.shape[1]} wide, those of {first} {width}; "
                    "a corpus has one width, so extract them alike"
                )
            frames.append(len(x))
            digest.update(_hash(listing.name, name, x.dtype.str, x.shape, mask is not None).encode())
            digest.update(x.tobytes())
            if mask is not None:
                digest.update(np.packbits(mask).tobytes())
            if listing.name == "train":
                _accumulate(x, _seen(x, mask, parts), parts, mean, squares, seen)
            if progress is not None:
                progress(listing.name, done, len(listing.files))
        lengths[listing.name] = np.array(frames, dtype=np.int64)
    counts = np.repeat(np.maximum(seen, 1), [part.columns.stop - part.columns.start for part in parts])
    return _Scan(lengths, mean, np.sqrt(squares / counts), seen, digest.hexdigest())


def _accumulate(
    x: NDArray[Any],
    present: NDArray[np.bool_],
    parts: tuple[_Part, ...],
    mean: NDArray[np.float64],
    squares: NDArray[np.float64],
    seen: NDArray[np.int64],
) -> None:
    """Merge one sequence into mean and sum of squared deviations, in place (Chan et al. 1979).

    Deviations are taken from the sequence's own mean, so that nothing cancels however large the mean is.
    """
    for i, part in enumerate(parts):
        rows = x[present[:, i], part.columns].astype(np.float64)
        if not len(rows):
            continue
        own = rows.mean(axis=0)
        apart = own - mean[part.columns]
        share = len(rows) / (seen[i] + len(rows))
        squares[part.columns] += np.square(rows - own).sum(axis=0) + apart**2 * seen[i] * share
        mean[part.columns] += apart * share
        seen[i] += len(rows)


def _constant(scan: _Scan, parts: tuple[_Part, ...]) -> NDArray[np.bool_]:
    """Dimensions without information: they vary by no more than rounding does at their scale."""
    threshold = 1e-7 * np.abs(scan.mean)
    for part in parts:
        if part.mask is not None:  # one unit for all: a wrist's depth relative to itself is noise, not a signal
            rms = np.sqrt(np.mean(scan.mean[part.columns] ** 2 + scan.std[part.columns] ** 2))
            threshold[part.columns] = np.maximum(threshold[part.columns], 1e-6 * rms)
    return scan.std <= threshold


def _missing_shares(scan: _Scan, parts: tuple[_Part, ...]) -> dict[str, float]:
    frames = int(scan.lengths["train"].sum())
    shares = {
        part.name: 1 - int(n) / max(frames, 1)
        for part, n in zip(parts, scan.seen, strict=True)
        if part.columns == part.landmarks
    }
    return {name: share for name, share in shares.items() if share > 0}


# The cache of scans


def _hash(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _cached_scan(
    listings: Sequence[_Listing],
    folder: Path,
    cache: Path | None,
    progress: Progress | None,
) -> _Scan:
    if cache is None:
        return _scan(listings, progress)
    names = {}
    for listing in listings:
        stats = [file.stat() for file in listing.files.values()]
        names[listing.name] = [(i, s.st_size, s.st_mtime_ns) for i, s in zip(listing.files, stats, strict=True)]
    key = _hash(_SCAN_VERSION, str(folder), names)
    file = cache / f"scan-{key[:32]}.npz"
    known = _load_scan(file, key, listings)
    if known is not None:
        return known
    scan = _scan(listings, progress)
    _save_scan(file, key, scan)
    return scan


def _save_scan(file: Path, key: str, scan: _Scan) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {f"lengths_{name}": frames for name, frames in scan.lengths.items()}
    content |= {"key": key, "digest": scan.digest, "mean": scan.mean, "std": scan.std, "seen": scan.seen}
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".scan-", suffix=".part", delete=False) as aside:
        np.savez(aside, **content)
        aside.flush()
        os.fsync(aside.fileno())
    try:
        Path(aside.name).replace(file)
    except PermissionError:  # Windows: another process has the same scan open, and that one is as good
        Path(aside.name).unlink()
        if not file.exists():
            raise


def _load_scan(file: Path, key: str, listings: Sequence[_Listing]) -> _Scan | None:
    """The scan of that key, or None where the file is absent, torn or another's: it is then made again."""
    try:
        with _open_npz(file) as stored:
            lengths = {s.name: stored[f"lengths_{s.name}"] for s in listings}
            scan = _Scan(lengths, stored["mean"], stored["std"], stored["seen"], str(stored["digest"]))
            whole = str(stored["key"]) == key and all(len(lengths[s.name]) == len(s.files) for s in listings)
    except _UNREADABLE:
        return None
    return scan if whole else None
