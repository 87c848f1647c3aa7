"""When to stop a trial before its end: pure rules, histories in, a decision with its reason out.

In the plateau before takeoff WER is no evidence: at epoch 3 healthy runs show 100 % as well. What tells a run that
will not win from one that starts slowly is how its dev loss compares, at the same distance from the start, with those
of the trials that came out best; WER takes over as the run goes on. From both follows where the trial would end if it
went on as they did, how sure that is, and so its chance to beat the best. A trial is stopped when that chance is too
small for the epochs it still costs.

It is called dead only on other evidence: too little learning rate left to take off at all, or probes that find its
input unused. All else that is stopped is too slow to win, and called that.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from heapq import nsmallest
from itertools import accumulate, chain, islice
from math import exp, inf, isfinite, log, nan
from operator import attrgetter
from statistics import NormalDist
from typing import Any

from model.diagnosis import Verdict, counted, run_findings, takeoff_epoch
from model.floors import Floors
from model.types import EpochReport, TrainingConfig

Curve = Sequence[EpochReport]
"""Epochs 1, 2, ... of one trial."""

GRACE_SHARE = 1 / 12
"""No trial is stopped in this share of its epochs: the first loss of a run says little more than its initialisation."""

FEWEST_GRACE_EPOCHS = 2
"""... nor in its first epoch, however short it is."""

ANCHORS = 4
"""A trial is compared with so many of the best: a single one may have been lucky at that epoch."""

WEIGHT_SLOPE = 1.6
"""Weight of WER in a prediction once a trial has taken off, for each share of the epochs done, up to 1; dev loss has
the rest. Regressions on the curve tables give about these weights, which add up to 1 by themselves: in the plateau WER
tells nothing, from two thirds of the epochs on the loss adds nothing."""

SPREAD_AT_START = 0.5
"""Standard deviation of log(final WER) around its prediction, at the first epoch: a factor of 1.6 to either side. It
falls evenly to SPREAD_AT_END, ..."""

SPREAD_AT_END = 0.2
"""... and not lower: learning runs drop by a quarter from one epoch to the next, even late."""

PRIOR_TRIALS = 8
"""The spread above counts as if so many trials of the sweep had shown it; those that ended by themselves add theirs."""

LATEST_TRIALS = 50
"""... the latest of them: so many settle a standard deviation to a tenth, and a decision takes no longer in a sweep of
thousands."""

LEAST_CHANCE = 0.18
"""A trial is stopped when its chance to beat the best one is below this times the share of its epochs left: what it
may win must be worth what it still costs. This is the one constant that trades epochs against regret."""

LOSS_CAP = 2.0
"""Dev losses above this multiple of that of knowing nothing are taken for it: how far a run has come towards the prior
of the labels says little, a warm-up of two epochs is there a factor of three."""

SMALLEST_WER = 0.005
"""Lower WERs are taken for this one: near 0 a single word would be a large ratio."""

SMALLEST_LOSS = 0.001
"""... and so lower losses (nats per gloss)."""

TAKEOFF_EXPONENT = 0.3
"""LR-time at takeoff grows with the peak rate to this power: on ASL from 0.04 at 6e-5 to 0.28 at 3e-3. At high rates
takeoff waits for steps, not for learning rate, so a low rate needs less than its siblings had."""

FUTILE_SHARE = 1.0
"""A trial is futile if it will have less than this share of the LR-time that its siblings' takeoffs ask of its rate."""

FUTILE_LOSS = 1.05
"""... while its loss is still above that of knowing nothing by this factor. Who has come down is on the way."""

EXHAUSTED_FACTOR = 3.0
"""A trial in the plateau is exhausted when it has had so many times the LR-time, and the epochs, of the slowest
sibling's takeoff."""

FATAL = ("input_not_used", "time_collapsed")
"""Findings of the diagnosis that stop a trial in the plateau whatever its siblings do: its probes prove it dead."""


@dataclass(frozen=True)
class History:
    """One trial as the rules see it."""

    number: int
    reports: Curve
    config: TrainingConfig
    constant_wer: float
    """Dev WER of the best constant sentence (fraction)."""
    ended: bool = False
    """It gets no more epochs: finished, or stopped."""
    stopped: bool = False
    """A rule stopped it, or a fault: its best WER is not what it would have come to."""

    @cached_property
    def takeoff(self) -> int | None:
        """Epoch of takeoff (1-based), if there was one."""
        return takeoff_epoch([report.wer for report in self.reports], self.constant_wer)

    @cached_property
    def lr_time_before_takeoff(self) -> float:
        """LR-time at the end of the epoch before that of takeoff, which came somewhere in its epoch: the least that may
        have sufficed. NaN if there was no takeoff, or no epoch before.
        """
        return self.reports[self.takeoff - 2].lr_time if self.takeoff and self.takeoff > 1 else nan

    @cached_property
    def lowest_wers(self) -> list[float]:
        """Lowest finite dev WER until each epoch, that of the best constant sentence at most (fraction)."""
        return _lowest((report.wer for report in self.reports), self.constant_wer)

    @cached_property
    def lowest_losses(self) -> list[float]:
        """Lowest finite dev loss until each epoch (nats per gloss); infinite before the first."""
        return _lowest((report.value("dev/loss") for report in self.reports), inf)

    @cached_property
    def best_wer(self) -> float:
        """Lowest WER so far, that of the best constant sentence at most (fraction)."""
        return self.lowest_wers[-1]

    @cached_property
    def floored_wers(self) -> list[float]:
        """`lowest_wers`, SMALLEST_WER at least: what ratios are of."""
        return [max(wer, SMALLEST_WER) for wer in self.lowest_wers]

    @cached_property
    def log_losses(self) -> list[float]:
        """Logarithms of `lowest_losses`, SMALLEST_LOSS at least."""
        return [log(max(loss, SMALLEST_LOSS)) for loss in self.lowest_losses]

    @cached_property
    def lost_to_warmup(self) -> float:
        """Epochs at the peak rate that the warm-up costs: two trials are compared at equal epochs without them."""
        config = self.config
        return config.warmup_epochs * (1 - config.warmup_start_factor) / 2 if config.warmup_start_factor < 1 else 0.0

    def place(self, epoch: int) -> int:
        """Index of `epoch` in these lists, or of its first or last epoch if that is nearer."""
        return min(max(epoch, 1), len(self.reports)) - 1

    def at(self, epoch: int) -> tuple[float, float]:
        """Lowest WER and lowest dev loss until `epoch`, or its first or last epoch if that is nearer."""
        place = self.place(epoch)
        return self.lowest_wers[place], self.lowest_losses[place]


class Ranking:
    """The trials of a sweep that took off, as decisions ask for them.

    Those that are over are added once, in any order, so that a decision in a sweep of thousands looks at few of them.
    """

    def __init__(self, histories: Iterable[History] = ()) -> None:
        self._over: list[History] = []
        self._finished: list[History] = []
        """Those of them that ended by themselves, by number."""
        self._best: list[History] = []
        """As many of the best of these as may be asked for, ..."""
        self._best_stopped: list[History] = []
        """... and of those that were stopped."""
        self._under_way: list[History] = []
        self.quickest: list[History] = []
        """Those that may need the least LR-time for a takeoff at some rate: none had less of it before its own takeoff
        at a rate as high.
        """
        self.latest_takeoff = 0
        """Epoch of the latest takeoff; 0 if there is none."""
        self.most_lr_time = -inf
        """The most LR-time that a trial had at the end of the epoch of its takeoff."""
        for history in histories:
            if history.ended:
                self.add(history)
            else:
                self._enter(history)

    def add(self, history: History) -> None:
        """One that is over. Nothing happens if it never took off."""
        if not self._took_off(history):
            return
        self._over.append(history)
        if not history.stopped:
            _insert(self._finished, history, attrgetter("number"))
        best = self._best_stopped if history.stopped else self._best
        if len(best) < ANCHORS or _merit(history) < _merit(best[-1]):
            _insert(best, history, _merit)
            del best[ANCHORS:]

    def beside(self, under_way: Iterable[History]) -> Ranking:
        """The same with trials that are not over; to be asked, not added to."""
        both = copy(self)
        both._under_way = list(self._under_way)
        for history in under_way:
            both._enter(history)
        return both

    def _enter(self, history: History) -> None:
        if self._took_off(history):
            self._under_way.append(history)

    def _took_off(self, history: History) -> bool:
        if not history.takeoff:
            return False
        self.latest_takeoff = max(self.latest_takeoff, history.takeoff)
        self.most_lr_time = max(self.most_lr_time, history.reports[history.takeoff - 1].lr_time)
        if history.takeoff > 1 and not any(_is_quicker(other, history) for other in self.quickest):
            self.quickest = [history, *(other for other in self.quickest if not _is_quicker(history, other))]
        return True

    def __len__(self) -> int:
        return len(self._over) + len(self._under_way)

    def __iter__(self) -> Iterator[History]:
        """Every one, in no order."""
        return chain(self._over, self._under_way)

    def best(self) -> list[History]:
        """Those with the lowest WERs. One that a rule stopped counts only if there is no other: it would have come to
        less.
        """
        ranked = [*self._best, *self._under_way]
        return _first([s for s in ranked if not s.stopped] or [*self._best_stopped, *ranked], ANCHORS)

    def lowest_wer(self) -> float:
        """Of all, those that were stopped as well (fraction); infinite if there is none."""
        return min((s.best_wer for s in (*self._best, *self._best_stopped, *self._under_way)), default=inf)

    def finished_after(self, epoch: int) -> list[History]:
        """Those that ended by themselves, later than that; the latest of them, by number."""
        found = (s for s in reversed(self._finished) if len(s.reports) > epoch)
        return list(islice(found, LATEST_TRIALS))[::-1]


def _merit(history: History) -> tuple[float, int]:
    return history.best_wer, history.number


def _quickness(history: History) -> tuple[float, float, int]:
    """The lower, the quicker; of those that are alike the first."""
    return history.lr_time_before_takeoff, -history.config.learning_rate, history.number


def _is_quicker(one: History, other: History) -> bool:
    """Whether it needs less LR-time than the other one at any rate."""
    mine, theirs = _quickness(one), _quickness(other)
    return mine[0] <= theirs[0] and mine[1] <= theirs[1] and mine < theirs


def _insert(histories: list[History], history: History, key: Callable[[History], Any]) -> None:
    """Into a list that is in this order."""
    if histories and key(history) < key(histories[-1]):
        insort(histories, history, key=key)
    else:
        histories.append(history)


def _first(histories: Sequence[History], count: int) -> list[History]:
    return nsmallest(count, histories, key=_merit)


def _lowest(values: Iterable[float], at_most: float) -> list[float]:
    finite = (value if isfinite(value) else inf for value in values)
    return list(accumulate(finite, min, initial=at_most))[1:]


@dataclass(frozen=True)
class Decision:
    """Why a trial is stopped."""

    rule: str
    verdict: Verdict
    reason: str
    """One sentence, with the numbers, for a person."""
    counterfactual: str
    """What would have kept the trial, in a sentence."""
    epoch: int
    """The epoch after which it was stopped."""
    numbers: dict[str, float]
    """What was measured, by name; finite."""
    thresholds: dict[str, float]
    """What it was held against, by name; finite."""
    siblings: tuple[int, ...] = field(default=())
    """Numbers of the trials it was compared with, in ascending order."""

    @property
    def evidence(self) -> dict[str, float]:
        """The numbers and thresholds behind the sentence."""
        return {"epoch": self.epoch, **self.numbers, **self.thresholds, "siblings": len(self.siblings)}


def decide(
    trial: History,
    siblings: Sequence[History] | Ranking,
    floors: Floors,
    *,
    dev_sequences: int | None = None,
    grace_epochs: int | None = None,
) -> Decision | None:
    """Whether to stop a trial after its last epoch; None lets it go on.

    Args:
        trial: with at least one epoch.
        siblings: the sweep's other trials, finished or not, in any order; or as they were ranked.
        floors: what knowing nothing scores on the sweep's corpus.
        dev_sequences: sequences of dev, where known.
        grace_epochs: nothing is stopped before; default a twelfth of the epochs, at least 2.
    """
    epoch, epochs = trial.reports[-1].epoch, trial.config.epochs
    if epoch < (grace_epochs or max(FEWEST_GRACE_EPOCHS, math.ceil(GRACE_SHARE * epochs))):
        return None
    ranking = siblings if isinstance(siblings, Ranking) else Ranking(siblings)
    if trial.takeoff is None:
        dead = _dead(trial, floors, dev_sequences) or _futile(trial, ranking, floors) or _exhausted(trial, ranking)
        if dead:
            return dead
    return _too_slow(trial, ranking, floors)


def _dead(trial: History, floors: Floors, dev_sequences: int | None) -> Decision | None:
    """Its probes find, after ample training, that it does not use its input."""
    findings = run_findings(trial.reports, trial.config, floors, dev_sequences=dev_sequences)
    found = next((finding for finding in findings if finding.code in FATAL), None)
    if found is None:
        return None
    return Decision(
        found.code,
        "never_learned",
        f"Not learning as of epoch {trial.reports[-1].epoch}: {found.evidence}",
        f"What would have kept it: {found.would_change[0].lower()}{found.would_change[1:]}",
        trial.reports[-1].epoch,
        {} if found.number is None or not isfinite(found.number) else {"number": found.number},
        {} if found.threshold is None else {"threshold": found.threshold},
    )


def _loss_ratio(trial: History, floors: Floors) -> float:
    """The lower of train and dev loss, as a multiple of that of knowing nothing; NaN without either."""
    train = min((v for r in trial.reports if isfinite(v := r.value("train/loss"))), default=nan)
    ratios = (train / floors.constant_loss, trial.lowest_losses[-1] / floors.dev_constant_loss)
    return min((ratio for ratio in ratios if isfinite(ratio)), default=nan)


def _futile(trial: History, ranking: Ranking, floors: Floors) -> Decision | None:
    """Rate too low: the learning rate left to it will not suffice for a takeoff."""
    now, config = trial.reports[-1], trial.config
    ratio = _loss_ratio(trial, floors)
    if not ranking.quickest or not now.lr_time or not ratio > FUTILE_LOSS:
        return None  # without its numbers the rule does not judge
    nearest = min(ranking.quickest, key=lambda s: (_needed(s, config.learning_rate), _quickness(s)))
    needed = _needed(nearest, config.learning_rate)
    left = config.epochs - now.epoch
    lr_time_end = now.lr_time + left * now.step / now.epoch * config.learning_rate  # as if at its peak from here on
    if not lr_time_end < FUTILE_SHARE * needed:
        return None
    asked = sorted(s.number for s in ranking if isfinite(s.lr_time_before_takeoff))
    kept = config.learning_rate * (FUTILE_SHARE * needed / lr_time_end) ** (1 / (1 - TAKEOFF_EXPONENT))
    return Decision(
        "futile",
        "never_learned",
        f"Not learning: after {counted(now.epoch, 'epoch')} its loss is still {ratio:.1f} times that of knowing "
        f"nothing, and by its last epoch ({config.epochs}) it would have {lr_time_end:.2g} of cumulative learning rate "
        f"where the {counted(len(asked), 'trial')} that took off ask at least {needed:.2g} of a rate as low (trial "
        f"{nearest.number} took off at epoch {nearest.takeoff} with a rate of {nearest.config.learning_rate:.2g}).",
        f"A learning rate of {kept:.1e}, or a loss within {FUTILE_LOSS - 1:.0%} of that of knowing nothing, would have "
        "kept it.",
        now.epoch,
        {"lr_time_end": lr_time_end, "loss_ratio": ratio},
        {"lr_time_needed": needed, "share": FUTILE_SHARE, "loss_ratio_least": FUTILE_LOSS},
        tuple(asked),
    )


def _needed(sibling: History, rate: float) -> float:
    """The least LR-time for a takeoff at a rate, as this sibling took off."""
    share: float = min(1.0, rate / sibling.config.learning_rate) ** TAKEOFF_EXPONENT
    return sibling.lr_time_before_takeoff * share


def _exhausted(trial: History, ranking: Ranking) -> Decision | None:
    """Still in the plateau long after every sibling that took off, in epochs and in LR-time."""
    now, latest, most = trial.reports[-1], ranking.latest_takeoff, ranking.most_lr_time
    if not latest or now.epoch < EXHAUSTED_FACTOR * latest:
        return None
    if not most > 0 or now.lr_time < EXHAUSTED_FACTOR * most:
        return None  # without its numbers the rule does not judge
    return Decision(
        "exhausted",
        "never_learned",
        f"Not learning: still in the plateau after {now.epoch} epochs and {now.lr_time:.2g} of cumulative learning "
        f"rate; the slowest of {counted(len(ranking), 'trial')} that took off needed {counted(latest, 'epoch')} and "
        f"{most:.2g} ({EXHAUSTED_FACTOR:g} times both are allowed).",
        "A takeoff until now, or a lower learning rate, would have kept it.",
        now.epoch,
        {"lr_time": now.lr_time},
        {"latest_takeoff": latest, "lr_time_needed": most, "factor": EXHAUSTED_FACTOR},
        tuple(sorted(s.number for s in ranking)),
    )


@dataclass(frozen=True)
class Outlook:
    """Where a trial would end if it went on as others did."""

    wer: float
    """The WER predicted (fraction)."""
    log_wer: float
    spread: float
    """Standard deviation of the logarithm."""

    def chance_below(self, wer: float) -> float:
        """Probability of ending below a WER."""
        return NormalDist(self.log_wer, self.spread).cdf(log(max(wer, SMALLEST_WER)))


def wer_weight(trial: History, epoch: int, anchors: Sequence[History]) -> float:
    """Weight of WER against dev loss in a prediction from a trial's first `epoch` epochs: none in the plateau, all of
    it where a loss is missing.
    """
    if any(run.lowest_losses[0] == inf for run in (trial, *anchors)):
        return 1.0
    if trial.takeoff is None or epoch < trial.takeoff:
        return 0.0
    return min(1.0, WEIGHT_SLOPE * epoch / trial.config.epochs)


def default_spread(share_done: float) -> float:
    """Standard deviation of log(final WER) around its prediction, before a sweep has shown its own."""
    return SPREAD_AT_END + (SPREAD_AT_START - SPREAD_AT_END) * max(0.0, 1 - share_done)


def _predicted(trial: History, anchors: Sequence[History], epoch: int, log_most: float) -> float:
    """Logarithm of the WER at which `trial` would end, from its first `epoch` epochs: what each anchor came to, times
    the ratio of the two trials at the same distance from the start; mean of the logarithms. Logarithms of losses are
    `log_most` at most.

    Where a trial took off later than an anchor, they are compared at the same distance from takeoff as well, with what
    the anchor came to in as many epochs as are left; the more favourable of the two counts.
    """
    left, weight = trial.config.epochs - epoch, wer_weight(trial, epoch, anchors)
    logs = []
    for anchor in anchors:
        from_start = round(epoch - trial.lost_to_warmup + anchor.lost_to_warmup)
        found = log(anchor.floored_wers[-1]) + _log_ratio(trial, epoch, anchor, from_start, log_most, weight)
        if trial.takeoff and anchor.takeoff and anchor.takeoff < trial.takeoff <= epoch:
            from_takeoff = epoch - trial.takeoff + anchor.takeoff
            then = log(anchor.floored_wers[anchor.place(from_takeoff + left)])
            found = min(found, then + _log_ratio(trial, epoch, anchor, from_takeoff, log_most, weight))
        logs.append(found)
    return sum(logs) / len(logs)


def _log_ratio(trial: History, epoch: int, anchor: History, then: int, log_most: float, weight: float) -> float:
    """How far a trial at `epoch` is behind an anchor at epoch `then`: the logarithms of the ratios of WER and loss, WER
    with this weight.
    """
    here, there = trial.place(epoch), anchor.place(then)
    by_wer = log(trial.floored_wers[here] / anchor.floored_wers[there])
    if weight == 1:
        return by_wer
    by_loss = min(trial.log_losses[here], log_most) - min(anchor.log_losses[there], log_most)
    return weight * by_wer + (1 - weight) * by_loss


def _loss_cap(floors: Floors) -> float:
    return LOSS_CAP * floors.dev_constant_loss if isfinite(floors.dev_constant_loss) else inf


def outlook(trial: History, siblings: Sequence[History], floors: Floors) -> Outlook:
    """Where a trial would end, judged by siblings that took off (at least one).

    The spread begins as `default_spread`; each sibling that ended by itself adds how far it ended from what the other
    ones would have predicted for it at this epoch.
    """
    ranking = Ranking(siblings)
    return _outlook(trial, ranking, ranking.best(), floors)


def _outlook(trial: History, ranking: Ranking, anchors: Sequence[History], floors: Floors) -> Outlook:
    epoch = trial.reports[-1].epoch
    log_most = log(_loss_cap(floors))
    found = _predicted(trial, anchors, epoch, log_most)
    spread = default_spread(epoch / trial.config.epochs)
    finished = ranking.finished_after(epoch)
    squares = 0.0
    if len(finished) > 1:
        first = _first(finished, ANCHORS + 1)  # one more: each is judged by the others
        for sibling in finished:
            others = [s for s in first if s is not sibling][:ANCHORS]
            squares += (log(sibling.floored_wers[-1]) - _predicted(sibling, others, epoch, log_most)) ** 2
        spread = math.sqrt((PRIOR_TRIALS * spread**2 + squares) / (PRIOR_TRIALS + len(finished)))
    return Outlook(exp(found), found, spread)


def _too_slow(trial: History, ranking: Ranking, floors: Floors) -> Decision | None:
    """It will hardly beat the best trial in the epochs left."""
    now, config = trial.reports[-1], trial.config
    if not ranking or trial.best_wer <= (best := ranking.lowest_wer()):
        return None
    anchors = ranking.best()
    weight = wer_weight(trial, now.epoch, anchors)
    if trial.takeoff is None and weight:
        return None  # in the plateau WER alone is no evidence
    seen = _outlook(trial, ranking, anchors, floors)
    chance, least = seen.chance_below(best), LEAST_CHANCE * (1 - now.epoch / config.epochs)
    if chance >= least:
        return None
    # How much lower its prediction would have to be for the least chance.
    short = seen.log_wer - log(max(best, SMALLEST_WER)) - seen.spread * -NormalDist().inv_cdf(least)
    wer, loss = trial.at(now.epoch)
    wers, losses = zip(
        *(a.at(round(now.epoch - trial.lost_to_warmup + a.lost_to_warmup)) for a in anchors), strict=True
    )
    had = f"dev loss {loss:.2f} and best WER {wer:.1%}" if weight < 1 else f"best WER {wer:.1%}"
    theirs = f"{_range(losses, '{:.2f}')} and {_range(wers, '{:.1%}')}" if weight < 1 else _range(wers, "{:.1%}")
    what = "Learns, but too slowly to win" if trial.takeoff else "Would learn too late to win"
    if weight >= 0.5:
        kept = f"best WER of {wer * exp(-short / weight):.1%}"
    else:
        kept = f"dev loss of {min(loss, _loss_cap(floors)) * exp(-short / (1 - weight)):.2f}"
    return Decision(
        "too_slow",
        "too_slow",
        f"{what}: {had} after {now.epoch} of {config.epochs} epochs, where the best "
        f"{counted(len(anchors), 'trial')} had {theirs}; going on as they did it would end near {seen.wer:.0%}, and "
        f"its chance to beat {best:.1%} is {_percent(chance)}, too little for the epochs left.",
        f"A {kept} by then would have kept it.",
        now.epoch,
        {"best_wer": wer, "predicted_wer": seen.wer, "chance": chance} | ({"dev_loss": loss} if isfinite(loss) else {}),
        {"wer_to_beat": best, "spread": seen.spread, "least_chance": least, "wer_weight": weight},
        tuple(sorted(a.number for a in anchors)),
    )


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _percent(chance: float) -> str:
    return "under 0.1 %" if chance < 0.001 else f"{100 * chance:.1f} %"
