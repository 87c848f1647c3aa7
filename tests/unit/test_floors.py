from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.corpus.vocabulary import FILTERS, Vocabulary
from model.floors import (
    constant_losses,
    constant_posterior,
    constant_sentence,
    loss_per_gloss,
    split_floors,
)
from model.metrics import word_errors
from tests.corpora import SHARED

SI5 = SHARED / "phoenix2014-si5"
needs_si5 = pytest.mark.skipif(not SI5.is_dir(), reason="the PHOENIX SI5 annotations are not beside the project")


def targets_of(*sentences: list[int]) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return [np.array(sentence, dtype=np.int64) for sentence in sentences]


def torch_losses(posterior: np.ndarray, frames: np.ndarray, targets: list[np.ndarray]) -> np.ndarray:
    """What torch's CTC loss makes of a constant output."""
    log_probs = torch.from_numpy(np.log(posterior)).expand(int(frames.max()), len(targets), -1)
    lengths = torch.tensor([len(target) for target in targets])
    losses = F.ctc_loss(
        log_probs, torch.from_numpy(np.concatenate(targets)), torch.from_numpy(frames), lengths, reduction="none"
    )
    return losses.numpy()


# The loss of a constant posterior


@pytest.mark.parametrize("seed", range(6))
def test_a_constant_output_costs_what_torch_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = targets_of(*(rng.integers(1, 5, rng.integers(1, 9)).tolist() for _ in range(20)))
    frames = np.array([len(t) + (t[1:] == t[:-1]).sum() + rng.integers(0, 40) for t in targets])
    posterior = rng.dirichlet([0.5] * 5)  # some classes very likely, some hardly
    np.testing.assert_allclose(constant_losses(posterior, frames, targets), torch_losses(posterior, frames, targets))


def test_long_sequences_neither_overflow_nor_vanish() -> None:
    rng = np.random.default_rng(0)
    targets = targets_of(*(rng.integers(1, 30, 400).tolist() for _ in range(3)), [1])
    frames = np.array([3000, 900, 3000, 3000])
    for posterior in (np.array([0.9, *[0.1 / 29] * 29]), np.array([1e-3, 0.7, *[0.299 / 28] * 28])):
        np.testing.assert_allclose(
            constant_losses(posterior, frames, targets), torch_losses(posterior, frames, targets)
        )


def test_what_does_not_fit_has_no_loss() -> None:
    targets = targets_of([1, 1], [], [1, 2], [1, 1])
    losses = constant_losses(np.array([0.5, 0.25, 0.25]), np.array([2, 5, 2, 3]), targets)
    assert np.isnan(losses).tolist() == [True, True, False, False]
    assert losses[2:] == pytest.approx([2 * np.log(4), 2 * np.log(4) + np.log(2)]), "equality is feasible"
    assert np.isnan(loss_per_gloss(np.array([0.5, 0.5]), np.array([1]), targets_of([1, 1])))


def test_a_class_of_probability_zero_makes_its_targets_impossible() -> None:
    losses = constant_losses(np.array([0.0, 1.0, 0.0]), np.array([4, 4, 4]), targets_of([1], [1, 1], [2]))
    assert losses.tolist() == [0.0, np.inf, np.inf]


# The best constant posterior


def test_one_frame_a_gloss_gives_their_frequencies() -> None:
    posterior = constant_posterior(np.array([300, 100]), targets_of([1, 2, 3] * 100, [1, 2] * 50), 4)
    assert posterior == pytest.approx([1 / 401, 150 / 401, 150 / 401, 100 / 401]), "blank counts as one frame"


def test_one_gloss_alone_is_answered_always() -> None:
    posterior = constant_posterior(np.full(20, 50), targets_of(*[[1]] * 20), 3)
    assert posterior == pytest.approx([1 / 1002, 1000 / 1002, 1 / 1002])


def test_a_gloss_that_train_never_holds_gives_dev_no_infinite_loss() -> None:
    rng = np.random.default_rng(1)
    train = targets_of(*(rng.integers(1, 9, 5).tolist() for _ in range(50)))
    frames = np.full(50, 40)
    posterior = constant_posterior(frames, train, 10)
    assert posterior[9] == pytest.approx(1 / 2001), "as if it stood on one frame of train"
    assert np.isfinite(loss_per_gloss(posterior, np.array([20]), targets_of([9, 1])))
    exact = loss_per_gloss(constant_posterior(frames, train, 9), frames, train)
    assert loss_per_gloss(posterior, frames, train) == pytest.approx(exact, rel=0.01)


def test_without_a_target_that_fits_every_class_is_as_likely() -> None:
    assert constant_posterior(np.array([1]), targets_of([1, 1]), 4).tolist() == [0.25] * 4


def test_it_does_not_depend_on_the_order_of_the_sequences() -> None:
    rng = np.random.default_rng(3)
    targets = targets_of(*(rng.integers(1, 30, rng.integers(1, 9)).tolist() for _ in range(1500)))
    frames = rng.integers(20, 60, 1500)
    order = rng.permutation(1500)
    again = constant_posterior(frames[order], [targets[i] for i in order], 30)
    np.testing.assert_allclose(constant_posterior(frames, targets, 30), again, rtol=1e-9)


# The best constant sentence


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


# On PHOENIX


def si5(split: str) -> SimpleNamespace:
    """The sentences of SI5 as a split has them."""
    keep = FILTERS["phoenix-si5"]
    vocabulary = Vocabulary.from_file(SI5 / "vocab_si5_973.txt")
    lines = (SI5 / "annotations" / f"{split}.SI5.corpus.csv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [(list(filter(keep, cells[3].split())), int(cells[4])) for cells in (line.split("|") for line in lines)]
    rows = [(words, frames) for words, frames in rows if words]
    return SimpleNamespace(
        lengths=np.array([frames for _, frames in rows]),
        targets=[vocabulary.encode(words) for words, _ in rows],
        references=[" ".join(words) for words, _ in rows],
    )


@needs_si5
def test_on_phoenix_si5_they_are_what_the_field_should_fear() -> None:
    train, dev = si5("train"), si5("dev")
    assert (len(train.targets), len(dev.targets)) == (4372, 111)
    floors = split_floors(train, dev, 973, stride=4)
    assert floors.constant_wer == pytest.approx(0.928, abs=0.005)
    assert floors.constant_loss == pytest.approx(5.469, abs=5e-4), "the loss of 5.2 that the user's log showed"
    assert floors.dev_constant_loss == pytest.approx(5.621, abs=5e-4)
    assert floors.uniform_loss == pytest.approx(24.49, abs=5e-3)
    uniform = np.full(973, 1 / 973)
    assert loss_per_gloss(uniform, dev.lengths, dev.targets) == pytest.approx(105.57, abs=5e-3), "at stride 1"
    full_rate = constant_posterior(train.lengths, train.targets, 973)
    assert loss_per_gloss(full_rate, train.lengths, train.targets) == pytest.approx(5.453, abs=5e-4)
