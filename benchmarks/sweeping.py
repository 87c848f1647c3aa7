"""`sweeps run` as a person starts it, for benchmarks; as a module, `python -m sweeps.cli` with clocks in its workers.

Clocks: those of tests/load/timed.py, and two more. Workers are spawned, which imports this module in each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the machinery of the load tests

from tests.load import timed  # noqa: E402

STEPS = {
    **timed.STEPS,
    "training": "model.ctc:CTCTrainer.train_epoch",
    # All that a worker could ask of MLflow goes through here.
    "tracking": "urllib3.connectionpool:HTTPConnectionPool.urlopen",
}

STUDENT = {"batch_size": 8}
RATES = {"low": 1e-3, "high": 2e-3, "log": True}
"""None of which diverges, so that every trial has all its epochs."""


@dataclass(frozen=True)
class Ran:
    """A sweep that is over."""

    trials: int
    epochs: int
    first_claim: float
    last_end: float
    """Both by the database's clock, seconds."""
    command_seconds: float
    after_seconds: float
    """From the last trial's end to the end of the command."""
    trial_seconds: float
    """Of all trials together, from claim to end."""
    steps: Mapping[str, float]
    """Seconds in each, in all workers, where clocks were put in."""

    @property
    def trials_per_hour(self) -> float:
        return 3600 * self.trials / (self.last_end - self.first_claim)


def corpus(folder: Path, sentences: int, *more: str) -> Path:
    """A generated one."""
    words = ["generate", str(folder), "--train", str(sentences), "--dev", str(max(8, sentences // 5)), *more]
    subprocess.run([sys.executable, "-m", "model", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return folder


def spec(data: Path, epochs: int, trials: int, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep in which every trial trains all its epochs."""
    return {
        "name": "bench",
        "corpus": str(data),
        "trainer": {**STUDENT, "epochs": epochs, **trainer},
        "space": {"learning_rate": RATES, "patience": {"low": epochs, "high": epochs}},
        "pruner": "none",
        "on_alarm": "continue",
        "budget": {"trials": trials},
    }


def run(folder: Path, content: Mapping[str, Any], options: Sequence[str], *, clocks: bool = False) -> Ran:
    """
    Raises:
        subprocess.CalledProcessError: the command failed; its log lies in `folder`.
    """
    from sweeps.settings import Home
    from sweeps.store import Store

    folder.mkdir(parents=True)
    file, home, times = folder / "spec.yaml", folder / "home", folder / "times"
    file.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    times.mkdir()
    module = [str(Path(__file__))] if clocks else ["-m", "sweeps.cli"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SWEEPS_", "MLFLOW_TRACKING"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), timed.TIMES: str(times)}
    began = time.time()
    with (folder / "log").open("wb") as log:
        words = [sys.executable, *module, "run", str(file), "--home", str(home), *options]
        subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=log, stderr=log)
    ended = time.time()
    with closing(Store(Home(home).database_url)) as store:
        sweep = store.find_sweep(content["name"])
        assert sweep is not None
        trials = store.trials(sweep.id)
    spans = [(trial.started_at, trial.finished_at) for trial in trials]
    assert all(trial.epochs == content["trainer"]["epochs"] for trial in trials), "a trial ended early"
    first, last = min(a for a, _ in spans if a), max(b for _, b in spans if b)
    steps: dict[str, float] = defaultdict(float)
    for call in timed.calls(times):
        steps[call.step] += call.seconds
    return Ran(
        len(trials),
        sum(trial.epochs for trial in trials),
        first,
        last,
        ended - began,
        ended - last,
        sum(b - a for a, b in spans if a and b),
        steps,
    )


if __name__ == "__mp_main__" and timed.TIMES in os.environ:
    timed.install(Path(os.environ[timed.TIMES]), STEPS)

if __name__ == "__main__":
    from sweeps.cli import main

    sys.argv[0] = "sweeps"
    main()
