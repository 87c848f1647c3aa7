"""`python -m model overfit`: can the model learn eight sequences by heart, and only if they differ?"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from model.commands.options import add_corpus_options, corpus_config
from model.commands.report import as_json, exit_code, finding_lines
from model.commands.train import add_training_options
from model.types import TrainingConfig

if TYPE_CHECKING:
    from model.overfit import Overfit

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SEQUENCES = 8
STEPS = 400
LEARNING_RATE = 2e-3
"""Constant. On spoken letters, recorded signs and generated signing the student needed 40 to 70 steps and the plain
BiLSTM 20 to 390, at any rate from 1e-3 to 1e-2."""

FIELDS = (
    "learning_rate",
    "clip_norm",
    "architecture",
    "output_stride",
    "precision",
    "hidden",
    "channels",
    "lstm_layers",
    "seed",
    "threads",
    "device",
)
"""The fields of `TrainingConfig` that count here: what the model is, and its own optimizer."""


def add(commands: Commands) -> None:
    overfit = commands.add_parser(
        "overfit",
        help="can the model learn eight sequences by heart?",
        description="Train on a few sequences until there is no word error: without dropout, warm-up and schedule. "
        "Then a control, with one input for all of them, must fail. A model that cannot do this has a fault that no "
        "learning rate cures. Exit code 1 if it fails.",
    )
    add_corpus_options(overfit)
    overfit.add_argument("--sequences", type=int, default=SEQUENCES, help="sequences of train to learn by heart")
    overfit.add_argument("--steps", type=int, default=STEPS, help="steps at most; each takes all sequences")
    overfit.add_argument("--json", action="store_true", help="print one JSON object: findings and facts")
    add_training_options(overfit, FIELDS)
    overfit.set_defaults(run=run, learning_rate=LEARNING_RATE)


def run(arguments: argparse.Namespace) -> int:
    from model.corpus.data import load_corpus
    from model.overfit import findings_of, overfit

    config = TrainingConfig.model_validate({name: getattr(arguments, name) for name in FIELDS})
    corpus = load_corpus(corpus_config(arguments))
    result = overfit(config, corpus, arguments.sequences, arguments.steps, print_look)
    findings = findings_of(result)
    if arguments.json:
        settings = config.model_dump(include=set(FIELDS))
        print(as_json(findings, {"passed": result.passed, **asdict(result), "config": settings}))
    else:
        print("\n".join(report_lines(result)))
        print("\n".join(finding_lines(findings)))
    return exit_code(findings)


def print_look(what: str, step: int, wer: float, loss: float) -> None:
    print(f"{what:7}  step {step:4}  WER {wer:6.1%}  loss {loss:7.3f}", file=sys.stderr, flush=True)


def report_lines(result: Overfit) -> list[str]:
    """What was learned and how far it came, for a person."""
    test, control = result.test, result.control
    lines = [
        f"{'passed' if result.passed else 'FAILED'}: {len(result.ids)} sequences of at most {result.frames} frames, "
        f"{result.parameters:,} weights, {result.seconds:.0f} s",
        f"  test     WER {test.wer:.1%}, loss {test.loss:.3f} nats per gloss after {test.steps} steps",
    ]
    if control is not None:
        lines.append(f"  control  WER {control.lowest_wer:.1%} at its lowest in as many steps (one input for all)")
    if test.wer > 0:
        for name, reference, hypothesis in zip(result.ids, result.references, test.hypotheses, strict=True):
            lines += [f"  {name}", f"    reference   {reference}", f"    hypothesis  {hypothesis or '(empty)'}"]
    return lines
