"""The learning-rate range test: one short run whose rate rises with every step, and what that says about rates.

Smith 2015 (arXiv 1506.01186) takes the rates between which the loss falls. With CTC that names the wrong ones: the loss
falls steepest while the network learns how often each gloss occurs, which needs no input and ends at the loss of the
best constant output (F0). What counts is when the input is used there, and where the loss leaves for good again.

The rate rises exponentially from one that hardly moves a weight, so the ramp is its own warm-up; the config's would
hold the rate below what is written beside it. Batch size, clipping, dropout and the order of the data are the config's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.findings import finite
from model.schedule import learning_rate_at
from model.symptoms import HARDLY_LOSS, PLATEAU_LOSS, SLOW_LOSS, USED_T
from model.types import TrainingConfig

if TYPE_CHECKING:
    from model.corpus.data import Corpus
    from model.ctc import CTCTrainer
    from model.floors import Floors

LOW, HIGH = 1e-4, 1.0
"""Rates of the first and the last step. Ramps from 1e-5 showed the same edges, and nothing before 1e-4."""

STEPS = 320
"""Updates of a whole ramp: eighty for each tenfold rise of the rate. Half as many again, or a quarter less, show the
same edges within a factor of two, but with less a ramp missed now and then that the input was used. A ramp that has
diverged is ended.
"""

FEWEST_STEPS = 200
"""A shorter ramp passes the useful rates before the network can have learned anything."""

LOOKS = 33
"""Looks along a whole ramp: eight for each tenfold rise of the rate, and the first one."""

FAR_LOSS = 4.0
"""While the smoothed train loss is above this multiple of F0 dev decides nothing; nor once the input was used."""

SPARE_LOOKS = 3
"""Where dev decides nothing one look in so many measures it all the same, for the picture."""

SMOOTHING_SHARE = 1 / 25
"""The train loss is averaged over about this share of the steps, in which the rate rises by not quite half."""

LEARNED_LOSS = 0.9
"""Where dev has too few sequences for a swap gap, a smoothed train loss below this multiple of F0 says that the input
is used; on generated signing, recorded signs and speech it came at twice the cumulative learning rate of the gap."""

TAKEOFF_FACTOR = 2.0
"""Runs at one rate took off, which is when their WER moves, at 2 to 5 times the cumulative learning rate at which the
ramp's swap gap showed that the input is used. That spread of 2.5 is left to slow starters: the earliest counts."""

TAKEOFF_BY = 0.5
"""A rate is worth trying if its run may have taken off by this share of its updates: after that it has to learn."""

LOST_RISE = 1.15
"""The train loss has left its minimum once it is this much above it, and above F0, for good. F0 decides, but for a ramp
that hardly came below it: there the loss wavers around F0 long before it leaves."""

HOPELESS_RISE = 1.5
"""The ramp ends when its loss is so much above that: at still higher rates it does not come back. Nor does it, ..."""

LOST_RATES = 3.0
"""... once the input was used, from a loss that stayed above that while the rate rose by this factor."""

NOT_FINITE_SHARE = 0.1
"""A rate is too high at which more than this share of the steps since the last look, and more than one, was not finite:
a single one is bad luck."""

SAFETY = 4.0
"""The highest rate proposed is so much below the edge of divergence: the smoothed loss sees that late, and a run at one
rate has to bear it for its whole length, not for a few steps."""

SUGGESTED = 20.0
"""... and the rate to begin with so much below it: the best rates of the recorded runs were 10 to 60 times below."""


@dataclass(frozen=True)
class Look:
    """What the ramp showed after one of its steps. What was not measured, or is not finite, is NaN."""

    step: int
    """Updates so far."""
    rate: float
    """Learning rate of that step."""
    lr_time: float
    """Learning rate summed over the updates so far."""
    train_loss: float
    """Nats per gloss, smoothed over the last batches, dropout on."""
    dev_loss: float = math.nan
    """Nats per gloss of a fixed sample of dev, the same sequences each time, in eval mode."""
    time_spread: float = math.nan
    """Of the same sample (nats)."""
    swap_gap: float = math.nan
    """Of the same sample (nats per gloss); measured from where the loss has come down to about F0."""
    swap_t: float = math.nan
    """Its paired t; NaN with too few sequences as well."""
    skipped: int = 0
    """Updates since the look before whose loss or gradient was not finite."""


@dataclass(frozen=True)
class Edges:
    """Between which learning rates a network learns on a corpus."""

    used_lr_time: float | None
    """Cumulative learning rate at which the ramp used its input; None if it never did."""
    low: float | None
    """Edge of not learning: below it a run of the config's epochs can hardly take off in time."""
    high: float | None
    """Edge of divergence: the last rate before the loss left its minimum for good; None if it never did."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test showed."""

    looks: tuple[Look, ...]
    steps: int
    """Updates that the whole ramp would have had."""
    seconds: float
    edges: Edges
    low: float | None
    """Lowest rate proposed; None where the ramp says nothing about low ones."""
    high: float | None
    """Highest rate proposed; None where it did not diverge."""
    suggested: float | None
    """A rate to begin with; None if the ramp never used its input."""
    constant_loss: float
    """F0: CTC loss on train of the best constant output (nats per gloss)."""
    dev_constant_loss: float
    """The same on dev."""
    uniform_loss: float
    """CTC loss on dev where every class is equally likely (nats per gloss)."""
    sentences: tuple[str, ...]
    """What it came to, for a person."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; what is not finite is None."""
        whole: dict[str, Any] = finite(asdict(self))
        return whole


def range_test(
    config: TrainingConfig,
    corpus: Corpus,
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> RangeTest:
    """Train one fresh network with a rising learning rate. The same arguments give the same result (on one CPU).

    Args:
        low, high: learning rate of the first and of the last step.
        steps: updates of the whole ramp; it ends early once it has diverged.
        should_stop: read before every batch.
        progress: called after each step with the steps done and their number.

    Raises:
        ValueError: `low` is not below `high`, or there are too few steps.
        CorpusError: no target fits the output stride.
        Stopped: `should_stop()` was true; nothing is kept.
    """
    if not 0 < low < high:
        raise ValueError(f"rates from {low:g} to {high:g}: the first must be above 0, and the last above the first")
    if steps < FEWEST_STEPS:
        raise ValueError(f"steps {steps}: a ramp of fewer than {FEWEST_STEPS} says nothing; give it more")
    from model.ctc import CTCTrainer
    from model.floors import floors

    began = time.perf_counter()
    trainer, known = CTCTrainer(config, corpus), floors(corpus, config.output_stride)
    rates = [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
    looks = _ramp(trainer, known, rates, should_stop, progress)
    edges = edges_of(looks, known, lr_time_until(config, len(trainer.groups(1)), TAKEOFF_BY))
    return concluded(looks, steps, time.perf_counter() - began, edges, known, config)


def _ramp(
    trainer: CTCTrainer,
    known: Floors,
    rates: Sequence[float],
    should_stop: Callable[[], bool],
    progress: Callable[[int, int], None],
) -> list[Look]:
    steps = len(rates)
    keep = 1 - 1 / (SMOOTHING_SHARE * steps)
    due = {round(1 + i * (steps - 1) / (LOOKS - 1)) for i in range(LOOKS)}
    looks: list[Look] = []
    loss, glosses, skipped = 0.0, 0.0, 0
    for step, (rate, group) in enumerate(zip(rates, _groups(trainer), strict=False), start=1):
        update = trainer.update(group, rate, should_stop)
        if update is not None and update.finite:
            loss, glosses = keep * loss + update.loss, keep * glosses + update.glosses
        elif update is not None:
            skipped += 1
        if step in due:
            look = Look(step, rate, trainer.lr_time, loss / glosses if glosses else math.nan, skipped=skipped)
            if len(looks) % SPARE_LOOKS == 0 or is_telling(look, looks, known):
                look = _on_dev(look, trainer, known, should_stop)
            looks.append(look)
            skipped = 0
            if is_hopeless(looks, known):
                break
        progress(step, steps)
    return looks


def _groups(trainer: CTCTrainer) -> Iterator[list[NDArray[np.int64]]]:
    """The batches of one update after another, epoch after epoch."""
    for epoch in count(1):
        trainer.begin(epoch)
        yield from trainer.groups(epoch)


def is_telling(look: Look, before: Sequence[Look], known: Floors) -> bool:
    """Whether dev may show at this look, for the first time, that the input is used."""
    far = look.train_loss > FAR_LOSS * known.constant_loss
    return not far and _used_lr_time(before, known)[0] is None


def _on_dev(look: Look, trainer: CTCTrainer, known: Floors, should_stop: Callable[[], bool]) -> Look:
    """The look with what the sample of dev shows: the sequences that the swap gap compares."""
    from model.probes import probed_rows, swap_gap

    dev, stride = trainer.corpus.dev, trainer.config.output_stride
    rows = probed_rows(dev, stride)
    sample = trainer.evaluate(dev, should_stop, rows)
    gap, t = math.nan, math.nan
    # Above that an untrained network may show a t of 7, which is gone again when its loss has come down.
    if sample.finite and sample.loss <= SLOW_LOSS * known.dev_constant_loss:
        own = np.full(len(dev), np.nan)
        own[rows] = sample.losses
        found = swap_gap(dev, stride, own, trainer.losses_of(dev, should_stop))
        gap, t = found.gap, found.t
    trainer.model.train()
    return replace(look, dev_loss=sample.loss, time_spread=sample.spread.time, swap_gap=gap, swap_t=t)


def lost_above(looks: Sequence[Look], known: Floors) -> float:
    """The train loss above which a ramp has lost what it had learned (nats per gloss)."""
    seen = [look.train_loss for look in looks if math.isfinite(look.train_loss)]
    return max(known.constant_loss, LOST_RISE * min(seen, default=0.0))


def _breaks(looks: Sequence[Look], at: int) -> bool:
    """Whether too many of the steps before this look were not finite."""
    steps = looks[at].step - (looks[at - 1].step if at else 0)
    return looks[at].skipped > max(1, NOT_FINITE_SHARE * steps)


def is_hopeless(looks: Sequence[Look], known: Floors) -> bool:
    """Whether still higher rates would show nothing more."""
    lost = lost_above(looks, known)
    if looks[-1].train_loss > HOPELESS_RISE * lost or _breaks(looks, len(looks) - 1):
        return True
    last = max((look.rate for look in looks if not look.train_loss > lost), default=math.inf)
    return looks[-1].rate > LOST_RATES * last and _used_lr_time(looks, known)[0] is not None


def edges_of(looks: Sequence[Look], known: Floors, lr_time_at_one: float) -> Edges:
    """Read a ramp.

    Args:
        looks: by step; at least one.
        known: what knowing nothing scores.
        lr_time_at_one: cumulative learning rate of a run at rate 1 by the time it should have taken off.
    """
    broken = next((at for at in range(len(looks)) if _breaks(looks, at)), len(looks))
    lost = lost_above(looks[:broken], known)
    last = max((at for at in range(broken) if looks[at].train_loss <= lost), default=0)
    high = looks[last].rate if last + 1 < len(looks) else None
    used, factor = _used_lr_time(looks[: last + 1], known)
    return Edges(used, None if used is None else factor * used / lr_time_at_one, high)


def _used_lr_time(looks: Sequence[Look], known: Floors) -> tuple[float | None, float]:
    """The cumulative learning rate at which these looks first show that the input is used, and the multiple of it that
    a takeoff needs at least.
    """
    if any(math.isfinite(look.swap_t) for look in looks):
        plateau = (1 + PLATEAU_LOSS) * known.dev_constant_loss
        for now, after in pairwise(looks):  # two in a row: among forty, one is above by chance now and then
            if now.dev_loss <= plateau and now.swap_t > USED_T and after.swap_t > USED_T:
                return now.lr_time, TAKEOFF_FACTOR
        return None, TAKEOFF_FACTOR
    # Too few sequences for a t. What is only learned by heart does not bring dev below its floor.
    on_dev = math.inf
    for look in looks:
        on_dev = min(on_dev, look.dev_loss)
        if look.train_loss < LEARNED_LOSS * known.constant_loss and on_dev < HARDLY_LOSS * known.dev_constant_loss:
            return look.lr_time, 1.0
    return None, 1.0


def lr_time_until(config: TrainingConfig, updates_per_epoch: int, share: float) -> float:
    """Cumulative learning rate of a run of this config at rate 1, after that share of its updates.

    Its warm-up and schedule count; `plateau` as if it never cut.
    """
    updates = max(1, round(share * config.epochs * updates_per_epoch))
    return sum(learning_rate_at(u, updates_per_epoch, [], config) for u in range(updates)) / config.learning_rate


def concluded(
    looks: Sequence[Look], steps: int, seconds: float, edges: Edges, known: Floors, config: TrainingConfig
) -> RangeTest:
    """From the edges to a proposal, in numbers and in words."""
    last, lowest = (
        looks[-1],
        min((look.train_loss for look in looks if math.isfinite(look.train_loss)), default=math.nan),
    )
    top = last.rate if edges.high is None else edges.high
    # Of a ramp that never learned anything, only what diverged is ruled out.
    low, high = edges.low, edges.high and edges.high / (SAFETY if edges.low else 1)
    said = [
        f"The learning rate rose from {looks[0].rate:.1e} to {last.rate:.1e} in {last.step} of {steps} steps "
        f"({seconds:.0f} s)."
    ]
    if edges.high is None:
        said.append(f"It did not diverge: the train loss stayed near its minimum of {lowest:.2f} nats per gloss.")
    else:
        said.append(
            f"It diverges above {edges.high:.1e}: from there on the train loss stayed above that of the best constant "
            f"output ({known.constant_loss:.2f} nats per gloss) or was not finite, after a minimum of {lowest:.2f}."
        )
    if edges.low is None or edges.used_lr_time is None:
        t = max((look.swap_t for look in looks if math.isfinite(look.swap_t)), default=math.nan)
        swap = f", swap gap t {t:.1f} at most where {USED_T:g} is asked for" if math.isfinite(t) else ""
        said.append(
            f"It never used its input (train loss {lowest:.2f} nats per gloss at least{swap}), so it says nothing "
            "about low rates: more steps may, or data and labels do not belong together."
        )
    else:
        said.append(
            f"It used its input from a cumulative learning rate of {edges.used_lr_time:.2g} on. At a rate below "
            f"{edges.low:.1e} a run of {config.epochs} epochs needs more than half of them before it can take off."
        )
    suggested = None if low is None else max(low, top / SUGGESTED)
    if low is not None and high is not None and low >= high:
        said.append("That leaves no rate between the two edges: give the runs more epochs.")
        low = high = suggested = None
    return RangeTest(
        looks=tuple(looks),
        steps=steps,
        seconds=seconds,
        edges=edges,
        low=low,
        high=high,
        suggested=suggested,
        constant_loss=known.constant_loss,
        dev_constant_loss=known.dev_constant_loss,
        uniform_loss=known.uniform_loss,
        sentences=tuple(said),
    )
