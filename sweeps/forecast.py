"""What the rest of a sweep's budget will bring: trials, hours, money, and the chance of a better WER. Pure.

**New trials.** If all trials of a sweep were drawn alike, the best of n + m would be among the last m with chance
m / (n + m), whatever their distribution (records of exchangeable draws: Arnold, Balakrishnan and Nagaraja, Records,
1998). It must also be better by a margin. Near its end the lower tail of log WER is taken for exponential, its scale
read from the lowest WERs (Weissman, JASA 73, 1978), so that a draw below the best is below it by the margin with chance
exp(-margin / scale); those m trials are worth so many fewer.

**Trials under way** end where `pruning.outlook` says, with its spread, a little to the cautious side.

**How many trials** a budget still pays for is a renewal count: mean B / mu, variance B sigma^2 / mu^3 (Cox, Renewal
Theory, 1962), and that of the estimated mean.

docs/explanation/forecast.md says how often the chances came true.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, pstdev
from typing import Any

from model.diagnosis import TAKEOFF_MARGIN, counted
from model.floors import Floors
from sweeps.budget import IMPROVEMENT, Spending, cost, training_left
from sweeps.pruning import SMALLEST_WER, History, Outlook, outlook
from sweeps.records import SweepRow, TrialRow
from sweeps.states import SweepState, TrialState

TAIL = 5
"""The scale of the lower tail is read from so many of the lowest WERs, above which the next one stands."""

CAUTION = 0.55
"""A trial under way is expected to end so many of its spreads above its outlook, which is made from what the best did.
The only constant that was fitted, on the curve tables by benchmarks/forecast.py. A weight of the margin was tried: the
other corpora choose it badly for the fourth, and the exponential tail needs none."""

FEWEST_TRIALS = 3
"""No chance is stated before so many trials are over: two WERs have no tail."""

FEWEST_TO_STOP = 10
"""No sweep is stopped for its forecast before so many trials are over: until then TPE only spreads its trials, and
there are no more than TAIL and a few to read the tail from. docs/explanation/forecast.md has what it costs."""

SIBLINGS = 64
"""The curves of so many trials with the lowest WERs speak for those under way: with more a look would take longer."""

_COVERED = NormalDist().inv_cdf(0.9)
"""Half-width, in standard deviations, of an interval of 80 %."""

_NO_NEW_TRIALS = (SweepState.STOPPING, SweepState.CANCELLING, SweepState.CANCELLED, SweepState.COMPLETE)


@dataclass(frozen=True)
class Forecast:
    """What a sweep would come to if it spent the rest of its budget."""

    improvement: float
    """WER (fraction) that the chance speaks of."""
    chance: float | None
    """Of a WER lower by that, 0 to 1; None where it cannot be told."""
    why_not: str
    """Why there is no chance, in a sentence; else empty."""
    best_wer: float | None
    over: int
    """Trials that are over, of which one learns."""
    under_way: int
    trials: float
    """So many more are paid for; one that is cut short counts by its share."""
    trials_low: float
    trials_high: float
    """80 % interval of that."""
    limit: str
    """The key of the budget that ends the sweep first."""
    device_hours: float | None
    """Of training left, over all workers; None before the first epoch."""
    hours: float | None
    """The same by the clock, if as many train at once as now."""
    money: float | None
    """What they cost; None without a price."""
    currency: str | None

    @property
    def goes_on(self) -> bool:
        """Whether anything is left to train."""
        return self.under_way > 0 or self.trials_high > 0

    @property
    def can_stop(self) -> bool:
        """Whether enough trials are over to end a sweep for its chance."""
        return self.chance is not None and self.over >= FEWEST_TO_STOP

    @property
    def sentence(self) -> str:
        """For a person."""
        return f"{self._cost()}; {self._gain()}" if self.goes_on else "nothing is left to train"

    def _cost(self) -> str:
        low, high = round(self.trials_low), round(self.trials_high)
        more = round(self.trials)
        said = f"about {counted(more, 'more trial')}" if low < high else counted(more, "more trial")
        said += f" ({low} to {high})" if low < high else ""
        if self.under_way:
            said += f" beside {self.under_way} under way"
        if self.device_hours is None:
            return said
        beside = [] if self.hours is None else [f"about {_hours(self.hours)} by the clock"]
        if self.money is not None:
            beside.append(f"{self.money:,.2f} {self.currency or 'in money'}")
        return f"{_hours(self.device_hours, 'device ')} left ({', '.join(beside)}), {said}"

    def _gain(self) -> str:
        if self.chance is None:
            return self.why_not
        return f"chance to improve by {points(self.improvement)}: {percent(self.chance)}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "sentence": self.sentence}


def points(wer: float) -> str:
    """A difference of WERs in print."""
    return f"{100 * wer:g} point{'' if wer == 0.01 else 's'}"


def percent(chance: float) -> str:
    """A chance in print: none is certain."""
    if chance <= 0:
        return "none"
    return "under 1 %" if chance < 0.01 else "over 99 %" if chance > 0.99 else f"{100 * chance:.0f} %"


def _hours(hours: float, what: str = "") -> str:
    return f"{hours:,.1f} {what}hours" if hours >= 0.95 else counted(max(1, round(60 * hours)), f"{what}minute")


def read_for(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """The trials whose curves a forecast needs, by number: those under way, and the best of those that are over."""
    under_way = [trial for trial in trials if not trial.state.terminal and trial.epochs]
    over = [trial for trial in trials if _counts(trial) and trial.best_wer is not None]
    best = sorted(over, key=lambda trial: (trial.best_wer, trial.number))[:SIBLINGS]
    return sorted([*under_way, *best], key=lambda trial: trial.number)


def forecast(
    sweep: SweepRow,
    trials: Sequence[TrialRow],
    histories: Sequence[History],
    workers: int,
    planned_epochs: int,
    improvement: float = IMPROVEMENT,
    configurations: int | None = None,
) -> Forecast:
    """
    Args:
        configurations: that the space has, where it has so many only and none is repeated.
        histories: of the trials that `read_for` names.
        workers: that train at once, if no more do now.
        planned_epochs: of a trial, at most.
        improvement: WER (fraction), above 0.
    """
    under_way = [trial for trial in trials if trial.state is TrialState.RUNNING or _waits_with_epochs(trial)]
    lengths = [trial.epochs for trial in trials if _counts(trial)]
    spending = Spending(sum(t.epochs for t in trials), sweep.seconds, sum(t.seconds for t in trials))
    seconds = spending.device_seconds / spending.epochs if spending.epochs else math.nan
    at_once = max(workers, sum(trial.state is TrialState.RUNNING for trial in trials), 1)
    limits = training_left(sweep.budget, spending, at_once, seconds) if seconds > 0 else {}
    limit = min(limits, key=lambda name: limits[name], default="trials")
    left = limits[limit] / seconds if limits else math.inf
    begun = sum(trial.state.terminal for trial in trials) + len(under_way)
    unbegun = 0 if sweep.state in _NO_NEW_TRIALS else max(0, sweep.budget["trials"] - begun)
    if configurations is not None:
        unbegun = min(unbegun, max(0, configurations - sum(trial.in_space for trial in trials)))
    ahead = epochs_ahead([trial.epochs for trial in under_way], lengths, planned_epochs)
    more, low, high = trials_left(left - ahead, lengths, planned_epochs, unbegun)
    device_seconds = min(left, ahead + more * _length(lengths, planned_epochs)[0]) * seconds if seconds > 0 else None
    chance, why_not = None, _why_no_chance(sweep, trials, len(lengths))
    if not why_not:
        numbers = {trial.number for trial in under_way}
        running = [history for history in histories if history.number in numbers and not history.ended]
        looks = outlooks(running, histories, sweep.floors)
        reach = min(1.0, left / ahead) if ahead else 1.0
        wers = [trial.best_wer for trial in trials if trial.best_wer is not None]
        blind = len(under_way) - len(looks)
        chance = chance_to_improve(wers, looks, len(lengths), more + reach * blind, improvement, reach)
    return Forecast(
        improvement,
        chance,
        why_not,
        min((trial.best_wer for trial in trials if trial.best_wer is not None), default=None),
        len(lengths),
        len(under_way),
        more,
        low,
        high,
        "trials" if more >= unbegun else limit,
        None if device_seconds is None else device_seconds / 3600,
        None if device_seconds is None else device_seconds / 3600 / at_once,
        None if device_seconds is None else cost(sweep.budget, device_seconds),
        sweep.budget.get("currency"),
    )


def chance_to_improve(
    wers: Sequence[float],
    under_way: Sequence[Outlook],
    over: int,
    more: float,
    improvement: float,
    reach: float = 1.0,
) -> float:
    """Chance that the lowest WER becomes lower by `improvement`.

    Args:
        wers: the lowest of each trial, over or not (fractions); at least one.
        under_way: outlooks of trials that go on.
        over: trials that are over.
        more: trials of which nothing is known yet.
        reach: share of what those under way still need that the budget pays for.
    """
    target = min(wers) - improvement
    if target <= 0:
        return 0.0
    none = 1 - _chance_of_new(margin(wers, improvement), over, more)
    for each in under_way:
        none *= 1 - reach * NormalDist().cdf((math.log(target) - each.log_wer) / each.spread - CAUTION)
    return 1 - none


def margin(wers: Sequence[float], improvement: float) -> float:
    """How many scales of the lower tail lie between the lowest WER and one that is better by `improvement`."""
    lowest = [math.log(max(wer, SMALLEST_WER)) for wer in sorted(wers)[: TAIL + 1]]
    scale = lowest[-1] - fmean(lowest[:-1]) if len(lowest) > 1 else 0.0
    best = min(wers)
    gap = math.log(best / (best - improvement))
    return gap / scale if scale > 0 else math.inf


def _chance_of_new(margin: float, over: int, more: float) -> float:
    worth = max(0.0, more) * math.exp(-margin)
    return worth / (over + worth) if worth > 0 else 0.0


def outlooks(running: Sequence[History], histories: Sequence[History], floors: Floors) -> list[Outlook]:
    """Where trials under way would end; those are left out that no other trial speaks for."""
    found = []
    for trial in running:
        others = [history for history in histories if history is not trial and history.takeoff]
        if others and trial.reports:
            found.append(outlook(trial, others, floors))
    return found


def epochs_ahead(done: Sequence[int], lengths: Sequence[int], planned_epochs: int) -> float:
    """Epochs that trials under way still take, as those took that lasted longer."""
    total = 0.0
    for epochs in done:
        longer = [length - epochs for length in lengths if length > epochs]
        total += fmean(longer) if longer else max(0, planned_epochs - epochs)
    return total


def _length(lengths: Sequence[int], planned_epochs: int) -> tuple[float, float]:
    """Mean and standard deviation of a trial's epochs. Before two are over: as if they came out anyhow."""
    mean = max(1.0, fmean(lengths)) if lengths else float(planned_epochs)
    return mean, pstdev(lengths) if len(lengths) > 1 else mean / 2


def trials_left(epochs: float, lengths: Sequence[int], planned_epochs: int, most: int) -> tuple[float, float, float]:
    """Trials that so many epochs pay for, and the ends of an 80 % interval; at most `most`."""
    if math.isinf(epochs):
        return float(most), float(most), float(most)
    mean, spread = _length(lengths, planned_epochs)
    expected = max(0.0, epochs) / mean
    variance = (expected + expected**2 / max(1, len(lengths))) * (spread / mean) ** 2
    half = _quantile(len(lengths) - 1) * math.sqrt(variance)
    return min(float(most), expected), min(float(most), max(0.0, expected - half)), min(float(most), expected + half)


def _quantile(freedom: int) -> float:
    """Of Student's t, for an interval of 80 % (Cornish and Fisher's first term)."""
    return _COVERED + (_COVERED**3 + _COVERED) / (4 * max(1, freedom))


def _counts(trial: TrialRow) -> bool:
    """Whether it was a draw: it ended by itself, or by a rule."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.epochs > 0


def _waits_with_epochs(trial: TrialRow) -> bool:
    return trial.state is TrialState.WAITING and trial.epochs > 0


def _why_no_chance(sweep: SweepRow, trials: Sequence[TrialRow], over: int) -> str:
    floor = sweep.floors.constant_wer - TAKEOFF_MARGIN
    if not any(trial.best_wer is not None and trial.best_wer <= floor for trial in trials):
        return "no trial has taken off yet, so nothing tells what more of them would bring"
    if over < FEWEST_TRIALS:
        return f"{counted(over, 'trial')} over: a chance is stated from {FEWEST_TRIALS} on"
    return ""
