"""A sweep over a choice, a conditional and a whole number: two workers, interrupted, gone on, gone on from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeps.spec import spec_of
from sweeps.summary import config_of
from tests.acceptance.commands import check_everything_arrived, in_an_epoch, read, run, runs, start, write_spec

SPACE = {
    "learning_rate": {"low": 5e-4, "high": 1e-2, "log": True},
    "batch_size": {"low": 4, "high": 12, "log": True},
    "output_stride": {"choices": [2, 4]},
    "schedule": {"choices": ["plateau", "cosine_restarts"]},
    "restart_epochs": {"low": 2, "high": 9, "when": {"schedule": "cosine_restarts"}},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]


def test_a_wider_space_is_searched_interrupted_and_gone_on_with_and_another_sweep_begins_from_it(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    spec = write_spec(
        tmp_path,
        corpus={"generated": {"train": 80}},
        trainer={"epochs": 3},
        space=SPACE,
        first_trials={
            "restarts": {"schedule": "cosine_restarts", "restart_epochs": 3, "output_stride": 2},
        },
        sampler={"startup_trials": 4},
        budget={"trials": 7},
        workers=2,
    )
    command = start(home, tmp_path, "run", spec, "--json")
    command.until(lambda: in_an_epoch(home))
    command.interrupt()
    assert command.wait(120) == 130, command.words()
    interrupted, begun, epochs = read(home)
    assert interrupted.state == "PAUSED"
    assert 0 < len(begun) < 7 or any(not trial.state.terminal for trial in begun)

    result = run(home, tmp_path, "run", spec, "--json").result()
    assert [trial["number"] for trial in result["trials"]] == list(range(7))
    sweep, trials, after = read(home)
    assert sweep.state == "COMPLETE"
    for number, rows in epochs.items():
        assert after[number][: len(rows)] == rows, "what was recorded stays"
    before = {t.number: t.hyperparameters for t in begun if t.hyperparameters}
    assert before.items() <= {t.number: t.hyperparameters for t in trials}.items()
    space = spec_of(sweep).space
    for trial in trials:
        values = trial.hyperparameters or {}
        assert space.contains(values) == trial.in_space == (trial.name not in ("original", "fixed"))
        assert ("restart_epochs" in values) == (values["schedule"] == "cosine_restarts")
        logged = runs(home)[trial.number].data.params
        config = config_of(spec_of(sweep), trial).model_dump()
        assert {name: logged[name] for name in values} == {name: str(config[name]) for name in values}
    assert {(t.hyperparameters or {})["schedule"] for t in trials} == {"plateau", "cosine_restarts"}
    check_everything_arrived(home)

    for words in (("show", "tiny"), ("trials", "tiny"), ("report", "tiny", "--output", str(tmp_path / "r.html"))):
        run(home, tmp_path, *words)
    second = write_spec(
        tmp_path,
        name="second",
        corpus={"generated": {"train": 80}},
        trainer={"epochs": 3},
        space={**SPACE, "weight_decay": {"low": 1e-3, "high": 0.1, "log": True}},
        first_trials=None,
        budget={"trials": 1},
        workers=1,
    )
    result = run(home, tmp_path, "run", second, "--json", "--warm-start", "tiny").result()
    assert result["warm_start"] == [{"sweep": "tiny", "trials": 5, "left_out": {"outside the space": 2}}]
    assert [trial["number"] for trial in result["trials"]] == [0]
    assert "warm start: 5 trials of tiny" in run(home, tmp_path, "show", "second").words()
    compared = run(home, tmp_path, "compare", "tiny", "second").words()
    assert "5 trials of tiny" in compared
    assert "0.01, fixed" in compared
