"""A corpus as a folder: one npz a sequence in a folder a split, and a CSV a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.corpus.annotations import SPLITS, CorpusError, Listing, list_split, locate
from model.corpus.features import Modality, Normalisation, Recording, check_finite, modalities_of, read_recording
from model.corpus.scan import Progress, Scan, cached_scan, scan_corpus
from model.corpus.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class FolderReader:
    """The recordings of a split, read from their files each time."""

    files: tuple[Path, ...]
    frames: tuple[int, ...]
    width: int

    def __call__(self, i: int) -> Recording:
        """
        Raises:
            CorpusError: the file has become unreadable, or has changed since the corpus was checked.
        """
        recording = read_recording(self.files[i])
        check_finite(self.files[i], recording.x)
        if recording.x.shape != (self.frames[i], self.width):
            raise CorpusError(
                f"{self.files[i]}: is {recording.x.shape} now, but was checked otherwise; load the corpus again"
            )
        return recording

    def write(self, i: int, normalisation: Normalisation, out: NDArray[np.float32]) -> None:
        """Normalised features of a recording into an array (T, D) that is there. Raises as a call does."""
        normalisation.write(self(i), out)


@dataclass(frozen=True, eq=False)
class Folder:
    """What a corpus folder says before any feature is read. See `model.corpus.packed.Packed` for its twin."""

    path: Path
    """Holds train/ dev/ test/."""
    annotations: Path
    listings: tuple[Listing, ...]
    filter: str = "none"
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()

    def modalities(self, configured: Mapping[str, int] | None) -> tuple[Modality, ...]:
        """The blocks of the features, from the first file alone.

        Raises:
            CorpusError: it cannot be read, or the widths do not add up.
        """
        return modalities_of(read_recording(self.listings[0].first).x.shape[1], configured)

    def scan(self, cache: Path | None = None, progress: Progress | None = None, *, stop_at_fault: bool = True) -> Scan:
        """What every file holds; see `scan_corpus`. Only a scan without a fault is looked for and kept in `cache`."""
        if stop_at_fault:
            return cached_scan(self.listings, self.path, cache, progress)
        return scan_corpus(self.listings, progress, stop_at_fault=False)

    def read(self, split: str, name: str) -> Recording:
        """The recording of one id.

        Raises:
            CorpusError: it cannot be used.
        """
        file = next(listing.files[name] for listing in self.listings if listing.name == split)
        recording = read_recording(file)
        check_finite(file, recording.x)
        return recording

    def reader(self, split: str, ids: Sequence[str], scan: Scan) -> FolderReader:
        """The recordings of these ids, which `scan` has seen."""
        files = next(listing.files for listing in self.listings if listing.name == split)
        lengths = scan.lengths(split)
        return FolderReader(tuple(files[i] for i in ids), tuple(lengths[i] for i in ids), scan.width)


def open_folder(path: Path, annotations: Path | None = None) -> Folder:
    """Find out where a corpus folder's features and annotations lie, and read its CSVs.

    Raises:
        CorpusError: see `locate` and `list_split`.
    """
    folder, tables = locate(path, annotations)
    listings = (list_split(name, folder, tables) for name in SPLITS)
    return Folder(folder, tables, tuple(listing for listing in listings if listing is not None))
