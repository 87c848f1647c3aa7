"""`python -m model pack`: a corpus folder into one memory-mapped file, and such a file held against its digests."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.commands.options import add_corpus_options, corpus_config, flags
from model.commands.progress import progress_lines
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.corpus.normalised import add_normalised, size_of
from model.corpus.pack import Derive, Dtype, pack, verify
from model.corpus.packed import Packed

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "pack",
        help="pack a corpus folder into one file that training maps into memory",
        description="Pack a corpus folder into OUT, a folder with one memory-mapped file of features, which every "
        "command takes for the corpus. Stopped, it goes on where it was when run again.",
    )
    add_corpus_options(parser, positional=True, normalise=False)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", help="folder of the packed corpus, not yet there")
    parser.add_argument(
        "--dtype",
        choices=typing.get_args(Dtype),
        default="auto",
        help="auto changes no value; float16 and float32 round where they must, and say how much (default: auto)",
    )
    parser.add_argument(
        "--derive",
        choices=typing.get_args(Derive),
        default="auto",
        help="of 6516 dimensions store only the 1629 landmarks, if the rest follows from them exactly (default: auto)",
    )
    parser.add_argument(
        *flags("drop_constant"), action="store_true", help="leave out dimensions that are constant over train"
    )
    parser.add_argument(
        "--normalised",
        action="store_true",
        help="store the normalised features as well, which training then copies instead of computing them: 4 times "
        "the size of derived ones",
    )
    parser.add_argument(
        "--verify", action="store_true", help="CORPUS is a packed corpus: read all of it, hold it against its digests"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object; all else goes to stderr")
    parser.set_defaults(run=run, goes_on=True)


def run(arguments: argparse.Namespace) -> int:
    out = sys.stderr if arguments.json else sys.stdout
    if arguments.verify:
        if arguments.out is not None:
            raise ValueError(f"--verify takes one packed corpus, so leave {arguments.out} out")
        if arguments.normalised:
            raise ValueError("--verify writes nothing, so leave --normalised out")
        packed = verify(arguments.data_dir, progress_lines())
        result = _result(packed, load_corpus(CorpusConfig(path=packed.path)))
        print(f"{arguments.data_dir}: all {_size(result)} are what was packed", file=out)
    else:
        if arguments.out is None:
            raise ValueError("name OUT, the folder of the packed corpus, or --verify to read one again")
        packed = pack(
            corpus_config(arguments),
            arguments.out,
            dtype=arguments.dtype,
            derive=arguments.derive,
            drop_constant=arguments.drop_constant,
            progress=progress_lines(),
            say=lambda text: print(f"pack: {text}", file=sys.stderr, flush=True),
        )
        if arguments.normalised:
            add_normalised(packed, progress_lines())
        corpus = load_corpus(CorpusConfig(path=packed.path))  # shows that it loads, with every rule of corpora
        result = _result(packed, corpus)
        for note in corpus.notes:
            print(f"corpus: {note}", file=out)
        print(f"{arguments.out}: {_size(result)}; {_how(packed)}", file=out)
        if result["dropped"]:
            print(f"dropped, constant over train: {', '.join(result['dropped'].values())}", file=out)
    if arguments.json:
        print(json.dumps(result))
    return 0


def _result(packed: Packed, corpus: Corpus) -> dict[str, Any]:
    files = packed.stored.files
    return {
        "path": str(packed.path),
        "hash": corpus.hash,
        "vocabulary_hash": corpus.vocabulary.hash,
        "recordings": {split: len(of) for split, of in files.items()},
        "frames": sum(file.frames for of in files.values() for file in of.values()),
        "width": corpus.width,
        "dtype": packed.manifest.dtype,
        "derived": packed.manifest.derived,
        "not_derived": packed.manifest.not_derived,
        "dropped": packed.manifest.dropped,
        "lost": packed.manifest.lost,
        "bytes": sum(stored.bytes for stored in packed.manifest.files.values()),
        "normalised_bytes": size_of(packed.path),
        "notes": list(corpus.notes),
    }


def _size(result: dict[str, Any]) -> str:
    return f"{sum(result['recordings'].values())} recordings, {result['frames']} frames, {result['bytes'] / 1e6:.1f} MB"


def _how(packed: Packed) -> str:
    name = {"<f2": "float16", "<f4": "float32"}[packed.manifest.dtype]
    columns = packed.arrays.features.shape[1]
    how = f"{columns} of {packed.manifest.width} dimensions stored as {name}"
    how = f"{how}, motion and copy derived from them" if packed.manifest.derived else how
    size = size_of(packed.path)
    return how if size is None else f"{how}; normalised beside them, {size / 1e6:.1f} MB"
