"""When a sweep in which nothing takes off should be looked at by a person, and what is likely the cause. Pure.

While no trial has taken off there is nothing to compare one with, so no rule stops a trial in the plateau: a sweep
whose rates or data are wrong would spend its whole budget there. Told apart are rates too low, rates too high, and
data or labels, of which no rate makes anything.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from model.diagnosis import counted, is_diverged, run_findings
from model.findings import Finding
from model.floors import Floors
from model.symptoms import (
    LARGE_EPS,
    NOISE,
    PLATEAU_LOSS,
    SLOW_LOSS,
    SLOW_STEPS,
    UNUSED_PROBES,
    UNUSED_T,
    USED_T,
    Run,
    measured,
)
from model.types import FEWEST_SEQUENCES, EpochReport
from sweeps.pruning import History

Cause: TypeAlias = Literal["rates_too_low", "rates_too_high", "data_or_labels", "undecided"]

TRIALS_SHARE = 1 / 3
"""A sweep alarms when this share of its trials had their chance and none took off, ..."""

MOST_TRIALS = 8
"""... or so many of them: in a usual space (1e-5 to 2e-2) more than half of the trials take off, so that eight in a row
do not in fewer than one sweep of a hundred."""

FEWEST_TRIALS = 3
"""... but never fewer: a first trial may be there to show what does not work."""

CLEAR_TRIALS = 3
"""It alarms earlier where so many trials diverged, or show at rates of all sizes that the input is not used."""

RATE_SPAN = 10.0
"""Rates that differ by this factor: what is the same at both is not for want, or excess, of learning rate."""

LIVE_LR_TIME = 0.3
"""Live runs had taken off by so much cumulative learning rate (its sum over the updates): 0.04 to 0.34 over five
corpora, at peak rates up to 1e-3. A trial that had less may only want more."""

LIVE_PROBES = 2
"""A trial whose last so many swap gaps are clear uses its input. One alone may be chance; and while the loss is yet
above that of knowing nothing, a few in a row were, in runs that then came to nothing."""

BOUNDS_SPAN = 30.0
"""Where rates were too low or too high the bounds proposed span this factor: what learns spans less than two decades,
..."""

AMPLE_SHARE = 3.0
"""... and where rates were far too low, up to a rate with this multiple of LIVE_LR_TIME: the best rates have more."""

EDGE_FACTOR = 2.0
"""... and they stay this factor below a rate that diverged: where exactly the edge lies depends on the seed."""

NARROWEST = 3.0
"""Bounds closer than this are not proposed: there is no room between what is too low and what diverges."""

HIGHEST_RATE = 10.0
"""What the trainer takes at most."""

BROKEN = frozenset(
    {
        "missing_log_softmax",
        "wrong_weights",
        "evaluator_failed",
        "infeasible_targets",
        "input_not_used",
        "input_hardly_used",
        "time_collapsed",
        "step_throttled",
    }
)
"""Findings, fatal ones and warnings, that no learning rate mends."""


@dataclass(frozen=True)
class Alarm:
    """Why a sweep in which nothing takes off should not go on as it is."""

    cause: Cause
    sentence: str
    """What was seen, with the numbers."""
    advice: str
    """What to do about it."""
    numbers: dict[str, float]
    """What was measured, by name; finite."""
    trials: tuple[int, ...]
    """Numbers of the trials it was judged by, in ascending order."""
    proposal: dict[str, float] | None = field(default=None)
    """`low` and `high` of the learning rate that would be better, where that is known."""

    def as_json(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "trials": list(self.trials)}


def alarm(
    histories: Sequence[History], floors: Floors, planned_trials: int, dev_sequences: int | None = None
) -> Alarm | None:
    """Whether nothing takes off in a sweep, although by now something should have; None while that is not so.

    A trial had its chance when it diverged, or when it ended after SLOW_STEPS steps: with fewer no rate shows anything.
    A trial under way that uses its input is waited for.

    Args:
        histories: the sweep's trials, but for failed ones that had not taken off.
        floors: what knowing nothing scores on its corpus.
        planned_trials: of its budget.
        dev_sequences: sequences of dev, where known.
    """
    if any(history.takeoff for history in histories):
        return None
    trials = [
        _Trial(
            history, floors, tuple(run_findings(history.reports, history.config, floors, dev_sequences=dev_sequences))
        )
        for history in sorted(histories, key=lambda history: history.number)
        if history.reports
    ]
    if any(trial.live and not trial.over for trial in trials):
        return None
    judged = [trial for trial in trials if trial.had_its_chance]
    if len(judged) >= max(FEWEST_TRIALS, min(MOST_TRIALS, math.ceil(TRIALS_SHARE * planned_trials))):
        return _judge(judged, dev_sequences)
    broken = [trial for trial in trials if trial.broken and trial.broken.severity == "fatal"]
    if len(broken) >= CLEAR_TRIALS and _span(broken) >= RATE_SPAN and not any(trial.live for trial in trials):
        return _data_or_labels(broken)
    diverged = [trial for trial in trials if trial.diverged]
    if len(diverged) >= CLEAR_TRIALS and all(trial.over for trial in trials):
        return _rates_too_high(judged, diverged)
    return None


@dataclass(frozen=True)
class _Trial:
    """A trial in the plateau, and what its epochs say. At least one epoch."""

    history: History
    floors: Floors
    findings: tuple[Finding, ...]

    @property
    def last(self) -> EpochReport:
        return self.history.reports[-1]

    @property
    def rate(self) -> float:
        return self.history.config.learning_rate

    @property
    def diverged(self) -> bool:
        return is_diverged(self.last.steps_in_epoch, self.last.skipped_steps)

    @property
    def over(self) -> bool:
        return self.history.ended or self.diverged

    @property
    def had_its_chance(self) -> bool:
        return self.diverged or (self.history.ended and self.last.step >= SLOW_STEPS)

    @cached_property
    def run(self) -> Run:
        return Run(self.history.reports, self.history.config, self.floors, None)

    @cached_property
    def loss_ratio(self) -> float:
        """Of the last epoch, as a multiple of knowing nothing's; NaN where no loss is reported."""
        return self.run.loss_ratio(self.last)

    @cached_property
    def probes(self) -> list[float]:
        """The t of its swap gaps."""
        return [t for _, t in self.run.values("probe/swap_t")]

    @property
    def throttled(self) -> Finding | None:
        """By adam_eps: each step is as short as with a far lower rate."""
        large = self.history.config.adam_eps > LARGE_EPS
        return next((f for f in self.findings if f.code == "step_throttled" and large), None)

    @property
    def broken(self) -> Finding | None:
        """What no learning rate mends."""
        found = (f for f in self.findings if f.code in BROKEN and f.severity != "info" and f is not self.throttled)
        return next(found, None)

    @property
    def too_high(self) -> bool:
        """Its rate: steps that were not finite at the end, or losses that rose above a uniform output's."""
        # Dev's alone may do so in eval mode, where a network reads nothing of its input.
        losses = [self._rose(key) for key in ("train/loss", "dev/loss") if math.isfinite(measured(self.last, key))]
        return not self.broken and (bool(self.last.skipped_steps) or (bool(losses) and all(losses)))

    def _rose(self, key: str) -> bool:
        loss, lowest = measured(self.last, key), min(value for _, value in self.run.values(key))
        return loss > self.floors.uniform_loss and loss > NOISE * lowest

    @property
    def live(self) -> bool:
        """It uses its input, though WER does not show it yet."""
        recent = self.probes[-LIVE_PROBES:]
        clear = len(recent) == LIVE_PROBES and min(recent) > USED_T
        return clear and self.loss_ratio <= 1 + PLATEAU_LOSS and not self.broken

    @property
    def flat(self) -> bool:
        """It had learning rate enough, its loss is that of knowing nothing, and its input is not used; or something is
        broken.
        """
        recent = self.probes[-UNUSED_PROBES:]
        unused = len(recent) == UNUSED_PROBES and max(map(abs, recent)) <= UNUSED_T
        nothing = unused and self.loss_ratio <= 1 + PLATEAU_LOSS and self.last.lr_time >= LIVE_LR_TIME
        return bool(self.broken) or (nothing and not self.too_high and not self.throttled)

    @property
    def too_low(self) -> bool:
        """Its rate, for its epochs."""
        slow = self.live or self.throttled or any(f.code == "learning_rate_too_low" for f in self.findings)
        return not (self.too_high or self.flat) and (bool(slow) or 0 < self.last.lr_time < LIVE_LR_TIME)


def _judge(judged: Sequence[_Trial], dev_sequences: int | None) -> Alarm:
    """The likely cause, once enough trials have had their chance."""
    high = [trial for trial in judged if trial.too_high]
    low = [trial for trial in judged if trial.too_low]
    flat = [trial for trial in judged if trial.flat]
    if 2 * len(high) > len(judged):
        return _rates_too_high(judged, high)
    if _span(flat) >= RATE_SPAN and len(flat) > sum(trial.live for trial in judged):
        return _data_or_labels(flat)
    if 2 * (len(high) + len(low)) > len(judged):
        return _rates_too_low(judged, low) if len(low) > len(high) else _rates_too_high(judged, high)
    return _undecided(judged, flat, dev_sequences)


NOTHING = "Nothing has taken off: "


def _rates_too_low(judged: Sequence[_Trial], low: Sequence[_Trial]) -> Alarm:
    most = max(trial.last.lr_time for trial in low)
    slow = [trial for trial in low if trial.loss_ratio > SLOW_LOSS]
    live = [trial for trial in low if trial.live]
    throttled = [trial.throttled for trial in low if trial.throttled]
    floor = max(trial.rate for trial in low)
    # Above it something else is wrong: a rate that diverges, or leads nowhere.
    edge = min((trial.rate for trial in judged if trial.rate > floor and not trial.too_low), default=math.inf)
    missing = LIVE_LR_TIME / most if most else 1.0
    high = min(floor * max(BOUNDS_SPAN, AMPLE_SHARE * missing), edge / EDGE_FACTOR)
    proposal = _bounds(max(floor, high / BOUNDS_SPAN), high)
    sentence = (
        f"{NOTHING}in {len(low)} of {len(judged)} trials, at learning rates from {_lowest(low):.1e} to {floor:.1e}, "
        f"the rate summed over all updates came to {most:.2g} at most, where live runs needed up to {LIVE_LR_TIME:g}"
    )
    if slow:
        sentence += f"; {len(slow)} had not even come down to {SLOW_LOSS:g} times the loss of knowing nothing"
    if live:
        sentence += f"; {len(live)} had begun to use the input (swap gap t above {USED_T:g})"
    if 2 * len(throttled) > len(low):  # a higher rate repairs little of that
        return _alarm("rates_too_low", f"{sentence}. {throttled[0].evidence}", throttled[0].advice, judged)
    advice = f"Raise the learning rate: {_propose(proposal)}" if proposal else "Give the trials more epochs."
    return _alarm("rates_too_low", f"{sentence}: the rates are too low for these epochs.", advice, judged, proposal)


def _rates_too_high(judged: Sequence[_Trial], high: Sequence[_Trial]) -> Alarm:
    if _span(high) >= RATE_SPAN and _bore_its_rate(min(high, key=lambda trial: trial.rate)):
        return _not_finite_at_any_rate(judged, high)
    edge = _lowest(high)
    proposal = _bounds(edge / EDGE_FACTOR / BOUNDS_SPAN, edge / EDGE_FACTOR)
    diverged = sum(trial.diverged for trial in high)
    sentence = (
        f"{NOTHING}{len(high)} of {len(judged)} trials, at learning rates from {edge:.1e} to "
        f"{max(trial.rate for trial in high):.1e}, diverged ({diverged}) or ended with a loss above that of a uniform "
        "output: the rates are too high."
    )
    advice = (
        f"Lower the learning rate: {_propose(proposal)} If it diverges there as well, run `python -m model check`: "
        "features with outliers do so at any rate."
    )
    return _alarm("rates_too_high", sentence, advice, judged, proposal)


def _bore_its_rate(trial: _Trial) -> bool:
    """Whether a trial that diverged had a loss that came down all the same: a few of its steps were not finite."""
    return trial.diverged and trial.loss_ratio <= SLOW_LOSS


def _not_finite_at_any_rate(judged: Sequence[_Trial], high: Sequence[_Trial]) -> Alarm:
    slowest = min(high, key=lambda trial: trial.rate)
    sentence = (
        f"{NOTHING}{len(high)} of {len(judged)} trials diverged, at learning rates from {slowest.rate:.1e} to "
        f"{max(trial.rate for trial in high):.1e}; at the lowest the loss had come down to {slowest.loss_ratio:.2f} "
        "times that of knowing nothing: some sequences are not finite at any rate."
    )
    advice = "Run `python -m model check` on the corpus: features with outliers or NaN make steps not finite."
    return _alarm("data_or_labels", sentence, advice, judged)


def _data_or_labels(flat: Sequence[_Trial]) -> Alarm:
    rates = f"at learning rates from {_lowest(flat):.1e} to {max(trial.rate for trial in flat):.1e}"
    findings = {trial.broken.code: trial.broken for trial in flat if trial.broken}
    common = Counter(trial.broken.code for trial in flat if trial.broken).most_common(1)
    advice = (
        "Run `python -m model check` on the corpus, then `python -m model overfit`: features that say nothing, labels "
        "of other sequences, or a model that does not read its input."
    )
    if common:
        code, count = common[0]
        sentence = f"{count} of {len(flat)} trials, {rates}, show {code}. {findings[code].evidence}"
        if code != "input_not_used":
            advice = f"{findings[code].advice} {advice}"
    else:
        worst = max(abs(t) for trial in flat for t in trial.probes[-UNUSED_PROBES:])
        sentence = (
            f"{len(flat)} trials, {rates}, have the loss of knowing nothing "
            f"({max(trial.loss_ratio for trial in flat):.2f} times it at most), and it is the same with the features "
            f"of another sequence (swap gap |t| at most {worst:.1f}): it is the data or the labels, as no rate changes "
            "it."
        )
    return _alarm("data_or_labels", NOTHING + sentence, advice, flat)


def _undecided(judged: Sequence[_Trial], flat: Sequence[_Trial], dev_sequences: int | None) -> Alarm:
    tried = f"{counted(len(judged), 'trial')} at learning rates from {_lowest(judged):.1e} to " + (
        f"{max(trial.rate for trial in judged):.1e}"
    )
    if not any(trial.probes for trial in judged):
        few = dev_sequences is not None and dev_sequences < FEWEST_SEQUENCES
        missing = f"dev has {dev_sequences} sequences" if few else "no swap gap is reported"
        why = f"whether the input is used cannot be told, as {missing}"
        advice = (
            f"What would decide it: a dev split of {FEWEST_SEQUENCES} sequences or more, and `python -m model "
            "overfit`, which needs none."
        )
    elif flat and _span(flat) < RATE_SPAN:
        shown = {f"show {trial.broken.code}" if trial.broken else "do not use their input" for trial in flat}
        why = (
            f"{len(flat)} of them {' or '.join(sorted(shown))}, but at rates that differ by a factor of "
            f"{_span(flat):.1f} alone"
        )
        advice = (
            f"What would decide it: trials at rates that span a factor of {RATE_SPAN:g}; widen space.learning_rate. "
            "`python -m model check` and `python -m model overfit` tell a fault of data or model."
        )
    else:
        why = "neither their rates, nor their losses, nor the swap gap point to one"
        advice = "What would decide it: `python -m model check`, then `python -m model overfit`; or more epochs."
    return _alarm("undecided", f"{NOTHING}{tried}; the cause is not clear: {why}.", advice, judged)


def _alarm(
    cause: Cause, sentence: str, advice: str, trials: Sequence[_Trial], proposal: dict[str, float] | None = None
) -> Alarm:
    numbers = {
        "trials": len(trials),
        "diverged": sum(trial.diverged for trial in trials),
        "too_high": sum(trial.too_high for trial in trials),
        "too_low": sum(trial.too_low for trial in trials),
        "flat": sum(trial.flat for trial in trials),
        "live": sum(trial.live for trial in trials),
        "lowest_rate": _lowest(trials),
        "highest_rate": max(trial.rate for trial in trials),
        "most_lr_time": max(trial.last.lr_time for trial in trials),
        "least_loss_ratio": min((t.loss_ratio for t in trials if math.isfinite(t.loss_ratio)), default=math.nan),
        "most_swap_t": max((trial.probes[-1] for trial in trials if trial.probes), default=math.nan),
    }
    finite = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
    return Alarm(cause, sentence, advice, finite, tuple(trial.history.number for trial in trials), proposal)


def _lowest(trials: Sequence[_Trial]) -> float:
    return min(trial.rate for trial in trials)


def _span(trials: Sequence[_Trial]) -> float:
    """The factor by which their rates differ; 0 without a trial."""
    return max(trial.rate for trial in trials) / _lowest(trials) if trials else 0.0


def _bounds(low: float, high: float) -> dict[str, float] | None:
    """Bounds of the learning rate to two digits; None where there is no room between them."""
    high = min(high, HIGHEST_RATE)
    return {"low": float(f"{low:.2g}"), "high": float(f"{high:.2g}")} if high >= NARROWEST * low else None


def _propose(bounds: dict[str, float] | None) -> str:
    if bounds is None:
        return "by hand, in space.learning_rate."
    return f"`--accept-proposal` goes on with rates from {bounds['low']:.2g} to {bounds['high']:.2g}."
