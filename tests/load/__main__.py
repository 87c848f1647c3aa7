"""`python -m tests.load`: how many trials a second workers get through that train nothing, and whether all holds.

Two loads: worker processes with TPE, as `sweeps work` starts them, and claimers, which are threads that do what a
worker does with a trial. Prints a table in Markdown. Exit code 1: what must hold did not.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from sweeps.keeper import end_if_over
from sweeps.store import Store
from tests.load import claimers, report, workers
from tests.load.ground import NAME, Database, created, database
from tests.load.invariants import violations
from tests.load.measures import latencies, memory, rates, seconds
from tests.load.report import Measured
from tests.load.timed import calls

MOST_GROWTH = 32.0
"""MiB for each 1,000 trials, of a process that is to hold its memory; below `FEWEST_TRIALS` it is not judged."""

FEWEST_TRIALS = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", nargs="*", choices=["workers", "claimers", []], help="default: both")
    parser.add_argument("--workers", type=int, default=20, help="processes that train")
    parser.add_argument("--commands", type=int, default=4, help="`sweeps work` that start them")
    parser.add_argument("--trials", type=int, default=2_000, help="that the workers do")
    parser.add_argument("--claimers", type=int, default=100, help="threads")
    parser.add_argument("--processes", type=int, default=8, help="that have them")
    parser.add_argument("--claims", type=int, default=10_000, help="trials that the claimers do")
    parser.add_argument("--epochs", type=int, default=1, help="of each trial")
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--docs", action="store_true", help=f"write the table into {report.PAGE.name}")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave logs and times there")
    given = parser.parse_args()
    if given.workers % given.commands:
        parser.error("--workers: must be a multiple of --commands")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers and workers end as well
    found: list[Measured] = []
    if "workers" in given.load or not given.load:
        what = f"{given.workers} workers of {given.commands} `sweeps work`, TPE"
        each = given.workers // given.commands
        found.append(measured(what, given, given.trials, "tpe", lambda f, d: workers.work(f, d, given.commands, each)))
    if "claimers" in given.load or not given.load:
        what = f"{given.claimers} claimers in {given.processes} processes, random sampler"
        claim_all = claimers.claim_all
        found.append(
            measured(what, given, given.claims, "random", lambda f, d: claim_all(f, d, given.processes, given.claimers))
        )
    table = report.table(found)
    print(table)
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in found], indent=1), encoding="utf-8")
    if given.docs:
        report.write_page(table)
    sys.exit(any(each.violations for each in found))


def measured(
    what: str,
    given: argparse.Namespace,
    trials: int,
    sampler: str,
    put: Callable[[Path, Database], tuple[list[str], int]],
) -> Measured:
    """Put one load on a new database, and look at what it left."""
    with tempfile.TemporaryDirectory(prefix="load") as temporary, database(given.database) as where:
        folder = (given.keep or Path(temporary)) / sampler
        folder.mkdir(parents=True)
        created(folder, where.url, trials, given.epochs, sampler, reserves=True)
        begun = time.monotonic()
        wrong, connections = put(folder, where)
        whole = time.monotonic() - begun
        with closing(Store(where.url)) as store:  # claimers have no keeper
            sweep = store.find_sweep(NAME)
            assert sweep is not None
            end_if_over(store, sweep.id)
        wrong += violations(where.url, folder, trials, given.epochs)
        if where.deadlocks:
            wrong.append(f"{where.deadlocks} deadlocks")
        taken = list(calls(folder / "times"))
        held = memory(taken)
        if trials >= FEWEST_TRIALS and held.growth > MOST_GROWTH:
            wrong.append(f"memory grows by {held.growth:.0f} MiB for each 1,000 trials")
        for each in wrong:
            print(f"violation: {each}", file=sys.stderr)
    return Measured(
        what,
        given.database,
        trials,
        given.epochs,
        whole,
        seconds(taken),
        rates(taken),
        latencies(taken, trials),
        held,
        connections,
        wrong,
    )


if __name__ == "__main__":
    main()
