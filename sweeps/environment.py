"""What decides the last bit of a number on this machine, and how it is named: versions, processor, system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sweeps.records import EventRow

VERSIONS = ("ctc-sweeps", "torch", "numpy", "jiwer", "rapidfuzz", "optuna")

DECISIVE = ("torch", "numpy", "system", "cpu", "kernels", "device")
"""Where two machines are alike in these, one training gives the same bits on both."""


@cache
def here() -> dict[str, str]:
    """Versions and machine of this process; imports torch."""
    from model.devices import kernels

    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in VERSIONS},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "kernels": kernels(),
    }


def cpu_model() -> str:
    """What the processor calls itself; the architecture where it does not."""
    found = ""
    if sys.platform.startswith("linux"):
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
        found = next((line.partition(":")[2] for line in lines if line.startswith("model name")), "")
    elif sys.platform == "darwin":
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False, encoding="utf-8").stdout
    elif sys.platform == "win32":
        found = os.environ.get("PROCESSOR_IDENTIFIER", "")
    return " ".join(found.split()) or platform.processor() or platform.machine()


def trained_on(events: Iterable[EventRow], number: int) -> list[dict[str, str]]:
    """The machines that a trial was trained on, in order, as the workers that claimed it said: what `here` says, and
    `host` and `device`. Empty where nobody said.
    """
    found: list[dict[str, str]] = []
    for event in events:
        if event.kind == "claimed" and event.trial_number == number and "versions" in event.data:
            said = {**event.data["versions"], **{name: event.data.get(name, "") for name in ("host", "device")}}
            if said not in found:
                found.append(said)
    return found


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Where two environments differ in what decides the last bit, with both values; what one does not say counts."""
    said = []
    for name in DECISIVE:
        a, b = one.get(name, "unknown"), other.get(name, "unknown")
        if a != b or "unknown" in (a, b):
            said.append(f"{name} ({a}; here {b})")
    return said
