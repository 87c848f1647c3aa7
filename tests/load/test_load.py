"""A small load: what must hold, and that all that is measured is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.load.ground import ROOT
from tests.load.measures import latencies, memory, rates, seconds
from tests.load.timed import STEPS, Call


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "win32", reason="finds what it started by their environment")
def test_a_small_load_leaves_exactly_the_trials_that_were_asked_for(tmp_path: Path) -> None:
    sizes = ["--workers", "3", "--commands", "3", "--trials", "30", "--claimers", "8", "--processes", "2"]
    words = [*sizes, "--claims", "200", "--database", "sqlite", "--json", str(tmp_path / "load.json")]
    done = subprocess.run([sys.executable, "-m", "tests.load", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    workers, claimers = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert (workers["violations"], claimers["violations"]) == ([], [])
    assert (workers["trials"], claimers["trials"]) == (30, 200)
    assert workers["latencies"].keys() == {*STEPS, "keeper's pass"}
    for once in ("ask", "checkpoint", "record", "finish", "tell"):
        assert workers["latencies"][once]["calls"] == 30, once
    assert claimers["latencies"]["finish"]["calls"] == 200
    assert all(rate > 0 for each in (workers, claimers) for rate in each["rates"])
    assert claimers["memory"]["end_mib"] > 50


MIB = 2**20


def a_trial(process: int, end: float, rss: int) -> list[Call]:
    """Claimed a second before it ends; half a second of it is the tell."""
    return [Call("claim", process, end - 0.9, 0.1, 0), Call("tell", process, end, 0.5, rss * MIB)]


def test_rates_latencies_and_growth_are_those_of_the_calls() -> None:
    # Two processes, a trial a second each; after half of them, only one goes on.
    calls = [call for n in range(1, 51) for process in (1, 2) for call in a_trial(process, float(n), 100 + process * n)]
    calls += [call for n in range(51, 151) for call in a_trial(1, float(n), 100 + n)]
    assert seconds(calls) == pytest.approx(150)
    assert rates(calls) == pytest.approx([2] * 5 + [1] * 5)
    found = latencies(calls, 200)
    assert (found["tell"].calls, found["tell"].median_ms, found["tell"].ms_per_trial) == (200, 500, 500)
    held = memory(calls)
    # From the 20th trial (second 11) to the last: 180 trials of the sweep.
    assert held.worst_growth == pytest.approx((250 - 111) / 0.18)
    assert held.growth == pytest.approx(((250 - 111) + (200 - 122)) / 2 / 0.18)


def test_memory_that_nobody_held_for_long_is_not_judged() -> None:
    calls = [call for n in range(1, 21) for call in a_trial(n, float(n), 100)]
    assert memory(calls).growth == 0
