"""The floating point operations of a step, against torch's own counter and by hand."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.encoder import Student

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from flops import matmul_rate, step_flops

HIDDEN, LAYERS, LENGTHS = 12, 2, [40, 43, 41]  # of one length behind the encoder: the LSTM meets no padding


def student(stride: int = 4) -> Student:
    return Student([7, 5], 9, 24, HIDDEN, LAYERS, 0.0, stride=stride)


def not_seen(network: Student) -> int:
    """Forward FLOP that torch's counter cannot see: depthwise convolutions are sums of shifted rows."""
    rows = [sum(n // rate for n in LENGTHS) for rate in network.rates]
    return sum(
        2 * block.depthwise.weight.numel() * after
        for encoder in network.encoders
        for block, (_, after) in zip(encoder.blocks, pairwise(rows), strict=True)
    )


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of other devices, as soon as oneDNN's setting is touched
@pytest.mark.parametrize("stride", [4, 8])
def test_the_count_is_torchs(stride: int) -> None:
    network = student(stride).train()
    features = torch.randn(len(LENGTHS), max(LENGTHS), 12)
    # oneDNN's LSTM is one operation, which the counter does not know.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        log_probs, _ = network(features, torch.tensor(LENGTHS))
        forward = counter.get_total_flops()
        log_probs.sum().backward()
        backward = counter.get_total_flops() - forward
    counted = step_flops(network, LENGTHS)
    assert counted.forward == forward + not_seen(network)
    # torch leaves out the gradient of each sequence's first hidden state, which nothing needs: in each direction.
    first_states = 2 * LAYERS * len(LENGTHS) * 2 * HIDDEN * 4 * HIDDEN
    assert counted.backward == backward + 2 * not_seen(network) + first_states


def test_the_count_by_hand() -> None:
    """One modality of 10, 8 channels, output stride 4, two sentences of 9 and 8 frames."""
    network = Student([10], 5, 8, HIDDEN, 1, 0.0)
    half, quarter = 4 + 4, 2 + 2  # frames
    stem = half * 5 * 10 * 8
    gates = 2 * (16 * 8 + 8 * 16)  # of two sentences
    first = half * (8 * 16 + 3 * 16 + 16 * 8) + gates
    second = half * 8 * 16 + quarter * (5 * 16 + 16 * 8) + gates
    third = quarter * (8 * 16 + 5 * 16 + 16 * 8) + gates
    lstm = 2 * quarter * (8 + HIDDEN) * 4 * HIDDEN
    rest = first + second + third + lstm + quarter * 2 * HIDDEN * 5
    assert step_flops(network, [9, 8]) == (2 * (stem + rest), 2 * (stem + 2 * rest))


def test_padding_and_order_are_no_work() -> None:
    network = student()
    assert step_flops(network, [40, 23, 17]) == step_flops(network, [17, 40, 23])
    apart = [step_flops(network, [n]) for n in (40, 23, 17)]
    assert step_flops(network, [40, 23, 17]).forward == sum(each.forward for each in apart)


def test_the_rate_of_matrix_products_is_that_of_a_machine() -> None:
    assert 1e8 < matmul_rate(3) < 1e14
