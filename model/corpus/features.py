"""Features of a sequence: one npz, the blocks and parts of its columns, which of them are seen, normalisation."""

from __future__ import annotations

import hashlib
import itertools
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.corpus.annotations import CorpusError

MODALITIES: Mapping[int, Mapping[str, int]] = {
    225: {"pose": 99, "hands": 126},
    6516: {"pose": 99, "hands": 126, "face": 1404, "temporal": 4887},
}
"""Feature widths that are known to be MediaPipe landmarks, and the blocks they are made of."""

_CACHED = 1 << 15  # values that are normalised at once: 256 kB in float64
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

UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading an npz that is torn, encrypted (RuntimeError) or packed in an unknown way may raise."""

_WAY_OUT = "write it again, or delete it and its line in the CSV"
_ZIP, _NPY = (b"PK\x03\x04", b"PK\x05\x06"), b"\x93NUMPY"  # how files begin


@dataclass(frozen=True)
class Modality:
    """Adjacent columns of the feature vector that one encoder reads."""

    name: str
    width: int


class Part(NamedTuple):
    """Adjacent columns that are seen or missing together in a frame, such as one hand."""

    name: str
    columns: slice
    base: int  # place, among the parts, of the landmarks it is made of: its own, or those of which it is the velocity
    mask: slice | None  # their columns of detection_masks; None: no landmarks, which are never missing
    frames: int  # how many frames, this one and those before it, it is made of

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)


class Recording(NamedTuple):
    """One sequence as it is stored."""

    x: NDArray[Any]
    """Features (T, D)."""
    detected: NDArray[np.bool_]
    """Which base parts are there in which frames (T, B): their landmarks are not all zero, and not all undetected."""


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Zero mean and unit deviation over the train frames in which a part was seen; a missing part is zero.

    Only landmarks can be missing: in features of another width a frame of zeros is a frame like any other.
    """

    parts: tuple[Part, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    """1 / standard deviation (D,); 0 for a constant dimension."""

    def __call__(self, recording: Recording) -> NDArray[np.float32]:
        """Normalised features (T, D)."""
        out = np.empty(recording.x.shape, dtype=np.float32)
        self.write(recording, out)
        return out

    def write(self, recording: Recording, out: NDArray[np.float32]) -> None:
        """The same into an array (T, D) that is there."""
        frames = self.frames_at_once(recording.x.shape[1])
        for start in range(0, len(out), frames):
            self.scale_columns(recording.x[start : start + frames], out[start : start + frames])
        self.clear_missing(recording.detected, out)

    def frames_at_once(self, width: int) -> int:
        """How many frames of so many columns stay in a processor's cache while they are worked on."""
        return max(1, _CACHED // width)

    def scale_columns(self, x: NDArray[Any], out: NDArray[np.float32], first: int = 0) -> None:
        """Write the columns x (t, W) from `first` on, normalised, to `out` (t, W); at most `frames_at_once` of them."""
        key = (first, x.shape[1])
        if key not in self._tiles:
            columns, frames = slice(first, first + x.shape[1]), self.frames_at_once(x.shape[1])
            self._tiles[key] = np.tile(self.mean[columns], (frames, 1)), np.tile(self.scale[columns], (frames, 1))
        mean, scale = self._tiles[key]
        apart = x.astype(np.float64)
        apart -= mean[: len(x)]
        apart *= scale[: len(x)]
        out[:] = apart

    def clear_missing(self, detected: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
        """Zero the parts that were not seen, in features (T, D)."""
        seen = seen_parts(detected, self.parts)
        for i in np.flatnonzero(~seen.all(axis=0)):
            part = self.parts[i]
            if seen[part.frames - 1 :, i].all():  # as most: only at the beginning
                out[: part.frames - 1, part.columns] = 0
            else:
                np.copyto(out[:, part.columns], 0, where=~seen[:, i, None])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that it does."""
        said = hashlib.sha256(repr(self.parts).encode())
        for numbers in (self.mean, self.scale):
            said.update(np.ascontiguousarray(numbers, dtype="<f8").tobytes())
        return said.hexdigest()

    def alike(self, a: slice, b: slice) -> bool:
        """Whether the same values come out the same in columns a and b."""
        return np.array_equal(self.mean[a], self.mean[b]) and np.array_equal(self.scale[a], self.scale[b])

    @cached_property
    def _tiles(self) -> dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Mean and scale of some columns once a frame: numpy takes whole arrays three times as fast as rows."""
        return {}

    @classmethod
    def none(cls, width: int) -> Normalisation:
        """Features enter the model as they are stored, what is missing in them as well."""
        return cls((), np.zeros(width), np.ones(width))


_ONE_READER = threading.RLock()
"""numpy parses the head of an array with `ast`, which fails now and then when two threads do it at once (CPython
3.11: "AST constructor recursion depth mismatch"). Reading is the smaller part of what the threads do."""


@contextmanager
def open_npz(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an npz.

    Raises:
        one of UNREADABLE: here, or where an array is read.
    """
    with _ONE_READER, file.open("rb") as opened:  # np.load leaves a broken file open
        start = opened.read(6)
        if not start.startswith(_ZIP):  # np.load would take it for a pickle, and say how to load one
            raise ValueError("it holds one bare array" if start == _NPY else "it does not begin as one")
        opened.seek(0)
        stored = np.load(opened, allow_pickle=False)
        assert isinstance(stored, np.lib.npyio.NpzFile)
        yield stored


def read_recording(file: Path) -> Recording:
    """`features` (T, D) as stored, and what is detected: from them, and `detection_masks` (T, 543) if there are any.

    Raises:
        CorpusError: the file cannot be read, or the arrays break a rule. Values are not looked at: see
            `check_finite`.
    """
    try:
        with open_npz(file) as stored:
            if "features" not in stored:
                raise CorpusError(
                    f"{file}: has no array 'features' (it has {', '.join(stored) or 'none'}); "
                    "save it with np.savez(file, features=...)"
                )
            x = stored["features"]
            mask = stored.get("detection_masks") if x.shape[1:] in {(width,) for width in MODALITIES} else None
    except CorpusError:
        raise
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorpusError(f"{file}: cannot be read as npz ({reason}); {_WAY_OUT}") from error
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiu":
        raise CorpusError(
            f"{file}: features are {x.dtype} {x.shape}; they must be numbers (frames, dimensions), at least one of each"
        )
    if mask is not None and mask.shape != (len(x), _MASK_WIDTH):
        raise CorpusError(
            f"{file}: detection_masks are {mask.shape}, but {len(x)} frames of landmarks need "
            f"({len(x)}, {_MASK_WIDTH}); {_WAY_OUT}"
        )
    x = np.ascontiguousarray(x)  # as it is hashed, summed and packed, however it was written
    parts = base_parts(parts_of(x.shape[1]))
    detected = np.ones((len(x), len(parts)), dtype=np.bool_)
    for i, part in enumerate(parts):
        if part.mask is not None:
            detected[:, i] = x[:, part.columns].any(axis=1)
            if mask is not None:
                detected[:, i] &= mask[:, part.mask].any(axis=1)
    return Recording(x, detected)


def not_finite(x: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are no numbers to a model (T, D): beyond float32 they are as useless as infinity."""
    finite: NDArray[np.bool_] = np.isfinite(x) if x.dtype.itemsize <= 4 else np.abs(x) <= np.finfo(np.float32).max
    return ~finite


def check_finite(file: Path, x: NDArray[Any]) -> None:
    """
    Raises:
        CorpusError: features (T, D) hold NaN or infinity; says where.
    """
    wrong = not_finite(x)
    if wrong.any():
        t, d = (int(i) for i in np.argwhere(wrong)[0])
        raise CorpusError(
            f"{file}: features hold {x[t, d]} at frame {t}, dimension {d} ({wrong.sum()} such values); "
            f"features must be finite, so {_WAY_OUT}"
        )


def modalities_of(
    width: int, configured: Mapping[str, int] | None, kept: NDArray[np.bool_] | None = None
) -> tuple[Modality, ...]:
    """The blocks that features so wide are read in: as configured, else those of MODALITIES, else one.

    Args:
        width: of the features before any dimension was left out.
        kept: the dimensions that were not (width,).

    Raises:
        CorpusError: the widths do not add up.
    """
    blocks = configured or MODALITIES.get(width, {"features": width})
    if sum(blocks.values()) != width:
        raise CorpusError(
            f"modalities {dict(blocks)} add up to {sum(blocks.values())}, but the features have {width} dimensions; "
            "make the widths add up, or leave modalities out"
        )
    ends = _ends(list(blocks.values()), kept)
    widths = np.diff(ends).tolist()
    return tuple(Modality(name, size) for name, size in zip(blocks, widths, strict=True) if size)


def parts_of(width: int, kept: NDArray[np.bool_] | None = None) -> tuple[Part, ...]:
    """What can be missing on its own in features that wide, however the config splits them for the encoders.

    The base parts come first. See `modalities_of` for the arguments.
    """
    if width not in MODALITIES:
        (size,) = np.diff(_ends([width], kept)).tolist()
        return (Part("features", slice(0, size), 0, None, 1),)
    landmarks = _LANDMARKS if "face" in MODALITIES[width] else _LANDMARKS[:3]
    blocks = _BLOCKS[: width // sum(size for _, size, _ in landmarks)]
    ends = _ends([size for _ in blocks for _, size, _ in landmarks], kept)
    return tuple(
        Part(prefix + name, slice(ends[i], ends[i + 1]), i % len(landmarks), slice(*mask), frames)
        for i, ((prefix, frames), (name, _, mask)) in enumerate((b, p) for b in blocks for p in landmarks)
    )


def _ends(widths: list[int], kept: NDArray[np.bool_] | None) -> list[int]:
    ends = [0, *itertools.accumulate(widths)]
    return ends if kept is None else [int(kept[:end].sum()) for end in ends]


def base_parts(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Those that are not derived from others: pose, hands and face, or all columns."""
    return tuple(part for i, part in enumerate(parts) if part.base == i)


def dimension_name(width: int, dimension: int) -> str:
    """A column of features that wide in words: `left hand 4 y`, `velocity pose 0 x`, `features 12`."""
    part = next(part for part in parts_of(width) if part.columns.start <= dimension < part.columns.stop)
    within = dimension - part.columns.start
    return f"{part.name} {within}" if part.mask is None else f"{part.name} {within // 3} {'xyz'[within % 3]}"


def seen_parts(detected: NDArray[np.bool_], parts: tuple[Part, ...]) -> NDArray[np.bool_]:
    """Which parts are seen in which frames (T, P), from which base parts are detected (T, B).

    A velocity or acceleration takes landmarks detected in every frame it is made of: where a hand reappears, it is the
    jump from zero. For the same reason it is not seen in the first frames of a sequence: what stands there is the 0 of
    a difference without a frame before it, and an acceleration made of that 0.
    """
    seen = np.ones((len(detected), len(parts)), dtype=np.bool_)
    for i, part in enumerate(parts):
        found = detected[:, part.base]
        for ago in range(part.frames):
            seen[:ago, i] = False
            seen[ago:, i] &= found[: max(len(found) - ago, 0)]
    return seen
