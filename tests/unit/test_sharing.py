"""How many workers a machine gets: `workers_per_device`."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import model.ctc
from model.corpus.data import CorpusConfig, load_corpus, make_batch
from model.ctc import CTCTrainer
from model.footprint import STEPS, footprint, train_some
from model.types import Stopped, TrainingConfig
from sweeps import preparing, runner, sharing
from sweeps.errors import SpecError
from sweeps.settings import Home
from sweeps.sharing import CONTEXT_BYTES, GIB, MOST_ON_A_GPU, USABLE, Share, decided, largest, on_cpu, on_gpu, share_of
from sweeps.spec import MOST_WORKERS, SweepSpec, digest
from tests.corpora import write_corpus

SMALL = {"batch_size": 3, "hidden": 8, "channels": 8, "device": "cpu"}


def spec(**content: Any) -> SweepSpec:
    return SweepSpec.model_validate({"name": "s", "corpus": "x", **content})


def never_asked(config: TrainingConfig) -> tuple[int, int]:
    raise AssertionError("nothing is to be measured")


def share(made: SweepSpec, device: str = "cpu", free: int = 0, trial: int = 0, cores: int = 8) -> Share:
    measure = never_asked if device == "cpu" else lambda config: (free, trial)
    return share_of(made, lambda wanted: device, lambda: cores, measure)


@pytest.mark.parametrize(
    ("content", "workers"), [({}, 1), ({"workers": 3}, 3), ({"workers_per_device": 5}, 5)]
)  # fmt: skip
def test_numbers_are_taken_as_they_stand(content: dict[str, Any], workers: int) -> None:
    def nowhere(wanted: str) -> str:
        raise AssertionError("no device is asked")

    assert share_of(spec(**content), nowhere, lambda: 8, never_asked).workers == workers


@pytest.mark.parametrize(
    ("cores", "threads", "workers"), [(8, 1, 8), (8, 3, 2), (2, 4, 1), (1, 1, 1), (500, 1, MOST_WORKERS)]
)
def test_on_a_cpu_each_worker_has_cores_of_its_own(cores: int, threads: int, workers: int) -> None:
    made = spec(workers_per_device="auto", trainer={"threads": threads})
    assert share(made, cores=cores) == on_cpu(cores, threads) == (workers, f"{cores} cores, {threads} for each")


@pytest.mark.parametrize(
    ("free", "trial", "workers"),
    [(139, 2, 8), (24, 3, 5), (24, 9, 2), (10, 8, 1), (4, 7, 1), (0, 0, 1), (139, 0, 8)],
)
def test_on_a_gpu_so_many_trials_as_its_memory_holds(free: int, trial: int, workers: int) -> None:
    made = spec(workers_per_device="auto", trainer={"threads": 64})  # the cores are no limit there
    found = share(made, "cuda", free * GIB, trial * GIB)
    assert found.workers == workers
    assert found.why == f"{free:.1f} GiB of the device are free, and a trial takes {trial + 1:.1f}"


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_what_starts_together_fits_together(free: int, trial: int) -> None:
    workers, _ = on_gpu(free, trial)
    assert 1 <= workers <= MOST_ON_A_GPU
    assert workers == 1 or workers * (trial + CONTEXT_BYTES) <= USABLE * free
    assert workers in (1, MOST_ON_A_GPU) or (workers + 1) * (trial + CONTEXT_BYTES) > int(USABLE * free)


def test_the_trial_that_is_measured_is_the_largest_of_the_sweep() -> None:
    made = spec(
        trainer={"batch_size": 4, "hidden": 64, "output_stride": 4},
        space={"batch_size": {"low": 2, "high": 16}, "channels": {"choices": [64, 512]}, "output_stride": 8},
        first_trials={"deep": {"lstm_layers": 3, "hidden": 96}},
    )
    (found,) = largest(made)
    assert (found.batch_size, found.channels, found.hidden, found.lstm_layers) == (16, 512, 96, 3)
    assert (found.output_stride, found.eval_batch_size) == (4, 32)
    asked: list[TrainingConfig] = []

    def measure(config: TrainingConfig) -> tuple[int, int]:
        asked.append(config)
        return 10 * GIB, GIB

    auto = made.model_copy(update={"workers_per_device": "auto"})
    assert share_of(auto, lambda wanted: "cuda", lambda: 8, measure).workers == 4
    assert asked == [found]


def test_each_architecture_is_measured_and_in_the_precision_that_takes_more() -> None:
    made = spec(
        trainer={"precision": "bf16"},
        space={"architecture": {"choices": ["student", "bilstm"]}, "precision": {"choices": ["bf16", "float32"]}},
        workers_per_device="auto",
    )
    assert [(each.architecture, each.precision) for each in largest(made)] == [
        ("student", "float32"),
        ("bilstm", "float32"),
    ]
    takes = {"student": 1 * GIB, "bilstm": 4 * GIB}
    found = share_of(made, lambda wanted: "cuda", lambda: 8, lambda config: (25 * GIB, takes[config.architecture]))
    assert found.workers == 4
    alone = spec(trainer={"precision": "bf16"})
    assert [each.precision for each in largest(alone)] == ["bf16"]


def test_how_many_workers_is_no_part_of_what_a_sweep_is() -> None:
    plain, auto = spec(), spec(workers_per_device="auto")
    assert digest(plain.identity()) == digest(auto.identity())
    assert "workers_per_device" not in plain.model_dump(), "stored specs stay as they were"
    assert SweepSpec.model_validate(auto.model_dump(mode="json")) == auto
    chosen = decided(auto, 5)
    assert (chosen.workers, chosen.workers_per_device) == (5, 1)
    assert SweepSpec.model_validate(chosen.model_dump(mode="json")) == chosen


def test_this_machine_has_cores_and_a_device() -> None:
    assert sharing.cores_here() >= 1
    assert preparing.device_here("cpu") == "cpu"


# what a trial takes


def test_the_longest_batches_are_among_those_that_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = load_corpus(CorpusConfig(path=write_corpus(tmp_path)))
    trainer = CTCTrainer(TrainingConfig(**SMALL), corpus)
    seen: list[list[int]] = []

    def watched(split: Any, indices: Any) -> Any:
        seen.append(sorted(corpus.train.lengths[indices].tolist()))
        return make_batch(split, indices)

    monkeypatch.setattr(model.ctc, "make_batch", watched)
    train_some(trainer, lambda: False)
    fitting = np.sort(corpus.train.lengths[trainer.fits]).tolist()
    assert seen[0] == seen[1] == fitting[-3:]
    assert trainer.updates == 2 + min(STEPS, len(trainer.groups(1)))
    with pytest.raises(Stopped):
        train_some(trainer, lambda: True)


def test_only_a_gpu_is_asked_for_its_memory(tmp_path: Path) -> None:
    corpus = load_corpus(CorpusConfig(path=write_corpus(tmp_path)))
    with pytest.raises(ValueError, match="device cpu: only a CUDA device says how much of its memory is free"):
        footprint(TrainingConfig(**SMALL), corpus)


def test_a_process_that_cannot_measure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "device_here", lambda wanted: "cuda")  # in its own process there is none
    home = Home(tmp_path / "home")
    made = spec(trainer=SMALL, workers_per_device="auto")
    corpus = CorpusConfig(path=write_corpus(tmp_path / "corpus"))
    with pytest.raises(SpecError) as raised:
        runner.share_here(made, lambda: corpus, None, home, threading.Event())
    said = str(raised.value)
    assert said.startswith("workers_per_device: auto: no trial could be measured (ValueError: device cpu: only")
    assert said.endswith("footprint.log has more; write a number, or name one with --workers")
    assert "Traceback" in (home.logs("s") / "footprint.log").read_text(encoding="utf-8")
    assert multiprocessing.active_children() == []
    with pytest.raises(SpecError, match=r"measures the built-in trainer alone, and this sweep has mine\.py:Mine"):
        runner.share_here(made, lambda: corpus, "mine.py:Mine", home, threading.Event())


def test_a_word_to_stop_ends_the_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "device_here", lambda wanted: "cuda")
    stop = threading.Event()
    stop.set()
    corpus = CorpusConfig(path=write_corpus(tmp_path / "corpus"))
    made = spec(trainer=SMALL, workers_per_device="auto")
    assert runner.share_here(made, lambda: corpus, None, Home(tmp_path), stop).workers == 1
    assert multiprocessing.active_children() == []
