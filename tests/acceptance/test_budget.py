"""Budgets are exact, whatever the number of workers, and raising one goes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.commands import check_everything_arrived, read, run, write_spec
from tests.browser.acted import TRAINER

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
            assert f"its budget of {limit} epochs is spent" in sweep.reason
    assert [t.number for t in trials] == [0, 1, 2, 3]
    check_everything_arrived(home)


def test_hours_end_a_sweep_and_can_be_raised(tmp_path: Path) -> None:
    home = tmp_path / "home"
    run(home, tmp_path, "run", write_spec(tmp_path, budget={"hours": 1e-6}), "--json")
    sweep, trials, epochs = read(home)
    assert sweep.state == "STOPPED"
    assert "its budget of 1e-06 hours is spent" in sweep.reason
    assert sum(map(len, epochs.values())) < 8
    assert not [t for t in trials if t.state == "RUNNING"]

    run(home, tmp_path, "run", write_spec(tmp_path, budget={"hours": 1.0}), "--json")
    sweep, trials, _ = read(home)
    assert sweep.state == "COMPLETE"
    assert [t.number for t in trials] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"device_hours": 1e-6}, "its budget of 1e-06 device hours is spent"),
        ({"money": 0.001, "price_per_device_hour": 1000.0, "currency": "EUR"}, "its budget of 0.001 EUR is spent"),
    ],
    ids=["device hours", "money"],
)
def test_device_hours_and_money_end_a_sweep_with_the_epochs_in_hand_and_can_be_raised(
    tmp_path: Path, limit: dict[str, Any], words: str
) -> None:
    home = tmp_path / "home"
    run(home, tmp_path, "run", write_spec(tmp_path, budget=limit, range_test=False), "--json")
    sweep, trials, epochs = read(home)
    assert sweep.state == "STOPPED"
    assert words in sweep.reason
    assert 1 <= sum(map(len, epochs.values())) <= 2, "one a worker"
    assert sum(t.seconds for t in trials) == pytest.approx(sum(row.seconds for rows in epochs.values() for row in rows))

    run(home, tmp_path, "run", write_spec(tmp_path, budget={}, range_test=False), "--json")
    assert read(home)[0].state == "COMPLETE"


def test_a_sweep_that_is_not_worth_going_on_with_ends_and_goes_on_when_that_is_no_longer_asked(tmp_path: Path) -> None:
    """Trials of all but one configuration: none will be five points better than the best of ten."""
    home = tmp_path / "home"

    def write(**budget: Any) -> Path:
        return write_spec(
            tmp_path,
            trainer={"epochs": 12},
            first_trials=None,
            space={"learning_rate": 1e-3, "dropout": {"low": 0.19, "high": 0.21}, "warmup_start_factor": 1.0},
            pruner="none",
            range_test=False,
            budget=budget,
        )

    asked = write(trials=40, stop_when={"chance_below": 0.2, "improvement": 0.05})
    told = run(home, tmp_path, "run", asked, "--trainer", TRAINER, "--json").result()
    sweep, trials, _ = read(home)
    assert sweep.state == "STOPPED"
    assert re.search(r"by 5 points is .+, below 20 %: lower or remove budget.stop_when", sweep.reason)
    over = [t for t in trials if t.state == "COMPLETE"]
    assert 10 <= len(over) <= 16, "ten, and those that were under way"
    assert told["forecast"]["chance"] < 0.2 or told["forecast"]["improvement"] != 0.05

    said = run(home, tmp_path, "forecast", "tiny", "--improvement", "0.05", "--json").result()
    assert said["chance"] < 0.2
    assert said["over"] == len(over)
    assert said["trials"] == 40 - len(trials)

    run(home, tmp_path, "run", write(trials=18), "--trainer", TRAINER, "--json")
    sweep, trials, _ = read(home)
    assert (sweep.state, len(trials)) == ("COMPLETE", 18)
