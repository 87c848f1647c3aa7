"""One checkpoint file a trial: its trainer's state and every epoch so far, recorded or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from model.types import EpochReport, Trainer

log = logging.getLogger(__name__)


def checkpoint_path(folder: Path, number: int, *, best: bool = False) -> Path:
    """Where a trial's last (or best) checkpoint lies."""
    return folder / f"{number:05d}{'.best' if best else ''}.pt"


def save(path: Path, identity: str, trainer: Trainer, reports: Sequence[EpochReport]) -> None:
    """Write a checkpoint in place of the one before."""
    from model.checkpoint import save_checkpoint  # with torch, which a process that only reads results can do without

    state = {"identity": identity, "trainer": trainer.state_dict(), "reports": [asdict(r) for r in reports]}
    save_checkpoint(path, state)


def resume(path: Path, identity: str, trainer: Trainer) -> list[EpochReport]:
    """Put `trainer` where the checkpoint stands and return its epochs; from the beginning if there is no use in it.

    Args:
        identity: of the trial; a checkpoint that another trial left under this name is not taken.
    """
    from model.checkpoint import load_checkpoint

    try:
        state = load_checkpoint(path)
    except FileNotFoundError:
        return []
    except ValueError as error:
        log.warning("%s; the trial begins at epoch 1", error)
        return []
    if state.get("identity") != identity:
        log.warning("%s: belongs to another trial; this one begins at epoch 1", path)
        return []
    trainer.load_state_dict(state["trainer"])
    return [EpochReport(**report) for report in state["reports"]]
