"""From a config and a corpus to a trainer: the built-in one, or one that was named on the command line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from traceback import extract_tb
from types import ModuleType
from typing import Any, TypeAlias

from model.corpus.data import Corpus
from model.types import BUILT_IN, Stopped, Trainer, TrainingConfig
from sweeps.errors import TrainerNotFound

MakeTrainer: TypeAlias = Callable[[TrainingConfig, Corpus], Trainer]

CONTRACT = ("epoch", "step", "train_epoch", "state_dict", "load_state_dict")
"""What `model.types.Trainer` asks for."""


@cache
def load_trainer(reference: str | None) -> MakeTrainer:
    """What makes a trainer; None is the built-in one. Imports torch, and runs the file or module that is named, once.

    Args:
        reference: `FILE.py:NAME` or `package.module:NAME`; modules are looked for in the working directory as well.

    Raises:
        TrainerNotFound: no such file, module or name, one that cannot be imported or called with (config, corpus).
    """
    if reference is None:
        from model.ctc import CTCTrainer

        return CTCTrainer
    place, name = _parted(reference)
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise TrainerNotFound(reference, f"there is no file {place}", "correct the path")
    try:
        module = _from_file(Path(place).expanduser().resolve()) if place.endswith(".py") else _from_module(place)
    except (Exception, SystemExit) as error:  # whatever their code raises: a script may even end the process
        raise TrainerNotFound(reference, f"{place} cannot be imported ({described(error)})", "mend it") from error
    make = getattr(module, name, None)
    if make is None:
        near = get_close_matches(name, [n for n, value in vars(module).items() if callable(value)], n=1)
        raise TrainerNotFound(reference, f"{place} has no {name}", f"did you mean {near[0]}?" if near else "name one")
    if why := _refuses(make):
        way_out = "it is given a TrainingConfig and a Corpus, and returns a trainer"
        raise TrainerNotFound(reference, f"{name}(config, corpus) cannot be called ({why})", way_out)
    return make  # type: ignore[no-any-return]


def make_trainer(reference: str | None, config: TrainingConfig, corpus: Corpus) -> Trainer:
    """The trainer of one trial.

    Raises:
        TrainerNotFound: see `load_trainer`.
        ValueError: what was made is no trainer, or the built-in one cannot be had as configured.
    """
    trainer = load_trainer(reference)(config, corpus)
    if missing := [name for name in CONTRACT if not hasattr(trainer, name)]:
        raise ValueError(
            f"{reference}: made {type(trainer).__name__!r}, which has no {', '.join(missing)}; "
            "model.types.Trainer says what a trainer has"
        )
    return trainer


def resolved(reference: str | None) -> str | None:
    """The reference with its file in full, so that it means the same in every worker."""
    if reference is None:
        return None
    place, name = _parted(reference)
    return f"{Path(place).expanduser().resolve()}:{name}" if place.endswith(".py") else reference


def trainer_name(reference: str | None) -> str:
    """What a sweep remembers its trainer by: a file by its own name, wherever it lies."""
    if reference is None:
        return BUILT_IN
    place, name = _parted(reference)
    return f"{Path(place).name if place.endswith('.py') else place}:{name}"


def state_size(trainer: Trainer) -> int:
    """How many numbers the tensors of its state hold."""

    def count(value: Any) -> int:
        if hasattr(value, "numel"):
            return int(value.numel())
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return sum(map(count, inner))

    return count(trainer.state_dict())


def seconds_per_step(trainer: Trainer, steps: int = 5) -> float:
    """The median time of its first steps, by the contract alone: the epoch is stopped after so many."""
    times = [time.perf_counter()]

    def should_stop() -> bool:
        times.append(time.perf_counter())
        return len(times) > steps + 1

    with contextlib.suppress(Stopped):
        trainer.train_epoch(should_stop)
        times.append(time.perf_counter())  # a short epoch was not stopped
    return median(end - start for start, end in pairwise(times))


def _parted(reference: str) -> tuple[str, str]:
    place, _, name = reference.rpartition(":")  # the last one: a Windows path has one of its own
    if not place or not name.isidentifier():
        raise TrainerNotFound(reference, "names no trainer", "write FILE.py:NAME or package.module:NAME")
    return place, name


def _from_file(file: Path) -> ModuleType:
    # Its neighbours can be imported, but never instead of our own modules; nor does it take the name of one.
    _importable(file.parent)
    spec = importlib.util.spec_from_file_location(f"trainer_in_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pickle and dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _from_module(name: str) -> ModuleType:
    _importable(Path.cwd())  # which a console script does not look into
    return importlib.import_module(name)


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _refuses(make: Any) -> str:
    """Why `make(config, corpus)` cannot be called; empty if it can."""
    try:
        inspect.signature(make).bind(None, None)
    except TypeError as error:
        return str(error)
    except ValueError:  # a callable that does not tell its signature
        return ""
    return ""


def described(error: BaseException) -> str:
    """The error in one line, and where in their code it was raised."""
    frames = [f for f in extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename != __file__]
    where = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300] + where
