"""`sweeps mirror` on a home that holds a sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow.tracking import MlflowClient

from sweeps.commands.mirror import mirror
from sweeps.errors import SweepNotFound
from sweeps.preparing import stored
from sweeps.processes import this_runner
from sweeps.records import PlannedTrial, Runner, SweepRow
from sweeps.settings import Home
from sweeps.shipping import keeper_of, server_of, tags_of
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.rows import VALUES, epoch_row, sweep_row
from tracking.server import store_uri
from tracking.writer import TrackingUnavailable

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "somewhere", "budget": {"trials": 3}})
CORPUS = str(SPEC.corpus.config().path)
FACTS = {"constant_wer": 0.9, "corpus_hash": "c", "vocabulary_hash": "v", "trainer": "built-in", "git_commit": "g"}

# MLflow's tables, used in this process by the tests on the database, are older than SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    store = Store(home.database_url)
    yield store
    store.close()


def new_sweep(store: Store, name: str = "s") -> SweepRow:
    """A sweep with a trial that is complete after three epochs and one that waits after one."""
    planned = [PlannedTrial("fixed", VALUES, {}, False), PlannedTrial("other", VALUES, {}, False)]
    content = stored(SPEC, SPEC.corpus.config())
    sweep = store.create_sweep(name, content, "d", SPEC.budget.model_dump(), FACTS, planned)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    for epochs in (3, 1):
        claim = store.claim(sweep.id, "worker", 60)
        assert claim is not None
        store.record(claim, [epoch_row(epoch, 0.5) for epoch in range(1, epochs + 1)])
        if epochs == 3:
            store.finish(claim, TrialState.COMPLETE, "learned", "It is over.", "epochs", {})
        else:
            store.hand_back(claim, "interrupted")
    store.set_sweep_state(sweep.id, SweepState.PAUSED)
    return sweep


def run(home: Home, *words: str | None, code: int = 0, **options: Any) -> None:
    with pytest.raises(typer.Exit) as ended:
        mirror(*(words or (None,)), home=home.root, **options)
    assert ended.value.exit_code == code


def in_mlflow(uri: str, name: str = "s") -> dict[str, tuple[str, list[int]]]:
    """Status and epochs of each run, by the number of its trial."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    assert "mlflow.note.content" in experiment.tags
    found = {}
    for each in client.search_runs([experiment.experiment_id]):
        assert {"corpus_hash": "c", "git_commit": "g", "corpus": CORPUS}.items() <= each.data.tags.items()
        points = client.get_metric_history(each.info.run_id, "dev/wer")
        found[each.data.tags["number"]] = (each.info.status, sorted(point.step for point in points))
    return found


WHOLE = {"0": ("FINISHED", [1, 2, 3]), "1": ("SCHEDULED", [1])}


@pytest.mark.slow
def test_a_lost_mlflow_comes_back(home: Home, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    new_sweep(store)
    run(home, "s")
    assert in_mlflow(store_uri(home.mlflow)) == WHOLE
    assert f"s: 2 trials, 4 epochs to {store_uri(home.mlflow)}" in capsys.readouterr().out
    shutil.rmtree(home.mlflow)
    run(home, "s", as_json=True)
    assert in_mlflow(store_uri(home.mlflow)) == WHOLE
    assert json.loads(capsys.readouterr().out) == [
        {"sweep": "s", "trials": 2, "epochs": 4, "keeper": None, "trouble": ""}
    ]


def test_without_a_name_every_sweep_goes_and_again_changes_nothing(
    home: Home, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = store_uri(tmp_path / "mlflow")
    for name in ("s", "t"):
        new_sweep(store, name)
    run(home, tracking_uri=uri)
    run(home, tracking_uri=uri)
    run(home, "t", rebuild=True)  # goes where it went before
    assert in_mlflow(uri, "s") == in_mlflow(uri, "t") == WHOLE
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" to ")[0] for line in said] == [
        "s: 2 trials, 4 epochs",
        "t: 2 trials, 4 epochs",
        "s: 0 trials, 0 epochs",
        "t: 0 trials, 0 epochs",
        "t: 2 trials, 4 epochs",
    ]
    assert not home.mlflow.exists()


@pytest.mark.slow
def test_a_deleted_run_is_made_anew_and_a_deleted_experiment_is_said(
    home: Home, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, sweep = store_uri(tmp_path / "mlflow"), new_sweep(store)
    run(home, "s", tracking_uri=uri)
    client = MlflowClient(uri)
    client.delete_run(store.trial(sweep.id, 0).run_id or "")
    run(home, "s", rebuild=True)
    assert in_mlflow(uri) == WHOLE
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    capsys.readouterr()
    run(home, "s", rebuild=True, code=1)
    assert f"mlflow experiments restore --experiment-id {experiment.experiment_id}" in capsys.readouterr().err
    client.restore_experiment(experiment.experiment_id)
    run(home, "s")
    assert in_mlflow(uri) == WHOLE


def test_a_server_that_does_not_answer_and_a_sweep_that_is_not_there_are_errors(home: Home, store: Store) -> None:
    new_sweep(store)
    with pytest.raises(TrackingUnavailable, match="no MLflow server answers"):
        mirror("s", home=home.root, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(SweepNotFound, match=r"did you mean|none of the names"):
        mirror("t", home=home.root)


def test_where_a_process_runs_the_sweep_that_one_ships(
    home: Home, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, me = new_sweep(store), this_runner()
    store.take_runner(sweep.id, me, 60, lambda _: False)
    for trial in store.trials(sweep.id):
        store.mark_mirrored(trial.id, None, [row.epoch for row in store.epochs(trial.id)], trial.revision)
    run(home, "s", as_json=True)
    assert store.count_pending(sweep.id) == (0, 0)
    run(home, "s", rebuild=True)
    assert store.count_pending(sweep.id) == (2, 4)
    said = capsys.readouterr()
    assert f"s: {me} runs it, and ships it" in said.err
    assert f"s: {me} runs it, and sends everything again (2 trials, 4 epochs)" in said.out
    assert json.loads(said.out.splitlines()[0])[0]["keeper"] == str(me)
    assert not home.mlflow.exists()


def test_a_process_that_is_gone_ships_nothing(store: Store) -> None:
    sweep = new_sweep(store)
    assert keeper_of(store, sweep) is None
    for runner, alive in ((Runner("a-1-0.0", this_runner().host, 2**22), False), (this_runner(), True)):
        store.take_runner(sweep.id, runner, 0, lambda _: True)
        found = store.find_sweep("s")
        assert found is not None
        assert (keeper_of(store, found) is not None) == alive


def test_a_sweep_goes_where_it_went_before(tmp_path: Path) -> None:
    home, other = Home(tmp_path / "home"), tmp_path / "other"
    for before, given, goes in [
        (None, None, None),
        (None, "http://a", "http://a"),
        ("http://a", None, "http://a"),
        ("http://a", "http://b", "http://b"),
        (store_uri(home.mlflow), None, None),
        (store_uri(other), None, None),  # not there: the home was moved
    ]:
        assert server_of(sweep_row(tracking=before), given, home) == goes
    other.mkdir()
    (other / "mlflow.db").touch()
    assert server_of(sweep_row(tracking=store_uri(other)), None, home) == store_uri(other)


def test_tags_that_are_not_known_are_left_out() -> None:
    spec = stored(SPEC, SPEC.corpus.config())
    assert tags_of(sweep_row(spec=spec, facts={"trainer": "mine"})) == {"corpus": CORPUS, "trainer": "mine"}
