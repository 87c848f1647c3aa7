"""The models: the student (MobileNetV3-1D encoders, one a modality, a BiLSTM over them, a CTC head), and a plain
BiLSTM as its control.

Sequences are padded to (B, T) and a mask goes along; batch statistics, squeeze-excite, convolutions and upsampling see
valid frames only, so a sequence gives the same output alone and in any batch.

Both give (T // output stride) frames of log-probabilities for a sequence of T frames, and take T >= output stride.

Blocks: Howard et al. 2019, "Searching for MobileNetV3"; Sandler et al. 2018 (inverted residual); Hu et al. 2018
(squeeze-excite). The head: Graves et al. 2006 (CTC).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.types import TrainingConfig

BLOCK_STRIDES = {1: (1, 2, 1), 2: (1, 2, 1), 4: (1, 2, 1), 8: (2, 2, 1), 16: (2, 2, 2)}
"""Output stride of the student to the strides of its three blocks; the stem before them always halves. At 1 and 2 the
encoder runs at a quarter of the frame rate as well, and its output is upsampled."""


def time_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, 1, frames) with 1 at valid frames, in float32: what it masks is then summed in float32 under autocast too."""
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
    """One modality, (B, D, T) to (B, C, T // rate), where rate is twice the product of the blocks' strides."""

    def __init__(self, width: int, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.padding = same_padding(5, 2)
        self.stem = nn.Conv1d(width, channels, 5, stride=2, bias=False)
        self.stem_norm = MaskedBatchNorm(channels)
        wide = 2 * channels
        self.blocks = nn.ModuleList(
            InvertedResidual(channels, wide, channels, kernel, stride)
            for kernel, stride in zip((3, 5, 5), strides, strict=True)
        )

    def forward(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """`masks` are the time masks behind the stem and behind each block."""
        x = F.hardswish(self.stem_norm(self.stem(F.pad(x, self.padding)), masks[0]))
        for block, (mask, out_mask) in zip(self.blocks, pairwise(masks), strict=True):
            x = block(x, mask, out_mask)
        return x


def upsample(x: Tensor, lengths: Tensor, factor: int, frames: int) -> Tensor:
    """Linear interpolation in time, (B, C, T) to (B, C, frames), each sequence within its own length.

    Frame t of the output lies at (t + 0.5) / factor - 0.5 of the input, where the time it covers is centred; before
    the first valid frame and after the last the value stays.

    Args:
        lengths: (B,) valid frames of x, at least 1 each.
        frames: at most factor * (T + 1).
    """
    last = x.gather(2, (lengths - 1)[:, None, None].expand(-1, x.shape[1], 1))  # (B, C, 1)
    x = torch.where(time_mask(lengths, x.shape[2]) > 0, x, last)
    return F.interpolate(torch.cat([x, last], 2), scale_factor=factor, mode="linear")[:, :, :frames]


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
    """Features (B, T, D) to log-probabilities (B, T // stride, V).

    Args:
        widths: width of each modality, in the order they stand in D.
        classes: V, blank included.
        channels: encoder width over all modalities together.
        hidden: BiLSTM width, each direction.
        dropout: before and after the BiLSTM.
        stride: input frames per output frame: 1, 2, 4, 8 or 16.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        channels: int,
        hidden: int,
        lstm_layers: int,
        dropout: float,
        stride: int = 4,
    ) -> None:
        super().__init__()
        self.widths, self.stride = list(widths), stride
        each = max(8, channels // len(widths))
        strides = BLOCK_STRIDES[stride]
        self.rates = [2 * math.prod(strides[:i]) for i in range(len(strides) + 1)]
        """Input frames per frame behind the stem and behind each block."""
        self.encoders = nn.ModuleList(ModalityEncoder(width, each, strides) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.lstm = BiLSTM(each * len(widths), hidden, lstm_layers)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (B, T, D), zero where padded.
            lengths: (B,) valid frames, at least `stride` each.

        Returns:
            Log-probabilities (B, T // stride, V) in float32, and their lengths (B,).
        """
        frames, rate = features.shape[1], self.rates[-1]
        if frames < rate:  # at strides 1 and 2 the encoder still makes one frame of a shorter sequence
            features = F.pad(features, (0, 0, 0, rate - frames))
        masks = [time_mask((lengths // r).clamp(min=1), features.shape[1] // r) for r in self.rates]
        parts = torch.split(features.transpose(1, 2), self.widths, 1)
        x = torch.cat([encode(part, masks) for encode, part in zip(self.encoders, parts, strict=True)], 1)
        if self.stride < rate:
            x = upsample(x, (lengths // rate).clamp(min=1), rate // self.stride, frames // self.stride)
        x = self.dropout(x.transpose(1, 2))  # (B, T // stride, C)
        out_lengths = lengths // self.stride
        y = self.dropout(self.lstm(x, out_lengths))
        return self.head(y).float().log_softmax(-1), out_lengths


class BiLSTMControl(nn.Module):
    """The control: a BiLSTM over the features as they are, and a head. What the student is to be compared with.

    Arguments as for `Student`; output strides above 1 average so many adjacent frames.
    """

    def __init__(
        self, widths: Sequence[int], classes: int, hidden: int, lstm_layers: int, dropout: float, stride: int = 4
    ) -> None:
        super().__init__()
        self.stride = stride
        self.dropout = nn.Dropout(dropout)
        self.lstm = BiLSTM(sum(widths), hidden, lstm_layers)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Student.forward`."""
        x = features.unfold(1, self.stride, self.stride).mean(3)  # (B, T // stride, D)
        out_lengths = lengths // self.stride  # a frame that some padding would enter is not among them
        y = self.dropout(self.lstm(self.dropout(x), out_lengths))
        return self.head(y).float().log_softmax(-1), out_lengths


def make_model(config: TrainingConfig, widths: Sequence[int], classes: int) -> Student | BiLSTMControl:
    """The model that `config` describes, with fresh parameters on the CPU.

    Args:
        widths: width of each modality.
        classes: blank included.
    """
    if config.architecture == "bilstm":
        return BiLSTMControl(
            widths, classes, config.hidden, config.lstm_layers, config.dropout, stride=config.output_stride
        )
    return Student(
        widths,
        classes,
        config.channels,
        config.hidden,
        config.lstm_layers,
        config.dropout,
        stride=config.output_stride,
    )


@torch.no_grad()
def set_output_bias(model: Student | BiLSTMControl, log_probabilities: Tensor) -> None:
    """Start the head at a constant posterior: its bias is set, its weights stay as they were drawn.

    Args:
        log_probabilities: (V,) natural logarithms, finite; the best constant posterior of `model.floors`.

    Raises:
        ValueError: another number of classes, or a probability of zero.
    """
    bias = model.head.bias
    if log_probabilities.shape != bias.shape or not log_probabilities.isfinite().all():
        raise ValueError(
            f"output bias: got {tuple(log_probabilities.shape)} log-probabilities, "
            f"{int(log_probabilities.isfinite().sum())} of them finite; give one finite value for each of the "
            f"{len(bias)} classes"
        )
    bias.copy_(log_probabilities)
