"""An n-gram of glosses, interpolated Kneser-Ney: how likely a gloss is after the ones before it, the end included.

Kneser and Ney 1995, in the interpolated form of Chen and Goodman 1999 with one discount an order. It is the smoothing
that lost least over small texts in their comparison, and needs no second text to be tuned on. A discount D is taken off
every count and what it leaves goes to the shorter history; there a gloss counts by how many different glosses it
follows, not by how often:

    p(w | h) = max(c(h w) - D, 0) / c(h) + D * |{v: c(h v) > 0}| / c(h) * p(w | h without its first)

down to the uniform distribution over all glosses and the end. D = n1 / (n1 + 2 n2) of the counts that occur once and
twice (Ney, Essen and Kneser 1994).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

EDGE = 0
"""In the place of the blank, which no sentence has: the start of a sentence in a history, its end in what follows."""

DISCOUNT = 0.75
"""Where a text is too small to have counts of one and of two."""

_History = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class NGram:
    """Made by `fit_ngram`. Classes as in a vocabulary, but EDGE stands where the blank does."""

    order: int
    classes: int
    counts: Mapping[_History, tuple[NDArray[np.intp], NDArray[np.float64]]]
    """By history, the empty one included: which classes followed, and how often."""
    discounts: tuple[float, ...]
    """By the length of the history."""
    _known: dict[_History, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def log_probs(self, history: Sequence[int]) -> NDArray[np.float64]:
        """Natural logarithms (V,) of what follows a sentence's first glosses: the end at EDGE, else each gloss."""
        return self._log_probs((EDGE, *history)[max(0, len(history) + 2 - self.order) :])

    def _log_probs(self, history: _History) -> NDArray[np.float64]:
        while history not in self.counts:  # never seen: as a shorter one
            history = history[1:]
        if history not in self._known:
            self._known[history] = np.log(self._probabilities(history))
        return self._known[history]

    def _probabilities(self, history: _History) -> NDArray[np.float64]:
        shorter = np.exp(self._log_probs(history[1:])) if history else np.full(self.classes, 1 / self.classes)
        followers, counts = self.counts[history]
        discount, total = self.discounts[len(history)], counts.sum()
        probabilities: NDArray[np.float64] = shorter * (discount * len(followers) / total)
        probabilities[followers] += np.maximum(counts - discount, 0) / total
        return probabilities


def fit_ngram(sentences: Iterable[Iterable[int]], classes: int, order: int) -> NGram:
    """The n-gram of these sentences.

    Args:
        sentences: class indices, 1 to classes - 1.
        classes: V, the blank counted.
        order: 1 to 3: glosses that hang together.

    Raises:
        ValueError: another order, or no sentence.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order {order} of an n-gram; give 1, 2 or 3")
    grams: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
    """By length - 1."""
    for sentence in sentences:
        words = (EDGE, *map(int, sentence), EDGE)
        for length, counter in enumerate(grams, start=1):
            counter.update(words[i : i + length] for i in range(len(words) - length + 1))
    if not grams[0]:
        raise ValueError("an n-gram of no sentences; give those of train")
    grams[0][(EDGE,)] //= 2  # a start is never predicted, an end is
    for shorter, longer in zip(grams[-2::-1], grams[:0:-1], strict=True):
        # From here on a count is how many different words stand before it. Before a start there is none.
        before = Counter(gram[1:] for gram in longer)
        for gram in shorter:
            if len(gram) == 1 or gram[0] != EDGE:
                shorter[gram] = before[gram]
    followers: defaultdict[_History, list[tuple[int, int]]] = defaultdict(list)
    for counter in grams:
        for gram, count in counter.items():
            followers[gram[:-1]].append((gram[-1], count))
    return NGram(
        order,
        classes,
        {
            history: (np.array([w for w, _ in pairs]), np.array([float(count) for _, count in pairs]))
            for history, pairs in followers.items()
        },
        tuple(_discount(counter) for counter in grams),
    )


def _discount(counts: Counter[tuple[int, ...]]) -> float:
    ones, twos = (sum(count == n for count in counts.values()) for n in (1, 2))
    return ones / (ones + 2 * twos) if ones and twos else DISCOUNT
