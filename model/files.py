"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PATIENT_SECONDS = 2.0
"""How long to wait for a file that somebody reads: Windows does not let it be replaced meanwhile."""


@contextmanager
def written_aside(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends well: a crash leaves the old one whole.

    Args:
        keep: where the old one goes, if it is not to be lost.

    Raises:
        OSError: the folder cannot be written, or the old file stays open in another process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.part"):
        if not _alive(leftover):
            leftover.unlink(missing_ok=True)  # of a process that was killed while it wrote
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")  # hidden, and not one process's work in another's file
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _replace(path, keep)
        _replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _replace(old: Path, new: Path) -> None:
    until = time.monotonic() + PATIENT_SECONDS
    while True:
        try:
            old.replace(new)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)


def _alive(leftover: Path) -> bool:
    """Whether a process that may be writing this file still runs; when in doubt it does."""
    import psutil

    number = leftover.name.split(".")[-2]
    return not number.isdigit() or psutil.pid_exists(int(number))
