"""The probes tell a model that uses its input from one that does not, and from one that ignores time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.probes import FEWEST_SEQUENCES, MOST_SEQUENCES, pairs, permuted_gap, probed_rows, resampled, swap_gap
from tests.corpora import write_corpus, write_csv, write_sequence

Losses = Callable[[NDArray[np.int64], Callable[[int], NDArray[np.float32]]], NDArray[np.float64]]


def corpus_of(folder: Path, dev: int, *, same: bool = False) -> Corpus:
    """Dev sequences of 20 to 40 frames whose features rise from their number, and hold it throughout."""
    rng = np.random.default_rng(0)
    write_corpus(folder, {"train": ["A B", "B C"], "dev": ["A"]})
    rows = []
    for i in range(dev):
        x = np.full((int(rng.integers(20, 40)), 6), float(i), dtype=np.float32)
        x[:, 0] += np.linspace(0, 1, len(x))
        write_sequence(folder / "features" / "dev" / f"s{i}.npz", x)
        rows.append((f"s{i}", "-", "S", "A B" if same or i % 2 else "B C A"))
    write_csv(folder / "annotations" / "dev.corpus.csv", rows)
    return load_corpus(CorpusConfig(path=folder, normalise=False))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of(tmp_path_factory.mktemp("corpus"), 120)


def loss_of(features: Callable[[int, NDArray[np.float32]], float]) -> Losses:
    """A model: its loss on a row from that row's number and the features it is shown."""

    def losses(rows: NDArray[np.int64], shown: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float64]:
        return np.array([features(int(row), shown(int(row))) for row in rows])

    return losses


def own(corpus: Corpus, losses: Losses) -> NDArray[np.float64]:
    return losses(np.arange(len(corpus.dev)), corpus.dev.features)


NOISE = np.random.default_rng(1).normal(0, 1, 200_003)
uses_its_input = loss_of(lambda row, x: float(abs(x[0, 1] - row) > 0.5) + 5)
ignores_its_input = loss_of(lambda row, x: 5.0)
is_disturbed_by_anything = loss_of(lambda row, x: 5 + float(NOISE[int(1e6 * abs(float(x[3, 0]))) % len(NOISE)]))
averages_over_time = loss_of(lambda row, x: float(abs(x[:, 1].mean() - row) > 0.5) + 5)
needs_the_order = loss_of(lambda row, x: float((np.diff(x[:, 0]) < 0).any()) + 5)


@pytest.mark.parametrize(
    ("losses", "swapped", "permuted"),
    [
        (uses_its_input, True, False),
        (ignores_its_input, False, False),
        (is_disturbed_by_anything, False, False),
        (averages_over_time, True, False),
        (needs_the_order, False, True),
    ],
)
def test_what_each_gap_tells(corpus: Corpus, losses: Losses, swapped: bool, permuted: bool) -> None:
    gaps = [gap(corpus.dev, 4, own(corpus, losses), losses) for gap in (swap_gap, permuted_gap)]
    assert [gap.t > 2.5 or gap.gap > 0.3 for gap in gaps] == [swapped, permuted]
    assert [abs(gap.t) <= 2.0 for gap in gaps if gap.gap < 0.3] == [True] * (2 - swapped - permuted)
    assert [gap.sequences for gap in gaps] == [120, 60]


def test_the_gap_is_in_nats_per_gloss_and_t_is_that_of_a_paired_test(corpus: Corpus) -> None:
    from scipy.stats import ttest_rel

    losses = loss_of(lambda row, x: 5 + row % 7 * float(abs(x[0, 1] - row) > 0.5))
    before, glosses = own(corpus, losses), np.array([len(t) for t in corpus.dev.targets])
    other = pairs(corpus.dev, 4)
    after = np.array([5.0 + row % 7 for row in other])
    gap = swap_gap(corpus.dev, 4, before, losses)
    assert gap.gap == pytest.approx(((after - before) / glosses).mean())
    assert gap.t == pytest.approx(ttest_rel(after / glosses, before / glosses).statistic)


def test_a_partner_is_near_in_length_and_has_another_reference(corpus: Corpus) -> None:
    dev, found = corpus.dev, pairs(corpus.dev, 4)
    assert list(found) == list(range(120))
    for row, other in found.items():
        assert dev.references[row] != dev.references[other]
        nearest = min(
            abs(int(dev.lengths[i] - dev.lengths[row])) for i in found if dev.references[i] != dev.references[row]
        )
        assert abs(int(dev.lengths[other] - dev.lengths[row])) == nearest


def test_few_sequences_are_not_enough_evidence(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, FEWEST_SEQUENCES - 1)
    gap = swap_gap(corpus.dev, 4, own(corpus, uses_its_input), uses_its_input)
    assert gap.gap > 0.3
    assert math.isnan(gap.t)
    assert gap.sequences == FEWEST_SEQUENCES - 1


def test_sentences_all_alike_cannot_be_swapped(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, 3, same=True)
    gap = swap_gap(corpus.dev, 4, own(corpus, uses_its_input), uses_its_input)
    assert (gap.sequences, math.isnan(gap.gap), math.isnan(gap.t)) == (0, True, True)


def test_a_large_dev_split_is_thinned_out_and_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, MOST_SEQUENCES + 40)
    assert len(probed_rows(corpus.dev, 4)) == MOST_SEQUENCES
    rows = probed_rows(corpus.dev, 16)  # one or two output frames: too few for "B C A"
    assert len(rows) > 0
    assert {corpus.dev.references[row] for row in rows} == {"A B"}


def test_resampling_keeps_first_and_last_frame_and_the_order() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    for frames in (1, 3, 10, 25):
        out = resampled(x, frames)[:, 0]
        assert len(out) == frames
        assert (np.diff(out) >= 0).all()
        assert out[0] == 0
        assert frames == 1 or out[-1] == 9
    assert (resampled(x, 10) == x).all()
