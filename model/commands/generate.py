"""`python -m model generate`: a generated corpus, of its own or at the lengths of real annotations."""

from __future__ import annotations

import argparse
import json
import sys
import time
import typing
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from model.commands.options import flags
from model.commands.progress import progress_lines
from model.corpus.stand_in import FROM_ANNOTATIONS, LAYOUTS, generate_like
from model.corpus.synthetic import GeneratedConfig, generate_at

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_WITH_LIKE = ("filter", "layout", "limit")


def add(commands: Commands) -> None:
    """Each field of `GeneratedConfig` is an option."""
    generate = commands.add_parser(
        "generate",
        help="write a generated corpus, at the lengths of real annotations if wanted",
        description="Write a generated corpus. Run again with the same options, it goes on where it was.",
        argument_default=argparse.SUPPRESS,  # so that it is known what was given
    )
    generate.add_argument("out", metavar="OUT", type=Path, help="the corpus folder: new, empty, or begun before")
    group = generate.add_argument_group("at the lengths of real annotations")
    group.add_argument(
        *flags("like"),
        metavar="ANNOTATIONS",
        type=Path,
        help="folder of annotation CSVs: features for their sentences and signers, as long as the column num_frames "
        "says where there is one; the CSVs go with them",
    )
    group.add_argument("--filter", help="which words are glosses and have a motion: none, phoenix-si5 (default: none)")
    group.add_argument(
        "--layout",
        choices=tuple(LAYOUTS),
        help=f"where things lie below OUT: corpus: {', '.join(map(str, LAYOUTS['corpus']))}; "
        f"phoenix: {', '.join(map(str, LAYOUTS['phoenix']))} (default: corpus)",
    )
    group.add_argument("--limit", type=int, help="the first sentences of each split only (default: all)")
    group = generate.add_argument_group("what to generate")
    for name, field in GeneratedConfig.model_fields.items():
        choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else None
        group.add_argument(
            *flags(name),
            dest=name,
            type=int if choices else field.annotation,  # type: ignore[arg-type]
            choices=choices,
            help=f"{field.description} (default: {field.default})",
        )
    generate.add_argument(
        "--json", action="store_true", default=False, help="print one JSON object; all else goes to stderr"
    )
    generate.set_defaults(run=run, goes_on=True)


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    config = GeneratedConfig.model_validate({k: v for k, v in given.items() if k in GeneratedConfig.model_fields})
    began, there = time.monotonic(), len(_sequences(arguments.out))
    if "like" not in given:
        for name in _WITH_LIKE:
            if name in given:
                raise ValueError(f"--{name} is for a corpus at given annotations; name their folder with --like")
        generate_at(config, arguments.out, progress_lines())
        where = arguments.out
    else:
        for name in FROM_ANNOTATIONS:
            if name in given:
                raise ValueError(f"--{name} follows from the annotations of --like; leave it out")
        where = generate_like(
            arguments.like,
            arguments.out,
            config,
            filter_name=given.get("filter", "none"),
            layout=given.get("layout", "corpus"),
            limit=given.get("limit"),
            progress=progress_lines(),
        )
    files = _sequences(arguments.out)
    size = sum(file.stat().st_size for file in files)
    how = f"{len(files) - there} of them written in {time.monotonic() - began:.0f} s" if len(files) > there else ""
    print(
        f"{where}: {len(files)} sequences, {size / 1e6:.1f} MB; {how or 'all of them were there already'}",
        file=sys.stderr if arguments.json else sys.stdout,
    )
    if arguments.json:
        splits = Counter(file.parent.name for file in files)
        written = len(files) - there
        print(json.dumps({"path": str(where), "sequences": splits, "written": written, "bytes": size}))
    return 0


def _sequences(out: Path) -> list[Path]:
    """Those of the generated corpus there; none where something else may lie."""
    return list(out.rglob("*.npz")) if (out / "generated.json").is_file() else []
