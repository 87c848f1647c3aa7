from __future__ import annotations

import itertools

import numpy as np
import pytest

from model.metrics import word_errors
from model.probes import constant_sentence
from model.vocabulary import FILTERS
from tests.corpora import SHARED

SI5 = SHARED / "phoenix2014-si5" / "annotations"


def best_by_trying_all(train: list[str], longest: int) -> float:
    """Word error rate on train of the best sentence of up to `longest` words."""
    words = sorted({word for sentence in train for word in sentence.split()})
    sentences = (" ".join(s) for n in range(longest + 1) for s in itertools.product(words, repeat=n))
    return min(word_errors(train, [sentence] * len(train)).wer for sentence in sentences)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_best_of_all_sentences_on_tiny_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    train = [" ".join(rng.choice(["A", "B", "C"], rng.integers(1, 5), p=[0.6, 0.3, 0.1])) for _ in range(9)]
    sentence, wer = constant_sentence(train, train)
    assert wer == word_errors(train, [sentence] * len(train)).wer
    assert wer == best_by_trying_all(train, longest=4)


def test_it_is_chosen_on_train_and_scored_on_dev() -> None:
    assert constant_sentence(["A B", "A B", "C"], ["A B C", "D"]) == ("A B", (1 + 2) / 4)


def test_one_sentence_said_by_everyone_is_found_whole() -> None:
    assert constant_sentence(["A B A C"] * 3, ["A B A C"]) == ("A B A C", 0.0)


def test_equal_choices_do_not_depend_on_the_order_of_the_sentences() -> None:
    orders = itertools.permutations(["B", "A B", "C", "A"])
    assert {constant_sentence(order, ["A"], candidates=1) for order in orders} == {("A", 0.0)}


def test_only_the_most_common_words_are_tried() -> None:
    assert constant_sentence(["A B", "A B", "A"], ["A B"], candidates=1) == ("A", 0.5)


@pytest.mark.skipif(not SI5.is_dir(), reason="the PHOENIX SI5 annotations are not beside the project")
def test_on_phoenix_si5_it_scores_what_the_field_should_fear() -> None:
    keep = FILTERS["phoenix-si5"]

    def references(split: str) -> list[str]:
        lines = (SI5 / f"{split}.SI5.corpus.csv").read_text(encoding="utf-8").splitlines()[1:]
        sentences = [" ".join(filter(keep, line.split("|")[3].split())) for line in lines]
        return [sentence for sentence in sentences if sentence]

    train, dev = references("train"), references("dev")
    assert (len(train), len(dev)) == (4372, 111)
    _, wer = constant_sentence(train, dev)
    assert wer == pytest.approx(0.928, abs=0.005)
