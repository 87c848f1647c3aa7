"""`python -m model decode`: the final number of a checkpoint, greedy and by beam search."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.commands.options import add_corpus_options, corpus_config, flags
from model.commands.progress import progress_lines

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    decode = commands.add_parser(
        "decode",
        help="WER of a checkpoint by beam search, with an n-gram if wanted",
        description="Decode a split with these weights, greedily as sweeps do and by prefix beam search, and print the "
        "word errors of both.",
    )
    decode.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="a .pt file, or the folder of a run: its last.pt"
    )
    add_corpus_options(decode)
    decode.add_argument("--split", choices=("dev", "test"), default="dev", help="what to decode")
    decode.add_argument("--beam", type=int, default=16, help="prefixes kept after each frame")
    decode.add_argument(
        *flags("lm_order"),
        type=int,
        default=0,
        metavar="N",
        help="with an n-gram of the train glosses: 1, 2 or 3; 0: without",
    )
    decode.add_argument(*flags("lm_weight"), type=float, default=0.3, metavar="X", help="of the n-gram")
    decode.add_argument(*flags("length_bonus"), type=float, default=0.0, metavar="X", help="nats for each gloss")
    decode.add_argument(
        "--prune",
        type=float,
        default=-inf,
        metavar="X",
        help="in a frame leave out glosses whose log-probability is below, such as -10: faster (default: none)",
    )
    decode.add_argument(
        "--tune",
        action="store_true",
        help="choose --lm_weight and --length_bonus by the WER on dev, from a small grid",
    )
    decode.add_argument(
        "--hypotheses",
        type=Path,
        metavar="FILE",
        help="write the sentences as well: .csv, or .trn for NIST sclite, with the references beside it",
    )
    decode.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the network computes")
    decode.add_argument("--json", action="store_true", help="print one JSON object; all else goes to stderr")
    decode.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from model.checkpoint import read
    from model.corpus.data import load_corpus
    from model.decoding import WRITERS, Search, check_tuning, decode_split
    from model.diagnose import file_hash, find_checkpoint, fitting
    from model.findings import finite

    search = Search(
        arguments.beam, arguments.lm_order, arguments.lm_weight, arguments.length_bonus, prune=arguments.prune
    )
    file = arguments.hypotheses
    if file is not None and file.suffix not in WRITERS:
        raise ValueError(f"--hypotheses {file}: is written as {' or '.join(WRITERS)}; give it one of these endings")
    if file is not None and not file.resolve().parent.is_dir():
        raise ValueError(f"--hypotheses {file}: there is no folder {file.parent}; make it first")
    if arguments.tune:
        check_tuning(arguments.split)
    path, why = find_checkpoint(arguments.checkpoint)
    checkpoint = read(path)
    corpus, other = fitting(load_corpus(corpus_config(arguments), progress=progress_lines()), checkpoint)
    split = corpus.test if arguments.split == "test" else corpus.dev
    if split is None:
        raise ValueError(f"{corpus.folder}: has no split 'test'; choose another --split")
    if other is not None:
        print(f"{other.severity}: {other.evidence} {other.advice}", file=sys.stderr)
    decoded = decode_split(
        checkpoint, corpus, split, search, tune=arguments.tune, device=arguments.device, progress=progress_lines()
    )
    if file is not None:
        WRITERS[file.suffix](file, split, decoded)
    facts: dict[str, Any] = {
        "checkpoint": str(path),
        "chosen": why,
        "sha256": file_hash(path),
        "run": checkpoint.run,
        "epoch": checkpoint.reports[-1].epoch if checkpoint.reports else 0,
        "corpus_hash": corpus.hash,
        "split": split.name,
        "sentences": len(split),
        "words": sum(len(reference.split()) for reference in split.references),
        "greedy": asdict(decoded.greedy),
        "beam": asdict(decoded.beam),
        "search": asdict(decoded.search),
        "tries": [asdict(each) for each in decoded.tries],
        "ms_per_sentence": 1e3 * decoded.seconds,
        "hypotheses": None if file is None else str(file),
    }
    if arguments.json:
        print(json.dumps(finite(facts), allow_nan=False))
    else:
        print("\n".join(report_lines(facts)))
    return 0


def report_lines(facts: dict[str, Any]) -> list[str]:
    """The report for a terminal."""
    search, tries = facts["search"], facts["tries"]
    beam = f"beam {search['beam']}"
    if search["lm_order"] and search["lm_weight"]:
        beam += f", {search['lm_order']}-gram at weight {search['lm_weight']:g}"
    if search["length_bonus"]:
        beam += f", length bonus {search['length_bonus']:g}"
    width = max(len(beam), 10)
    lines = [
        f"{facts['run']}, epoch {facts['epoch']} ({facts['chosen']}); {facts['split']}: "
        f"{facts['sentences']} sentences, {facts['words']} words",
        "",
        f"{'':{width}}     WER     sub     del     ins",
        *(
            f"{name:{width}} " + " ".join(f"{value:7.1%}" for value in facts[key].values())
            for name, key in (("greedy", "greedy"), (beam, "beam"))
        ),
        "",
        f"The search took {facts['ms_per_sentence']:.1f} ms a sentence.",
    ]
    if tries:
        lines += [
            f"Weight and bonus were chosen on {facts['split']}, the lowest WER of {len(tries)}: as the best of so many "
            "it flatters. The number to report is of test, decoded once:",
            f"  --split test --beam {search['beam']} --lm_order {search['lm_order']} "
            f"--lm_weight {search['lm_weight']:g} --length_bonus {search['length_bonus']:g}",
        ]
    if facts["hypotheses"] is not None:
        lines.append(f"Sentences in {facts['hypotheses']}.")
    return lines
