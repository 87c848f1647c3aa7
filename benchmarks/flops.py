"""Floating point operations of a training step, counted from the shapes of the layers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import torch

from model.encoder import Student

SIDE = 1024
"""Of the square matrices whose product is the measure: as fast, on a CPU, as the best of the student's own shapes."""


class Flops(NamedTuple):
    forward: int
    backward: int


def step_flops(student: Student, lengths: Sequence[int]) -> Flops:
    """Of a step over sequences of so many frames: two for each weight of a convolution, an LSTM, a gate or the head and
    each frame that it meets, and on the way back twice that, for the gradients of weights and of inputs.

    The features have no gradient, so the first layers' way back is that of their weights alone. Frames are those that
    are there: what padding costs is no work done. What goes element by element (norms, activations, CTC loss, the
    optimizer) is left out.
    """
    rows = [sum(max(1, n // rate) for n in lengths) for rate in student.rates]
    outputs = sum(n // student.stride for n in lengths)
    first = behind = 0
    for encoder in student.encoders:
        first += encoder.stem.weight.numel() * rows[0]
        for block, (before, after) in zip(encoder.blocks, pairwise(rows), strict=True):
            behind += block.expand.weight.numel() * before
            behind += (block.depthwise.weight.numel() + block.project.weight.numel()) * after
            behind += (block.gate.squeeze.weight.numel() + block.gate.excite.weight.numel()) * len(lengths)
    for lstm in (*student.lstm.ahead, *student.lstm.back):
        behind += (lstm.weight_ih_l0.numel() + lstm.weight_hh_l0.numel()) * outputs
    behind += student.head.weight.numel() * outputs
    return Flops(2 * (first + behind), 2 * (first + 2 * behind))


def matmul_rate(repeats: int = 5) -> float:
    """FLOP/s of this thread at products of square float32 matrices: the median."""
    a, b = torch.rand(2, SIDE, SIDE)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / median(seconds)
