"""What a sweep says of the parameters it searched, from the trials that are over. Pure.

Two cautions are built in. Where nothing is there, nothing may be claimed: the tests of a sweep are held to one level
together. And a sampler gathers its trials around the best one in all parameters at once, so that what goes with a
good learning rate looks good itself: the other parameters are judged at equal learning rate. `p` and differences are
of ranks and medians, so one lucky trial decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from model.diagnosis import TAKEOFF_MARGIN, best_epoch, counted, takeoff_epoch
from model.types import EpochReport, Value
from sweeps.records import TrialRow
from sweeps.spec import Choices, SweepSpec
from sweeps.states import TrialState

Says: TypeAlias = Literal["effect", "no_clear_effect", "too_few"]
Vector: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

LEVEL = 0.05
"""Of the tests of all parameters together (Holm 1979): of a hundred sweeps in which nothing mattered, so many would
claim something. The trials of a sampler are not independent; 2 to 6 of 100 did, in 400 simulated sweeps under TPE."""

FEWEST_TRIALS = 8
"""With fewer trials that learned nothing is said of WER: at 8, a rank correlation must be about 0.95 to be claimed."""

HOW = f"rank tests, {LEVEL:.0%} over all parameters together; a stopped trial counts with the WER predicted for it"
"""How the claims of `learned` were tested, in a line."""


@dataclass(frozen=True)
class Lesson:
    """What a sweep learned about one parameter."""

    parameter: str
    says: Says
    """About WER."""
    sentence: str
    trials: int
    """What it rests on: those that learned, or would have; of patience, those that it ended or could have ended."""
    numbers: dict[str, float] = field(default_factory=dict)
    """`p`, corrected for the number of parameters, and what the sentence names; WER differences as fractions."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    """A trial that is over."""

    values: dict[str, Value]
    takeoff: int | None
    diverged: bool
    stopped: bool
    """By a rule, as too slow: it may yet have taken off."""
    wer: float
    """Its best; if it was stopped, what the rule predicted it would have come to, where it did."""
    learns: bool
    """It took off, or is predicted to."""
    ended_by_patience: bool
    patience_could_act: bool
    longest_wait: int
    """Epochs from one best WER to the next, at most, since patience counts; 0 where it does not."""


def learned(
    trials: Sequence[TrialRow], curves: Mapping[int, Sequence[EpochReport]], spec: SweepSpec, constant_wer: float
) -> list[Lesson]:
    """A lesson for each parameter that the sweep searched, in the order of the space.

    The learning rate is not monotonic: tested is whether a parabola over its logarithm explains the ranks of WER (F
    test), and told is where the best third lies. For choices: whether which one a trial had explains them, what the
    learning rate explains taken out (F test). A conditional parameter is judged by the trials that had it. For the
    others: Spearman's rank correlation with WER, what the
    learning rate explains taken out of both (a parabola, and the distance from the best third); for patience what the
    epoch of takeoff explains, too.

    Args:
        trials: of one sweep; those that are not over, failed, or ran under settings of their own are left out.
        curves: epochs 1, 2, ... of each trial, by its id.
        constant_wer: dev WER of the best constant sentence (fraction).
    """
    searched = spec.space.searched()
    runs = [
        _run(trial, curves[trial.id], spec, constant_wer)
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.hyperparameters and not trial.overrides and curves.get(trial.id)
    ]  # fmt: skip
    judged = {
        name: [
            r
            for r in runs
            if name in r.values and (r.takeoff and r.patience_could_act if name == "patience" else r.learns)
        ]
        for name in searched
    }
    tested = [name for name in searched if len(judged[name]) >= FEWEST_TRIALS]
    found = {
        name: _effect_of_choice(name, judged[name])
        if isinstance(searched[name], Choices)
        else _effect(name, judged[name])
        for name in tested
    }
    corrected = dict(zip(tested, holm([found[name]["p"] for name in tested]), strict=True))
    lessons = []
    for name in searched:
        says: Says = "too_few"
        numbers = {}
        if name in found:
            says = "effect" if corrected[name] <= LEVEL else "no_clear_effect"
            numbers = found[name] | {"p": corrected[name]}
        if isinstance(searched[name], Choices) and runs:
            sentence, more = _choice_in_words(name, says, numbers, judged[name]), dict[str, float]()
        else:
            sentence, more = _told(name, says, numbers, judged[name], runs)
        if searched[name].when and runs:
            sentence = f"{counted(sum(name in r.values for r in runs), 'trial')} had it; {sentence}"
        lessons.append(Lesson(name, says, sentence, len(judged[name]), numbers | more))
    return lessons


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: each p such that to reject where it is at most a level keeps that level for all together.

    Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _run(trial: TrialRow, reports: Sequence[EpochReport], spec: SweepSpec, constant_wer: float) -> _Run:
    values = dict(trial.hyperparameters or {})
    config = spec.training(trial.number, values, trial.overrides)
    wers = [report.wer for report in reports]
    best, takeoff = best_epoch(wers), takeoff_epoch(wers, constant_wer)
    counts_from = 1 if config.patience_starts == "epoch1" else takeoff
    stopped = trial.verdict == "too_slow"
    predicted = trial.evidence.get("predicted_wer") if stopped else None
    return _Run(
        values=values,
        takeoff=takeoff,
        diverged=trial.verdict == "diverged",
        stopped=stopped,
        wer=predicted if predicted is not None else best[1] if best else math.inf,
        learns=takeoff is not None or (predicted is not None and predicted <= constant_wer - TAKEOFF_MARGIN),
        ended_by_patience=trial.rule == "patience",
        patience_could_act=counts_from is not None and counts_from + config.patience <= len(wers),
        longest_wait=_longest_wait(wers, counts_from) if counts_from else 0,
    )


def _longest_wait(wers: Sequence[float], first: int) -> int:
    """Epochs from one best WER to the next, at most, from epoch `first` (1-based) on."""
    last, lowest, longest = first, math.inf, 0
    for epoch, wer in enumerate(wers[first - 1 :], start=first):
        if wer < lowest:  # NaN is not
            longest, last, lowest = max(longest, epoch - last), epoch, wer
    return longest


# the tests


def _effect(name: str, runs: Sequence[_Run]) -> dict[str, float]:
    """What a parameter does to WER: `p`, and the numbers for its sentence."""
    values = np.array([float(r.values[name]) for r in runs])
    wers = np.array([r.wer for r in runs])
    rates = np.log([_rate(r) for r in runs])
    if name == "learning_rate":
        best = values[_best_third(wers)].tolist()
        return {"p": parabola_p(rates, wers), "best_low": min(best), "best_high": max(best)}
    given = _what_the_rate_explains(rates, wers)
    if name == "patience":  # a long one could only act on trials that took off early, which are better anyhow
        given = np.column_stack([given, [float(r.takeoff or 0) for r in runs]])
    correlation, p = partial_spearman(values, wers, given)
    middle, rest = float(np.median(values)), _without(given, wers)
    low, high = rest[values <= middle], rest[values > middle]
    difference = float(np.median(high) - np.median(low)) if len(high) else 0.0
    if difference * correlation <= 0:  # ranks and medians disagree: then there is nothing to tell
        p = 1.0
    return {"p": p, "correlation": correlation, "middle": middle, "difference": difference}


def _effect_of_choice(name: str, runs: Sequence[_Run]) -> dict[str, float]:
    """As `_effect`, of values in no order: whether which of them a trial has explains ranks of WER (F test)."""
    wers = np.array([r.wer for r in runs])
    given = _what_the_rate_explains(np.log([_rate(r) for r in runs]), wers)
    medians = _medians_of_choices(name, runs)
    p = groups_p([r.values[name] for r in runs], wers, given)
    return {"p": p, "difference": max(medians.values()) - min(medians.values())}


def _medians_of_choices(name: str, runs: Sequence[_Run]) -> dict[Value, float]:
    """Value to the median WER of its trials, what the learning rate explains taken out: the best first."""
    wers = np.array([r.wer for r in runs])
    rest = _without(_what_the_rate_explains(np.log([_rate(r) for r in runs]), wers), wers)
    values = [r.values[name] for r in runs]
    medians = {
        value: float(np.median([w for w, v in zip(rest, values, strict=True) if v == value])) for value in set(values)
    }
    return dict(sorted(medians.items(), key=lambda pair: (pair[1], str(pair[0]))))


def _rate(run: _Run) -> float:
    return float(run.values["learning_rate"])


def _best_third(wers: Vector) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.argsort(wers, kind="stable")[: math.ceil(len(wers) / 3)]


def _what_the_rate_explains(log_rates: Vector, wers: Vector) -> Vector:
    """Columns (n, 2 to 4) by which the learning rate is taken out of the others: a parabola, and the distance from the
    best third as well: where trials crowd about the best rate, a parabola alone leaves some of its effect behind.
    """
    return np.column_stack([_parabola(log_rates), abs(log_rates - np.median(log_rates[_best_third(wers)]))])


def groups_p(labels: Sequence[Value], y: Vector, given: Vector) -> float:
    """p of the F test that which label it has explains nothing of the ranks of what the columns of `given` (n, k) do
    not explain of `y` (n,); 1 where there is nothing to compare.
    """
    share, columns, free = groups_share(labels, y, given)
    if columns < 1 or free < 1:
        return 1.0
    from scipy import special

    return float(special.fdtrc(columns, free, (share / columns) / max((1 - share) / free, 1e-12)))


def groups_share(labels: Sequence[Value], y: Vector, given: Vector) -> tuple[float, int, int]:
    """Share (0 to 1) of those ranks that the labels explain, by how many columns, and the degrees left."""
    rest = _without(given, y)
    kinds = list(dict.fromkeys(labels))
    dummies = np.array([[label == kind for kind in kinds[1:]] for label in labels], dtype=float).reshape(len(y), -1)
    of_labels = dummies - given @ np.linalg.lstsq(given, dummies, rcond=None)[0]
    columns = int(np.linalg.matrix_rank(of_labels)) if dummies.size else 0
    free = len(y) - int(np.linalg.matrix_rank(given)) - columns
    if columns == 0 or abs(rest).max() <= 1e-9 * abs(y).max():
        return 0.0, columns, free
    ranks = _ranks(rest) - (len(y) + 1) / 2
    left = _without(of_labels, ranks)
    return 1 - float((left**2).sum() / (ranks**2).sum()), columns, free


def parabola_p(x: Vector, y: Vector) -> float:
    """p of the F test that a parabola over `x` explains nothing of the ranks of `y`."""
    design = _parabola(x)
    ranks = _ranks(y)
    free = len(y) - design.shape[1]
    if design.shape[1] < 3 or free < 1:
        return 1.0
    total = float(((ranks - ranks.mean()) ** 2).sum())
    rest = float((_without(design, ranks) ** 2).sum())
    if total == 0:
        return 1.0
    explained = (total - rest) / (design.shape[1] - 1)
    from scipy import special  # a sixth of a second that no command waits for that does not ask

    return float(special.fdtrc(design.shape[1] - 1, free, explained / max(rest / free, 1e-12)))


def partial_spearman(x: Vector, y: Vector, given: Vector) -> tuple[float, float]:
    """Spearman's rank correlation of what the columns of `given` (n, k) do not explain of `x` (n,) and `y` (n,), and
    its two-sided p (t test). 0 and 1 where nothing is left of one of them.
    """
    a, b = _without(given, x), _without(given, y)
    free = len(x) - int(np.linalg.matrix_rank(given)) - 1
    if free < 1 or any(abs(rest).max() <= 1e-9 * abs(whole).max() for rest, whole in ((a, x), (b, y))):
        return 0.0, 1.0
    correlation = float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])
    t = abs(correlation) * math.sqrt(free / max(1e-12, 1 - correlation**2))
    from scipy import special

    return correlation, float(2 * special.stdtr(free, -t))


def _parabola(x: Vector) -> Vector:
    """Columns 1, x and x squared, as many as `x` has different values: (n, 1 to 3)."""
    centred = x - x.mean()
    return np.stack([centred**power for power in range(min(3, len(np.unique(x))))], axis=1)


def _ranks(y: Vector) -> Vector:
    from scipy.stats import rankdata  # takes a second to import: no command waits for it that does not ask

    ranks: Vector = rankdata(y)
    return ranks


def _without(design: Vector, y: Vector) -> Vector:
    """What of `y` (n,) the columns of `design` (n, k) do not explain."""
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


# the words


def _told(
    name: str, says: Says, numbers: Mapping[str, float], judged: Sequence[_Run], runs: Sequence[_Run]
) -> tuple[str, dict[str, float]]:
    """The sentence about a parameter, and the numbers in it that no test gave."""
    if not runs:
        return "too few trials are over (0) to say.", {}
    if name == "learning_rate":
        where, numbers_of_where = _where_it_took_off(runs)
        return " ".join(filter(None, [where, _best_rates(says, numbers, judged)])), numbers_of_where
    effect = _effect_in_words(says, numbers, judged)
    return _patience(effect, runs) if name == "patience" else (effect, {})


def _effect_in_words(says: Says, numbers: Mapping[str, float], judged: Sequence[_Run]) -> str:
    if says == "too_few":
        return f"too few trials ({len(judged)}) to say."
    if says == "no_clear_effect":
        return f"no clear effect in {_trials(judged)}."
    better = "lower" if numbers["difference"] > 0 else "higher"
    return (
        f"{better} is better: {100 * abs(numbers['difference']):.1f} WER points between trials up to "
        f"{numbers['middle']:.3g} and above, at equal learning rate ({_trials(judged)}; rank correlation "
        f"{numbers['correlation']:.2f}, p = {numbers['p']:.2g})."
    )


def _choice_in_words(name: str, says: Says, numbers: Mapping[str, float], judged: Sequence[_Run]) -> str:
    if says != "effect":
        return _effect_in_words(says, numbers, judged)
    best, *others = _medians_of_choices(name, judged)
    return (
        f"{best} is best: {100 * numbers['difference']:.1f} WER points between its trials and those of {others[-1]}, "
        f"at equal learning rate ({_trials(judged)}; p = {numbers['p']:.2g})."
    )


def _best_rates(says: Says, numbers: Mapping[str, float], judged: Sequence[_Run]) -> str:
    if says == "too_few":
        return f"Too few trials ({len(judged)}) to say where WER is best." if judged else ""
    if says == "no_clear_effect":
        return f"No clear effect on WER in {_trials(judged)}."
    low, high = numbers["best_low"], numbers["best_high"]
    return f"The best third had {_rates([low, high])} ({_trials(judged)}; p = {numbers['p']:.2g})."


def _trials(judged: Sequence[_Run]) -> str:
    stopped = sum(r.stopped for r in judged)
    return f"{len(judged)} trials" + (f", {stopped} of them stopped early" if stopped else "")


def _where_it_took_off(runs: Sequence[_Run]) -> tuple[str, dict[str, float]]:
    """In which range of learning rates trials took off, and in which none did."""
    rates = sorted(_rate(r) for r in runs if r.takeoff)
    dead = [_rate(r) for r in runs if not r.takeoff and not r.stopped]
    stopped = [_rate(r) for r in runs if not r.takeoff and r.stopped]
    low, high = (rates[0], rates[-1]) if rates else (math.inf, math.inf)
    below, above = [rate for rate in dead if rate < low], [rate for rate in dead if rate > high]
    between = len(dead) - len(below) - len(above)
    said = [f"{len(rates)} of {counted(len(runs), 'trial')} took off" + (f", with {_rates(rates)}" if rates else "")]
    without = [f"{len(part)} with {_rates(part)}" for part in (below, above) if part]
    without += [f"{between} in between"] if between else []
    if without:
        diverged = sum(r.diverged and not r.takeoff for r in runs)
        said.append(f"{' and '.join(without)} did not" + (f" ({diverged} of them diverged)" if diverged else ""))
    if stopped:
        said.append(f"{len(stopped)} with {_rates(stopped)} were stopped before")
    numbers = {"took_off_low": low, "took_off_high": high} if rates else {}
    numbers |= {"never_below": max(below)} if below and rates else {}
    numbers |= {"never_above": min(above)} if above else {}
    return f"{'; '.join(said)}.", numbers


def _rates(rates: Sequence[float]) -> str:
    low, high = f"{min(rates):.1e}", f"{max(rates):.1e}"
    return low if low == high else f"{low} to {high}"


def _patience(effect: str, runs: Sequence[_Run]) -> tuple[str, dict[str, float]]:
    """Only where it could have ended a trial does it say anything of WER; how long a wait paid, each trial says."""
    ended, longest = sum(r.ended_by_patience for r in runs), max(r.longest_wait for r in runs)
    said = f"it ended {ended} of {counted(len(runs), 'trial')}; {effect}"
    if longest:
        said += f" The longest wait for a better WER was {counted(longest, 'epoch')}."
    return said, {"ended": ended, "longest_wait": longest}
