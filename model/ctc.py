"""The readable loop: CTC training of the student, one epoch a call.

Data order is a function of (data_seed, epoch); dropout of (seed, epoch); the learning rate of the step and the dev
losses. So a run is its weights, its optimizer's moments and a few numbers: restored from `state_dict`, it goes on as
if it had never stopped, bit for bit on one CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data import Batch, Corpus, Split, epoch_order, make_batch
from model.decode import greedy_decode
from model.encoder import Student
from model.metrics import Spread, WordErrors, log_prob_spread, word_errors
from model.schedule import learning_rate_at
from model.types import EpochReport, Stopped, TrainingConfig, mixed_seed


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


class CTCTrainer:
    """Trains the student on one corpus. See `model.types.Trainer` for the contract."""

    def __init__(self, config: TrainingConfig, corpus: Corpus) -> None:
        self.config, self.corpus = config, corpus
        torch.set_num_threads(config.threads)
        self.device = pick_device(config.device)
        torch.manual_seed(mixed_seed(config.seed, "initialisation"))
        self.model = Student(
            [m.width for m in corpus.modalities],
            len(corpus.vocabulary),
            config.channels,
            config.hidden,
            config.lstm_layers,
            config.dropout,
        ).to(self.device)
        # eps 1e-8: with 1e-3 the real step was twelve times smaller on this student. fused: 10-30 % faster steps.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, eps=1e-8, weight_decay=config.weight_decay, fused=True
        )
        self.epoch = 0
        self.step = 0
        """Batches seen, those of dev and of dropped epochs included: it moves while anything does."""
        self.updates = 0
        self.lr_time = 0.0
        self.dev_losses: list[float] = []

    def train_epoch(self, should_stop: Callable[[], bool]) -> EpochReport:
        """Train one epoch and evaluate on dev.

        Raises:
            Stopped: `should_stop()` was true before a step; weights are then in the middle of an epoch.
        """
        began = time.perf_counter()
        config, epoch = self.config, self.epoch + 1
        torch.manual_seed(mixed_seed(config.seed, "dropout", epoch))
        order = epoch_order(len(self.corpus.train), config.data_seed, epoch)
        batches = np.array_split(order, range(config.batch_size, len(order), config.batch_size))
        groups = [batches[i : i + config.accumulate] for i in range(0, len(batches), config.accumulate)]

        self.model.train()
        loss_sum, glosses, norms, skipped = 0.0, 0, [], 0
        for group in groups:
            rate = learning_rate_at(self.updates, len(groups), self.dev_losses, config)
            self.optimizer.zero_grad(set_to_none=True)
            group_loss, group_glosses = 0.0, 0
            for indices in group:
                if should_stop():
                    raise Stopped
                batch = make_batch(self.corpus.train, indices)
                loss = self._loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                group_loss += loss.item()
                group_glosses += int(batch.target_lengths.sum())
                self.step += 1
            # Nats per gloss over the whole group, so that accumulating equals one large batch.
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(group_glosses)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm).item()
            if np.isfinite(group_loss) and np.isfinite(norm):
                for settings in self.optimizer.param_groups:
                    settings["lr"] = rate
                self.optimizer.step()
                self.lr_time += rate
                norms.append(norm)
                loss_sum += group_loss
                glosses += group_glosses
            else:
                skipped += len(group)
            self.updates += 1

        metrics = {
            "train/loss": loss_sum / glosses if glosses else float("nan"),
            "optim/lr": rate,
            "optim/grad_norm": float(np.mean(norms)) if norms else float("nan"),
            **self.evaluate(self.corpus.dev, should_stop),
        }
        self.dev_losses.append(metrics["dev/loss"])
        self.epoch = epoch
        return EpochReport(
            epoch, self.updates, metrics, len(batches), skipped, self.lr_time, time.perf_counter() - began
        )

    def measure_epoch_seconds(self, steps: int = 4) -> float:
        """Seconds an epoch will take, from a few training steps whose gradients are thrown away, and dev once.

        Batch statistics move: measure with a trainer that will not train.
        """
        self.model.train()
        n, size = len(self.corpus.train), self.config.batch_size
        order = epoch_order(n, self.config.data_seed, 1)
        seconds = []
        for start in range(0, min(n, steps * size), size):
            began = time.perf_counter()
            loss = self._loss(make_batch(self.corpus.train, order[start : start + size]))
            loss.backward()  # type: ignore[no-untyped-call]
            if self.device.type == "cuda":  # where a call returns before its work is done
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - began)
        self.model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        self.evaluate(self.corpus.dev)
        return float(np.median(seconds)) * n / size + time.perf_counter() - began

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        features = torch.from_numpy(batch.features).to(self.device)
        log_probs, lengths = self.model(features, torch.from_numpy(batch.lengths).to(self.device))
        return log_probs, lengths

    def _loss(self, batch: Batch) -> Tensor:
        log_probs, lengths = self._forward(batch)
        return ctc_loss_sum(
            log_probs,
            lengths,
            torch.from_numpy(batch.targets).to(self.device),
            torch.from_numpy(batch.target_lengths).to(self.device),
        )

    @torch.no_grad()
    def evaluate(self, split: Split, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Loss, word errors, spread and decoding shares on a split, in eval mode. Keys start with `dev/`, `spread/`
        and `decode/`, whatever the split.

        Raises:
            Stopped: `should_stop()` was true before a batch.
        """
        self.model.eval()
        by_length = np.argsort(split.lengths, kind="stable")  # little padding; the results do not depend on it
        hypotheses: list[Sequence[int]] = [()] * len(split)
        loss_sum, glosses, blanks, frames, spread = 0.0, 0, 0, 0, Spread()
        for start in range(0, len(by_length), self.config.eval_batch_size):
            if should_stop():
                raise Stopped
            self.step += 1
            batch = make_batch(split, by_length[start : start + self.config.eval_batch_size])
            log_probs, lengths = self._forward(batch)
            each = F.ctc_loss(
                log_probs.transpose(0, 1),
                torch.from_numpy(batch.targets).to(self.device),
                lengths,
                torch.from_numpy(batch.target_lengths).to(self.device),
                reduction="none",
            ).cpu()
            feasible = split.feasible[batch.indices]
            loss_sum += float(each[torch.from_numpy(feasible)].double().sum())
            glosses += int(batch.target_lengths[feasible].sum())
            spread += log_prob_spread(log_probs, lengths)
            decoded, blank = greedy_decode(log_probs, lengths)
            blanks += blank
            frames += int(lengths.sum())
            for index, hypothesis in zip(batch.indices, decoded, strict=True):
                hypotheses[index] = hypothesis
        finite = np.isfinite(spread.maximum - spread.minimum)
        sentences = [" ".join(self.corpus.vocabulary.decode(h)) for h in hypotheses]
        # Without finite outputs there is nothing to decode: "all blank" would read like a plateau.
        errors = word_errors(split.references, sentences) if finite else WordErrors(*[float("nan")] * 4)
        return {
            "dev/loss": loss_sum / glosses if glosses else float("nan"),
            "dev/wer": errors.wer,
            "dev/sub": errors.substitutions,
            "dev/del": errors.deletions,
            "dev/ins": errors.insertions,
            "spread/min": spread.minimum,
            "spread/max": spread.maximum,
            "spread/range": spread.maximum - spread.minimum,
            "spread/time": spread.time,
            "decode/glosses": len({gloss for h in hypotheses for gloss in h}),
            "decode/hypotheses": len({tuple(h) for h in hypotheses}),
            "decode/blank": blanks / frames,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything the next epoch depends on, loadable with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "updates": self.updates,
            "lr_time": self.lr_time,
            "dev_losses": list(self.dev_losses),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, of a trainer of the same config and corpus."""
        self.model.load_state_dict(state["model"])
        # A copy: torch would take the tensors themselves, and two trainers would share one set of moments.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.epoch, self.updates = state["epoch"], state["updates"]
        self.lr_time, self.dev_losses = state["lr_time"], list(state["dev_losses"])
