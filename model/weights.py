"""What the answers of a network tell about its weights: one function a finding, with its threshold and why."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log, nan

import numpy as np
import torch
from torch import nn

from model.corpus.data import Split, make_batch
from model.corpus.vocabulary import Vocabulary
from model.evaluate import Evaluation, forward_of, word_errors_of
from model.findings import Finding
from model.floors import Floors
from model.symptoms import (
    PLATEAU_LOSS,
    TRAINED_SHARE,
    UNIFORM_RANGE,
    UNTRAINED_SHARE,
    UNTRAINED_STEPS,
    is_flat,
    progress,
)
from model.types import EpochReport

SAME_LOSS = 0.02
"""A loss measured again on the same weights and data agrees within this share: other devices and batch sizes round
differently, by far less."""

LEAK = 1e-3
"""How much a log-probability may differ between a sequence alone and in a padded batch: rounding is below 1e-4."""

LEAK_SEQUENCES = 8
"""Short sequences padded to the longest one of the split: where a leak is largest."""

LOGSUMEXP = 1e-3
"""The probabilities of a frame sum to 1 within this (as |logsumexp|): rounding is below 1e-5."""

IDENTITY = 1e-6
"""Two counts of the same word errors are the same."""


def untrained(
    found: Evaluation, floors: Floors, updates: int, logged: float, classes: int, split: str
) -> Finding | None:
    """Whether these weights answer as an untrained network does, and whether that can be.

    Args:
        floors: with `split` in the place of dev.
        updates: steps that the checkpoint says it has had.
        logged: train loss that the run's log says (nats per gloss), or NaN.
    """
    spread, uniform = found.spread, floors.uniform_loss
    flat = is_flat(spread.range, found.loss, floors)
    # Saturated inputs can spread an untrained network's outputs, but they make its loss no better.
    way = progress(found.loss, uniform, floors.dev_constant_loss)
    fresh = updates == 0 or (updates <= UNTRAINED_STEPS and way < UNTRAINED_SHARE)
    if not found.finite or not (flat or fresh):
        return None
    output = (
        f"The log-probabilities lie in [{spread.minimum:.3f}, {spread.maximum:.3f}] (uniform over {classes} classes: "
        f"{-log(classes):.3f}) and the CTC loss on {split} is {found.loss:.2f} nats per gloss (of a uniform output: "
        f"{uniform:.2f})"
    )
    if flat and progress(logged, uniform, floors.constant_loss) > TRAINED_SHARE:
        nothing = (
            f" ({logged:g} itself is about what knowing nothing scores: {floors.constant_loss:.2f}.)"
            if abs(logged / floors.constant_loss - 1) <= PLATEAU_LOSS
            else ""
        )
        return Finding(
            "wrong_weights",
            "fatal",
            spread.range,
            UNIFORM_RANGE,
            f"{output}; but the run's log says {logged:g}. Both cannot be of the same weights: these are untrained "
            f"ones, or another run's.{nothing}",
            "Find the weights that logged this loss: was the checkpoint loaded at all, from the right path, with "
            "strict=True? These tell nothing about the training.",
            "A loss of these weights near the logged one.",
        )
    if fresh:
        return Finding(
            "untrained",
            "fatal",
            float(updates),
            float(UNTRAINED_STEPS),
            f"{output}: untrained weights, after {updates} steps.",
            "Diagnose a checkpoint of a run that has trained: a freshly initialised network looks like this.",
            f"More than {UNTRAINED_STEPS} steps.",
        )
    return Finding(
        "uniform_output",
        "warning",
        spread.range,
        UNIFORM_RANGE,
        f"{output}: after {updates} steps these weights answer as untrained ones do.",
        "The steps are too small: see the learning rate, the warm-up, adam_eps and the effective step ratio.",
        f"Log-probabilities that differ by {UNIFORM_RANGE:g} nats and more, or a loss nearer the floor.",
    )


def changed(loss: float, last: EpochReport) -> Finding | None:
    """Whether the dev loss that was logged with these weights comes out again."""
    then = last.metrics.get("dev/loss", nan)
    if not abs(loss - then) > SAME_LOSS * abs(then):
        return None
    return Finding(
        "wrong_weights",
        "fatal",
        loss,
        then,
        f"On the same dev these weights have a loss of {loss:.3f} nats per gloss, and the log of epoch "
        f"{last.epoch} says {then:.3f}: they are not the weights that were evaluated then.",
        "Was something written into the checkpoint afterwards, or evaluated in train mode?",
        f"A loss within {SAME_LOSS:.0%} of the logged one.",
    )


def other_loss(given: float, reports: Sequence[EpochReport]) -> Finding | None:
    """Whether a train loss that the user names is the one that the last epoch of these weights logged.

    Args:
        given: nats per gloss.
    """
    logged = [(report.epoch, loss) for report in reports if isfinite(loss := report.metrics.get("train/loss", nan))]
    if not logged or abs(given - logged[-1][1]) <= SAME_LOSS * logged[-1][1]:
        return None
    epoch, last = logged[-1]
    near = [of for of, loss in logged if abs(given - loss) <= SAME_LOSS * loss]
    return Finding(
        "other_loss",
        "warning",
        given,
        last,
        f"The train loss of {given:g} that was given is not of these weights: epoch {epoch} of their run logged "
        f"{last:.3f}. " + (f"It is about that of epoch {near[-1]}." if near else "No epoch of their run logged it."),
        "Name the checkpoint of that epoch, or of the run whose log this is; the run here is judged by its own log."
        if near
        else "Name the checkpoint of the run whose log this is; the run here is judged by its own log.",
        f"A logged train loss within {SAME_LOSS:.0%} of the one given.",
    )


def not_finite(found: Evaluation) -> Finding | None:
    if found.finite:
        return None
    return Finding(
        "not_finite",
        "fatal",
        None,
        None,
        "Some outputs of these weights are NaN or infinite: there is nothing to decode.",
        "Go back to an earlier checkpoint, and lower the learning rate.",
        "Finite outputs.",
    )


def missing_log_softmax(found: Evaluation) -> Finding | None:
    lowest = float(np.nanmin(found.losses)) if np.isfinite(found.losses).any() else nan
    if not found.finite or not (found.largest_logsumexp > LOGSUMEXP or lowest < -LOGSUMEXP):
        return None
    return Finding(
        "missing_log_softmax",
        "fatal",
        found.largest_logsumexp,
        LOGSUMEXP,
        f"The outputs are no log-probabilities: |logsumexp| is up to {found.largest_logsumexp:.3g} (0 for a "
        f"distribution), the lowest loss of a sequence {lowest:.2f} nats.",
        "Apply log_softmax over the classes, once, before the loss.",
        f"|logsumexp| below {LOGSUMEXP:g} in every frame.",
    )


def evaluator_failed(found: Evaluation, split: Split, vocabulary: Vocabulary) -> Finding | None:
    """Count the word errors a second time, with an edit distance of our own."""
    if not found.finite:
        return None
    references = [reference.split() for reference in split.references]
    words = sum(map(len, references))
    answers = [vocabulary.decode(h) for h in found.hypotheses]
    count = sum(_distance(a, b) for a, b in zip(references, answers, strict=True)) / words
    wer = word_errors_of(found, split.references, vocabulary).wer
    if abs(count - wer) <= IDENTITY:
        return None
    return Finding(
        "evaluator_failed",
        "fatal",
        wer,
        count,
        f"The evaluation says WER {wer:.2%}, a second count over the {len(references)} sentences and {words} words of "
        f"{split.name} says {count:.2%}.",
        "Trust neither until they agree: other sentences, other words, or a default WER for an error.",
        "Two counts that agree.",
    )


def _distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Word errors by the textbook's dynamic programme (Wagner and Fischer 1974)."""
    row = list(range(len(hypothesis) + 1))
    for i, word in enumerate(reference, start=1):
        above, row[0] = row[0], i
        for j, said in enumerate(hypothesis, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != said))
    return row[-1]


def leaks(leak: float) -> Finding | None:
    if not leak > LEAK:
        return None
    return Finding(
        "padding_leak",
        "fatal",
        leak,
        LEAK,
        f"Alone and in a padded batch the same sequence has log-probabilities that differ by up to {leak:.3g}: results "
        "depend on which sequences are evaluated together.",
        "Mask the padding in batch statistics, squeeze-excite, convolutions and the backward LSTM.",
        f"A difference below {LEAK:g}.",
    )


@torch.no_grad()
def padding_leak(model: nn.Module, split: Split, stride: int, device: torch.device) -> float:
    """How much the output of short sequences changes by being padded to the longest one of the split.

    The largest difference of a log-probability over their own frames, in eval mode and float32; NaN where all sequences
    are of one length, or an output is not finite.
    """
    forward = forward_of(model, device)
    rows = np.flatnonzero(split.lengths >= stride)
    rows = rows[np.argsort(split.lengths[rows], kind="stable")]
    if not len(rows) or split.lengths[rows[0]] == split.lengths[rows[-1]]:
        return nan
    model.eval()
    short = [int(row) for row in rows[:LEAK_SEQUENCES] if split.lengths[row] < split.lengths[rows[-1]]]
    together, _ = forward(make_batch(split, [*short, int(rows[-1])]))
    differences = []
    for row, padded in zip(short, together, strict=False):
        alone, frames = forward(make_batch(split, [row]))
        own = int(frames[0])
        differences.append(float((alone[0, :own] - padded[:own]).abs().max()))
    return max(differences) if all(map(isfinite, differences)) else nan
