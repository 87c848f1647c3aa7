"""`python -m model check`: what is wrong with a corpus, before a run is spent on it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model.commands.options import add_corpus_options, corpus_config, flags
from model.commands.progress import progress_lines
from model.commands.report import as_json, exit_code, finding_lines
from model.types import TrainingConfig

if TYPE_CHECKING:
    from model.corpus.check import Report

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Where the corpus lies, the model's stride, and how the report is wanted."""
    check = commands.add_parser(
        "check",
        help="what is wrong with a corpus, before a run is spent on it",
        description="Read a corpus from end to end and say what is wrong with it, worst first, and what it holds. A "
        "packed corpus needs no reading. Nothing is written but the page that --html asks for. Exit code 1 if "
        "training on it is impossible or pointless.",
    )
    add_corpus_options(check, positional=True)
    check.add_argument(
        *flags("stride"),
        type=int,
        default=TrainingConfig().output_stride,
        help="input frames per output frame of the model: its output_stride",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object: findings and facts")
    check.add_argument("--html", type=Path, metavar="FILE", help="also write the report, with pictures, as one page")
    check.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check, print, and write the page.

    Raises:
        ValueError: an option makes no sense.
        OSError: the page cannot be written.
    """
    from model.corpus.check import check_corpus

    if arguments.html is not None and not arguments.html.resolve().parent.is_dir():  # before a pass of minutes
        raise ValueError(f"--html {arguments.html}: there is no folder {arguments.html.parent}; make it first")
    report = check_corpus(corpus_config(arguments), arguments.stride, progress_lines())
    if arguments.html is not None:
        write_page(report, arguments.data_dir.resolve().name, arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    if arguments.json:
        print(as_json(report.findings, report.facts_as_json()))
    else:
        print("\n".join(report_lines(report, str(arguments.data_dir))))
    return exit_code(report.findings)


def report_lines(report: Report, name: str) -> list[str]:
    """The report for a terminal: findings worst first, facts, and last what it comes to."""
    from model.corpus.tables import as_lines, tables

    lines = finding_lines(report.findings)
    for table in tables(report.facts) if report.facts is not None else []:
        lines += ["", *as_lines(table)]
    return [*lines, "", f"{name}: {report.summary}"]


def write_page(report: Report, name: str, file: Path) -> None:
    """The report as one HTML file."""
    from model.corpus.tables import tables
    from model.page import page
    from model.plots import corpus_pictures

    facts = tables(report.facts) if report.facts is not None else []
    html = page(f"Check of {name}", report.summary, report.findings, facts, corpus_pictures(report))
    file.write_text(html, encoding="utf-8", newline="\n")
