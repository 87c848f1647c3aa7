"""What each process of a sweep holds for itself at most: worker, runner, MLflow's server, `sweeps serve`.

    python benchmarks/memory.py [--quick] [--json]

`sweeps run` with one worker and a local MLflow server on a generated corpus, then `sweeps serve` on what it has left,
asked for its pages. Looked at twice a second: memory that a process shares with no other (USS), summed over those of
one kind. Against a worker stands a process that has imported torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from urllib.request import urlopen

import psutil
import sweeping
from rows import ROOT, Row, parser, row, show

LOOK_SECONDS = 0.5
KINDS = {"a worker": "spawn_main", "the runner": "sweeps.cli", "MLflow's server, with its supervisor": "mlflow"}
"""What a command line of the kind holds; the last that fits counts."""


def held(process: psutil.Process) -> float:
    """MB that it shares with no other."""
    return float(process.memory_full_info().uss / 1e6)


def kind_of(words: list[str]) -> str | None:
    line = " ".join(words)
    if "resource_tracker" in line:
        return None
    kinds = [kind for kind, part in KINDS.items() if part in line or (part == "mlflow" and "tracking.server" in line)]
    return kinds[-1] if kinds else None


def watched(folder: Path, data: Path, epochs: int, trials: int) -> dict[str, float]:
    """MB of each kind at most, while a sweep runs."""
    most: dict[str, float] = defaultdict(float)
    failed: list[BaseException] = []

    def sweep() -> None:
        try:
            sweeping.run(folder, sweeping.spec(data, epochs, trials, {}), ["--workers", "1"])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=sweep)
    thread.start()
    while thread.is_alive():
        now: dict[str, float] = defaultdict(float)
        for process in psutil.Process().children(recursive=True):
            try:
                kind = kind_of(process.cmdline())
                if kind is not None:
                    now[kind] += held(process)
            except psutil.Error:
                continue  # it has ended
        for kind, megabytes in now.items():
            most[kind] = max(most[kind], megabytes)
        time.sleep(LOOK_SECONDS)
    thread.join()
    if failed:
        raise failed[0]
    return most


def served(folder: Path) -> float:
    """MB of `sweeps serve`, which has been asked for the sweep and its page."""
    log = folder / "serve.log"
    words = [sys.executable, "-m", "sweeps.cli", "serve", "--port", "0", "--home", str(folder / "home")]
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out)
    try:
        while not (said := re.search(r"serving (http://\S+)", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        for path in ("/sweeps/bench", "/v1/sweeps/bench", "/v1/sweeps/bench/trials", "/v1/sweeps/bench/curves"):
            for _ in range(20):
                urlopen(said[1] + path, timeout=20).read()
        return held(psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(20)


def with_torch() -> float:
    code = "import torch, psutil; print(psutil.Process().memory_full_info().uss / 1e6)"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    sentences, epochs, trials = (40, 2, 2) if arguments.quick else (240, 4, 8)
    with tempfile.TemporaryDirectory(prefix="memory") as name:
        folder = Path(name)
        data = sweeping.corpus(folder / "corpus", sentences)
        most = watched(folder / "sweep", data, epochs, trials)
        assert set(most) == set(KINDS), most
        rows = list[Row]()
        for kind, megabytes in most.items():
            against = ("import torch", with_torch()) if kind == "a worker" else ("", None)
            rows.append(row(kind, megabytes, "MB", *against))
        rows.append(row("sweeps serve", served(folder / "sweep"), "MB"))
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
