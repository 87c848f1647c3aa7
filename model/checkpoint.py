"""One file a checkpoint: never half written, never unpickled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write aside, flush to disk, then take the place of the old one: a crash leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`, onto the CPU.

    Raises:
        OSError: there is none (FileNotFoundError), or it cannot be read.
        ValueError: the file is not a whole checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a torn zip, a foreign pickle: torch raises many types, and advises to unpickle it
        raise ValueError(
            f"{path}: not a whole checkpoint ({type(error).__name__}); delete it to start that run anew"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a checkpoint of this trainer; delete it to start that run anew")
    return state
