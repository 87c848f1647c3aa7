"""The baseline of the speed benchmarks: the student and its loop, written as a plain training script is.

One npz is opened a sentence and epoch, a batch is padded in Python, convolutions and an LSTM over packed sequences run
as torch offers them, AdamW with its defaults, `.item()` after every step, edit distance in Python. Masks keep padding
out of the batch statistics, so that its losses can be held against the product's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from model.corpus.data import Corpus, Split, epoch_order
from model.corpus.features import read_recording, seen_parts
from model.corpus.folder import FolderReader
from model.encoder import BLOCK_STRIDES, KERNELS, Student
from model.types import TrainingConfig


def mask_of(lengths: Tensor, frames: int) -> Tensor:
    return (torch.arange(frames) < lengths[:, None]).float()[:, None]  # (B, 1, T)


def conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    left = (kernel - stride) // 2
    pad = nn.ConstantPad1d((left, kernel - stride - left), 0.0)
    return nn.Sequential(pad, nn.Conv1d(channels, out, kernel, stride=stride, groups=groups, bias=False))


class MaskedNorm(nn.Module):
    """Batch normalisation over the valid frames of (B, C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, 1e-3)
        n = mask.sum()
        mean = (x * mask).sum((0, 2)) / n
        var = ((x - mean[:, None]).square() * mask).sum((0, 2)) / n
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
            self.var.lerp_(var * n / (n - 1), 0.1)
        return (x - mean[:, None]) * (self.weight / (var + 1e-3).sqrt())[:, None] + self.bias[:, None]


class Block(nn.Module):
    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.expand, self.expand_norm = conv(channels, wide), MaskedNorm(wide)
        self.depthwise, self.depthwise_norm = conv(wide, wide, kernel, stride, groups=wide), MaskedNorm(wide)
        squeezed = max(8, wide // 4)
        self.squeeze, self.excite = nn.Linear(wide, squeezed), nn.Linear(squeezed, wide)
        self.project, self.project_norm = conv(wide, channels), MaskedNorm(channels)
        self.residual = stride == 1

    def forward(self, x: Tensor, mask: Tensor, out_mask: Tensor) -> Tensor:
        wide = F.hardswish(self.expand_norm(self.expand(x), mask))
        wide = F.hardswish(self.depthwise_norm(self.depthwise(wide * mask), out_mask))
        mean = (wide * out_mask).sum(2) / out_mask.sum(2)
        wide = wide * F.hardsigmoid(self.excite(F.relu(self.squeeze(mean))))[:, :, None]
        y = self.project_norm(self.project(wide), out_mask)
        return x + y if self.residual else y


class Encoder(nn.Module):
    def __init__(self, width: int, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.stem_norm = conv(width, channels, 5, 2), MaskedNorm(channels)
        self.blocks = nn.ModuleList(Block(channels, k, s) for k, s in zip(KERNELS, strides, strict=True))

    def forward(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        x = F.hardswish(self.stem_norm(self.stem(x), masks[0]))
        for block, (mask, out_mask) in zip(self.blocks, pairwise(masks), strict=True):
            x = block(x, mask, out_mask)
        return x


class PlainStudent(nn.Module):
    """The student at output strides from 4."""

    def __init__(
        self, widths: Sequence[int], classes: int, channels: int, hidden: int, layers: int, dropout: float, stride: int
    ) -> None:
        super().__init__()
        self.widths, each, strides = list(widths), max(8, channels // len(widths)), BLOCK_STRIDES[stride]
        self.rates = [2 * math.prod(strides[:i]) for i in range(len(strides) + 1)]
        self.encoders = nn.ModuleList(Encoder(width, each, strides) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(each * len(widths), hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        masks = [mask_of(lengths // r, features.shape[1] // r).to(features.device) for r in self.rates]
        parts = torch.split(features.transpose(1, 2), self.widths, 1)
        x = torch.cat([encode(part, masks) for encode, part in zip(self.encoders, parts, strict=True)], 1)
        out = lengths // self.rates[-1]
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(x.transpose(1, 2)), out, batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(self.dropout(y)).log_softmax(-1), out

    def take(self, student: Student) -> None:
        """The weights of the product's student."""
        theirs, ours = [*student.encoders.parameters()], [*self.encoders.parameters()]
        for own, their in zip(ours, theirs, strict=True):
            own.data = their.data.clone()
        for layer, (ahead, back) in enumerate(zip(student.lstm.ahead, student.lstm.back, strict=True)):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                self.lstm.get_parameter(f"{name}_l{layer}").data = ahead.get_parameter(f"{name}_l0").data.clone()
                self.lstm.get_parameter(f"{name}_l{layer}_reverse").data = back.get_parameter(f"{name}_l0").data.clone()
        self.head.load_state_dict(student.head.state_dict())


def make_plain(config: TrainingConfig, corpus: Corpus) -> PlainStudent:
    return PlainStudent(
        [m.width for m in corpus.modalities],
        len(corpus.vocabulary),
        config.channels,
        config.hidden,
        config.lstm_layers,
        config.dropout,
        config.output_stride,
    )


def load(split: Split, i: int) -> Tensor:
    """One sentence, from its file."""
    assert isinstance(split.read, FolderReader)
    recording, normalisation = read_recording(split.read.files[i]), split.normalisation
    x = ((recording.x - normalisation.mean) * normalisation.scale).astype(np.float32)
    seen = seen_parts(recording.detected, normalisation.parts)
    for k in np.flatnonzero(~seen.all(axis=0)):
        x[~seen[:, k], normalisation.parts[k].columns] = 0
    return torch.from_numpy(x)


def collate(split: Split, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sequences = [load(split, i) for i in rows]
    targets = [torch.from_numpy(split.targets[i]) for i in rows]
    return (
        nn.utils.rnn.pad_sequence(sequences, batch_first=True),
        torch.tensor([len(x) for x in sequences]),
        torch.cat(targets),
        torch.tensor([len(t) for t in targets]),
    )


def edit_distance(a: Sequence[str], b: Sequence[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


class PlainLoop:
    """An epoch: train in the product's order, then loss and WER of dev."""

    def __init__(self, config: TrainingConfig, corpus: Corpus, model: nn.Module) -> None:
        self.config, self.corpus, self.model = config, corpus, model
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.epoch = 0

    def train_epoch(self) -> tuple[float, float, float]:
        """Loss (nats a gloss) over train, dev WER (fraction), seconds."""
        began = time.perf_counter()
        self.epoch += 1
        train, config = self.corpus.train, self.config
        order = epoch_order(len(train), config.data_seed, self.epoch)
        self.model.train()
        total, glosses, fits = 0.0, 0, train.fits(config.output_stride)
        for rows in np.array_split(order, range(config.batch_size, len(order), config.batch_size)):
            loss, count = self.step(rows[fits[rows]])
            total += loss * count
            glosses += count
        return total / glosses, self.wer(), time.perf_counter() - began

    def step(self, rows: NDArray[np.int64]) -> tuple[float, int]:
        """Loss (nats a gloss) of these training sentences, and their glosses."""
        features, lengths, targets, counts = collate(self.corpus.train, rows.tolist())
        self.optimizer.zero_grad()
        log_probs, out = self.model(features.to(self.device), lengths)
        targets = targets.to(self.device)
        loss = F.ctc_loss(log_probs.transpose(0, 1), targets, out, counts, reduction="sum") / counts.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.item(), int(counts.sum())

    @torch.no_grad()
    def wer(self) -> float:
        self.model.eval()
        dev, config, vocabulary = self.corpus.dev, self.config, self.corpus.vocabulary
        wrong = words = 0
        for start in range(0, len(dev), config.batch_size):
            rows = range(start, min(start + config.batch_size, len(dev)))
            features, lengths, targets, counts = collate(dev, rows)
            log_probs, out = self.model(features.to(self.device), lengths)
            targets = targets.to(self.device)
            F.ctc_loss(log_probs.transpose(0, 1), targets, out, counts, reduction="sum", zero_infinity=True).item()
            for row, best, n in zip(rows, log_probs.argmax(-1).tolist(), out.tolist(), strict=True):
                path = best[:n]
                heard = [c for i, c in enumerate(path) if c and (i == 0 or c != path[i - 1])]
                reference = dev.references[row].split()
                wrong += edit_distance(reference, vocabulary.decode(heard))
                words += len(reference)
        return wrong / words
