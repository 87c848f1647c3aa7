"""The example of an Optuna study of one's own, run as its first line says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.commands import PATIENT_SECONDS

ROOT = Path(__file__).parents[2]

TRIAL = re.compile(r"(\d+) lr (\S+) (COMPLETE|PRUNED) (\S+)% ?(.*)")


@pytest.mark.slow
def test_the_example_of_a_study_of_ones_own() -> None:
    command = [sys.executable, "examples/optuna_objective.py", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=PATIENT_SECONDS)
    assert done.returncode == 0, done.stderr
    trials = [TRIAL.fullmatch(line) for line in done.stdout.splitlines()]
    assert len(trials) == 10
    assert "Warning" not in done.stderr

    states = [trial[3] for trial in trials if trial]
    assert len(states) == 10, done.stdout
    assert {"COMPLETE", "PRUNED"} == set(states)
    for trial in trials:
        assert trial is not None
        assert bool(trial[5]) == (trial[3] == "PRUNED"), "who is stopped is told why, and only who is"
    best = min((float(trial[4]), trial[3]) for trial in trials if trial)
    assert best[0] < 20, "something is learned"
    assert best[1] == "COMPLETE", "and what learned best was not stopped"
