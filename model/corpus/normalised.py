"""Normalised features beside those of a pack, as training takes them: more to store, and nothing left to compute.

normalised.npy    (frames of all recordings, dimensions) float32, in the order of features.npy
normalised.json   written last: which normalisation, of which pack
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from model.corpus.annotations import CorpusError
from model.corpus.features import UNREADABLE, Normalisation
from model.corpus.packed import NORMALISED, Packed
from model.corpus.scan import Progress, normalisation_of
from model.files import written_aside

RECORD = "normalised.json"


class Record(BaseModel):
    """What normalised.npy holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    normalisation: str
    """Its digest."""
    source: str
    """Of the pack's manifest."""
    bytes: int


def add_normalised(packed: Packed, progress: Progress | None = None) -> int:
    """Write the features of a pack, normalised over its own train split, beside them; returns how many bytes. Nothing
    is written where they are there.

    Raises:
        CorpusError: there is no room, or the folder cannot be written.
    """
    normalisation = normalisation_of(packed.stored)
    with suppress(CorpusError):  # what cannot be used is written again
        if holds_normalised(packed, normalisation):
            return (packed.path / NORMALISED).stat().st_size
    frames = sum(file.frames for files in packed.stored.files.values() for file in files.values())
    width = len(normalisation.mean)
    try:
        (packed.path / RECORD).unlink(missing_ok=True)
        with written_aside(packed.path / NORMALISED) as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": (frames, width)}
            )
            for split, files in packed.stored.files.items():
                reader = packed.reader(split, list(files))
                for i, found in enumerate(files.values()):
                    x = np.empty((found.frames, width), dtype="<f4")
                    reader.write(i, normalisation, x)
                    file.write(x.data)
                    if progress is not None:
                        progress(split, i + 1, len(files))
            size = file.tell()
        record = Record(normalisation=normalisation.digest, source=packed.manifest.source, bytes=size)
        with written_aside(packed.path / RECORD) as file:
            file.write(record.model_dump_json(indent=1).encode())
    except OSError as error:
        raise CorpusError(
            f"{packed.path / NORMALISED}: cannot be written ({error.strerror or error}); it takes "
            f"{4e-9 * frames * width:.1f} GB. The pack is whole without it"
        ) from error
    return size


def holds_normalised(packed: Packed, normalisation: Normalisation) -> bool:
    """Whether they are there, by this very normalisation.

    Raises:
        CorpusError: they are not as they were written.
    """
    file, record_file = packed.path / NORMALISED, packed.path / RECORD
    if not record_file.is_file():
        return False
    way_out = f"delete {RECORD} to do without, or pack with --normalised to write them again"
    try:
        record = Record.model_validate_json(record_file.read_bytes())
        size = file.stat().st_size
    except (OSError, ValidationError) as error:
        raise CorpusError(f"{record_file}: cannot be used ({' '.join(str(error).split())}); {way_out}") from error
    if size != record.bytes:
        raise CorpusError(f"{file}: has {size} bytes, but was written with {record.bytes}; {way_out}")
    return record.source == packed.manifest.source and record.normalisation == normalisation.digest


def check_normalised(packed: Packed, progress: Progress | None = None) -> None:
    """Make all of them again and compare, where there are any.

    Raises:
        CorpusError: one is another; it is named.
    """
    normalisation = normalisation_of(packed.stored)
    if not holds_normalised(packed, normalisation):
        return
    for split, files in packed.stored.files.items():
        plain = packed.reader(split, list(files))
        ready = replace(plain, ready_for=normalisation)
        for i, (name, found) in enumerate(files.items()):
            a, b = (np.empty((found.frames, len(normalisation.mean)), dtype=np.float32) for _ in range(2))
            try:
                plain.write(i, normalisation, a)
                ready.write(i, normalisation, b)
            except UNREADABLE as error:
                raise CorpusError(f"{packed.path / NORMALISED}: cannot be read ({error}); delete {RECORD}") from error
            if not np.array_equal(a.view(np.uint32), b.view(np.uint32)):
                raise CorpusError(
                    f"{packed.path / NORMALISED}: {name} of {split} is not what follows from the features; delete "
                    f"{RECORD} to do without, and then pack with --normalised to write them again"
                )
            if progress is not None:
                progress(split, i + 1, len(files))


def size_of(path: Path) -> int | None:
    """Bytes of the normalised features in a pack; None where there are none."""
    return (path / NORMALISED).stat().st_size if (path / RECORD).is_file() else None
