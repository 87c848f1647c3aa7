"""The loads as a table and as a page."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.load.measures import Latency, Memory
from tests.load.timed import KEEPERS, STEPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "load.md"
BEGIN, END = "<!-- make load writes from here -->", "<!-- to here -->"


@dataclass(frozen=True)
class Measured:
    """What one load came to."""

    what: str
    database: str
    trials: int
    epochs: int
    """Of each trial."""
    seconds_with_starts: float
    """From the start of the first process to the end of the last."""
    seconds: float
    """From the first claim to the end of the last trial."""
    rates: list[float]
    """Trials a second in each tenth of the trials."""
    latencies: dict[str, Latency]
    memory: Memory
    connections: int
    """The most that the database had at once."""
    violations: list[str]


def table(found: Sequence[Measured]) -> str:
    """In Markdown, with where and when it was measured."""
    rows: list[tuple[str, list[str]]] = [
        ("load", [each.what for each in found]),
        ("---", ["---"] * len(found)),
        ("database", [each.database for each in found]),
        ("trials, each of so many epochs", [f"{each.trials:,}, {each.epochs}" for each in found]),
        ("what must hold and did not", ["; ".join(each.violations) or "nothing" for each in found]),
        ("first claim to last end, s", [f"{each.seconds:.0f}" for each in found]),
        ("with the start of the processes, s", [f"{each.seconds_with_starts:.0f}" for each in found]),
        ("trials/s", [f"{each.trials / each.seconds:.1f}" for each in found]),
        ("trials/s in each tenth", [" ".join(f"{rate:.1f}" for rate in each.rates) for each in found]),
        ("memory of a process, MiB: after a tenth, at the end", [_memory(each.memory) for each in found]),
        ("growth for 1,000 trials, MiB: median, worst", [_growth(each.memory) for each in found]),
        ("connections to the database, at most", [str(each.connections or "") for each in found]),
    ]
    for step in (*STEPS, *KEEPERS):
        if any(step in each.latencies for each in found):
            rows.append((f"{step}, ms: median, p99; a trial's share", [_latency(each, step) for each in found]))
    lines = [f"| {' | '.join([name, *cells])} |" for name, cells in rows]
    return f"{_where()}\n\n" + "\n".join(lines) + "\n"


def write_page(text: str) -> None:
    """Between the marks of the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def _memory(memory: Memory) -> str:
    return f"{memory.warm_mib:.0f}, {memory.end_mib:.0f}"


def _growth(memory: Memory) -> str:
    return f"{memory.growth:.1f}, {memory.worst_growth:.1f}"


def _latency(measured: Measured, step: str) -> str:
    found = measured.latencies.get(step)
    return f"{found.median_ms:.1f}, {found.p99_ms:.0f}; {found.ms_per_trial:.1f}" if found else ""


def _where() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    memory = psutil.virtual_memory().total / 2**30
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return (
        f"{commit}, {datetime.date.today().isoformat()}, {platform.machine()} {platform.system()}, {os.cpu_count()} "
        f"cores, {memory:.0f} GB, Python {platform.python_version()}; load average at the end {busy:.1f}."
    )
