"""What a corpus holds and what is wrong with it, before a run is spent on it.

A corpus that `load_corpus` refuses at its first fault is read on here: as many faults as can be are found in one go.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.corpus.annotations import SPLITS, CorpusError, Listing, Row, listing_of, locate
from model.corpus.data import CorpusConfig, Source, corpus_hash
from model.corpus.facts import (
    CorpusFacts,
    OverlapFacts,
    SplitFacts,
    entered,
    entering_facts,
    fit_facts,
    is_blank,
    overlap_facts,
    recording_facts,
    sentence_facts,
    taking_part,
    vocabulary_facts,
)
from model.corpus.faults import faults
from model.corpus.features import Modality, Part, dimension_name, modalities_of, parts_of
from model.corpus.folder import Folder
from model.corpus.packed import Packed, is_packed, open_packed
from model.corpus.scan import Progress, Scan, constant_dimensions
from model.corpus.vocabulary import FILTERS, Vocabulary, build_vocabulary
from model.findings import SEVERITIES, Finding, worst_first
from model.floors import Floats, Ints, split_floors


@dataclass(frozen=True, eq=False)
class Curves:
    """What the pictures show and the facts do not hold, as it is too long."""

    frames: Ints
    """Input frames of each train sentence (N,)."""
    needed: Ints
    """Output frames that each of them needs (N,)."""
    glosses: list[int]
    """How often train holds each gloss, the most common first."""
    entering: dict[str, tuple[Floats, Floats]]
    """Mean and deviation of each dimension as it enters the model (D,), by split."""
    constant: NDArray[np.bool_]
    """Dimensions that are constant over train (D,)."""


@dataclass(frozen=True, eq=False)
class Report:
    findings: list[Finding]
    """Worst first."""
    facts: CorpusFacts | None
    """None where there is no corpus to be read."""
    curves: Curves | None
    """None where train cannot be read."""

    @property
    def fatal(self) -> list[Finding]:
        """What speaks against a first step."""
        return [finding for finding in self.findings if finding.severity == "fatal"]

    @property
    def summary(self) -> str:
        """What it comes to, in one sentence."""
        codes = {severity: {f.code: None for f in self.findings if f.severity == severity} for severity in SEVERITIES}
        if codes["fatal"]:
            return f"Training on this corpus is impossible or pointless: {', '.join(codes['fatal'])}."
        if codes["warning"]:
            return f"This corpus can be trained on; look at {', '.join(codes['warning'])} first."
        return "This corpus can be trained on: nothing is wrong with it that can be seen before training."

    def facts_as_json(self) -> dict[str, Any]:
        """JSON types only; a number may be NaN."""
        return asdict(self.facts) if self.facts is not None else {}


def check_corpus(
    config: CorpusConfig, stride: int = 4, progress: Progress | None = None, *, cache: Path | None = None
) -> Report:
    """Read everything of a corpus and judge it.

    Args:
        stride: input frames per output frame of the model that is to be trained.
        progress: called after each file of the one pass over all of them; a packed corpus needs none.
        cache: where `load_corpus` kept what it found in this corpus, so that there is no second pass.

    Raises:
        CorpusError: with `cache`, at the first file that cannot be used.
        ValueError: stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}; it counts input frames per output frame, so give 1 or more")
    try:
        source, refused = _open(config)
    except CorpusError as error:
        return Report([_finding("not_a_corpus", error)], None, None)
    if not source.listings:
        return Report(refused, None, None)
    filter_name = config.filter or source.filter
    words = {s.name: [_words(row, filter_name) for row in s.rows] for s in source.listings}
    train = words.get("train", [])
    vocabulary, origin = _built_vocabulary(train), "train"
    if config.vocabulary is not None:
        try:
            vocabulary, origin = Vocabulary.from_file(config.vocabulary), str(config.vocabulary)
        except ValueError as error:
            refused.append(_finding("bad_vocabulary", error))
    elif source.vocabulary is not None and config.annotations is None and filter_name == source.filter:
        vocabulary, origin = source.vocabulary, "packed corpus"

    scan = source.scan(cache, progress, stop_at_fault=cache is not None)
    modalities: tuple[Modality, ...] = (Modality("features", scan.width),)
    try:
        if scan.width:
            modalities = _modalities(source, config, scan.width)
    except CorpusError as error:
        refused.append(_finding("bad_modalities", error))
    constant = np.zeros(scan.width, dtype=np.bool_)
    entering: dict[str, tuple[Floats, Floats]] = {}
    if (statistics := scan.statistics.get("train")) is not None:
        constant = constant_dimensions(statistics)
        entering = {name: entered(own, statistics, config.normalise, constant) for name, own in scan.statistics.items()}

    sentences, splits = {}, {}
    for s in source.listings:
        files = scan.files[s.name]
        frames = {i: file.frames for i, file in files.items() if not file.fault}
        sentences[s.name] = taking_part(s.name, s.rows, words[s.name], frames, vocabulary)
        splits[s.name] = SplitFacts(
            sentences=sentence_facts(s.rows, words[s.name], vocabulary),
            recordings=recording_facts(
                s.rows, words[s.name], s.npy, s.unannotated, files, scan.width, _parts(source, scan)
            ),
            fit=fit_facts(sentences[s.name], stride),
            entering=entering_facts(*entering[s.name], constant, modalities) if s.name in entering else None,
        )
    labelled = [sentences[name] for name in ("train", "dev") if name in sentences and sentences[name].ids]
    whole = not any(file.fault for files in scan.files.values() for file in files.values())
    of_vocabulary, glosses = vocabulary_facts(vocabulary, origin, filter_name, train)
    facts = CorpusFacts(
        name=config.path.resolve().name,
        packed=isinstance(source, Packed),
        stride=stride,
        normalise=config.normalise,
        width=scan.width,
        modalities={modality.name: modality.width for modality in modalities},
        constant_dimensions=_names(source, constant),
        hash=corpus_hash(scan, source.listings, config.normalise) if whole else "",
        vocabulary=of_vocabulary,
        splits=splits,
        overlaps=_overlaps(source.listings, scan, filter_name),
        floors=split_floors(labelled[0], labelled[1], len(vocabulary), stride) if len(labelled) == 2 else None,
        notes=list(source.notes),
    )
    curves = None
    if "train" in sentences:
        curves = Curves(sentences["train"].lengths, sentences["train"].needed, glosses, entering, constant)
    return Report(worst_first([*refused, *faults(facts)]), facts, curves)


REFUSED: dict[str, tuple[str, str]] = {
    "not_a_corpus": (
        "Name the folder that holds features/ and annotations/, or a packed corpus.",
        "A folder with train/ below it and a train*.csv beside it.",
    ),
    "bad_annotation": (
        "Mend or write it; nothing else of this split was looked at.",
        "One CSV a split: text in UTF-8 parted by |, with the columns id and annotation, and an id once.",
    ),
    "bad_vocabulary": (
        "Mend the file, or leave the vocabulary out: here it was built from train.",
        "One gloss a line, each once, blank first.",
    ),
    "bad_modalities": (
        "Make the widths add up, or leave the modalities out.",
        "Widths that add up to the columns of the features.",
    ),
}
"""Codes of what cannot be read at all: advice, and what would change the finding."""


def _finding(code: str, error: ValueError) -> Finding:
    advice, would_change = REFUSED[code]
    return Finding(code, "fatal", None, None, f"{error}.", advice, would_change)


def _open(config: CorpusConfig) -> tuple[Source, list[Finding]]:
    """The splits that can be read, and what is wrong with the others.

    Raises:
        CorpusError: there is no such corpus.
    """
    if is_packed(config.path):
        return open_packed(config.path, config.annotations), []
    folder, tables = locate(config.path, config.annotations)
    listings, refused = [], []
    for name in SPLITS:
        place = folder / name
        present = {p.stem: p for p in place.glob("*.npz") if not p.name.startswith(".")}
        try:
            # A folder that is not there is one that holds nothing: its sentences can be looked at all the same.
            listing = listing_of(name, tables, place, present if name != "test" or place.is_dir() else None)
        except CorpusError as error:
            refused.append(_finding("bad_annotation", error))
            continue
        if listing is not None:
            listings.append(listing)
    return Folder(folder, tables, tuple(listings)), refused


def _words(row: Row, filter_name: str) -> list[str]:
    return list(filter(FILTERS[filter_name], row.annotation.split()))


def _built_vocabulary(train: Sequence[Sequence[str]]) -> Vocabulary:
    return build_vocabulary([[word for word in sentence if not is_blank(word)] for sentence in train])


def _modalities(source: Source, config: CorpusConfig, width: int) -> tuple[Modality, ...]:
    if isinstance(source, Packed):
        return source.modalities(config.modalities)
    return modalities_of(width, config.modalities)


def _parts(source: Source, scan: Scan) -> tuple[Part, ...]:
    if isinstance(source, Packed):
        return source.parts
    return parts_of(scan.width) if scan.width else ()


def _names(source: Source, chosen: NDArray[np.bool_]) -> list[str]:
    """Dimensions in words."""
    width, columns = len(chosen), np.arange(len(chosen))
    if isinstance(source, Packed) and source.manifest.kept is not None:
        width, columns = source.manifest.width, np.flatnonzero(source.manifest.kept)
    return [dimension_name(width, int(dimension)) for dimension in columns[chosen]]


def _overlaps(listings: Sequence[Listing], scan: Scan, filter_name: str) -> dict[str, OverlapFacts]:
    said = partial(_said, filter_name)
    return {
        f"{a.name}, {b.name}": overlap_facts((a.rows, scan.files[a.name]), (b.rows, scan.files[b.name]), said)
        for a, b in itertools.combinations(listings, 2)
    }


def _said(filter_name: str, row: Row) -> str:
    return " ".join(_words(row, filter_name))
