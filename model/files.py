"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

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
    # Hidden, and not one thread's work in another's file.
    aside = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.part")
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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process has this file locked; it is gone in the end.

    The system takes the lock back however a process ends: the file that a killed one leaves is no obstacle. Where the
    file system knows no locks it is said, and nobody is kept out.

    Raises:
        ValueError: another process has it; it is named.
        OSError: the file cannot be made.
    """
    file = _alone(path)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        yield
    finally:
        if sys.platform != "win32":
            path.unlink(missing_ok=True)  # while it is locked: afterwards it may be another's
            file.close()
        else:
            file.close()  # no open file can be removed there: neither this one before, nor another's afterwards
            try:
                path.unlink(missing_ok=True)
            except PermissionError:
                log.debug("%s: another process has taken it", path)


def _alone(path: Path) -> IO[bytes]:
    while True:
        file = path.open("a+b")
        try:
            _lock(file)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # as below
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            file.close()
            raise ValueError(f"{holder} is at work in {path.parent}") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                file.close()
                raise
            log.warning("%s: no locks here (%s); see to it that no other process works there", path.parent, error)
            return file
        file.close()  # locked just after its holder had removed it: what others lock is another file


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(1 << 20)  # what is locked there cannot be read: not the name of the holder
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
