"""MediaPipe Holistic landmarks and the 6516-wide features made of them: pose, hands, face; their motion; a copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.files import written_aside

Scalar = TypeVar("Scalar", bound=np.generic)

POINTS = 543
"""Landmarks of MediaPipe Holistic, in its order: pose 33, face 468, left hand 21, right hand 21."""

STILL_WIDTH = 3 * POINTS
"""x, y and z of all landmarks: what the rest of the features follows from."""

WIDTH = 4 * STILL_WIDTH
"""Landmarks, velocity, acceleration and a copy of the landmarks."""

PARTS: Mapping[str, slice] = {
    "pose": slice(0, 33),
    "left hand": slice(501, 522),
    "right hand": slice(522, 543),
    "face": slice(33, 501),
}
"""Where the landmarks of a part stand in that order; the parts in the order of the features."""

_FACE_WITH_IRISES = POINTS + 10  # what refine_face_landmarks gives


class Difference(NamedTuple):
    """The first value of a sequence that does not follow from its landmarks."""

    frame: int
    dimension: int
    found: float
    expected: float


def with_motion(still: NDArray[Scalar]) -> NDArray[Scalar]:
    """Landmarks (T, 1629) followed by their velocity, acceleration and a copy (T, 6516), in their own dtype.

    Velocity is x[t] - x[t-1], acceleration v[t] - v[t-1]; both are 0 at t = 0, so that acceleration 1 is velocity 1.

    Raises:
        ValueError: another shape.
    """
    if still.ndim != 2 or still.shape[1] != STILL_WIDTH:
        raise ValueError(f"landmarks are {still.shape}; motion is derived from (frames, {STILL_WIDTH})")
    features = np.empty((len(still), WIDTH), dtype=still.dtype)
    x, velocity, acceleration, copy = np.split(features, 4, axis=1)  # views
    x[:] = still
    copy[:] = still
    for change, of in ((velocity, x), (acceleration, velocity)):
        change[:1] = 0
        with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are reported where they stand
            np.subtract(of[1:], of[:-1], out=change[1:])
    return features


def motion(
    still: NDArray[Scalar], frames: int
) -> Iterator[tuple[slice, NDArray[Scalar], NDArray[Scalar], NDArray[Scalar]]]:
    """So many frames at a time: which, and their landmarks, velocity and acceleration, as `with_motion` has them.

    The arrays of motion are written over by the next ones.
    """
    velocity = np.zeros((frames + 1, still.shape[1]), dtype=still.dtype)  # the first row: of the frame before
    acceleration = np.empty((frames, still.shape[1]), dtype=still.dtype)
    for start in range(0, len(still), frames):
        at = slice(start, min(start + frames, len(still)))
        x, n = still[at], at.stop - start
        begun = int(start == 0)  # a frame without one before it has no motion
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(x[begun:], still[start + begun - 1 : at.stop - 1], out=velocity[1 + begun : n + 1])
            velocity[1 : 1 + begun] = 0
            np.subtract(velocity[1 : n + 1], velocity[:n], out=acceleration[:n])
        acceleration[:begun] = 0
        yield at, x, velocity[1 : n + 1], acceleration[:n]
        velocity[0] = velocity[n]


def first_difference(features: NDArray[Any]) -> Difference | None:
    """Where features (T, 6516) first differ from what `with_motion` makes of their landmarks; None: nowhere.

    Compared to the bit, in the features' own dtype (8 bytes a number at most): a zero has a sign as well.

    Raises:
        ValueError: another shape.
    """
    if features.ndim != 2 or features.shape[1] != WIDTH:
        raise ValueError(f"features are {features.shape}; landmarks with their motion are (frames, {WIDTH})")
    derived = with_motion(features[:, :STILL_WIDTH])
    bits = f"u{features.dtype.itemsize}"
    differs = features.view(bits) != derived.view(bits)
    if not differs.any():
        return None
    frame, dimension = (int(i) for i in np.argwhere(differs)[0])
    return Difference(frame, dimension, float(features[frame, dimension]), float(derived[frame, dimension]))


def from_holistic(
    landmarks: NDArray[Any], confidence: NDArray[Any] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Features (T, 6516) and detection_masks (T, 543) of the landmarks (T, 543, 3 or more) of MediaPipe Holistic.

    The first three coordinates are taken as they are, in whatever unit. A landmark is detected where they are finite
    and not all zero, and its confidence (T, 543), if given, is above 0: extractors write a hand that was not found as
    zeros, as NaN, or with confidence 0. A landmark that is not finite becomes zero. Masks keep the landmarks' order
    (pose, face, left hand, right hand); features have pose 99, left hand 63, right hand 63, face 1404, then motion and
    copy as `with_motion` derives them.

    Raises:
        ValueError: shapes or types are others, or there is no frame.
    """
    if landmarks.dtype.kind not in "fiu":
        raise ValueError(f"landmarks are {landmarks.dtype}; they must be numbers")
    if landmarks.ndim == 3 and landmarks.shape[1] == _FACE_WITH_IRISES:
        raise ValueError(
            f"landmarks are {landmarks.shape}, {_FACE_WITH_IRISES} a frame: the face has 478 with the irises; "
            "leave the last 10 of the face out, which are the irises"
        )
    if landmarks.ndim != 3 or landmarks.shape[1] != POINTS or landmarks.shape[2] < 3 or len(landmarks) == 0:
        raise ValueError(
            f"landmarks are {landmarks.shape}; they must be (frames, {POINTS}, 3 or more): pose 33, face 468, "
            "left hand 21, right hand 21, each x, y, z"
        )
    if confidence is not None and (confidence.shape != landmarks.shape[:2] or confidence.dtype.kind not in "fiub"):
        raise ValueError(
            f"confidence is {confidence.dtype} {confidence.shape}; it must be numbers, one a landmark: "
            f"{landmarks.shape[:2]}"
        )
    with np.errstate(over="ignore"):  # beyond float32 a landmark is as useless as infinity
        points = landmarks[:, :, :3].astype(np.float32)
    points[~np.isfinite(points).all(axis=2)] = 0
    detected: NDArray[np.bool_] = np.any(points, axis=2)
    if confidence is not None:
        detected &= np.greater(confidence, 0)
    still = [points[:, part].reshape(len(points), -1) for part in PARTS.values()]
    return with_motion(np.concatenate(still, axis=1)), detected


def write_sequence(file: Path, features: NDArray[np.float32], detection_masks: NDArray[np.bool_]) -> None:
    """One sequence of a corpus as an npz, uncompressed; the file is there whole or not at all."""
    with written_aside(file) as opened:
        np.savez(opened, features=features, detection_masks=detection_masks)
