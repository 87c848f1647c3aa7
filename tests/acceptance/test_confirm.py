"""`sweeps confirm`, as a person gives it: interrupted, gone on with, and asked again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from model.types import METRICS, EpochReport
from sweeps import preparing
from sweeps.records import EpochRow, EventRow, ScoreRow, TrialRow
from sweeps.settings import Home
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.acceptance.commands import TINY, Command, read, run, start, until_gone
from tracking.server import store_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Tried = Callable[..., tuple[int, str, str]]

CONTENT = {
    **TINY,
    "corpus": {"generated": {"train": 100, "dev": 24, "test": 12, "glosses": 4}},
    "trainer": {"epochs": 2, "hidden": 16, "channels": 16, "batch_size": 4},
    "budget": {"trials": 3},
    "workers": 1,
}


@contextmanager
def opened(home: Path) -> Iterator[Store]:
    store = Store(Home(home).database_url)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a sweep `tiny` that is over: it is told, not trained, that its two last trials learned."""
    home = tmp_path / "home"
    home.mkdir()
    prepared = preparing.prepare(SweepSpec.model_validate(CONTENT), Home(home))
    with opened(home) as store:
        sweep = preparing.open_sweep(store, prepared)
        store.set_sweep_state(sweep.id, SweepState.RUNNING)
        for wer in (0.9, 0.3, 0.2):
            claim = store.claim(sweep.id, "somebody", 60)
            assert claim is not None
            values = {"warmup_start_factor": 1.0, "dropout": 0.1, "patience": 2, "learning_rate": 5e-3}
            store.set_hyperparameters(claim, {**values, **(claim.hyperparameters or {})}, None)
            report = EpochReport(1, 1, {**dict.fromkeys(METRICS, 0.5), "dev/wer": wer})
            store.record(claim, [EpochRow.of(report, "learning")])
            store.finish(claim, TrialState.COMPLETE, "learned", "it learned", "epochs", {})
        store.set_sweep_state(sweep.id, SweepState.COMPLETE)
    return home


def confirmed(home: Path) -> tuple[list[TrialRow], list[ScoreRow], list[EventRow]]:
    """Runs, scores and looks at test of the confirmation so far."""
    with opened(home) as store:
        sweep = store.find_sweep("tiny-confirm")
        if sweep is None:
            return [], [], []
        looks = [event for event in store.events(sweep.id) if event.kind == "test_scored"]
        return store.trials(sweep.id), store.scores(sweep.id), looks


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_confirmation_is_interrupted_gone_on_with_and_asked_again(home: Path, tmp_path: Path) -> None:
    asked = ("confirm", "tiny", "--top", "1", "--seeds", "2", "--json")
    first = start(home, tmp_path, *asked)
    first.until(lambda: any(t.state is TrialState.RUNNING and t.epochs for t in confirmed(home)[0]))
    first.interrupt()
    assert first.wait() == 130, first.words()
    until_gone(home)
    assert first.result()["confirmation"] is None
    trials, scores, looks = confirmed(home)
    assert (len(trials), scores, looks) == (4, [], [])

    result = run(home, tmp_path, *asked).result()
    assert result["state"] == "COMPLETE"
    check_what_was_found(result["confirmation"], home)

    before = confirmed(home)
    again = run(home, tmp_path, *asked)
    assert again.result() == result
    assert confirmed(home) == before  # no run, no score and no look more
    assert run(home, tmp_path, "confirm", "tiny-confirm", "--json").result() == result

    other = run(home, tmp_path, "confirm", "tiny", "--name", "other", "--top", "1", "--seeds", "1", "--json").result()
    assert other["confirmation"]["earlier_looks"] == ["tiny-confirm"]
    assert {pair["verdict"] for pair in other["confirmation"]["pairs"]} == {"not shown better"}
    check_where_it_is_said(result["confirmation"]["sentence"], home, tmp_path)


def check_what_was_found(found: dict[str, Any], home: Path) -> None:
    assert (found["split"], found["sentences"], found["epochs"]) == ("test", 12, 4)
    assert [each["name"] for each in found["configurations"]] == ["original", "trial-2"]
    trials, scores, looks = confirmed(home)
    assert len(looks) == 1
    assert [(row.trial_id, row.split) for row in scores] == [(t.id, s) for t in trials for s in ("dev", "test")]
    for trial, dev in zip(trials, scores[::2], strict=True):
        # What the checkpoint reads now is what its epoch showed when it was trained.
        assert sum(dev.errors) / sum(dev.words) == pytest.approx(trial.best_wer)
        assert dev.epoch == trial.best_epoch
    of_test = {trial.number: row for trial, row in zip(trials, scores[1::2], strict=True)}
    for each in found["configurations"]:
        wers = [sum(of_test[n].errors) / sum(of_test[n].words) for n in each["runs"]]
        assert each["measured"]["runs"] == pytest.approx(wers)
        assert each["measured"]["wer"] == pytest.approx(sum(wers) / 2)


def check_where_it_is_said(sentence: str, home: Path, folder: Path) -> None:
    client = MlflowClient(store_uri(home / "mlflow"))
    experiment = client.get_experiment_by_name("tiny-confirm")
    assert experiment is not None
    assert "**Confirmation**" in experiment.tags["mlflow.note.content"]
    run(home, folder, "report", "tiny-confirm")
    assert sentence.partition("%")[0] in (folder / "tiny-confirm-report.html").read_text(encoding="utf-8")


def refused(tried: Tried, home: Path, *words: str) -> str:
    code, _, err = tried("confirm", *words, "--home", str(home))
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(lines) == 1, err
    return lines[0]


def test_what_cannot_be_confirmed_gets_one_line(home: Path, tried: Tried) -> None:
    assert "there is no sweep 'tinny': did you mean 'tiny'?" in refused(tried, home, "tinny")
    assert "did you mean 'original'?" in refused(tried, home, "tiny", "--top", "1", "--against", "orginal")
    assert "--top 3: 2 configurations of sweep 'tiny' learned" in refused(tried, home, "tiny")
    assert "no confirmation of 'tiny'" in refused(tried, home, "tiny", "--name", "tiny")
    assert "it is trained by built-in" in refused(tried, home, "tiny", "--top", "1", "--trainer", own(home))
    with opened(home) as store:
        sweep = store.find_sweep("tiny")
        assert sweep is not None
        store.set_sweep_state(sweep.id, SweepState.RUNNING)
    assert "sweep 'tiny' is RUNNING: its best trials are not known yet" in refused(tried, home, "tiny", "--top", "1")
    assert read(home)[0].name == "tiny"
    assert json.loads(json.dumps(confirmed(home))) == [[], [], []]  # nothing was made


def own(home: Path) -> str:
    file = home / "mine.py"
    file.write_text("def make(config, corpus): ...\n", encoding="utf-8")
    return f"{file}:make"


@pytest.mark.slow
def test_a_confirmation_goes_on_with_its_own_options_alone(home: Path, tried: Tried, tmp_path: Path) -> None:
    command: Command = start(home, tmp_path, "confirm", "tiny", "--top", "1", "--seeds", "2")
    command.until(lambda: confirmed(home)[0])
    command.interrupt()
    assert command.wait() == 130, command.words()
    until_gone(home)
    assert "confirms with --seeds 2, not 3" in refused(tried, home, "tiny", "--seeds", "3")
    assert "is a confirmation already" in refused(tried, home, "tiny-confirm", "--name", "more")
