"""`python -m model diagnose`: load a checkpoint, ask it, and say why it does what it does."""

from __future__ import annotations

import argparse
import textwrap
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.commands.options import add_corpus_options, corpus_config, flags
from model.commands.progress import progress_lines
from model.commands.report import as_json, columns, exit_code, finding_lines
from model.milestones import DEFAULT, lines, met, parse, written

if TYPE_CHECKING:
    from model.diagnose import Diagnosis

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    diagnose = commands.add_parser(
        "diagnose",
        help="load a checkpoint and say what is wrong with it",
        description="Load these weights, evaluate them on a split and say what they do, what their run did, and what "
        "would change that. Exit code 1 on a fatal finding.",
    )
    diagnose.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a .pt file, or the folder of a run: its last.pt"
    )
    add_corpus_options(diagnose)
    diagnose.add_argument("--split", choices=("dev", "test", "train"), default="dev", help="what to evaluate on")
    diagnose.add_argument(
        *flags("log_loss"),
        type=float,
        help="a train loss that your own log shows (nats per gloss, as CTCLoss with reduction='mean' has it), to hold "
        "against these weights; default: the last one of the run",
    )
    diagnose.add_argument(
        "--milestones", default=written(DEFAULT), help="WERs hoped for: EPOCH:WER,...,end:WER, or none"
    )
    diagnose.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to evaluate")
    diagnose.add_argument("--html", type=Path, metavar="FILE", help="write the report as one HTML page as well")
    diagnose.add_argument("--json", action="store_true", help="print one JSON object: findings and facts")
    diagnose.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from model.corpus.data import load_corpus
    from model.diagnose import diagnose, file_hash, find_checkpoint, read_for_diagnosis

    if arguments.html is not None and not arguments.html.resolve().parent.is_dir():
        raise ValueError(f"--html {arguments.html}: there is no folder {arguments.html.parent}; make it first")
    if arguments.log_loss is not None and not 0 <= arguments.log_loss < inf:
        raise ValueError(
            f"--log_loss {arguments.log_loss}: a CTC loss is a number of 0 or more; give the one of your log"
        )
    milestones = parse(arguments.milestones)  # not by argparse, which would hide why it is refused
    path, why = find_checkpoint(arguments.checkpoint)
    checkpoint = read_for_diagnosis(path)
    corpus = load_corpus(corpus_config(arguments), progress=progress_lines())
    result = diagnose(checkpoint, corpus, arguments.split, logged_loss=arguments.log_loss, device=arguments.device)
    standings = met(milestones, result.facts["wers"], result.facts["epochs_planned"])
    facts = {
        "answer": result.answer,
        "checkpoint": str(path),
        "chosen": why,
        "sha256": file_hash(path),
        **result.facts,
        "milestones": lines(standings),
    }
    if arguments.html is not None:
        write_page(arguments.html, facts, result)
    if arguments.json:
        print(as_json(result.findings, facts))
    else:
        print("\n".join(report_lines(facts, result)))
    return exit_code(result.findings)


def write_page(file: Path, facts: dict[str, Any], result: Diagnosis) -> None:
    """The report as one HTML file."""
    from model.diagnosis_tables import tables
    from model.floors import Floors
    from model.page import page
    from model.run_plots import run_pictures

    title = f"Diagnosis of {facts['run']}, epoch {facts['epoch']}"
    pictures = run_pictures(result.epochs, Floors(**facts["floors"]))
    text = page(title, result.answer, result.findings, tables(facts), pictures)
    file.write_text(text, encoding="utf-8", newline="\n")


def report_lines(facts: dict[str, Any], result: Diagnosis) -> list[str]:
    """The report for a terminal: the answer, the findings worst first, the facts."""
    from model.corpus.tables import as_lines
    from model.diagnosis_tables import tables

    lines = [*textwrap.wrap(result.answer, columns()), "", *(finding_lines(result.findings) or ["No findings."])]
    for table in tables(facts):
        lines.append("")
        if len(table.header) < 3:
            lines += [*as_lines(table), *([f"  {table.note}"] if table.note else [])]
            continue
        lines.append(table.title)
        for name, *cells in table.rows:  # sentences, too long to stand side by side
            lines += [
                f"  {name}",
                *(f"    {head:12}{cell}" for head, cell in zip(table.header[1:], cells, strict=True)),
            ]
    return lines
