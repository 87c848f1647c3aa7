"""Files are there whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import model.files
from model.files import locked, written_aside


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


# locks

HOLD = """
import sys, time
from pathlib import Path
from model.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `tmp_path / "lock"`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_is_gone_in_the_end(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"):
        assert names(tmp_path) == ["lock"]
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text(encoding="utf-8")
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_one_at_a_time_and_the_other_is_named(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=f"process {holder.pid} on .* is at work in"), locked(tmp_path / "lock"):
            pass
    assert names(tmp_path) == ["lock"]


def test_a_killed_holder_is_no_obstacle(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    assert names(tmp_path) == ["lock"]
    with locked(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text(encoding="utf-8").count("process") == 1
    assert names(tmp_path) == []


def test_a_lock_that_its_holder_removed_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before the holder's end, locked after it: the file that others see is another one."""
    lock, tried = model.files._lock, []

    def late(file: IO[bytes]) -> None:
        if not tried:
            (tmp_path / "lock").unlink()
        tried.append(os.fstat(file.fileno()).st_ino)
        lock(file)

    if sys.platform == "win32":
        pytest.skip("an open file cannot be removed there")
    monkeypatch.setattr(model.files, "_lock", late)
    with locked(tmp_path / "lock"):
        assert len(tried) == 2
        assert (tmp_path / "lock").stat().st_ino == tried[-1]


def test_where_there_are_no_locks_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(file: IO[bytes]) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(model.files, "_lock", none)
    with locked(tmp_path / "lock"):
        assert "no locks here" in caplog.text
    assert names(tmp_path) == []
