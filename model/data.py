"""The corpus folder: one npz a sequence and one PHOENIX CSV a split, checked, normalised and batched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.annotations import MISSING_SHARE, SPLITS, CorpusError, Listing, Row, list_split, locate, some
from model.features import Modality, Normalisation, modalities_of, parts_of, read_features
from model.scan import Progress, cached_scan, constant_dimensions, content_hash, missing_shares
from model.vocabulary import FILTERS, Vocabulary, build_vocabulary

RESIDENT_BYTES = 1 << 30
"""A corpus below this size (float32) stays in memory once read; a larger one is read from its files every time."""
"""More ids without features, or more words of train out of the vocabulary, than this share stop the load."""
INFEASIBLE_SHARE = 0.5


class CorpusConfig(BaseModel):
    """Where a corpus lies and how its annotation is read.

    Raises:
        pydantic.ValidationError: an unknown field, an unknown filter, or a modality without columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="folder that holds features/ and annotations/, or train/ dev/ test/")
    annotations: Path | None = Field(None, description="folder of the CSVs (default: looked for beside the features)")
    vocabulary: Path | None = Field(None, description="vocabulary file (default: built from train)")
    filter: str = Field("none", description=f"which words are glosses: {', '.join(FILTERS)}")
    modalities: dict[str, int] | None = Field(None, description="blocks of the feature vector: name to width")

    @field_validator("filter")
    @classmethod
    def _known_filter(cls, name: str) -> str:
        if name not in FILTERS:
            raise ValueError(f"{name!r} is no filter; use one of {', '.join(FILTERS)}")
        return name

    @field_validator("modalities")
    @classmethod
    def _positive_widths(cls, modalities: dict[str, int] | None) -> dict[str, int] | None:
        if modalities is not None and (not modalities or min(modalities.values()) < 1):
            raise ValueError(f"{modalities} has a block without columns; give every modality a width of at least 1")
        return modalities


@dataclass(frozen=True, eq=False)
class Split:
    """The sentences of one split that take part, in the order of the CSV."""

    name: str
    ids: tuple[str, ...]
    signers: tuple[str, ...]
    lengths: NDArray[np.int64]
    """Frames of each sequence (N,)."""
    targets: tuple[NDArray[np.int64], ...]
    """Class indices; words out of the vocabulary are dropped, the blank never occurs."""
    references: tuple[str, ...]
    """Filtered annotation, words joined by one space; a word out of the vocabulary stays: it is an error to count."""
    feasible: NDArray[np.bool_]
    """Whether an alignment fits: T // stride >= glosses + adjacent repeats, and at least one gloss is known.

    All true in train; elsewhere the others count for WER but not for the loss.
    """
    files: tuple[Path, ...]
    normalisation: Normalisation
    resident: dict[int, NDArray[np.float32]] | None = field(repr=False)
    """Sequences read so far; None where the corpus is too large to keep."""

    def __len__(self) -> int:
        return len(self.ids)

    def features(self, i: int) -> NDArray[np.float32]:
        """Normalised features (T, D) of sequence i, read-only.

        Raises:
            CorpusError: the file has become unreadable, or has changed since the corpus was checked.
        """
        if self.resident is not None and i in self.resident:
            return self.resident[i]
        x = self.normalisation(*read_features(self.files[i]))
        if x.shape != (self.lengths[i], len(self.normalisation.mean)):
            raise CorpusError(f"{self.files[i]}: is {x.shape} now, but was checked otherwise; load the corpus again")
        x.flags.writeable = False
        if self.resident is not None:
            self.resident[i] = x
        return x


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus that was read once from end to end and keeps every rule."""

    name: str
    folder: Path
    """Holds train/ dev/ test/."""
    annotations: Path
    vocabulary: Vocabulary
    modalities: tuple[Modality, ...]
    width: int
    """Columns of the features (D)."""
    train: Split
    dev: Split
    test: Split | None
    hash: str
    """SHA-256 of the features and annotations of all splits (hex); neither paths nor times count."""
    notes: tuple[str, ...]
    """What was dropped, excluded or missing, a sentence each."""
    facts: dict[str, Any]
    """The numbers behind the notes, as JSON types."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences padded with zeros, and their targets laid end to end, as CTC loss takes them."""

    features: NDArray[np.float32]
    """(B, T, D), T the longest of the batch."""
    lengths: NDArray[np.int64]
    """Frames (B,)."""
    targets: NDArray[np.int64]
    """Class indices (sum of target_lengths,)."""
    target_lengths: NDArray[np.int64]
    """Glosses (B,)."""
    indices: NDArray[np.int64]
    """Which sequences of the split (B,)."""


def epoch_order(n: int, data_seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of n training sequences in an epoch: a permutation, and a function of the arguments alone."""
    # Raw bits of a named bit generator, unlike Generator.permutation, are the same in every numpy release.
    bits = np.random.PCG64(np.random.SeedSequence([data_seed, epoch]))
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int64)


def make_batch(split: Split, indices: Iterable[int]) -> Batch:
    """The sequences at these indices as one batch.

    Raises:
        CorpusError: see `Split.features`.
    """
    rows = [int(i) for i in indices]
    sequences = [split.features(i) for i in rows]
    targets = [split.targets[i] for i in rows]
    features = np.zeros((len(rows), max(map(len, sequences)), sequences[0].shape[1]), dtype=np.float32)
    for padded, sequence in zip(features, sequences, strict=True):
        padded[: len(sequence)] = sequence
    return Batch(
        features=features,
        lengths=np.array([len(x) for x in sequences], dtype=np.int64),
        targets=np.concatenate(targets),
        target_lengths=np.array([len(t) for t in targets], dtype=np.int64),
        indices=np.array(rows, dtype=np.int64),
    )


def load_corpus(
    config: CorpusConfig, *, stride: int = 4, cache: Path | None = None, progress: Progress | None = None
) -> Corpus:
    """Check a corpus from end to end and make it ready to train on.

    Args:
        stride: input frames per output frame of the model; decides which targets an alignment fits.
        cache: folder where the result of the pass over all files is kept. It is used again while names, sizes and
            times of the files stay the same; without it every call reads every file.
        progress: called after each file of that pass.

    Raises:
        CorpusError: a rule is broken; one line names file, value, rule and way out.
        ValueError: the vocabulary file is malformed, or stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}; it counts input frames per output frame, so give 1 or more")
    folder, annotations = locate(config.path, config.annotations)
    listings = [listing for name in SPLITS if (listing := list_split(name, folder, annotations)) is not None]
    words = {s.name: [_glosses(row, config.filter) for row in s.rows] for s in listings}
    if config.vocabulary is None:
        vocabulary = build_vocabulary(words["train"])
    else:
        vocabulary = Vocabulary.from_file(config.vocabulary)
        _check_vocabulary(vocabulary, config, listings[0])
    if len(vocabulary) == 1:
        raise CorpusError(
            f"{listings[0].csv}: holds no gloss after the filter {config.filter!r}; choose another filter"
        )

    # Checked on one file, before the pass over all of them.
    modalities = modalities_of(read_features(listings[0].first)[0].shape[1], config.modalities)
    scan = cached_scan(listings, folder, cache, progress)
    parts = parts_of(scan.width)
    constant = constant_dimensions(scan, parts)
    scale = np.divide(1.0, scan.std, out=np.zeros_like(scan.std), where=~constant)
    normalisation = Normalisation(parts, scan.mean, scale)
    size = 4 * scan.width * sum(int(scan.lengths[s.name].sum()) for s in listings)

    notes: list[str] = []
    facts: dict[str, Any] = {
        "width": scan.width,
        "classes": len(vocabulary),
        "bytes": size,
        "constant_dimensions": np.flatnonzero(constant).tolist(),
        "missing": missing_shares(scan, parts),
        "splits": {},
    }
    splits: dict[str, Split] = {}
    for s in listings:
        splits[s.name], facts["splits"][s.name] = _make_split(
            s, words[s.name], scan.lengths[s.name], vocabulary, stride, normalisation, keep=size < RESIDENT_BYTES
        )
        notes += _notes(s, facts["splits"][s.name], stride)
    if "test" not in splits:
        notes.append("No test split, which is optional (a CSV and a folder of features would make one).")
    if unused := set(vocabulary.glosses[1:]).difference(*words["train"]):
        notes.append(f"{len(unused)} of {len(vocabulary) - 1} glosses of the vocabulary never occur in train.")
    if constant.any():
        notes.append(f"{constant.sum()} of {scan.width} dimensions are constant over train and read as zero.")
    notes += [
        f"The {part} is missing in {share:.0%} of the train frames."
        for part, share in facts["missing"].items()
        if share >= 0.01
    ]
    return Corpus(
        name=config.path.resolve().name,
        folder=folder,
        annotations=annotations,
        vocabulary=vocabulary,
        modalities=modalities,
        width=scan.width,
        train=splits["train"],
        dev=splits["dev"],
        test=splits.get("test"),
        hash=content_hash(scan.digest, [(s.name, [list(r) for r in s.rows]) for s in listings]),
        notes=tuple(notes),
        facts=facts,
    )


def _glosses(row: Row, filter_name: str) -> list[str]:
    return list(filter(FILTERS[filter_name], row.annotation.split()))


def _oov_share(vocabulary: Vocabulary, rows: Sequence[Row], filter_name: str) -> tuple[float, list[str]]:
    words = [word for row in rows for word in _glosses(row, filter_name)]
    oov = vocabulary.oov(words)
    return len(oov) / max(len(words), 1), oov


def _check_vocabulary(vocabulary: Vocabulary, config: CorpusConfig, train: Listing) -> None:
    share, oov = _oov_share(vocabulary, train.rows, config.filter)
    if share <= MISSING_SHARE:
        return
    fitting = [name for name in FILTERS if _oov_share(vocabulary, train.rows, name)[0] <= MISSING_SHARE]
    way_out = f"set filter to {fitting[0]}" if fitting else "name the vocabulary that was made for this annotation"
    raise CorpusError(
        f"{config.vocabulary}: {share:.1%} of the words of {train.csv.name} are out of this vocabulary "
        f"({some(list(dict.fromkeys(oov)))}); at most {MISSING_SHARE:.0%} may be, so {way_out} or leave it out"
    )


def _make_split(
    listing: Listing,
    words: list[list[str]],
    lengths: NDArray[np.int64],
    vocabulary: Vocabulary,
    stride: int,
    normalisation: Normalisation,
    *,
    keep: bool,
) -> tuple[Split, dict[str, Any]]:
    """Choose the sentences that take part. Returns the split and the ids of those that do not, by reason."""
    frames = dict(zip(listing.files, lengths.tolist(), strict=True))
    out: dict[str, list[str]] = {reason: [] for reason in ("missing", "empty", "short", "unknown", "infeasible")}
    kept: list[tuple[Row, list[str], NDArray[np.int64], bool]] = []
    for row, reference in zip(listing.rows, words, strict=True):
        target = vocabulary.encode(reference)
        if row.id not in frames:
            out["missing"].append(row.id)
        elif not reference:
            out["empty"].append(row.id)
        elif frames[row.id] < stride:
            out["short"].append(row.id)
        else:
            # CTC needs a blank between two equal neighbours.
            needed = len(target) + int((target[1:] == target[:-1]).sum())
            feasible = len(target) > 0 and frames[row.id] // stride >= needed
            if not feasible:
                out["infeasible" if len(target) else "unknown"].append(row.id)
            if feasible or listing.name != "train":
                kept.append((row, reference, target, feasible))
    too_short = out["short"] + out["infeasible"]
    if listing.name == "train" and len(too_short) > INFEASIBLE_SHARE * len(frames):
        raise CorpusError(
            f"{listing.csv}: {len(too_short)} of {len(frames)} sentences are too short for their target "
            f"({some(too_short)}) at output stride {stride}: T // {stride} must reach glosses + adjacent repeats; "
            "lower the output stride, or check that these annotations belong to these features"
        )
    if not kept:
        reasons = ", ".join(f"{len(ids)} {reason}" for reason, ids in out.items() if ids)
        raise CorpusError(f"{listing.csv}: no sentence is left ({reasons}); check the filter and the features")
    references = [reference for _, reference, _, _ in kept]
    oov = [word for reference in references for word in vocabulary.oov(reference)]
    split = Split(
        name=listing.name,
        ids=tuple(row.id for row, *_ in kept),
        signers=tuple(row.signer for row, *_ in kept),
        lengths=np.array([frames[row.id] for row, *_ in kept], dtype=np.int64),
        targets=tuple(target for _, _, target, _ in kept),
        references=tuple(" ".join(reference) for reference in references),
        feasible=np.array([feasible for *_, feasible in kept]),
        files=tuple(listing.files[row.id] for row, *_ in kept),
        normalisation=normalisation,
        resident={} if keep else None,
    )
    return split, {
        "annotated": len(listing.rows),
        "sentences": len(split),
        "frames": int(split.lengths.sum()),
        "signers": len(set(split.signers)),
        "words": sum(map(len, references)),
        "oov_words": len(oov),
        "oov": list(dict.fromkeys(oov)),
        "unannotated": listing.unannotated,
        **out,
    }


def _notes(listing: Listing, facts: Mapping[str, Any], stride: int) -> list[str]:
    fate, short = "kept for WER but not for the loss", "left out of WER and loss"
    if listing.name == "train":
        fate = short = "excluded"
    sentences = {
        "missing": "have no features and are left out",
        "empty": "have an empty target after the filter and are dropped",
        "short": f"are shorter than one output frame ({stride} frames) and are {short}",
        "unknown": f"hold no word of the vocabulary and are {fate}",
        "infeasible": f"are too short for their target at output stride {stride} and are {fate}",
    }
    notes = [
        f"{listing.name}: {len(facts[reason])} of {facts['annotated']} sentences {text} ({some(facts[reason], 10)})."
        for reason, text in sentences.items()
        if facts[reason]
    ]
    if facts["unannotated"]:
        found = facts["unannotated"]
        notes.append(
            f"{listing.name}: {len(found)} feature files have no annotation and are not used ({some(found, 10)})."
        )
    if facts["oov_words"]:
        notes.append(
            f"{listing.name}: {facts['oov_words']} of {facts['words']} words "
            f"({facts['oov_words'] / facts['words']:.2%}) are out of the vocabulary ({some(facts['oov'], 10)})."
        )
    if all(row.signer == "unknown" for row in listing.rows):
        notes.append(f"{listing.name}: {listing.csv.name} names no signer; all read as unknown.")
    return notes
