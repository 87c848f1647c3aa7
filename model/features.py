"""Features of a sequence: one npz, the blocks and parts of its columns, which of them are seen, normalisation."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.annotations import CorpusError

MODALITIES: Mapping[int, Mapping[str, int]] = {
    225: {"pose": 99, "hands": 126},
    6516: {"pose": 99, "hands": 126, "face": 1404, "temporal": 4887},
}
"""Feature widths that are known to be MediaPipe landmarks, and the blocks they are made of."""

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


@dataclass(frozen=True)
class Modality:
    """Adjacent columns of the feature vector that one encoder reads."""

    name: str
    width: int


class Part(NamedTuple):
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

    parts: tuple[Part, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    """1 / standard deviation (D,); 0 for a constant dimension."""

    def __call__(self, x: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Normalise features (T, D), with detection_masks (T, 543) where there are any."""
        out = ((x - self.mean) * self.scale).astype(np.float32)
        seen = seen_parts(x, mask, self.parts)
        if not seen.all():
            widths = [part.columns.stop - part.columns.start for part in self.parts]
            out[~np.repeat(seen, widths, axis=1)] = 0
        return out


@contextmanager
def open_npz(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an npz.

    Raises:
        one of UNREADABLE: here, or where an array is read.
    """
    with file.open("rb") as opened:  # np.load leaves a broken file open
        stored = np.load(opened, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array")
        yield stored


def read_features(file: Path) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """`features` (T, D) as stored and `detection_masks` (T, 543) where they fit the landmarks of the features.

    Raises:
        CorpusError: the file cannot be read, or the arrays break a rule.
    """
    way_out = "write it again, or delete it and its line in the CSV"
    try:
        with open_npz(file) as stored:
            if "features" not in stored:
                raise CorpusError(
                    f"{file}: has no array 'features' (it has {', '.join(stored) or 'none'}); "
                    "save it with np.savez(file, features=...)"
                )
            x = stored["features"]
            mask = stored.get("detection_masks")
    except CorpusError:
        raise
    except UNREADABLE as error:
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


def modalities_of(width: int, configured: Mapping[str, int] | None) -> tuple[Modality, ...]:
    """The blocks that features so wide are read in: as configured, else those of MODALITIES, else one.

    Raises:
        CorpusError: the widths do not add up.
    """
    blocks = configured or MODALITIES.get(width, {"features": width})
    if sum(blocks.values()) != width:
        raise CorpusError(
            f"modalities {dict(blocks)} add up to {sum(blocks.values())}, but the features have {width} dimensions; "
            "make the widths add up, or leave modalities out"
        )
    return tuple(Modality(name, size) for name, size in blocks.items())


def parts_of(width: int) -> tuple[Part, ...]:
    """What can be missing on its own in features that wide, however the config splits them for the encoders."""
    if width not in MODALITIES:
        whole = slice(0, width)
        return (Part("features", whole, whole, None, 1),)
    landmarks = _LANDMARKS if "face" in MODALITIES[width] else _LANDMARKS[:3]
    parts = []
    start = 0
    for prefix, frames in _BLOCKS[: width // sum(size for _, size, _ in landmarks)]:
        block = start
        for name, size, mask in landmarks:
            source = slice(start - block, start - block + size)
            parts.append(Part(prefix + name, slice(start, start + size), source, slice(*mask), frames))
            start += size
    return tuple(parts)


def seen_parts(x: NDArray[Any], mask: NDArray[np.bool_] | None, parts: tuple[Part, ...]) -> NDArray[np.bool_]:
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
