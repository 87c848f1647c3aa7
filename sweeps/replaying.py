"""A trial trained again from its row, and whether that gives what it gave then.

On a machine like the one it was trained on every metric of every epoch must come out the same, to the last bit. On
another one rounding differs, and after some epochs so does everything: there its WER must lie within what chance gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.corpus.data import Corpus
from model.diagnosis import best_epoch, counted, is_best
from model.files import locked, written_aside
from model.train import run_files
from model.types import BUILT_IN, EpochReport
from sweeps import checkpoints, environment
from sweeps.errors import SweepError
from sweeps.judging import rows_of
from sweeps.preparing import Progress, check_trainer, corpus_here
from sweeps.records import EpochRow, EventRow, SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.spec import spec_of
from sweeps.store import Store
from sweeps.summary import config_of, trial_label
from sweeps.trainers import make_trainer, trainer_name

NOT_COMPARED = "system/"
"""Metrics of the machine, not of the training."""

COUNTS = ("step", "steps_in_epoch", "skipped_steps", "lr_time", "phase")
"""What of an epoch must be the same beside its metrics. Its seconds need not."""

RESULT = "replay.json"


@dataclass(frozen=True)
class Difference:
    """The first value that came out otherwise."""

    epoch: int
    metric: str
    then: float | str | None
    """None: there was none."""
    now: float | str | None

    def __str__(self) -> str:
        return f"{self.metric} of epoch {self.epoch} was {self.then!r} and is {self.now!r}"


@dataclass(frozen=True)
class Replay:
    """What a replay came to."""

    sweep: str
    trial: int
    name: str | None
    epochs: int
    """Trained and compared."""
    of: int
    """That the trial has."""
    reproduced: bool
    check: str
    """What decided: `bitwise`, or `interval` on a machine that is, or may be, another."""
    difference: Difference | None
    """None: bitwise the same."""
    machines: tuple[str, ...]
    """Why other bits are to be expected: where this machine differs from those that trained it; empty where it does
    not."""
    wer_then: float | None
    """Lowest dev WER of these epochs (fraction)."""
    wer_now: float | None
    interval: tuple[float, float] | None
    """95 % interval of the WER now, over the sentences of dev; where it was asked."""
    folder: str
    sentence: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    store: Store,
    home: Home,
    sweep: SweepRow,
    trial: TrialRow,
    *,
    epochs: int | None = None,
    output: Path | None = None,
    trainer: str | None = None,
    corpus: Path | None = None,
    progress: Progress | None = None,
    on_epoch: Callable[[EpochRow, Difference | None], None] = lambda row, difference: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Replay:
    """Train a trial again, to the epoch where it ended, and compare. The database gets an event, and nothing else.

    Args:
        epochs: the first so many only.
        output: the folder that gets epochs.jsonl, best.pt and replay.json; one that was interrupted goes on there.
            Default: in home.
        trainer: where the sweep's trainer is, if it is not the built-in one.
        corpus: where the corpus lies on this machine, if not where the sweep was made.
        on_epoch: told each epoch, and what differed in it.
        should_stop: read once a step.

    Raises:
        SweepError: the trial has no such epoch; see also `corpus_here`, `check_trainer`, `make_trainer`.
        ValueError: another process replays in that folder.
        Stopped: `should_stop()` was true; done again it goes on at the last whole epoch.
    """
    then = store.epochs(trial.id)
    if not then:
        raise SweepError(f"trial {trial_label(trial)} of {sweep.name!r} has no epoch yet: there is nothing to replay")
    if epochs is not None and not 1 <= epochs <= len(then):
        raise SweepError(f"--epochs {epochs}: the trial has {counted(len(then), 'epoch')}; give 1 to {len(then)}")
    check_trainer(sweep, trainer)
    then = then[:epochs]
    data = corpus_here(sweep, home, corpus, progress)
    folder = output or home.replays / sweep.name / f"{trial.number:05d}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "replay.lock"):
        reports = _trained(sweep, trial, then, data, folder, trainer, on_epoch, should_stop)
        found = _judged(store, sweep, trial, then, reports, data, folder)
        with written_aside(folder / RESULT) as file:
            file.write((json.dumps(found.as_json(), indent=2, allow_nan=False) + "\n").encode())
        files = run_files(folder)
        for over in (files.last, files.previous):  # the next replay begins anew
            over.unlink(missing_ok=True)
    told = {"reproduced": found.reproduced, "check": found.check, "epochs": found.epochs, "folder": str(folder)}
    store.add_event(sweep.id, EventRow("replayed", found.sentence, trial.number, data=told))
    return found


def _trained(
    sweep: SweepRow,
    trial: TrialRow,
    then: Sequence[EpochRow],
    corpus: Corpus,
    folder: Path,
    reference: str | None,
    on_epoch: Callable[[EpochRow, Difference | None], None],
    should_stop: Callable[[], bool],
) -> list[EpochReport]:
    """As many epochs as `then` has, as a worker trains them."""
    from model.checkpoint import differing, read_latest

    config = config_of(spec_of(sweep), trial)
    trainer = make_trainer(reference, config, corpus)
    key = f"{sweep.name}@{sweep.created_at:.3f}"
    identity = {"replay of": f"{key}/{trial.number}", "corpus": corpus.hash, "trainer": trainer_name(reference),
                **config.model_dump()}  # fmt: skip
    files, reports = run_files(folder), list[EpochReport]()
    saved = read_latest(files)
    if saved is not None and not differing(saved.identity, identity) and len(saved.reports) <= len(then):
        trainer.load_state_dict(saved.trainer)
        reports = list(saved.reports)
    else:
        for path in (files.last, files.previous, files.best):
            path.unlink(missing_ok=True)
    while len(reports) < len(then):
        report = trainer.train_epoch(should_stop)
        better = is_best(report.wer, [r.wer for r in reports])
        reports.append(report)
        run = f"{sweep.name}/{trial.number}"
        checkpoints.save(files, run, identity, trainer, config, corpus, reports, better=better)
        row = rows_of(reports, sweep.floors.constant_wer)[-1]
        on_epoch(row, first_difference(then[len(reports) - 1 : len(reports)], [row]))
    with written_aside(folder / "epochs.jsonl") as file:
        for row in rows_of(reports, sweep.floors.constant_wer):
            file.write((json.dumps(asdict(row), allow_nan=False) + "\n").encode())
    return reports


def first_difference(then: Sequence[EpochRow], now: Sequence[EpochRow]) -> Difference | None:
    """Where two curves part, of all but what the machine did; None where they are the same to the last bit."""
    for old, new in zip(then, now, strict=True):
        metrics = sorted(name for name in {*old.metrics, *new.metrics} if not name.startswith(NOT_COMPARED))
        pairs = [(name, old.metrics.get(name), new.metrics.get(name)) for name in metrics]
        pairs += [(name, getattr(old, name), getattr(new, name)) for name in COUNTS]
        for name, before, after in pairs:
            if before != after:
                return Difference(old.epoch, name, before, after)
    return None


def _judged(
    store: Store,
    sweep: SweepRow,
    trial: TrialRow,
    then: Sequence[EpochRow],
    reports: Sequence[EpochReport],
    corpus: Corpus,
    folder: Path,
) -> Replay:
    difference = first_difference(then, rows_of(reports, sweep.floors.constant_wer))
    machines = differing_machines(store, sweep, trial)
    before = best_epoch([row.report().wer for row in then])
    after = best_epoch([report.wer for report in reports])
    interval = None
    if difference is not None and machines and after and sweep.facts.get("trainer", BUILT_IN) == BUILT_IN:
        interval = _interval(folder, corpus)
    reproduced, check, sentence = verdict(
        len(then), difference, machines, before and before[1], after and after[1], interval
    )
    return Replay(
        sweep=sweep.name,
        trial=trial.number,
        name=trial.name,
        epochs=len(then),
        of=trial.epochs,
        reproduced=reproduced,
        check=check,
        difference=difference,
        machines=tuple(machines),
        wer_then=before and before[1],
        wer_now=after and after[1],
        interval=interval,
        folder=str(folder),
        sentence=sentence,
    )


def verdict(
    epochs: int,
    difference: Difference | None,
    machines: Sequence[str],
    wer_then: float | None,
    wer_now: float | None,
    interval: tuple[float, float] | None,
) -> tuple[bool, str, str]:
    """Whether it is reproduced, what decided, and both in a sentence.

    Args:
        machines: why other bits are to be expected; empty where they are not.
        wer_then, wer_now: lowest dev WERs (fractions), None where there was none.
        interval: of the WER now.
    """
    if difference is None:
        where = f", though other bits were to be expected: {'; '.join(machines)}" if machines else ""
        same = f"every metric of {counted(epochs, 'epoch')} is the same bit for bit"
        return True, "bitwise", f"Reproduced: {same}{where}."
    if not machines:
        return False, "bitwise", f"Not reproduced: {difference}, on a machine like the one that trained it."
    elsewhere = f"Other bits are to be expected here ({'; '.join(machines)}); the first: {difference}."
    if wer_then is None or wer_now is None or interval is None:
        compared = wer_then is not None and wer_now is not None
        why = "its sentences cannot be scored here" if compared else "there is no WER to compare"
        return False, "bitwise", f"Not reproduced bit for bit. {elsewhere} Nothing else can be checked: {why}."
    low, high = interval
    within = low <= wer_then <= high
    said = (
        f"the WER of then, {wer_then:.1%}, lies {'within' if within else 'outside'} the 95 % interval of that of now, "
        f"{wer_now:.1%} ({low:.1%} to {high:.1%}: its dev sentences drawn anew)"
    )
    return within, "interval", f"{'Reproduced' if within else 'Not reproduced'} within chance: {said}. {elsewhere}"


def differing_machines(store: Store, sweep: SweepRow, trial: TrialRow) -> list[str]:
    """Where this machine differs, in what decides the last bit, from those that trained the trial. A GPU differs even
    from itself.
    """
    from model.ctc import pick_device

    config = config_of(spec_of(sweep), trial)
    own = sweep.facts.get("trainer", BUILT_IN) != BUILT_IN
    device = "its trainer's" if own else str(pick_device(config.device))
    ours: Mapping[str, str] = {**environment.here(), "device": device}
    theirs = environment.trained_on(store.events(sweep.id), trial.number)
    if not theirs:
        return ["the machine that trained it is not known"]
    said = ["a GPU adds in any order"] if device.startswith("cuda") else []
    return list(dict.fromkeys(said + [each for machine in theirs for each in environment.differing(machine, ours)]))


def _interval(folder: Path, corpus: Corpus) -> tuple[float, float]:
    from model.checkpoint import read
    from model.decoding import greedy_errors
    from model.metrics import wer_interval

    return wer_interval(*greedy_errors(read(run_files(folder).best), corpus.dev))
