"""What knowing nothing scores: the floors against which every curve is read. Labels and lengths are all they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

if TYPE_CHECKING:
    from model.corpus.data import Corpus

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_CHUNK = 1024  # sequences looked at together: bounds the memory, whatever the size of the corpus
_NEGLIGIBLE = 1e-17  # a share of a float64 below its rounding
_HUGE = 1e200


class Labelled(Protocol):
    """What the floors need of a split: `model.corpus.data.Split` has it."""

    @property
    def lengths(self) -> Ints:
        """Input frames (N,)."""

    @property
    def targets(self) -> Sequence[Ints]:
        """Class indices of each sequence; blank is class 0."""

    @property
    def references(self) -> Sequence[str]:
        """Words, parted by one space."""


@dataclass(frozen=True)
class Floors:
    """What a model scores that uses nothing of its input."""

    constant_wer: float
    """Dev WER of the best constant sentence (fraction)."""
    constant_sentence: str
    constant_loss: float
    """F0: CTC loss on train of the best constant posterior, which is chosen there (nats per gloss)."""
    dev_constant_loss: float
    """CTC loss of the same posterior on dev (nats per gloss)."""
    uniform_loss: float
    """CTC loss on dev where every class is equally likely, as an untrained model has it (nats per gloss)."""


@lru_cache(maxsize=8)  # of the last corpora (compared as objects): every run of a process asks for the same ones
def floors(corpus: Corpus, stride: int) -> Floors:
    """The floors of a corpus at that many input frames per output frame. Sequences that do not fit are left out of the
    losses, which are NaN where none fits.
    """
    return split_floors(corpus.train, corpus.dev, len(corpus.vocabulary), stride)


def split_floors(train: Labelled, dev: Labelled, classes: int, stride: int) -> Floors:
    """`floors` of two splits of a corpus with so many classes, the blank counted."""
    sentence, wer = constant_sentence(train.references, dev.references)
    posterior = constant_posterior(train.lengths // stride, train.targets, classes)
    uniform = np.full(classes, 1 / classes)
    return Floors(
        constant_wer=wer,
        constant_sentence=sentence,
        constant_loss=loss_per_gloss(posterior, train.lengths // stride, train.targets),
        dev_constant_loss=loss_per_gloss(posterior, dev.lengths // stride, dev.targets),
        uniform_loss=loss_per_gloss(uniform, dev.lengths // stride, dev.targets),
    )


def constant_posterior(frames: Ints, targets: Sequence[Ints], classes: int) -> Floats:
    """The class probabilities (V,) that, answered in every frame, give these targets the smallest CTC loss.

    Expectation maximisation over the alignments (Dempster, Laird and Rubin 1977): the next posterior is the share of
    frames that each class is expected to have under this one. It begins with blank in most frames. There may be a
    second optimum, one gloss in most frames, where hardly any other is ever said: it is then tried as well.

    A class expected on less than one frame, such as a gloss that these targets never hold, is counted as one frame:
    so no other data gets an infinite loss, and otherwise the posterior is hardly moved.

    Args:
        frames: output frames of each sequence (N,); a target that does not fit into them is left out.
        targets: class indices of each; blank is class 0.
        classes: size of the vocabulary, blank counted.
    """
    batches = _batches(frames, targets)
    if not batches:
        return np.full(classes, 1 / classes)
    glosses = np.zeros(classes)
    for batch in batches:
        np.add.at(glosses, batch.targets[batch.within], 1.0)
    total = float(sum(batch.frames.sum() for batch in batches))
    climbs = []
    for filler in (0, *np.flatnonzero(glosses > glosses.sum() / 2)):
        counts = np.maximum(glosses, _NEGLIGIBLE)
        counts[filler] += total - glosses.sum() + 1
        climbs.append(_climb(counts, batches))
    _, counts = min(climbs, key=lambda climb: climb[0])
    counts = np.maximum(counts, 1.0)
    return np.asarray(counts / counts.sum())


def constant_losses(posterior: Floats, frames: Ints, targets: Sequence[Ints]) -> Floats:
    """CTC loss (N,) in nats of each sequence where every frame's posterior is this one (V,).

    NaN where the target is empty or does not fit into its frames. The arguments are those of `constant_posterior`.
    """
    losses = np.full(len(targets), np.nan)
    for batch in _batches(frames, targets):
        losses[batch.rows] = -_expect(posterior, batch)[0]
    return losses


def loss_per_gloss(posterior: Floats, frames: Ints, targets: Sequence[Ints]) -> float:
    """`constant_losses` summed and divided by the glosses, over the sequences that fit; NaN where none does."""
    losses = constant_losses(posterior, frames, targets)
    fits = ~np.isnan(losses)
    glosses = sum(len(target) for target, fit in zip(targets, fits, strict=True) if fit)
    return float(losses[fits].sum()) / glosses if glosses else float("nan")


@dataclass(frozen=True, eq=False)
class _Batch:
    rows: Ints  # (B,) which sequences
    frames: Ints  # (B,)
    targets: Ints  # (B, L) padded with 0
    within: NDArray[np.bool_]  # (B, L) what is no padding
    repeats: Ints  # (B,) adjacent repeats, each of which needs a blank

    @property
    def free(self) -> Ints:
        """Frames (B,) left over when every gloss and every needed blank has one."""
        return np.asarray(self.frames - self.within.sum(axis=1) - self.repeats)


def _batches(frames: Ints, targets: Sequence[Ints]) -> list[_Batch]:
    """The sequences that fit, those of similar length together."""
    glosses = np.array([len(target) for target in targets], dtype=np.int64)
    repeats = np.array([int((target[1:] == target[:-1]).sum()) for target in targets], dtype=np.int64)
    rows = np.flatnonzero((glosses > 0) & (frames >= glosses + repeats))
    rows = rows[np.argsort(frames[rows], kind="stable")]
    batches = []
    for part in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
        if len(part):
            padded = np.zeros((len(part), int(glosses[part].max())), dtype=np.int64)
            within = np.arange(padded.shape[1]) < glosses[part, None]
            padded[within] = np.concatenate([targets[row] for row in part])
            batches.append(_Batch(part, frames[part], padded, within, repeats[part]))
    return batches


def _climb(counts: Floats, batches: Sequence[_Batch]) -> tuple[float, Floats]:
    """The loss that EM arrives at from these counts (V,), and the counts there."""
    before = float("inf")
    while True:
        posterior = counts / counts.sum()
        results = [_expect(posterior, batch) for batch in batches]
        loss = -sum(float(log_likelihood.sum()) for log_likelihood, _ in results)
        counts = np.sum([expected for _, expected in results], axis=0)
        if before - loss <= 1e-12 * abs(loss):
            return loss, counts
        before = loss


def _expect(posterior: Floats, batch: _Batch) -> tuple[Floats, Floats]:
    """Log-likelihood (B,) of each target, and how many frames each class is expected to have over the batch (V,).

    With one posterior p for all frames, how likely an alignment is depends only on how often it holds each class.
    Every gloss and every blank between two equal glosses takes one frame; the frames left over go, in any number, to
    one of the L glosses or one of the L + 1 places for blank. So, with blank's probability b,

        P(target) = b^repeats * p_1 ... p_L * h_free(p_1, ..., p_L, b, ..., b)       (b stands there L + 1 times)

    where h_n is the complete homogeneous symmetric polynomial: the sum of all products of n factors. By Newton's
    identities n h_n = sum over k of P_k h_(n-k), with P_k the sum of the k-th powers. All terms are positive, so
    nothing cancels, and powers of small probabilities soon do not count: this takes less than the usual lattice.
    """
    own = np.where(batch.within, posterior[batch.targets], 0.0)  # (B, L)
    # Relative to the most likely class of the sequence, h does not fall as n grows: what is dropped below is bounded.
    unit = np.maximum(own.max(axis=1), posterior[0])  # (B,)
    unit[unit == 0] = 1.0
    x, b = own / unit[:, None], posterior[0] / unit
    free, columns = batch.free, np.arange(len(batch.rows))
    most, places = int(free.max()), batch.within.sum(axis=1) + 1
    sums: list[Floats] = []  # of the powers of x: (B,) each
    power = x
    while len(sums) < most and power.max() > _NEGLIGIBLE:
        sums.append(power.sum(axis=1))
        power = power * x

    h = np.zeros((most + 1, len(free)))
    h[0] = 1.0
    power_sums = np.array(sums).reshape(len(sums), len(free))  # (K, B)
    blanks = np.zeros(len(free))  # sum over k of b^k h_(n-k)
    log_scale = np.zeros(len(free))
    for n in range(1, most + 1):
        blanks = b * (blanks + h[n - 1])
        k = min(n, len(sums))
        total = places * blanks + np.einsum("kb,kb->b", power_sums[:k], h[n - k : n][::-1])
        h[n] = np.where(n <= free, total / n, 0.0)
        if (large := h[n] > _HUGE).any():  # what vanishes here no longer counts
            h[:, large] /= _HUGE
            blanks[large] /= _HUGE
            log_scale[large] += np.log(_HUGE)
    last = h[free, columns]  # (B,)

    repeats = batch.repeats
    with np.errstate(divide="ignore"):  # a class of probability 0 makes its targets impossible
        log_likelihood = np.log(own, where=batch.within, out=np.zeros_like(own)).sum(axis=1)
        log_likelihood += free * np.log(unit) + np.log(last) + log_scale
        log_likelihood[repeats > 0] += repeats[repeats > 0] * np.log(posterior[0])

    # Each gloss has one frame, and of those left over sum over k of x^k h_(free-k) / h_free.
    expected = batch.within.astype(np.float64)  # (B, L)
    power = x
    for k in range(1, len(sums) + 1):
        before = np.where(free >= k, h[np.maximum(free - k, 0), columns], 0.0)
        expected += power * np.divide(before, last, out=np.zeros_like(last), where=last > 0)[:, None]
        power = power * x
    counts = np.bincount(batch.targets[batch.within], expected[batch.within], len(posterior)).astype(np.float64)
    counts[0] = max(float(batch.frames.sum() - expected.sum()), 0.0)
    return log_likelihood, counts


def constant_sentence(train: Sequence[str], dev: Sequence[str], candidates: int = 60) -> tuple[str, float]:
    """The best sentence to answer every input with, chosen on train, and its WER on dev (fraction).

    A local search: from the empty sentence, take the insertion, replacement or deletion of one word that lowers the
    word errors on train most, until none does. A run whose dev WER is not clearly below this has used nothing of its
    input. On RWTH-PHOENIX-Weather 2014 SI5 it is 92.8 %.

    Args:
        train, dev: sentences, words separated by one space.
        candidates: how many words to try, those in most training sentences first.
    """
    sentences = [reference.split() for reference in train]
    counts = Counter(word for sentence in sentences for word in set(sentence))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:candidates]  # ties: never by the order of a set

    best: tuple[str, ...] = ()
    fewest = sum(map(len, sentences))
    while True:
        neighbours = {best[:i] + best[i + 1 :] for i in range(len(best))}
        neighbours |= {(*best[:i], word, *best[i:]) for i in range(len(best) + 1) for word in words}
        neighbours |= {(*best[:i], word, *best[i + 1 :]) for i in range(len(best)) for word in words}
        guesses = sorted(neighbours)
        errors = _errors(guesses, sentences)
        if errors.min() >= fewest:
            break
        best, fewest = guesses[errors.argmin()], int(errors.min())
    answers = [reference.split() for reference in dev]
    return " ".join(best), int(_errors([best], answers)[0]) / sum(map(len, answers))


def _errors(guesses: Sequence[Sequence[str]], sentences: Sequence[Sequence[str]]) -> Ints:
    """Word errors of each guess over all sentences (G,). Words are written as one character each, for speed."""
    numbers: dict[str, int] = {}
    codes = [
        ["".join(chr(_code(numbers.setdefault(word, len(numbers)))) for word in sentence) for sentence in some]
        for some in (guesses, sentences)
    ]
    errors = np.zeros(len(guesses), dtype=np.int64)
    for start in range(0, len(sentences), _CHUNK):
        part = codes[1][start : start + _CHUNK]
        errors += cdist(codes[0], part, scorer=Levenshtein.distance, dtype=np.int32).sum(axis=1, dtype=np.int64)
    return errors


def _code(number: int) -> int:
    return number if number < 0xD800 else number + 0x800  # surrogates are no characters
