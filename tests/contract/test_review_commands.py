"""`sweeps status`, `trials`, `watch`, `compare` and `report`, on a database and on a server: the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from sweeps import cli, service
from sweeps.commands import compare, watch
from sweeps.errors import SweepError, SweepNotFound
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.spec import SweepSpec, in_words
from sweeps.states import SweepState, TrialState
from tests.rows import epoch_row
from tests.serving import begun, corpus, policy_of, serving, spec, trained

Asked = Callable[..., Result]


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SWEEPS_HOME", "SWEEPS_DATABASE", "SWEEPS_SERVER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SweepService]:
    """`mine`: two trials over, one that runs, one that waits; `yours`, as if on another corpus, cancelled."""
    top = tmp_path_factory.mktemp("review")
    home = Home(top / "home")
    with closing(service.load_home_store(home, None)) as store:
        asked = SweepService(store, home, "me")
        one = create(asked, "mine")
        trained(store, one)
        trained(store, one, state=TrialState.PRUNED)
        begun(store, one)
        asked.enqueue("mine", {"learning_rate": 2e-3}, trial_name="wide")
        store.update_facts(create(asked, "yours", seed=7), {"corpus_hash": "f" * 64})
        asked.cancel("yours")
        yield asked


def create(sweeps: SweepService, name: str, **changes: Any) -> int:
    """A sweep that runs; its id."""
    folder = sweeps.home.root.parent / "corpus"
    path = folder if folder.exists() else corpus(folder)
    return sweeps.create(spec(name, path, **changes)).sweep.sweep.id


@pytest.fixture(scope="module", params=["database", "server"])
def asked(request: pytest.FixtureRequest, sweeps: SweepService) -> Iterator[Asked]:
    """A command asked of each of the two, as in a pipe."""
    home = sweeps.home

    def ask(*words: str) -> Result:
        return CliRunner().invoke(cli.app, [*words, *place])

    if request.param == "database":
        place = ["--home", str(home.root)]
        yield ask
        return
    with serving(sweeps.store, home, policy_of(home.root)) as address:
        place = ["--server", address]
        yield ask


def lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.exception or result.output
    assert "\x1b" not in result.stdout
    return result.stdout.splitlines()


def said(result: Result) -> Any:
    (line,) = lines(result)
    return json.loads(line)


def test_every_sweep_in_a_line(asked: Asked) -> None:
    head, mine, yours, *_ = lines(asked("status"))
    assert head.split()[:5] == ["sweep", "state", "done", "running", "pruned"]
    assert mine.split()[:5] == ["mine", "RUNNING", "2/4", "1", "1"]
    assert "22.5%" in mine
    assert "cancelled by me" in yours
    first, second, *_ = said(asked("status", "--json"))
    assert (first["done"], first["counts"]["RUNNING"], first["best"]["number"]) == (2, 1, 1)
    assert (second["state"], second["best"]) == ("CANCELLED", None)


def test_trials_in_the_order_that_is_asked_for(asked: Asked) -> None:
    assert [line.split()[0] for line in lines(asked("trials", "mine"))] == ["trial", "0", "1", "2", "3"]
    assert [line.split()[0] for line in lines(asked("trials", "mine", "--sort", "wer", "--limit", "2"))[1:]] == [
        "1",
        "0",
    ]
    (pruned,) = lines(asked("trials", "mine", "--state", "pruned"))[1:]
    assert pruned.split()[1] == "PRUNED"
    first, *_ = said(asked("trials", "mine", "--json", "--sort", "-learning_rate"))
    assert first["name"] == "wide"


def test_what_is_not_there_is_refused(asked: Asked) -> None:
    for words in (("trials", "mein"), ("watch", "mein"), ("compare", "mine", "mein"), ("report", "mein")):
        assert isinstance(asked(*words).exception, SweepNotFound), words
    assert isinstance(asked("compare", "mine").exception, SweepError)
    assert isinstance(asked("trials", "mine", "--sort", "luck").exception, SweepError)


def test_an_empty_folder_is_not_made_a_home(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["status", "--home", str(tmp_path / "none")])
    assert isinstance(result.exception, SweepError)
    assert not (tmp_path / "none").exists()


def test_sweeps_side_by_side(asked: Asked) -> None:
    found = said(asked("compare", "mine", "yours", "--json"))
    assert [each["trials"] for each in found["sweeps"]] == [4, 1]
    assert found["sweeps"][0]["verdicts"] == {"learned": 2}
    assert found["differences"]["seed"] == [0, 7]
    (why,) = found["not_comparable"]
    first, *rest = lines(asked("compare", "mine", "yours"))
    assert first == f"WERs DO NOT COMPARE: {why}"
    assert any(line.split() == ["best", "WER", "22.5%"] for line in rest)
    assert any(line.split() == ["seed", "0", "7"] for line in rest)


def test_spaces_are_told_by_what_is_searched_of_each_parameter() -> None:
    narrow = {"name": "one", "corpus": "x", "trainer": {"weight_decay": 0.02}}
    wider = {**narrow, "name": "two", "space": {
        "schedule": {"choices": ["plateau", "step"]},
        "step_epochs": {"low": 2, "high": 9, "when": {"schedule": "step"}},
        "weight_decay": {"low": 1e-3, "high": 0.1, "log": True}, "dropout": 0.25,
    }}  # fmt: skip
    searched = [
        {"space": {n: in_words(p) for n, p in s.space.searched().items()},
         "fixed": {**s.trainer.model_dump(), **{n: p.at(0) for n, p in s.space.parameters().items() if p.count == 1}}}
        for s in map(SweepSpec.model_validate, (narrow, wider))
    ]  # fmt: skip
    assert compare.spaces(searched) == {
        "learning_rate": ["1e-05 to 0.02 (log)"] * 2,
        "warmup_start_factor": ["0.05 to 1"] * 2,
        "dropout": ["0 to 0.5", "0.25, fixed"],
        "patience": ["5 to 12"] * 2,
        "weight_decay": ["0.02, fixed", "0.001 to 0.1 (log)"],
        "schedule": ["plateau, fixed", "plateau or step"],
        "step_epochs": ["50, fixed", "2 to 9, with schedule step"],
    }


def test_a_sweep_with_itself_has_no_differences(asked: Asked) -> None:
    assert "The specs are the same." in lines(asked("compare", "mine", "mine"))


def test_a_sweep_that_is_over_is_watched_no_longer(asked: Asked) -> None:
    assert lines(asked("watch", "yours")) == [
        "yours: 1 of 1 trials over, no WER yet",
        "yours: CANCELLED, cancelled by me",
    ]
    changes = [json.loads(line) for line in lines(asked("watch", "yours", "--json"))]
    assert changes[-1]["kind"] == "status"
    assert changes[-1]["data"]["sweep"]["state"] == "CANCELLED"


def test_a_sweep_is_watched_to_its_end(
    asked: Asked, sweeps: SweepService, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch and each end is a line, once; what was over before is not told again."""
    name = f"live-{request.node.callspec.params['asked']}"
    store, sweep_id, watched = sweeps.store, create(sweeps, name, budget={"trials": 2}), threading.Event()
    trained(store, sweep_id)

    def so_far(*seen: Any) -> str:
        watched.set()
        return _so_far(*seen)

    def train() -> None:
        assert watched.wait(30)
        claim = begun(store, sweep_id)
        for epoch in (1, 2):
            assert store.reserve_epoch(claim, epoch)
            store.record(claim, [epoch_row(epoch, 0.2)])
            time.sleep(0.1)
        store.finish(claim, TrialState.COMPLETE, "learned", "It is over.", None, {})
        service.end_if_over(store, sweep_id)

    _so_far = watch.so_far
    monkeypatch.setattr(watch, "so_far", so_far)
    worker = threading.Thread(target=train)
    worker.start()
    told = lines(asked("watch", name))
    worker.join()
    assert told[0] == f"{name}: 1 of 1 trials over, best WER 30.0% (trial 0 first)"
    epochs = [line.split()[3] for line in told if line.startswith("trial 1: epoch")]
    assert epochs == ["1", "2"]
    assert "trial 1: COMPLETE  It is over." in told
    assert not any(line.startswith("trial 0") for line in told)
    assert told[-1].startswith(f"{name}: COMPLETE")


def test_ctrl_c_leaves_the_sweep_alone(asked: Asked, sweeps: SweepService, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "follow", interrupted)
    assert asked("watch", "mine").exit_code == 130
    assert sweeps.sweep("mine").sweep.state is SweepState.RUNNING


def test_a_report_is_a_file(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = lines(asked("report", "mine"))
    assert line.startswith("mine-report.html: ")
    text = (tmp_path / "mine-report.html").read_text(encoding="utf-8")
    assert "Trial 1 has the lowest WER, 22.5%" in text
    assert "not over (running)" in text
    result = asked("report", "mine", "--output", str(tmp_path / "new" / "r.html"), "--json")
    told = json.loads(result.stdout)
    assert told["file"] == str(tmp_path / "new" / "r.html")
    assert told["bytes"] == (tmp_path / "new" / "r.html").stat().st_size
    assert told["attached_to"] is None


def test_a_report_is_not_attached_where_there_is_no_run(asked: Asked, tmp_path: Path) -> None:
    result = asked("report", "mine", "--attach", "--output", str(tmp_path / "r.html"))
    assert isinstance(result.exception, SweepError)
    assert "sweeps mirror mine" in str(result.exception)
    assert (tmp_path / "r.html").exists()
