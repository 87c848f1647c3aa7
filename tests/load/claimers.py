"""Claimers: threads that do with a trial what a worker does, without the rest of a worker around it."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from model.corpus.data import load_corpus
from sweeps import judging, worker
from sweeps.records import Claim
from sweeps.settings import Home
from sweeps.spec import corpus_of, spec_of
from sweeps.store import Store
from sweeps.study import Study
from sweeps.worker import Assignment
from tests.load import timed
from tests.load.ground import NAME, Database
from tests.load.nothing import Nothing

LEASE_SECONDS = 120.0
LOOK_SECONDS = 0.5

log = logging.getLogger(__name__)


def claim_all(folder: Path, database: Database, processes: int, claimers: int) -> tuple[list[str], int]:
    """Until no trial is left.

    Returns: what went wrong, and the most connections that the database had at once.
    """
    times = folder / "times"
    times.mkdir()
    spawn = multiprocessing.get_context("spawn")
    shares = [claimers // processes + (number < claimers % processes) for number in range(processes)]
    started = [
        spawn.Process(
            target=_process, args=(folder, number, database.url, share), name=f"claimers {number}", daemon=True
        )
        for number, share in enumerate(shares)
    ]
    most = 0
    for process in started:
        process.start()
    while any(process.is_alive() for process in started):
        most = max(most, database.connections)
        time.sleep(LOOK_SECONDS)
    return [f"{process.name} ended with {process.exitcode}" for process in started if process.exitcode != 0], most


def _process(folder: Path, number: int, url: str, claimers: int) -> None:
    logging.basicConfig(filename=folder / f"claimers-{number}.log", level=logging.INFO)
    timed.install(folder / "times", timed.STEPS)
    with closing(Store(url)) as store:
        sweep = store.find_sweep(NAME)
        assert sweep is not None
        corpus = load_corpus(corpus_of(sweep), cache=Home(folder / "home").scans)
        with closing(Study(url, spec_of(sweep))) as study:
            assignment = Assignment(sweep, spec_of(sweep), corpus, study, judging.Judge(spec_of(sweep), store, sweep))
            failed = threading.Event()
            names = [f"claimer {number}.{place}" for place in range(claimers)]
            threads = [threading.Thread(target=_claimer, args=(assignment, store, name, failed)) for name in names]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    if failed.is_set():
        raise SystemExit(1)


def _claimer(assignment: Assignment, store: Store, name: str, failed: threading.Event) -> None:
    assignment = replace(assignment, judge=judging.Judge(assignment.spec, store, assignment.sweep))  # one a worker
    try:
        while claim := store.claim(assignment.sweep.id, name, LEASE_SECONDS):
            _train(assignment, store, claim)
    except BaseException:
        failed.set()
        log.exception("%s", name)
        raise


def _train(assignment: Assignment, store: Store, claim: Claim) -> None:
    spec, sweep = assignment.spec, assignment.sweep
    values = worker.ask(assignment, store, claim)
    config = spec.training(claim.number, values, claim.overrides)
    trainer = Nothing(config, assignment.corpus)
    reports = []
    while assignment.judge.judge_all(claim, config, reports, len(reports)) is None:
        assert store.reserve_epoch(claim, trainer.epoch + 1)
        reports.append(trainer.train_epoch(lambda: False))
    judging.tell(store, assignment.study, sweep.id, claim.trial_id)
