"""What must hold of a sweep after a load, whatever worked on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna

from sweeps.records import TrialRow
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.load.ground import NAME

TROUBLE = re.compile(r"Traceback|ERROR|deadlock|locked|trying again|LeaseLost|could not serialize", re.IGNORECASE)
"""Words that no log may hold."""


def violations(url: str, folder: Path, trials: int, epochs: int) -> list[str]:
    """In words; empty where all is as it must be."""
    with closing(Store(url)) as store:
        sweep = store.find_sweep(NAME)
        assert sweep is not None
        rows = store.trials(sweep.id)
        found = [] if sweep.state is SweepState.COMPLETE else [f"the sweep is {sweep.state}: {sweep.reason}"]
        found += _trials(rows, trials)
        if untold := store.untold(sweep.id):
            found.append(f"Optuna was not told of {len(untold)} trials")
        curves = store.sweep_epochs(sweep.id)
        wrong = [t.number for t in rows if [row.epoch for row in curves[t.id]] != list(range(1, epochs + 1))]
        if wrong:
            found.append(f"epochs are missing or there twice in {len(wrong)} trials, such as {wrong[0]}")
        kinds = Counter(event.kind for event in store.events(sweep.id) if event.trial_number is not None)
    if kinds != {"claimed": trials, "complete": trials}:
        found.append(f"the trials' events are {dict(kinds)}")
    return [*found, *_record(url, rows), *_logs(folder)]


def _trials(rows: list[TrialRow], trials: int) -> Iterator[str]:
    if [t.number for t in rows] != list(range(trials)):
        yield f"{len(rows)} trials with {len({t.number for t in rows})} numbers, not {trials}"
    for what, all_of in (
        ("state", Counter(t.state for t in rows if t.state is not TrialState.COMPLETE)),
        ("attempt", Counter(t.attempt for t in rows if t.attempt != 1)),
    ):
        if all_of:
            yield f"trials with another {what}: {dict(all_of)}"


def _record(url: str, rows: list[TrialRow]) -> Iterator[str]:
    """Optuna's tables, as anybody with Optuna alone reads them."""
    storage = optuna.storages.RDBStorage(url)
    try:
        recorded = optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False)
    finally:
        storage.remove_session()
        storage.engine.dispose()
    theirs = {t._trial_id: (t.user_attrs["sweep_trial"], t.state.name, t.value, t.params) for t in recorded}
    ours = {t.optuna_trial_id: (t.number, t.state.value, t.best_wer, t.hyperparameters) for t in rows}
    if len(theirs) != len(rows):
        yield f"Optuna has {len(theirs)} trials"
    if differing := [i for i in ours if ours[i] != theirs.get(i)]:
        yield f"Optuna's record differs in {len(differing)}: {ours[differing[0]]} is {theirs.get(differing[0])}"


def _logs(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*.log")):
        lines = [
            line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if TROUBLE.search(line)
        ]
        if lines:
            yield f"{file.relative_to(folder)} has {len(lines)} lines of trouble: {lines[0][:300]}"
