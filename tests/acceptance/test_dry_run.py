"""`sweeps run --dry-run`: the plan, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psutil

from sweeps.sharing import cores_here
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


def test_a_dry_run_says_how_many_workers_a_machine_gets(tmp_path: Path, tried: Tried) -> None:
    def workers(*words: str, **changes: object) -> int:
        spec = write_spec(tmp_path, **{"workers": 1, **changes})
        code, out, err = tried("run", spec, "--dry-run", "--json", "--home", tmp_path / "home", *words)
        assert code == 0, err
        return int(json.loads(out.splitlines()[-1])["workers"])

    auto, trainer = {"workers_per_device": "auto"}, {"epochs": 2, "batch_size": 8, "hidden": 16, "channels": 16}
    assert workers(**auto, trainer={**trainer, "device": "cpu"}) == min(cores_here(), 64)
    assert workers(**auto, trainer={**trainer, "device": "cpu", "threads": 2 * cores_here()}) == 1
    assert workers(workers_per_device=5) == 5
    assert workers("--workers", "3", **auto) == 3


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
