"""What the epochs of a run tell about it: one pure function a finding, with its threshold and why.

A metric that was not measured gives no finding. In the plateau WER, loss and spread are no evidence against a run: a
healthy slow starter looks the same. What calls it dead there is the swap gap, after more training than takeoff needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from model.findings import Finding
from model.schedule import learning_rate_at
from model.types import FEWEST_SEQUENCES, EpochReport, TrainingConfig

if TYPE_CHECKING:
    from model.floors import Floors

ROUNDING = 1e-6
"""A loss of 0 may come out this much below it."""

UNTRAINED_STEPS = 50
"""In the first steps a network is about as it was initialised, and so are the batch statistics of eval mode."""

UNIFORM_RANGE = 2.5
"""Below this range of the log-probabilities (nats) an output is flat. Freshly initialised networks show 0.07 to 2.4, by
width and classes (the student as it is by default 0.2); at the best constant posterior it is 7 and more, or the loss
tells."""

UNTRAINED_SHARE = 0.25
"""A loss that came less than this share of the way from the uniform one to the best constant posterior's is about an
untrained network's: its random output bias moves it by up to a fifth, to either side."""

TRAINED_SHARE = 0.9
"""... and from this share on it is a trained one's. Between the two, in the first epochs of a slow run, the loss in
eval mode lags behind that in training, as the batch statistics do."""

LAGGING_LR_TIME = 0.06
"""Below this sum of learning rates eval mode may lie flat while training comes down, on the same weights: batch norm's
statistics of small weight changes lag behind. Runs at 2e-5 do so for half their epochs, up to a sum of 0.025."""

SLOW_STEPS = 300
"""Steps after which the loss of a run with a fair learning rate has come down to that of knowing nothing."""

SLOW_LOSS = 1.5
"""... and how far it may be above it, as a multiple: the rest of the way is short."""

LOW_LR_TIME = 0.03
"""... or the learning rate summed over those steps, while the swap gap shows nothing: half of what the quickest live
runs had at their takeoff. A rate of 1e-4 has it after 300 steps, one that a long warm-up holds down does not."""

THROTTLED_STEPS = 100
"""Steps after which the effective step is judged: the first ones are large, whatever the settings."""

THROTTLED_RATIO = 0.15
"""In the plateau an update of Adam moves the weights by 0.18 to 0.8 of the learning rate, at eps 1e-3 and gradients
clipped to norm 1 by 0.11 on a small student and by a twelfth of that of eps 1e-8 on a large one, more than a five times
higher learning rate gives back."""

LARGE_EPS = 1e-7
"""A larger adam_eps can be the reason of a small step."""

PLATEAU_LOSS = 0.10
"""A loss within this share of the best constant posterior's is that of the plateau."""

USED_T = 2.5
"""The paired t of the swap gap from which on the input is used: every live run measured passed it, two to six epochs
before WER moved; no dead one did."""

UNUSED_T = 2.0
"""|t| of every dead run stayed at or below this. In the plateau a live one's does too, so it proves nothing alone."""

UNUSED_PROBES = 3
"""... in so many last rounds of probes: a t above 2 by chance is one in twenty."""

AMPLE_STEPS = 1500
"""Steps after which a run that does not use its input has had its chance; live ones passed USED_T at step 279
(learning rate 1e-3), 372 (3e-4) and about 1,300 (1e-4 with a warm-up from 1e-5)."""

AMPLE_LR_TIME = 1.0
"""... and the learning rate summed over its steps: 0.1 to 0.3 in those runs, ..."""

AMPLE_EPOCHS = 10
"""... and the epochs. Asking for all three spares slow rates, long epochs and large vocabularies alike."""

MEMORISED_LOSS = 0.8
"""A train loss below this multiple of the best constant posterior's needs the input (knowing where in a sentence one is
gives 0.88 at most): the run is past the plateau, and dev must show it if there is something to show."""

READS_MARGIN = 0.12
"""A dev WER this far below the best constant sentence's needs the input. A takeoff alone (0.05) may be less: with
labels dealt anew, guessing a sentence's length gained 6 points on ASL."""

IDENTICAL_GAP = 1e-6
"""A swap gap (nats per gloss) no larger than this is rounding: the output is the same whatever the input."""

TIME_USED_T = 5.0
"""Whether time has collapsed is judged once the swap gap is this clear."""

TIME_USED_GAP = 0.04
"""... and this large, as a share of the best constant posterior's loss: collapsed networks had 0.1 of it when they were
named. At tiny rates a live run passes through a gap of 0.01, as clear, before frames and their order come to count."""

ORDER_SHARE = 0.3
"""A permuted-time gap below this share of the swap gap, in the last UNUSED_PROBES probes: of networks that average over
time it is about 0.2 (their first convolutions do see neighbouring frames), of live ones before takeoff 0.38 and up."""

HARDLY_LOSS = 0.95
"""After ample training the loss of a live run is far below this multiple of the floor; a saturated one's was 0.98."""

COLLAPSE_EPOCHS = 10
"""Before takeoff, epochs in which two to seven distinct glosses are normal."""

COLLAPSED_HYPOTHESES = 0.05
"""A collapsed run has fewer distinct hypotheses than this share of the dev sequences."""

COLLAPSED_TOP_GLOSS = 0.5
"""... and more than this share of its words are one gloss."""

BLANK_LENGTH = 0.35
"""After takeoff, hypotheses shorter than this share of the references, ..."""

BLANK_DELETIONS = 0.6
"""... with more than this share of the words deleted, ..."""

BLANK_EPOCHS = 5
"""... for so many epochs without growing: right after takeoff hypotheses are short, and grow. The blank share alone
tells nothing: 0.94 is optimal at 15 output frames a gloss."""

INFEASIBLE_MOST = 0.01
"""More of train than this without an alignment is a fault of stride, filter or annotation, not of some sentences."""

FLAT_SHARE = 0.2
"""Overfitting: no better dev WER for this share of the epochs planned, ..."""

FLAT_EPOCHS = 10
"""... and for so many epochs: from one to the next the WER of a healthy run jumps by 20 points, ..."""

OVERFIT_GAP = 0.2
"""... and train WER so much lower. A rising dev loss alone is not: dev WER falls on for long while it rises."""

IDENTITY_ERROR = 1e-4
"""Shares of the reference words that must add up do so to rounding, also where six digits of them were kept. One word
of SI5's dev is 1e-3."""

NOISE = 1.1
"""A value that moves by no more than this factor from epoch to epoch has stayed where it was."""

LOST_TO_WARMUP = 0.2
"""A warm-up that took more than this share of the learning rate so far is worth naming as the reason."""

CLIPPED_SHARE = 0.9
"""From this share on clipping is the rule, not the exception."""


def measured(report: EpochReport, key: str) -> float:
    """A metric of an epoch; NaN, with which every comparison is false, where it is absent or not finite."""
    value = report.metrics.get(key, nan)
    return value if isfinite(value) else nan


@dataclass(frozen=True)
class Run:
    """A run's epochs, and what they are held against."""

    reports: Sequence[EpochReport]
    """Epochs 1, 2, ...; at least one."""
    config: TrainingConfig
    floors: Floors
    takeoff: int | None
    """Epoch of takeoff, if there was one."""
    dev_sequences: int | None = None
    """Sequences of dev, where known."""

    def values(self, key: str, after_step: int = 0) -> list[tuple[EpochReport, float]]:
        """The finite values of a metric, with their epochs, once `after_step` updates are done."""
        found = ((report, measured(report, key)) for report in self.reports if report.step >= after_step)
        return [(report, value) for report, value in found if isfinite(value)]

    def last(self, key: str) -> float:
        """The last finite value of a metric, or NaN."""
        found = self.values(key)
        return found[-1][1] if found else nan

    def loss_ratio(self, report: EpochReport) -> float:
        """The lower of train and dev loss, each as a multiple of the best constant posterior's; NaN without either.

        The lower one: train's holds the epoch's first steps as well, dev's rises with overfitting.
        """
        floors = {"train/loss": self.floors.constant_loss, "dev/loss": self.floors.dev_constant_loss}
        ratios = [measured(report, key) / floor for key, floor in floors.items() if floor > 0]
        return min((ratio for ratio in ratios if isfinite(ratio)), default=nan)


Symptom: TypeAlias = Callable[[Run], Finding | None]


def progress(loss: float, uniform_loss: float, constant_loss: float) -> float:
    """How much of the way from a uniform output to the best constant posterior a loss has come: 0 and 1 there.

    NaN where the two are the same.
    """
    return (uniform_loss - loss) / (uniform_loss - constant_loss) if uniform_loss > constant_loss else nan


def is_flat(spread: float, dev_loss: float, floors: Floors) -> bool:
    """Whether a range of log-probabilities (nats) and a dev loss are those of an untrained network."""
    way = progress(dev_loss, floors.uniform_loss, floors.dev_constant_loss)
    return spread < UNIFORM_RANGE and way < UNTRAINED_SHARE


def missing_log_softmax(run: Run) -> Finding | None:
    negative = [
        (value, report, key)
        for key in ("train/loss", "dev/loss")
        for report, value in run.values(key)
        if value < -ROUNDING
    ]
    if not negative:
        return None
    value, report, key = min(negative, key=lambda each: each[0])
    return Finding(
        "missing_log_softmax",
        "fatal",
        value,
        0.0,
        f"{key} is {value:.3f} nats per gloss in epoch {report.epoch}: below 0 no sum of probabilities can come.",
        "Give the loss log-probabilities: log_softmax over the classes, once.",
        "Losses of 0 and above.",
    )


def wrong_weights(run: Run) -> Finding | None:
    report, floors = run.reports[-1], run.floors
    loss, dev_loss, spread = (measured(report, k) for k in ("train/loss", "dev/loss", "spread/range"))
    trained = progress(loss, floors.uniform_loss, floors.constant_loss) > TRAINED_SHARE
    lagging = 0 < report.lr_time < LAGGING_LR_TIME  # 0: not reported
    flat = is_flat(spread, dev_loss, floors)
    if report.step <= UNTRAINED_STEPS or lagging or not (trained and flat) or same_output(run):
        return None
    return Finding(
        "wrong_weights",
        "fatal",
        spread,
        UNIFORM_RANGE,
        f"In epoch {report.epoch} the dev outputs are flat (log-probabilities within {spread:.3f} nats) and cost "
        f"{dev_loss:.2f} nats per gloss, near the {floors.uniform_loss:.2f} of a uniform output, while train/loss is "
        f"{loss:.2f}: the weights that were evaluated are not the weights that were trained.",
        "Evaluate the model that is trained: the same object, or weights loaded after it was saved. If it is the same, "
        "look at what differs between train and eval mode.",
        "A train loss near that of a uniform output, or outputs that differ between classes.",
    )


def infeasible_targets(run: Run) -> Finding | None:
    report = run.reports[-1]
    count = measured(report, "train/infeasible")
    if not count > 0 or not report.steps_in_epoch:
        return None
    share = count / (report.steps_in_epoch * run.config.batch_size)  # but for the last batch, which may be smaller
    fatal = share > INFEASIBLE_MOST
    return Finding(
        "infeasible_targets",
        "fatal" if fatal else "info",
        share,
        INFEASIBLE_MOST,
        f"{count:.0f} training sequences ({share:.1%}) have no alignment at output stride {run.config.output_stride}: "
        "fewer output frames than glosses and adjacent repeats.",
        "Lower output_stride, or check that annotations and features belong together."
        if fatal
        else "They are left out and counted; nothing need be done.",
        f"At most {INFEASIBLE_MOST:.0%} of train. Exactly as many frames as needed is feasible.",
    )


def evaluator_failed(run: Run) -> Finding | None:
    for report in run.reports:
        wer, sub, dele, ins, length = (
            measured(report, key) for key in ("dev/wer", "dev/sub", "dev/del", "dev/ins", "decode/length")
        )
        parts = abs(sub + dele + ins - wer)
        words = abs(1 - dele + ins - length)
        if parts > IDENTITY_ERROR or words > IDENTITY_ERROR:  # False where one was not measured
            what = (
                f"substitutions, deletions and insertions add up to {sub + dele + ins:.1%} and WER is {wer:.1%}"
                if parts > IDENTITY_ERROR
                else f"the hypotheses have {length:.1%} of the reference words, and by deletions and insertions they "
                f"would have {1 - dele + ins:.1%}"
            )
            return Finding(
                "evaluator_failed",
                "fatal",
                max(value for value in (parts, words) if isfinite(value)),
                IDENTITY_ERROR,
                f"In epoch {report.epoch} {what}: these errors were not counted on these hypotheses.",
                "Look for an evaluation that reports a fixed WER when it fails, or counts on another split.",
                "Parts that add up. An output that is honestly empty has deletions of 100 % and adds up.",
            )
    return None


def _probes(run: Run) -> list[EpochReport]:
    """The epochs whose swap gap has a t (too few dev sequences have none)."""
    return [report for report, _ in run.values("probe/swap_t")]


def same_output(run: Run) -> bool:
    """Whether, past the first steps, the last probes found the output to be the same whatever the input."""
    gaps = [measured(report, "probe/swap_gap") for report in _probes(run) if report.step > UNTRAINED_STEPS]
    return bool(gaps) and all(abs(gap) <= IDENTICAL_GAP for gap in gaps[-UNUSED_PROBES:])


def had_ample_training(run: Run) -> bool:
    """Whether a live run would have begun to use its input by now."""
    last = run.reports[-1]
    return last.step >= AMPLE_STEPS and last.lr_time >= AMPLE_LR_TIME and last.epoch >= AMPLE_EPOCHS


def input_not_used(run: Run) -> Finding | None:
    probes = [report for report in _probes(run) if report.step > UNTRAINED_STEPS]
    reads = any(wer <= run.floors.constant_wer - READS_MARGIN for _, wer in run.values("dev/wer"))
    if reads or not probes:
        return None
    last, recent = probes[-1], probes[-UNUSED_PROBES:]
    t, gap, sequences = (measured(last, f"probe/{key}") for key in ("swap_t", "swap_gap", "sequences"))
    train, floor = measured(last, "train/loss"), run.floors.constant_loss
    unused = len(recent) == UNUSED_PROBES and all(abs(measured(r, "probe/swap_t")) <= UNUSED_T for r in recent)
    memorised = unused and all(measured(r, "train/loss") < MEMORISED_LOSS * floor for r in recent)
    ample = unused and had_ample_training(run) and step_throttled(run) is None
    swap = f"Swap gap {gap:+.4f} nats per gloss over {sequences:.0f} dev sequences"
    if same_output(run):
        number, threshold = gap, IDENTICAL_GAP
        evidence = f"{swap}: the output is the same, to rounding, whatever the input."
        advice = "Run `check`: features that are all zero or constant. Or the model does not read them."
    elif memorised:
        number, threshold = t, UNUSED_T
        evidence = (
            f"{swap}, t = {t:.1f}, though train/loss {train:.2f} is clearly below the {floor:.2f} of knowing nothing: "
            "it learns train by heart, and nothing that holds on dev."
        )
        advice = "Run `check`. Do the annotations belong to these features? Are features normalised? Is train tiny?"
    elif ample:
        number, threshold = t, UNUSED_T
        evidence = (
            f"{swap}, t = {t:.1f}, and |t| at most {UNUSED_T:g} in the last {UNUSED_PROBES} probes, after {last.step} "
            f"steps and LR-time {last.lr_time:.2g}: a live run needs {AMPLE_STEPS} and {AMPLE_LR_TIME:g} at most."
        )
        advice = "Run `check`, then `overfit`: useless or un-normalised features, or labels of other sequences."
    else:
        return None
    return Finding(
        "input_not_used",
        "fatal",
        number,
        threshold,
        evidence,
        advice,
        f"A swap gap with t above {USED_T:g}, or a dev WER {READS_MARGIN:.0%} below the best constant sentence's. In a "
        "sweep: if other "
        "trials learn on this corpus, it is this trial's settings, else data or labels.",
    )


def input_hardly_used(run: Run) -> Finding | None:
    ratio, t = run.loss_ratio(run.reports[-1]), run.last("probe/swap_t")
    if run.takeoff is not None or not (t > USED_T and ratio > HARDLY_LOSS and had_ample_training(run)):
        return None
    return Finding(
        "input_hardly_used",
        "warning",
        ratio,
        HARDLY_LOSS,
        f"The output depends on the input (swap gap {run.last('probe/swap_gap'):.3f} nats per gloss, t = {t:.1f}), but "
        f"after {run.reports[-1].step} steps the loss is still {ratio:.2f} times that of knowing nothing.",
        "Run `check`: features that are not normalised saturate a network, which then hardly gets a gradient.",
        "A takeoff, or a loss that falls.",
    )


def time_collapsed(run: Run) -> Finding | None:
    if run.takeoff is not None:
        return None  # a live run may come to need the order less: where each sign is told by itself
    recent = [r for r in _probes(run) if isfinite(measured(r, "probe/permuted_gap"))][-UNUSED_PROBES:]
    if len(recent) < UNUSED_PROBES or not min(measured(r, "probe/swap_t") for r in recent) > TIME_USED_T:
        return None
    gaps = [(measured(r, "probe/swap_gap"), measured(r, "probe/permuted_gap")) for r in recent]
    if not min(swap for swap, _ in gaps) > TIME_USED_GAP * run.floors.dev_constant_loss:
        return None
    shares = [permuted / swap if swap > 0 else nan for swap, permuted in gaps]
    if not all(share < ORDER_SHARE for share in shares):
        return None
    t = measured(recent[-1], "probe/swap_t")
    return Finding(
        "time_collapsed",
        "fatal",
        shares[-1],
        ORDER_SHARE,
        f"Another sequence's features raise the loss by {gaps[-1][0]:.2f} nats per gloss "
        f"(t = {t:.1f}), a sequence's own frames in random order only by "
        f"{gaps[-1][1]:.2f}: the network knows what is in a sequence, not when.",
        "Look for a mean or a pooling over time before the head, or squeeze-excite gates that drown the rest.",
        f"A permuted-time gap of {ORDER_SHARE:.0%} of the swap gap and more.",
    )


def step_throttled(run: Run) -> Finding | None:
    ratios = [
        value
        for report, value in run.values("optim/step_ratio", THROTTLED_STEPS)
        if run.takeoff is None or report.epoch <= run.takeoff
    ]
    if not ratios or median(ratios) >= THROTTLED_RATIO:
        return None
    clipped, eps = run.last("optim/clipped"), run.config.adam_eps
    return Finding(
        "step_throttled",
        "warning",
        median(ratios),
        THROTTLED_RATIO,
        f"An update moves the weights by {median(ratios):.3f} of the learning rate (median of {len(ratios)} epochs in "
        f"the plateau), with adam_eps {eps:g}"
        + (
            f" and {clipped:.0%} of the updates clipped to norm {run.config.clip_norm:g}." if isfinite(clipped) else "."
        ),
        "Set adam_eps to 1e-8: a larger eps cancels the scaling that makes Adam's step independent of the gradient's "
        "size, and clipping then makes it smaller still. A higher learning rate repairs little of it."
        if eps > LARGE_EPS
        else "Most weights hardly get a gradient: run `check`, as features that are not normalised saturate a network.",
        f"An effective step of {THROTTLED_RATIO:g} and more once {THROTTLED_STEPS} steps are done.",
    )


def learning_rate_too_low(run: Run) -> Finding | None:
    last, config = run.reports[-1], run.config
    if run.takeoff is not None or last.step < SLOW_STEPS or run.last("probe/swap_t") > USED_T or step_throttled(run):
        return None  # where the step is throttled, that is the reason
    ratio = run.loss_ratio(last)
    lowest = min(filter(isfinite, map(run.loss_ratio, run.reports)), default=nan)
    # A loss that has risen, or is high after much learning rate, is not a slow one.
    high = ratio > SLOW_LOSS and ratio <= NOISE * lowest and last.lr_time < AMPLE_LR_TIME
    if not high and not 0 < last.lr_time < LOW_LR_TIME:
        return None
    number, threshold = (ratio, SLOW_LOSS) if high else (last.lr_time, LOW_LR_TIME)
    lost = 1 - last.lr_time / (config.learning_rate * last.step)
    long_warmup = config.warmup_start_factor < 1 and config.warmup_epochs > 1 and lost > LOST_TO_WARMUP
    return Finding(
        "learning_rate_too_low",
        "warning",
        number,
        threshold,
        f"After {last.step} steps the learning rate summed over the steps is {last.lr_time:.2g}"
        + (f", and the loss {ratio:.1f} times that of knowing nothing" if isfinite(ratio) else "")
        + f": the rate is {config.learning_rate:g} at its peak"
        + (
            f", and the warm-up of {config.warmup_epochs:g} epochs from {config.warmup_start_factor:g} of that has "
            f"taken {lost:.0%} of the sum."
            if long_warmup
            else "."
        ),
        "Shorten the warm-up to an epoch or less, or raise the learning rate threefold."
        if long_warmup
        else "Raise the learning rate threefold.",
        "A swap gap that shows, or a takeoff: it is slow, not dead, and more epochs would do as well.",
    )


def single_gloss_collapse(run: Run) -> Finding | None:
    last = run.reports[-1]
    hypotheses, top, t = (measured(last, k) for k in ("decode/hypotheses", "decode/top_gloss", "probe/swap_t"))
    if run.takeoff is None and (last.epoch < COLLAPSE_EPOCHS or t > USED_T):
        return None
    if not run.dev_sequences or not (hypotheses < COLLAPSED_HYPOTHESES * run.dev_sequences):
        return None
    if not top > COLLAPSED_TOP_GLOSS:
        return None
    return Finding(
        "single_gloss_collapse",
        "warning",
        top,
        COLLAPSED_TOP_GLOSS,
        f"{hypotheses:.0f} distinct hypotheses for {run.dev_sequences} dev sequences, and {top:.0%} of their words are "
        f"one gloss, in epoch {last.epoch}.",
        "It has taken off and lost it: lower the learning rate, or go back to the best checkpoint."
        if run.takeoff is not None
        else "In the plateau this is what knowing nothing looks like: go by the swap gap, not by this.",
        f"More distinct hypotheses than {COLLAPSED_HYPOTHESES:.0%} of the sequences, or a swap gap t above {USED_T:g}.",
    )


def blank_collapse(run: Run) -> Finding | None:
    lengths = [value for report, value in run.values("decode/length") if report.epoch >= (run.takeoff or 0)]
    deletions = run.last("dev/del")
    if run.takeoff is None or len(lengths) < BLANK_EPOCHS:
        return None
    recent = lengths[-BLANK_EPOCHS:]
    if max(recent) >= BLANK_LENGTH or not deletions > BLANK_DELETIONS or recent[-1] > NOISE * recent[0]:
        return None
    return Finding(
        "blank_collapse",
        "warning",
        recent[-1],
        BLANK_LENGTH,
        f"The hypotheses have {recent[-1]:.0%} of the reference words and {deletions:.0%} of these are deleted, for "
        f"{BLANK_EPOCHS} epochs without growing.",
        "Lower the dropout or raise the learning rate; decode with a blank penalty to see what lies below the blank.",
        "Hypotheses that grow, or fewer deletions. A high blank share alone is normal.",
    )


def overfitting(run: Run) -> Finding | None:
    train = run.values("train/wer")
    if run.takeoff is None or not train:
        return None
    report, train_wer = train[-1]
    wers = [(value, each.epoch) for each, value in run.values("dev/wer")]
    best, best_epoch = min(wers)
    flat = run.reports[-1].epoch - best_epoch
    gap = measured(report, "dev/wer") - train_wer
    if flat < max(FLAT_SHARE * run.config.epochs, FLAT_EPOCHS) or not gap >= OVERFIT_GAP:
        return None
    return Finding(
        "overfitting",
        "warning",
        gap,
        OVERFIT_GAP,
        f"No better dev WER than {best:.1%} (epoch {best_epoch}) for {flat} of {run.config.epochs} epochs, while train "
        f"WER is {train_wer:.1%} against {measured(report, 'dev/wer'):.1%} on dev (epoch {report.epoch}).",
        "Stop here and keep the best checkpoint; next, more dropout or weight decay, or a smaller network.",
        "A better dev WER. A dev loss that rises while dev WER falls is no overfitting.",
    )


def scheduler_never_acts(run: Run) -> Finding | None:
    report = run.reports[-1]
    return schedule_finding(run.config, max(1, round(report.step / report.epoch)))


def schedule_finding(config: TrainingConfig, steps_per_epoch: int) -> Finding | None:
    """A dry run of the schedule: whether the rate, the warm-up apart, would change within the epochs planned.

    The dev loss is taken never to get better, which makes `plateau` act as soon as it can.
    """
    if config.schedule == "constant":
        return None
    losses = [1.0] * config.epochs
    warmup = config.warmup_epochs if config.warmup_start_factor < 1 else 0.0
    rates = {
        learning_rate_at(step, steps_per_epoch, losses[:epoch], config)
        for epoch in range(config.epochs)
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1)
        if step >= warmup * steps_per_epoch
    }
    if len(rates) > 1:
        return None
    first = {"plateau": "plateau_patience", "step": "step_epochs", "cosine_restarts": "restart_epochs"}[config.schedule]
    why = (
        f"the warm-up takes {warmup:g} epochs"
        if warmup >= config.epochs
        else f"{first} is {getattr(config, first)} and min_learning_rate {config.min_learning_rate:g}"
    )
    return Finding(
        "scheduler_never_acts",
        "info",
        float(config.epochs),
        None,
        f"The schedule {config.schedule!r} cannot change the learning rate within {config.epochs} epochs: {why}.",
        "Give it more epochs or less patience, or say schedule: constant if that is meant.",
        "A dry run in which the rate changes.",
    )


def clipped(run: Run) -> Finding | None:
    share = run.last("optim/clipped")
    if not share >= CLIPPED_SHARE:
        return None
    return Finding(
        "clipped",
        "info",
        share,
        CLIPPED_SHARE,
        f"{share:.0%} of the last epoch's updates were clipped to norm {run.config.clip_norm:g} "
        f"(mean norm {run.last('optim/grad_norm'):.3g}).",
        "Nothing need be done: Adam's step hardly depends on the gradient's size, unless adam_eps is large.",
        f"Fewer than {CLIPPED_SHARE:.0%}.",
    )


def input_used(run: Run) -> Finding | None:
    t = run.last("probe/swap_t")
    if run.takeoff is not None or not t > USED_T or input_hardly_used(run):
        return None
    return Finding(
        "input_used",
        "info",
        t,
        USED_T,
        f"Swap gap {run.last('probe/swap_gap'):+.4f} nats per gloss, t = {t:.1f}: the output depends on the input, "
        "though dev WER does not show it yet.",
        "Let it run: in measured runs WER moved two to six epochs later.",
        f"A t that falls back to {UNUSED_T:g} and stays there.",
    )


def plateau(run: Run) -> Finding | None:
    ratio, t = run.loss_ratio(run.reports[-1]), run.last("probe/swap_t")
    if run.takeoff is not None or not abs(ratio - 1) <= PLATEAU_LOSS or t > USED_T or input_not_used(run):
        return None
    return Finding(
        "plateau",
        "info",
        ratio,
        1 + PLATEAU_LOSS,
        f"The loss is {ratio:.2f} times that of the best constant posterior "
        f"({run.floors.constant_loss:.2f} nats per gloss on train)"
        + (f", the swap gap's t is {t:.1f}" if isfinite(t) else "")
        + ": the plateau that every run passes, not a collapse.",
        "Wait. How long it lasts depends on the learning rate summed over the steps; WER is no evidence here.",
        "A swap gap that stays at nothing after ample training (input_not_used), or a takeoff.",
    )


def not_enough_evidence(run: Run) -> Finding | None:
    sequences = run.last("probe/sequences")
    if run.takeoff is not None or not isfinite(sequences) or _probes(run):
        return None
    return Finding(
        "not_enough_evidence",
        "info",
        sequences,
        FEWEST_SEQUENCES,
        f"The swap gap has {sequences:.0f} dev sequences, too few for a t: whether the input is used cannot be told.",
        "A dev split of 100 sequences or more; until then `overfit` tells a broken model from a slow one.",
        f"At least {FEWEST_SEQUENCES} dev sequences whose target fits.",
    )


SYMPTOMS: tuple[Symptom, ...] = (
    missing_log_softmax,
    wrong_weights,
    evaluator_failed,
    infeasible_targets,
    input_not_used,
    input_hardly_used,
    time_collapsed,
    step_throttled,
    learning_rate_too_low,
    single_gloss_collapse,
    blank_collapse,
    overfitting,
    input_used,
    plateau,
    not_enough_evidence,
    scheduler_never_acts,
    clipped,
)
"""All of them; what explains most stands first within a severity."""

OF_TRAINING = frozenset(
    {
        "diverged",
        "skipped_steps",
        "infeasible_targets",
        "step_throttled",
        "learning_rate_too_low",
        "overfitting",
        "scheduler_never_acts",
        "clipped",
    }
)
"""Codes that say how a run was trained; the others say what its weights answer, on whatever split they are asked."""
