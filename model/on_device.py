"""The features of train and dev in the memory of the device that trains: batches are put together there.

A batch is then gathered by index, and a step copies a few numbers from the host instead of its features, which are the
same to the bit. What the probes put in place of features comes from the host, some sequences an epoch.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.corpus.data import Corpus, Split

log = logging.getLogger(__name__)

SHARE = 1 / 3
"""Of the device's memory that is free when a trainer starts: at most so much is taken by the features. The rest is for
weights, moments and activations, and for another worker that starts on the device at the same time."""

_kept: list[tuple[Corpus, torch.device, Corpus]] = []
"""The corpus that this process has on a device, if any: its trials, one after the other, share it."""


class OnDevice:
    """A split's normalised features (float32) on a device; each sequence is copied there when it is first asked for.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split = split
        ends = split.lengths.cumsum()
        self._starts, self._there = ends - split.lengths, np.zeros(len(split), dtype=bool)
        # One row more, of zeros: what stands where a batch is padded.
        rows = torch.empty(int(ends[-1]) + 1, len(split.normalisation.mean), device=device)
        rows[-1] = 0
        self._rows: Tensor | None = rows

    def __call__(self, indices: NDArray[np.int64]) -> Tensor | None:
        """Features (B, T, D) of these sequences, padded with zeros to the longest; None once they were released.

        Raises:
            CorpusError: see `Split.features`.
        """
        rows = self._rows
        if rows is None:
            return None
        for i in indices[~self._there[indices]].tolist():
            rows[self._starts[i] : self._starts[i] + self._split.lengths[i]] = torch.from_numpy(self._read(i))
            self._there[i] = True
        lengths = self._split.lengths[indices]
        begin, count = torch.from_numpy(np.stack([self._starts[indices], lengths])).to(rows.device)[:, :, None]
        time = torch.arange(int(lengths.max()), device=rows.device)
        places = torch.where(time < count, begin + time, len(rows) - 1)  # (B, T)
        return rows.index_select(0, places.flatten()).view(*places.shape, -1)

    def release(self) -> None:
        """Give the memory back; batches come from the host from now on."""
        self._rows = None

    def _read(self, i: int) -> NDArray[np.float32]:
        # Not by way of `Split.features`, which would keep a small corpus in the host's memory as well.
        x = np.empty((int(self._split.lengths[i]), len(self._split.normalisation.mean)), dtype=np.float32)
        self._split.read.write(i, self._split.normalisation, x)
        return x


def on_device(corpus: Corpus, device: torch.device, wanted: bool | None = None) -> Corpus:
    """The corpus with the features of train and dev on the device; as it is where they stay on the host.

    Args:
        wanted: None: on CUDA, where they fit in SHARE of what is free.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return corpus
    for original, where, moved in _kept:
        if original is corpus and where == device:
            return moved
    _release_kept()
    if wanted is None and not fits(size_of(corpus), torch.cuda.mem_get_info(device)[0]):
        return corpus
    moved = corpus
    try:
        moved = replace(moved, train=replace(corpus.train, gather=OnDevice(corpus.train, device)))
        moved = replace(moved, dev=replace(corpus.dev, gather=OnDevice(corpus.dev, device)))
    except torch.OutOfMemoryError as error:  # another process took it since it was free
        log.warning("the features stay in the host's memory: %s", " ".join(str(error).split()))
        _release(moved)
        return corpus
    _kept.append((corpus, device, moved))
    return moved


def fits(size: int, free: int) -> bool:
    """Whether features of that size lie on a device with so much free memory (both bytes)."""
    return size <= SHARE * free


def size_of(corpus: Corpus) -> int:
    """Bytes that the features of train and dev take on a device."""
    return 4 * corpus.width * int(corpus.train.lengths.sum() + corpus.dev.lengths.sum() + 2)


def _release_kept() -> None:
    while _kept:
        _release(_kept.pop()[2])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch keeps for itself is not free to be asked for


def _release(corpus: Corpus) -> None:
    for split in (corpus.train, corpus.dev):
        if isinstance(split.gather, OnDevice):
            split.gather.release()
