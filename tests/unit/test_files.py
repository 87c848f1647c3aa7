"""Files are there whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import model.files
from model.files import written_aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_the_place_of_the_old_one_which_may_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in (b"one", b"two"):
        with written_aside(path, keep=path.with_name("old")) as file:
            file.write(text)
    assert (path.read_bytes(), path.with_name("old").read_bytes()) == (b"two", b"one")
    assert names(path.parent) == ["file", "old"]


def test_a_block_that_fails_leaves_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")

    def fail() -> None:
        with written_aside(path) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    dead, alive = 2**22 + 1, os.getppid()  # beyond the largest process number of Linux; a process that runs
    for number in (dead, alive):
        (tmp_path / f".file.{number}.part").write_bytes(b"half")
    with written_aside(tmp_path / "file") as file:
        file.write(b"one")
    assert names(tmp_path) == [f".file.{alive}.part", "file"]


def test_a_file_that_somebody_reads_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows an open file cannot be replaced."""
    replace, free = Path.replace, threading.Event()
    threading.Timer(0.2, free.set).start()

    def held(self: Path, target: Path) -> Path:
        if not free.is_set():
            raise PermissionError(13, "in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", held)
    with written_aside(tmp_path / "file") as file:
        file.write(b"one")
    assert (tmp_path / "file").read_bytes() == b"one"
    free.clear()
    monkeypatch.setattr(model.files, "PATIENT_SECONDS", 0.1)
    with pytest.raises(PermissionError), written_aside(tmp_path / "file") as file:
        file.write(b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
