"""`python -m model train`: one run into one folder."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from model import milestones
from model.commands.options import add_corpus_options, corpus_config, flags
from model.commands.progress import progress_lines
from model.types import EpochReport, TrainingConfig

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Each field of `TrainingConfig` is an option."""
    train = commands.add_parser(
        "train",
        help="train one run into one folder",
        description="Train one run. Run again with the same options, a run that was stopped goes on where it was.",
    )
    add_corpus_options(train)
    train.add_argument(
        *flags("output_dir"), type=Path, required=True, default=argparse.SUPPRESS, help="where the run's files go"
    )
    train.add_argument(
        "--milestones",
        default=milestones.written(milestones.DEFAULT),
        help="WERs hoped for, shown as met or missed: EPOCH:WER,...; none: none",
    )
    train.add_argument("--force", action="store_true", help="train on a corpus in which `check` finds a fatal fault")
    train.add_argument("--json", action="store_true", help="print one JSON object, the result; all else goes to stderr")
    add_training_options(train)
    train.set_defaults(run=run, goes_on=True)


def add_training_options(
    parser: argparse.ArgumentParser, names: Iterable[str] = tuple(TrainingConfig.model_fields)
) -> None:
    """An option for each of these fields of `TrainingConfig`."""
    group = parser.add_argument_group("training")
    for name in names:
        field = TrainingConfig.model_fields[name]
        choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else None
        kind = type(choices[0]) if choices else field.annotation
        group.add_argument(
            *flags(name),
            dest=name,
            type=kind,  # type: ignore[arg-type]
            choices=choices,
            default=field.default,
            help=field.description,
        )


def training_config(arguments: argparse.Namespace) -> TrainingConfig:
    """
    Raises:
        pydantic.ValidationError: a value outside its range.
    """
    return TrainingConfig.model_validate({name: getattr(arguments, name) for name in TrainingConfig.model_fields})


def run(arguments: argparse.Namespace) -> int:
    import torch

    from model.checkpoint import read_latest
    from model.corpus.check import check_corpus
    from model.corpus.data import fit_note, load_corpus
    from model.diagnosis import counted
    from model.train import check_output, run_files, train

    config = training_config(arguments)
    hoped = milestones.parse(arguments.milestones)
    source = corpus_config(arguments)
    check_output(arguments.output_dir)  # before a pass of minutes
    say = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    with TemporaryDirectory() as scan:  # one pass over the files for both
        corpus = load_corpus(source, cache=Path(scan), progress=progress_lines())
        report = check_corpus(source, config.output_stride, cache=Path(scan))
    if report.fatal and not arguments.force:
        faults = [f"{finding.code}: {finding.evidence} {finding.advice}" for finding in report.fatal]
        raise ValueError("\n".join([*faults, "nothing was trained; --force trains on it all the same"]))
    short = (fit_note(split, config.output_stride) for split in (corpus.train, corpus.dev))
    for note in (*corpus.notes, *filter(None, short)):
        say(f"corpus: {note}")
    try:
        result = train(
            config,
            corpus,
            arguments.output_dir,
            lambda epoch, phase: say(epoch_line(epoch, phase)),
            milestones=hoped,
            known=report.fatal,
        )
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{first} Lower --batch_size or --eval_batch_size; the run goes on from its last epoch"
        ) from error
    say(f"{result['sentence']} Ended by {result['ended']} after {counted(result['epochs'], 'epoch')}.")
    saved = read_latest(run_files(arguments.output_dir))
    assert saved is not None
    standings = milestones.met(hoped, [r.wer for r in saved.reports], result["epochs"])
    for line in milestones.lines(standings):
        say(f"  {line}")
    for finding in result["findings"]:
        if finding["severity"] != "info":
            say(f"  {finding['severity']}: {finding['code']}: {finding['evidence']} {finding['advice']}")
    say(f"Files in {arguments.output_dir}. `python -m model diagnose` looks closer.")
    if arguments.json:
        print(json.dumps(result))
    return 0


def epoch_line(report: EpochReport, phase: str) -> str:
    """An epoch for a person."""
    m = report.metrics
    return (
        f"epoch {report.epoch:3}  {phase:8}  loss {m['train/loss']:6.3f} dev {m['dev/loss']:6.3f}  "
        f"WER {m['dev/wer']:6.1%} (S {m['dev/sub']:.1%} D {m['dev/del']:.1%} I {m['dev/ins']:.1%})  "
        f"spread {m['spread/time']:.3f}  lr {m['optim/lr']:.2e}  {report.seconds:.1f} s"
    )
