"""Where tensors can lie on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    name: str
    """As torch calls it: cpu, cuda:0, mps."""
    detail: str
    """For a person: threads, or which card."""
    fault: str
    """Why nothing can be computed there; empty where it can."""


def devices() -> list[Device]:
    """The CPU, and every accelerator that torch finds; each was asked to compute something."""
    found = [("cpu", f"{torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        found += [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(("mps", "not trained on by this version"))
    return [Device(name, detail, fault_of(name)) for name, detail in found]


def fault_of(device: str) -> str:
    """Why nothing can be computed on a device; empty where it can."""
    try:
        ones = torch.ones(8, device=device)
        return "" if float(ones.sum()) == 8 else "eight ones do not sum to 8"
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without it
        return (" ".join(str(error).split()) or type(error).__name__)[:200]


def kernels() -> str:
    """Which of its kernels torch takes on this CPU: sums are rounded otherwise with each."""
    return str(torch.backends.cpu.get_cpu_capability())
