"""The batches of an epoch, with and without length buckets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.corpus.data import epoch_batches, epoch_order

corpora = st.lists(st.integers(1, 400), min_size=1, max_size=150).map(np.array)
sizes, seeds, epochs = st.integers(1, 20), st.integers(0, 2**63 - 1), st.integers(1, 1_000)
buckets = st.integers(2, 1_000_000)


def frames_of_longest(lengths: NDArray[np.int64], batches: list[NDArray[np.int64]]) -> int:
    return sum(int(lengths[rows].max()) for rows in batches)


@given(corpora, sizes, seeds, epochs, st.integers(0, 200))
def test_every_sequence_comes_once_and_one_batch_at_most_is_smaller(
    lengths: NDArray[np.int64], size: int, seed: int, epoch: int, buckets: int
) -> None:
    batches = epoch_batches(lengths, size, seed, epoch, buckets)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    full, rest = divmod(len(lengths), size)
    assert sorted(map(len, batches), reverse=True) == [size] * full + [rest] * (rest > 0)


@given(corpora, sizes, seeds, epochs, st.integers(0, 1))
def test_without_buckets_the_batches_are_cut_from_the_order_as_it_is_drawn(
    lengths: NDArray[np.int64], size: int, seed: int, epoch: int, buckets: int
) -> None:
    batches = epoch_batches(lengths, size, seed, epoch, buckets)
    assert np.concatenate(batches).tolist() == epoch_order(len(lengths), seed, epoch).tolist()
    assert [len(rows) for rows in batches[:-1]] == [size] * (len(batches) - 1)


@given(corpora, sizes, seeds, epochs, buckets)
def test_the_batches_are_a_function_of_seed_and_epoch(
    lengths: NDArray[np.int64], size: int, seed: int, epoch: int, buckets: int
) -> None:
    one, two = (epoch_batches(lengths, size, seed, epoch, buckets) for _ in range(2))
    assert [rows.tolist() for rows in one] == [rows.tolist() for rows in two]


@given(corpora, sizes, seeds, epochs, buckets)
def test_no_cut_of_the_same_sequences_has_less_padding(
    lengths: NDArray[np.int64], size: int, seed: int, epoch: int, buckets: int
) -> None:
    without, within = epoch_batches(lengths, size, seed, epoch), epoch_batches(lengths, size, seed, epoch, buckets)
    assert frames_of_longest(lengths, within) <= frames_of_longest(lengths, without)


@given(corpora, sizes, seeds, epochs, st.integers(2, 20))
def test_only_sequences_that_were_drawn_near_each_other_are_sorted(
    lengths: NDArray[np.int64], size: int, seed: int, epoch: int, buckets: int
) -> None:
    """A batch stays within its pool, and there no two batches overlap in length."""
    pools: dict[int, list[NDArray[np.int64]]] = {}
    drawn_at = np.argsort(epoch_order(len(lengths), seed, epoch))
    for rows in epoch_batches(lengths, size, seed, epoch, buckets):
        (pool,) = set((drawn_at[rows] // (buckets * size)).tolist())
        pools.setdefault(pool, []).append(lengths[rows])
    for each in pools.values():
        each.sort(key=lambda frames: (int(frames.min()), int(frames.max())))
        assert all(a.max() <= b.min() for a, b in pairwise(each))


def test_the_batches_of_an_epoch_come_in_random_order_and_every_epoch_in_another() -> None:
    lengths = np.arange(1, 801)
    first, second = ([int(lengths[rows].max()) for rows in epoch_batches(lengths, 8, 0, e, 100)] for e in (1, 2))
    assert sorted(first) == sorted(second) == list(range(8, 801, 8))  # all of them in one pool
    assert first != second
    assert abs(np.corrcoef(first, np.arange(100))[0, 1]) < 0.3
