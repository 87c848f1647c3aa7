"""How long one epoch's reading takes at 6516 dimensions: an npz a sentence, as the plain loop reads, against a pack.

    python benchmarks/reading.py [--sentences 320] [--rounds 5] [--quick] [--json]

Features are generated at the lengths of PHOENIX's first sentences. Each way is a process of its own; they take turns,
an epoch each: features read, normalised and put into batches of 4, in the same order, to the same bits. All files are
in the page cache. There are npz as `numpy.savez` writes them and as `numpy.savez_compressed` does, and packs with and
without the normalised features (`model pack --normalised`); the latter also in batches of like lengths
(`length_buckets: 8`), which hold less padding to write. The copy reads nothing: it fills as large batches from an
array that is ready, which nothing that fills batches can beat. Then the memory of workers: what a second one that reads
the pack holds for itself alone, beyond what a process holds that has imported the trainer and read nothing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from rows import ROOT, Aim, Row, not_run, parser, row, show

from model.corpus.data import CorpusConfig, Split, epoch_batches, load_corpus, make_batch
from model.memory import keep_freed_memory

PHOENIX = ROOT.parent / "shared" / "data" / "phoenix2014-si5" / "annotations"
FILTER = "phoenix-si5"
BATCH = 4
PLAIN, READY, BUCKETED = "packed", "packed, normalised", "packed, normalised, length buckets"
OURS = (READY, BUCKETED, PLAIN)
BUCKETS = 8
FASTER, SECOND_WORKER = Aim(20, most=False), Aim(150, of="value")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sentences", type=int, help="default: 320, and 40 with --quick")
    options.add_argument("--rounds", type=int, help="default: 5, and 2 with --quick")
    arguments = options.parse_args()
    if not PHOENIX.is_dir():
        show([not_run("an epoch", "there is no ../shared/data/phoenix2014-si5")], as_json=arguments.json)
        return
    sentences = arguments.sentences or (40 if arguments.quick else 320)
    with tempfile.TemporaryDirectory(prefix="reading") as folder:
        corpus, packed = Path(folder) / "corpus", Path(folder) / "packed"
        like = ["--like", str(PHOENIX), "--filter", FILTER, "--width", "6516", "--limit", str(sentences)]
        ready = Path(folder) / "ready"
        packs = [["pack", str(corpus), str(packed)], ["pack", str(corpus), str(ready), "--normalised"]]
        for words in (["generate", str(corpus), *like], *([*each, "--filter", FILTER] for each in packs)):
            subprocess.run([sys.executable, "-m", "model", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        compressed = compress(corpus, Path(folder) / "compressed")
        ways = {
            "npz": corpus,
            "npz, compressed": compressed,
            "copy": packed,
            PLAIN: packed,
            READY: ready,
            BUCKETED: ready,
        }
        rows = [*times(ways, arguments.rounds or (2 if arguments.quick else 5)), *memory(ready)]
    show(rows, as_json=arguments.json)


def compress(corpus: Path, to: Path) -> Path:
    """The same corpus with compressed files."""
    shutil.copytree(corpus, to, ignore=shutil.ignore_patterns("*.npz"))
    for file in corpus.rglob("*.npz"):
        with np.load(file) as stored:
            np.savez_compressed(to / file.relative_to(corpus), **stored)
    return to


def times(ways: Mapping[str, Path], rounds: int) -> list[Row]:
    """
    Raises:
        SystemExit: they read other bits.
    """
    with ExitStack() as stack:
        readers = {way: stack.enter_context(Reader(way, path)) for way, path in ways.items()}
        # The first round fills the caches.
        taken = [{way: reader.ask("epoch") for way, reader in readers.items()} for _ in range(rounds + 1)][1:]
        note = f"{readers[READY].ask('frames'):,} frames"
        if len({reader.ask("digest") for way, reader in readers.items() if way not in ("copy", BUCKETED)}) != 1:
            raise SystemExit("they read other bits")
    found = []
    for ours in OURS:
        for way in (each for each in ways if each not in OURS):
            mine, theirs = (1e3 * median(each[side] for each in taken) for side in (ours, way))
            ratio = median(each[way] / each[ours] for each in taken)
            aim = FASTER if ours == READY and way != "copy" else None
            found.append(row(f"an epoch read, {ours}, against {way}", mine, "ms", way, theirs, ratio, aim, note))
    return found


def memory(packed: Path) -> list[Row]:
    with Reader("imports", packed) as none, Reader(READY, packed) as first, Reader(READY, packed) as second:
        for reader in (first, second):
            reader.ask("epoch")
        bare, held = none.ask("memory"), second.ask("memory")
    note = f"with all that its files share, {held['pss']:.0f} MB by PSS"
    return [
        row("a second worker's own memory", held["uss"] - bare["uss"], "MB", aim=SECOND_WORKER, note=note),
    ]


class Reader:
    """A process that reads when it is asked."""

    def __init__(self, way: str, path: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=answer, args=(way, path, other), daemon=True)

    def __enter__(self) -> Reader:
        self.process.start()
        return self

    def ask(self, what: str) -> Any:
        self.pipe.send(what)
        return self.pipe.recv()

    def __exit__(self, *_: object) -> None:
        self.pipe.send("end")
        self.process.join()


def answer(way: str, path: Path, pipe: Connection) -> None:
    import torch

    from model.ctc import CTCTrainer  # noqa: F401 - what a worker imports

    torch.set_num_threads(1)
    if way == "imports":
        answers: dict[str, Callable[[], Any]] = {"memory": own_memory}
    else:
        config = CorpusConfig(path=path, filter=FILTER)
        # Of PHOENIX's size it would not fit into memory, so it does not stay there here.
        train = replace(load_corpus(config).train, resident=None)
        batch = batch_of(way, train)
        drawn = epoch_batches(train.lengths, BATCH, 0, 1, BUCKETS if way == BUCKETED else 0)
        batches = [rows.tolist() for rows in drawn]
        answers = {
            "epoch": lambda: epoch(batches, batch),
            "digest": lambda: digest(batches, batch),
            "frames": lambda: int(train.lengths.sum()),
            "memory": own_memory,
        }
    while (asked := pipe.recv()) != "end":
        pipe.send(answers[asked]())


def batch_of(way: str, train: Split) -> Callable[[list[int]], Any]:
    """What reads a batch (B, T, D)."""
    if way.startswith("npz"):
        from plain import collate

        return lambda rows: collate(train, rows)[0].numpy()
    keep_freed_memory()  # as the trainer does
    if way in OURS:
        return lambda rows: make_batch(train, rows).features
    ready = np.zeros((int(train.lengths.max()), len(train.normalisation.mean)), dtype=np.float32)
    return lambda rows: make_batch(train, rows, lambda row: ready[: train.lengths[row]]).features


def epoch(batches: list[list[int]], batch: Callable[[list[int]], Any]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    for rows in batches:
        batch(rows)
    return time.perf_counter() - began


def digest(batches: list[list[int]], batch: Callable[[list[int]], Any]) -> str:
    """Of some batches."""
    of = hashlib.sha256()
    for rows in batches[:5]:
        of.update(np.ascontiguousarray(batch(rows)).tobytes())
    return of.hexdigest()


def own_memory() -> dict[str, float]:
    """MB of this process: what it shares with no other (USS), and with its share of the rest (PSS, on Linux)."""
    found = psutil.Process(os.getpid()).memory_full_info()
    return {"uss": found.uss / 1e6, "pss": getattr(found, "pss", found.uss) / 1e6}


if __name__ == "__main__":
    main()
