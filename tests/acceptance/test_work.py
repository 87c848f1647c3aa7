"""`sweeps create`, `work`, and the verbs: several processes, one sweep."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from sweeps.settings import Home
from sweeps.store import Store
from tests.acceptance.commands import (
    Command,
    check_everything_arrived,
    curves,
    in_an_epoch,
    read,
    run,
    runs,
    start,
    trials_now,
    until_gone,
    write_spec,
)
from tracking.server import local_server, store_uri

Tried = Callable[..., tuple[int, str, str]]

LONG = {"corpus": {"generated": {"train": 160}}, "trainer": {"epochs": 12}, "budget": {"trials": 3}}
"""Epochs long enough to be interrupted."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def created(home: Path, folder: Path, **changes: object) -> None:
    run(home, folder, "create", write_spec(folder, **changes))


def working(home: Path, folder: Path, *words: str) -> Command:
    command = start(home, folder, "work", *words)
    command.until(lambda: in_an_epoch(home))
    return command


def state(home: Path) -> str:
    return read(home)[0].state.value


def kinds(home: Path) -> list[str]:
    store = Store(Home(home).database_url)
    try:
        sweep = store.find_sweep("tiny")
        assert sweep is not None
        return [event.kind for event in store.events(sweep.id)]
    finally:
        store.close()


def test_a_sweep_says_how_many_workers_a_machine_gets_and_the_option_decides(home: Path, tmp_path: Path) -> None:
    created(home, tmp_path, workers=1, workers_per_device=2)
    command = start(home, tmp_path, "work", "tiny", "--until-done")
    assert command.wait() == 0, command.words()
    until_gone(home)
    logs = Home(home).workers
    assert "workers: 2 (as the spec says)" in command.words()
    assert sorted(log.name for log in logs.glob("worker-*")) == ["worker-0.log", "worker-1.log"]
    other = start(home, tmp_path, "work", "tiny", "--until-done", "--workers", "1")
    assert other.wait() == 0, other.words()
    assert "as the spec says" not in other.words()


def test_two_that_work_at_once_do_exactly_the_trials_and_one_of_them_ships(home: Path, tmp_path: Path) -> None:
    created(home, tmp_path, budget={"trials": 6})
    run(home, tmp_path, "create", tmp_path / "spec.yaml")  # once more
    commands = [start(home, tmp_path, "work", "--until-done") for _ in range(2)]
    assert [command.wait() for command in commands] == [0, 0], "\n".join(c.words() for c in commands)
    until_gone(home)
    sweep, trials, epochs = read(home)
    assert (sweep.state, sweep.runner) == ("COMPLETE", None)
    assert [t.number for t in trials] == list(range(6))
    assert {t.attempt for t in trials} == {1}
    assert all(rows[-1].epoch == len(rows) for rows in epochs.values())
    check_everything_arrived(home)
    claims = [command.words().count(": claimed") for command in commands]
    assert sum(claims) == 6, "each tells of its own"
    store = Store(Home(home).database_url)
    assert store.workers() == []
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_interrupted_hands_its_trial_to_the_other_within_seconds(
    home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    created(home, tmp_path, **LONG)
    first = working(home, tmp_path)
    second = start(home, tmp_path, "work", "--until-done")
    second.until(lambda: sum(t.state == "RUNNING" for t in trials_now(home)) == 2)
    asked = time.monotonic()
    first.process.send_signal(number)
    second.until(lambda: "handed_back" in kinds(home), 20)
    assert time.monotonic() - asked < 5
    assert first.wait(60) == 130, first.words()
    assert second.wait() == 0, second.words()
    until_gone(home)
    assert state(home) == "COMPLETE"
    assert max(t.attempt for t in read(home)[1]) == 2
    check_everything_arrived(home)


def test_a_sweep_is_run_while_others_work_on_it_and_its_curves_are_those_of_one_worker(
    home: Path, tmp_path: Path
) -> None:
    """`sweeps run` takes the keeping over from `sweeps work`."""
    created(home, tmp_path, **LONG)
    work = working(home, tmp_path, "tiny")
    whole = start(home, tmp_path, "run", tmp_path / "spec.yaml", "--workers", "1", "--json")
    assert whole.wait() == 0, whole.words()
    work.process.send_signal(signal.SIGTERM)
    assert work.wait(60) == 130
    until_gone(home)
    assert whole.result()["state"] == "COMPLETE"
    check_everything_arrived(home)
    alone = tmp_path / "alone" / "home"
    run(alone, alone.parent, "run", write_spec(alone.parent, **LONG), "--workers", "1")
    named = [t.number for t in read(home)[1] if t.name]
    together, by_itself = curves(home), curves(alone)
    assert len(named) == 2
    assert all(together[number] == by_itself[number] for number in named)


def test_the_verbs(home: Path, tmp_path: Path, tried: Tried) -> None:
    created(home, tmp_path, **{**LONG, "budget": {"trials": 8}})
    work = working(home, tmp_path)

    def said(*words: str, code: int = 0) -> dict[str, object]:
        ended, out, err = tried(*words, "tiny", "--home", str(home), "--json")
        assert ended == code, err
        return dict(json.loads(out))

    assert said("pause")["state"] == "PAUSED"
    work.until(lambda: not any(t.state == "RUNNING" for t in trials_now(home)))
    time.sleep(3)
    assert state(home) == "PAUSED"
    assert not any(t.state == "RUNNING" for t in trials_now(home)), "nobody claims from a paused sweep"
    before = read(home)[1][0]
    assert before.epochs >= 2, "the epoch in hand was finished"
    assert said("resume")["state"] == "RUNNING"
    work.until(lambda: in_an_epoch(home))
    assert said("stop")["state"] == "STOPPING"
    work.until(lambda: state(home) == "STOPPED")
    finished = [t for t in read(home)[1] if t.state == "COMPLETE"]
    assert finished, "trials under way ran to their ends"
    said("resume")
    work.until(lambda: any(t.state == "RUNNING" for t in trials_now(home)))
    assert said("cancel")["state"] in ("CANCELLING", "CANCELLED")
    work.until(lambda: state(home) == "CANCELLED")
    assert {t.state.value for t in read(home)[1]} <= {"COMPLETE", "PRUNED", "CANCELLED"}
    work.process.send_signal(signal.SIGTERM)
    assert work.wait(60) == 130
    check_everything_arrived(home)
    ended, _, err = tried("resume", "tiny", "--home", str(home))
    assert (ended, "CANCELLED and cannot become RUNNING" in err) == (2, True)


def test_delete_asks_and_takes_everything_along(home: Path, tmp_path: Path, tried: Tried) -> None:
    run(home, tmp_path, "run", write_spec(tmp_path, budget={"trials": 2}))
    code, _, err = tried("delete", "tiny", "--home", home)
    assert (code, "give --yes" in err) == (2, True)
    assert state(home) == "COMPLETE"
    code, out, err = tried("delete", "tiny", "--home", home, "--yes")
    assert (code, "sweep tiny is deleted" in out) == (0, True), err
    store = Store(Home(home).database_url)
    assert store.sweeps() == []
    store.close()
    for folder in ("checkpoints", "logs", "pictures"):
        assert not (home / folder / "tiny").exists()
    experiment = MlflowClient(store_uri(home / "mlflow")).get_experiment_by_name("tiny")
    assert experiment is None or experiment.lifecycle_stage == "deleted"
    code, _, err = tried("delete", "tiny", "--home", home, "--yes")
    assert (code, "there is no sweep 'tiny'" in err) == (2, True)
    run(home, tmp_path, "run", write_spec(tmp_path, budget={"trials": 2}))  # what one deletes for
    check_everything_arrived(home)


def test_a_trial_goes_on_elsewhere_from_the_checkpoint_that_its_run_holds(home: Path, tmp_path: Path) -> None:
    """Two machines that share database and MLflow server, and no folder."""
    created(home, tmp_path, **{**LONG, "budget": {"trials": 2}})
    elsewhere = tmp_path / "elsewhere"
    with local_server(tmp_path / "server") as server:
        shared = ("--tracking-uri", server.url, "--share-checkpoints", "--lease-seconds", "10")
        first = start(home, tmp_path, "work", *shared)
        first.until(lambda: any(t.state == "RUNNING" and t.epochs >= 3 for t in trials_now(home)))
        first.process.send_signal(signal.SIGTERM)
        assert first.wait(60) == 130, first.words()
        (begun,) = [t for t in read(home)[1] if t.epochs]
        database = ("--database", Home(home).database_url)
        second = start(elsewhere, tmp_path, "work", "--until-done", *database, *shared)
        assert second.wait() == 0, second.words()
        until_gone(elsewhere)
        logs = "".join(file.read_text(encoding="utf-8") for file in (elsewhere / "logs" / ".workers").glob("*.log"))
        assert f"fetched a checkpoint of {begun.epochs} epochs" in logs
        assert state(home) == "COMPLETE"
        check_everything_arrived(home, server.url)
        for found in runs(home, server.url).values():
            folders = [file.path for file in MlflowClient(server.url).list_artifacts(found.info.run_id)]
            assert "checkpoints" not in folders, "nobody goes on from them any more"
    alone = tmp_path / "alone" / "home"
    run(alone, alone.parent, "run", write_spec(alone.parent, **{**LONG, "budget": {"trials": 2}}), "--workers", "1")
    assert curves(alone) == curves(home)
