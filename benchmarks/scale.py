"""Peak memory and time against the size of a corpus and the number of trials: does anything grow faster than its data?

    python benchmarks/scale.py [--quick] [--json] [--no-picture]

Each point is a process of its own. Corpora of 100 to 3,000 generated sentences, 225 wide, as a folder and packed: what
it takes to load one (the folder with its first pass over all files) and to read it once in batches. Sweeps of 100 to
10,000 trials of 10 epochs in SQLite: what a worker takes that has just started for its first trial, for which it reads
all others, and for a later one; trials train nothing. Memory is the peak of what the process holds besides mapped files
(Linux: RssAnon). Draws docs/explanation/scale.png; a growth of 1 is that of the data.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rows import ROOT, Aim, Row, parser, row, show

PICTURE = ROOT / "docs" / "explanation" / "scale.png"
SENTENCES, TRIALS, QUICK = (100, 300, 1_000, 3_000), (100, 300, 1_000, 3_000, 10_000), (40, 120)
SAMPLE_SECONDS = 0.01
NO_FASTER = Aim(1.1, of="value")
"""Of 1, that of the data, with a tenth for the noise of the clock."""
WIDTH = 225


def own_bytes() -> int:
    """What this process holds besides mapped files, where the system tells them apart (Linux)."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def watched(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a call, and by how many MB it raised the peak of this process."""
    before, peak, over = own_bytes(), own_bytes(), threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.wait(SAMPLE_SECONDS):
            peak = max(peak, own_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    began = time.perf_counter()
    try:
        call()
    finally:
        seconds = time.perf_counter() - began
        over.set()
        thread.join()
    return {"seconds": seconds, "mb": (max(peak, own_bytes()) - before) / 1e6}


def of_corpus(path: str) -> dict[str, dict[str, float]]:
    """In the process that looks at one corpus."""
    from model.corpus.data import CorpusConfig, epoch_order, load_corpus, make_batch

    loaded: list[Any] = []

    def read() -> None:
        train = loaded[0].train
        order = epoch_order(len(train), 0, 1)
        for start in range(0, len(order), 8):
            make_batch(train, order[start : start + 8])

    loading = watched(lambda: loaded.append(load_corpus(CorpusConfig(path=Path(path)))))
    return {"load": loading, "read": watched(read)}


def of_trials(folder: str) -> dict[str, dict[str, float]]:
    """In the process of a worker that has just started."""
    ours, close = worker_of(Path(folder))
    first = watched(ours.trial)
    later = [watched(ours.trial)["seconds"] for _ in range(5)]
    close()
    return {"first": first, "later": {"seconds": median(later)}}


def worker_of(folder: Path) -> tuple[Any, Callable[[], None]]:
    from orchestration import Ours

    from model.corpus.data import load_corpus
    from sweeps.judging import Judge
    from sweeps.settings import Home
    from sweeps.spec import corpus_of, spec_of
    from sweeps.store import Store
    from sweeps.study import Study
    from sweeps.worker import Assignment
    from tests.load.ground import NAME

    url = f"sqlite:///{(folder / 'sweeps.db').as_posix()}"
    store = Store(url)
    sweep = store.find_sweep(NAME)
    assert sweep is not None
    corpus = load_corpus(corpus_of(sweep), cache=Home(folder / "home").scans)
    study = Study(url, spec_of(sweep))

    def close() -> None:
        study.close()
        store.close()

    judge = Judge(spec_of(sweep), store, sweep)
    return Ours(Assignment(sweep, spec_of(sweep), corpus, study, judge), store), close


def asked(what: str, place: Path) -> dict[str, dict[str, float]]:
    """What a process of its own finds."""
    words = [sys.executable, str(Path(__file__)), "--look", what, str(place)]
    return json.loads(subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout)


Points = dict[str, list[tuple[float, dict[str, float]]]]
"""Curve to its points: size, and what was seen there."""


def corpora(folder: Path, sizes: Sequence[int]) -> Points:
    found: Points = {}
    for size in sizes:
        data, packed = folder / f"corpus-{size}", folder / f"packed-{size}"
        words = ["generate", str(data), "--train", str(size), "--dev", str(max(8, size // 10)), "--width", str(WIDTH)]
        for command in (words, ["pack", str(data), str(packed)]):
            subprocess.run([sys.executable, "-m", "model", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for way, path in (("folder", data), ("packed", packed)):
            for step, seen in asked("corpus", path).items():
                found.setdefault(f"{step}, {way}", []).append((size, seen))
    return found


def trials(folder: Path, sizes: Sequence[int]) -> Points:
    import optuna
    from orchestration import EPOCHS

    from tests.load import ground

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ground.created(folder, f"sqlite:///{(folder / 'sweeps.db').as_posix()}", 2 * max(sizes) + 100, EPOCHS, "tpe")
    found: Points = {}
    ours, close = worker_of(folder)
    with closing(ours.store):
        done = 0
        for size in sizes:
            for _ in range(size - done):
                ours.fill()
            for step, seen in asked("trials", folder).items():
                found.setdefault(f"{step} trial", []).append((size, seen))
            done = size + 6
    close()
    return found


def growth(points: Sequence[tuple[float, dict[str, float]]], of: str) -> float:
    """The power of the size with which it grows between the two largest sizes; below one MB or 10 ms it is noise."""
    (small, a), (large, b) = points[-2:]
    least = 1.0 if of == "mb" else 0.01
    return math.log(max(b[of], least) / max(a[of], least)) / math.log(large / small)


MEASURES = {"seconds": ("time", "s", "seconds"), "mb": ("memory", "MB", "MB beyond the start")}
"""What was seen: in words, its unit, and at the axis."""


def measured(found: Points, of: str) -> Points:
    """The curves of which that was seen."""
    return {curve: points for curve, points in found.items() if of in points[0][1]}


def as_rows(what: str, found: Points) -> list[Row]:
    rows = []
    for of, (word, unit, _) in MEASURES.items():
        for curve, points in measured(found, of).items():
            (small, a), (large, b) = points[-2:]
            note = f"{a[of]:.3g} {unit} at {small:,} {what}, {b[of]:.3g} at {large:,}"
            rows.append(row(f"{curve}, growth of {word}", growth(points, of), "", aim=NO_FASTER, note=note))
    return rows


def draw(panels: dict[str, Points], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for column, (what, found) in enumerate(panels.items()):
        for line, (of, (_, _, label)) in enumerate(MEASURES.items()):
            axis, curves = axes[line][column], measured(found, of)
            for curve, points in curves.items():
                values = [max(seen[of], 1e-3) for _, seen in points]  # a logarithm needs one
                axis.loglog([size for size, _ in points], values, "o-", label=curve)
            sizes = [size for size, _ in next(iter(curves.values()))]
            begin = max(points[0][1][of] for points in curves.values())
            axis.loglog(sizes, [begin * size / sizes[0] for size in sizes], ":", color="grey", label="as the data")
            axis.set(xlabel=what, ylabel=label)
            axis.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--no-picture", action="store_true")
    options.add_argument("--look", nargs=2, help="(what the processes of the points are asked)")
    arguments = options.parse_args()
    sys.path.insert(0, str(ROOT))
    if arguments.look:
        what, place = arguments.look
        print(json.dumps({"corpus": of_corpus, "trials": of_trials}[what](place)))
        return
    sentences, runs = (QUICK, QUICK) if arguments.quick else (SENTENCES, TRIALS)
    with tempfile.TemporaryDirectory(prefix="scale") as name:
        folder = Path(name)
        panels = {"sentences": corpora(folder, sentences), "trials": trials(folder, runs)}
    if not arguments.quick and not arguments.no_picture:
        draw(panels, PICTURE)
    show([each for what, found in panels.items() for each in as_rows(what, found)], as_json=arguments.json)


if __name__ == "__main__":
    main()
