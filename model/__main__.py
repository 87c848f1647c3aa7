"""`python -m model`: train once, without a database and without MLflow."""

from __future__ import annotations

import argparse
import json
import sys
import types
import typing
from pathlib import Path

from pydantic import ValidationError

from model.types import EpochReport, TrainingConfig

ALIASES = {"patience": ["--early_stopping_patience", "--early-stopping-patience"]}
"""Names from the user's own script."""


def flags(name: str) -> list[str]:
    """The ways to write an option: with underscores as the field is named, or with dashes."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])) + ALIASES.get(name, [])


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad option in one line: argparse would print all forty options above it."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def parser() -> argparse.ArgumentParser:
    """The command line; each field of `TrainingConfig` is an option of `train`."""
    top = OneLineParser(prog="python -m model", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train one run into one folder",
        description="Train one run. Run again with the same options, a run that was stopped goes on where it was.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    corpus = train.add_argument_group("corpus")
    corpus.add_argument(
        *flags("data_dir"),
        type=Path,
        required=True,
        default=argparse.SUPPRESS,
        help="folder with features/ and annotations/, or with train/ dev/ test/",
    )
    corpus.add_argument("--annotations", type=Path, help="folder with the annotation CSVs, where not found beside it")
    corpus.add_argument("--vocabulary", type=Path, help="vocabulary file, a gloss a line, blank first; else from train")
    corpus.add_argument("--filter", default="none", help="named filter of the annotations: none, phoenix-si5")
    corpus.add_argument("--modalities", metavar="NAME=WIDTH,...", help="split of the feature vector, in order")
    train.add_argument(
        *flags("output_dir"), type=Path, required=True, default=argparse.SUPPRESS, help="where the run's files go"
    )
    train.add_argument("--json", action="store_true", help="the last line on stdout is the result as one JSON object")
    fields = train.add_argument_group("training")
    for name, field in TrainingConfig.model_fields.items():
        kind = field.annotation
        choices = typing.get_args(kind) if not isinstance(kind, type | types.UnionType) else None
        fields.add_argument(
            *flags(name),
            dest=name,
            type=str if choices else kind,  # type: ignore[arg-type]
            choices=choices,
            default=field.default,
            help=field.description,
        )
    return top


def print_epoch(report: EpochReport, phase: str) -> None:
    m = report.metrics
    print(
        f"epoch {report.epoch:3}  {phase:8}  loss {m['train/loss']:6.3f} dev {m['dev/loss']:6.3f}  "
        f"WER {m['dev/wer']:6.1%} (S {m['dev/sub']:.1%} D {m['dev/del']:.1%} I {m['dev/ins']:.1%})  "
        f"spread {m['spread/time']:.3f}  lr {m['optim/lr']:.2e}  {report.seconds:.1f} s",
        flush=True,
    )


def run_train(arguments: argparse.Namespace) -> int:
    import torch

    from model.data import CorpusConfig, load_corpus
    from model.train import train

    values = {name: getattr(arguments, name) for name in TrainingConfig.model_fields}
    config = TrainingConfig.model_validate(values)
    modalities = None
    if arguments.modalities:
        pairs = [part.partition("=") for part in arguments.modalities.split(",")]
        if not all(name and width.isdigit() for name, _, width in pairs):
            raise ValueError(f"--modalities {arguments.modalities}: write NAME=WIDTH,NAME=WIDTH")
        modalities = {name: int(width) for name, _, width in pairs}
    corpus = load_corpus(
        CorpusConfig(
            path=arguments.data_dir,
            annotations=arguments.annotations,
            vocabulary=arguments.vocabulary,
            filter=arguments.filter,
            modalities=modalities,
        )
    )
    for note in corpus.notes:
        print(f"corpus: {note}", flush=True)
    try:
        result = train(config, corpus, arguments.output_dir, print_epoch)
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{first} Lower --batch_size or --eval_batch_size; the run goes on from its last epoch"
        ) from error
    best = "no finite WER" if result["best_wer"] is None else f"best dev WER {result['best_wer']:.1%}"
    print(
        f"{result['verdict']}: {best} at epoch {result['best_epoch']} of {result['epochs']} (ended by "
        f"{result['ended']}; the best constant sentence scores {result['constant_wer']:.1%}). "
        f"Files in {arguments.output_dir}"
    )
    if arguments.json:
        print(json.dumps(result))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return run_train(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        print(
            f"error: --{first['loc'][0]} {first['input']}: {first['msg'].removeprefix('Value error, ')}",
            file=sys.stderr,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; the same command goes on at the last whole epoch", file=sys.stderr)
        return 130
    return 2


if __name__ == "__main__":
    sys.exit(main())
