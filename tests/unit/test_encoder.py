from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import (
    BiLSTM,
    BiLSTMControl,
    MaskedBatchNorm,
    Student,
    make_model,
    set_output_bias,
    time_mask,
    upsample,
)
from model.numerics import autocast
from model.types import TrainingConfig

WIDTHS, CLASSES = [5, 3], 11
STRIDES = [1, 2, 4, 8, 16]
CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""What padding may change: rounding, in nats and in gradients."""


def student(stride: int = 4, layers: int = 1, dropout: float = 0.0) -> Student:
    torch.manual_seed(0)
    return Student(WIDTHS, CLASSES, channels=16, hidden=16, lstm_layers=layers, dropout=dropout, stride=stride)


def control(stride: int = 4) -> BiLSTMControl:
    torch.manual_seed(0)
    return BiLSTMControl(WIDTHS, CLASSES, hidden=16, lstm_layers=2, dropout=0.0, stride=stride)


MODELS = [
    pytest.param(make, stride, id=f"{make.__name__}-{stride}") for make in (student, control) for stride in STRIDES
]
Model = Student | BiLSTMControl


def padded(lengths: Sequence[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    """Features (B, T + extra, D) of these lengths, zero where padded. The same values for any `extra`."""
    generator = torch.Generator().manual_seed(7)
    x = torch.zeros(len(lengths), max(lengths) + extra, sum(WIDTHS))
    for row, n in zip(x, lengths, strict=True):
        row[:n] = torch.randn(n, sum(WIDTHS), generator=generator)
    return x, torch.tensor(lengths)


def seasoned(model: Model) -> Model:
    """The model with running statistics that are not those of initialisation, in eval mode."""
    model.train()
    for extra in range(3):
        model(*padded([40, 23, 17], extra))
    return model.eval()


def loss_of(model: Model, x: Tensor, n: Tensor) -> Tensor:
    """CTC loss of one gloss a sequence, summed."""
    log_probs, lengths = model(x, n)
    ones = torch.ones(len(n), dtype=torch.int64)
    return F.ctc_loss(log_probs.transpose(0, 1), ones, lengths, ones, reduction="sum")


@pytest.mark.parametrize(("make", "stride"), MODELS)
def test_a_sequence_gives_the_same_alone_and_in_a_padded_batch(make: type[Model], stride: int) -> None:
    model, lengths = seasoned(make(stride)), [40, 16, 17, 23, 31, 38, 19]  # type: ignore[arg-type]
    x, n = padded(lengths)
    x.requires_grad_()
    together, out = model(x, n)
    loss_of(model, x, n).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    for i, length in enumerate(lengths):
        own = x[i : i + 1, :length].detach().requires_grad_()
        alone, frames = model(own, n[i : i + 1])
        loss_of(model, own, n[i : i + 1]).backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        assert frames.item() == out[i].item() == length // stride
        torch.testing.assert_close(together[i, : length // stride], alone[0], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(x.grad[i, :length], own.grad[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("make", "stride"), MODELS)
def test_padding_changes_nothing_in_training(make: type[Model], stride: int) -> None:
    lengths = [40, 16, 17, 23]
    tight, loose = make(stride).train(), make(stride).train()  # type: ignore[arg-type]
    a, n = tight(*padded(lengths))
    b, _ = loose(*padded(lengths, extra=29))
    for row, wider, frames in zip(a, b, n, strict=True):
        torch.testing.assert_close(wider[:frames], row[:frames], atol=TOLERANCE, rtol=0)
    for name, buffer in tight.named_buffers():
        torch.testing.assert_close(loose.get_buffer(name), buffer, atol=TOLERANCE, rtol=0)
    for model, extra in ((tight, 0), (loose, 29)):
        loss_of(model, *padded(lengths, extra)).backward()  # type: ignore[no-untyped-call]
    for name, parameter in tight.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(loose.get_parameter(name).grad, parameter.grad, atol=TOLERANCE, rtol=1e-4, msg=name)


@pytest.mark.parametrize("layers", [1, 2])
def test_layers_of_the_bilstm_change_nothing_of_that(layers: int) -> None:
    model = seasoned(student(layers=layers))
    x, n = padded([40, 4, 5])
    together, _ = model(x, n)
    for i, length in enumerate([40, 4, 5]):
        alone, _ = model(x[i : i + 1, :length], n[i : i + 1])
        torch.testing.assert_close(together[i, : length // 4], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("make", "stride"), MODELS)
def test_the_output_has_a_frame_for_each_stride_of_the_input(make: type[Model], stride: int) -> None:
    model = make(stride).eval()  # type: ignore[arg-type]
    assert model.stride == stride
    for frames in (stride, stride + 1, 19, 20, 21, 22, 23, 33, 40):
        log_probs, lengths = model(*padded([frames]))
        assert log_probs.shape == (1, frames // stride, CLASSES)
        assert lengths.tolist() == [frames // stride]
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs.logsumexp(-1), torch.zeros(1, frames // stride), atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_less_than_a_frame_of_the_encoder_is_enough_at_stride_one(frames: int) -> None:
    model = seasoned(student(stride=1))
    alone, _ = model(*padded([frames]))
    x, n = padded([frames, 30])
    together, lengths = model(x, n)
    assert lengths.tolist() == [frames, 30]
    torch.testing.assert_close(together[0, :frames], alone[0], atol=TOLERANCE, rtol=0)


def test_upsampling_is_linear_between_the_centres_of_the_frames() -> None:
    x = torch.tensor([[[10.0, 20.0, 40.0, 77.0]]])
    # Three valid frames centred at 1.5, 5.5 and 9.5; what follows the last one stays at its value.
    expected = [10, 10, 11.25, 13.75, 16.25, 18.75, 22.5, 27.5, 32.5, 37.5, 40, 40, 40]
    assert upsample(x, torch.tensor([3]), 4, 13).tolist() == [[expected]]
    assert upsample(x, torch.tensor([3]), 2, 6).tolist() == [[[10, 12.5, 17.5, 25, 35, 40]]]
    assert upsample(x, torch.tensor([1]), 4, 4).tolist() == [[[10] * 4]]


def test_the_default_student_is_the_one_of_earlier_versions() -> None:
    """Drawn in the same order, computed in the same way. Outputs to rounding: processors differ in the last bit."""
    model = student(layers=2, dropout=0.1)
    drawn = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16] == "9dc0bf4f1f64659f"
    x, n = padded([40, 23, 17, 4])
    torch.manual_seed(5)
    log_probs, lengths = model.train()(x, n)
    targets, counts = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([2, 1, 1, 1])
    loss = F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, counts, reduction="sum")
    assert loss.item() == pytest.approx(37.01239776611328, rel=1e-5)
    assert model.eval()(x, n)[0].double().sum().item() == pytest.approx(-1059.7459909915924, rel=1e-5)


def test_the_control_averages_adjacent_frames() -> None:
    slow, fast = control(stride=4).eval(), control(stride=1).eval()
    x, n = padded([19, 8])
    averaged = torch.stack([x[:, i : i + 4].mean(1) for i in range(0, 16, 4)], 1)
    got, lengths = slow(x, n)
    assert lengths.tolist() == [4, 2]
    torch.testing.assert_close(got, fast(averaged, lengths)[0], atol=1e-6, rtol=0)


def parameters(config: TrainingConfig, widths: Sequence[int], classes: int) -> int:
    return sum(p.numel() for p in make_model(config, widths, classes).parameters())


def test_the_config_says_which_model() -> None:
    for architecture, kind in (("student", Student), ("bilstm", BiLSTMControl)):
        model = make_model(TrainingConfig(architecture=architecture, output_stride=8), [7], 5)  # type: ignore[arg-type]
        assert isinstance(model, kind)
        assert model.stride == 8
        assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert 0.35e6 < parameters(TrainingConfig(architecture="bilstm"), [99, 63, 63], 41) < 0.45e6


def test_the_full_student_has_the_size_of_the_users() -> None:
    full = TrainingConfig(channels=512, hidden=448, lstm_layers=2)
    count = parameters(full, [99, 126, 1404, 4887], 973)
    assert count == 14_528_077
    assert abs(count / 14.4e6 - 1) < 0.01


def test_the_output_bias_starts_at_a_constant_posterior() -> None:
    model = student()
    weight = model.head.weight.clone()
    posterior = torch.tensor([0.7, *[0.03] * 10])
    set_output_bias(model, posterior.log())
    assert torch.equal(model.head.weight, weight)
    model.head.weight.data.zero_()
    log_probs, _ = model.eval()(*padded([20]))
    torch.testing.assert_close(log_probs, posterior.log().expand(1, 5, CLASSES))
    for wrong in (posterior[1:].log(), torch.zeros(CLASSES).log()):
        with pytest.raises(ValueError, match="one finite value for each of the 11 classes"):
            set_output_bias(model, wrong)


@pytest.mark.parametrize(("make", "stride"), MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_bf16_leaves_log_softmax_in_float32(make: type[Model], stride: int, training: bool) -> None:
    model = make(stride).train(training)  # type: ignore[arg-type]
    x, n = padded([40, 23, 17])
    expected, _ = model(x, n)
    with autocast("bf16", CPU):
        log_probs, _ = model(x, n)
    assert log_probs.dtype == torch.float32
    assert log_probs.logsumexp(-1).abs().max() < 1e-5  # in bfloat16 it would be off by 1e-2
    assert not torch.equal(log_probs, expected)
    torch.testing.assert_close(log_probs, expected, atol=0.1, rtol=0)


def test_batch_statistics_are_float32_under_autocast() -> None:
    norm = MaskedBatchNorm(2)
    frames = 1001  # bfloat16 cannot count so far: 256 + 1 is 256
    with autocast("bf16", CPU):
        norm(torch.ones(1, 2, frames, dtype=torch.bfloat16), time_mask(torch.tensor([frames]), frames))
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 0.1))
    torch.testing.assert_close(norm.running_var, torch.full((2,), 0.9))


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


@pytest.mark.parametrize(("make", "stride"), MODELS)
def test_every_parameter_learns(make: type[Model], stride: int) -> None:
    model = make(stride).train()  # type: ignore[arg-type]
    loss_of(model, *padded([40, 33, 17])).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("stride", STRIDES)
def test_the_padding_gets_no_gradient(stride: int) -> None:
    model = student(stride).train()
    x, n = padded([60, 20])
    x.requires_grad_()
    loss_of(model, x, n).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad[0].abs().sum() > 0
    assert x.grad[1, 24:].abs().sum() == 0  # the convolutions reach a few frames past the end, no further
