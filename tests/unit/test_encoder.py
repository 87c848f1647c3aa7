from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import BiLSTM, MaskedBatchNorm, Student, time_mask

WIDTHS, CLASSES = [5, 3], 11


def student(layers: int = 1, dropout: float = 0.0) -> Student:
    torch.manual_seed(0)
    return Student(WIDTHS, CLASSES, channels=16, hidden=16, lstm_layers=layers, dropout=dropout)


def padded(lengths: Sequence[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    """Features (B, T + extra, D) of these lengths, zero where padded. The same values for any `extra`."""
    generator = torch.Generator().manual_seed(7)
    x = torch.zeros(len(lengths), max(lengths) + extra, sum(WIDTHS))
    for row, n in zip(x, lengths, strict=True):
        row[:n] = torch.randn(n, sum(WIDTHS), generator=generator)
    return x, torch.tensor(lengths)


def seasoned(model: Student) -> Student:
    """The model with running statistics that are not those of initialisation, in eval mode."""
    model.train()
    for extra in range(3):
        model(*padded([40, 23, 17], extra))
    return model.eval()


@pytest.mark.parametrize("layers", [1, 2])
def test_a_sequence_gives_the_same_alone_and_in_a_padded_batch(layers: int) -> None:
    model, lengths = seasoned(student(layers)), [40, 4, 17, 23, 5, 38, 9]
    x, n = padded(lengths)
    together, out = model(x, n)
    for i, length in enumerate(lengths):
        alone, frames = model(x[i : i + 1, :length], n[i : i + 1])
        assert frames.item() == out[i].item() == length // 4
        torch.testing.assert_close(together[i, : length // 4], alone[0], atol=1e-5, rtol=0)


def test_batch_statistics_ignore_the_padding() -> None:
    lengths = [40, 4, 17, 23]
    tight, loose = student().train(), student().train()
    a, n = tight(*padded(lengths))
    b, _ = loose(*padded(lengths, extra=29))
    for row, wider, frames in zip(a, b, n, strict=True):
        torch.testing.assert_close(wider[:frames], row[:frames], atol=1e-5, rtol=0)
    for name, buffer in tight.named_buffers():
        torch.testing.assert_close(loose.get_buffer(name), buffer, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", range(4, 41))
def test_the_output_has_a_quarter_of_the_frames(frames: int) -> None:
    log_probs, lengths = student().eval()(*padded([frames]))
    assert log_probs.shape == (1, frames // 4, CLASSES)
    assert lengths.tolist() == [frames // 4]
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(1, frames // 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_bilstm_is_torchs_over_packed_sequences(layers: int) -> None:
    torch.manual_seed(1)
    ours = BiLSTM(6, 8, layers)
    theirs = nn.LSTM(6, 8, layers, batch_first=True, bidirectional=True)
    for layer in range(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            theirs.get_parameter(f"{name}_l{layer}").data = ours.ahead[layer].get_parameter(f"{name}_l0").data
            theirs.get_parameter(f"{name}_l{layer}_reverse").data = ours.back[layer].get_parameter(f"{name}_l0").data
    lengths = torch.tensor([9, 1, 12, 5])
    x = torch.randn(4, 12, 6)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    got = ours(x, lengths)
    assert got.shape == (4, 12, 16)
    for a, b, n in zip(got, expected, lengths, strict=True):
        torch.testing.assert_close(a[:n], b[:n], atol=1e-6, rtol=0)


def test_masked_batch_norm_is_batch_norm_over_the_valid_frames() -> None:
    torch.manual_seed(2)
    norm = MaskedBatchNorm(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, variance = torch.zeros(4), torch.ones(4)
    lengths = torch.tensor([10, 3, 1])
    mask = time_mask(lengths, 10)
    valid = mask[:, 0].bool()  # (B, T)
    for _ in range(3):
        x = 5 + 3 * torch.randn(3, 4, 10)
        x[~mask.bool().expand_as(x)] = 1e3  # what earlier layers leave in the padding
        expected = F.batch_norm(
            x.transpose(1, 2)[valid], mean, variance, norm.weight, norm.bias, True, norm.momentum, norm.eps
        )
        torch.testing.assert_close(norm(x, mask).transpose(1, 2)[valid], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
    norm.eval()
    expected = F.batch_norm(
        x.transpose(1, 2)[valid], mean, variance, norm.weight, norm.bias, False, norm.momentum, norm.eps
    )
    torch.testing.assert_close(norm(x, mask).transpose(1, 2)[valid], expected, atol=1e-4, rtol=1e-5)


def test_a_batch_of_one_frame_has_finite_statistics() -> None:
    norm = MaskedBatchNorm(2)
    assert norm(torch.ones(1, 2, 1), time_mask(torch.tensor([1]), 1)).abs().sum() == 0
    assert norm.running_var.isfinite().all()


def test_every_parameter_learns() -> None:
    model = student(layers=2, dropout=0.1).train()
    log_probs, lengths = model(*padded([40, 23, 17]))
    targets, counts = torch.tensor([1, 2, 3, 4]), torch.tensor([2, 1, 1])
    F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, counts, reduction="sum").backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_padding_gets_no_gradient() -> None:
    model = student().train()
    x, n = padded([40, 20])
    x.requires_grad_()
    log_probs, lengths = model(x, n)
    F.ctc_loss(log_probs.transpose(0, 1), torch.tensor([1, 2, 3]), lengths, torch.tensor([2, 1])).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad[0].abs().sum() > 0
    assert x.grad[1, 24:].abs().sum() == 0  # the convolutions reach a few frames past the end, no further
