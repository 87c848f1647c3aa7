"""One run in one folder: no database, no server. What `python -m model train` does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.checkpoint import load_checkpoint, save_checkpoint
from model.ctc import CTCTrainer
from model.data import Corpus
from model.diagnosis import best_epoch, phase_of, verdict_of
from model.early_stopping import why_ended
from model.probes import constant_sentence
from model.types import EpochReport, TrainingConfig

FREE_TO_CHANGE = {"epochs", "patience", "patience_starts", "threads", "device"}
"""Fields that may differ when a run goes on: they say how long and where, not what is trained."""


def train(
    config: TrainingConfig,
    corpus: Corpus,
    output: Path,
    on_epoch: Callable[[EpochReport, str], None] = lambda report, phase: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train one run to its end, or go on with the one that `output` holds.

    Writes into `output`: config.json, vocabulary.txt, epochs.jsonl (a line an epoch), last.pt, best.pt, result.json.

    Args:
        on_epoch: called after each epoch's files are on disk, with the epoch's report and the run's phase.
        should_stop: read once a step.

    Returns:
        What result.json holds: `verdict, ended, best_wer, best_epoch, epochs, constant_wer, constant_sentence`.

    Raises:
        ValueError: `output` holds a run of another config or corpus.
        Stopped: `should_stop()` was true; running again goes on at the last whole epoch.
    """
    trainer = CTCTrainer(config, corpus)
    identity = {
        **{k: v for k, v in config.model_dump().items() if k not in FREE_TO_CHANGE},
        "corpus": corpus.hash,
        "vocabulary": corpus.vocabulary.hash,
    }
    last, reports = output / "last.pt", []
    if last.exists():
        saved = load_checkpoint(last)
        if not isinstance(saved.get("identity"), dict):  # a sweep's checkpoint has a string there, another script none
            raise ValueError(f"{last}: not a checkpoint of this trainer; choose another --output_dir, or delete it")
        differing = sorted(k for k, v in identity.items() if saved["identity"].get(k) != v)
        if differing:
            raise ValueError(
                f"{output}: holds a run that differs in {', '.join(differing)}; "
                "choose another --output_dir, or delete that folder to begin anew"
            )
        trainer.load_state_dict(saved["trainer"])
        reports = [EpochReport(**report) for report in saved["reports"]]

    output.mkdir(parents=True, exist_ok=True)
    floor, floor_wer = constant_sentence(corpus.train.references, corpus.dev.references)
    facts = {"data_dir": str(corpus.folder), "corpus_hash": corpus.hash, "vocabulary_hash": corpus.vocabulary.hash}
    _write_json(output / "config.json", {"config": config.model_dump(), **facts})
    corpus.vocabulary.to_file(output / "vocabulary.txt")

    while (ended := why_ended(reports, config, floor_wer)) is None:
        report = trainer.train_epoch(should_stop)
        best = best_epoch([r.wer for r in reports])
        reports.append(report)
        state = {"trainer": trainer.state_dict(), "reports": [asdict(r) for r in reports], "identity": identity}
        if best is None or report.wer < best[1]:
            save_checkpoint(output / "best.pt", state)
        _write_lines(output / "epochs.jsonl", reports)
        save_checkpoint(last, state)  # last of all: a crash before this only has the epoch trained again
        on_epoch(report, phase_of([r.wer for r in reports], floor_wer))

    wers = [r.wer for r in reports]
    epoch, wer = best_epoch(wers) or (None, None)
    result = {
        "verdict": "diverged" if ended == "diverged" else verdict_of(wers, floor_wer),
        "ended": ended,
        "best_wer": wer,
        "best_epoch": epoch,
        "epochs": len(reports),
        "constant_wer": floor_wer,
        "constant_sentence": floor,
    }
    _write_json(output / "result.json", result)
    return result


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, reports: list[EpochReport]) -> None:
    # The whole file each time: a run that goes on after a crash never repeats or loses a line.
    lines = (
        json.dumps({**asdict(r), "metrics": {k: v if math.isfinite(v) else None for k, v in r.metrics.items()}})
        for r in reports
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
