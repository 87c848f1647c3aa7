"""The real commands, started as a person starts them, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from model.types import METRICS
from sweeps.records import EpochRow, SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.store import Store
from tracking.server import store_uri

PATIENT_SECONDS = 240.0
"""For what takes seconds on a free machine: the machine may be shared."""

MARK = "SWEEPS_ACCEPTANCE_HOME"
"""An environment variable that every process below a command inherits, however it is orphaned."""

TINY: Mapping[str, Any] = {
    "name": "tiny",
    "corpus": {"generated": {"train": 24, "dev": 24, "glosses": 8}},
    "trainer": {"epochs": 2, "hidden": 16, "channels": 16, "batch_size": 8},
    "first_trials": {
        "original": {
            "learning_rate": 1e-4,
            "warmup_start_factor": 0.1,
            "schedule": "cosine_restarts",
            "dropout": 0.1,
            "patience": 15,
            "patience_starts": "epoch1",
        },
        "fixed": {"learning_rate": 5e-4, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 30},
    },
    "budget": {"trials": 4},
    "workers": 2,
}


def write_spec(folder: Path, **changes: Any) -> Path:
    """`TINY` as a YAML file in `folder`; a mapping in `changes` is merged into its section, None removes a key."""
    spec = _merged(TINY, changes)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return file


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(old)
    for key, value in changes.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict) and isinstance(new.get(key), Mapping):
            new[key] = _merged(new[key], value)
        else:
            new[key] = value
    return new


def environment(home: Path) -> dict[str, str]:
    """This process's environment, marked, without settings that would lead a command elsewhere."""
    kept = {k: v for k, v in os.environ.items() if k not in {"SWEEPS_HOME", "MLFLOW_TRACKING_URI"}}
    return {**kept, MARK: str(home)}


def living(home: Path) -> list[psutil.Process]:
    """Every process that a command on this home has started, directly or not, and that has not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


@dataclass(frozen=True)
class Command:
    """A started command, in a process group of its own as a shell gives it one."""

    process: subprocess.Popen[bytes]
    home: Path
    stdout: Path
    stderr: Path

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, seconds: float = PATIENT_SECONDS) -> int:
        """The exit code.

        Raises:
            AssertionError: it has not ended in time; the message has its last words.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds:.0f} s\n{self.words()}") from None

    def until(self, what: Callable[[], Any], seconds: float = PATIENT_SECONDS) -> Any:
        """Poll until `what()` is true while the command runs; returns it.

        Raises:
            AssertionError: the command ended first, or took too long.
        """
        deadline = time.monotonic() + seconds
        while not (seen := what()):
            assert self.process.poll() is None, f"ended with {self.process.poll()} before that\n{self.words()}"
            assert time.monotonic() < deadline, f"not seen within {seconds:.0f} s\n{self.words()}"
            time.sleep(0.1)
        return seen

    def words(self) -> str:
        """All it has written so far."""
        return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in (self.stdout, self.stderr))

    def result(self) -> dict[str, Any]:
        """The JSON object on the last line of stdout."""
        parsed: dict[str, Any] = json.loads(self.stdout.read_text(encoding="utf-8").splitlines()[-1])
        return parsed


def start(home: Path, folder: Path, *words: str | Path, shell: str | None = None) -> Command:
    """`sweeps WORDS --home HOME` (or `shell`, a command line) in `folder`; its output goes to files beside the home."""
    folder.mkdir(parents=True, exist_ok=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    number = len(list(home.parent.glob("*.stdout")))
    stdout, stderr = (home.parent / f"{number}.{stream}" for stream in ("stdout", "stderr"))
    command = [sys.executable, "-m", "sweeps.cli", *map(str, words), "--home", str(home)]
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            shell or command,
            shell=shell is not None,
            cwd=folder,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Command(process, home, stdout, stderr)


def run(home: Path, folder: Path, *words: str | Path, code: int = 0) -> Command:
    """`start`, and wait for that exit code; nothing may live afterwards."""
    command = start(home, folder, *words)
    ended = command.wait()
    assert ended == code, f"exit code {ended}\n{command.words()}"
    until_gone(home)
    return command


def until_gone(home: Path, seconds: float = 5.0) -> None:
    """Wait until nothing of this home lives. (Python's own resource tracker goes just after the process it serves.)

    Raises:
        AssertionError: something still does.
    """
    deadline = time.monotonic() + seconds
    while left := living(home):
        assert time.monotonic() < deadline, f"still there after {seconds:.0f} s: {[p.cmdline() for p in left]}"
        time.sleep(0.2)


# What the database says


def read(home: Path, sweep: str = "tiny") -> tuple[SweepRow, list[TrialRow], dict[int, list[EpochRow]]]:
    """The sweep, its trials, and their epochs by trial number."""
    store = Store(Home(home).database_url)
    try:
        found = store.find_sweep(sweep)
        assert found is not None
        trials, epochs = store.trials(found.id), store.sweep_epochs(found.id)
    finally:
        store.close()
    return found, trials, {t.number: epochs[t.id] for t in trials}


def trials_now(home: Path) -> list[TrialRow]:
    """The trials so far; none while there is no sweep."""
    if not (home / "sweeps.db").exists():
        return []
    store = Store(Home(home).database_url)
    try:
        found = store.find_sweep("tiny")
        return store.trials(found.id) if found else []
    finally:
        store.close()


def in_an_epoch(home: Path) -> bool:
    """A trial that has an epoch behind it trains another one now."""
    return any(t.state == "RUNNING" and t.epochs >= 1 for t in trials_now(home))


def curves(home: Path) -> dict[int, list[dict[str, float]]]:
    """The metrics of every epoch, by trial number."""
    return {number: [row.metrics for row in rows] for number, rows in read(home)[2].items()}


# What MLflow says


def runs(home: Path, uri: str | None = None) -> dict[int, Run]:
    """The MLflow runs of the trials of the sweep `tiny` by number; no number may stand there twice."""
    client = MlflowClient(uri or store_uri(home / "mlflow"))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    found = [run for run in client.search_runs([experiment.experiment_id]) if "stage" not in run.data.tags]
    by_number = {int(run.data.tags["number"]): run for run in found}
    assert len(by_number) == len(found), "a trial has two runs"
    return by_number


def check_everything_arrived(home: Path, uri: str | None = None) -> None:
    """MLflow holds one run a trial, in the right status, and every epoch of every curve exactly once."""
    client = MlflowClient(uri or store_uri(home / "mlflow"))
    shown = runs(home, uri)
    _, trials, epochs = read(home)
    assert sorted(shown) == [t.number for t in trials]
    for trial in trials:
        run = shown[trial.number]
        assert run.info.status == STATUS[trial.state]
        assert run.data.tags["trial_state"] == trial.state
        for key in METRICS:
            points = client.get_metric_history(run.info.run_id, key)
            stored = [(row.epoch, row.metrics[key]) for row in epochs[trial.number] if key in row.metrics]
            assert sorted((p.step, p.value) for p in points) == stored, f"{key} of trial {trial.number}"


STATUS = {
    "WAITING": "SCHEDULED",
    "RUNNING": "RUNNING",
    "COMPLETE": "FINISHED",
    "PRUNED": "KILLED",
    "FAILED": "FAILED",
    "CANCELLED": "KILLED",
}
