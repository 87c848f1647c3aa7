"""Options that several commands have, and how they are written."""

from __future__ import annotations

import argparse
import typing
from pathlib import Path

from model.corpus.data import CorpusConfig

ALIASES = {"patience": ["--early_stopping_patience", "--early-stopping-patience"], "data_dir": ["--data"]}
"""Names from the user's own script, and short ones."""


def flags(name: str) -> list[str]:
    """The ways to write an option: with underscores as the field is named, or with dashes."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"])) + ALIASES.get(name, [])


class HelpFormatter(argparse.HelpFormatter):
    """Ends the help of an option in its default, where that is a value and its help does not say it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        said = "(default:" in text or action.default in (None, argparse.SUPPRESS) or action.default is False
        return text if said else f"{text} (default: %(default)s)"


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad option in one line: argparse would print all forty options above it."""

    def __init__(self, *args: typing.Any, **options: typing.Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help lists the options\n")


def add_corpus_options(parser: argparse.ArgumentParser, *, positional: bool = False, normalise: bool = True) -> None:
    """Where the corpus lies and how it is read: `--data_dir`, or the first argument.

    Args:
        normalise: with `--no_normalise`; a command that looks at no normalised feature goes without.
    """
    group = parser.add_argument_group("corpus")
    where = "folder with features/ and annotations/, or with train/ dev/ test/, or a packed corpus"
    if positional:
        group.add_argument("data_dir", metavar="CORPUS", type=Path, help=where)
    else:
        group.add_argument(*flags("data_dir"), type=Path, required=True, default=argparse.SUPPRESS, help=where)
    group.add_argument("--annotations", type=Path, help="folder with the annotation CSVs, where not found beside it")
    group.add_argument(
        "--vocabulary", type=Path, help="vocabulary file, a gloss a line, blank first (default: built from train)"
    )
    group.add_argument(
        "--filter", help="named filter of the annotations: none, phoenix-si5 (default: a packed corpus' own, else none)"
    )
    group.add_argument("--modalities", metavar="NAME=WIDTH,...", help="split of the feature vector, in order")
    if normalise:
        group.add_argument(
            *flags("no_normalise"),
            action="store_true",
            help="features enter the model as stored, not zero-mean, unit-variance",
        )


def corpus_config(arguments: argparse.Namespace) -> CorpusConfig:
    """
    Raises:
        ValueError: `--modalities` is not written NAME=WIDTH,...
    """
    modalities = None
    if arguments.modalities:
        pairs = [part.partition("=") for part in arguments.modalities.split(",")]
        if not all(name and width.isdigit() for name, _, width in pairs):
            raise ValueError(f"--modalities {arguments.modalities}: write NAME=WIDTH,NAME=WIDTH")
        modalities = {name: int(width) for name, _, width in pairs}
        if len(modalities) < len(pairs):
            raise ValueError(f"--modalities {arguments.modalities}: a name stands twice; each block needs its own")
    return CorpusConfig(
        path=arguments.data_dir,
        annotations=arguments.annotations,
        vocabulary=arguments.vocabulary,
        filter=arguments.filter,
        modalities=modalities,
        normalise=not getattr(arguments, "no_normalise", False),
    )
