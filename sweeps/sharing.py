"""How many workers this machine gets where a spec leaves it to its device: `workers_per_device`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import joblib

from model.corpus.data import CorpusConfig, load_corpus
from model.types import Stopped, TrainingConfig
from sweeps.errors import SpecError
from sweeps.processes import obedient
from sweeps.ramp import Failure
from sweeps.spec import MOST_WORKERS, Choices, FloatRange, SweepSpec

log = logging.getLogger(__name__)

MOST_ON_A_GPU = 8
"""Processes take turns on a GPU: how many still add something has not been measured beyond (benchmarks/gpu.py)."""

USABLE = 0.9
"""Of the memory that is free: the rest is for what grows and for gaps between blocks."""

CONTEXT_BYTES = 1 << 30
"""What a process takes of a CUDA device beside torch's own blocks: its context, and the kernels that are loaded."""

GIB = 1 << 30

Measure = Callable[[TrainingConfig], tuple[int, int]]
"""Bytes of the device that are free, and bytes that one trial of that config takes there."""


class Share(NamedTuple):
    """How many workers a machine gets, and why."""

    workers: int
    why: str


def on_cpu(cores: int, threads: int) -> Share:
    """One trial a worker, so that none waits for another's core."""
    return Share(max(1, min(cores // threads, MOST_WORKERS)), f"{cores} cores, {threads} for each")


def on_gpu(free: int, trial: int) -> Share:
    """So many trials as fit (all in bytes), MOST_ON_A_GPU at most; one where none seems to."""
    fitting = int(USABLE * free) // (trial + CONTEXT_BYTES)
    why = f"{free / GIB:.1f} GiB of the device are free, and a trial takes {(trial + CONTEXT_BYTES) / GIB:.1f}"
    return Share(max(1, min(fitting, MOST_ON_A_GPU)), why)


def cores_here() -> int:
    """As many as this process may use, by its affinity and by a container's quota."""
    return int(joblib.cpu_count())


def share_of(
    spec: SweepSpec, device_here: Callable[[str], str], cores_here: Callable[[], int], measure: Measure
) -> Share:
    """How many workers one machine gets by a spec. Of the machine no more is asked than has to be known.

    Args:
        device_here: `cpu` or `cuda` for a `trainer.device`.
        measure: asked on CUDA alone.
    """
    if spec.workers_per_device != "auto":
        return Share(max(spec.workers, spec.workers_per_device), "as the spec says")
    if device_here(spec.trainer.device) == "cpu":
        return on_cpu(cores_here(), spec.trainer.threads)
    free, trial = zip(*map(measure, largest(spec)), strict=True)
    return on_gpu(min(free), max(trial))


def decided(spec: SweepSpec, workers: int) -> SweepSpec:
    """The spec with that number of workers."""
    return spec.model_copy(update={"workers": workers, "workers_per_device": 1})


def largest(spec: SweepSpec) -> list[TrainingConfig]:
    """Configs of which one takes as much memory as any trial of the sweep may: one of each architecture."""
    parameters = spec.space.parameters()

    def values(name: str) -> list[Any]:
        known = parameters.get(name)
        assert not isinstance(known, FloatRange), name
        searched = known.choices if isinstance(known, Choices) else (known.low, known.high) if known else ()
        named = [given[name] for given in spec.first_trials.values() if name in given]
        return [getattr(spec.trainer, name), *searched, *named]

    most = {name: max(values(name)) for name in ("batch_size", "eval_batch_size", "channels", "hidden", "lstm_layers")}
    most["output_stride"] = min(values("output_stride"))
    if "float32" in values("precision"):
        most["precision"] = "float32"
    architectures = dict.fromkeys(values("architecture"))
    return [spec.trainer.with_values({**most, "architecture": each}) for each in architectures]


@dataclass(frozen=True)
class Trial:
    """What the process that measures is told."""

    config: TrainingConfig
    corpus: CorpusConfig
    scans: Path
    log: Path


def footprint_process(trial: Trial, word: Connection, answers: Connection) -> None:
    """Measures a trial in a process of its own, which gives all its memory back: sends the two numbers of `Measure`, or
    a `Failure`; stops when `word` breaks.
    """
    stop = obedient(trial.log, word)
    try:
        from model.footprint import footprint

        answers.send(tuple(footprint(trial.config, load_corpus(trial.corpus, cache=trial.scans), stop.is_set)))
    except (Stopped, BrokenPipeError):
        log.info("stopped")
    except Exception as error:  # told to whoever waits for the answer; the log has the rest
        log.exception("a trial could not be measured")
        answers.send(Failure(" ".join(f"{type(error).__name__}: {error}".split())[:500]))


def not_measured(failure: Failure, trial: Trial) -> SpecError:
    return SpecError(
        f"workers_per_device: auto: no trial could be measured ({failure.reason}): {trial.log} has more; write a "
        "number, or name one with --workers"
    )
