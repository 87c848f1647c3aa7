"""Budgets are exact, whatever the number of workers, and raising one goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.commands import check_everything_arrived, read, run, write_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


def test_total_epochs_are_exact_over_two_workers_and_can_be_raised(tmp_path: Path) -> None:
    home = tmp_path / "home"
    before: dict[int, list[object]] = {}
    for limit, total, state in ((5, 5, "STOPPED"), (9, 9, "STOPPED"), (None, 12, "COMPLETE")):
        spec = write_spec(
            tmp_path, trainer={"epochs": 3}, budget={"total_epochs": limit}, pruner="none", space={"patience": 3}
        )
        run(home, tmp_path, "run", spec, "--json")
        sweep, trials, epochs = read(home)
        assert sweep.state == state
        assert sum(t.epochs for t in trials) == sum(map(len, epochs.values())) == total
        assert not [t for t in trials if t.state == "RUNNING"]
        for number, rows in before.items():
            assert epochs[number][: len(rows)] == rows
        before = {number: list(rows) for number, rows in epochs.items()}
        if state == "STOPPED":
            assert "budget is spent" in sweep.reason
    assert [t.number for t in trials] == [0, 1, 2, 3]
    check_everything_arrived(home)


def test_hours_end_a_sweep_and_can_be_raised(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run(home, tmp_path, "run", write_spec(tmp_path, budget={"hours": 1e-6}), "--json")
    sweep, trials, epochs = read(home)
    assert sweep.state == "STOPPED"
    assert "budget is spent" in sweep.reason
    assert sum(map(len, epochs.values())) < 8
    assert not [t for t in trials if t.state == "RUNNING"]

    run(home, tmp_path, "run", write_spec(tmp_path, budget={"hours": 1.0}), "--json")
    sweep, trials, _ = read(home)
    assert sweep.state == "COMPLETE"
    assert [t.number for t in trials] == [0, 1, 2, 3]
