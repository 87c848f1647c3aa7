"""The checkpoints of a sweep's trials: the last two and the best of each, in the one format of `model.checkpoint`.

While a trial is under way its files carry its attempt: a worker that was declared dead and wakes up writes into files
that nobody reads any more. Once it is over, `settle` gives what is to be kept its plain names.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.corpus.data import Corpus
from model.files import written_aside
from model.types import EpochReport, Trainer, TrainingConfig
from sweeps.states import TrialState

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint, Files

log = logging.getLogger(__name__)

KEEP_DAYS = 7.0
"""The checkpoints of a trial that came to nothing (pruned, cancelled) are removed so long after they were written."""

OF_OPTIMIZER = "optimizer"
"""What of the built-in trainer's state only a trial that goes on needs: two thirds of it."""

# model.checkpoint comes with torch, which a process that only reads results can do without: imported where needed.


def load_torch() -> None:
    """Import what reading and writing take, now rather than at the first use."""
    import model.checkpoint  # noqa: F401


def trial_files(folder: Path, number: int, attempt: int | None = None) -> Files:
    """Where the checkpoints of a trial lie: of one attempt, or once it is over."""
    from model.checkpoint import Files

    stem = f"{number:05d}" if attempt is None else f"{number:05d}.{attempt}"
    return Files(*(folder / f"{stem}{kind}.pt" for kind in ("", ".previous", ".best")))


def attempts(folder: Path, number: int) -> list[int]:
    """The attempts of a trial that have left files, the last one first."""
    found = {int(match[1]) for file in folder.glob(f"{number:05d}.*.pt") if (match := _OF_ATTEMPT.match(file.name))}
    return sorted(found, reverse=True)


def best_file(folder: Path, number: int) -> Path | None:
    """The best checkpoint of a trial, over or under way; None where there is none here."""
    final = trial_files(folder, number).best
    candidates = [final, *(trial_files(folder, number, attempt).best for attempt in attempts(folder, number))]
    return next((file for file in candidates if file.exists()), None)


def without_optimizer(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without what only a run that goes on needs."""
    lean = {name: value for name, value in checkpoint.trainer.items() if name != OF_OPTIMIZER}
    return replace(checkpoint, trainer=lean)


_OF_ATTEMPT = re.compile(r"\d+\.(\d+)\.(?:previous\.|best\.)?pt$")
_UNFINISHED = re.compile(r"\.\d{5}\.")


def save(
    files: Files,
    run: str,
    identity: Mapping[str, Any],
    trainer: Trainer,
    config: TrainingConfig,
    corpus: Corpus,
    reports: Sequence[EpochReport],
    *,
    better: bool,
) -> None:
    """Write the checkpoint of the last epoch, and keep it as the best one if it is.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the checkpoint before is still there.
    """
    from model.checkpoint import checkpoint_of, write
    from model.ctc import CTCTrainer

    checkpoint = checkpoint_of(run, identity, trainer, config, corpus, reports)
    if better:
        # Nobody goes on from the best, and a third is written sooner. What another trainer calls so is its own affair.
        write(files.best, without_optimizer(checkpoint) if isinstance(trainer, CTCTrainer) else checkpoint)
    write(files.last, checkpoint, keep=files.previous)  # last: once it stands, the epoch is over


def resume(folder: Path, number: int, attempt: int, identity: Mapping[str, Any], trainer: Trainer) -> list[EpochReport]:
    """Put `trainer` where the trial's last checkpoint stands and return its epochs; none where there is no use in it.
    The best checkpoint so far becomes that of this attempt.

    Args:
        attempt: the one that begins; what a later one has left is not looked at.
        identity: of the trial; a checkpoint that another trial left under this name is not taken.
    """
    _forget_other_sweeps(folder, number, identity)
    earlier = [a for a in attempts(folder, number) if a <= attempt]
    for before in earlier:
        saved = _latest(trial_files(folder, number, before), identity)
        if saved is None:
            continue
        best = next((b for a in earlier if (b := trial_files(folder, number, a).best).exists()), None)
        if best is not None and before != attempt:
            best.replace(trial_files(folder, number, attempt).best)
        trainer.load_state_dict(saved.trainer)
        return list(saved.reports)
    return []


def _forget_other_sweeps(folder: Path, number: int, identity: Mapping[str, Any]) -> None:
    """A trial under way has no files with plain names: they are of another sweep that had this name."""
    final = trial_files(folder, number)
    if not any(path.exists() for path in vars(final).values()):
        return
    from model.checkpoint import read

    try:
        ours = read(final.last).identity.get("sweep") == identity.get("sweep")
    except (ValueError, OSError):
        ours = False
    if not ours:
        _remove(final)


def _latest(files: Files, identity: Mapping[str, Any]) -> Checkpoint | None:
    from model.checkpoint import differing, read_latest

    try:
        saved = read_latest(files)
    except ValueError as error:
        log.warning("%s; the trial begins at an earlier one, or at epoch 1", error)
        return None
    if saved is None:
        return None
    if unlike := differing(saved.identity, identity):
        log.warning("%s: differs in %s; it is not taken", files.last, ", ".join(unlike))
        return None
    return saved


def forget_earlier(folder: Path, number: int, attempt: int) -> None:
    """Remove what earlier attempts have left, once this one has a checkpoint of its own. The files with plain names
    stay: a worker that was frozen may be here when the trial has long ended under another attempt.
    """
    for before in attempts(folder, number):
        if before < attempt:
            _remove(trial_files(folder, number, before))


def settle(folder: Path, number: int, state: TrialState) -> None:
    """A trial is over: its last and best checkpoints get their plain names, the others go. Where it came to nothing the
    last one is kept without the optimizer's state, as it will not go on. Done again it changes nothing.
    """
    final = trial_files(folder, number)
    for attempt in attempts(folder, number):
        files = trial_files(folder, number, attempt)
        # The one before, where the last was torn by a crash after its epoch had been recorded.
        for path, plain in ((files.last, final.last), (files.previous, final.last), (files.best, final.best)):
            with suppress(FileNotFoundError):  # its worker and the keeper may do this at the same time
                if path.exists() and not plain.exists():
                    if state in (TrialState.PRUNED, TrialState.CANCELLED) and plain == final.last:
                        _without_optimizer(path)
                    path.replace(plain)
        _remove(files)
    for unfinished in folder.glob(f".{number:05d}.*.part"):  # of a worker that was killed while it wrote
        unfinished.unlink(missing_ok=True)


def _without_optimizer(path: Path) -> None:
    from model.checkpoint import read, write

    try:
        checkpoint = read(path)
    except ValueError as error:
        log.warning("%s", error)  # torn by a crash: it is kept as it is
        return
    if OF_OPTIMIZER in checkpoint.trainer:
        write(path, without_optimizer(checkpoint))


def unsettled(folder: Path) -> Iterator[int]:
    """Numbers of the trials that have files of an attempt, or unfinished ones."""
    whole = {file.name for file in folder.glob("*.pt") if _OF_ATTEMPT.match(file.name)}
    unfinished = {file.name[1:] for file in folder.glob(".*.part") if _UNFINISHED.match(file.name)}
    yield from sorted({int(name[:5]) for name in whole | unfinished})


def expire(folder: Path, numbers: Sequence[int], days: float = KEEP_DAYS) -> int:
    """Remove the checkpoints of these trials (they came to nothing) that are older; returns how many files went."""
    oldest, removed = time.time() - 86_400 * days, 0
    for number in numbers:
        for path in vars(trial_files(folder, number)).values():
            if path.exists() and path.stat().st_mtime < oldest:
                path.unlink()
                removed += 1
    return removed


def has_room(folder: Path, size: int) -> bool:
    """Whether a file of `size` bytes can be written there now. It is tried: quotas show no other way."""
    probe = folder / ".room"
    try:
        with written_aside(probe) as file:
            for start in range(0, size, 1 << 20):
                file.write(b"\0" * min(1 << 20, size - start))
        return True
    except OSError as error:
        log.warning("%s: no room for a checkpoint yet (%s)", folder, error.strerror or error)
        return False
    finally:
        with suppress(OSError):
            probe.unlink()


def _remove(files: Files) -> None:
    for path in vars(files).values():
        path.unlink(missing_ok=True)
