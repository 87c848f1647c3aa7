"""What a run is doing, what it came to, and why: pure functions of its epochs and of its corpus's floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from model.findings import Finding, worst_first
from model.symptoms import SYMPTOMS, USED_T, Run, measured
from model.types import EpochReport, TrainingConfig

if TYPE_CHECKING:
    from model.floors import Floors

Phase: TypeAlias = Literal["checking", "plateau", "learning"]
Verdict: TypeAlias = Literal["learned", "never_learned", "collapsed", "too_slow", "stalled", "diverged", "data_fault"]

TAKEOFF_MARGIN = 0.05
"""A run has taken off when its dev WER is at least this much below the best constant sentence's.
On 111 dev sentences two answers that know equally little differ by as much."""

DIVERGED_SHARE = 0.01
"""An epoch with more than this share of non-finite steps is diverged: one bad sequence in a hundred batches is bad
luck, and is skipped; more is a rate that the weights do not bear."""

RELAPSE_EPOCHS = 3
"""A run has collapsed when so many last epochs are back at the constant sentence's WER:
single epochs of learning runs do jump up there."""


def takeoff_epoch(wers: Sequence[float], constant_wer: float) -> int | None:
    """The first epoch (1-based) whose dev WER shows that the input is used, or None.

    Args:
        wers: dev WER of epochs 1, 2, ... (fractions).
        constant_wer: WER of the best constant sentence.
    """
    return next((i for i, wer in enumerate(wers, start=1) if wer <= constant_wer - TAKEOFF_MARGIN), None)


def phase_of(wers: Sequence[float], constant_wer: float) -> Phase:
    """`checking` before the first epoch ends, `plateau` until takeoff, then `learning`."""
    if not wers:
        return "checking"
    return "plateau" if takeoff_epoch(wers, constant_wer) is None else "learning"


def is_diverged(steps: int, skipped: int) -> bool:
    """Whether an epoch of `steps` batches, `skipped` of them non-finite, is diverged."""
    return skipped > DIVERGED_SHARE * steps


def verdict_of(wers: Sequence[float], constant_wer: float) -> Verdict:
    """What a run that ended by itself (epochs done, or out of patience) came to."""
    if takeoff_epoch(wers, constant_wer) is None:
        return "never_learned"
    last = wers[-RELAPSE_EPOCHS:]
    if len(last) == RELAPSE_EPOCHS and all(not wer < constant_wer for wer in last):  # NaN counts as lost
        return "collapsed"
    return "learned"


def is_best(wer: float, before: Sequence[float]) -> bool:
    """Whether `wer` is lower than every finite WER before it; NaN never is."""
    best = best_epoch(before)
    return wer < best[1] if best else math.isfinite(wer)


def best_epoch(wers: Sequence[float]) -> tuple[int, float] | None:
    """Epoch (1-based) and value of the lowest finite WER, the earlier one of equals; None if there is none."""
    finite = [(wer, epoch) for epoch, wer in enumerate(wers, start=1) if math.isfinite(wer)]
    if not finite:
        return None
    wer, epoch = min(finite)
    return epoch, wer


@dataclass(frozen=True)
class Judgement:
    """What a run is doing, what it came to if it is over, and what was found."""

    phase: Phase
    takeoff_epoch: int | None
    verdict: Verdict | None
    """None while the run goes on."""
    findings: tuple[Finding, ...]
    """Worst first."""
    sentence: str
    """The answer in a sentence or two, with the numbers."""


def judge(
    reports: Sequence[EpochReport],
    config: TrainingConfig,
    floors: Floors,
    *,
    ended: bool = False,
    dev_sequences: int | None = None,
    known: Sequence[Finding] = (),
) -> Judgement:
    """Judge a run by its epochs.

    Args:
        reports: epochs 1, 2, ..., in order.
        floors: of its corpus, at its output stride.
        ended: whether it is over; only then it has a verdict.
        dev_sequences: sequences of dev; without it a collapse onto a single gloss is not looked for.
        known: what speaks against its corpus, found before it began.
    """
    wers = [report.wer for report in reports]
    takeoff = takeoff_epoch(wers, floors.constant_wer)
    findings = run_findings(reports, config, floors, dev_sequences=dev_sequences)
    verdict: Verdict | None = None
    if ended:
        over = any(is_diverged(r.steps_in_epoch, r.skipped_steps) for r in reports[-1:])
        verdict = "diverged" if over else verdict_of(wers, floors.constant_wer)
    phase = phase_of(wers, floors.constant_wer)
    sentence = _sentence(reports, floors, takeoff, verdict, findings, known)
    return Judgement(phase, takeoff, verdict, tuple(worst_first([*known, *findings])), sentence)


def run_findings(
    reports: Sequence[EpochReport], config: TrainingConfig, floors: Floors, *, dev_sequences: int | None = None
) -> list[Finding]:
    """What a run's epochs tell, worst first. Arguments as for `judge`."""
    if not reports:
        return []
    run = Run(reports, config, floors, takeoff_epoch([r.wer for r in reports], floors.constant_wer), dev_sequences)
    found = [_skipped(reports), *(symptom(run) for symptom in SYMPTOMS)]
    return worst_first(finding for finding in found if finding is not None)


def _skipped(reports: Sequence[EpochReport]) -> Finding | None:
    share, worst = max(
        ((r.skipped_steps / r.steps_in_epoch, r) for r in reports if r.steps_in_epoch),
        key=lambda each: each[0],
        default=(0.0, reports[0]),
    )
    if not share:
        return None
    over = is_diverged(worst.steps_in_epoch, worst.skipped_steps)
    return Finding(
        "diverged" if over else "skipped_steps",
        "fatal" if over else "info",
        share,
        DIVERGED_SHARE,
        f"In epoch {worst.epoch} loss or gradient was not finite in {worst.skipped_steps} of {worst.steps_in_epoch} "
        f"steps, at learning rate {worst.metrics.get('optim/lr', math.nan):.2g}"
        + (f" ({worst.not_finite})." if worst.not_finite else "."),
        "Lower the learning rate, or warm up. If a few sequences cause it, look at their features for outliers."
        if over
        else "Nothing need be done: a skipped step changes no weight.",
        f"At most {DIVERGED_SHARE:.0%} of an epoch's steps not finite. Large gradients are no evidence: norms of 100 "
        "to 350 are normal in the first 50 steps."
        if over
        else "No skipped step.",
    )


def _sentence(
    reports: Sequence[EpochReport],
    floors: Floors,
    takeoff: int | None,
    verdict: Verdict | None,
    findings: Sequence[Finding],
    known: Sequence[Finding],
) -> str:
    if not reports:
        return "No epoch has ended yet: there is nothing to judge."
    last = reports[-1]
    best = best_epoch([report.wer for report in reports])
    score = f"best dev WER {best[1]:.1%} at epoch {best[0]}" if best else "no finite dev WER"
    floor = f"the best constant sentence scores {floors.constant_wer:.1%}"
    fatal, warnings = ([f for f in findings if f.severity == severity] for severity in ("fatal", "warning"))
    faults = [f" The check of its corpus found {f.code}: {f.evidence}" for f in known if f.severity == "fatal"]
    corpus = faults[0] if faults else ""
    never = f"Never learned within its {counted(last.epoch, 'epoch')}: {score} ({floor})"
    if fatal:
        what = (
            never
            if verdict == "never_learned"
            else f"{fatal[0].code.replace('_', ' ').capitalize()}, as of epoch {last.epoch}"
        )
        return f"{what}. {fatal[0].evidence}{corpus}"
    if takeoff is not None:
        verb = {"collapsed": "Learned and lost it again", "learned": "Learned"}.get(verdict or "", "Learning")
        but = corpus or (f" But: {warnings[0].evidence}" if warnings else "")
        return f"{verb}: took off at epoch {takeoff}, {score} of {last.epoch} ({floor}).{but}"
    what = never if verdict else f"In the plateau at epoch {last.epoch}, {score} ({floor})"
    if corpus or warnings:
        return f"{what}.{corpus or f' {warnings[0].evidence}'}"
    if t := next((f.number for f in findings if f.code == "input_used"), None):
        used = f"its output depends on the input (swap gap t = {t:.1f}, above {USED_T:g}), which WER follows"
        return f"{what}; but {used} some epochs later." if verdict else f"{what}: {used} some epochs later."
    if not verdict:
        return f"{what}: nothing speaks against it, and WER is no evidence before takeoff."
    t = measured(last, "probe/swap_t")
    gap = f" (swap gap t = {t:.1f}, and {USED_T:g} would show that the input is used)" if math.isfinite(t) else ""
    return f"{what}; nothing shows that it could not have in more epochs{gap}."


def counted(number: int, noun: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
