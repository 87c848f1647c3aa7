"""Whether a network uses its input: its loss with its own features against its loss with spoilt ones.

The swap gap is the evidence that spread, loss and decoding cannot give: on shuffled labels or useless features all of
those look as healthy as a slow start, and only this stays at zero. A network that collapses time passes it; for that
one a sequence's own frames are put in random order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model.corpus.data import Split
from model.types import FEWEST_SEQUENCES, mixed_seed

MOST_SEQUENCES = 128
"""Dev sequences that the swap gap compares at most: the paired t is sharp enough, and the cost stays bounded."""

PERMUTED_SHARE = 2
"""The permuted-time gap looks at one in so many of those sequences: what it finds is far larger, and a pass is dear."""

Losses = Callable[[NDArray[np.int64], Callable[[int], NDArray[np.float32]]], NDArray[np.float64]]
"""CTC loss in nats of rows of a split when their features are what the function says."""


@dataclass(frozen=True)
class Gap:
    """By how much spoilt features raise the loss."""

    gap: float
    """Mean over sequences of the difference in nats per gloss; NaN without sequences."""
    t: float
    """Paired t of that difference; NaN where there are too few sequences, or a difference is not finite."""
    sequences: int


def probed_rows(split: Split, stride: int, most: int = MOST_SEQUENCES) -> NDArray[np.int64]:
    """The rows that are compared: those whose target fits, evenly thinned out to `most`."""
    rows = np.flatnonzero(split.fits(stride))
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    return rows


@lru_cache(maxsize=8)
def pairs(split: Split, stride: int) -> Mapping[int, int]:
    """For each probed row, the one nearest in length that has another reference; a row without one is left out.

    Near in length, so that resampling to the row's own length changes the features' pace as little as can be.
    """
    rows = probed_rows(split, stride)
    order = rows[np.argsort(split.lengths[rows], kind="stable")]
    partner = {}
    for at, row in enumerate(order):
        apart = np.abs(split.lengths[order] - split.lengths[row])
        for other in np.lexsort((np.abs(np.arange(len(order)) - at), apart)):
            if split.references[order[other]] != split.references[row]:
                partner[int(row)] = int(order[other])
                break
    return {int(row): partner[int(row)] for row in rows if int(row) in partner}


def resampled(x: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
    """Features (T, D) at the nearest of `frames` evenly spaced times."""
    return x[np.linspace(0, len(x) - 1, frames).round().astype(np.int64)]


def swap_gap(split: Split, stride: int, own: NDArray[np.float64], losses: Losses) -> Gap:
    """The loss with another sequence's features, resampled to the own length, against that with the own ones.

    Args:
        own: CTC loss of each sequence of the split (N,) in nats with its own features.
        losses: of the same model.
    """
    other = pairs(split, stride)
    rows = np.array(list(other), dtype=np.int64)
    if not len(rows):
        return Gap(float("nan"), float("nan"), 0)
    swapped = losses(rows, lambda row: resampled(split.features(other[row]), int(split.lengths[row])))
    return _gap(split, rows, own, swapped, FEWEST_SEQUENCES)


def permuted_gap(split: Split, stride: int, own: NDArray[np.float64], losses: Losses) -> Gap:
    """The loss with a sequence's own frames in random order against that in their order. Arguments as `swap_gap`."""
    rows = probed_rows(split, stride)[::PERMUTED_SHARE]
    if not len(rows):
        return Gap(float("nan"), float("nan"), 0)

    def permuted(row: int) -> NDArray[np.float32]:
        bits = np.random.PCG64(mixed_seed("permuted time", row))
        return split.features(row)[np.argsort(bits.random_raw(int(split.lengths[row])), kind="stable")]

    return _gap(split, rows, own, losses(rows, permuted), FEWEST_SEQUENCES // PERMUTED_SHARE)


def _gap(
    split: Split, rows: NDArray[np.int64], own: NDArray[np.float64], spoilt: NDArray[np.float64], fewest: int
) -> Gap:
    glosses = np.array([len(split.targets[row]) for row in rows])
    difference = (spoilt - own[rows]) / glosses
    n, deviation = len(rows), float(np.std(difference, ddof=1)) if len(rows) > 1 else 0.0
    mean = float(difference.mean())
    if n < fewest or not np.isfinite(deviation):
        return Gap(mean, float("nan"), n)
    if mean == 0:  # no difference at all: all-zero features, or a network that ignores its input to the last bit
        return Gap(mean, 0.0, n)
    return Gap(mean, mean / (deviation / float(np.sqrt(n))) if deviation > 0 else float(np.copysign(np.inf, mean)), n)
