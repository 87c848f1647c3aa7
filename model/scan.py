"""The one pass over every file of a corpus: all are checked and counted into the statistics and the hash.

What the pass found may be kept in a cache folder, so that worker processes start without another.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.annotations import CorpusError, Listing
from model.features import UNREADABLE, Part, open_npz, parts_of, read_features, seen_parts

Progress = Callable[[str, int, int], None]
"""Called as (split, files done, files in the split)."""

_SCAN_VERSION = 2  # part of the cache key: raise it when `_scan`, or what it calls, computes anything differently


@dataclass(frozen=True, eq=False)
class Scan:
    """What one pass over every file found. Statistics are over all annotated train files, whatever the filter."""

    lengths: dict[str, NDArray[np.int64]]  # frames of each file of a split
    mean: NDArray[np.float64]  # (D,)
    std: NDArray[np.float64]  # (D,)
    seen: NDArray[np.int64]  # train frames in which a part was seen (P,)
    digest: str

    @property
    def width(self) -> int:
        return len(self.mean)


def cached_scan(
    listings: Sequence[Listing],
    folder: Path,
    cache: Path | None,
    progress: Progress | None,
) -> Scan:
    """The scan kept in `cache` while names, sizes and times of the files stay the same, or else a new one.

    Raises:
        CorpusError: a file cannot be read, breaks a rule, or has another width than the first of train.
    """
    if cache is None:
        return _scan(listings, progress)
    names = {}
    for listing in listings:
        stats = [file.stat() for file in listing.files.values()]
        names[listing.name] = [(i, s.st_size, s.st_mtime_ns) for i, s in zip(listing.files, stats, strict=True)]
    key = content_hash(_SCAN_VERSION, str(folder), names)
    file = cache / f"scan-{key[:32]}.npz"
    known = _load_scan(file, key, listings)
    if known is not None:
        return known
    scan = _scan(listings, progress)
    _save_scan(file, key, scan)
    return scan


def constant_dimensions(scan: Scan, parts: tuple[Part, ...]) -> NDArray[np.bool_]:
    """Dimensions without information: they vary by no more than rounding does at their scale."""
    threshold = 1e-7 * np.abs(scan.mean)
    for part in parts:
        if part.mask is not None:  # one unit for all: a wrist's depth relative to itself is noise, not a signal
            rms = np.sqrt(np.mean(scan.mean[part.columns] ** 2 + scan.std[part.columns] ** 2))
            threshold[part.columns] = np.maximum(threshold[part.columns], 1e-6 * rms)
    return scan.std <= threshold


def missing_shares(scan: Scan, parts: tuple[Part, ...]) -> dict[str, float]:
    """In what share of the train frames a part was not seen, by name, where it is above 0; no derived parts."""
    frames = int(scan.lengths["train"].sum())
    shares = {
        part.name: 1 - int(n) / max(frames, 1)
        for part, n in zip(parts, scan.seen, strict=True)
        if part.columns == part.landmarks
    }
    return {name: share for name, share in shares.items() if share > 0}


def content_hash(*content: object) -> str:
    """SHA-256 (hex) of the content as JSON."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _scan(listings: Sequence[Listing], progress: Progress | None) -> Scan:
    first = listings[0].first
    width = read_features(first)[0].shape[1]
    parts = parts_of(width)
    mean, squares = np.zeros(width), np.zeros(width)
    seen = np.zeros(len(parts), dtype=np.int64)
    digest = hashlib.sha256()
    lengths = {}
    for listing in listings:
        frames = []
        for done, (name, file) in enumerate(listing.files.items(), start=1):
            x, mask = read_features(file)
            if x.shape[1] != width:
                raise CorpusError(
                    f"{file}: features are {x.shape[1]} wide, those of {first} {width}; "
                    "a corpus has one width, so extract them alike"
                )
            frames.append(len(x))
            digest.update(content_hash(listing.name, name, x.dtype.str, x.shape, mask is not None).encode())
            digest.update(x.tobytes())
            if mask is not None:
                digest.update(np.packbits(mask).tobytes())
            if listing.name == "train":
                _accumulate(x, seen_parts(x, mask, parts), parts, mean, squares, seen)
            if progress is not None:
                progress(listing.name, done, len(listing.files))
        lengths[listing.name] = np.array(frames, dtype=np.int64)
    counts = np.repeat(np.maximum(seen, 1), [part.columns.stop - part.columns.start for part in parts])
    return Scan(lengths, mean, np.sqrt(squares / counts), seen, digest.hexdigest())


def _accumulate(
    x: NDArray[Any],
    present: NDArray[np.bool_],
    parts: tuple[Part, ...],
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


def _save_scan(file: Path, key: str, scan: Scan) -> None:
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


def _load_scan(file: Path, key: str, listings: Sequence[Listing]) -> Scan | None:
    """The scan of that key, or None where the file is absent, torn or another's: it is then made again."""
    try:
        with open_npz(file) as stored:
            lengths = {s.name: stored[f"lengths_{s.name}"] for s in listings}
            scan = Scan(lengths, stored["mean"], stored["std"], stored["seen"], str(stored["digest"]))
            whole = str(stored["key"]) == key and all(len(lengths[s.name]) == len(s.files) for s in listings)
    except UNREADABLE:
        return None
    return scan if whole else None
