"""A packed corpus: one memory-mapped file of features, and what a pass over it would find. `pack.py` writes it.

features.npy      (frames of all recordings, stored columns), one recording after the other
detected.npy      (frames, base parts): which are there
scan.npz          what each recording holds, statistics of each split
annotations/      the CSVs as they were
vocabulary.txt
pack.json         written last: how to read the rest, and the size of every file
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from model.corpus.annotations import SPLITS, CorpusError, Listing, listing_of
from model.corpus.features import (
    UNREADABLE,
    Modality,
    Normalisation,
    Part,
    Recording,
    modalities_of,
    open_npz,
    parts_of,
)
from model.corpus.landmarks import STILL_WIDTH, motion, with_motion
from model.corpus.scan import Progress, Scan, cached_scan, scan_of
from model.corpus.vocabulary import Vocabulary

MANIFEST, FEATURES, DETECTED, SCAN, VOCABULARY = (
    "pack.json",
    "features.npy",
    "detected.npy",
    "scan.npz",
    "vocabulary.txt",
)
NORMALISED = "normalised.npy"
"""Not always there: see `normalised.py`."""


class Stored(BaseModel):
    """A file of the pack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str | None = None
    """None for the features: the digest of each recording stands in its FileScan."""


class Manifest(BaseModel):
    """How a pack is to be read, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["packed CTC corpus"] = "packed CTC corpus"
    version: Literal[1] = 1
    dtype: Literal["<f2", "<f4"]
    """In which the features are stored; each recording is given in its own (FileScan.dtype)."""
    width: int
    """Columns before any was dropped."""
    derived: bool
    """Only the landmarks are stored; velocity, acceleration and copy are made of them when read."""
    not_derived: str | None
    """Where 6516-wide features first differ from what follows from their landmarks."""
    dropped: dict[int, str]
    """Columns that were left out, of `width`, and what they are."""
    filter: str
    modalities: dict[str, int] | None
    unannotated: dict[str, list[str]]
    """Feature files of the source that no CSV names, by split."""
    lost: str | None
    """What a lossy dtype has cost, in one sentence."""
    source: str
    """What the pack was made from and how: of two packs with the same, one is superfluous."""
    recipe: str = ""
    """The same, but for sizes and times of the source files."""
    source_digests: dict[str, dict[str, str]]
    """Of the recordings in the source, by split and id, where they are others than the pack's."""
    files: dict[str, Stored]

    @property
    def kept(self) -> NDArray[np.bool_] | None:
        """Which columns the pack gives (width,); None: all."""
        if not self.dropped:
            return None
        kept = np.ones(self.width, dtype=np.bool_)
        kept[list(self.dropped)] = False
        return kept


@dataclass(frozen=True, eq=False)
class PackedArrays:
    """The arrays of a pack: mapped when first used, in each process anew, and never part of a pickle."""

    folder: Path
    derived: bool
    kept: NDArray[np.bool_] | None

    @cached_property
    def features(self) -> NDArray[Any]:
        return self._mapped(FEATURES)

    @cached_property
    def detected(self) -> NDArray[np.bool_]:
        return self._mapped(DETECTED)

    @cached_property
    def normalised(self) -> NDArray[np.float32]:
        return self._mapped(NORMALISED)

    def _mapped(self, name: str) -> NDArray[Any]:
        try:
            return np.asarray(np.load(self.folder / name, mmap_mode="r", allow_pickle=False))
        except UNREADABLE as error:
            way_out = "delete normalised.json to do without" if name == NORMALISED else "pack the corpus again"
            raise CorpusError(f"{self.folder / name}: cannot be read ({error}); {way_out}") from error

    def recording(self, start: int, stop: int, dtype: str) -> Recording:
        """What stands in these rows, in a dtype of its own."""
        x = restored(self.features[start:stop], self.derived, self.kept)
        return Recording(x.astype(dtype, copy=False), self.detected[start:stop])

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def restored(stored: NDArray[Any], derived: bool, kept: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Features (T, D) from the columns that are stored of them."""
    if not derived:
        return stored
    if kept is None:
        return with_motion(stored)
    landmarks = np.zeros((len(stored), STILL_WIDTH), dtype=stored.dtype)
    landmarks[:, kept[:STILL_WIDTH]] = stored
    return with_motion(landmarks).compress(kept, axis=1)


@dataclass(frozen=True, eq=False)
class PackedReader:
    """The recordings of a split, read from the map."""

    arrays: PackedArrays
    starts: tuple[int, ...]
    frames: tuple[int, ...]
    dtypes: tuple[str, ...]
    ready_for: Normalisation | None = None
    """The one whose result lies in the pack."""

    def __call__(self, i: int) -> Recording:
        return self.arrays.recording(self.starts[i], self.starts[i] + self.frames[i], self.dtypes[i])

    def write(self, i: int, normalisation: Normalisation, out: NDArray[np.float32]) -> None:
        """Normalised features of a recording into an array (T, D) that is there, to the bit as from the recording.

        Where motion is derived, it is some frames at a time, while they are in the processor's cache.
        """
        arrays, start, stop = self.arrays, self.starts[i], self.starts[i] + self.frames[i]
        if normalisation is self.ready_for:
            out[:] = arrays.normalised[start:stop]
            return
        stored = arrays.features[start:stop]
        if not arrays.derived or arrays.kept is not None or stored.dtype != np.dtype(self.dtypes[i]):
            normalisation.write(self(i), out)
            return
        still, velocity, acceleration, copy = (slice(n * STILL_WIDTH, (n + 1) * STILL_WIDTH) for n in range(4))
        repeated = normalisation.alike(still, copy)
        for at, x, v, a in motion(stored, normalisation.frames_at_once(STILL_WIDTH)):
            normalisation.scale_columns(x, out[at, still], still.start)
            normalisation.scale_columns(v, out[at, velocity], velocity.start)
            normalisation.scale_columns(a, out[at, acceleration], acceleration.start)
            if repeated:
                out[at, copy] = out[at, still]
            else:
                normalisation.scale_columns(x, out[at, copy], copy.start)
        normalisation.clear_missing(arrays.detected[start:stop], out)


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed corpus. Gives what the `model.corpus.folder.Folder` would that it was made from."""

    path: Path
    annotations: Path
    listings: tuple[Listing, ...]
    vocabulary: Vocabulary
    manifest: Manifest
    stored: Scan

    @property
    def filter(self) -> str:
        return self.manifest.filter

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts_of(self.manifest.width, self.manifest.kept)

    @property
    def notes(self) -> tuple[str, ...]:
        notes = [self.manifest.lost] if self.manifest.lost else []
        if self.manifest.dropped:
            notes.append(
                f"{len(self.manifest.dropped)} of {self.manifest.width} dimensions were constant over train and left "
                "out when the corpus was packed."
            )
        return tuple(notes)

    def modalities(self, configured: Mapping[str, int] | None) -> tuple[Modality, ...]:
        """The blocks of the features; their widths count from before any dimension was dropped.

        Raises:
            CorpusError: the widths do not add up.
        """
        return modalities_of(self.manifest.width, configured or self.manifest.modalities, self.manifest.kept)

    def scan(self, cache: Path | None = None, progress: Progress | None = None, *, stop_at_fault: bool = True) -> Scan:
        """What every recording holds: known without a pass, unless the annotations are not those of the pack."""
        if all(list(listing.files) == list(self.stored.files.get(listing.name, ())) for listing in self.listings):
            names = [listing.name for listing in self.listings]
            return Scan({n: self.stored.files[n] for n in names}, {n: self.stored.statistics[n] for n in names})
        return cached_scan(self.listings, self.path, cache, progress, self.read, self.parts)

    def reader(self, split: str, ids: Sequence[str], scan: Scan | None = None) -> PackedReader:
        """The recordings of these ids."""
        starts = self._starts[split]
        files = [self.stored.files[split][i] for i in ids]
        return PackedReader(
            self.arrays,
            tuple(starts[i] for i in ids),
            tuple(file.frames for file in files),
            tuple(file.dtype for file in files),
        )

    def read(self, split: str, name: str) -> Recording:
        """One recording."""
        return self.reader(split, [name])(0)

    @cached_property
    def arrays(self) -> PackedArrays:
        return PackedArrays(self.path, self.manifest.derived, self.manifest.kept)

    @cached_property
    def _starts(self) -> dict[str, dict[str, int]]:
        return row_numbers(self.stored)


def row_numbers(scan: Scan) -> dict[str, dict[str, int]]:
    """The row at which each recording begins, by split and id."""
    starts: dict[str, dict[str, int]] = {}
    row = 0
    for split, files in scan.files.items():
        starts[split] = {}
        for name, file in files.items():
            starts[split][name] = row
            row += file.frames
    return starts


def is_packed(path: Path) -> bool:
    """Whether this is a packed corpus, whole or not, rather than a folder of npz files."""
    return (path / MANIFEST).is_file() or (path / FEATURES).is_file()


def read_manifest(path: Path) -> Manifest:
    """
    Raises:
        CorpusError: there is none, it is not one, or a file of the pack is not as it says.
    """
    again = "pack the corpus again"
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise CorpusError(
            f"{path / MANIFEST}: is not of a pack that this version reads ({place}: {first['msg']}); {again}"
        ) from error
    except FileNotFoundError as error:
        raise CorpusError(
            f"{path}: is no whole packed corpus, as it holds no {MANIFEST}; run the pack command again, which goes on "
            "where it was"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path / MANIFEST}: cannot be read ({error.strerror}); {again}") from error
    for name, stored in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise CorpusError(f"{file}: is gone from the pack; {again}")
        if (found := file.stat().st_size) != stored.bytes:
            raise CorpusError(f"{file}: has {found} bytes, but was packed with {stored.bytes}; {again}")
        if stored.sha256 is not None and hashlib.sha256(file.read_bytes()).hexdigest() != stored.sha256:
            raise CorpusError(
                f"{file}: has changed since it was packed; {again}, or name other annotations and another vocabulary "
                "by their options"
            )
    return manifest


def open_packed(path: Path, annotations: Path | None = None) -> Packed:
    """Read everything of a pack but its features.

    Args:
        annotations: folder of other CSVs than the pack's; they may name fewer of its recordings.

    Raises:
        CorpusError: the pack is not whole, or the annotations break a rule.
    """
    path = path.resolve()
    manifest = read_manifest(path)
    try:
        with open_npz(path / SCAN) as stored:
            scan = scan_of(stored, parts_of(manifest.width, manifest.kept))
    except (*UNREADABLE, TypeError) as error:
        raise CorpusError(f"{path / SCAN}: cannot be read ({error}); pack the corpus again") from error
    if annotations is not None and not annotations.is_dir():
        raise CorpusError(f"{annotations}: there is no such folder; name the one that holds the CSVs")
    tables = path / "annotations" if annotations is None else annotations.resolve()
    listings = []
    for name in SPLITS:
        present = dict.fromkeys(scan.files[name], path / FEATURES) if name in scan.files else None
        listing = listing_of(name, tables, path, present)
        if listing is not None:
            listing.unannotated.extend(manifest.unannotated.get(name, []) if annotations is None else [])
            listings.append(listing)
    return Packed(path, tables, tuple(listings), Vocabulary.from_file(path / VOCABULARY), manifest, scan)
