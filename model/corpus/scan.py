"""The one pass over every recording of a corpus: what each holds, the statistics of each split, and the hash.

What the pass found may be kept in a cache folder, so that worker processes start without another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.corpus.annotations import CorpusError, Listing
from model.corpus.features import (
    UNREADABLE,
    Normalisation,
    Part,
    Recording,
    base_parts,
    check_finite,
    not_finite,
    open_npz,
    parts_of,
    read_recording,
    seen_parts,
)
from model.files import written_aside

Progress = Callable[[str, int, int], None]
"""Called as (split, files done, files in the split)."""

Read = Callable[[str, str], Recording]
"""The recording of (split, id). Raises CorpusError where there is none to be had."""

_SCAN_VERSION = 3  # part of the cache key: raise it when `scan_corpus`, or what it calls, computes anything differently
_THREADS = min(4, os.cpu_count() or 1)
_AHEAD = 2 * _THREADS  # recordings in memory at once, at most
_COLUMNS = 512  # summed at a time, so that double precision stays within the processor's cache

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class FileScan:
    """What one recording holds. Counts by part are of its base parts (pose, left hand, right hand, face; or all)."""

    frames: int = 0
    width: int = 0
    dtype: str = ""
    """As numpy writes it: `<f4`."""
    digest: str = ""
    """SHA-256 (hex) of features and of what is detected; two recordings of one digest are the same."""
    zero: tuple[int, ...] = ()
    """Frames in which all columns of the part are zero."""
    frozen: tuple[int, ...] = ()
    """Frames in which the part is not zero, and exactly what it was in the frame before."""
    seen: tuple[int, ...] = ()
    """Frames in which the part is detected."""
    not_finite: int = 0
    """Values that are NaN, infinite or beyond float32."""
    fault: str | None = None
    """Why it cannot be used, in one line; what is not known then is 0 or empty."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and deviation of each dimension over the frames of a split in which its part was seen."""

    mean: NDArray[np.float64]
    """(D,)"""
    squares: NDArray[np.float64]
    """Sum of squared deviations from the mean (D,)."""
    seen: NDArray[np.int64]
    """Frames in which a part was seen (P,)."""
    parts: tuple[Part, ...]

    @property
    def std(self) -> NDArray[np.float64]:
        counts = np.repeat(np.maximum(self.seen, 1), [part.width for part in self.parts])
        return np.asarray(np.sqrt(self.squares / counts))

    @classmethod
    def empty(cls, parts: tuple[Part, ...]) -> Statistics:
        width = parts[-1].columns.stop
        return cls(np.zeros(width), np.zeros(width), np.zeros(len(parts), dtype=np.int64), parts)

    def add(self, other: Statistics) -> None:
        """Merge those of another set of frames, in place (Chan et al. 1979)."""
        for i, part in enumerate(self.parts):
            columns, n = part.columns, int(other.seen[i])
            if not n:
                continue
            apart = other.mean[columns] - self.mean[columns]
            share = n / (self.seen[i] + n)
            self.squares[columns] += other.squares[columns] + apart**2 * self.seen[i] * share
            self.mean[columns] += apart * share
            self.seen[i] += n


@dataclass(frozen=True, eq=False)
class Scan:
    """What one pass over every recording found."""

    files: dict[str, dict[str, FileScan]]
    """By split and id, in the order of the CSV."""
    statistics: dict[str, Statistics]
    """By split; over all annotated files without a fault, whatever the filter. A split without any has none."""

    @property
    def width(self) -> int:
        """Columns of the features: of the first recording without a fault, else of the first whose width is known; 0
        where no recording could be read."""
        files = [file for of in self.files.values() for file in of.values()]
        return next((file.width for file in sorted(files, key=lambda file: file.fault is not None) if file.width), 0)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the digests of all recordings, with their splits and ids."""
        return content_hash(
            [(split, i, file.digest) for split, files in self.files.items() for i, file in files.items()]
        )

    def lengths(self, split: str) -> dict[str, int]:
        """Frames by id."""
        return {i: file.frames for i, file in self.files[split].items()}


def scan_corpus(
    listings: Sequence[Listing],
    progress: Progress | None = None,
    read: Read | None = None,
    parts: tuple[Part, ...] | None = None,
    *,
    stop_at_fault: bool = True,
) -> Scan:
    """One pass over every recording.

    Args:
        read: where recordings come from (default: the files of the listings).
        parts: what their columns are (default: what their width says).
        stop_at_fault: raise at the first recording that cannot be used; else its FileScan says so, and it counts into
            no statistic.

    Raises:
        CorpusError: the first fault.
    """
    files: dict[str, dict[str, FileScan]] = {listing.name: {} for listing in listings}
    statistics: dict[str, Statistics] = {}
    for split, name, file, own in _scan(listings, progress, read, parts):
        if file.fault is not None and stop_at_fault:
            raise CorpusError(file.fault)
        files[split][name] = file
        if own is not None:
            statistics.setdefault(split, Statistics.empty(own.parts)).add(own)
    return Scan(files, statistics)


def cached_scan(
    listings: Sequence[Listing],
    folder: Path,
    cache: Path | None,
    progress: Progress | None,
    read: Read | None = None,
    parts: tuple[Part, ...] | None = None,
) -> Scan:
    """The scan kept in `cache` while names, sizes and times of the files stay the same, or else a new one.

    Raises:
        CorpusError: a file cannot be read, breaks a rule, or has another width than the first of train.
    """
    if cache is None:
        return scan_corpus(listings, progress, read, parts)
    names = {}
    for listing in listings:
        stats = [file.stat() for file in listing.files.values()]
        names[listing.name] = [(i, s.st_size, s.st_mtime_ns) for i, s in zip(listing.files, stats, strict=True)]
    key = content_hash(_SCAN_VERSION, str(folder), names)
    file = cache / f"scan-{key[:32]}.npz"
    known = _load_scan(file, key, parts)
    if known is not None:
        return known
    scan = scan_corpus(listings, progress, read, parts)
    write_arrays(file, key=key, **scan_arrays(scan))
    return scan


def constant_dimensions(statistics: Statistics) -> NDArray[np.bool_]:
    """Dimensions without information (D,): they vary by no more than rounding does at their scale."""
    mean, std = statistics.mean, statistics.std
    threshold = 1e-7 * np.abs(mean)
    for part in statistics.parts:
        if part.mask is not None and part.width:
            # one unit for all: a wrist's depth relative to itself is noise, not a signal
            rms = np.sqrt(np.mean(mean[part.columns] ** 2 + std[part.columns] ** 2))
            threshold[part.columns] = np.maximum(threshold[part.columns], 1e-6 * rms)
    return np.asarray(std <= threshold)


def normalisation_of(scan: Scan) -> Normalisation:
    """Zero mean and unit deviation over train; constant dimensions become zero."""
    train = scan.statistics["train"]
    constant = constant_dimensions(train)
    scale = np.divide(1.0, train.std, out=np.zeros_like(train.mean), where=~constant)
    return Normalisation(train.parts, train.mean, scale)


def missing_shares(statistics: Statistics, frames: int) -> dict[str, float]:
    """In what share of that many frames a part was not seen, by name, where it is above 0; no derived parts."""
    shares = {
        part.name: 1 - int(n) / max(frames, 1)
        for i, (part, n) in enumerate(zip(statistics.parts, statistics.seen, strict=True))
        if part.base == i
    }
    return {name: share for name, share in shares.items() if share > 0}


def content_hash(*content: object) -> str:
    """SHA-256 (hex) of the content as JSON."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def recording_digest(recording: Recording) -> str:
    """SHA-256 (hex) of features and of what is detected."""
    x, detected = recording
    digest = hashlib.sha256(content_hash(x.dtype.str, x.shape).encode())
    digest.update(np.ascontiguousarray(x).data)
    digest.update(np.packbits(detected).data)
    return digest.hexdigest()


def file_scan(recording: Recording, parts: tuple[Part, ...]) -> FileScan:
    """What a recording holds."""
    x, detected = recording
    zero, frozen = [], []
    for part in base_parts(parts):
        own = x[:, part.columns] if part.width else np.ones((len(x), 1))
        there = np.asarray(own.any(axis=1))
        zero.append(len(x) - int(there.sum()))
        frozen.append(int(((own[1:] == own[:-1]).all(axis=1) & there[1:]).sum()))
    return FileScan(
        frames=len(x),
        width=x.shape[1],
        dtype=x.dtype.str,
        digest=recording_digest(recording),
        zero=tuple(zero),
        frozen=tuple(frozen),
        seen=tuple(detected.sum(axis=0).tolist()),
    )


def own_statistics(recording: Recording, parts: tuple[Part, ...]) -> Statistics:
    """Those of one recording. Deviations are from its own mean, so that nothing cancels however large the mean is."""
    own = Statistics.empty(parts)
    seen = seen_parts(recording.detected, parts)
    own.seen[:] = seen.sum(axis=0)
    for i, part in enumerate(parts):
        if not own.seen[i] or not part.width:
            continue
        # Blocks of a part that is wider than one column are too: a lone column would be summed in another order.
        edges = np.linspace(part.columns.start, part.columns.stop, -(-part.width // _COLUMNS) + 1).astype(int)
        for start, stop in itertools.pairwise(edges):
            values = recording.x[:, start:stop]
            rows = (values if own.seen[i] == len(values) else values[seen[:, i]]).astype(np.float64)
            own.mean[start:stop] = rows.mean(axis=0)
            rows -= own.mean[start:stop]
            own.squares[start:stop] = np.square(rows, out=rows).sum(axis=0)
    return own


def in_order(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`work` of each item, some at once in threads, given back in order; numpy and hashlib let others run."""
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _scan(
    listings: Sequence[Listing], progress: Progress | None, read: Read | None, parts: tuple[Part, ...] | None
) -> Iterator[tuple[str, str, FileScan, Statistics | None]]:
    def work(item: tuple[Listing, str]) -> tuple[FileScan, Statistics | None]:
        listing, name = item
        file = listing.files[name]
        try:
            recording = read_recording(file) if read is None else read(listing.name, name)
        except CorpusError as error:
            return FileScan(fault=str(error)), None
        columns = parts or parts_of(recording.x.shape[1])
        found = file_scan(recording, columns)
        try:
            check_finite(file, recording.x)
        except CorpusError as error:
            return replace(found, not_finite=int(not_finite(recording.x).sum()), fault=str(error)), None
        return found, own_statistics(recording, columns)

    items = [(listing, name) for listing in listings for name in listing.files]
    done = dict.fromkeys((listing.name for listing in listings), 0)
    first, width = Path(), 0
    for (listing, name), (found, own) in zip(items, in_order(work, items), strict=True):
        if own is not None and not width:
            first, width = listing.files[name], found.width
        if own is not None and found.width != width:
            fault = (
                f"{listing.files[name]}: features are {found.width} wide, those of {first} {width}; "
                "a corpus has one width, so extract them alike"
            )
            found, own = replace(found, fault=fault), None
        done[listing.name] += 1
        if progress is not None:
            progress(listing.name, done[listing.name], len(listing.files))
        yield listing.name, name, found, own


def scan_arrays(scan: Scan) -> dict[str, Any]:
    """A scan as arrays to save in an npz."""
    files = {split: {i: asdict(file) for i, file in of.items()} for split, of in scan.files.items()}
    content: dict[str, Any] = {"files": json.dumps(files, ensure_ascii=False)}
    for split, statistics in scan.statistics.items():
        content |= {f"{name}_{split}": getattr(statistics, name) for name in ("mean", "squares", "seen")}
    return content


def scan_of(stored: Mapping[str, Any], parts: tuple[Part, ...] | None = None) -> Scan:
    """The scan that `scan_arrays` saved.

    Raises:
        KeyError, ValueError, TypeError: the arrays are another's.
    """
    files = {
        split: {i: _file_scan_of(file) for i, file in of.items()}
        for split, of in json.loads(str(stored["files"])).items()
    }
    statistics = {}
    for split in files:
        if f"mean_{split}" in stored:
            mean, squares, seen = (stored[f"{name}_{split}"] for name in ("mean", "squares", "seen"))
            statistics[split] = Statistics(mean, squares, seen, parts or parts_of(len(mean)))
    return Scan(files, statistics)


def _file_scan_of(content: dict[str, Any]) -> FileScan:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return FileScan(**values)


def write_arrays(file: Path, **arrays: Any) -> None:
    """Save an npz that is there whole or not at all."""
    try:
        with written_aside(file) as opened:
            np.savez(opened, **arrays)
    except PermissionError:  # Windows: another process has the same file open, and that one is as good
        if not file.exists():
            raise


def _load_scan(file: Path, key: str, parts: tuple[Part, ...] | None) -> Scan | None:
    """The scan of that key, or None where the file is absent, torn or another's: it is then made again."""
    try:
        with open_npz(file) as stored:
            return scan_of(stored, parts) if str(stored["key"]) == key else None
    except (*UNREADABLE, TypeError):
        return None
