"""`python -m model export`: a checkpoint as an ONNX file, compared and measured."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.commands.options import add_corpus_options, corpus_config
from model.commands.progress import progress_lines
from model.commands.report import columns

if TYPE_CHECKING:
    from model.export import Export

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    export = commands.add_parser(
        "export",
        help="write a checkpoint as an ONNX file",
        description="Write these weights as an ONNX file, with classes and normalisation in it, once it computes what "
        "the checkpoint does; measure its size and speed. Exit code 1 if it is too large or too slow for a device.",
    )
    export.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a .pt file, or the folder of a run: its last.pt"
    )
    export.add_argument("out", metavar="OUT.onnx", type=Path, help="the file to write; an old one is replaced")
    add_corpus_options(export)
    for action in export._actions:
        if action.dest == "data_dir":  # a checkpoint knows all by itself; the corpus is compared on
            action.required = False
            action.help = "compare on recordings of this corpus, the one of the training (default: random features)"
    export.add_argument("--json", action="store_true", help="print one JSON object; all else goes to stderr")
    export.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from model.checkpoint import read
    from model.corpus.data import load_corpus
    from model.diagnose import file_hash, find_checkpoint, fitting
    from model.export import LARGEST_MEGABYTES, LEAST_FRAMES_PER_SECOND, SENTENCE, TOLERANCE, export

    out = arguments.out
    if out.suffix != ".onnx":
        raise ValueError(f"{out}: the file is an ONNX file; give it the ending .onnx")
    path, why = find_checkpoint(arguments.checkpoint)
    checkpoint, corpus = read(path), None
    if hasattr(arguments, "data_dir"):
        corpus, other = fitting(load_corpus(corpus_config(arguments), progress=progress_lines()), checkpoint)
        if other is not None:
            print(f"{other.severity}: {other.evidence} {other.advice}", file=sys.stderr)
    result = export(checkpoint, out, corpus)
    facts: dict[str, Any] = {
        "file": str(out),
        "sha256": file_hash(out),
        "checkpoint": str(path),
        "chosen": why,
        "checkpoint_sha256": file_hash(path),
        "run": checkpoint.run,
        "epoch": checkpoint.reports[-1].epoch if checkpoint.reports else 0,
        **asdict(result),
        "tolerance": TOLERANCE,
        "sentence_frames": SENTENCE,
        "most_megabytes": LARGEST_MEGABYTES,
        "least_frames_per_second": LEAST_FRAMES_PER_SECOND,
        "faults": result.faults,
    }
    print(json.dumps(facts, allow_nan=False) if arguments.json else "\n".join(report_lines(facts, result)))
    return int(bool(result.faults))


def report_lines(facts: dict[str, Any], result: Export) -> list[str]:
    """The report for a terminal."""
    sentences = [
        f"{facts['file']}: {facts['run']}, epoch {facts['epoch']} ({facts['chosen']}); "
        f"{result.parameters:,} parameters.",
        f"Size: {result.megabytes:.1f} MB; at most {facts['most_megabytes']} MB is wanted.",
        f"Speed: {result.frames_per_second:,.0f} frames a second on one thread of this CPU, a sentence of "
        f"{facts['sentence_frames']} frames in {result.milliseconds:.0f} ms; at least "
        f"{facts['least_frames_per_second']} frames a second are wanted. From features on: what makes them, MediaPipe "
        "for instance, is not in it.",
        f"Parity: over {result.sequences} sequences ({result.compared_on}), alone and in one padded batch, the "
        f"log-probabilities lie at most {result.largest_difference:.1e} nats from the checkpoint's; "
        f"{facts['tolerance']:g} is allowed.",
        *(f"Too much for a device: {fault}" for fault in result.faults),
    ]
    return [line for sentence in sentences for line in textwrap.wrap(sentence, columns(), subsequent_indent="  ")]
