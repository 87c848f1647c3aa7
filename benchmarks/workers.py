"""Trials per hour of two workers, one thread each, against one; and what a worker's cold start costs.

    python benchmarks/workers.py [--trials 8] [--epochs 4] [--rounds 3] [--quick] [--json]

`sweeps run` on a generated corpus: all trials train all their epochs, nothing is pruned. From the first claim to the
end of the last trial, so that imports count once for all. A sweep of one worker and one of two take turns. The cold
start is a fresh process that does what a worker does until it has its first trial, beside one that imports torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import psutil
import sweeping
from rows import ROOT, Aim, Row, parser, row, show

TWO_WORKERS = Aim(1.7, 1.9, most=False)


def rates(folder: Path, data: Path, trials: int, epochs: int, rounds: int) -> list[Row]:
    content = sweeping.spec(data, epochs, trials, {})
    found: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers, of in found.items():
            ran = sweeping.run(folder / f"{workers}-{number}", content, ["--workers", str(workers)])
            of.append(ran.trials_per_hour)
    ratio = median(two / one for one, two in zip(found[1], found[2], strict=True))
    one, two = median(found[1]), median(found[2])
    note = f"{psutil.cpu_count()} cores, {rounds} rounds of {trials} trials, {epochs} epochs each"
    return [row("two workers", two, "trials/h", "one worker", one, ratio, TWO_WORKERS, note)]


COLD = """
import json, sys, time
from pathlib import Path
from contextlib import closing
from sweeps.settings import Home
from sweeps.store import Store
from sweeps.worker import Job, assigned
imported = time.time()
home = Home(Path(sys.argv[2]))
with closing(Store(home.database_url)) as store:
    sweep = store.find_sweep("cold")
    job = Job("cold", home.database_url, (), home, home.root / "checkpoints", home.root / "log")
    assignment = assigned(job, store, sweep)
    read = time.time()
    assert store.claim(sweep.id, "cold", 60.0) is not None
    claimed = time.time()
    assignment.study.close()
start = float(sys.argv[1])
print(json.dumps([imported - start, read - imported, claimed - read]))
"""
"""The imports of torch and the trainer come with the corpus, as in a worker."""


def cold_start(folder: Path, data: Path, rounds: int) -> list[Row]:
    from sweeps import preparing
    from sweeps.settings import Home
    from sweeps.spec import SweepSpec
    from sweeps.states import SweepState
    from sweeps.store import Store

    content = {**sweeping.spec(data, 1, 100, {}), "name": "cold"}
    home = Home(folder / "cold")
    with closing(Store(home.database_url)) as store:
        sweep = preparing.open_sweep(store, preparing.prepare(SweepSpec.model_validate(content), home))
        store.set_sweep_state(sweep.id, SweepState.RUNNING)
    parts, torch = [], []
    for _ in range(rounds + 1):  # the first fills the page cache
        words = [sys.executable, "-c", COLD, str(time.time()), str(home.root)]
        parts.append(json.loads(subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], cwd=ROOT, check=True)
        torch.append(time.perf_counter() - began)
    imports, corpus, claim = (median(each) for each in zip(*parts[1:], strict=True))
    note = f"imports {imports:.2f} s, corpus, trainer and study {corpus:.2f} s, first claim {1e3 * claim:.0f} ms"
    return [
        row("a worker's cold start", median(map(sum, parts[1:])), "s", "import torch", median(torch[1:]), note=note)
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sentences", type=int, help="default: 960, and 40 with --quick")
    options.add_argument("--trials", type=int, help="of each sweep; default: 8, and 2 with --quick")
    options.add_argument("--epochs", type=int, help="of each trial; default: 4, and 2 with --quick")
    options.add_argument("--rounds", type=int, help="default: 3, and 1 with --quick")
    arguments = options.parse_args()
    quick = arguments.quick
    with tempfile.TemporaryDirectory(prefix="workers") as name:
        folder = Path(name)
        data = sweeping.corpus(folder / "corpus", arguments.sentences or (40 if quick else 960))
        rounds = arguments.rounds or (1 if quick else 3)
        trials, epochs = arguments.trials or (2 if quick else 8), arguments.epochs or (2 if quick else 4)
        found = [*rates(folder, data, trials, epochs, rounds), *cold_start(folder, data, rounds)]
    show(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
