"""What is measured on dev: word errors and the spread of the log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor


@dataclass(frozen=True)
class WordErrors:
    """Word errors over a set of sentences, each a fraction of the reference words; they sum to `wer`."""

    wer: float
    substitutions: float
    deletions: float
    insertions: float


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> WordErrors:
    """Word error rate over all sentences together (errors summed, then divided by all reference words).

    Args:
        references: sentences, words separated by one space; none may be empty.
        hypotheses: as many; may be empty.
    """
    # jiwer's default transform would strip and collapse spaces as we already did; words pass unchanged.
    out = jiwer.process_words(list(references), list(hypotheses))
    words = out.hits + out.substitutions + out.deletions
    return WordErrors(
        (out.substitutions + out.deletions + out.insertions) / words,
        out.substitutions / words,
        out.deletions / words,
        out.insertions / words,
    )


def sentence_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[int]:
    """Word errors of each sentence (count): the fewest substitutions, deletions and insertions. Words are separated by
    one space; a hypothesis may be empty.
    """
    return [
        Levenshtein.distance(reference.split(), hypothesis.split())
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]


def wer_interval(errors: Sequence[int], words: Sequence[int], resamples: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of a WER by drawing its sentences anew with replacement (Bisani and Ney, 2004): what other
    sentences of the same kind would have shown of these weights. It knows nothing of other seeds, nor of choosing.

    Args:
        errors, words: of each sentence, wrong words and words of the reference.
    """
    random, wrong, of, wers = np.random.default_rng(0), np.array(errors), np.array(words), []
    for start in range(0, resamples, 1_000):  # at a time: of a corpus of 10,000 sentences that is 80 MB
        drawn = random.integers(0, len(of), (min(1_000, resamples - start), len(of)))
        wers.append(wrong[drawn].sum(1) / of[drawn].sum(1))
    low, high = np.quantile(np.concatenate(wers), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Spread:
    """Spread of the log-probabilities of some sequences, in nats; `+` joins two sets."""

    minimum: float = float("inf")
    maximum: float = float("-inf")
    time_sum: float = 0.0
    """Time spread summed over sequences."""
    sequences: int = 0

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            # Unlike min and max these keep a NaN: one bad sequence must not disappear among the others.
            float(np.minimum(self.minimum, other.minimum)),
            float(np.maximum(self.maximum, other.maximum)),
            self.time_sum + other.time_sum,
            self.sequences + other.sequences,
        )

    @property
    def range(self) -> float:
        """Largest minus smallest log-probability; not finite where an output was not."""
        return self.maximum - self.minimum

    @property
    def time(self) -> float:
        """Mean over sequences of the time spread."""
        return self.time_sum / self.sequences if self.sequences else float("nan")


def log_prob_spread(log_probs: Tensor, lengths: Tensor) -> Spread:
    """Minimum, maximum and time spread over all classes and unpadded frames.

    Time spread of a sequence: the (population) standard deviation over time of each class's log-prob, averaged
    over classes. It tells whether the output moves with the input at all.

    Args:
        log_probs: (B, T, V).
        lengths: (B,) valid frames, at least 1 each.
    """
    lengths = lengths.to(log_probs.device)
    valid = (torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None])[..., None]  # (B, T, 1)
    count = lengths[:, None].to(log_probs.dtype)  # (B, 1)
    mean = (log_probs * valid).sum(1) / count  # (B, V)
    variance = ((log_probs - mean[:, None]).square() * valid).sum(1) / count
    return Spread(
        float(log_probs.masked_fill(~valid, float("inf")).min()),
        float(log_probs.masked_fill(~valid, float("-inf")).max()),
        float(variance.sqrt().mean(1).sum()),
        len(lengths),
    )
