"""The checkpoints of a sweep's trials: the last two and the best of each, in the one format of `model.checkpoint`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.corpus.data import Corpus
from model.types import EpochReport, Trainer, TrainingConfig

if TYPE_CHECKING:
    from model.checkpoint import Files

log = logging.getLogger(__name__)

# model.checkpoint comes with torch, which a process that only reads results can do without: imported where needed.


def trial_files(folder: Path, number: int) -> Files:
    """Where the checkpoints of a trial lie."""
    from model.checkpoint import Files

    return Files(*(folder / f"{number:05d}{kind}.pt" for kind in ("", ".previous", ".best")))


def save(
    files: Files,
    run: str,
    identity: Mapping[str, Any],
    trainer: Trainer,
    config: TrainingConfig,
    corpus: Corpus,
    reports: Sequence[EpochReport],
    *,
    better: bool,
) -> None:
    """Write the checkpoint of the last epoch, and keep it as the best one if it is."""
    from model.checkpoint import checkpoint_of, write

    checkpoint = checkpoint_of(run, identity, trainer, config, corpus, reports)
    if better:
        write(files.best, checkpoint)
    write(files.last, checkpoint, keep=files.previous)  # last: once it stands, the epoch is over


def resume(files: Files, identity: Mapping[str, Any], trainer: Trainer) -> list[EpochReport]:
    """Put `trainer` where its last checkpoint stands and return its epochs; none where there is no use in it.

    Args:
        identity: of the trial; a checkpoint that another trial left under this name is not taken.
    """
    from model.checkpoint import differing, read_latest

    try:
        saved = read_latest(files)
    except ValueError as error:
        log.warning("%s; the trial begins at epoch 1", error)
        return []
    if saved is None:
        return []
    if unlike := differing(saved.identity, identity):
        log.warning("%s: differs in %s; the trial begins at epoch 1", files.last, ", ".join(unlike))
        return []
    trainer.load_state_dict(saved.trainer)
    return list(saved.reports)
