"""The student: MobileNetV3-1D encoders, one a modality, a BiLSTM over them, and a CTC head.

Sequences are padded to (B, T) and a mask goes along; batch statistics, squeeze-excite and convolutions see valid
frames only, so a sequence gives the same output alone and in any batch.

Blocks: Howard et al. 2019, "Searching for MobileNetV3"; Sandler et al. 2018 (inverted residual); Hu et al. 2018
(squeeze-excite). The head: Graves et al. 2006 (CTC).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4
"""Input frames per output frame: the stem halves, and so does one block. Output frames = T // 4."""


def time_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, 1, frames) with 1 at valid frames."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).to(torch.float32)[:, None]


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over (B, C, T) whose statistics count valid frames only."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        frames = mask.sum()
        mean = (x * mask).sum((0, 2)) / frames
        centred = (x - mean[:, None]) * mask
        variance = centred.square().sum((0, 2)) / frames
        with torch.no_grad():
            unbiased = variance * frames / (frames - 1).clamp(min=1)
            # A batch that overflows is skipped by the trainer; its statistics must not stay behind.
            finite = mean.isfinite() & unbiased.isfinite()
            self.running_mean.lerp_(torch.where(finite, mean, self.running_mean), self.momentum)
            self.running_var.lerp_(torch.where(finite, unbiased, self.running_var), self.momentum)
        return centred * (self.weight * torch.rsqrt(variance + self.eps))[:, None] + self.bias[:, None]


class SqueezeExcite(nn.Module):
    """Channel gates from each sequence's mean over its valid frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 4)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x * mask).sum(2) / mask.sum(2)  # (B, C)
        return x * F.hardsigmoid(self.excite(F.relu(self.squeeze(mean))))[:, :, None]


def same_padding(kernel: int, stride: int) -> tuple[int, int]:
    """Padding for which the output has exactly T // stride frames."""
    total = kernel - stride
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1; residual where the shapes allow."""

    def __init__(self, channels: int, expanded: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, same_padding(kernel, stride)
        self.expand = nn.Conv1d(channels, expanded, 1, bias=False)
        self.expand_norm = MaskedBatchNorm(expanded)
        self.depthwise = nn.Conv1d(expanded, expanded, kernel, stride=stride, groups=expanded, bias=False)
        self.depthwise_norm = MaskedBatchNorm(expanded)
        self.gate = SqueezeExcite(expanded)
        self.project = nn.Conv1d(expanded, out, 1, bias=False)
        self.project_norm = MaskedBatchNorm(out)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor, mask: Tensor, out_mask: Tensor) -> Tensor:
        wide = F.hardswish(self.expand_norm(self.expand(x), mask))
        wide = self.depthwise(F.pad(wide * mask, self.padding))
        wide = F.hardswish(self.depthwise_norm(wide, out_mask))
        y: Tensor = self.project_norm(self.project(self.gate(wide, out_mask)), out_mask)
        return x + y if self.residual else y


class ModalityEncoder(nn.Module):
    """One modality, (B, D, T) to (B, C, T // 4)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.padding = same_padding(5, 2)
        self.stem = nn.Conv1d(width, channels, 5, stride=2, bias=False)
        self.stem_norm = MaskedBatchNorm(channels)
        wide = 2 * channels
        self.blocks = nn.ModuleList(
            InvertedResidual(channels, wide, channels, kernel, stride) for kernel, stride in ((3, 1), (5, 2), (5, 1))
        )

    def forward(self, x: Tensor, half: Tensor, quarter: Tensor) -> Tensor:
        """`half` and `quarter` are the time masks at those rates."""
        x = F.hardswish(self.stem_norm(self.stem(F.pad(x, self.padding)), half))
        first, second, third = self.blocks
        x = second(first(x, half, half), half, quarter)
        return third(x, quarter, quarter)  # type: ignore[no-any-return]


class BiLSTM(nn.Module):
    """Bidirectional LSTM over padded sequences, (B, T, C) to (B, T, 2 * hidden).

    Two one-way LSTMs, the second on each sequence reversed within its own length, give what torch's packed
    sequences give, about three times faster on CPU (packing bypasses the fused kernel).
    """

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        inputs = [width] + [2 * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(nn.LSTM(n, hidden, batch_first=True) for n in inputs)
        self.back = nn.ModuleList(nn.LSTM(n, hidden, batch_first=True) for n in inputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        time = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        reverse = torch.where(time < lengths[:, None], lengths[:, None] - 1 - time, time)[..., None]  # (B, T, 1)
        for ahead, back in zip(self.ahead, self.back, strict=True):
            backwards = back(x.gather(1, reverse.expand_as(x)))[0]
            x = torch.cat([ahead(x)[0], backwards.gather(1, reverse.expand_as(backwards))], 2)
        return x


class Student(nn.Module):
    """Features (B, T, D) to log-probabilities (B, T // 4, V).

    Args:
        widths: width of each modality, in the order they stand in D.
        classes: V, blank included.
        channels: encoder width over all modalities together.
        hidden: BiLSTM width, each direction.
        dropout: before and after the BiLSTM.
    """

    def __init__(
        self, widths: Sequence[int], classes: int, channels: int, hidden: int, lstm_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.widths = list(widths)
        each = max(8, channels // len(widths))
        self.encoders = nn.ModuleList(ModalityEncoder(width, each) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.lstm = BiLSTM(each * len(widths), hidden, lstm_layers)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (B, T, D), zero where padded.
            lengths: (B,) valid frames, at least 4 each.

        Returns:
            Log-probabilities (B, T // 4, V) in float32, and their lengths (B,).
        """
        frames = features.shape[1]
        half, quarter = time_mask(lengths // 2, frames // 2), time_mask(lengths // 4, frames // 4)
        parts = torch.split(features.transpose(1, 2), self.widths, 1)
        x = torch.cat([encode(part, half, quarter) for encode, part in zip(self.encoders, parts, strict=True)], 1)
        x = self.dropout(x.transpose(1, 2))  # (B, T // 4, C)
        out_lengths = lengths // STRIDE
        y = self.dropout(self.lstm(x, out_lengths))
        return self.head(y).float().log_softmax(-1), out_lengths
