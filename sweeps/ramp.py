"""Stage 0 of a sweep: its learning-rate range test, in a process of its own, and what the sweep keeps of it.

It comes before the first trial and costs neither epochs nor trials of the budget. Nothing of it is kept before it is
whole, so one that was interrupted is simply made again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.files import written_aside
from model.range_test import RangeTest, range_test
from model.types import Stopped
from sweeps.errors import TrialsSpent
from sweeps.processes import obedient
from sweeps.range_test import NUMBERS, PICTURE, config_of_test, proposal, steps_of, why_not
from sweeps.records import SweepRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ramp:
    """What the process is told."""

    spec: SweepSpec
    corpus: CorpusConfig
    scans: Path
    log: Path
    pictures: Path
    """Folder for the test's files."""


@dataclass(frozen=True)
class Progress:
    """Steps done, and how many there are."""

    done: int
    steps: int


@dataclass(frozen=True)
class Failure:
    """The process could not do it, and why."""

    reason: str


def is_due(sweep: SweepRow, trials: Sequence[TrialRow]) -> bool:
    """Whether a sweep that wants a range test has none yet, and has not begun to train."""
    return "range_test" not in sweep.facts and not any(trial.attempt for trial in trials)


def reason_to_skip(spec: SweepSpec, trainer: str, corpus: Corpus) -> str | None:
    """Why this sweep goes without a range test, in a sentence."""
    return why_not(spec, trainer, updates_per_epoch(spec, corpus))


def updates_per_epoch(spec: SweepSpec, corpus: Corpus) -> int:
    config = config_of_test(spec)
    batches = -(-len(corpus.train) // config.batch_size)
    return -(-batches // config.accumulate)


def ramp_process(ramp: Ramp, word: Connection, answers: Connection) -> None:
    """The test as a process: sends `Progress`, and at last a `RangeTest` or a `Failure`; stops when `word` breaks."""
    stop = obedient(ramp.log, word)
    try:
        corpus = load_corpus(ramp.corpus, cache=ramp.scans)
        test = range_test(
            config_of_test(ramp.spec),
            corpus,
            steps=steps_of(ramp.spec, updates_per_epoch(ramp.spec, corpus)),
            should_stop=stop.is_set,
            progress=lambda done, steps: answers.send(Progress(done, steps)),
        )
        write_files(test, ramp.pictures)
        answers.send(test)
    except (Stopped, BrokenPipeError):
        log.info("stopped; nothing is kept")
    except Exception as error:  # told to whoever waits for the answer; the log has the rest
        log.exception("the range test failed")
        answers.send(Failure(" ".join(f"{type(error).__name__}: {error}".split())[:500]))


def write_files(test: RangeTest, folder: Path) -> None:
    """The picture and the numbers."""
    from model.range_plot import write_picture

    write_picture(test, folder / PICTURE)
    with written_aside(folder / NUMBERS) as file:
        file.write((json.dumps(test.as_json(), indent=1, allow_nan=False) + "\n").encode())


def keep(store: Store, sweep: SweepRow, spec: SweepSpec, test: RangeTest) -> list[str]:
    """Store what a test came to, narrow the sweep's learning rates by it, and let its trial wait. Done again it changes
    nothing. Returns what to tell a person.
    """
    made = proposal(spec, test)
    said = [*test.sentences, made.note]
    facts: dict[str, Any] = {"range_test": {**_without_nulls(test), "sentences": said, "finished_at": store.now()}}
    if made.bounds is not None:
        bounds = made.bounds
        facts["learning_rate_bounds"] = {"low": bounds.low, "high": bounds.high, "by": "range_test"}
    if made.trial is None:
        store.update_facts(sweep.id, facts)
        return said
    rate = made.trial.hyperparameters["learning_rate"]
    try:
        number = store.enqueue(sweep.id, made.trial, facts)
    except TrialsSpent:
        store.update_facts(sweep.id, facts)
        return [*said, f"The budget has no trial left to try {rate:.1e}."]
    return [*said, f"Trial {number} tries {rate:.1e}, the other parameters in the middle of their ranges."]


def _without_nulls(test: RangeTest) -> dict[str, Any]:
    content = test.as_json()
    content["looks"] = [{k: v for k, v in look.items() if v is not None} for look in content["looks"]]
    return content
