"""The models: the student (MobileNetV3-1D encoders, one a modality, a BiLSTM over them, a CTC head), and a plain
BiLSTM as its control.

Sequences come padded, (B, T, D), and are laid end to end at once (`model.jagged`): padding is never computed, and a
sequence gives the same output alone and in any batch. Only log-probabilities are padded again, as CTC loss takes them.

Both give (T // output stride) frames of log-probabilities for a sequence of T frames, and take T >= output stride.

Blocks: Howard et al. 2019, "Searching for MobileNetV3"; Sandler et al. 2018 (inverted residual); Hu et al. 2018
(squeeze-excite). The head: Graves et al. 2006 (CTC).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.jagged import BatchNorm, BiLSTM, Conv, DepthwiseConv, Frames, Pointwise, Windows, full
from model.types import TrainingConfig

BLOCK_STRIDES = {1: (1, 2, 1), 2: (1, 2, 1), 4: (1, 2, 1), 8: (2, 2, 1), 16: (2, 2, 2)}
"""Output stride of the student to the strides of its three blocks; the stem before them always halves. At 1 and 2 the
encoder runs at a quarter of the frame rate as well, and its output is upsampled."""


class SqueezeExcite(nn.Module):
    """Channel gates from each sequence's mean over its frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, channels // 4)
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        gates = F.hardsigmoid(self.excite(F.relu(self.squeeze(frames.mean(x)))))  # (B, C)
        return x * gates.index_select(0, frames.sequence)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1; residual where the shapes allow."""

    def __init__(self, channels: int, expanded: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.expand = Pointwise(channels, expanded)
        self.expand_norm = BatchNorm(expanded)
        self.depthwise = DepthwiseConv(expanded, kernel, stride)
        self.depthwise_norm = BatchNorm(expanded)
        self.gate = SqueezeExcite(expanded)
        self.project = Pointwise(expanded, out)
        self.project_norm = BatchNorm(out)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor, windows: Windows, after: Frames) -> Tensor:
        """(N, C) to the frames behind the depthwise convolution (N', C')."""
        wide = F.hardswish(self.expand_norm(self.expand(x)))
        wide = F.hardswish(self.depthwise_norm(self.depthwise(wide, windows)))
        y: Tensor = self.project_norm(self.project(self.gate(wide, after)))
        return x + y if self.residual else y


KERNELS = (3, 5, 5)
"""Of the blocks' depthwise convolutions."""

STEM_KERNEL, STEM_STRIDE = 5, 2


class ModalityEncoder(nn.Module):
    """One modality, (N, D) to (N', C), N' the frames at the encoder's rate."""

    def __init__(self, width: int, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.stem = Conv(width, channels, STEM_KERNEL, STEM_STRIDE)
        self.stem_norm = BatchNorm(channels)
        self.blocks = nn.ModuleList(
            InvertedResidual(channels, 2 * channels, channels, kernel, stride)
            for kernel, stride in zip(KERNELS, strides, strict=True)
        )

    def forward(self, x: Tensor, levels: Sequence[Frames], windows: Sequence[Windows]) -> Tensor:
        """
        Args:
            levels: the frames behind the stem and behind each block.
            windows: of the stem and of each block.
        """
        x = F.hardswish(self.stem_norm(self.stem(x, windows[0])))
        for block, seen, after in zip(self.blocks, windows[1:], levels[1:], strict=True):
            x = block(x, seen, after)
        return x


def upsample(x: Tensor, before: Frames, after: Frames, factor: int) -> Tensor:
    """Linear interpolation in time, (N, C) to (N', C), each sequence within its own length.

    Frame t of the output lies at (t + 0.5) / factor - 0.5 of the input, where the time it covers is centred; before
    the first frame and after the last the value stays.
    """
    at = (after.time + 0.5) / factor - 0.5
    at = at.clamp(min=0).minimum(before.lengths[after.sequence] - 1)
    low = at.long()
    high = (low + 1).minimum(before.lengths[after.sequence] - 1)
    start = before.starts[after.sequence]
    return x.index_select(0, start + low).lerp(x.index_select(0, start + high), (at - low).to(x.dtype)[:, None])


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
        self.strides = strides = BLOCK_STRIDES[stride]
        self.rates = [STEM_STRIDE * math.prod(strides[:i]) for i in range(len(strides) + 1)]
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
            Log-probabilities (B, T // stride, V) in full precision, zero where padded, and their lengths (B,), both
            where the features are. (`lengths` are best on the CPU.)
        """
        rate, device = self.rates[-1], features.device
        given, after = Frames.of(lengths), Frames.of(lengths // self.stride).to(device)
        # At strides 1 and 2 the encoder makes one frame of a sequence that is shorter than its rate.
        levels = [Frames.of((lengths // r).clamp(min=1)) for r in self.rates]
        kernels, strides = (STEM_KERNEL, *KERNELS), (STEM_STRIDE, *self.strides)
        windows = [
            Windows.of(*each).to(device) for each in zip([given, *levels[:-1]], levels, kernels, strides, strict=True)
        ]
        levels = [each.to(device) for each in levels]
        parts = torch.split(given.to(device).packed(features), self.widths, 1)
        x = torch.cat([encode(part, levels, windows) for encode, part in zip(self.encoders, parts, strict=True)], 1)
        if self.stride < rate:
            x = upsample(x, levels[-1], after, rate // self.stride)
        return _read_out(self, x, after, features.shape[1] // self.stride)


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
        after = Frames.of(lengths // self.stride).to(features.device)  # none of them that some padding would enter
        return _read_out(self, after.packed(x), after, x.shape[1])


def _read_out(model: Student | BiLSTMControl, x: Tensor, frames: Frames, longest: int) -> tuple[Tensor, Tensor]:
    """From frames (N, C) to log-probabilities (B, longest, V) and lengths (B,)."""
    y = model.dropout(model.lstm(model.dropout(x), frames))
    return frames.padded(full(model.head(y)).log_softmax(-1), longest), frames.lengths


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
