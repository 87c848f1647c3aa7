"""The n-gram sums to one, is what Kneser and Ney wrote down, and counts the ends of sentences."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.ngram import DISCOUNT, EDGE, NGram, fit_ngram

CLASSES = 5
sentences = st.lists(st.integers(1, CLASSES - 1), max_size=6)
texts = st.lists(sentences, min_size=1, max_size=12)
orders = st.sampled_from([1, 2, 3])


def probability(model: NGram, history: Sequence[int], word: int) -> float:
    return math.exp(float(model.log_probs(tuple(history))[word]))


@settings(max_examples=100, deadline=None)
@given(texts, orders, sentences)
def test_what_follows_any_history_sums_to_one(text: list[list[int]], order: int, history: list[int]) -> None:
    row = fit_ngram(text, CLASSES, order).log_probs(tuple(history))
    assert row.shape == (CLASSES,)
    assert np.isfinite(row).all(), "nothing is impossible"
    assert np.exp(row).sum() == pytest.approx(1, abs=1e-12)


def by_definition(text: list[list[int]], order: int, history: list[int], word: int) -> float:
    """Chen and Goodman 1999, word by word, with S for the start and E for the end."""
    marked: list[list[object]] = [["S", *sentence, "E"] for sentence in text]
    target: object = "E" if word == EDGE else word
    past: list[object] = ["S", *history]

    def occurrences(length: int) -> Counter[tuple[object, ...]]:
        return Counter(tuple(s[i : i + length]) for s in marked for i in range(len(s) - length + 1))

    def count_of(gram: tuple[object, ...]) -> int:
        if len(gram) == order or (len(gram) > 1 and gram[0] == "S"):
            return occurrences(len(gram))[gram]
        return sum(longer[1:] == gram for longer in occurrences(len(gram) + 1))

    words: list[object] = [*range(1, CLASSES), "E"]

    def p(context: tuple[object, ...]) -> float:
        counts = {w: count_of((*context, w)) for w in words}
        total = sum(counts.values())
        if not total:
            return p(context[1:])
        grams = [g for g in occurrences(len(context) + 1) if g != ("S",)]
        ones, twos = (sum(count_of(g) == n for g in grams) for n in (1, 2))
        discount = ones / (ones + 2 * twos) if ones and twos else DISCOUNT
        shorter = p(context[1:]) if context else 1 / CLASSES
        seen = sum(count > 0 for count in counts.values())
        return max(counts[target] - discount, 0) / total + discount * seen / total * shorter

    return p(tuple(past[len(past) - (order - 1) :]) if order - 1 <= len(past) else tuple(past))


@settings(max_examples=40, deadline=None)
@given(texts, orders, sentences, st.integers(0, CLASSES - 1))
def test_it_is_the_interpolated_form_of_kneser_and_ney(
    text: list[list[int]], order: int, history: list[int], word: int
) -> None:
    model = fit_ngram(text, CLASSES, order)
    assert probability(model, history, word) == pytest.approx(by_definition(text, order, history, word), rel=1e-9)


def test_a_unigram_by_hand() -> None:
    """Counts 3, 2, 1 and 2 ends, in all 8; once: 1, twice: 2, so D = 1 / 5. Four followers of five classes."""
    model = fit_ngram([[1, 1, 2, 3], [1, 2]], CLASSES, 1)
    left = 0.2 * 4 / 8 / 5
    expected = [1.8 / 8 + left, 2.8 / 8 + left, 1.8 / 8 + left, 0.8 / 8 + left, left]
    assert np.exp(model.log_probs(())) == pytest.approx(expected)
    assert np.array_equal(model.log_probs(()), model.log_probs((4, 1))), "without history it is the same everywhere"


def test_a_bigram_knows_what_follows_what_and_where_sentences_begin_and_end() -> None:
    model = fit_ngram([[1, 2], [1, 2, 3], [1, 3], [1, 2]] * 3, CLASSES, 2)
    assert probability(model, [], 1) > 0.9
    assert probability(model, [1], 2) > probability(model, [1], 3) > probability(model, [1], 1)
    assert probability(model, [1, 3], EDGE) > 0.9
    assert probability(model, [1], EDGE) < 0.1
    assert probability(model, [3, 3, 1], 2) == probability(model, [1], 2), "it looks one gloss back"


def test_a_gloss_that_follows_only_one_other_is_rare_elsewhere() -> None:
    """What Kneser and Ney are for: 2 is as frequent as 3, but stands behind 1 alone."""
    text = [[1, 2]] * 6 + [[1, 3], [2, 3], [4, 3], [3, 3], [3, 1]]
    model = fit_ngram(text, CLASSES, 2)
    counts = Counter(itertools.chain(*text))
    assert counts[2] >= counts[3]
    assert probability(model, [4, 4], 2) < probability(model, [4, 4], 3)


def test_a_history_never_seen_is_a_shorter_one() -> None:
    model = fit_ngram([[1, 2, 3], [2, 3, 1]], CLASSES, 3)
    assert np.array_equal(model.log_probs((4, 2)), model.log_probs((3, 2)))
    assert not np.array_equal(model.log_probs((1, 2)), model.log_probs((3, 2)))


def test_it_expects_what_it_has_read() -> None:
    rng = np.random.default_rng(0)
    text = [[1 + (start + i) % 4 for i in range(rng.integers(2, 7))] for start in rng.integers(0, 4, 50)]

    def surprise(order: int) -> float:
        model = fit_ngram(text, CLASSES, order)
        told = [
            model.log_probs(tuple(s[:i]))[word]
            for start in range(4)
            for s in [[1 + (start + k) % 4 for k in range(5)]]
            for i, word in enumerate(s)
        ]
        return -float(np.mean(told))

    assert surprise(2) < 0.6 * surprise(1)


@pytest.mark.parametrize(("text", "order"), [([[1]], 0), ([[1]], 4), ([], 2)])
def test_other_orders_and_no_text_are_refused(text: list[list[int]], order: int) -> None:
    with pytest.raises(ValueError, match="give"):
        fit_ngram(text, CLASSES, order)
