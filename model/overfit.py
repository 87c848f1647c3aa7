"""Whether a model can learn a few sequences by heart: the quickest way to tell a broken model from a slow one.

Eight sequences, no dropout, own optimizer settings: word errors must vanish within some hundred steps. A control with
eight times the same input must fail, as nothing in it tells the targets apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus, Split, make_batch
from model.ctc import ctc_loss_sum, pick_device
from model.decode import greedy_decode
from model.encoder import make_model
from model.evaluate import forward_of
from model.findings import Finding
from model.metrics import word_errors
from model.numerics import TIME_LOCALITY, time_locality
from model.types import TrainingConfig, mixed_seed

CONTROL_WER = 0.5
"""The control must stay above this WER. With one input for all targets the best answer is one sentence."""

CANDIDATES = 64
"""Sequences near the median length to choose from: of about one length, so that length does not tell them apart."""

LOOK_STEPS = 10
"""Steps between two looks at the word errors."""


FAIR_RATES = (1e-3, 1e-2)
"""Learning rates at which every working model measured has passed; what fails at others may be sound."""

FAIR_STEPS = 400
"""... and the most steps any of them needed, about."""

FALLING = 0.5
"""A loss below this multiple of that at half of the steps was on its way to nothing: of sound models stopped shortly
before their end it was 0.08 to 0.4. Where all features were zero it was 0.79 and more: their lengths tell a little."""


@dataclass(frozen=True)
class Memorised:
    """How far training on one batch came."""

    steps: int
    """Steps until WER 0, or all of them."""
    wer: float
    """In eval mode after the last step (fraction)."""
    lowest_wer: float
    loss: float
    """At the last step, in training mode (nats per gloss)."""
    halfway: float
    """The same at half of the steps."""
    hypotheses: tuple[str, ...]


@dataclass(frozen=True)
class Overfit:
    """What the test showed."""

    ids: tuple[str, ...]
    references: tuple[str, ...]
    frames: int
    """Of the longest sequence."""
    distinct: int
    """How many of the sequences differ in their features."""
    parameters: int
    """Weights of the model."""
    learning_rate: float
    most_steps: int
    test: Memorised
    control: Memorised | None
    """With one input for all of them; not run where the test itself failed."""
    locality: float
    """`time_locality` of the fresh model on these sequences; NaN where they are too short to tell."""
    seconds: float

    @property
    def passed(self) -> bool:
        return self.test.wer == 0 and self.control is not None and self.control.lowest_wer > CONTROL_WER


def choose(split: Split, stride: int, sequences: int) -> list[int]:
    """Rows to learn by heart: of about the median length, with targets as different as can be. No chance in it.

    Raises:
        CorpusError: too few sequences have a target that fits, or too few of these targets differ.
    """
    fitting = np.flatnonzero(split.fits(stride))
    if len(fitting) < sequences:
        raise CorpusError(
            f"{split.name}: {len(fitting)} sentences have a target that fits output stride {stride}, and {sequences} "
            "are needed; lower --sequences or --output_stride"
        )
    apart = np.abs(split.lengths[fitting] - np.median(split.lengths[fitting]))
    pool = [int(row) for row in fitting[np.argsort(apart, kind="stable")][: max(CANDIDATES, 4 * sequences)]]

    def difference(a: int, b: int) -> float:
        return Levenshtein.normalized_distance(split.targets[a].tolist(), split.targets[b].tolist())

    rows = [pool[0]]
    nearest = {row: difference(row, rows[0]) for row in pool}
    while len(rows) < sequences:
        row = max(pool, key=nearest.__getitem__)  # of equals the one nearest to the median length
        if nearest[row] == 0:
            raise CorpusError(
                f"{split.name}: only {len(rows)} different targets among {len(pool)} sentences of about the median "
                f"length, and {sequences} are needed; lower --sequences"
            )
        rows.append(row)
        nearest = {each: min(known, difference(each, row)) for each, known in nearest.items()}
    return rows


def overfit(
    config: TrainingConfig,
    corpus: Corpus,
    sequences: int,
    steps: int,
    on_look: Callable[[str, int, float, float], None] = lambda what, step, wer, loss: None,
) -> Overfit:
    """Learn some sequences of train by heart, then see the control fail.

    Args:
        config: what the model is; of the optimizer's settings only `learning_rate` and `clip_norm` count.
        on_look: called with "test" or "control", step, WER and loss whenever the word errors are counted.

    Raises:
        CorpusError: see `choose`.
        ValueError: sequences below 2 or steps below 1; the device cannot be had.
    """
    if sequences < 2 or steps < 1:
        raise ValueError(f"sequences {sequences}, steps {steps}: the test needs two sequences and a step at least")
    began = time.perf_counter()
    torch.set_num_threads(config.threads)
    train = corpus.train
    rows = choose(train, config.output_stride, sequences)
    longest = max(rows, key=lambda row: int(train.lengths[row]))  # every target fits into it

    test = _memorise(config, corpus, rows, train.features, steps, lambda *seen: on_look("test", *seen))
    control = None
    if test.wer == 0:
        same = train.features(longest)
        control = _memorise(config, corpus, rows, lambda row: same, test.steps, lambda *seen: on_look("control", *seen))
    torch.manual_seed(mixed_seed(config.seed, "initialisation"))
    model = make_model(config, [m.width for m in corpus.modalities], len(corpus.vocabulary))
    batch = make_batch(train, rows)
    return Overfit(
        ids=tuple(train.ids[row] for row in rows),
        references=tuple(train.references[row] for row in rows),
        frames=int(train.lengths[longest]),
        distinct=_distinct([train.features(row) for row in rows]),
        parameters=sum(p.numel() for p in model.parameters()),
        learning_rate=config.learning_rate,
        most_steps=steps,
        test=test,
        control=control,
        locality=time_locality(model, torch.as_tensor(batch.features), torch.from_numpy(batch.lengths)),
        seconds=time.perf_counter() - began,
    )


def _distinct(features: Sequence[NDArray[np.float32]]) -> int:
    """How many sequences differ before the shortest of them ends: all-zero ones are the same, whatever their length."""
    shortest = min(map(len, features))
    return len({x[:shortest].tobytes() for x in features})


def _memorise(
    config: TrainingConfig,
    corpus: Corpus,
    rows: Sequence[int],
    features_of: Callable[[int], NDArray[np.float32]],
    steps: int,
    on_look: Callable[[int, float, float], None],
) -> Memorised:
    """Train a fresh model on one batch until it has no word error, or for so many steps."""
    device = pick_device(config.device)
    torch.manual_seed(mixed_seed(config.seed, "initialisation"))
    still = config.with_values({"dropout": 0.0})
    model = make_model(still, [m.width for m in corpus.modalities], len(corpus.vocabulary)).to(device)
    forward = forward_of(model, device, config.precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, eps=1e-8, weight_decay=0.0)
    batch = make_batch(corpus.train, rows, features_of)
    references = [" ".join(corpus.vocabulary.decode(corpus.train.targets[row])) for row in rows]
    targets, lengths = (torch.from_numpy(x).to(device) for x in (batch.targets, batch.target_lengths))
    lowest = float("inf")
    losses: list[float] = []
    for step in range(1, steps + 1):
        model.train()
        log_probs, frames = forward(batch)
        loss = ctc_loss_sum(log_probs, frames, targets, lengths) / len(batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        losses.append(loss.item())
        if step % LOOK_STEPS and step < steps:
            continue
        model.eval()
        with torch.no_grad():
            decoded, _ = greedy_decode(*forward(batch))
        hypotheses = tuple(" ".join(corpus.vocabulary.decode(each)) for each in decoded)
        wer = word_errors(references, hypotheses).wer
        lowest = min(lowest, wer)
        on_look(step, wer, losses[-1])
        if wer == 0:
            break
    return Memorised(step, wer, lowest, losses[-1], losses[(step - 1) // 2], hypotheses)


def findings_of(result: Overfit) -> list[Finding]:
    """What the outcome means."""
    return [*_blind_to_time(result), _outcome(result)]


def _blind_to_time(result: Overfit) -> list[Finding]:
    if not result.locality < TIME_LOCALITY:
        return []
    return [
        Finding(
            "time_collapsed",
            "fatal",
            result.locality,
            TIME_LOCALITY,
            "Freshly drawn, in train mode: where the first half of the frames is exchanged, the outputs there change "
            f"{result.locality:.2f} times as much as those of the other half. The network does not know when.",
            "Look for a mean or a pooling over time before the head, or squeeze-excite gates that drown the rest.",
            f"A ratio of {TIME_LOCALITY:g} and more.",
        )
    ]


def _unfair(result: Overfit) -> list[str]:
    """Why a failure shows no fault of model or data."""
    test, (least, most) = result.test, FAIR_RATES
    if result.distinct < len(result.ids):
        return []  # equal features of different targets: no rate and no steps tell them apart
    reasons = []
    if not least <= result.learning_rate <= most:
        reasons.append(f"the learning rate is {result.learning_rate:g}, and sound models pass at {least:g} to {most:g}")
    if test.steps < FAIR_STEPS and np.isfinite(test.loss):
        reasons.append(f"{test.steps} steps are few, as sound models need up to {FAIR_STEPS}")
    if test.loss < FALLING * test.halfway:
        reasons.append(f"the loss was still falling, from {test.halfway:.3f} at half of the steps")
    return reasons


def _outcome(result: Overfit) -> Finding:
    n, test, control = len(result.ids), result.test, result.control
    if test.wer > 0:
        same = "" if result.distinct == n else f" Of {n} sequences only {result.distinct} differ in their features."
        if result.distinct == 1:
            same = " All have the same features."
        lost = "" if np.isfinite(test.loss) else " The loss is not finite."
        least, most = FAIR_RATES
        why = ", and ".join(_unfair(result))
        return Finding(
            "cannot_memorise",
            "fatal",
            test.wer,
            0.0,
            f"{n} sequences are not learned by heart in {test.steps} steps: WER {test.wer:.1%}, loss "
            f"{test.loss:.3f} nats per gloss.{same}{lost}" + (f" That shows no fault yet: {why}." if why else ""),
            f"Again with a learning rate from {least:g} to {most:g} and {FAIR_STEPS} steps or more, as it is by "
            "default; more --steps while the loss falls."
            if why
            else "It is the architecture, the features or the targets, not the learning rate of your run. Run `check`; "
            "try --architecture bilstm: if that passes, it is the model, if not, the data.",
            "WER 0.",
        )
    assert control is not None
    if control.lowest_wer <= CONTROL_WER:
        return Finding(
            "control_memorised",
            "fatal",
            control.lowest_wer,
            CONTROL_WER,
            f"With one input for all {n} targets WER still came down to {control.lowest_wer:.1%}: something else "
            "than the features tells the targets apart, or the targets are nearly the same.",
            "Do not trust the test above. Look for the sequence's place in the batch, its length or its target "
            "reaching the model; or take more --sequences.",
            f"A control that stays above {CONTROL_WER:.0%}.",
        )
    return Finding(
        "memorised",
        "info",
        float(test.steps),
        float(result.most_steps),
        f"{n} sequences are learned by heart in {test.steps} steps (WER 0), and with one input for all of them "
        f"WER stays at {control.lowest_wer:.1%} or above.",
        "Model, features, loss and decoder work together. If a run still fails, look at learning rate and warm-up "
        "(`diagnose`), and at whether the annotations belong to the features (`check`): by heart, wrong ones are "
        "learned as well.",
        "",
    )
