"""The readable loop: CTC training of the student, one epoch a call.

Data order is a function of (data_seed, epoch); dropout of (seed, epoch); the learning rate of the step and the dev
losses. So a run is its weights, its optimizer's moments and a few numbers: restored from `state_dict`, it goes on as
if it had never stopped, bit for bit on one CPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.corpus.annotations import CorpusError
from model.corpus.data import Batch, Corpus, Split, epoch_batches, make_batch
from model.diagnosis import takeoff_epoch
from model.encoder import make_model, set_output_bias
from model.evaluate import Evaluation, dev_metrics, evaluate, forward_of, sequence_losses, word_errors_of
from model.examples import Examples, examples, is_example_epoch, rows_of
from model.floors import constant_posterior, floors
from model.memory import keep_freed_memory
from model.numerics import autocast, first_non_finite
from model.on_device import on_device
from model.probes import Losses, permuted_gap, swap_gap
from model.schedule import learning_rate_at
from model.types import EpochReport, Stopped, TrainingConfig, mixed_seed

log = logging.getLogger(__name__)

TRAIN_SAMPLE = 64
"""Training sequences whose WER is measured after takeoff, to tell overfitting from a hard corpus."""

STEP_SAMPLES = 4
"""Updates of an epoch whose weight change is measured."""


def ctc_loss_sum(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC loss summed over sequences, in nats. Every target must be feasible (blank is class 0).

    Args:
        log_probs: (B, T, V) float32.
        lengths: (B,) output frames.
        targets: (sum of target_lengths,) concatenated.
        target_lengths: (B,).
    """
    return F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, target_lengths, blank=0, reduction="sum")


def pick_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: CUDA is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda, but torch finds no CUDA device; use device: auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, eq=False)
class Update:
    """What one step of the optimizer showed, taken or skipped."""

    loss: float
    """CTC loss summed over its sequences (nats)."""
    glosses: int
    norm: float
    """Of the gradient of the loss per gloss, before clipping."""
    suspect: NDArray[np.int64]
    """Training sequences: its first batch whose loss was not finite, else its first one."""
    change: float | None = None
    """Root mean square of the change of all weights; None where nobody asked, and of a skipped step."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were: else the step was skipped."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.norm))


class CTCTrainer:
    """Trains the student on one corpus. See `model.types.Trainer` for the contract.

    Args:
        features_on_device: whether the features of train and dev lie there. None: on CUDA, where they fit.

    Raises:
        CorpusError: no target fits the output stride. (That too few of them fit is for `check` to refuse.)
        ValueError: the device or the precision cannot be had.
    """

    def __init__(self, config: TrainingConfig, corpus: Corpus, features_on_device: bool | None = None) -> None:
        self.config = config
        self.fits = corpus.train.fits(config.output_stride)
        """Which training sequences have an alignment (N,); the others are left out."""
        if not self.fits.any():
            raise CorpusError(
                f"{corpus.folder}: no sentence of train has an alignment at output stride {config.output_stride}; "
                "lower it, or check that these annotations belong to these features"
            )
        keep_freed_memory()
        torch.set_num_threads(config.threads)
        self.device = pick_device(config.device)
        torch.manual_seed(mixed_seed(config.seed, "initialisation"))
        self.model = make_model(config, [m.width for m in corpus.modalities], len(corpus.vocabulary))
        if config.output_bias == "floor":
            train = corpus.train
            posterior = constant_posterior(train.lengths // config.output_stride, train.targets, len(corpus.vocabulary))
            set_output_bias(self.model, torch.from_numpy(posterior).log())
        self.model.to(self.device)
        self.corpus = on_device(corpus, self.device, features_on_device)
        self.forward = forward_of(self.model, self.device, config.precision)
        # fused: 10-30 % faster steps.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.learning_rate,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.epoch = 0
        self.step = 0
        """Batches seen, those of dev and of dropped epochs included: it moves while anything does."""
        self.updates = 0
        self.lr_time = 0.0
        self.dev_losses: list[float] = []
        self.dev_wers: list[float] = []

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        """Train one epoch and evaluate on dev.

        Raises:
            Stopped: `should_stop()` was true before a step; weights are then in the middle of an epoch.
        """
        began = time.perf_counter()
        config, epoch = self.config, self.epoch + 1
        groups = self.groups(epoch)
        sampled = set(((np.arange(STEP_SAMPLES) + 0.5) * len(groups) / STEP_SAMPLES).astype(int).tolist())

        self.begin(epoch)
        loss_sum, glosses, norms, ratios, skipped, not_finite = 0.0, 0, [], [], 0, ""
        for number, group in enumerate(groups):
            rate = learning_rate_at(self.updates, len(groups), self.dev_losses, config)
            update = self.update(group, rate, should_stop, watched=number in sampled)
            if update is None:
                continue
            if update.finite:
                if update.change is not None:
                    ratios.append(update.change / rate)
                norms.append(update.norm)
                loss_sum += update.loss
                glosses += update.glosses
            else:
                not_finite = not_finite or self._where_not_finite(update.suspect, epoch, number)
                skipped += len(group)

        evaluation = self.evaluate(self.corpus.dev, should_stop)
        metrics = {
            "train/loss": loss_sum / glosses if glosses else float("nan"),
            "train/infeasible": float((~self.fits).sum()),
            "optim/lr": rate,
            "optim/grad_norm": float(np.mean(norms)) if norms else float("nan"),
            "optim/clipped": float(np.mean(np.array(norms) > config.clip_norm)) if norms else float("nan"),
            "optim/skipped": float(skipped),
            "optim/step_ratio": float(np.mean(ratios)) if ratios else float("nan"),
            **dev_metrics(evaluation, self.corpus.dev.references, self.corpus.vocabulary),
        }
        self.dev_wers.append(metrics["dev/wer"])
        try:
            metrics |= self._probe(evaluation, epoch, should_stop)
        except Stopped:
            self.dev_wers.pop()
            raise
        shown = self._examples(evaluation) if is_example_epoch(epoch) and evaluation.finite else None
        self.dev_losses.append(metrics["dev/loss"])
        self.epoch = epoch
        return EpochReport(
            epoch,
            self.updates,
            metrics,
            sum(map(len, groups)),
            skipped,
            self.lr_time,
            time.perf_counter() - began,
            not_finite,
            shown,
        )

    def groups(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        """The batches of an epoch (1 for the first), those of one update together: indices of training sequences."""
        # They are drawn over all sequences, so that every trial sees the same batches whatever its stride.
        config, lengths = self.config, self.corpus.train.lengths
        batches = epoch_batches(lengths, config.batch_size, config.data_seed, epoch, config.length_buckets)
        return [batches[i : i + config.accumulate] for i in range(0, len(batches), config.accumulate)]

    def begin(self, epoch: int) -> None:
        """Be ready to train an epoch: in training mode, with its dropout."""
        torch.manual_seed(mixed_seed(self.config.seed, "dropout", epoch))
        self.model.train()

    def update(
        self,
        group: Sequence[NDArray[np.int64]],
        rate: float,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        watched: bool = False,
    ) -> Update | None:
        """One step of the optimizer on these batches at this learning rate; skipped where something is not finite.

        Args:
            watched: measure how far the weights move.

        Returns: what it showed; None where no target of these batches has an alignment.

        Raises:
            Stopped: `should_stop()` was true before a batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses, glosses, batches = [], 0, []
        for indices in group:
            if should_stop():
                raise Stopped
            self.step += 1
            rows = indices[self.fits[indices]]
            if not len(rows):
                continue
            batch = make_batch(self.corpus.train, rows)
            loss = self._loss(batch)
            glosses += int(batch.target_lengths.sum())
            del batch  # its memory is that of the next one
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            batches.append(rows)
        self.updates += 1
        if not batches:
            return None
        # Nats per gloss over the whole group, so that accumulating equals one large batch.
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(glosses)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        *values, size = torch.stack([*losses, norm]).tolist()  # together: each transfer waits for the GPU
        loss_sum, suspect = 0.0, batches[0]
        for rows, value in zip(batches, values, strict=True):
            if np.isfinite(loss_sum) and not np.isfinite(value):
                suspect = rows
            loss_sum += value
        done = Update(loss_sum, glosses, size, suspect)
        if not done.finite:
            return done
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate
        before = [p.detach().clone() for p in self.model.parameters()] if watched else None
        self.optimizer.step()
        self.lr_time += rate
        return replace(done, change=self._rms_change(before)) if before is not None else done

    def measure_epoch_seconds(self, steps: int = 4) -> float:
        """Seconds an epoch will take, from a few training steps whose gradients are thrown away, and dev once.

        Batch statistics move: measure with a trainer that will not train.
        """
        self.model.train()
        train = self.corpus.train
        batches = [indices[self.fits[indices]] for group in self.groups(1) for indices in group]
        batches = [rows for rows in batches if len(rows)]
        per_frame = []  # batches of one length bucket are far from as long as each other
        for rows in batches[:steps]:
            began = time.perf_counter()
            loss = self._loss(make_batch(train, rows))
            loss.backward()  # type: ignore[no-untyped-call]
            if self.device.type == "cuda":  # where a call returns before its work is done
                torch.cuda.synchronize(self.device)
            per_frame.append((time.perf_counter() - began) / train.lengths[rows].sum())
        self.model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        self.evaluate(self.corpus.dev)
        frames = train.lengths[self.fits].sum()
        return float(np.median(per_frame) * frames) + time.perf_counter() - began

    def evaluate(
        self,
        split: Split,
        should_stop: Callable[[], bool] = lambda: False,
        rows: NDArray[np.int64] | None = None,
    ) -> Evaluation:
        """A split, or these rows of it, in eval mode.

        Raises:
            Stopped: `should_stop()` was true before a batch.
        """
        return evaluate(
            self.model,
            self.forward,
            split,
            self.config.output_stride,
            self.config.eval_batch_size,
            rows=rows,
            on_batch=self._watch(should_stop),
        )

    def losses_of(self, split: Split, should_stop: Callable[[], bool] = lambda: False) -> Losses:
        """What the probes ask for: the losses of rows of a split with features other than their own.

        Calling it raises:
            Stopped: `should_stop()` was true before a batch.
        """
        stride, size, on_batch = self.config.output_stride, self.config.eval_batch_size, self._watch(should_stop)

        def losses(rows: NDArray[np.int64], features: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float64]:
            return sequence_losses(self.model, self.forward, split, rows, stride, size, features, on_batch)

        return losses

    def state_dict(self) -> dict[str, Any]:
        """Everything the next epoch depends on, loadable with `weights_only=True`.

        The place in the data, the learning rate and the random numbers follow from seeds, epoch and these numbers.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "updates": self.updates,
            "lr_time": self.lr_time,
            "dev_losses": list(self.dev_losses),
            "dev_wers": list(self.dev_wers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, of a trainer of the same config and corpus."""
        self.model.load_state_dict(state["model"])
        # A copy: torch would take the tensors themselves, and two trainers would share one set of moments.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.epoch, self.updates = state["epoch"], state["updates"]
        self.lr_time = state["lr_time"]
        self.dev_losses, self.dev_wers = list(state["dev_losses"]), list(state["dev_wers"])

    def _loss(self, batch: Batch) -> Tensor:
        log_probs, _ = self.forward(batch)
        # The loss wants lengths on the host: from a GPU it would fetch them, and wait.
        lengths, target_lengths = batch.lengths // self.config.output_stride, batch.target_lengths
        targets = torch.from_numpy(batch.targets).to(self.device)
        return ctc_loss_sum(log_probs, torch.from_numpy(lengths), targets, torch.from_numpy(target_lengths))

    def _watch(self, should_stop: Callable[[], bool]) -> Callable[[], None]:
        def on_batch() -> None:
            if should_stop():
                raise Stopped
            self.step += 1

        return on_batch

    @torch.no_grad()
    def _rms_change(self, before: list[Tensor]) -> float:
        """Root mean square of the change of all weights."""
        moved = [(p - old).square().sum() for p, old in zip(self.model.parameters(), before, strict=True)]
        return float((torch.stack(moved).sum() / sum(old.numel() for old in before)).sqrt())

    def _where_not_finite(self, rows: NDArray[np.int64], epoch: int, update: int) -> str:
        """One line for the log: the first module that gave a value that is not finite on these training sequences."""
        batch = make_batch(self.corpus.train, rows)
        features, lengths = (torch.as_tensor(x, device=self.device) for x in (batch.features, batch.lengths))
        with autocast(self.config.precision, self.device):
            module = first_non_finite(self.model, features, lengths)
        names = ", ".join(self.corpus.train.ids[i] for i in rows)
        where = f"first in {module}" if module else "in the loss or the gradient, after finite outputs"
        text = f"epoch {epoch}, update {update + 1}: not finite {where} (batch {names})"
        log.warning("%s; the update is skipped", text)
        return text

    @torch.no_grad()
    def _examples(self, evaluation: Evaluation) -> Examples | None:
        """Some sentences of dev as they were read; None where none of them has an output frame."""
        dev, vocabulary = self.corpus.dev, self.corpus.vocabulary
        rows = [row for row in rows_of(len(dev)) if dev.lengths[row] >= self.config.output_stride]
        if not rows:
            return None
        middle = sorted(rows, key=lambda row: (int(dev.lengths[row]), row))[len(rows) // 2]
        self.model.eval()
        log_probs, lengths = self.forward(make_batch(dev, np.array([middle])))
        return examples(
            [
                (dev.ids[row], dev.references[row], " ".join(vocabulary.decode(evaluation.hypotheses[row])))
                for row in rows
            ],
            dev.ids[middle],
            dev.targets[middle].tolist(),
            log_probs[0, : int(lengths[0])].float().cpu().numpy(),
            vocabulary.glosses,
        )

    def _probe(self, evaluation: Evaluation, epoch: int, should_stop: Callable[[], bool]) -> dict[str, float]:
        """The keys of `NOT_EVERY_EPOCH`, in an epoch that asks for them: all in the plateau, some after takeoff."""
        interval = self.config.probe_interval
        if not interval or not evaluation.finite:
            return {}
        takeoff = takeoff_epoch(self.dev_wers, floors(self.corpus, self.config.output_stride).constant_wer)
        if takeoff is not None and (epoch - takeoff) % interval:
            return {}
        dev, stride, losses = self.corpus.dev, self.config.output_stride, self.losses_of(self.corpus.dev, should_stop)
        swap, permuted = (probe(dev, stride, evaluation.losses, losses) for probe in (swap_gap, permuted_gap))
        found = {
            "probe/sequences": float(swap.sequences),
            "probe/swap_gap": swap.gap,
            "probe/swap_t": swap.t,
            "probe/permuted_gap": permuted.gap,
            "probe/permuted_t": permuted.t,
        }
        found = {key: value for key, value in found.items() if np.isfinite(value)}  # else there is no evidence
        if takeoff is not None:
            train = self.corpus.train
            rows = np.flatnonzero(self.fits)
            rows = rows[np.linspace(0, len(rows) - 1, min(TRAIN_SAMPLE, len(rows))).round().astype(np.int64)]
            sample = self.evaluate(train, should_stop, rows)
            references = [train.references[row] for row in rows]
            found["train/wer"] = word_errors_of(sample, references, self.corpus.vocabulary).wer
        return found
