"""One run in one folder: no database, no server. What `python -m model train` does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.checkpoint import FREE_TO_CHANGE, Files, checkpoint_of, differing, read_latest, write
from model.corpus.data import Corpus
from model.corpus.scan import content_hash
from model.ctc import CTCTrainer
from model.diagnosis import best_epoch, is_best, judge, phase_of
from model.early_stopping import why_ended
from model.findings import finite
from model.floors import floors
from model.milestones import DEFAULT, Milestone, met
from model.types import EpochReport, TrainingConfig


def run_files(folder: Path) -> Files:
    """The checkpoints of the run in a folder."""
    return Files(folder / "last.pt", folder / "previous.pt", folder / "best.pt")


def train(
    config: TrainingConfig,
    corpus: Corpus,
    output: Path,
    on_epoch: Callable[[EpochReport, str], None] = lambda report, phase: None,
    should_stop: Callable[[], bool] = lambda: False,
    milestones: Sequence[Milestone] = DEFAULT,
) -> dict[str, Any]:
    """Train one run to its end, or go on with the one that `output` holds.

    Writes into `output`: config.json, vocabulary.txt, epochs.jsonl (a line an epoch), last.pt, previous.pt, best.pt,
    result.json.

    Args:
        on_epoch: called after each epoch's files are on disk, with the epoch's report and the run's phase.
        should_stop: read once a step.
        milestones: WERs hoped for, which the result says were met or missed.

    Returns:
        What result.json holds: `verdict, sentence, ended, best_wer, best_epoch, epochs`, the floors, `findings` and
        `milestones`.

    Raises:
        ValueError: `output` holds a run of another config or corpus.
        Stopped: `should_stop()` was true; running again goes on at the last whole epoch.
    """
    trainer = CTCTrainer(config, corpus)
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
        raise ValueError(f"{error}, or choose another --output_dir") from error
    if saved is not None:
        if unlike := differing(saved.identity, identity):
            raise ValueError(
                f"{output}: holds a run that differs in {', '.join(unlike)}; "
                "choose another --output_dir, or delete that folder to begin anew"
            )
        trainer.load_state_dict(saved.trainer)
        reports = list(saved.reports)

    output.mkdir(parents=True, exist_ok=True)
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

    judgement = judge(reports, config, floor, ended=True, dev_sequences=len(corpus.dev))
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
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, reports: list[EpochReport]) -> None:
    # The whole file each time: a run that goes on after a crash never repeats or loses a line.
    lines = (
        json.dumps({**asdict(r), "metrics": {k: v if math.isfinite(v) else None for k, v in r.metrics.items()}})
        for r in reports
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
