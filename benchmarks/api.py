"""How soon `sweeps serve` answers while 20 workers write, and whether its memory stays flat.

    python benchmarks/api.py [--trials 10000] [--minutes 5] [--clients 2]

A PostgreSQL server of its own holds a sweep whose trials, of 10 epochs each, are put there directly. Beside it 20
threads of another process claim, record and finish as workers do whose epochs take two seconds: ten epochs and one
trial a second over all. Then `sweeps serve`, as people start it, is asked by so many clients for one route after the
other without a pause, over and over until the time is up. Prints a table for docs/explanation/api.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
from sqlalchemy import create_engine, insert

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeps.records import EpochRow
from sweeps.states import TrialState
from sweeps.store import Store, engine_options
from sweeps.tables import epochs, trials
from tests.load.ground import NAME, Database, created, database
from tests.load.report import _where
from tests.rows import VALUES, epoch_row

EPOCHS = 10
WORKERS = 20
EPOCH_SECONDS = 2.0
SPARE = 100_000
"""Trials that the budget has beyond those that are there: for the workers."""

Latencies = dict[str, list[float]]

ROUTES: dict[str, Callable[[int], tuple[str, str, object]]] = {
    "GET /v1/sweeps": lambda i: ("GET", "/v1/sweeps", None),
    "GET .../{name}": lambda i: ("GET", f"/v1/sweeps/{NAME}", None),
    "GET .../trials, the first 100": lambda i: ("GET", f"/v1/sweeps/{NAME}/trials?limit=100", None),
    "GET .../trials, a page of 1,000": lambda i: ("GET", f"/v1/sweeps/{NAME}/trials?after={i % 9 * 1000}", None),
    "GET .../trials?state=RUNNING": lambda i: ("GET", f"/v1/sweeps/{NAME}/trials?state=RUNNING", None),
    "GET .../trials/{trial}": lambda i: ("GET", f"/v1/sweeps/{NAME}/trials/{i * 37 % 500}", None),
    "GET .../curve": lambda i: ("GET", f"/v1/sweeps/{NAME}/trials/{i * 37 % 500}/curve", None),
    "GET .../best": lambda i: ("GET", f"/v1/sweeps/{NAME}/best", None),
    "GET .../decisions": lambda i: ("GET", f"/v1/sweeps/{NAME}/decisions", None),
    "GET .../events, 1,000": lambda i: ("GET", f"/v1/sweeps/{NAME}/events", None),
    "GET .../latest, all trials": lambda i: ("GET", f"/v1/sweeps/{NAME}/latest", None),
    "GET .../conclusions": lambda i: ("GET", f"/v1/sweeps/{NAME}/conclusions", None),
    "GET /v1/actions": lambda i: ("GET", "/v1/actions", None),
    "GET /metrics": lambda i: ("GET", "/metrics", None),
    "GET /readyz": lambda i: ("GET", "/readyz", None),
    "POST .../trials": lambda i: (
        "POST",
        f"/v1/sweeps/{NAME}/trials",
        {"values": {"learning_rate": (1 + i % 50) * 1e-4}},
    ),
    "POST .../resume, which changes nothing": lambda i: ("POST", f"/v1/sweeps/{NAME}/resume", None),
}


def fill(url: str, number: int) -> None:
    """So many trials that are over."""
    with closing(Store(url)) as store:
        sweep = store.find_sweep(NAME)
        assert sweep is not None
        now = store.now()
    rows = np.random.default_rng(0)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), **engine_options(url))
    for start in range(0, number, 1_000):
        numbers = range(start, min(start + 1_000, number))
        common = {"sweep_id": sweep.id, "state": TrialState.COMPLETE, "in_space": True, "overrides": {}, "evidence": {}}
        over = {"attempt": 1, "epochs": EPOCHS, "reserved_epochs": EPOCHS, "verdict": "learned", "best_epoch": EPOCHS}
        times = {"created_at": now, "started_at": now, "finished_at": now, "reason": "Ran to its end.", "revision": 13}
        with engine.begin() as connection:
            ids = connection.scalars(
                insert(trials).returning(trials.c.id, sort_by_parameter_order=True),
                [
                    {
                        **common,
                        **over,
                        **times,
                        "number": n,
                        "best_wer": float(wer),
                        "hyperparameters": {**VALUES, "learning_rate": float(10**-wer / 100)},
                    }
                    for n, wer in zip(numbers, rows.uniform(0.2, 1.0, len(numbers)), strict=True)
                ],
            ).all()
            connection.execute(
                insert(epochs),
                [
                    {**vars(_epoch(epoch)), "trial_id": trial_id, "recorded_at": now}
                    for trial_id in ids
                    for epoch in range(1, EPOCHS + 1)
                ],
            )
    engine.dispose()


def _epoch(epoch: int) -> EpochRow:
    """With as many metrics as a real one."""
    more = {f"optim/m{i}": 0.123456789 * epoch for i in range(20)}
    row = epoch_row(epoch, 0.9 / epoch)
    return EpochRow(**{**vars(row), "metrics": {**row.metrics, **more}})


def work(url: str) -> None:
    """What 20 workers write, until this process is ended."""
    with closing(Store(url)) as store:
        sweep = store.find_sweep(NAME)
        assert sweep is not None
        threads = [threading.Thread(target=_worker, args=(store, sweep.id, f"w{i}")) for i in range(WORKERS)]
        for thread in threads:
            thread.start()
            time.sleep(EPOCH_SECONDS / WORKERS)
        for thread in threads:
            thread.join()


def _worker(store: Store, sweep_id: int, name: str) -> None:
    while True:
        claim = store.claim(sweep_id, name, 120.0)
        if claim is None:  # the sweep is stopped just now
            time.sleep(0.5)
            continue
        if claim.hyperparameters is None:
            store.set_hyperparameters(claim, VALUES, None)
        for epoch in range(claim.epochs + 1, EPOCHS + 1):
            time.sleep(EPOCH_SECONDS)
            store.reserve_epoch(claim, epoch)
            store.record(claim, [_epoch(epoch)])
            store.renew(claim, 120.0)
        store.finish(claim, TrialState.COMPLETE, "learned", "Ran to its end.", None, {})


@contextmanager
def serving(folder: Path, database: Database) -> Iterator[tuple[str, psutil.Process]]:
    log = folder / "serve.log"
    words = ["serve", "--port", "0", "--rate", "1000000/minute", "--database", database.url, "--home", str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "sweeps.cli", *words], stdout=out, stderr=out)
    try:
        while not (said := re.search(r"serving (http://\S+)", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield said[1], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def ask(address: str, client: int, until: float, found: Latencies) -> None:
    """One route after the other, over and over."""
    with httpx.Client(base_url=address, timeout=60) as http:
        i = client
        while time.monotonic() < until:
            for name, request in ROUTES.items():
                method, path, body = request(i)
                begun = time.perf_counter()
                answer = http.request(method, path, json=body)
                found[name].append(1000 * (time.perf_counter() - begun))
                assert answer.status_code < 300, (name, answer.status_code, answer.text[:300])
            i += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="api") as root, database("postgresql") as place:
        folder = Path(root)
        created(folder, place.url, given.trials + SPARE, EPOCHS, "random")
        fill(place.url, given.trials)
        workers = multiprocessing.get_context("spawn").Process(target=work, args=(place.url,), daemon=True)
        workers.start()
        try:
            with serving(folder, place) as (address, process):
                found: Latencies = defaultdict(list)
                ask(address, 0, time.monotonic() + 5, defaultdict(list))  # everything is imported and connected
                memory = [process.memory_info().rss / 2**20]
                until = time.monotonic() + 60 * given.minutes
                with ThreadPoolExecutor(given.clients) as pool:
                    clients = [pool.submit(ask, address, i, until, found) for i in range(given.clients)]
                    while not all(client.done() for client in clients):
                        time.sleep(5)
                        memory.append(process.memory_info().rss / 2**20)
                for client in clients:
                    client.result()
        finally:
            workers.terminate()
            workers.join()
    print(_where(), "\n")
    print(f"{given.trials:,} trials of {EPOCHS} epochs, {WORKERS} workers, {given.clients} clients.\n")
    print("| route | requests | p50, ms | p95, ms | p99, ms |\n|---|---|---|---|---|")
    for name, values in found.items():
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        print(f"| `{name}` | {len(values)} | {p50:.0f} | {p95:.0f} | {p99:.0f} |")
    every = [value for values in found.values() for value in values]
    print(f"| all | {len(every)} | " + " | ".join(f"{p:.0f}" for p in np.percentile(every, [50, 95, 99])) + " |")
    tenths = [max(part) for part in np.array_split(memory[1:], 10) if len(part)]
    shown = " ".join(f"{most:.0f}" for most in tenths)
    print(f"\nMemory of the server, MiB: {memory[0]:.0f} at first; at most, in each tenth of the time: {shown}.")


if __name__ == "__main__":
    main()
