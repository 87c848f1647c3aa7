from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.encoder import BiLSTMControl, Student, make_model, set_output_bias, upsample
from model.jagged import BatchNorm, BiLSTM, Conv, DepthwiseConv, Frames, Windows, same_padding
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
    def at(factor: int, frames: int, values: Sequence[float]) -> list[float]:
        before, after = (Frames.of(torch.tensor([1, n, 2])) for n in (len(values), frames))
        x = torch.tensor([99.0, *values, 77.0, 77.0])[:, None]  # neighbours that must not come in
        return upsample(x, before, after, factor)[1 : 1 + frames, 0].tolist()

    # Three frames centred at 1.5, 5.5 and 9.5; what follows the last one stays at its value.
    expected = [10, 10, 11.25, 13.75, 16.25, 18.75, 22.5, 27.5, 32.5, 37.5, 40, 40, 40]
    assert at(4, 13, [10, 20, 40]) == expected
    assert at(2, 6, [10, 20, 40]) == [10, 12.5, 17.5, 25, 35, 40]
    assert at(4, 4, [10]) == [10] * 4


def test_the_default_student_is_the_one_of_earlier_versions() -> None:
    """Drawn in the same order, computed in the same way. Outputs to rounding: processors differ in the last bit."""
    model = student(layers=2)
    drawn = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert hashlib.sha256(drawn.numpy().tobytes()).hexdigest()[:16] == "9dc0bf4f1f64659f"
    x, n = padded([40, 23, 17, 4])
    log_probs, lengths = model.train()(x, n)
    targets, counts = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([2, 1, 1, 1])
    loss = F.ctc_loss(log_probs.transpose(0, 1), targets, lengths, counts, reduction="sum")
    assert loss.item() == pytest.approx(37.0716552734375, rel=1e-5)
    assert model.eval()(x, n)[0].double().sum().item() == pytest.approx(-529.6600203514099, rel=1e-5)


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
    valid = Frames.of(n // stride).packed(log_probs)
    assert valid.logsumexp(-1).abs().max() < 1e-5  # in bfloat16 it would be off by 1e-2
    assert not torch.equal(log_probs, expected)
    torch.testing.assert_close(log_probs, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(("make", "stride"), MODELS)
def test_float64_is_computed_in_float64(make: type[Model], stride: int) -> None:
    """So that rounding can be told from a fault: what is right then agrees far below float32's rounding."""
    x, lengths = padded([40, 23, 17])
    with_doubles = make(stride).double().train()
    given = [x.double(), x.double() + 1e-12 * x.double().sin()]
    one, two = (with_doubles(features, lengths)[0] for features in given)
    assert one.dtype == torch.float64
    apart = (one - two).detach().abs().max()
    assert 0 < apart < 1e-9, "a layer in float32 would lose such a change, or make it 1e-7"
    torch.testing.assert_close(one.float(), make(stride).train()(x, lengths)[0], atol=1e-4, rtol=1e-4)


def test_batch_statistics_are_float32_under_autocast() -> None:
    norm = BatchNorm(2)
    frames = 1001  # bfloat16 cannot count so far: 256 + 1 is 256
    with autocast("bf16", CPU):
        norm(torch.ones(frames, 2, dtype=torch.bfloat16))
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
    lengths = torch.tensor([9, 1, 12, 5, 3, 7])
    frames, x = Frames.of(lengths), torch.randn(6, 12, 6)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    got = frames.padded(ours(frames.packed(x), frames), 12)
    assert got.shape == (6, 12, 16)
    for a, b, n in zip(got, expected, lengths, strict=True):
        torch.testing.assert_close(a[:n], b[:n], atol=1e-6, rtol=0)


def test_batch_norm_is_torchs() -> None:
    torch.manual_seed(2)
    norm, theirs = BatchNorm(4), nn.BatchNorm1d(4, eps=1e-3)
    for name in ("weight", "bias"):
        theirs.get_parameter(name).data = nn.init.normal_(norm.get_parameter(name)).data.clone()
    for _ in range(3):
        x = 5 + 3 * torch.randn(14, 4)
        torch.testing.assert_close(norm(x), theirs(x))
        torch.testing.assert_close(norm.running_mean, theirs.running_mean)
        torch.testing.assert_close(norm.running_var, theirs.running_var)
    torch.testing.assert_close(norm.eval()(x), theirs.eval()(x))


def test_statistics_of_a_batch_that_is_not_finite_do_not_stay() -> None:
    norm = BatchNorm(2)
    norm(torch.tensor([[1.0, float("inf")], [3.0, 1.0]]))
    assert norm.running_mean.tolist() == pytest.approx([0.2, 0.0])
    assert norm.running_var.tolist() == pytest.approx([1.1, 1.0])


def test_a_batch_of_one_frame_has_finite_statistics() -> None:
    norm = BatchNorm(2)
    assert norm(torch.ones(1, 2)).abs().sum() == 0
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("depthwise", [True, False])
def test_convolutions_over_frames_end_to_end_are_those_of_each_sequence(
    kernel: int, stride: int, depthwise: bool
) -> None:
    torch.manual_seed(3)
    conv = DepthwiseConv(6, kernel, stride) if depthwise else Conv(6, 4, kernel, stride)
    lengths = torch.tensor([7, 2, 1, 12, 5, 2, 30])
    before, after = Frames.of(lengths), Frames.of((lengths // stride).clamp(min=1))
    x = torch.randn(int(lengths.sum()), 6, requires_grad=True)
    got = conv(x, Windows.of(before, after, kernel, stride))
    expected = []
    for sequence, frames in zip(x.split(lengths.tolist()), after.lengths.tolist(), strict=True):
        inside = F.pad(sequence.t(), (0, max(0, stride - len(sequence))))  # a frame of less than a stride
        row = F.pad(inside, same_padding(kernel, stride))
        expected.append(F.conv1d(row, conv.weight, stride=stride, groups=conv.groups).t()[:frames])
    torch.testing.assert_close(got, torch.cat(expected))
    direction = torch.randn_like(got)
    ours = torch.autograd.grad(got, (x, conv.weight), direction)
    torch.testing.assert_close(ours, torch.autograd.grad(torch.cat(expected), (x, conv.weight), direction))


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
