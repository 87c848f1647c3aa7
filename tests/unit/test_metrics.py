from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from model.metrics import Spread, WordErrors, log_prob_spread, sentence_errors, word_errors


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance over words, by the textbook."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, guess in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != guess))
    return row[-1]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("A B C", "A B C", WordErrors(0, 0, 0, 0)),
        ("A B C D", "A X C D", WordErrors(1 / 4, 1 / 4, 0, 0)),
        ("A B C D", "A C D", WordErrors(1 / 4, 0, 1 / 4, 0)),
        ("A B C D", "A B B C D", WordErrors(1 / 4, 0, 0, 1 / 4)),
        ("A B", "", WordErrors(1, 0, 1, 0)),
        ("A", "B C D", WordErrors(3, 1, 0, 2)),  # above 100 %
    ],
)
def test_each_kind_of_error(reference: str, hypothesis: str, expected: WordErrors) -> None:
    assert word_errors([reference], [hypothesis]) == expected


def test_errors_are_summed_over_sentences_before_they_are_divided() -> None:
    assert word_errors(["A", "A B C"], ["B", "A B C"]).wer == 1 / 4  # the mean of the sentences' rates would be 1 / 2


def test_the_kinds_sum_to_the_rate_which_is_the_edit_distance() -> None:
    rng = np.random.default_rng(0)

    def sentences(shortest: int) -> list[str]:
        return [" ".join(rng.choice(list("ABCDE"), rng.integers(shortest, 9))) for _ in range(200)]

    references, hypotheses = sentences(1), sentences(0)
    errors = word_errors(references, hypotheses)
    distance = sum(edits(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True))
    assert "" in hypotheses
    assert errors.wer == distance / sum(len(r.split()) for r in references)
    assert errors.substitutions + errors.deletions + errors.insertions == pytest.approx(errors.wer)


def test_a_silent_model_makes_deletions_only() -> None:
    assert word_errors(["A B", "C"], ["", ""]) == WordErrors(1, 0, 1, 0)


def test_words_are_compared_as_written() -> None:
    composed, decomposed = "ÜBER", unicodedata.normalize("NFD", "ÜBER")
    words = f"{composed} S+H IX-1 мир 手話 👋🏽 straße"
    assert word_errors([words], [words]).wer == 0
    assert word_errors(["straße мир"], ["strasse Мир"]) == WordErrors(1, 1, 0, 0)
    assert word_errors([composed], [decomposed]).wer == 1


def spread_by_definition(rows: list[np.ndarray]) -> tuple[float, float, float]:
    """Minimum, maximum, and mean over sequences and classes of the standard deviation over time; rows are (T, V)."""
    return min(x.min() for x in rows), max(x.max() for x in rows), float(np.mean([x.std(axis=0).mean() for x in rows]))


def ragged(lengths: Sequence[int], classes: int = 7) -> tuple[torch.Tensor, list[np.ndarray]]:
    """Log-probabilities (B, T, V) whose padding is far outside the range of the valid frames, and the valid frames."""
    x = torch.randn(len(lengths), max(lengths), classes, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    for i, n in enumerate(lengths):
        x[i, n:] = (-1) ** i * 1e4
    return x, [x[i, :n].double().numpy() for i, n in enumerate(lengths)]


@pytest.mark.parametrize("lengths", [[9, 9], [12, 5, 1, 7], [1]])
def test_spread_is_its_definition(lengths: list[int]) -> None:
    x, rows = ragged(lengths)
    spread = log_prob_spread(x, torch.tensor(lengths))
    assert (spread.minimum, spread.maximum, spread.time) == pytest.approx(spread_by_definition(rows), rel=1e-5)
    assert spread.sequences == len(lengths)


def test_a_single_frame_does_not_move() -> None:
    x, _ = ragged([1, 6])
    assert log_prob_spread(x[:1], torch.tensor([1])).time == 0


def test_spread_keeps_small_differences_at_a_large_offset() -> None:
    still = torch.full((1, 50, 3), -6.88) + 1e-3 * torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(2))
    expected = still[0].double().numpy().std(axis=0).mean()
    assert log_prob_spread(still, torch.tensor([50])).time == pytest.approx(expected, rel=1e-3)


def test_sets_join_as_if_measured_together() -> None:
    x, _ = ragged([12, 5, 1, 7])
    lengths = torch.tensor([12, 5, 1, 7])
    together, apart = log_prob_spread(x, lengths), Spread()
    for i in range(4):
        apart += log_prob_spread(x[i : i + 1], lengths[i : i + 1])
    assert (apart.minimum, apart.maximum, apart.sequences) == (together.minimum, together.maximum, 4)
    assert apart.time == pytest.approx(together.time)


def test_errors_by_sentence_sum_to_the_word_errors() -> None:
    references, hypotheses = ["A B C", "A", "B B"], ["A C", "", "B A B C"]
    assert sentence_errors(references, hypotheses) == [1, 1, 2]
    assert word_errors(references, hypotheses).wer == (1 + 1 + 2) / (3 + 1 + 2)
