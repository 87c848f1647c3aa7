"""The numbers of a corpus: what its sentences say, what its recordings hold, what knowing nothing scores on it.

Pure: rows and scans in, records of plain values out. `model.corpus.faults` judges them.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.corpus.annotations import Row
from model.corpus.features import Modality, Part, base_parts
from model.corpus.scan import FileScan, Statistics
from model.corpus.vocabulary import BLANK, Vocabulary
from model.floors import Floats, Floors, Ints

STRIDES = (1, 2, 4, 8, 16, 32)
"""Output strides at which it is counted what fits."""

BINS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Lower edges of the bins of input frames per output frame needed; the last bin is open."""

BLANK_WORDS = (BLANK, "<blk>")
"""Words that only a blank is called; the other names it goes by may be words of a language."""

MEAN_LIMIT = 0.5
"""Normalised dimensions have their mean within this distance of 0: two splits so far apart still overlap widely."""

STD_LIMITS = (0.3, 3.0)
"""... and their deviation between these. Landmarks as MediaPipe gives them have 0.01 to 0.1, pixels over 10."""


@dataclass(frozen=True)
class Quantiles:
    min: float
    p5: float
    p50: float
    p95: float
    max: float


@dataclass(frozen=True)
class SentenceFacts:
    """What the sentences of a split say, whether there are recordings or not."""

    annotated: int
    """Lines of the CSV."""
    empty: list[str]
    """Ids of those without a word after the filter."""
    unknown: list[str]
    """Ids of those with words, none of which is in the vocabulary."""
    blanks: list[str]
    """Ids of those that name the blank as if it were a word."""
    words: int
    out_of_vocabulary: int
    """Words, each time it is said; names of the blank do not count."""
    strangers: list[str]
    """The words out of the vocabulary, once each."""
    spelling: dict[str, str]
    """Those of them that are a gloss but for case or for how an accent is stored."""
    whole: int
    """Sentences that come back unchanged from encoding and decoding."""
    repeats: int
    """Adjacent equal words: each needs one output frame more."""
    glosses: Quantiles | None
    """Of a target."""
    signers: dict[str, int]
    """Sentences by signer."""


@dataclass(frozen=True)
class FitFacts:
    """Whether the targets of a split fit into their recordings."""

    sentences: int
    """Those that take part: a recording that can be read, and something said."""
    frames: Quantiles
    infeasible: list[str]
    """Ids of those without an alignment at the model's stride."""
    infeasible_at: dict[int, int]
    """How many have none, by stride."""
    frames_per_needed: dict[str, int]
    """How many have so many input frames per output frame needed (gloss or repeat), by bin."""


@dataclass(frozen=True)
class Shares:
    """Shares of the frames of one part."""

    frames: int
    seen: float
    """It is detected."""
    zero: float
    """All its columns are zero."""
    frozen: float
    """It is exactly what it was in the frame before: share of the frames in which it is not zero."""


@dataclass(frozen=True)
class PartFacts:
    """One part of the features (pose, left hand, right hand, face; or all of them) over a split."""

    whole: Shares
    signers: dict[str, Shares]


@dataclass(frozen=True)
class RecordingFacts:
    """What the recordings of a split hold."""

    found: int
    """Lines of the CSV that have one."""
    missing: list[str]
    """Ids of those that have none."""
    npy: list[str]
    """Those of them that have an ID.npy, which is not read."""
    unannotated: list[str]
    """Recordings that no line of the CSV names."""
    unreadable: dict[str, str]
    """Why, by id."""
    not_finite: dict[str, int]
    """Values that are NaN, infinite or beyond float32, by id."""
    other_width: dict[str, int]
    """Their width, by id."""
    frames: int
    dtypes: dict[str, int]
    """Recordings by type of number."""
    zero: dict[str, str]
    """Recordings of zeros alone: signer by id."""
    frozen: dict[str, str]
    """Recordings in which nothing ever moves: signer by id."""
    duplicates: list[list[str]]
    """Ids with the very same recording, zeros aside."""
    contradicting: list[list[str]]
    """Those of them that say different things."""
    parts: dict[str, PartFacts]


@dataclass(frozen=True)
class EnteringFacts:
    """Features as they enter the model. Dimensions that are constant over train do not count."""

    within: float
    """Share of dimensions with mean and deviation within MEAN_LIMIT and STD_LIMITS."""
    mean: Quantiles
    """Over dimensions."""
    std: Quantiles
    modalities: dict[str, float]
    """`within` of each modality."""
    sizes: dict[str, float]
    """Root mean square of a dimension, the median of each modality: 1 where train is normalised by itself."""


@dataclass(frozen=True)
class VocabularyFacts:
    classes: int
    """Blank counted."""
    hash: str
    origin: str
    """The vocabulary file, `packed corpus` or `train`."""
    filter: str
    singletons: int
    """Glosses that train holds once."""
    unused: int
    """Glosses that train never holds."""
    most_common: dict[str, int]
    """How often train holds a gloss."""


@dataclass(frozen=True)
class OverlapFacts:
    """What two splits share."""

    ids: list[str]
    recordings: list[list[str]]
    """The id in the first split and that in the second."""
    signers: list[str]
    texts: float
    """Share of the second split's sentences that the first holds word for word."""


@dataclass(frozen=True)
class SplitFacts:
    sentences: SentenceFacts
    recordings: RecordingFacts
    fit: FitFacts | None
    """None where no sentence takes part."""
    entering: EnteringFacts | None
    """None where no recording can be read, or where train has none."""


@dataclass(frozen=True)
class CorpusFacts:
    name: str
    packed: bool
    stride: int
    """Input frames per output frame of the model."""
    normalise: bool
    """False: features enter the model as they are stored."""
    width: int
    """Columns of the features (D)."""
    modalities: dict[str, int]
    """Their widths."""
    constant_dimensions: list[str]
    """Columns that are constant over train."""
    hash: str
    """Of features and annotations; runs on this corpus carry it. Empty where a recording cannot be read."""
    vocabulary: VocabularyFacts
    splits: dict[str, SplitFacts]
    overlaps: dict[str, OverlapFacts]
    """By two splits: `train, dev`."""
    floors: Floors | None
    """None unless train and dev have sentences that take part."""
    notes: list[str]
    """What a packed corpus says about itself."""


@dataclass(frozen=True)
class Sentences:
    """Those of a split that take part."""

    ids: tuple[str, ...]
    lengths: Ints
    """Input frames (N,)."""
    targets: tuple[Ints, ...]
    references: tuple[str, ...]

    @property
    def needed(self) -> Ints:
        """Output frames an alignment needs (N,): glosses and adjacent repeats; 0 without a known gloss."""
        return np.array([len(t) + _repeats(t) for t in self.targets], dtype=np.int64)


def quantiles(values: Sequence[float] | Floats | Ints) -> Quantiles:
    """Of at least one value."""
    return Quantiles(*(float(q) for q in np.quantile(values, [0, 0.05, 0.5, 0.95, 1])))


def sentence_facts(rows: Sequence[Row], words: Sequence[Sequence[str]], vocabulary: Vocabulary) -> SentenceFacts:
    """
    Args:
        rows: the lines of the split's CSV.
        words: what the filter leaves of each.
    """
    targets = [vocabulary.encode(sentence) for sentence in words]
    strangers = [word for sentence in words for word in vocabulary.oov(sentence) if not is_blank(word)]
    once = list(dict.fromkeys(strangers))
    glosses = {_plain(gloss): gloss for gloss in vocabulary.glosses[1:]}
    return SentenceFacts(
        annotated=len(rows),
        empty=[row.id for row, sentence in zip(rows, words, strict=True) if not sentence],
        unknown=[row.id for row, s, t in zip(rows, words, targets, strict=True) if s and not len(t)],
        blanks=[row.id for row, s in zip(rows, words, strict=True) if any(is_blank(word) for word in s)],
        words=sum(map(len, words)),
        out_of_vocabulary=len(strangers),
        strangers=once,
        spelling={word: glosses[_plain(word)] for word in once if _plain(word) in glosses},
        whole=sum(vocabulary.decode(t) == list(s) for s, t in zip(words, targets, strict=True) if s),
        repeats=sum(a == b for sentence in words for a, b in itertools.pairwise(sentence)),
        glosses=quantiles([len(t) for t in targets if len(t)]) if any(map(len, targets)) else None,
        signers=dict(sorted(Counter(row.signer for row in rows).items())),
    )


def taking_part(
    split: str,
    rows: Sequence[Row],
    words: Sequence[Sequence[str]],
    frames: Mapping[str, int],
    vocabulary: Vocabulary,
) -> Sentences:
    """The sentences that say something and have a recording, whose `frames` are known by id.

    In train one of the words must be in the vocabulary; elsewhere the others count as errors.
    """
    kept = [
        (row.id, frames[row.id], target, " ".join(sentence))
        for row, sentence in zip(rows, words, strict=True)
        if row.id in frames and sentence
        for target in [vocabulary.encode(sentence)]
        if len(target) or split != "train"
    ]
    ids, lengths, targets, references = zip(*kept, strict=True) if kept else ((), (), (), ())
    return Sentences(ids, np.array(lengths, dtype=np.int64), targets, references)


def fit_facts(sentences: Sentences, stride: int) -> FitFacts | None:
    """At that many input frames per output frame; None without a sentence."""
    if not sentences.ids:
        return None
    needed, lengths = sentences.needed, sentences.lengths
    short = {s: (needed > 0) & (lengths // s < needed) for s in (*STRIDES, stride)}
    ratios = lengths[needed > 0] / needed[needed > 0]
    counts = np.histogram(ratios, [*BINS, np.inf])[0].tolist()
    names = [f"{low} to {high}" for low, high in itertools.pairwise(BINS)]
    return FitFacts(
        sentences=len(sentences.ids),
        frames=quantiles(lengths),
        infeasible=[sentences.ids[i] for i in np.flatnonzero(short[stride])],
        infeasible_at={s: int(short[s].sum()) for s in STRIDES},
        frames_per_needed=dict(zip([*names, f"{BINS[-1]} and more"], counts, strict=True)),
    )


def recording_facts(
    rows: Sequence[Row],
    words: Sequence[Sequence[str]],
    npy: Sequence[str],
    unannotated: Sequence[str],
    files: Mapping[str, FileScan],
    width: int,
    parts: tuple[Part, ...],
) -> RecordingFacts:
    """
    Args:
        files: what each recording holds, by id.
        width: columns that every recording should have.
        parts: what they are.
    """
    sound = {i: file for i, file in files.items() if not file.fault}
    names = {i: part.name for i, part in enumerate(base_parts(parts)) if part.width}
    zero = [i for i, file in sound.items() if all(file.zero[part] == file.frames for part in names)]
    says = {row.id: " ".join(sentence) for row, sentence in zip(rows, words, strict=True)}
    same: dict[str, list[str]] = defaultdict(list)
    for i in sound.keys() - set(zero):
        same[sound[i].digest].append(i)
    duplicates = sorted(sorted(ids) for ids in same.values() if len(ids) > 1)
    signers = {row.id: row.signer for row in rows}
    return RecordingFacts(
        found=len(files),
        missing=[row.id for row in rows if row.id not in files],
        npy=list(npy),
        unannotated=list(unannotated),
        unreadable={i: file.fault for i, file in files.items() if file.fault and not file.width},
        not_finite={i: file.not_finite for i, file in files.items() if file.not_finite},
        other_width={i: file.width for i, file in files.items() if file.width not in (0, width)},
        frames=sum(file.frames for file in sound.values()),
        dtypes=dict(Counter(file.dtype for file in sound.values())),
        zero={i: signers[i] for i in zero},
        frozen={i: signers[i] for i, file in sound.items() if _never_moves(file, names)},
        duplicates=duplicates,
        contradicting=[ids for ids in duplicates if len({says[i] for i in ids}) > 1],
        parts=_part_facts(sound, signers, names),
    )


def _part_facts(
    files: Mapping[str, FileScan], signers: Mapping[str, str], names: Mapping[int, str]
) -> dict[str, PartFacts]:
    by_signer: dict[str, list[FileScan]] = defaultdict(list)
    for i, file in files.items():
        by_signer[signers[i]].append(file)
    return {
        name: PartFacts(
            _shares(files.values(), part),
            {signer: _shares(own, part) for signer, own in sorted(by_signer.items())},
        )
        for part, name in names.items()
        if files
    }


def _shares(files: Iterable[FileScan], part: int) -> Shares:
    frames, seen, zero, frozen = np.sum([(f.frames, f.seen[part], f.zero[part], f.frozen[part]) for f in files], axis=0)
    return Shares(int(frames), float(seen / frames), float(zero / frames), float(frozen / max(frames - zero, 1)))


def _never_moves(file: FileScan, parts: Iterable[int]) -> bool:
    """Every part that is there is, from its first frame to its last, exactly what it was."""
    still = [file.frozen[part] == file.frames - file.zero[part] - 1 for part in parts if file.zero[part] < file.frames]
    return file.frames > 1 and bool(still) and all(still)


def entered(own: Statistics, train: Statistics, normalise: bool, constant: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Mean and deviation (D,) of what enters the model, over frames in which a part is seen; 0 where constant."""
    if not normalise:
        return own.mean, own.std
    scale = np.divide(1.0, train.std, out=np.zeros_like(train.mean), where=~constant)
    return (own.mean - train.mean) * scale, own.std * scale


def entering_facts(
    mean: Floats, std: Floats, constant: NDArray[np.bool_], modalities: Iterable[Modality]
) -> EnteringFacts | None:
    """None where every dimension is constant."""
    if constant.all():
        return None
    within = (np.abs(mean) <= MEAN_LIMIT) & (std >= STD_LIMITS[0]) & (std <= STD_LIMITS[1])
    shares, sizes, start = {}, {}, 0
    for modality in modalities:
        block = slice(start, start + modality.width)
        if not constant[block].all():
            varies = ~constant[block]
            shares[modality.name] = float(within[block][varies].mean())
            sizes[modality.name] = float(np.median(np.hypot(mean[block], std[block])[varies]))
        start += modality.width
    return EnteringFacts(
        within=float(within[~constant].mean()),
        mean=quantiles(mean[~constant]),
        std=quantiles(std[~constant]),
        modalities=shares,
        sizes=sizes,
    )


def vocabulary_facts(
    vocabulary: Vocabulary, origin: str, filter_name: str, train: Sequence[Sequence[str]]
) -> tuple[VocabularyFacts, list[int]]:
    """Facts, and how often train holds each gloss that it holds, the most common first."""
    known = set(vocabulary.glosses[1:])
    counts = Counter(word for sentence in train for word in sentence if word in known)
    facts = VocabularyFacts(
        classes=len(vocabulary),
        hash=vocabulary.hash,
        origin=origin,
        filter=filter_name,
        singletons=sum(count == 1 for count in counts.values()),
        unused=len(known) - len(counts),
        most_common=dict(counts.most_common(10)),
    )
    return facts, sorted(counts.values(), reverse=True)


def overlap_facts(
    first: tuple[Sequence[Row], Mapping[str, FileScan]],
    second: tuple[Sequence[Row], Mapping[str, FileScan]],
    filtered: Callable[[Row], str],
) -> OverlapFacts:
    """What two splits share, each given as its rows and what its recordings hold.

    Args:
        filtered: what a row says after the filter; "" says nothing.
    """
    digests = {file.digest: i for i, file in first[1].items() if file.digest and min(file.zero) < file.frames}
    ids, signers = {row.id for row in first[0]}, {row.signer for row in first[0]}
    texts = {filtered(row) for row in first[0]}
    said = [text for row in second[0] if (text := filtered(row))]
    return OverlapFacts(
        ids=[row.id for row in second[0] if row.id in ids],
        recordings=[[digests[file.digest], i] for i, file in second[1].items() if file.digest in digests],
        signers=sorted({row.signer for row in second[0] if row.signer in signers}),
        texts=sum(text in texts for text in said) / max(len(said), 1),
    )


def is_blank(word: str) -> bool:
    """Whether a word is a name of the blank."""
    return word.lower() in BLANK_WORDS


def _repeats(target: Ints) -> int:
    return int((target[1:] == target[:-1]).sum())


def _plain(word: str) -> str:
    return unicodedata.normalize("NFC", word).casefold()
