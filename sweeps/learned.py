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
from model.types import EpochReport
from sweeps.records import TrialRow
from sweeps.spec import SweepSpec
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

    values: dict[str, float]
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
    test), and told is where the best third lies. For the others: Spearman's rank correlation with WER, what the
    learning rate explains taken out of both (a parabola, and the distance from the best third); for patience what the
    epoch of takeoff explains, too.

    Args:
        trials: of one sweep; those that are not over, failed, or ran under settings of their own are left out.
        curves: epochs 1, 2, ... of each trial, by its id.
        constant_wer: dev WER of the best constant sentence (fraction).
    """
    searched = [name for name, bounds in spec.space.ranges().items() if bounds.low < bounds.high]
    runs = [
        _run(trial, curves[trial.id], spec, constant_wer)
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.hyperparameters and not trial.overrides and curves.get(trial.id)
    ]  # fmt: skip
    judged = {
        name: [r for r in runs if (r.takeoff and r.patience_could_act if name == "patience" else r.learns)]
        for name in searched
    }
    tested = [name for name in searched if len(judged[name]) >= FEWEST_TRIALS]
    found = {name: _effect(name, judged[name]) for name in tested}
    corrected = dict(zip(tested, holm([found[name]["p"] for name in tested]), strict=True))
    lessons = []
    for name in searched:
        says: Says = "too_few"
        numbers = {}
        if name in found:
            says = "effect" if corrected[name] <= LEVEL else "no_clear_effect"
            numbers = found[name] | {"p": corrected[name]}
        sentence, more = _told(name, says, numbers, judged[name], runs)
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
    values = {name: float(value) for name, value in (trial.hyperparameters or {}).items()}
    wers = [report.wer for report in reports]
    best, takeoff = best_epoch(wers), takeoff_epoch(wers, constant_wer)
    counts_from = 1 if spec.trainer.patience_starts == "epoch1" else takeoff
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
        patience_could_act=counts_from is not None and counts_from + values.get("patience", math.inf) <= len(wers),
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
    values = np.array([r.values[name] for r in runs])
    rates = np.log([r.values["learning_rate"] for r in runs])
    wers = np.array([r.wer for r in runs])
    third = np.argsort(wers, kind="stable")[: math.ceil(len(runs) / 3)]
    if name == "learning_rate":
        best = values[third].tolist()
        return {"p": parabola_p(rates, wers), "best_low": min(best), "best_high": max(best)}
    # The distance as well: where trials crowd about the best rate, a parabola alone leaves some of its effect behind.
    given = np.column_stack([_parabola(rates), abs(rates - np.median(rates[third]))])
    if name == "patience":  # a long one could only act on trials that took off early, which are better anyhow
        given = np.column_stack([given, [float(r.takeoff or 0) for r in runs]])
    correlation, p = partial_spearman(values, wers, given)
    middle, rest = float(np.median(values)), _without(given, wers)
    low, high = rest[values <= middle], rest[values > middle]
    difference = float(np.median(high) - np.median(low)) if len(high) else 0.0
    if difference * correlation <= 0:  # ranks and medians disagree: then there is nothing to tell
        p = 1.0
    return {"p": p, "correlation": correlation, "middle": middle, "difference": difference}


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
    rates = sorted(r.values["learning_rate"] for r in runs if r.takeoff)
    dead = [r.values["learning_rate"] for r in runs if not r.takeoff and not r.stopped]
    stopped = [r.values["learning_rate"] for r in runs if not r.takeoff and r.stopped]
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
