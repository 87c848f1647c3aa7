"""Prefix beam search, held against all alignments of small cases, and what it does where numbers are extreme."""

from __future__ import annotations

import itertools
import time
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.beam import NEVER, Labelling, prefix_beam_search
from model.decode import BLANK, greedy_decode
from model.ngram import fit_ngram

WIDE = 4_000
"""More prefixes than six frames of four classes can make."""

BIGRAM = fit_ngram([[1, 2], [2, 1, 3], [3, 3], [1], [2, 1]], classes=4, order=2)


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    """Graves et al. 2006: merge repeats, then drop blanks."""
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


@cache
def alignments(frames: int, classes: int) -> tuple[NDArray[np.int64], list[tuple[int, ...]], NDArray[np.int64]]:
    """Every path, every labelling, and which labelling each path is of."""
    paths = list(itertools.product(range(classes), repeat=frames))
    labellings = sorted({collapse(path) for path in paths})
    place = {labels: i for i, labels in enumerate(labellings)}
    return np.array(paths), labellings, np.array([place[collapse(path)] for path in paths])


def all_labellings(log_probs: NDArray[np.float64]) -> dict[tuple[int, ...], float]:
    """The log-probability of every labelling, by summing over its alignments."""
    frames, classes = log_probs.shape
    paths, labellings, place = alignments(frames, classes)
    sums = np.full(len(labellings), NEVER)
    np.logaddexp.at(sums, place, log_probs[np.arange(frames), paths].sum(1))
    return dict(zip(labellings, sums.tolist(), strict=True))


def normalised(scores: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), np.float64)


@st.composite
def small_outputs(draw: st.DrawFn) -> NDArray[np.float64]:
    """Log-probabilities (T, V), flat or peaked, some of them of nothing."""
    frames, classes = draw(st.integers(1, 6)), draw(st.integers(3, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.normal(0, draw(st.sampled_from([0.1, 1.0, 5.0])), (frames, classes))
    impossible = rng.random(scores.shape) < draw(st.sampled_from([0.0, 0.3]))
    impossible[np.arange(frames), rng.integers(classes, size=frames)] = False
    return normalised(np.where(impossible, NEVER, scores))


@settings(max_examples=150, deadline=None)
@given(small_outputs())
def test_a_wide_beam_finds_the_most_probable_labelling(log_probs: NDArray[np.float64]) -> None:
    of = all_labellings(log_probs)
    found = prefix_beam_search(log_probs, WIDE)
    assert found.score == pytest.approx(max(of.values()), abs=1e-9)
    assert of[found.labels] == pytest.approx(found.score, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(small_outputs(), st.floats(0.01, 2), st.floats(-2, 2))
def test_so_it_does_with_a_language_model_and_a_bonus(
    log_probs: NDArray[np.float64], weight: float, bonus: float
) -> None:
    def ranked(labels: tuple[int, ...], log_prob: float) -> float:
        of_glosses = sum(BIGRAM.log_probs(labels[:i])[label] for i, label in enumerate(labels))
        return log_prob + weight * float(of_glosses + BIGRAM.log_probs(labels)[BLANK]) + bonus * len(labels)

    scores = {labels: ranked(labels, log_prob) for labels, log_prob in all_labellings(log_probs).items()}
    found = prefix_beam_search(log_probs, WIDE, language_model=BIGRAM, weight=weight, length_bonus=bonus)
    assert found.score == pytest.approx(max(scores.values()), abs=1e-9)
    assert scores[found.labels] == pytest.approx(found.score, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(small_outputs(), st.integers(1, 5))
def test_a_narrow_beam_never_beats_it(log_probs: NDArray[np.float64], beam: int) -> None:
    of = all_labellings(log_probs)
    found = prefix_beam_search(log_probs, beam)
    assert found.score <= of[found.labels] + 1e-9, "it has lost alignments, and cannot have made any up"
    assert of[found.labels] <= max(of.values())


def test_it_sums_over_alignments_where_greedy_decoding_takes_the_best_one() -> None:
    """The case of Graves et al. 2006: blank is best in both frames, and yet the labelling A is likelier than none."""
    log_probs = np.log([[0.6, 0.4], [0.6, 0.4]])
    greedy, _ = greedy_decode(torch.from_numpy(log_probs)[None], torch.tensor([2]))
    assert greedy == [[]]
    assert prefix_beam_search(log_probs) == Labelling((1,), pytest.approx(np.log(0.64)))


def test_a_gloss_twice_needs_a_blank_between() -> None:
    def certain(*path: int) -> NDArray[np.float64]:
        return np.where(np.eye(3)[list(path)] == 1, 0.0, NEVER)

    assert prefix_beam_search(certain(1, 1, 0, 1, 2, 2, 0, 0)) == Labelling((1, 1, 2), 0.0)
    assert prefix_beam_search(certain(1, 1, 1)) == Labelling((1,), 0.0)
    assert prefix_beam_search(certain(0, 0)) == Labelling((), 0.0)


def test_outputs_that_are_sure_decode_as_greedy_does() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        best = rng.integers(0, 5, 40)
        log_probs = normalised(20 * np.eye(5)[best])
        assert prefix_beam_search(log_probs).labels == collapse(tuple(best.tolist()))


def test_a_language_model_decides_where_the_frames_do_not() -> None:
    log_probs = normalised(np.log([[0.02, 0.49, 0.49, 1e-9], [0.98, 0.01, 0.01, 1e-9]]))
    after_two = fit_ngram([[2]] * 9 + [[1]], classes=4, order=1)
    assert prefix_beam_search(log_probs, language_model=after_two, weight=0.5).labels == (2,)
    after_one = fit_ngram([[1]] * 9 + [[2]], classes=4, order=1)
    assert prefix_beam_search(log_probs, language_model=after_one, weight=0.5).labels == (1,)


def test_the_bonus_is_for_length() -> None:
    log_probs = normalised(np.log([[0.7, 0.3], [1.0, 1e-12], [0.7, 0.3]]))
    lengths = [len(prefix_beam_search(log_probs, length_bonus=bonus).labels) for bonus in (-1, 0, 0.5, 2)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] == 2


def test_a_thousand_frames_at_the_edge_of_what_numbers_can_hold() -> None:
    rng = np.random.default_rng(0)
    path = rng.integers(0, 6, 1_000)
    log_probs = np.full((1_000, 6), -1e4)
    log_probs[np.arange(1_000), path] = 0.0
    assert prefix_beam_search(log_probs, 4) == Labelling(collapse(tuple(path.tolist())), 0.0)
    found = prefix_beam_search(np.full((1_000, 6), -1e4), 4)  # nothing is likely, and nothing overflows
    assert -1e7 <= found.score < -0.99e7
    flat = prefix_beam_search(np.full((1_000, 6), -np.log(6)), 4, language_model=None, length_bonus=-1e3)
    assert flat.labels == ()
    assert flat.score == pytest.approx(-1_000 * np.log(6))


def test_probabilities_of_zero() -> None:
    impossible = np.full((3, 4), NEVER)
    assert prefix_beam_search(impossible) == Labelling((), NEVER)
    broken = normalised(np.zeros((5, 4)))
    broken[2] = NEVER
    assert prefix_beam_search(broken, language_model=BIGRAM, weight=1.0) == Labelling((), NEVER)
    assert prefix_beam_search(np.empty((0, 4))) == Labelling((), 0.0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_log_probability_is_refused(wrong: float) -> None:
    log_probs = normalised(np.zeros((5, 4)))
    log_probs[3, 2] = wrong
    with pytest.raises(ValueError, match="not finite"):
        prefix_beam_search(log_probs)
    with pytest.raises(ValueError, match="beam: 0"):
        prefix_beam_search(normalised(np.zeros((5, 4))), 0)


@settings(max_examples=50, deadline=None)
@given(small_outputs())
def test_pruned_classes_are_not_appended_and_nothing_else_changes(log_probs: NDArray[np.float64]) -> None:
    least = -1.5
    found = prefix_beam_search(log_probs, WIDE, prune=least)
    assert set(found.labels) <= set(np.flatnonzero((log_probs >= least).any(axis=0)).tolist())
    assert found.score <= max(all_labellings(log_probs).values()) + 1e-9
    assert prefix_beam_search(log_probs, WIDE, prune=-1e9) == prefix_beam_search(log_probs, WIDE)


def peaked(frames: int, classes: int) -> NDArray[np.float64]:
    """Mostly blank, a peak every fourth frame: what a trained model gives."""
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 2, (frames, classes))
    scores[:, BLANK] += 8
    scores[::4, 1:][np.arange(len(scores[::4])), rng.integers(classes - 1, size=len(scores[::4]))] += 9
    return normalised(scores)


def test_a_wider_beam_is_no_worse_on_a_sentence_of_full_size() -> None:
    log_probs = peaked(34, 973)
    scores = [prefix_beam_search(log_probs, beam).score for beam in (1, 4, 16, 64)]
    assert scores == sorted(scores)
    assert prefix_beam_search(log_probs, 16) == prefix_beam_search(log_probs.copy(), 16)


def test_a_sentence_of_full_size_takes_milliseconds() -> None:
    """973 classes, 34 frames: 8 ms on one core. The limit is for machines that do other things as well."""
    log_probs = peaked(34, 973)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        prefix_beam_search(log_probs, 16)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.1
