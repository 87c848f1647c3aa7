"""Artifacts as files: what their paths may be, and copies that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def artifact_name(path: str) -> str:
    """The file name at the end of an artifact's path.

    Raises:
        ValueError: the path is not a plain relative one, so that a copy could land outside the folder meant for it.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or set(path) & set("\\:\0"):
        raise ValueError(f"artifact path {path!r}: it must be relative, plain names with / between them")
    return parts[-1]


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A path to write to, in a folder of its own, whose file takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
