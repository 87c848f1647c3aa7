"""A corpus, as a folder or packed: its sentences checked against their annotation, normalised and batched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.corpus.annotations import MISSING_SHARE, CorpusError, Listing, Row, check_coverage, some
from model.corpus.features import Modality, Normalisation
from model.corpus.folder import Folder, FolderReader, open_folder
from model.corpus.normalised import holds_normalised
from model.corpus.packed import Packed, PackedReader, is_packed, open_packed
from model.corpus.scan import Progress, Scan, constant_dimensions, content_hash, missing_shares, normalisation_of
from model.corpus.vocabulary import BLANK, FILTERS, MARKERS, Vocabulary, build_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

Source: TypeAlias = Folder | Packed
Reader: TypeAlias = FolderReader | PackedReader

RESIDENT_BYTES = 1 << 30
"""A corpus below this size (float32) stays in memory once read; a larger one is read from disk every time."""
INFEASIBLE_SHARE = 0.01
"""More train sentences than this share without an alignment at the model's stride stop a run: of so many the model
would never hear, and annotations that belong to other features look just like that."""

MARKERS_SHARE = 0.1
"""From this share of train's words on being the markers of a filter, it is named. 0.19 of SI5's words are; English
speech has 0.05, as IX stands in SIX."""


class CorpusConfig(BaseModel):
    """Where a corpus lies and how its annotation is read.

    Raises:
        pydantic.ValidationError: an unknown field, an unknown filter, or a modality without columns.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path = Field(description="folder that holds features/ and annotations/, or train/ dev/ test/, or a pack")
    annotations: Path | None = Field(None, description="folder of the CSVs (default: looked for beside the features)")
    vocabulary: Path | None = Field(None, description="vocabulary file (default: built from train)")
    filter: str | None = Field(
        None, description=f"which words are glosses: {', '.join(FILTERS)} (default: a packed corpus' own, else none)"
    )
    modalities: dict[str, int] | None = Field(None, description="blocks of the feature vector: name to width")
    normalise: bool = Field(True, description="zero mean and unit deviation over train; false: features as stored")

    @field_validator("filter")
    @classmethod
    def _known_filter(cls, name: str | None) -> str | None:
        if name is not None and name not in FILTERS:
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
    needed: NDArray[np.int64]
    """Output frames an alignment needs (N,): glosses + adjacent repeats, as CTC puts a blank between two equal
    neighbours; 0 where no gloss is known, and nothing can be aligned."""
    read: Reader = field(repr=False)
    """The recording of an index, as it is stored."""
    normalisation: Normalisation
    resident: dict[int, NDArray[np.float32]] | None = field(repr=False)
    """Sequences read so far; None where the corpus is too large to keep."""
    gather: Callable[[NDArray[np.int64]], Tensor | None] | None = field(default=None, repr=False)
    """The padded features (B, T, D) of some sequences where a device has them: see `model.on_device`."""

    def __len__(self) -> int:
        return len(self.ids)

    def fits(self, stride: int) -> NDArray[np.bool_]:
        """Whether an alignment fits at that many input frames per output frame (N,). Equality is enough."""
        return (self.needed > 0) & (self.lengths // stride >= self.needed)

    def features(self, i: int) -> NDArray[np.float32]:
        """Normalised features (T, D) of sequence i, read-only.

        Raises:
            CorpusError: the file has become unreadable, or has changed since the corpus was checked.
        """
        if self.resident is not None and i in self.resident:
            return self.resident[i]
        x = np.empty((int(self.lengths[i]), len(self.normalisation.mean)), dtype=np.float32)
        self.read.write(i, self.normalisation, x)
        x.flags.writeable = False
        if self.resident is not None:
            self.resident[i] = x
        return x

    def write_features(self, i: int, out: NDArray[np.float32]) -> None:
        """The same into an array (T, D) that is there."""
        if self.resident is None:
            self.read.write(i, self.normalisation, out)
        else:
            out[:] = self.features(i)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus that was read once from end to end and keeps every rule."""

    name: str
    folder: Path
    """Holds train/ dev/ test/, or is the packed corpus."""
    annotations: Path
    vocabulary: Vocabulary
    modalities: tuple[Modality, ...]
    width: int
    """Columns of the features (D)."""
    train: Split
    dev: Split
    test: Split | None
    hash: str
    """SHA-256 of the features and annotations of all splits (hex). Neither paths nor times count, nor whether they are
    packed; that features are not normalised does."""
    notes: tuple[str, ...]
    """What was dropped, excluded or missing, a sentence each."""
    facts: dict[str, Any]
    """The numbers behind the notes, as JSON types."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences padded with zeros, and their targets laid end to end, as CTC loss takes them."""

    features: NDArray[np.float32] | Tensor
    """(B, T, D), T the longest of the batch; a tensor where a device has them."""
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
    return _permutation(n, data_seed, epoch)


def _permutation(n: int, *seed: int) -> NDArray[np.int64]:
    # Raw bits of a named bit generator, unlike Generator.permutation, are the same in every numpy release.
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    return np.argsort(bits.random_raw(n), kind="stable").astype(np.int64)


def epoch_batches(
    lengths: NDArray[np.int64], batch_size: int, data_seed: int, epoch: int, length_buckets: int = 0
) -> list[NDArray[np.int64]]:
    """The batches of an epoch, as indices of training sequences: a function of the arguments alone.

    Args:
        lengths: frames of each training sequence (N,).
        length_buckets: of so many batches that follow each other the sequences are sorted by length and cut into
            batches again; then the epoch's batches come in random order. 0 and 1: they are as they were drawn.
    """
    order, bucketed = epoch_order(len(lengths), data_seed, epoch), length_buckets > 1
    if bucketed:
        pool = length_buckets * batch_size
        pools = np.array_split(order, range(pool, len(order), pool))
        # The longest first, so that a last batch of fewer sequences has the shortest: no cut has less padding.
        order = np.concatenate([each[np.argsort(-lengths[each], kind="stable")] for each in pools])
    batches = np.array_split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in _permutation(len(batches), data_seed, epoch, 1)] if bucketed else batches


def make_batch(
    split: Split, indices: Iterable[int], features_of: Callable[[int], NDArray[np.float32]] | None = None
) -> Batch:
    """The sequences at these indices as one batch.

    Args:
        features_of: the features (T, D) of an index, where they are not to be the split's own.

    Raises:
        CorpusError: see `Split.features`.
    """
    rows = [int(i) for i in indices]
    targets = [split.targets[i] for i in rows]
    given = [features_of(i) for i in rows] if features_of else None
    lengths = split.lengths[rows] if given is None else np.array([len(x) for x in given], dtype=np.int64)
    order = np.array(rows, dtype=np.int64)
    gathered = split.gather(order) if split.gather is not None and given is None else None
    return Batch(
        features=_padded(split, rows, lengths, given) if gathered is None else gathered,
        lengths=lengths,
        targets=np.concatenate(targets),
        target_lengths=np.array([len(t) for t in targets], dtype=np.int64),
        indices=order,
    )


def _padded(
    split: Split, rows: Sequence[int], lengths: NDArray[np.int64], given: Sequence[NDArray[np.float32]] | None
) -> NDArray[np.float32]:
    features = np.empty((len(rows), int(lengths.max()), len(split.normalisation.mean)), dtype=np.float32)
    for place, (i, length) in enumerate(zip(rows, lengths.tolist(), strict=True)):
        if given is None:
            split.write_features(i, features[place, :length])
        else:
            features[place, :length] = given[place]
        features[place, length:] = 0
    return features


def infeasible(split: Split, stride: int) -> list[str]:
    """The ids whose glosses have no alignment at that stride: they count for WER, never for the loss."""
    return [split.ids[i] for i in np.flatnonzero((split.needed > 0) & ~split.fits(stride))]


def check_fit(split: Split, stride: int) -> None:
    """
    Raises:
        CorpusError: more than INFEASIBLE_SHARE of the sentences have no alignment at that stride.
        ValueError: stride is below 1.
    """
    if stride < 1:
        raise ValueError(f"stride is {stride}; it counts input frames per output frame, so give 1 or more")
    ids = infeasible(split, stride)
    if len(ids) > INFEASIBLE_SHARE * len(split):
        raise CorpusError(
            f"{split.name}: {len(ids)} of {len(split)} sentences are too short for their target ({some(ids)}) at "
            f"output stride {stride}: T // {stride} must reach glosses + adjacent repeats, and at most "
            f"{INFEASIBLE_SHARE:.0%} may miss it; lower the output stride, or check that these annotations belong to "
            "these features"
        )


def fit_note(split: Split, stride: int) -> str | None:
    """A sentence on those without an alignment at that stride; None where there are none."""
    ids = infeasible(split, stride)
    if not ids:
        return None
    fate = "left out of training" if split.name == "train" else "kept for WER but not for the loss"
    return (
        f"{split.name}: {len(ids)} of {len(split)} sentences are too short for their target at output stride {stride} "
        f"and are {fate} ({some(ids, 10)})."
    )


def load_corpus(config: CorpusConfig, *, cache: Path | None = None, progress: Progress | None = None) -> Corpus:
    """Check a corpus from end to end and make it ready to train on.

    Args:
        cache: folder where the result of the pass over all files is kept. It is used again while names, sizes and
            times of the files stay the same; without it every call reads every file.
        progress: called after each file of that pass.

    Raises:
        CorpusError: a rule is broken; one line names file, value, rule and way out.
        ValueError: the vocabulary file is malformed.
    """
    source = open_source(config)
    for listing in source.listings:
        check_coverage(listing)
    annotation = read_annotation(source, config)
    modalities = source.modalities(config.modalities)  # before the pass over all files, which may take minutes
    scan = source.scan(cache, progress)
    train = scan.statistics["train"]
    constant = constant_dimensions(train)
    normalisation = normalisation_of(scan) if config.normalise else Normalisation.none(scan.width)
    ready = isinstance(source, Packed) and holds_normalised(source, normalisation)
    vocabulary = annotation.vocabulary
    frames = {s.name: sum(scan.lengths(s.name).values()) for s in source.listings}
    size = 4 * scan.width * sum(frames.values())

    notes = list(source.notes)
    facts: dict[str, Any] = {
        "width": scan.width,
        "classes": len(vocabulary),
        "bytes": size,
        "constant_dimensions": np.flatnonzero(constant).tolist(),
        "missing": missing_shares(train, frames["train"]),
        "splits": {},
    }
    splits: dict[str, Split] = {}
    for s in source.listings:
        splits[s.name], facts["splits"][s.name] = _make_split(
            source, s, annotation, scan, normalisation, keep=size < RESIDENT_BYTES and not ready, ready=ready
        )
        notes += _notes(s, facts["splits"][s.name])
    if "test" not in splits:
        notes.append("No test split, which is optional (a CSV and a folder of features would make one).")
    if note := _markers_note(annotation, len(vocabulary)):
        notes.append(note)
    if unused := set(vocabulary.glosses[1:]).difference(*annotation.words["train"]):
        notes.append(f"{len(unused)} of {len(vocabulary) - 1} glosses of the vocabulary never occur in train.")
    if constant.any() and config.normalise:
        notes.append(f"{constant.sum()} of {scan.width} dimensions are constant over train and read as zero.")
    notes += [
        f"The {part} is missing in {share:.0%} of the train frames."
        for part, share in facts["missing"].items()
        if share >= 0.01
    ]
    return Corpus(
        name=config.path.resolve().name,
        folder=source.path,
        annotations=source.annotations,
        vocabulary=vocabulary,
        modalities=modalities,
        width=scan.width,
        train=splits["train"],
        dev=splits["dev"],
        test=splits.get("test"),
        hash=corpus_hash(scan, source.listings, config.normalise),
        notes=tuple(notes),
        facts=facts,
    )


def _markers_note(annotation: Annotation, classes: int) -> str | None:
    """A hint where train is full of the markers of a filter that was not asked for."""
    if annotation.filter != "none":
        return None
    words = [word for sentence in annotation.words["train"] for word in sentence]
    for name, is_marker in MARKERS.items():
        share = sum(map(is_marker, words)) / len(words)
        kept = set(filter(FILTERS[name], words))
        if share >= MARKERS_SHARE and kept:
            return (
                f"{share:.0%} of train's words are markers to the filter {name}; with it there are {len(kept) + 1} "
                f"classes instead of {classes}."
            )
    return None


def corpus_hash(scan: Scan, listings: Sequence[Listing], normalise: bool) -> str:
    """See `Corpus.hash`."""
    rows = [(s.name, [list(row) for row in s.rows]) for s in listings]
    return content_hash(scan.digest, rows, *([] if normalise else ["as stored"]))


def open_source(config: CorpusConfig) -> Source:
    """What a corpus says before any feature is read.

    Raises:
        CorpusError: it is not there, or breaks a rule of annotations.
    """
    if is_packed(config.path):
        return open_packed(config.path, config.annotations)
    return open_folder(config.path, config.annotations)


class Annotation(NamedTuple):
    """The glosses of every sentence, and their classes."""

    filter: str
    vocabulary: Vocabulary
    words: dict[str, list[list[str]]]
    """By split; a list a row of its CSV."""


def read_annotation(source: Source, config: CorpusConfig) -> Annotation:
    """Filter the annotations and find their vocabulary: as configured, else a pack's own, else built from train.

    Raises:
        CorpusError: nothing is left, or the vocabulary does not fit.
        ValueError: the vocabulary file is malformed.
    """
    train = source.listings[0]
    filter_name = config.filter or source.filter
    words = {s.name: [_glosses(row, filter_name) for row in s.rows] for s in source.listings}
    if config.vocabulary is not None:
        vocabulary = Vocabulary.from_file(config.vocabulary)
        _check_vocabulary(vocabulary, config.vocabulary, filter_name, train)
    elif source.vocabulary is not None and config.annotations is None and filter_name == source.filter:
        vocabulary = source.vocabulary
    else:
        for row, said in zip(train.rows, words["train"], strict=True):
            if BLANK in said:
                raise CorpusError(
                    f"{train.csv}: the annotation of {row.id} has the word {BLANK}; blank is what CTC puts between "
                    "glosses, never one of them, so delete it there"
                )
        vocabulary = build_vocabulary(words["train"])
    if len(vocabulary) == 1:
        raise CorpusError(f"{train.csv}: holds no gloss after the filter {filter_name!r}; choose another filter")
    return Annotation(filter_name, vocabulary, words)


def _glosses(row: Row, filter_name: str) -> list[str]:
    return list(filter(FILTERS[filter_name], row.annotation.split()))


def _oov_share(vocabulary: Vocabulary, rows: Sequence[Row], filter_name: str) -> tuple[float, list[str]]:
    words = [word for row in rows for word in _glosses(row, filter_name)]
    oov = vocabulary.oov(words)
    return len(oov) / max(len(words), 1), oov


def _check_vocabulary(vocabulary: Vocabulary, file: Path, filter_name: str, train: Listing) -> None:
    share, oov = _oov_share(vocabulary, train.rows, filter_name)
    if share <= MISSING_SHARE:
        return
    fitting = [name for name in FILTERS if _oov_share(vocabulary, train.rows, name)[0] <= MISSING_SHARE]
    way_out = f"set filter to {fitting[0]}" if fitting else "name the vocabulary that was made for this annotation"
    raise CorpusError(
        f"{file}: {share:.1%} of the words of {train.csv.name} are out of this vocabulary "
        f"({some(list(dict.fromkeys(oov)))}); at most {MISSING_SHARE:.0%} may be, so {way_out} or leave it out"
    )


def _make_split(
    source: Source,
    listing: Listing,
    annotation: Annotation,
    scan: Scan,
    normalisation: Normalisation,
    *,
    keep: bool,
    ready: bool,
) -> tuple[Split, dict[str, Any]]:
    """Choose the sentences that take part. Returns the split and the ids of those that do not, by reason."""
    frames, vocabulary = scan.lengths(listing.name), annotation.vocabulary
    out: dict[str, list[str]] = {reason: [] for reason in ("missing", "empty", "unknown")}
    kept: list[tuple[Row, list[str], NDArray[np.int64]]] = []
    for row, reference in zip(listing.rows, annotation.words[listing.name], strict=True):
        target = vocabulary.encode(reference)
        if row.id not in frames:
            out["missing"].append(row.id)
        elif not reference:
            out["empty"].append(row.id)
        else:
            if not len(target):
                out["unknown"].append(row.id)
            if len(target) or listing.name != "train":
                kept.append((row, reference, target))
    if not kept:
        reasons = ", ".join(f"{len(ids)} {reason}" for reason, ids in out.items() if ids)
        raise CorpusError(f"{listing.csv}: no sentence is left ({reasons}); check the filter and the features")
    references = [reference for _, reference, _ in kept]
    ids = tuple(row.id for row, *_ in kept)
    oov = [word for reference in references for word in vocabulary.oov(reference)]
    read = source.reader(listing.name, ids, scan)
    split = Split(
        name=listing.name,
        ids=ids,
        signers=tuple(row.signer for row, *_ in kept),
        lengths=np.array([frames[i] for i in ids], dtype=np.int64),
        targets=tuple(target for _, _, target in kept),
        references=tuple(" ".join(reference) for reference in references),
        needed=np.array([len(t) + int((t[1:] == t[:-1]).sum()) for *_, t in kept], dtype=np.int64),
        read=replace(read, ready_for=normalisation) if ready and isinstance(read, PackedReader) else read,
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


def _notes(listing: Listing, facts: Mapping[str, Any]) -> list[str]:
    fate = "excluded" if listing.name == "train" else "kept for WER but not for the loss"
    sentences = {
        "missing": "have no features and are left out",
        "empty": "have an empty target after the filter and are dropped",
        "unknown": f"hold no word of the vocabulary and are {fate}",
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
