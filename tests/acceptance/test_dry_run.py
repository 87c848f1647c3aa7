"""`sweeps run --dry-run`: the plan, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.acceptance.commands import write_spec

Tried = Callable[..., tuple[int, str, str]]


def test_a_dry_run_prints_the_plan_and_trains_nothing(tmp_path: Path, tried: Tried) -> None:
    home = tmp_path / "home"
    children = psutil.Process().children(recursive=True)
    code, out, err = tried("run", write_spec(tmp_path), "--dry-run", "--home", home)
    assert code == 0, err
    for word in ("24 train, 24 dev", "learning_rate 1e-05..0.02 log", "original, fixed", "4 on 2 workers"):
        assert word in out
    for word in ("epochs", "under 2 minutes", "MB of disk", "nothing was trained", str(home)):
        assert word in out
    assert psutil.Process().children(recursive=True) == children
    assert not (home / "sweeps.db").exists()
    assert not (home / "mlflow").exists()
    assert not list(home.rglob("*.pt"))
    assert not list(home.rglob("*.log"))


def test_a_dry_run_as_json(tmp_path: Path, tried: Tried) -> None:
    code, out, err = tried("run", write_spec(tmp_path), "--dry-run", "--json", "--home", tmp_path / "home")
    assert code == 0, err
    plan = json.loads(out.splitlines()[-1])
    assert plan["sweep"] == "tiny"
    assert plan["epochs_at_most"] == 4 * 2
    assert plan["corpus"]["sentences"] == {"train": 24, "dev": 24}
    assert plan["corpus"]["classes"] == 9
    assert set(plan["first_trials"]) == {"original", "fixed"}
    assert plan["budget"]["trials"] == 4
    assert 0 < plan["hours_at_most"] < 1
    assert plan["disk_bytes"] > 12 * plan["parameters"]
    assert not (tmp_path / "home" / "sweeps.db").exists()
