"""Worker processes, started as people start them: `sweeps work`, several times, as if on several machines."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from tests.acceptance.commands import environment, living
from tests.load.ground import NAME, ROOT, TRAINER, Database
from tests.load.timed import TIMES

LIMIT_SECONDS = 1_800.0
LOOK_SECONDS = 0.5


def work(folder: Path, database: Database, commands: int, workers: int) -> tuple[list[str], int]:
    """Until the sweep is over. Every command has a home of its own in `folder`.

    Returns: what went wrong, and the most connections that the database had at once.
    """
    times = folder / "times"
    times.mkdir()
    with ExitStack() as stack:
        started = [_started(folder, number, database.url, workers, times, stack) for number in range(commands)]
        deadline, most = time.monotonic() + LIMIT_SECONDS, 0
        while any(process.poll() is None for process in started) and time.monotonic() < deadline:
            most = max(most, database.connections)
            time.sleep(LOOK_SECONDS)
        codes = [process.poll() for process in started]
    wrong = [f"command {number} ended with {code}" for number, code in enumerate(codes) if code != 0]
    return wrong, most


def _started(
    folder: Path, number: int, url: str, workers: int, times: Path, stack: ExitStack
) -> subprocess.Popen[bytes]:
    home = folder / f"home-{number}"
    log = stack.enter_context((folder / f"command-{number}.log").open("wb"))
    words = ["work", NAME, "--until-done", "--workers", str(workers), "--trainer", TRAINER]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.load.timed", *words, "--home", str(home), "--database", url],
        cwd=ROOT,
        env={**environment(home), TIMES: str(times)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stack.callback(_end, process, home)
    return process


def _end(process: subprocess.Popen[bytes], home: Path) -> None:
    """Nothing of it lives afterwards."""
    if process.poll() is None:
        for each in living(home):
            with suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(10)
