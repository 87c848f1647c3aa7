"""Prefix beam search: the most probable labelling of a sequence, where greedy decoding gives the most probable path.

The frame-synchronous form of Hannun et al. 2014 (arXiv 1408.2873, algorithm 1), in the log domain; the prefix
probabilities are those of Graves et al. 2006. Classes are whole glosses, so a language model speaks at each label:

    score(l) = log p_ctc(l) + weight * log p_lm(l, end) + length_bonus * |l|

Language model and bonus rank the prefixes, but never enter p_ctc: what a prefix has is the sum of its alignments. With
a beam as wide as there are prefixes the search is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from model.decode import BLANK

NEVER = -np.inf
"""The logarithm of a probability of zero."""


class LanguageModel(Protocol):
    """What a search asks about the next label."""

    def log_probs(self, history: tuple[int, ...]) -> NDArray[np.float64]:
        """Natural logarithms (V,) after these labels: the end of the sentence at BLANK, elsewhere each label."""
        ...


class Labelling(NamedTuple):
    """What a search has found."""

    labels: tuple[int, ...]
    score: float
    """In nats; of probabilities alone where there is neither language model nor bonus. -inf where no labelling has any
    probability."""


class _Beam(NamedTuple):
    """Prefixes, and the logarithms of what they have; as many of each."""

    prefixes: list[tuple[int, ...]]
    blank: NDArray[np.float64]
    """Of the alignments that end in blank."""
    label: NDArray[np.float64]
    """Of those that end in the prefix's last label."""
    added: NDArray[np.float64]
    """What language model and length bonus say of the prefix."""

    @property
    def total(self) -> NDArray[np.float64]:
        return np.logaddexp(self.blank, self.label)


def prefix_beam_search(
    log_probs: NDArray[Any],
    beam: int = 16,
    *,
    language_model: LanguageModel | None = None,
    weight: float = 0.0,
    length_bonus: float = 0.0,
    prune: float = NEVER,
) -> Labelling:
    """The best labelling of one sequence that a search of this width finds.

    Args:
        log_probs: (T, V) in nats, at most 0 but for rounding; -inf is a probability of zero.
        beam: prefixes kept after each frame.
        weight: of the language model's log-probabilities.
        length_bonus: nats for each label.
        prune: in a frame no prefix grows by a class whose log-probability is below.

    Raises:
        ValueError: `log_probs` hold NaN or +inf, or `beam` is below 1.
    """
    if beam < 1:
        raise ValueError(f"beam: {beam} prefixes; give 1 or more")
    if np.isnan(log_probs).any() or (log_probs == np.inf).any():
        raise ValueError(
            "log-probabilities that are not finite cannot be searched; `diagnose` says where they are from"
        )
    lm = language_model if weight else None
    zero, none = np.zeros(1), np.full(1, NEVER)
    kept = _Beam([()], zero, none, zero)
    for frame in log_probs.astype(np.float64):
        kept = _step(kept, frame, beam, lm, weight, length_bonus, prune)
        if not kept.prefixes:
            return Labelling((), NEVER)
    scores = kept.total + kept.added
    if lm is not None:
        scores = scores + weight * np.array([lm.log_probs(prefix)[BLANK] for prefix in kept.prefixes])
    best = int(scores.argmax())
    return Labelling(kept.prefixes[best], float(scores[best]))


def _step(
    kept: _Beam,
    frame: NDArray[np.float64],
    beam: int,
    language_model: LanguageModel | None,
    weight: float,
    length_bonus: float,
    prune: float,
) -> _Beam:
    """The best prefixes after one more frame (V,)."""
    prefixes, total = kept.prefixes, kept.total
    last = np.array([prefix[-1] if prefix else BLANK for prefix in prefixes])
    # A prefix stays by a blank, or by its last label once more.
    blank = total + frame[BLANK]
    label = kept.label + frame[last]

    # Or it grows by a class; by its last label only from a blank, else the two are one.
    classes = np.flatnonzero(frame >= prune)
    classes = classes[classes != BLANK]
    column = np.full(len(frame), -1)
    column[classes] = np.arange(len(classes))
    grown = total[:, None] + frame[classes]  # (prefixes, classes)
    for row, prefix in enumerate(prefixes):
        if prefix and column[prefix[-1]] >= 0:
            grown[row, column[prefix[-1]]] = kept.blank[row] + frame[prefix[-1]]
    added = np.broadcast_to(kept.added[:, None] + length_bonus, grown.shape)
    if language_model is not None:
        added = added + weight * np.array([language_model.log_probs(prefix)[classes] for prefix in prefixes])

    # What grows into a prefix that is here already adds to it.
    rows = {prefix: row for row, prefix in enumerate(prefixes)}
    for row, prefix in enumerate(prefixes):
        parent = rows.get(prefix[:-1]) if prefix else None
        if parent is not None and column[prefix[-1]] >= 0:
            label[row] = np.logaddexp(label[row], grown[parent, column[prefix[-1]]])
            grown[parent, column[prefix[-1]]] = NEVER

    scores = np.concatenate([np.logaddexp(blank, label) + kept.added, (grown + added).ravel()])
    best = _largest(scores, beam)
    stays, grows = best[best < len(prefixes)], best[best >= len(prefixes)] - len(prefixes)
    parents, by = np.divmod(grows, len(classes)) if len(classes) else (grows, grows)
    return _Beam(
        [prefixes[row] for row in stays]
        + [(*prefixes[row], int(classes[at])) for row, at in zip(parents, by, strict=True)],
        np.concatenate([blank[stays], np.full(len(grows), NEVER)]),
        np.concatenate([label[stays], grown[parents, by]]),
        np.concatenate([kept.added[stays], added[parents, by]]),
    )


def _largest(scores: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the `count` largest scores, those of -inf never among them; the first of equal ones first."""
    if count < len(scores):
        least = np.partition(scores, -count)[-count]
        above = np.flatnonzero(scores > least)
        equal = np.flatnonzero(scores == least)[: count - len(above)]
        places = np.concatenate([above, equal])
    else:
        places = np.arange(len(scores))
    finite: NDArray[np.intp] = places[scores[places] > NEVER]
    return finite
