"""How long a corpus of PHOENIX's size takes to generate, pack and check, and in how much memory.

    python benchmarks/phoenix_size.py ANNOTATIONS [--limit N] [--folder FOLDER]

ANNOTATIONS is the folder of the SI5 tables (train.SI5.corpus.csv, dev.SI5.corpus.csv, with num_frames). Features of
6516 dimensions are generated at their lengths: 17 GB for all 4,486 sentences, below FOLDER (default: a temporary
folder), and deleted at the end. Prints a table in Markdown: each step is a process of its own, and its memory is what
it and its children hold at once besides mapped files, which the system may drop whenever it needs the room.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", metavar="ANNOTATIONS", type=Path)
    parser.add_argument("--limit", type=int, help="the first sentences of each split only")
    parser.add_argument("--folder", type=Path, help="where there is room for 25 GB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(arguments.annotations.resolve(), Path(folder), arguments.limit)


def measure(annotations: Path, folder: Path, limit: int | None) -> None:
    """Run every step in `folder` and print its row."""
    corpus, packed = folder / "corpus", folder / "packed"
    options = ["--filter", "phoenix-si5"]
    less = [] if limit is None else ["--limit", str(limit)]
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
    ).stdout.strip()
    memory = psutil.virtual_memory().total / 2**30
    print(
        f"{commit}, {datetime.date.today().isoformat()}, {platform.machine()} {platform.system()}, "
        f"{os.cpu_count()} cores, {memory:.0f} GB\n"
    )
    print("| step | seconds | memory, MB | on disk, GB |\n|---|---|---|---|")
    steps = {
        "generate": (["generate", corpus, "--like", annotations, *options, "--width", "6516", *less], corpus),
        "pack": (["pack", corpus, packed, *options], packed),
        "pack --verify": (["pack", "--verify", packed], None),
        "check, folder": (["check", corpus, *options], None),
        "check, packed": (["check", packed], None),
    }
    for name, (command, made) in steps.items():
        seconds, peak_bytes = run([str(word) for word in command])
        size = "" if made is None else f"{sum(p.stat().st_size for p in made.rglob('*') if p.is_file()) / 1e9:.2f}"
        print(f"| {name} | {seconds:.1f} | {peak_bytes / 1e6:.0f} | {size} |", flush=True)


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a `python -m model` command.

    Raises:
        SystemExit: it failed; its last words are shown. (check may find something: exit code 1.)
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "model", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=said.extend, args=(process.stdout,))
    reader.start()
    peak_bytes = 0
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        peak_bytes = max(peak_bytes, own_bytes(watched))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    reader.join()
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said[-5:])}")
    return seconds, peak_bytes


def own_bytes(process: psutil.Process) -> int:
    """Memory of a process and its children without mapped files, where the system tells them apart (Linux)."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            memory = each.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    except psutil.NoSuchProcess:
        pass  # it has ended between two looks
    return total


if __name__ == "__main__":
    main()
