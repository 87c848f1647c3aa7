"""Sequences of unequal length laid end to end, (N, C): the N frames of a batch that are there, and no padding.

In a padded batch of sentences in random order, 32 to 42 % of the frames are padding. Here they are not computed at all,
and batch statistics and squeeze-excite need no mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full(x: Tensor) -> Tensor:
    """In float32, where autocast gave less; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Frames(NamedTuple):
    """Where the frames of each sequence stand."""

    lengths: Tensor
    """(B,), at least 1 each."""
    starts: Tensor
    """The row of each sequence's first frame (B,)."""
    sequence: Tensor
    """Which sequence a frame belongs to (N,)."""
    time: Tensor
    """Which of its frames it is, from 0 (N,)."""
    longest: int
    """Of the lengths. Known here, so that nobody has to ask a GPU for it and wait."""

    @classmethod
    def of(cls, lengths: Tensor) -> Frames:
        starts = lengths.cumsum(0) - lengths
        sequence = torch.repeat_interleave(lengths)
        time = torch.arange(len(sequence), device=lengths.device) - starts[sequence]
        return cls(lengths, starts, sequence, time, int(lengths.max()))

    def to(self, device: torch.device) -> Frames:
        lengths, starts, sequence, time = (each.to(device, non_blocking=True) for each in self[:4])
        return Frames(lengths, starts, sequence, time, self.longest)

    def packed(self, padded: Tensor) -> Tensor:
        """(B, T, C) to (N, C)."""
        return padded.flatten(0, 1).index_select(0, self._places(padded.shape[1]))

    def padded(self, x: Tensor, frames: int) -> Tensor:
        """(N, C) to (B, frames, C), zero where padded."""
        batch = len(self.lengths)
        flat = x.new_zeros(batch * frames, x.shape[1]).index_copy(0, self._places(frames), x)
        return flat.view(batch, frames, -1)

    def mean(self, x: Tensor) -> Tensor:
        """(N, C) to each sequence's mean over its frames (B, C), in full precision."""
        x = full(x)
        return x.new_zeros(len(self.lengths), x.shape[1]).index_add(0, self.sequence, x) / self.lengths[:, None]

    def _places(self, frames: int) -> Tensor:
        return self.sequence * frames + self.time


def same_padding(kernel: int, stride: int) -> tuple[int, int]:
    """Padding for which a convolution gives exactly T // stride frames."""
    total = kernel - stride
    return total // 2, total - total // 2


class Windows(NamedTuple):
    """What each frame behind a convolution sees: the frames before it are written into a buffer with zeros between the
    sequences, so that one convolution over the buffer never sees two of them.
    """

    kernel: int
    stride: int
    rows: int
    """Of the buffer."""
    into: Tensor
    """The row of each frame before the convolution (N,)."""
    out: Tensor
    """The place of each frame behind it, counted in strides (N',)."""

    @classmethod
    def of(cls, before: Frames, after: Frames, kernel: int, stride: int) -> Windows:
        """With zeros around each sequence as of `same_padding`.

        Args:
            after: max(1, T // stride) frames for each T of `before`.
        """
        left, _ = same_padding(kernel, stride)
        room = torch.maximum(before.lengths + left, (after.lengths - 1) * stride + kernel - left)
        room = (room + stride - 1) // stride * stride
        starts = room.cumsum(0) - room
        into = (starts + left)[before.sequence] + before.time
        return cls(kernel, stride, int(room.sum()) + kernel, into, (starts // stride)[after.sequence] + after.time)

    def to(self, device: torch.device) -> Windows:
        into, out = (each.to(device, non_blocking=True) for each in (self.into, self.out))
        return self._replace(into=into, out=out)

    def buffer(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.rows, x.shape[1]).index_copy(0, self.into, x)


class Pointwise(nn.Conv1d):
    """A convolution of one frame: (N, C) to (N, C')."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[:, :, 0])


class Conv(nn.Conv1d):
    """A convolution in time, (N, C) to (N', C')."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__(channels, out, kernel, stride, bias=False)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:  # type: ignore[override]
        rows = windows.buffer(x)
        channels, count = rows.shape[1], (windows.rows - windows.kernel) // windows.stride + 1
        # Rows that follow each other are one window: nothing is copied until here.
        seen = rows.as_strided((count, windows.kernel * channels), (windows.stride * channels, 1))
        return F.linear(seen.index_select(0, windows.out), self.weight.transpose(1, 2).flatten(1))


class DepthwiseConv(nn.Conv1d):
    """A convolution in time of each channel by itself, (N, C) to (N', C)."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(channels, channels, kernel, stride, groups=channels, bias=False)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:  # type: ignore[override]
        # A sum over the kernel of shifted rows: torch's grouped convolutions are slower, and much so on the way back.
        rows, (kernel, stride) = windows.buffer(x), (windows.kernel, windows.stride)
        last, weights = windows.rows - kernel, self.weight[:, 0].t()  # (kernel, C)
        y = rows[: last + 1 : stride] * weights[0]
        for shift in range(1, kernel):
            y = torch.addcmul(y, rows[shift : last + shift + 1 : stride], weights[shift])
        return y.index_select(0, windows.out)


class BatchNorm(nn.Module):
    """Batch normalisation over (N, C), in full precision. Statistics that are not finite do not stay."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = full(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # At momentum 1 torch leaves this batch's own statistics there.
        y = torch.batch_norm(x, self.weight, self.bias, mean, variance, True, 1.0, self.eps, True)
        # A batch that overflows is skipped by the trainer; and one frame alone has no variance.
        finite = mean.isfinite() & variance.isfinite()
        self.running_mean.lerp_(torch.where(finite, mean, self.running_mean), self.momentum)
        self.running_var.lerp_(torch.where(finite, variance, self.running_var), self.momentum)
        return y


class BiLSTM(nn.Module):
    """Bidirectional LSTM, (N, C) to (N, 2 * hidden).

    Two one-way LSTMs, the second on each sequence reversed, give what torch's packed sequences give, about three times
    faster on CPU (packing bypasses the fused kernel). There the sequences go through in groups of like lengths, as an
    LSTM takes them padded.
    """

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        inputs = [width] + [2 * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(nn.LSTM(n, hidden, batch_first=True) for n in inputs)
        self.back = nn.ModuleList(nn.LSTM(n, hidden, batch_first=True) for n in inputs)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        groups, there, back_there = _in_groups(frames, GROUP if x.device.type == "cpu" else len(frames.lengths))
        for ahead, back in zip(self.ahead, self.back, strict=True):
            both = []
            for lstm, reverse, place in ((ahead, False, there), (back, True, back_there)):
                outputs = [
                    lstm(x.index_select(0, (b if reverse else a).flatten()).view(*a.shape, -1))[0].flatten(0, 1)
                    for a, b in groups
                ]
                both.append(torch.cat(outputs).index_select(0, place))
            x = torch.cat(both, 1)
        return x


GROUP = 4
"""Sequences that go through an LSTM together on a CPU. At 128 units a step of four costs half of one of eight, and a
step of two a quarter more than half of one of four."""


def _in_groups(frames: Frames, size: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Sequences of like lengths together.

    Returns:
        For each group the rows of its frames (b, T), forwards and backwards; and for each frame (N,) its place among
        all of those laid end to end, forwards and backwards. Behind a sequence's end its last frame is repeated.
    """
    lengths = frames.lengths
    order = lengths.argsort(descending=True, stable=True)
    groups, first = [], torch.empty_like(lengths)  # first: the place of each sequence's first frame
    total = 0
    for members in torch.split(order, size):
        own = lengths[members][:, None]
        longest = frames.longest if len(members) == len(lengths) else int(lengths[members[0]])
        time = torch.arange(longest, device=lengths.device)
        start = frames.starts[members][:, None]
        groups.append((start + time.minimum(own - 1), start + (own - 1 - time).clamp(min=0)))
        first[members] = total + longest * torch.arange(len(members), device=lengths.device)
        total += longest * len(members)
    there = first[frames.sequence] + frames.time
    return groups, there, first[frames.sequence] + lengths[frames.sequence] - 1 - frames.time
