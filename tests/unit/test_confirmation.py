"""Whether the verdicts of a confirmation are wrong as seldom as they say, and silent where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from sweeps.confirmation import ALPHA, Table, compared, holm, measured

SENTENCES = 120


def runs(
    rng: np.random.Generator, seeds: int, words: Table, *, gap: float = 0.0, by_seed: float = 0.04, rest: float = 0.5
) -> dict[str, Table]:
    """A baseline and a configuration whose WER is `gap` above it, with effects of seeds, sentences and of both. What is
    hard in a sentence is mostly so for both of them.
    """
    hard = 0.3 * rng.normal(size=(1, len(words)))

    def table(mean: float) -> Table:
        shift = by_seed * rng.normal(size=(seeds, 1)) + hard + 0.15 * rng.normal(size=(1, len(words)))
        return np.asarray(words * (mean + shift + rest * rng.normal(size=(seeds, len(words)))))

    return {"baseline": table(0.4), "other": table(0.4 + gap)}


def words_of(rng: np.random.Generator) -> Table:
    return rng.integers(2, 9, SENTENCES).astype(np.float64)


@pytest.mark.parametrize(
    ("seeds", "by_seed", "rest"),
    [(2, 0.06, 0.2), (3, 0.06, 0.2), (4, 0.04, 0.5), (5, 0.0, 0.5), (5, 0.04, 0.5), (5, 0.08, 0.1), (10, 0.04, 0.5)],
)
def test_a_difference_of_nothing_is_seldom_taken_for_one(seeds: int, by_seed: float, rest: float) -> None:
    rng, draws = np.random.default_rng(1), 600
    words, false, outside = words_of(rng), 0, 0
    for _ in range(draws):
        (pair,) = compared(runs(rng, seeds, words, by_seed=by_seed, rest=rest), words, "baseline")
        assert pair.low is not None
        assert pair.high is not None
        false += pair.verdict != "not shown better"
        outside += not pair.low <= 0 <= pair.high
    assert false == outside  # of one pair, interval and verdict say the same
    assert false / draws < ALPHA + 3 * (ALPHA * (1 - ALPHA) / draws) ** 0.5


def test_what_is_far_better_is_found() -> None:
    rng, draws = np.random.default_rng(2), 200
    words = words_of(rng)
    found = [compared(runs(rng, 5, words, gap=-0.18), words, "baseline")[0].verdict for _ in range(draws)]
    assert found.count("better") / draws > 0.8
    assert "worse" not in found


def test_the_interval_of_a_wer_holds_the_true_one() -> None:
    rng, draws, inside = np.random.default_rng(3), 400, 0
    words = words_of(rng)
    for _ in range(draws):
        found = measured(runs(rng, 5, words)["baseline"], words)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.4 <= found.high
    assert 0.92 < inside / draws < 0.99


def test_many_configurations_that_are_no_better_are_seldom_called_better() -> None:
    rng, draws, false = np.random.default_rng(4), 300, 0
    words = words_of(rng)
    for _ in range(draws):
        several = {str(n): runs(rng, 5, words)["other"] for n in range(8)}
        verdicts = {pair.verdict for pair in compared(several, words, "0")}
        false += verdicts != {"not shown better"}
    assert false / draws < 0.08


def test_which_way_round_it_is() -> None:
    words = np.ones(50)
    base = np.tile([0.0, 1.0], (5, 25)) + np.arange(5)[:, None] * 0.001
    pairs = compared({"base": base, "low": base * 0.5, "high": base + 0.5 * base[::-1]}, words, "base")
    assert [(pair.name, pair.verdict) for pair in pairs] == [("low", "better"), ("high", "worse")]
    assert pairs[0].sentence.startswith("low is better than base: 25.1 points lower WER (95 % interval -")
    assert pairs[0].difference == pytest.approx(-0.251)


def test_of_one_seed_nothing_is_said() -> None:
    rng = np.random.default_rng(5)
    words = words_of(rng)
    tables = runs(rng, 1, words, gap=-0.3)
    (pair,) = compared(tables, words, "baseline")
    assert (pair.verdict, pair.low, pair.high, pair.p) == ("not shown better", None, None, None)
    assert "one seed, which says nothing of others" in pair.sentence
    assert (measured(tables["other"], words).low, measured(tables["other"], words).high) == (None, None)


def test_seeds_that_all_come_to_the_same_say_nothing() -> None:
    words = np.full(20, 4.0)
    (pair,) = compared({"a": np.full((5, 20), 2.0), "b": np.full((5, 20), 1.0)}, words, "a")
    assert (pair.verdict, pair.p) == ("not shown better", None)
    assert "every seed gave the same" in pair.sentence
    (same,) = compared({"a": np.full((5, 20), 2.0), "b": np.full((5, 20), 2.0)}, words, "a")
    assert same.verdict == "not shown better"


def test_wers_of_whole_runs_are_judged_by_their_seeds_alone() -> None:
    """Where sentences are not known: a paired t test."""
    from scipy.stats import ttest_rel

    a, b = np.array([[0.30, 0.33, 0.29, 0.35, 0.31]]).T, np.array([[0.25, 0.27, 0.26, 0.29, 0.24]]).T
    (pair,) = compared({"a": a, "b": b}, np.ones(1), "a")
    assert pair.p == pytest.approx(ttest_rel(a[:, 0], b[:, 0]).pvalue)
    assert pair.verdict == "better"


def test_asked_twice_it_says_the_same() -> None:
    rng = np.random.default_rng(6)
    words = words_of(rng)
    tables = runs(rng, 5, words)
    assert compared(tables, words, "baseline") == compared(tables, words, "baseline")


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, None, 0.9]) == [pytest.approx(0.04), None, pytest.approx(0.9)]
    assert holm([]) == []
