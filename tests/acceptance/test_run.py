"""A whole sweep, from the command to MLflow and back, and going on with one that has ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.tracking import MlflowClient

from model.corpus.data import load_corpus
from model.corpus.features import seen_parts
from model.metrics import word_errors
from model.types import METRICS, NOT_EVERY_EPOCH, TrainingConfig
from sweeps.records import BEST_WER
from sweeps.spec import corpus_of
from sweeps.states import SweepState
from sweeps.store import Store
from tests.acceptance.commands import (
    check_everything_arrived,
    environment,
    living,
    read,
    run,
    runs,
    start,
    until_gone,
    write_spec,
)
from tests.acceptance.conftest import Finished
from tests.corpora import write_corpus
from tracking.server import local_server

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Tried = Callable[..., tuple[int, str, str]]

# As docs/reference/json.md has them.
KEYS = {"sweep", "state", "tracking_uri", "ui_command", "seconds", "constant_wer", "best", "counts", "trials"}
KEYS |= {"alarm", "range_test", "learned", "audit", "forecast", "warm_start"}
BEST_KEYS = {"number", "name", "wer", "hyperparameters", "command"}
TRIAL_KEYS = {
    "number",
    "name",
    "trial_state",
    "verdict",
    "rule",
    "reason",
    "counterfactual",
    "audited",
    "best_wer",
    "epochs",
    "hyperparameters",
    "overrides",
}
SPACE = {"learning_rate", "warmup_start_factor", "dropout", "patience"}


def test_the_last_line_is_the_result(finished: Finished) -> None:
    result = finished.command.result()
    assert set(result) == KEYS
    assert set(result["best"]) == BEST_KEYS
    for trial in result["trials"]:
        assert set(trial) == TRIAL_KEYS


def test_the_result_holds_the_exact_total_of_trials(finished: Finished) -> None:
    result = finished.command.result()
    trials = result["trials"]
    assert [t["number"] for t in trials] == [0, 1, 2, 3]
    assert [t["name"] for t in trials] == ["original", "fixed", None, None]
    assert sum(result["counts"].values()) == 4
    assert {state for state, n in result["counts"].items() if n} <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert set(trial["hyperparameters"]) == SPACE
        assert 1 <= trial["epochs"] <= 2
        assert trial["verdict"]
        assert trial["reason"].endswith(".")
    best = min(trials, key=lambda t: (t["best_wer"], t["number"]))
    assert (result["best"]["number"], result["best"]["wer"]) == (best["number"], best["best_wer"])
    assert result["sweep"] == "tiny"
    assert result["seconds"] > 0


def test_mlflow_holds_every_trial(finished: Finished) -> None:
    result = finished.command.result()
    uri = result["tracking_uri"]
    check_everything_arrived(finished.home, uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    shown = runs(finished.home, uri)
    facts = read(finished.home)[0].facts
    for trial in result["trials"]:
        seen = shown[trial["number"]]
        tags, params = seen.data.tags, seen.data.params
        assert "mlflow.parentRunId" not in tags
        label = f"{trial['number']} {trial['name']}" if trial["name"] else str(trial["number"])
        assert seen.info.run_name == f"{label}: {trial['verdict'].replace('_', ' ')}"
        assert seen.data.metrics[BEST_WER] == trial["best_wer"]
        assert set(params) == set(TrainingConfig.model_fields)
        assert {name: float(params[name]) for name in SPACE} == trial["hyperparameters"]
        assert METRICS.keys() - NOT_EVERY_EPOCH <= seen.data.metrics.keys() <= {*METRICS, BEST_WER}
        assert tags["name"] == (trial["name"] or "")
        assert tags["verdict"] == trial["verdict"]
        assert tags["reason"] == trial["reason"]
        assert tags["collapse"] == str(trial["verdict"] in {"never_learned", "collapsed"}).lower()
        assert tags["seed"] == params["seed"]
        assert tags["corpus_hash"] == facts["corpus_hash"]
        assert tags["vocabulary_hash"] == facts["vocabulary_hash"]
        assert tags["git_commit"] == finished.commit
        assert seen.info.end_time >= seen.info.start_time
    assert shown[0].data.params["schedule"] == "cosine_restarts"
    description = experiment.tags["mlflow.note.content"]
    assert "complete" in description
    assert result["best"]["command"] in description
    assert "**What it learned" in description


@pytest.fixture(scope="module")
def mlflow_url(finished: Finished) -> Iterator[str]:
    with local_server(finished.home / "mlflow") as server:
        yield server.url


def test_mlflow_shows_what_each_trial_read_and_what_it_was_trained_on(
    finished: Finished, mlflow_url: str, tmp_path: Path
) -> None:
    result, uri = finished.command.result(), mlflow_url
    client, hash_of_corpus = MlflowClient(uri), read(finished.home)[0].facts["corpus_hash"]
    for trial in result["trials"]:
        run = runs(finished.home, uri)[trial["number"]]
        images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
        steps = sorted(int(path.split("+")[2]) for path in images if path.endswith(".png"))
        assert steps == list(range(1, trial["epochs"] + 1)), "epochs 1 and 2 have examples"
        file = client.download_artifacts(run.info.run_id, "sentences.json", str(tmp_path))
        table = json.loads(Path(file).read_text(encoding="utf-8"))
        assert table["columns"] == ["epoch", "sentence", "reference", "hypothesis"]
        assert {row[0] for row in table["data"]} == set(steps)
        (entry,) = run.inputs.dataset_inputs
        assert hash_of_corpus.startswith(entry.dataset.digest)


LOAD = """
import json, sys
import mlflow.pyfunc, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps([model.predict(features)[0] for features in numpy.load(sys.argv[2]).values()]))
"""


def test_the_best_model_is_in_mlflow_and_reads_dev_as_its_trial_did(
    finished: Finished, mlflow_url: str, tmp_path: Path
) -> None:
    result = finished.command.result()
    client, (sweep, _, _) = MlflowClient(mlflow_url), read(finished.home)
    assert sweep.experiment_id is not None
    (kept,) = client.search_logged_models([sweep.experiment_id])
    assert kept.source_run_id == runs(finished.home, mlflow_url)[result["best"]["number"]].info.run_id
    dev = load_corpus(corpus_of(sweep)).dev
    recordings, parts = {}, dev.normalisation.parts
    for i in range(len(dev)):
        recordings[str(i)] = dev.read(i).x.astype(np.float32)
        for part, seen in zip(parts, seen_parts(dev.read(i).detected, parts).T, strict=True):
            recordings[str(i)][~seen, part.columns] = np.nan
    np.savez(tmp_path / "dev.npz", **recordings)  # type: ignore[arg-type]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_url}
    told = subprocess.run(
        [sys.executable, "-c", LOAD, f"models:/{kept.model_id}", str(tmp_path / "dev.npz")],
        env=environment,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    assert told.returncode == 0, told.stderr
    hypotheses = json.loads(told.stdout.splitlines()[-1])
    assert word_errors(dev.references, hypotheses).wer == result["best"]["wer"]


def test_the_result_and_the_summary_say_what_was_learned(finished: Finished) -> None:
    result = finished.command.result()
    text = finished.command.stderr.read_text(encoding="utf-8")
    assert {lesson["parameter"] for lesson in result["learned"]} == SPACE - {"patience"}, "of 2 epochs it is fixed"
    for lesson in result["learned"]:
        assert f": {lesson['sentence']}" in text
    rules = [t["rule"] for t in result["trials"]]
    assert set(rules) <= {"epochs", "patience", "diverged"}, "so short that no rule acts"
    assert result["audit"]["condemned"] == 0
    assert [t["counterfactual"] is None for t in result["trials"]] == [rule != "diverged" for rule in rules]


def test_what_happened_is_told_in_order(finished: Finished, tried: Tried) -> None:
    code, out, _ = tried("show", "tiny", "--events", "--json", "--home", finished.home)
    events = json.loads(out)
    assert code == 0
    of_sweep = [e["kind"] for e in events if e["trial_number"] is None]
    assert of_sweep == ["created", "running", "complete"]
    for number in range(4):
        mine = [e for e in events if e["trial_number"] == number]
        assert mine[0]["kind"] == "claimed"
        assert mine[-1]["kind"] in ("complete", "pruned")
        assert {"torch", "python"} <= mine[0]["data"]["versions"].keys()
    code, out, _ = tried("show", "tiny/1", "--events", "--home", finished.home)
    assert len(out.splitlines()) == 2
    assert "tiny/1: claimed" in out
    code, _, err = tried("show", "--events", "--home", finished.home)
    assert (code, "name the sweep" in err) == (2, True)


def test_nothing_is_left_running(finished: Finished) -> None:
    assert not living(finished.home)
    assert not [t for t in read(finished.home)[1] if not t.state.terminal]


def test_the_printed_command_repeats_the_best_trial_to_the_bit(finished: Finished, tmp_path: Path) -> None:
    best = finished.command.result()["best"]
    subprocess.run(
        best["command"], shell=True, cwd=tmp_path, env=environment(finished.home), check=True, capture_output=True
    )
    (written,) = tmp_path.glob("*/epochs.jsonl")
    again = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    epochs = run(finished.home, tmp_path, "show", f"tiny/{best['number']}", "--json").result()["epochs"]
    finite = [{key: value for key, value in e["metrics"].items() if value is not None} for e in again]
    assert finite == [{key: e[key] for key in METRICS if key in e} for e in epochs]
    assert [e["epoch"] for e in again] == [e["epoch"] for e in epochs]


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"trainer": {"hidden": 24}}, ["trainer.hidden (16 -> 24)"]),
        ({"space": {"dropout": {"low": 0.0, "high": 0.4}}, "seed": 7}, ["seed (0 -> 7)", "space.dropout.high"]),
        ({"first_trials": {"fixed": {"learning_rate": 6e-4}}}, ["first_trials.fixed.learning_rate"]),
        ({"corpus": {"generated": {"noise": 0.01}}}, ["corpus.generated.noise", "corpus_hash"]),
    ],
)
def test_a_changed_spec_is_refused_with_what_differs(
    finished: Finished, tmp_path: Path, tried: Tried, changes: dict[str, Any], paths: list[str]
) -> None:
    before = read(finished.home)
    code, _, err = tried("run", write_spec(tmp_path, **changes), "--home", finished.home)
    assert code == 2
    (error,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "'tiny'" in error
    for path in paths:
        assert path in error
    assert read(finished.home) == before


@pytest.mark.slow
def test_the_same_command_again_finishes_at_once(finished: Finished, tmp_path: Path) -> None:
    home = finished.copy(tmp_path)
    first = finished.command.result()
    again = run(home, finished.folder, "run", finished.spec, "--json").result()
    moved = {"tracking_uri", "ui_command", "best"}  # they name the home
    assert {k: v for k, v in again.items() if k not in moved} == {k: v for k, v in first.items() if k not in moved}
    assert read(home)[0].seconds == read(finished.home)[0].seconds, "the budget of hours was spent on nothing"
    check_everything_arrived(home)


@pytest.mark.slow
def test_a_runner_killed_after_the_last_trial_leaves_nothing_open(finished: Finished, tmp_path: Path) -> None:
    """Nothing is left to train, yet the sweep says RUNNING: running it again closes it."""
    home = finished.copy(tmp_path)
    with closing(Store(f"sqlite:///{(home / 'sweeps.db').as_posix()}")) as store:
        store.set_sweep_state(store.sweeps()[0].id, SweepState.RUNNING)
    result = run(home, finished.folder, "run", finished.spec, "--json").result()
    assert (result["state"], result["trials"]) == ("COMPLETE", finished.command.result()["trials"])
    check_everything_arrived(home)


@pytest.mark.slow
def test_a_raised_budget_goes_on_with_exactly_the_additional_trials(finished: Finished, tmp_path: Path) -> None:
    home = finished.copy(tmp_path)
    before = read(home)[2]
    spec = write_spec(tmp_path / "raised", budget={"trials": 6}, workers=1)
    result = run(home, tmp_path, "run", spec, "--json").result()
    assert [t["number"] for t in result["trials"]] == [0, 1, 2, 3, 4, 5]
    after = read(home)[2]
    assert {number: after[number] for number in before} == before
    assert all(after[number] for number in (4, 5))
    check_everything_arrived(home)


@pytest.mark.slow
def test_a_changed_corpus_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    home = tmp_path / "home"
    spec = write_spec(tmp_path, corpus={"path": str(corpus), "generated": None}, budget={"trials": 2})
    run(home, tmp_path, "run", spec, "--json")
    write_corpus(corpus, seed=1)
    refused = run(home, tmp_path, "run", spec, "--json", code=2)
    (error,) = [line for line in refused.words().splitlines() if line.startswith("error:")]
    assert "corpus_hash" in error
    assert "vocabulary_hash" not in error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal to a process group")
def test_the_printed_line_opens_the_dashboard_again(finished: Finished, tmp_path: Path) -> None:
    line = finished.command.result()["ui_command"]
    assert line in finished.command.words()
    ui = start(finished.home, tmp_path, shell=line)
    try:
        address = ui.until(lambda: ui.stdout.read_text(encoding="utf-8").partition("\n")[0])
        assert "#/experiments/" in address
        assert "compareRunsMode=CHART" in address
        assert "viewStateShareKey=sweep-all" in address
        with urllib.request.urlopen(address.partition("#")[0], timeout=30) as answer:
            assert answer.status == 200
    finally:
        if ui.process.poll() is None:
            os.killpg(ui.process.pid, signal.SIGINT)
        ui.wait(30)
    until_gone(finished.home, 30)


@pytest.mark.slow
def test_without_json_the_log_and_the_summary_are_for_a_person(tmp_path: Path) -> None:
    spec = yaml.safe_load(write_spec(tmp_path).read_text(encoding="utf-8"))
    home = tmp_path / "home"
    words = run(home, tmp_path, "run", tmp_path / "spec.yaml", "--trials", "2", "--workers", "1")
    out = words.stdout.read_text(encoding="utf-8")
    for name in spec["first_trials"]:
        assert f"tiny/{name}: " in out
    assert "python" in out
    assert "-m model train" in out
    assert f"sweeps ui tiny --home {home}" in out
    assert "COMPLETE" in out
    assert [t.state for t in read(home)[1]] == ["COMPLETE", "COMPLETE"]
