"""One pass of a model over a split in eval mode: a loss and a hypothesis for each sequence, and the metrics of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.corpus.data import Batch, Split, make_batch
from model.corpus.vocabulary import Vocabulary
from model.decode import best_classes, greedy_decode
from model.metrics import Spread, WordErrors, log_prob_spread, word_errors
from model.numerics import autocast


class Forward(Protocol):
    """From a batch to log-probabilities (B, T_out, V) in float32 and their lengths (B,)."""

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]: ...


def forward_of(model: nn.Module, device: torch.device, precision: str = "float32") -> Forward:
    """The model's forward pass on `device`, under autocast where `precision` asks for it."""

    def forward(batch: Batch) -> tuple[Tensor, Tensor]:
        features = torch.as_tensor(batch.features, device=device)
        with autocast(precision, device):
            log_probs, lengths = model(features, torch.from_numpy(batch.lengths))
        return log_probs, lengths

    return forward


def batch_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """CTC loss of each sequence of a batch (B,) in nats; infinite where no alignment fits."""
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        torch.from_numpy(batch.targets).to(log_probs.device),
        lengths,
        torch.from_numpy(batch.target_lengths).to(log_probs.device),
        reduction="none",
    )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model answers to each sequence of a split."""

    losses: NDArray[np.float64]
    """CTC loss of each sequence (N,) in nats; NaN where no alignment fits the target."""
    loss: float
    """Nats per gloss over all sequences whose target fits; NaN if there is none."""
    hypotheses: tuple[tuple[int, ...], ...]
    """Class indices by greedy decoding (N,)."""
    spread: Spread
    blanks: int
    """Valid output frames whose best class is blank."""
    frames: int
    """Valid output frames."""
    largest_logsumexp: float = float("nan")
    """Largest |logsumexp| over valid frames: above rounding, the outputs are no log-probabilities. If `thorough`."""
    best_classes: tuple[int, ...] = ()
    """The classes that were the best of some valid frame, ascending. If `thorough`."""

    @property
    def finite(self) -> bool:
        """Whether every output was."""
        return bool(np.isfinite(self.spread.range))


def evaluate(
    model: nn.Module,
    forward: Forward,
    split: Split,
    stride: int,
    batch_size: int,
    *,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    thorough: bool = False,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate on a split, or on these rows of it; the model is in eval mode afterwards.

    Args:
        stride: input frames per output frame. A sequence of fewer frames has an empty hypothesis and no loss.
        thorough: for a diagnosis, which asks more than an epoch does.
        on_batch: called before each batch; what it raises ends the evaluation.
    """
    wanted = np.arange(len(split)) if rows is None else np.asarray(rows)
    place = {int(row): at for at, row in enumerate(wanted)}
    fits = split.fits(stride)
    losses = np.full(len(wanted), np.nan)
    hypotheses: list[tuple[int, ...]] = [()] * len(wanted)
    loss_sum, glosses, blanks, frames, spread, logsumexp = 0.0, 0, 0, 0, Spread(), 0.0
    best: set[int] = set()
    for batch, log_probs, lengths in _passes(model, forward, split, wanted, stride, batch_size, on_batch):
        each = batch_losses(log_probs, lengths, batch).cpu()
        feasible = fits[batch.indices]
        loss_sum += float(each[torch.from_numpy(feasible)].double().sum())
        glosses += int(batch.target_lengths[feasible].sum())
        spread += log_prob_spread(log_probs, lengths)
        decoded, blank = greedy_decode(log_probs, lengths)
        blanks += blank
        frames += int(lengths.sum())
        if thorough:
            best |= best_classes(log_probs, lengths)
            valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
            logsumexp = max(logsumexp, float(log_probs.logsumexp(-1)[valid].abs().max()))
        for index, loss, fit, hypothesis in zip(batch.indices, each.tolist(), feasible, decoded, strict=True):
            losses[place[int(index)]] = loss if fit else np.nan
            hypotheses[place[int(index)]] = tuple(hypothesis)
    return Evaluation(
        losses=losses,
        loss=loss_sum / glosses if glosses else float("nan"),
        hypotheses=tuple(hypotheses),
        spread=spread,
        blanks=blanks,
        frames=frames,
        largest_logsumexp=logsumexp if thorough else float("nan"),
        best_classes=tuple(sorted(best)),
    )


def sequence_losses(
    model: nn.Module,
    forward: Forward,
    split: Split,
    rows: NDArray[np.int64],
    stride: int,
    batch_size: int,
    features: Callable[[int], NDArray[np.float32]],
    on_batch: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """CTC loss (N,) in nats of these rows when their features are `features(row)`; every target must fit."""
    losses = np.empty(len(rows))
    place = {int(row): at for at, row in enumerate(rows)}
    for batch, log_probs, lengths in _passes(model, forward, split, rows, stride, batch_size, on_batch, features):
        for index, loss in zip(batch.indices, batch_losses(log_probs, lengths, batch).tolist(), strict=True):
            losses[place[int(index)]] = loss
    return losses


@torch.no_grad()
def _passes(
    model: nn.Module,
    forward: Forward,
    split: Split,
    rows: NDArray[np.int64],
    stride: int,
    batch_size: int,
    on_batch: Callable[[], None],
    features: Callable[[int], NDArray[np.float32]] | None = None,
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    model.eval()
    rows = rows[split.lengths[rows] >= stride]
    rows = rows[np.argsort(split.lengths[rows], kind="stable")]  # little padding; the results do not depend on it
    for start in range(0, len(rows), batch_size):
        on_batch()
        batch = make_batch(split, rows[start : start + batch_size], features)
        log_probs, lengths = forward(batch)
        yield batch, log_probs, lengths


def word_errors_of(evaluation: Evaluation, references: Sequence[str], vocabulary: Vocabulary) -> WordErrors:
    """Word errors of the hypotheses; NaN where outputs were not finite, which decode to blank as a plateau does."""
    if not evaluation.finite:
        return WordErrors(*[float("nan")] * 4)
    sentences = [" ".join(vocabulary.decode(h)) for h in evaluation.hypotheses]
    return word_errors(references, sentences)


def dev_metrics(evaluation: Evaluation, references: Sequence[str], vocabulary: Vocabulary) -> dict[str, Any]:
    """The keys `dev/*`, `spread/*` and `decode/*` of `METRICS`."""
    errors = word_errors_of(evaluation, references, vocabulary)
    glosses = Counter(gloss for h in evaluation.hypotheses for gloss in h)
    spread = evaluation.spread
    return {
        "dev/loss": evaluation.loss,
        "dev/wer": errors.wer,
        "dev/sub": errors.substitutions,
        "dev/del": errors.deletions,
        "dev/ins": errors.insertions,
        "spread/min": spread.minimum,
        "spread/max": spread.maximum,
        "spread/range": spread.range,
        "spread/time": spread.time,
        "decode/glosses": len(glosses),
        "decode/hypotheses": len(set(evaluation.hypotheses)),
        "decode/blank": evaluation.blanks / evaluation.frames if evaluation.frames else float("nan"),
        "decode/length": glosses.total() / sum(len(reference.split()) for reference in references),
        "decode/top_gloss": max(glosses.values()) / glosses.total() if glosses else 0.0,
    }
