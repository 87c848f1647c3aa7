"""A stand-in for features that are not extracted yet: real annotations, generated signing at the same lengths.

With it everything can be tried at its real size: vocabulary, feasibility, memory, time. Only what a network learns from
it says nothing about the real recordings.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from model.corpus.annotations import SPLITS, CorpusError, Row, _find_csv, _read_csv
from model.corpus.synthetic import (
    GeneratedConfig,
    Progress,
    Sentence,
    claim,
    identity_of,
    make_glosses,
    make_signer,
    sentence_rng,
    write_split,
)
from model.corpus.vocabulary import FILTERS


class Layout(NamedTuple):
    """Where a corpus keeps its features and its CSVs, below its folder."""

    features: PurePosixPath
    annotations: PurePosixPath


LAYOUTS: Mapping[str, Layout] = {
    "corpus": Layout(PurePosixPath("features"), PurePosixPath("annotations")),
    "phoenix": Layout(
        PurePosixPath("data/teacher_features/mediapipe_full"),
        PurePosixPath("data/raw_data/phoenix-2014-signerindependent-SI5/annotations/manual"),
    ),
}
"""Named layouts. `phoenix` is that of the PHOENIX 2014 SI5 release beside a folder of extracted features."""

FROM_ANNOTATIONS = ("train", "dev", "test", "glosses", "signers")
"""Fields of `GeneratedConfig` that a stand-in takes from the annotations instead."""


@dataclass(frozen=True)
class _Table:
    csv: Path
    content: bytes
    rows: list[Row]
    frames: list[int | None]


def generate_like(
    annotations: Path,
    folder: Path,
    config: GeneratedConfig,
    *,
    filter_name: str = "none",
    layout: str = "corpus",
    limit: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write features for the sentences of these CSVs, and the CSVs with them; returns the folder of the splits.

    Each word that the filter keeps has its own motion, each signer its own body. A column num_frames gives a
    sentence's length, else signing it does; a sentence without glosses is a signer at rest. Sequences that an
    interrupted call left there are kept. `limit` takes the first sentences of each split only; raised, it goes on.

    Raises:
        CorpusError: the annotations break a rule.
        ValueError: no such filter or layout, a limit below 1, or `folder` holds something else.
    """
    for name, known, kind in ((filter_name, FILTERS, "filter"), (layout, LAYOUTS, "layout")):
        if name not in known:
            raise ValueError(f"{name!r} is no {kind}; use one of {', '.join(known)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it counts sentences of each split, so give 1 or more")
    if not annotations.is_dir():
        raise CorpusError(f"{annotations}: there is no such folder; name the one that holds train*.csv")
    tables = {split: _read(file) for split in SPLITS if (file := _find_csv(annotations, split)) is not None}
    if "train" not in tables:
        raise CorpusError(f"{annotations}: holds no train*.csv; name the folder of the annotation CSVs")
    keep = FILTERS[filter_name]
    words = {split: [list(filter(keep, row.annotation.split())) for row in t.rows] for split, t in tables.items()}
    number = {word: i for i, word in enumerate(dict.fromkeys(w for split in words.values() for s in split for w in s))}
    signers = sorted({row.signer for table in tables.values() for row in table.rows})
    settings = config.model_dump(exclude=set(FROM_ANNOTATIONS))
    settings["annotations"] = {split: sha256(table.content).hexdigest() for split, table in tables.items()}
    claim(folder, identity_of({**settings, "filter": filter_name, "layout": layout}))

    motions = make_glosses(len(number), config)
    bodies = [make_signer(config, i) for i in range(len(signers))]
    places = LAYOUTS[layout]
    (folder / places.annotations).mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        rows = list(zip(table.rows, words[split], table.frames, strict=True))[:limit]
        sentences = [
            Sentence(
                row.id,
                [number[word] for word in said],
                signers.index(row.signer),
                sentence_rng(config, SPLITS.index(split), i),
                frames,
            )
            for i, (row, said, frames) in enumerate(rows)
        ]
        write_split(folder / places.features / split, sentences, motions, bodies, config, progress)
        lines = [line for line in table.content.splitlines(keepends=True) if line.strip()]
        (folder / places.annotations / table.csv.name).write_bytes(b"".join(lines[: len(rows) + 1]))
    return folder / places.features


def _read(file: Path) -> _Table:
    rows = _read_csv(file)
    content = file.read_bytes()
    frames: list[int | None] = []
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header, *table = (cells for cells in csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE) if cells)
    names = [name.strip() for name in header]
    for row, cells in zip(rows, table, strict=True):
        said = dict(zip(names, cells, strict=True)).get("num_frames", "").strip()
        if said and (not said.isdecimal() or int(said) < 1):
            raise CorpusError(f"{file}: {row.id} has num_frames {said!r}; it counts frames, so mend or delete it")
        frames.append(int(said) if said else None)
    return _Table(file, content, rows, frames)
