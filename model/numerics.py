"""Numbers that are not finite, half precision, and whether a network looks at time: tests of a model as it stands.

None of them changes the model: buffers (the running statistics of batch normalisation), the random state and the mode
are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

TIME_LOCALITY = 1.3
"""Below this `time_locality` a network has collapsed time: averaging over time anywhere before the output gives 0.97 to
1.10, the student and the BiLSTM, freshly drawn, at all strides and on features of 13 to 1629 dimensions, 1.66 to 75."""

FEWEST_FRAMES = 8
"""With fewer output frames a freshly drawn student's memory spans them all, and its ratio says nothing (1.0 to 1.4)."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Inside, matrix products and convolutions run at this precision (`TrainingConfig.precision`).

    Parameters, batch statistics, log-softmax and CTC stay in float32.
    """
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, the model may run in any mode without gradients; afterwards it and the random state are as before."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            for module, mode in training.items():
                module.training = mode


def first_non_finite(model: nn.Module, features: Tensor, lengths: Tensor) -> str | None:
    """Where the first NaN or infinity of a forward pass appears, in the mode that the model is in.

    Args:
        features: (B, T, D).
        lengths: (B,).

    Returns:
        `parameter NAME` or `buffer NAME` where the model itself holds one, `input` where the features do, else the name
        of the first module, in the order of execution, whose output does (`output` for the model as a whole: what
        it does after its modules). None: all outputs are finite, so look at the loss and the gradients.
    """
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            if not tensor.isfinite().all():
                return f"{kind} {name}"
    if not features.isfinite().all():
        return "input"
    found: list[str] = []

    def watch(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if not _finite(output):
            found.append(name)

    handles = [m.register_forward_hook(partial(watch, name or "output")) for name, m in model.named_modules()]
    try:
        with untouched(model):
            model(features, lengths)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _finite(output: Any) -> bool:
    """Whether every tensor of a module's output is finite."""
    if isinstance(output, Tensor):
        return bool(output.isfinite().all())
    return all(map(_finite, output)) if isinstance(output, tuple | list) else True


def time_locality(model: nn.Module, features: Tensor, lengths: Tensor) -> float:
    """By how much more a change of the first half of the frames moves the outputs there than those of the other half.

    About 1 for a network that averages over time, whose every output is the same whatever happened when; see
    TIME_LOCALITY. For a freshly drawn network, and in train mode: before any training the running statistics of batch
    normalisation are those of no data, and eval mode would show a network that is never trained. The batch is cut to
    its shortest sequence and the first halves change places among its sequences, so that its statistics stay.

    Args:
        features: (B, T, D) of at least two different sequences, best of nearly one length.
        lengths: (B,).

    Returns:
        Mean change of the log-probabilities (Euclidean over classes) in the frames of the changed half / in the other;
        NaN for fewer than FEWEST_FRAMES output frames, or where nothing moves.
    """
    frames = int(lengths.min())
    own = features[:, :frames]
    changed = own.clone()
    changed[:, : frames // 2] = own[:, : frames // 2].roll(1, 0)
    with untouched(model):
        model.train()
        torch.manual_seed(0)
        before = model(own, torch.full_like(lengths, frames))[0]
        torch.manual_seed(0)  # the same dropout
        after = model(changed, torch.full_like(lengths, frames))[0]
        moved = (after - before).norm(dim=-1).mean(0)  # (T // stride,)
    half = len(moved) // 2
    return float(moved[:half].mean() / moved[half:].mean()) if len(moved) >= FEWEST_FRAMES else float("nan")
