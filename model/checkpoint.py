"""One file a checkpoint, of a single run or of a sweep's trial: never half written, never unpickled.

It says all by itself what it is: config, classes, blocks of the features and their normalisation, every epoch so far.
The place in the data, the learning rate and all random numbers follow from the seeds and the epoch (ADR 0005).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from torch import Tensor

from model.corpus.data import Corpus
from model.files import written_aside
from model.types import EpochReport, Trainer, TrainingConfig

log = logging.getLogger(__name__)

FORMAT = 2
"""Raised when a checkpoint can no longer be read by the version before."""

FREE_TO_CHANGE = frozenset({"epochs", "patience", "patience_starts", "threads", "device", "probe_interval"})
"""Fields that may differ when a run goes on: they say how long, where and how closely watched, not what is trained."""


def save_checkpoint(path: Path, state: Mapping[str, Any], keep: Path | None = None) -> None:
    """Write aside, flush to disk, then take the place of the old one: a crash leaves the old one whole.

    Args:
        keep: where the old one goes, if it is not to be lost.
    """
    with written_aside(path, keep) as file:
        torch.save(dict(state), file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values with `weights_only=True`, onto the CPU.

    Raises:
        OSError: there is none (FileNotFoundError), or it cannot be read.
        ValueError: the file is not a whole checkpoint.
    """
    try:
        with ZipFile(path) as parts:  # torch reads on over bytes that have changed
            damaged = parts.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a torn zip, a foreign pickle: torch raises many types, and advises to unpickle it
        raise ValueError(f"{path}: not a whole checkpoint ({type(error).__name__})") from error
    if damaged:
        raise ValueError(f"{path}: not a whole checkpoint ({damaged} was changed since it was written)")
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a checkpoint of this trainer")
    return state


@dataclass(frozen=True)
class Files:
    """Where a run's checkpoints lie: the last two, and the one of the best WER."""

    last: Path
    previous: Path
    best: Path


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run at the end of an epoch."""

    run: str
    """What people call the run: its folder, or sweep and trial."""
    identity: Mapping[str, Any]
    """What must be the same for the run to go on from here."""
    config: TrainingConfig
    corpus_hash: str
    glosses: tuple[str, ...]
    """The classes, the blank first."""
    modalities: Mapping[str, int]
    """Blocks of the features in their order: name to width."""
    mean: Tensor
    scale: Tensor
    """Normalisation (D,) of the features: (x - mean) * scale."""
    reports: tuple[EpochReport, ...]
    """Every epoch so far, recorded elsewhere or not."""
    trainer: Mapping[str, Any]
    """What `Trainer.load_state_dict` takes."""


def checkpoint_of(
    run: str,
    identity: Mapping[str, Any],
    trainer: Trainer,
    config: TrainingConfig,
    corpus: Corpus,
    reports: Sequence[EpochReport],
) -> Checkpoint:
    """The run as it stands after the last of `reports`."""
    normalisation = corpus.train.normalisation
    return Checkpoint(
        run=run,
        identity=identity,
        config=config,
        corpus_hash=corpus.hash,
        glosses=corpus.vocabulary.glosses,
        modalities={m.name: m.width for m in corpus.modalities},
        mean=torch.from_numpy(normalisation.mean),
        scale=torch.from_numpy(normalisation.scale),
        reports=tuple(reports),
        trainer=trainer.state_dict(),
    )


def write(path: Path, checkpoint: Checkpoint, keep: Path | None = None) -> None:
    """Save a checkpoint; the one before goes to `keep`, if given."""
    state = {
        **{name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__},
        "format": FORMAT,
        "torch": str(torch.__version__),
        "identity": dict(checkpoint.identity),
        "config": checkpoint.config.model_dump(),
        "glosses": list(checkpoint.glosses),
        "reports": [asdict(report) for report in checkpoint.reports],
        "trainer": dict(checkpoint.trainer),
    }
    save_checkpoint(path, state, keep)


def read(path: Path) -> Checkpoint:
    """Read what `write` wrote.

    Raises:
        OSError: there is none (FileNotFoundError), or it cannot be read.
        ValueError: not a whole checkpoint, or not one of this trainer and version.
    """
    state = load_checkpoint(path)
    if state.get("format") != FORMAT:
        found = f"of format {state['format']}" if "format" in state else "not one of this trainer"
        raise ValueError(
            f"{path}: not a checkpoint that can be read here: it is {found}, and this version reads format {FORMAT}"
        )
    try:
        return Checkpoint(
            run=state["run"],
            identity=state["identity"],
            config=TrainingConfig.model_validate(state["config"]),
            corpus_hash=state["corpus_hash"],
            glosses=tuple(state["glosses"]),
            modalities=state["modalities"],
            mean=state["mean"],
            scale=state["scale"],
            reports=tuple(EpochReport(**report) for report in state["reports"]),
            trainer=state["trainer"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a checkpoint of this version ({' '.join(str(error).split())[:200]})") from error


def read_latest(files: Files) -> Checkpoint | None:
    """The last whole checkpoint of a run: the one before where the last is torn or missing; None where there is none.

    Raises:
        ValueError: there is one, but none that can be read.
    """
    faults = []
    for path in (files.last, files.previous):
        try:
            checkpoint = read(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            faults.append(error)
            continue
        if faults:
            log.warning("%s; going on from %s", faults[0], path.name)
            files.last.unlink()  # else it would take the place of the one that can be read
        return checkpoint
    if faults:
        raise faults[0]
    return None


def differing(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names in which two identities differ. A config field that `saved` does not know had its default then."""
    defaults = {name: field.default for name, field in TrainingConfig.model_fields.items()}
    names = wanted.keys() | saved.keys()
    return sorted(k for k in names if saved.get(k, defaults.get(k)) != wanted.get(k, defaults.get(k)))
