"""Many trials on one GPU: what each means adds to trials per hour, beside a plain loop that trains one at a time.

    python benchmarks/gpu.py [CORPUS] [--device cuda] [--quick] [--json]
    python benchmarks/gpu.py --device cpu --quick        a rehearsal: all of it in a minute or two, no number a GPU's

The small student at batch 4, on AN4 where it lies beside the checkout, else on a generated corpus. Losses are compared
first, and what is not equal within 1e-4 ends it; bf16 is another precision, and its loss is only told. Then the means
take turns, each in processes of its own: every worker trains an epoch, and when all have done so the epochs that are
timed. A trial is as many epochs as a trial has by default, dev and probes among them.

Two rows are for means that are not built (docs/adr/0017-lanes-and-graphs.md): in what share of a step the device
computes, of which the inverse is the most that CUDA graphs could give; and how long a step takes on the batches of
eight trials at once, which is the most that fusing eight trials into one model could give.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import sweeping
import torch
from epoch import EQUAL, EXACT
from plain import PlainLoop, make_plain
from rows import ROOT, Aim, Row, not_run, parser, row, show
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.ctc import CTCTrainer
from model.encoder import Student
from model.types import TrainingConfig

AIM = Aim(8, most=False)
AN4 = ROOT.parent / "shared" / "data" / "an4"
GIB = 1 << 30
LANES = 8
"""Trials whose batches are trained on at once for the bound of fusing."""
PATIENCE_SECONDS = 600.0
"""How long workers wait for each other."""


@dataclass(frozen=True)
class Means:
    """A way to train trials on one device."""

    name: str
    plain: bool = False
    features_on_device: bool = True
    workers: int = 1
    precision: str = "float32"


PLAIN = Means("plain loop, one trial at a time", plain=True, features_on_device=False)
HOST = Means("one trial at a time, batches from the host", features_on_device=False)
DEVICE = Means("one trial at a time, features on the device")
BF16 = replace(DEVICE, name="the same in bf16", precision="bf16")
SEVERAL = tuple(replace(DEVICE, name=f"{count} workers", workers=count) for count in (2, 4, 8))
MEANS = (PLAIN, HOST, DEVICE, BF16, *SEVERAL)
COMPARED = (PLAIN, HOST, DEVICE)
"""Of which losses must be equal: several workers are several of the last."""

BEST, BUSY, FUSED = "the best of these at equal losses", "share of a step that the device computes", "fused, at most"
NAMES = (*(means.name for means in MEANS), BEST, BUSY, FUSED)
"""Of the rows."""


@dataclass(frozen=True)
class Task:
    """What a process is told."""

    data: Path
    config: TrainingConfig
    means: Means
    epochs: int
    """That are timed."""


@dataclass(frozen=True)
class Trained:
    began: float
    ended: float
    """By the clock of the machine."""
    used: int
    """Bytes of the device that were in use with all workers there; 0 on a CPU."""


def config_of(task: Task, means: Means) -> TrainingConfig:
    return task.config.with_values({"precision": means.precision})


def never() -> bool:
    return False


def read(data: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=data))


def plain_loop(config: TrainingConfig, corpus: Corpus, like: CTCTrainer) -> PlainLoop:
    """On the device of that trainer, with its weights."""
    assert isinstance(like.model, Student)
    model = make_plain(config, corpus)
    model.take(like.model)
    return PlainLoop(config, corpus, model.to(like.device))


# In processes of their own: what a device is left with there is gone when they end.


def train(task: Task) -> Trained:
    """One of the workers of a means."""
    corpus, means = read(task.data), task.means
    config = config_of(task, means)
    trainer = CTCTrainer(config, corpus, means.features_on_device)
    epoch: Callable[[], object] = partial(trainer.train_epoch, never)
    if means.plain:
        epoch = plain_loop(config, corpus, trainer).train_epoch
    epoch()  # kernels are loaded, and features there, before the clock runs
    together()
    began = time.time()
    for _ in range(task.epochs):
        epoch()
    ended = time.time()
    used = 0
    if trainer.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(trainer.device)
        used = total - free
    together()  # all are there when each has looked
    return Trained(began, ended, used)


_barrier: Barrier | None = None


def _starting(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def together() -> None:
    assert _barrier is not None
    _barrier.wait(PATIENCE_SECONDS)


def first_losses(task: Task, dtype: torch.dtype) -> list[float]:
    """Train loss of the first epoch (nats a gloss) by each way that one worker trains: those of COMPARED, then bf16."""
    torch.backends.cudnn.allow_tf32 = False  # ten bits are no rounding of float32
    corpus, found = read(task.data), []
    for means in (*COMPARED, BF16):
        trainer = CTCTrainer(config_of(task, means), corpus, means.features_on_device)
        loop = plain_loop(task.config, corpus, trainer) if means.plain else None
        if means is not BF16:
            network = trainer.model if loop is None else loop.model
            network.to(dtype).register_forward_pre_hook(lambda _, given: (given[0].to(dtype), given[1]))
        found.append(trainer.train_epoch(never).metrics["train/loss"] if loop is None else loop.train_epoch()[0])
    return found


def bounds(task: Task, steps: int) -> tuple[float, float, float]:
    """`computing` and `at_once`."""
    corpus = read(task.data)
    return computing(task.config, corpus, steps), *at_once(task.config, corpus, steps)


def computing(config: TrainingConfig, corpus: Corpus, steps: int) -> float:
    """The share of some steps in which the device computes: the time of its kernels, over that of the same steps
    without a profiler.
    """
    trainer = CTCTrainer(config, corpus, True)
    groups = trainer.groups(1)[:steps]
    train_on(trainer, groups)
    seconds = train_on(trainer, groups)
    on_cuda = trainer.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
        train_on(trainer, groups)
    if on_cuda:  # spans that have names stand there as well, over the kernels that they hold
        kernels = [e for e in seen.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        microseconds = sum(each.time_range.elapsed_us() for each in kernels)
    else:
        microseconds = sum(each.self_cpu_time_total for each in seen.events())
    return float(microseconds) / 1e6 / seconds


def at_once(config: TrainingConfig, corpus: Corpus, steps: int) -> tuple[float, float]:
    """Seconds of a step on one batch, and on LANES of them as one batch."""
    found = []
    for factor in (1, LANES):
        trainer = CTCTrainer(config.with_values({"batch_size": factor * config.batch_size}), corpus, True)
        groups = [group for group in trainer.groups(1) if len(group[0]) == trainer.config.batch_size][:steps]
        train_on(trainer, groups)
        found.append(median(train_on(trainer, [group]) for group in groups))
    return found[0], found[1]


def train_on(trainer: CTCTrainer, groups: list[list[np.ndarray[Any, Any]]]) -> float:
    """Seconds of updates on these batches, until the device is done."""
    began = time.perf_counter()
    trainer.begin(1)
    for group in groups:
        trainer.update(group, trainer.config.learning_rate)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - began


# Here


def in_processes(count: int, call: Callable[..., Any], *given: Any) -> list[Any]:
    """What `count` fresh processes answer that start together."""
    spawn = get_context("spawn")
    with ProcessPoolExecutor(count, spawn, _starting, (spawn.Barrier(count),)) as pool:
        return [future.result() for future in [pool.submit(call, *given) for _ in range(count)]]


def compared(task: Task) -> str:
    """What says that all compute the same.

    Raises:
        SystemExit: they do not, so that the times say nothing.
    """
    config = task.config.with_values({"dropout": 0.0, "probe_interval": 0})
    task = replace(task, config=config)
    for dtype, apart in ((torch.float32, EQUAL), (torch.float64, EXACT)):
        ((*found, in_bf16),) = in_processes(1, first_losses, task, dtype)
        said = ", ".join(f"{loss:.6f}" for loss in found)
        if agree(found, apart):
            return f"train loss of the first epoch {said} (plain, host, device; {dtype}), in bf16 {in_bf16:.6f}"
    raise SystemExit(f"the losses of the first epoch differ: {said} (plain, host, device; in float64 as well)")


def agree(losses: list[float], apart: float) -> bool:
    """Whether all lie within that of the first, relative to it."""
    return all(abs(loss - losses[0]) <= apart * abs(losses[0]) for loss in losses)


def trials_per_hour(task: Task) -> tuple[float, float]:
    """And the GiB of the device that are in use then."""
    workers: list[Trained] = in_processes(task.means.workers, train, task)
    seconds = max(each.ended for each in workers) - min(each.began for each in workers)
    epochs = len(workers) * task.epochs
    return 3600 * epochs / task.config.epochs / seconds, max(each.used for each in workers) / GIB


def measured(data: Path, config: TrainingConfig, rounds: int, epochs: int, steps: int) -> list[Row]:
    """All rows, those of NAMES."""
    task = Task(data, config, PLAIN, epochs)
    same = compared(task)
    found: dict[Means, list[float]] = {means: [] for means in MEANS}
    used: dict[Means, float] = {}
    for _ in range(rounds):
        for means, rates in found.items():
            rate, used[means] = trials_per_hour(replace(task, means=means))
            rates.append(rate)
    plain = median(found[PLAIN])
    ratios = {means: median(a / b for a, b in zip(rates, found[PLAIN], strict=True)) for means, rates in found.items()}

    def rated(means: Means, name: str, aim: Aim | None, note: str) -> Row:
        rate = median(found[means])
        return row(name, rate, "trials/h", "plain loop, one trial at a time", plain, ratios[means], aim, note)

    rows = [row(PLAIN.name, plain, "trials/h", note=f"{psutil.cpu_count()} cores, {rounds} rounds; {same}")]
    rows += [rated(m, m.name, None, f"{used[m]:.1f} GiB of the device in use") for m in MEANS if m is not PLAIN]
    best = max((means for means in MEANS if means.precision == "float32"), key=ratios.__getitem__)
    rows.append(rated(best, BEST, AIM, best.name))
    task = replace(task, means=DEVICE)
    ((share, one, eight),) = in_processes(1, bounds, task, steps)
    rows.append(row(BUSY, 100 * share, "%", note=f"CUDA graphs could give {1 / share:.1f} times at most"))
    note = f"a step takes {1e3 * one:.1f} ms, one on {LANES} batches at once {1e3 * eight:.1f} ms"
    rows.append(row(FUSED, LANES * one / eight, "times the trials", note=note))
    return rows


def rehearsal(found: Row) -> Row:
    """A row that nobody takes for a GPU's."""
    return replace(found, name=f"rehearsal on a CPU: {found.name}", aim="", met="")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("corpus", nargs="?", type=Path, help="a corpus folder; default: AN4, else a generated one")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    options.add_argument("--rounds", type=int, help="default: 3, and 1 with --quick")
    options.add_argument("--epochs", type=int, help="that are timed in each; default: 3, and 1 with --quick")
    arguments = options.parse_args()
    quick, device = arguments.quick, arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        show([not_run(name, "torch finds no CUDA device") for name in NAMES], as_json=arguments.json)
        return
    tiny = {"hidden": 16, "channels": 16} if quick else {}
    config = TrainingConfig(batch_size=4, schedule="constant", device=device).with_values(tiny)
    with tempfile.TemporaryDirectory(prefix="gpu") as folder:
        data = arguments.corpus or (AN4 if AN4.exists() and not quick else None)
        data = data or sweeping.corpus(Path(folder) / "corpus", 64 if quick else 835)
        rounds, epochs = arguments.rounds or (1 if quick else 3), arguments.epochs or (1 if quick else 3)
        found = measured(data, config, rounds, epochs, steps=4 if quick else 24)
    show(found if device == "cuda" else [rehearsal(each) for each in found], as_json=arguments.json)


if __name__ == "__main__":
    main()
