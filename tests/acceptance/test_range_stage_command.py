"""Stage 0 of `sweeps run`: once, before the first trial, and made anew where it was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from sweeps.settings import Home
from tests.acceptance.commands import check_everything_arrived, read, run, start, until_gone, write_spec
from tracking.server import store_uri

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

CHANGES = {
    "trainer": {"epochs": 80, "batch_size": 8, "probe_interval": 0},  # 240 updates
    "space": {"patience": 10},
    "first_trials": None,
    "budget": {"trials": 2, "total_epochs": 2},
    "workers": 1,
}


def stages(home: Path) -> int:
    """Runs of a range test in MLflow."""
    client = MlflowClient(store_uri(home / "mlflow"))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return len(client.search_runs([experiment.experiment_id], "tags.stage = 'range_test'"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_it_is_made_once_and_anew_after_ctrl_c(tmp_path: Path) -> None:
    home, spec = tmp_path / "home", write_spec(tmp_path, **CHANGES)
    command = start(home, tmp_path, "run", spec, "--json")
    log = Home(home).logs("tiny") / "range-test.log"
    command.until(log.exists)
    command.interrupt()
    assert command.wait(60) == 130, command.words()
    until_gone(home)
    assert "Traceback" not in command.words()
    sweep, trials, _ = read(home)
    assert (sweep.state, trials) == ("PAUSED", [])
    assert "range_test" not in sweep.facts
    assert stages(home) == 0

    first = run(home, tmp_path, "run", spec, "--json")
    assert "range test: It used its input" in first.words() or "range test: It never used its input" in first.words()
    sweep, trials, epochs = read(home)
    kept = sweep.facts["range_test"]
    assert sum(map(len, epochs.values())) == 2, "the test spends no epoch of the budget"
    assert (Home(home).pictures("tiny") / "range-test.png").exists()
    assert stages(home) == 1
    check_everything_arrived(home)

    again = run(home, tmp_path, "run", write_spec(tmp_path, **CHANGES | {"budget": {"trials": 2, "total_epochs": 3}}))
    assert "range test:" not in again.words()
    assert read(home)[0].facts["range_test"] == kept
    assert stages(home) == 1
    check_everything_arrived(home)


def test_a_sweep_can_do_without(tmp_path: Path) -> None:
    home, spec = tmp_path / "home", write_spec(tmp_path, **CHANGES)
    command = run(home, tmp_path, "run", spec, "--json", "--skip-range-test")
    assert "range test:" not in command.words()
    assert "range_test" not in read(home)[0].facts
    assert stages(home) == 0
