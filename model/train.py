"""One run in one folder: no database, no server. What `python -m model train` does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.checkpoint import FREE_TO_CHANGE, Files, checkpoint_of, differing, read_latest, write
from model.corpus.data import Corpus
from model.corpus.scan import content_hash
from model.ctc import CTCTrainer
from model.diagnosis import best_epoch, is_best, judge, phase_of
from model.early_stopping import why_ended
from model.files import locked, written_aside
from model.findings import Finding, finite
from model.floors import floors
from model.milestones import DEFAULT, Milestone, met
from model.types import EpochReport, TrainingConfig


def run_files(folder: Path) -> Files:
    """The checkpoints of the run in a folder."""
    return Files(folder / "last.pt", folder / "previous.pt", folder / "best.pt")


LOCK = "run.lock"
"""Held while a run trains, gone afterwards."""

OVERWRITTEN = ("config.json", "vocabulary.txt", "epochs.jsonl", "best.pt", "result.json")
"""Files that a run writes without reading them first."""


def check_output(folder: Path) -> None:
    """Whether a run may write into a folder, which need not be there. Other files in it are left alone: a log, say.

    Raises:
        ValueError: it is no folder, another process trains in it, or it holds files that are no run's and that a run
            would overwrite.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--output_dir {folder}: {there} is a file, and a run writes a folder; name another one")
    if (folder / LOCK).exists():
        with _claimed(folder):
            pass
    files = run_files(folder)
    if files.last.exists() or files.previous.exists() or _is_config(folder / "config.json"):
        return
    if foreign := [name for name in OVERWRITTEN if (folder / name).exists()]:
        raise ValueError(
            f"--output_dir {folder}: holds {', '.join(foreign)}, though no run, and training would overwrite that; "
            "name another folder, or an empty one"
        )


def _is_config(path: Path) -> bool:
    """Whether this is the first file that a run writes."""
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and {"config", "corpus_hash", "vocabulary_hash"} <= content.keys()


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """
    Raises:
        ValueError: another process trains in this folder.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / LOCK))
        except ValueError as error:
            raise ValueError(f"{error}; wait for its end, or choose another --output_dir") from error
        yield


def train(
    config: TrainingConfig,
    corpus: Corpus,
    output: Path,
    on_epoch: Callable[[EpochReport, str], None] = lambda report, phase: None,
    should_stop: Callable[[], bool] = lambda: False,
    milestones: Sequence[Milestone] = DEFAULT,
    known: Sequence[Finding] = (),
) -> dict[str, Any]:
    """Train one run to its end, or go on with the one that `output` holds.

    Writes into `output`: config.json, vocabulary.txt, epochs.jsonl (a line an epoch), last.pt, previous.pt, best.pt,
    result.json.

    Args:
        on_epoch: called after each epoch's files are on disk, with the epoch's report and the run's phase.
        should_stop: read once a step.
        milestones: WERs hoped for, which the result says were met or missed.
        known: what speaks against the corpus; it stands among the result's findings and in its sentence.

    Returns:
        What result.json holds: `verdict, sentence, ended, best_wer, best_epoch, epochs`, the floors, `findings` and
        `milestones`.

    Raises:
        ValueError: `output` holds a run of another config or corpus, or see `check_output`.
        Stopped: `should_stop()` was true; running again goes on at the last whole epoch.
    """
    check_output(output)
    trainer = CTCTrainer(config, corpus)
    output.mkdir(parents=True, exist_ok=True)
    with _claimed(output):
        return _train(trainer, config, corpus, output, on_epoch, should_stop, milestones, known)


def _train(
    trainer: CTCTrainer,
    config: TrainingConfig,
    corpus: Corpus,
    output: Path,
    on_epoch: Callable[[EpochReport, str], None],
    should_stop: Callable[[], bool],
    milestones: Sequence[Milestone],
    known: Sequence[Finding],
) -> dict[str, Any]:
    identity = {
        **{k: v for k, v in config.model_dump().items() if k not in FREE_TO_CHANGE},
        "corpus": corpus.hash,
        "vocabulary": corpus.vocabulary.hash,
        "modalities": [[m.name, m.width] for m in corpus.modalities],
        # Not the filter's name: with one vocabulary two of them may leave the same words.
        "annotation": content_hash(corpus.train.references, corpus.dev.references),
    }
    files, reports = run_files(output), []
    try:
        saved = read_latest(files)
    except ValueError as error:
        raise ValueError(f"{error}; choose another --output_dir, or move that file away to begin anew") from error
    if saved is not None:
        if unlike := differing(saved.identity, identity):
            raise ValueError(
                f"{output}: holds a run that differs in {', '.join(unlike)}; "
                "choose another --output_dir, or delete that folder to begin anew"
            )
        trainer.load_state_dict(saved.trainer)
        reports = list(saved.reports)

    floor = floors(corpus, config.output_stride)
    facts = {"data_dir": str(corpus.folder), "corpus_hash": corpus.hash, "vocabulary_hash": corpus.vocabulary.hash}
    _write_json(output / "config.json", {"config": config.model_dump(), **facts})
    corpus.vocabulary.to_file(output / "vocabulary.txt")

    while (ended := why_ended(reports, config, floor.constant_wer)) is None:
        report = trainer.train_epoch(should_stop)
        better = is_best(report.wer, [r.wer for r in reports])
        reports.append(report)
        checkpoint = checkpoint_of(output.name, identity, trainer, config, corpus, reports)
        if better:
            write(files.best, checkpoint)
        _write_lines(output / "epochs.jsonl", reports)
        write(files.last, checkpoint, keep=files.previous)  # last: a crash before only has the epoch trained again
        on_epoch(report, phase_of([r.wer for r in reports], floor.constant_wer))

    judgement = judge(reports, config, floor, ended=True, dev_sequences=len(corpus.dev), known=known)
    wers = [r.wer for r in reports]
    epoch, wer = best_epoch(wers) or (None, None)
    result: dict[str, Any] = {
        "verdict": judgement.verdict,
        "sentence": judgement.sentence,
        "ended": ended,
        "best_wer": wer,
        "best_epoch": epoch,
        "epochs": len(reports),
        **asdict(floor),
        "findings": [finding.as_json() for finding in judgement.findings],
        "milestones": [asdict(standing) for standing in met(milestones, wers, len(reports))],
    }
    whole: dict[str, Any] = finite(result)
    _write_json(output / "result.json", whole)
    return whole


def _write_json(path: Path, value: Any) -> None:
    with written_aside(path) as file:  # a torn config.json would not be known as a run's
        file.write((json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _write_lines(path: Path, reports: list[EpochReport]) -> None:
    # The whole file each time: a run that goes on after a crash never repeats or loses a line.
    path.write_text("".join(f"{json.dumps(_line(report))}\n" for report in reports), encoding="utf-8")


def _line(report: EpochReport) -> dict[str, Any]:
    metrics = {key: value if math.isfinite(value) else None for key, value in report.metrics.items()}
    return {name: value for name, value in asdict(report).items() if name != "examples"} | {"metrics": metrics}
