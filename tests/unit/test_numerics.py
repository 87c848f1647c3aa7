from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from model.encoder import BiLSTMControl, Student, make_model
from model.jagged import Frames
from model.numerics import FEWEST_FRAMES, TIME_LOCALITY, autocast, first_non_finite, time_locality
from model.types import TrainingConfig

Model = Student | BiLSTMControl
CPU = torch.device("cpu")


def model_of(stride: int = 4, architecture: str = "student", seed: int = 0) -> Model:
    torch.manual_seed(seed)
    config = TrainingConfig.model_validate(
        {"architecture": architecture, "output_stride": stride, "channels": 16, "hidden": 16}
    )
    return make_model(config, [5, 3], 11)


def batch(frames: int = 160, sequences: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random sequences, each 3 frames longer than the one before."""
    torch.manual_seed(seed)
    lengths = frames + 3 * torch.arange(sequences)
    x = torch.randn(sequences, int(lengths.max()), 8)
    return x * (torch.arange(x.shape[1]) < lengths[:, None])[..., None], lengths


def state_of(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in (*model.parameters(), *model.buffers(), torch.get_rng_state())]


# where the first value that is not finite appears


@pytest.mark.parametrize(
    ("parameter", "first"),
    [
        ("encoders.1.stem.weight", "encoders.1.stem"),
        ("encoders.0.blocks.1.expand.weight", "encoders.0.blocks.1.expand"),
        ("encoders.0.blocks.0.gate.squeeze.weight", "encoders.0.blocks.0.gate.squeeze"),
        ("encoders.1.blocks.2.project_norm.weight", "encoders.1.blocks.2.project_norm"),
        ("head.weight", "head"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_first_module_that_overflows_is_named(parameter: str, first: str, training: bool) -> None:
    model = model_of().train(training)
    model.get_parameter(parameter).data.fill_(3e38)  # finite itself; what is computed with it overflows
    x, lengths = batch()
    assert first_non_finite(model, 1e3 * x, lengths) == first


def test_a_weight_is_named_before_what_it_spoils() -> None:
    model = model_of()
    model.get_parameter("lstm.ahead.0.weight_ih_l0").data[3, 2] = float("nan")
    assert first_non_finite(model, *batch()) == "parameter lstm.ahead.0.weight_ih_l0"


def test_a_spoilt_running_statistic_is_named() -> None:
    model = model_of()
    model.get_buffer("encoders.0.stem_norm.running_var")[1] = float("inf")
    assert first_non_finite(model, *batch()) == "buffer encoders.0.stem_norm.running_var"


def test_spoilt_features_are_named() -> None:
    x, lengths = batch()
    x[1, 4, 2] = float("inf")
    assert first_non_finite(model_of(), x, lengths) == "input"


def test_what_happens_after_all_modules_is_the_output() -> None:
    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model_of()

        def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            log_probs, frames = self.inner(x, lengths)
            return log_probs.exp().log1p() / 0, frames

    assert first_non_finite(Overflowing(), *batch()) == "output"


@pytest.mark.parametrize("architecture", ["student", "bilstm"])
@pytest.mark.parametrize("training", [True, False])
def test_a_finite_model_has_no_such_module_and_stays_as_it_is(architecture: str, training: bool) -> None:
    model = model_of(architecture=architecture).train(training)
    x, lengths = batch()
    before = state_of(model)
    assert first_non_finite(model, 100 * x, lengths) is None  # large, but healthy
    assert all(map(torch.equal, before, state_of(model)))
    assert {m.training for m in model.modules()} == {training}
    assert not any(m._forward_hooks for m in model.modules())


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = model_of().eval()
    before = state_of(model)
    with pytest.raises(RuntimeError):
        first_non_finite(model, torch.zeros(2, 40, 9), torch.tensor([40, 40]))  # nine columns, not eight
    assert all(map(torch.equal, before, state_of(model)))
    assert not any(m._forward_hooks for m in model.modules())


# precision


def test_half_precision_is_bfloat16_only() -> None:
    with autocast("bf16", CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    with autocast("float32", CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    with pytest.raises(ValidationError, match="Use bf16, which has the range of float32"):
        TrainingConfig(precision="fp16")
    assert TrainingConfig(precision="bf16").precision == "bf16"


# collapsed time


class Averaged(nn.Module):
    """A network that averages the student's encoder over time: all its outputs know the same."""

    def __init__(self, inner: Model) -> None:
        super().__init__()
        self.inner = inner
        inner.lstm.register_forward_pre_hook(self._average)

    @staticmethod
    def _average(_module: nn.Module, inputs: tuple[Tensor, Frames]) -> tuple[Tensor, Frames]:
        x, frames = inputs
        return frames.mean(x)[frames.sequence], frames

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        log_probs: tuple[Tensor, Tensor] = self.inner(x, lengths)
        return log_probs


ALL = [("student", stride) for stride in (1, 2, 4, 8, 16)] + [("bilstm", stride) for stride in (1, 4, 16)]


@pytest.mark.parametrize(("architecture", "stride"), ALL)
def test_a_fresh_model_that_sees_when_is_told_from_one_that_averages(architecture: str, stride: int) -> None:
    for seed in range(3):
        model, averaged = model_of(stride, architecture, seed), Averaged(model_of(stride, architecture, seed))
        assert time_locality(model, *batch(seed=seed)) > TIME_LOCALITY
        assert time_locality(averaged, *batch(seed=seed)) < TIME_LOCALITY
        assert time_locality(averaged, *batch(seed=seed)) == pytest.approx(1, abs=0.15)


def test_too_few_frames_or_no_difference_say_nothing() -> None:
    short, enough = batch(16 * FEWEST_FRAMES - 1), batch(16 * FEWEST_FRAMES)
    assert math.isnan(time_locality(model_of(16), *short))
    assert time_locality(model_of(16), *enough) > TIME_LOCALITY
    x, lengths = batch()
    assert math.isnan(time_locality(model_of(), torch.zeros_like(x), lengths))


def test_the_question_changes_nothing() -> None:
    model = model_of().eval()
    x, lengths = batch()
    before = state_of(model)
    first = time_locality(model, x, lengths)
    assert all(map(torch.equal, before, state_of(model)))
    assert not any(m.training for m in model.modules())
    torch.rand(5)
    assert time_locality(model, x, lengths) == first  # dropout is drawn the same way each time
