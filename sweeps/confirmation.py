"""Whether one configuration is better than another, from runs of both on the same seeds. Pure: errors in, verdicts out.

Seeds and sentences are both samples: of the seeds one might have taken, and of the sentences one might have recorded.
They are crossed, each run reads every sentence. The variance of a mean difference is therefore

    between seeds  +  between sentences  -  what both of these count, the rest of the table

as in an analysis of two crossed random factors (Clark 1973, "The language-as-fixed-effect fallacy"; Satterthwaite 1946
for the degrees of freedom). Both are paired: a seed has the same initialisation and batches in all configurations, a
sentence the same words. That between sentences comes from a bootstrap of them (Bisani and Ney 2004, for WER, which is a
ratio of sums); why seeds must be varied at all: Bouthillier et al. 2021, "Accounting for variance in machine learning
benchmarks". Of several configurations the p values are corrected by Holm (1979), so that the chance of any false
verdict is at most `ALPHA`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FACT = "confirmation"
"""The fact of a confirmation that says what it confirms."""

CONFIRMED = "confirmed"
"""The fact that keeps what a confirmation came to, in sentences: its own, and that of the sweep it confirms."""

ALPHA = 0.05
"""The chance of a false verdict that is accepted, over all configurations of a confirmation."""

RESAMPLES = 2_000
"""Of the sentences. The same ones each time: a result that is asked for twice is the same twice."""

FEWEST_SEEDS = 4
"""Of fewer, two may agree by chance, and Satterthwaite's formula would take their share for small: intervals of 2 seeds
held what they should in 90 % of simulations, not in 95 %. Then the seeds' own degrees of freedom are all there are."""

Table: TypeAlias = NDArray[np.float64]
Verdict: TypeAlias = Literal["better", "not shown better", "worse"]


@dataclass(frozen=True)
class Measured:
    """A WER over seeds and sentences (fraction), with its 95 % interval."""

    wer: float
    """Mean over the runs."""
    low: float | None
    """None: of one run nothing can be said of others."""
    high: float | None
    runs: tuple[float, ...]
    """WER of each seed."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "runs": list(self.runs)}


@dataclass(frozen=True)
class Compared:
    """A configuration against the baseline."""

    name: str
    against: str
    difference: float
    """In WER (fraction); below 0 it is better."""
    low: float | None
    """The 95 % interval of this difference alone; None: of one seed there is none."""
    high: float | None
    p: float | None
    """That a difference as large comes from seeds and sentences alone; corrected for how many are compared."""
    verdict: Verdict
    sentence: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measured(errors: Table, words: Table) -> Measured:
    """WER of one configuration.

    Args:
        errors: wrong words (seeds, sentences).
        words: of the references (sentences,); 1 and a single column of WERs where sentences are not known.
    """
    wers = errors.sum(axis=1) / words.sum()
    mean, half = float(wers.mean()), _half_width(_spread(errors, words))
    low, high = (None, None) if half is None else (max(0.0, mean - half), mean + half)
    return Measured(mean, low, high, tuple(wers.tolist()))


def compared(errors: Mapping[str, Table], words: Table, against: str) -> list[Compared]:
    """Each configuration but `against`, in their order, held against it.

    Args:
        errors, words: see `measured`; row k of each is of the same seed.
    """
    others = [name for name in errors if name != against]
    differences = {name: errors[name] - errors[against] for name in others}
    spreads = {name: _spread(differences[name], words) for name in others}
    means = {name: float(differences[name].sum(axis=1).mean() / words.sum()) for name in others}
    chances = [_chance(means[name], spreads[name]) for name in others]
    said = []
    for name, p in zip(others, holm(chances), strict=True):
        mean, half = means[name], _half_width(spreads[name])
        low, high = (None, None) if half is None else (mean - half, mean + half)
        verdict: Verdict = "not shown better"
        if p is not None and p <= ALPHA:
            verdict = "better" if mean < 0 else "worse"
        found = Compared(name, against, mean, low, high, p, verdict, "")
        said.append(Compared(**{**vars(found), "sentence": _sentence(found, len(errors[name]))}))
    return said


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """p values corrected for how many there are (Holm 1979); None stays None and counts for nothing."""
    known = sorted((p, i) for i, p in enumerate(chances) if p is not None)
    corrected: list[float | None] = [None] * len(chances)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class _Spread:
    """Of a mean over seeds and sentences."""

    error: float
    """Its standard error, as WER."""
    freedom: float
    """Degrees of freedom."""


def _spread(table: Table, words: Table) -> _Spread | None:
    """How far the mean WER, or difference of WERs, of a table (seeds, sentences) may be off; None where its rows cannot
    tell: there is one, or they are all the same, as those of a trainer that takes no notice of its seed.
    """
    seeds, sentences = table.shape
    if (table == table[0]).all():
        return None
    total = words.sum()
    by_seed = table.sum(axis=1) / total
    between_seeds = float(by_seed.var(ddof=1)) / seeds
    if sentences == 1:
        return _Spread(math.sqrt(between_seeds), seeds - 1)
    between_sentences = _bootstrapped(table.mean(axis=0), words)
    # What is left when a seed's and a sentence's own share are taken out; in WER, so a sentence counts by its words.
    scaled = (table - by_seed.mean() * words) * sentences / total
    rest = scaled - scaled.mean(axis=1, keepdims=True) - scaled.mean(axis=0) + scaled.mean()
    both = float((rest**2).sum()) / ((seeds - 1) * (sentences - 1)) / (seeds * sentences)
    # A component estimated below 0 is none; then the larger of the others is all there is.
    variance = max(between_seeds + between_sentences - both, between_seeds, between_sentences)
    parts = ((between_seeds, seeds - 1), (between_sentences, sentences - 1), (both, (seeds - 1) * (sentences - 1)))
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    return _Spread(math.sqrt(variance), freedom if seeds >= FEWEST_SEEDS else min(freedom, seeds - 1))


def _bootstrapped(column: Table, words: Table) -> float:
    """Variance of `column.sum() / words.sum()` over other draws of the sentences."""
    counts, sentences = _draws(len(words)), len(words)
    ratios = (counts @ column) / (counts @ words)
    return float(ratios.var(ddof=1)) * sentences / (sentences - 1)


@lru_cache(4)
def _draws(sentences: int) -> Table:
    """How often each sentence is in each resample (RESAMPLES, sentences)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(sentences, np.full(sentences, 1 / sentences), size=RESAMPLES).astype(np.float64)


def _half_width(spread: _Spread | None) -> float | None:
    """Of the 95 % interval."""
    if spread is None:
        return None
    from scipy.stats import t  # takes a second to import

    return float(t.ppf(0.975, spread.freedom)) * spread.error


def _chance(mean: float, spread: _Spread | None) -> float | None:
    """That a mean is as far from 0, on either side, where the true one is 0."""
    if spread is None:
        return None
    from scipy.stats import t

    return float(2 * t.sf(abs(mean) / spread.error, spread.freedom))


def _sentence(found: Compared, seeds: int) -> str:
    points = 100 * found.difference
    by = f"{abs(points):.1f} points {'lower' if points <= 0 else 'higher'} WER"
    head = {
        "better": f"{found.name} is better than {found.against}",
        "worse": f"{found.name} is worse than {found.against}",
        "not shown better": f"{found.name} is not shown to be better than {found.against}",
    }[found.verdict]
    if found.low is None or found.high is None or found.p is None:
        if seeds == 1:
            return f"{head}: {by}, with one seed, which says nothing of others; confirm with 5."
        return f"{head}: {by}, and every seed gave the same, so nothing is known of others."
    low, high = 100 * found.low, 100 * found.high
    said = f"{head}: {by} (95 % interval {low:+.1f} to {high:+.1f}, p = {found.p:.2g})."
    if found.verdict == "not shown better" and high < 0:
        said += " Alone it would be; among several one comes out like this by chance too often."
    return said
