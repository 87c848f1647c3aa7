from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.floors import constant_posterior, loss_per_gloss

CLASSES = 4
sentences = st.lists(st.integers(1, CLASSES - 1), min_size=1, max_size=6)
sequences = st.lists(st.tuples(sentences, st.integers(0, 30)), min_size=1, max_size=8)
weights = st.lists(st.floats(1e-3, 1.0), min_size=CLASSES, max_size=CLASSES)


@settings(max_examples=50)
@given(sequences, weights)
def test_no_other_posterior_is_better(drawn: list[tuple[list[int], int]], others: list[float]) -> None:
    drawn = [*drawn, ([1, 2, 3], 10)]  # every gloss is seen: an unseen one is counted as one frame, which has a price
    targets = [np.array(sentence) for sentence, _ in drawn]
    frames = np.array([2 * len(sentence) + more for sentence, more in drawn])
    best = constant_posterior(frames, targets, CLASSES)
    assume(best[0] * frames.sum() > 1.001)  # and so is blank
    loss = loss_per_gloss(best, frames, targets)
    other = np.array(others) / sum(others)
    assert loss <= loss_per_gloss(other, frames, targets) + 1e-9
    for nudged in (best + 1e-3 * row for row in np.eye(CLASSES)):  # nor one nearby
        assert loss <= loss_per_gloss(nudged / nudged.sum(), frames, targets) + 1e-9
