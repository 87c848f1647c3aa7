"""What is wrong with a corpus: one pure function a fault, from the facts to its findings, with its threshold and why.

Fatal is what makes training impossible or pointless: `load_corpus` or the trainer refuses it, or nothing could be
learned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from model.corpus.annotations import MISSING_SHARE, some
from model.corpus.data import INFEASIBLE_SHARE
from model.corpus.facts import MEAN_LIMIT, STD_LIMITS, CorpusFacts, PartFacts
from model.findings import Finding, Severity
from model.types import FEWEST_SEQUENCES

USELESS_SHARE = 0.1
"""From this share of train on, recordings without content are no accident of a few clips: the extraction failed."""

EMPTY_FRAMES = 0.1
"""Of the frames, in which even the modality seen most often is all zero. Signers are in the picture almost always
(recorded signs: 0.0005 of the frames without a pose); zeros are padding that was saved, or failed detection."""

REPEATED_SHARE = 0.25
"""Cameras and trackers are never exactly still. From this share on frames were doubled or held: video at a higher
frame rate than it was taken at has 0.5."""

NORMALISED_SHARE = 0.95
"""Of the dimensions that vary, this share should enter the model normalised; the rest may be rare events."""

SHIFTED_SHARE = 0.25
"""Dev and test normalised by train's numbers: an unseen signer leaves 0.57 to 0.91 of the dimensions in place. Below
this share they were extracted differently, in pixels for instance."""

SHIFTED_SIZE = 5.0
"""... and so was a modality that is typically so large where train is 1, whatever the others are. Of unseen signers the
largest is 1.9 (the generated face; recorded ones 1.0), while pixels or another origin make 20 and more. Its share
within the limits tells nothing: of that face it is 0.03 to 0.12, as one signer differs less than several."""

STRANGER_SHARE = 0.05
"""Words of dev that training never shows are sure errors: from this share on they are a good part of the WER."""

EMPTY_SHARE = 0.01
"""Some sentences hold nothing but what a filter drops. More than this share is a filter that does not fit."""

ONE_ANSWER_WER = 0.1
"""Where one constant sentence scores below this, the annotations hardly differ, and WER cannot tell who listens."""


def faults(facts: CorpusFacts) -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    return [finding for rule in RULES for finding in rule(facts)]


def coverage(facts: CorpusFacts) -> Iterator[Finding]:
    for name, split in facts.splits.items():
        missing, npy, n = split.recordings.missing, split.recordings.npy, split.sentences.annotated
        if missing:
            share = 1 - len(missing) / n
            yield Finding(
                "coverage",
                "fatal" if len(missing) > MISSING_SHARE * n else "info",
                share,
                1 - MISSING_SHARE,
                f"{name}: {len(missing)} of {n} sentences have no features ({some(missing)}); {share:.1%} have."
                + (f" Of {len(npy)} of them there is an npy file, which is not read." if npy else ""),
                "Save the arrays again, with np.savez(ID.npz, features=...)."
                if npy
                else "Extract them, or delete their lines from the CSV.",
                f"Features for {1 - MISSING_SHARE:.0%} of the sentences; they are looked for as ID.npz.",
            )
        if unnamed := split.recordings.unannotated:
            yield Finding(
                "unannotated",
                "info",
                len(unnamed),
                None,
                f"{name}: {len(unnamed)} recordings are named by no line of the CSV and not used ({some(unnamed)}).",
                "Nothing need be done; if they should be used, their ids are not those of the CSV.",
                "Lines of the CSV with these ids.",
            )


def unreadable(facts: CorpusFacts) -> Iterator[Finding]:
    for name, split in facts.splits.items():
        own = split.recordings
        if own.unreadable:
            first = next(iter(own.unreadable.values()))
            yield Finding(
                "unreadable",
                "fatal",
                len(own.unreadable),
                0,
                f"{name}: {len(own.unreadable)} of {own.found} recordings cannot be read ({some([*own.unreadable])}). "
                f"The first: {first}.",
                "Write them again, or delete them and their lines in the CSV.",
                "Files that numpy opens, with an array features of numbers (frames, dimensions).",
            )
        if own.not_finite:
            values = sum(own.not_finite.values())
            yield Finding(
                "not_finite",
                "fatal",
                len(own.not_finite),
                0,
                f"{name}: {len(own.not_finite)} of {own.found} recordings hold {values} values that are NaN, infinite "
                f"or beyond float32 ({some([*own.not_finite])}).",
                "Write zeros where a landmark was not detected, and look for a division by zero in the extraction.",
                "Finite numbers everywhere: one NaN spoils the weights of the whole network.",
            )
        if own.other_width:
            widths = Counter(own.other_width.values())
            yield Finding(
                "mixed_width",
                "fatal",
                len(own.other_width),
                0,
                f"{name}: {len(own.other_width)} of {own.found} recordings are not {facts.width} wide as the first one "
                f"of train is, but {some([str(width) for width in widths])} ({some([*own.other_width])}).",
                "Extract all recordings with the same settings.",
                "One width over all splits.",
            )


def without_content(facts: CorpusFacts) -> Iterator[Finding]:
    """Recordings of zeros, that never move, or that are copies of others."""
    for name, split in facts.splits.items():
        own = split.recordings
        copies = [i for ids in own.duplicates for i in ids[1:]]
        apart = f", {len(own.contradicting)} of them with different texts" if own.contradicting else ""
        for code, ids, what, advice in (
            ("all_zero", [*own.zero], "hold nothing but zeros", "Extract them again: nothing was detected, or saved."),
            ("frozen", [*own.frozen], "are one frame over and over", "Extract them again: the tracker or reader hung."),
            (
                "duplicates",
                copies,
                f"are exact copies of others, in {len(own.duplicates)} groups{apart}",
                "Look for a file that was written under several ids.",
            ),
        ):
            share = len(ids) / max(own.found, 1)
            signers = Counter({"all_zero": own.zero, "frozen": own.frozen}.get(code, {}).values())
            by = f"; {some([f'{signer} {n}' for signer, n in signers.most_common()])}" if signers else ""
            if ids:
                yield Finding(
                    code,
                    "fatal" if name == "train" and share >= USELESS_SHARE else "warning",
                    share,
                    USELESS_SHARE,
                    f"{name}: {len(ids)} of {own.found} recordings {what} ({some(ids)}{by}).",
                    advice + " Nothing can be learned from them.",
                    f"Below {USELESS_SHARE:.0%} of train it is a warning.",
                )
        if own.parts:
            part, most = min(own.parts.items(), key=lambda item: item[1].whole.zero)
            if EMPTY_FRAMES < most.whole.zero < 1:
                yield Finding(
                    "zero_frames",
                    "warning",
                    most.whole.zero,
                    EMPTY_FRAMES,
                    f"{name}: the {part} {'is' if len(own.parts) == 1 else 'is seen most, and is'} all zero in "
                    f"{most.whole.zero:.0%} of the frames.",
                    "Cut padding off before saving, and look at what the extraction writes where it finds nobody.",
                    f"At most {EMPTY_FRAMES:.0%} of the frames; sparse features may be zero by nature.",
                )


def still_frames(facts: CorpusFacts) -> Iterator[Finding]:
    """Frames that repeat the one before, by modality and signer."""
    for name, split in facts.splits.items():
        still = {part: own for part, own in split.recordings.parts.items() if own.whole.frozen > REPEATED_SHARE}
        if still:
            part, worst = max(still.items(), key=lambda item: item[1].whole.frozen)
            yield Finding(
                "repeated_frames",
                "warning",
                worst.whole.frozen,
                REPEATED_SHARE,
                f"{name}: the {part} is exactly what it was in the frame before in {worst.whole.frozen:.0%} of the "
                f"frames in which it is not zero{_by_signer(worst)}{_others(still, part)}.",
                "Extract at the frame rate at which the video was taken; velocities of held frames are zero.",
                "Features of coarse numbers (integers, classes) repeat by nature.",
            )


def detection(facts: CorpusFacts) -> Iterator[Finding]:
    """Modalities that are never there. Hands absent at rest are no fault: 43 to 49 % of frames is real."""
    for name, split in facts.splits.items():
        parts = split.recordings.parts
        gone = [part for part, own in parts.items() if not own.whole.seen]
        if gone:
            everything = len(gone) == len(parts)
            yield Finding(
                "never_seen",
                "fatal" if everything and name == "train" else "warning",
                len(gone),
                0,
                f"{name}: the {_and(gone)} {'is' if len(gone) == 1 else 'are'} detected in no frame"
                f"{' and nothing else is there' if everything else ''}.",
                "Look at the extraction and at detection_masks; what is not detected enters the model as zero.",
                "One frame in which it is there.",
            )
        blind = [
            f"{signer} {part}"
            for part, own in parts.items()
            if own.whole.seen
            for signer, shares in own.signers.items()
            if not shares.seen
        ]
        if blind:
            yield Finding(
                "never_seen_of_signer",
                "warning",
                len(blind),
                0,
                f"{name}: detected for others, but in no frame of {some(blind, 5)}.",
                "Look at this signer's videos: framing, mirrored sides, a file name mixed up.",
                "A signer who really does not use that hand.",
            )


def normalisation(facts: CorpusFacts) -> Iterator[Finding]:
    limits = f"mean within {MEAN_LIMIT} of 0 and a deviation of {STD_LIMITS[0]} to {STD_LIMITS[1]:g}"
    constant = len(facts.constant_dimensions)
    if constant == facts.width and constant:
        yield Finding(
            "nothing_varies",
            "fatal",
            1.0,
            1.0,
            f"train: all {constant} dimensions are constant.",
            "Look at the extraction: there is nothing to learn from.",
            "One dimension that varies.",
        )
    elif constant:
        yield Finding(
            "constant_dimensions",
            "info",
            constant / facts.width,
            None,
            f"train: {constant} of {facts.width} dimensions are constant ({some(facts.constant_dimensions, 5)})"
            f"{' and read as zero' if facts.normalise else ''}.",
            "Nothing need be done; pack with --drop-constant can leave them out.",
            "A frame of train in which they differ.",
        )
    for name, split in facts.splits.items():
        entering = split.entering
        if entering is None or entering.within >= NORMALISED_SHARE:
            continue
        evidence = (
            f"{name}: {entering.within:.0%} of the dimensions enter the model with {limits} (median mean "
            f"{entering.mean.p50:.3g}, median deviation {entering.std.p50:.3g}{_by_modality(entering.modalities)})"
        )
        if name == "train":
            yield Finding(
                "not_normalised",
                "warning",
                entering.within,
                NORMALISED_SHARE,
                evidence + ".",
                "Let them be normalised, as is the default, or do it where they are made: otherwise the learning rate "
                "means something else for every dimension.",
                f"{NORMALISED_SHARE:.0%} of the dimensions within the limits.",
            )
            return  # what the other splits have in common with it says nothing new
        signers = [s for s in split.sentences.signers if s not in facts.splits["train"].sentences.signers]
        unseen = f"; train never shows {some(signers)}" if signers else ""
        far = entering.within < SHIFTED_SHARE
        largest, size = max(entering.sizes.items(), key=lambda item: item[1])
        large = size > SHIFTED_SIZE and not far
        number, threshold = entering.within, SHIFTED_SHARE if far else NORMALISED_SHARE
        yield Finding(
            "shifted",
            "warning" if far or large else "info",
            size if large else number,
            SHIFTED_SIZE if large else threshold,
            f"{evidence}{', by the statistics of train' if facts.normalise else ''}; typical size of the {largest} "
            f"{size:.3g}, where train's is 1{unseen}.",
            "Expected of a signer or camera that train does not have; otherwise compare how the splits were extracted.",
            f"{NORMALISED_SHARE:.0%} of the dimensions within the limits; below {SHIFTED_SHARE:.0%}, or with a "
            f"modality above {SHIFTED_SIZE:g} times train's size, it is a warning.",
        )


def strangers(facts: CorpusFacts) -> Iterator[Finding]:
    """Words out of the vocabulary, and sentences of nothing else."""
    for name, split in facts.splits.items():
        own = split.sentences
        train = name == "train"
        # Without a class, whatever dev says is out of it: the fault is where the classes come from.
        if not own.out_of_vocabulary or (facts.vocabulary.classes == 1 and not train):
            continue
        share = own.out_of_vocabulary / own.words
        limit = MISSING_SHARE if train else STRANGER_SHARE
        severity: Severity = "info"
        if train or share > limit:
            severity = "fatal" if train and share > limit else "warning"
        spelling = [f"{word} for {gloss}" for word, gloss in own.spelling.items()]
        nothing_else = f" {len(own.unknown)} sentences hold nothing else ({some(own.unknown)})." if own.unknown else ""
        yield Finding(
            "out_of_vocabulary",
            severity,
            share,
            limit,
            f"{name}: {own.out_of_vocabulary} of {own.words} words ({share:.2%}) are out of the vocabulary "
            f"({some(own.strangers, 5)}).{nothing_else}"
            + (f" {len(spelling)} differ from a gloss in case or accents alone: {some(spelling)}." if spelling else ""),
            "Name the vocabulary and the filter that were made for this annotation, or leave the vocabulary out."
            if train
            else "Nothing need be done: they stay in the reference and count as errors, as they should.",
            f"At most {limit:.0%} of the words." if severity != "info" else f"More than {limit:.0%} of the words.",
        )


def targets(facts: CorpusFacts) -> Iterator[Finding]:
    """Empty ones, and those with a blank."""
    for name, split in facts.splits.items():
        own = split.sentences
        if own.empty:
            share = len(own.empty) / own.annotated
            nothing = len(own.empty) == own.annotated
            yield Finding(
                "empty_targets",
                "fatal" if nothing else "warning" if share > EMPTY_SHARE else "info",
                share,
                EMPTY_SHARE,
                f"{name}: {len(own.empty)} of {own.annotated} sentences say nothing after the filter "
                f"{facts.vocabulary.filter!r} and are dropped ({some(own.empty)}).",
                "Nothing need be done about a few; otherwise look at the column annotation and at the filter.",
                f"It is a warning above {EMPTY_SHARE:.0%} of the sentences.",
            )
        if own.blanks:
            yield Finding(
                "blank_in_targets",
                "fatal",
                len(own.blanks),
                0,
                f"{name}: {len(own.blanks)} sentences write the blank as a word ({some(own.blanks)}).",
                "Take it out of the annotation: blank is what CTC puts between glosses, never a gloss to learn.",
                "Annotations of words alone; these look like an alignment.",
            )


def feasibility(facts: CorpusFacts) -> Iterator[Finding]:
    for name, split in facts.splits.items():
        fit = split.fit
        if fit is None or not fit.infeasible:
            continue
        share = len(fit.infeasible) / fit.sentences
        most = max((s for s, n in fit.infeasible_at.items() if n <= INFEASIBLE_SHARE * fit.sentences), default=0)
        way_out = f"At output_stride {most} there are {fit.infeasible_at[most]}" if most else "No output_stride helps"
        severity: Severity = "info"
        if share > INFEASIBLE_SHARE:
            severity = "fatal" if name == "train" else "warning"
        yield Finding(
            "infeasible_targets",
            severity,
            share,
            INFEASIBLE_SHARE,
            f"{name}: {len(fit.infeasible)} of {fit.sentences} targets have no alignment at stride {facts.stride} "
            f"({some(fit.infeasible)}): frames // {facts.stride} is less than glosses + adjacent repeats.",
            f"They are left out of the loss and counted. {way_out}. Very many mean that these annotations belong "
            "to other features.",
            f"At most {INFEASIBLE_SHARE:.0%} of the sentences, or a smaller output_stride.",
        )


def overlap(facts: CorpusFacts) -> Iterator[Finding]:
    for splits, shared in facts.overlaps.items():
        first, second = splits.split(", ")
        n = facts.splits[second].sentences.annotated
        if shared.recordings:
            yield Finding(
                "shared_recordings",
                "warning",
                len(shared.recordings) / n,
                0,
                f"{len(shared.recordings)} of {n} recordings of {second} are also in {first} "
                f"({some([' = '.join(pair) if pair[0] != pair[1] else pair[0] for pair in shared.recordings])}).",
                f"Take them out of one of the two: on them {second} measures memory.",
                "Recordings that differ in a single value are not found.",
            )
        if first != "train":  # who is in dev and test both, and under which number, does no harm
            continue
        if ids := [i for i in shared.ids if [i, i] not in shared.recordings]:
            yield Finding(
                "shared_ids",
                "info",
                len(ids),
                None,
                f"{len(ids)} ids stand in {first} and in {second}, with different recordings ({some(ids)}).",
                "Nothing need be done if ids are numbered anew in every split.",
                "The same recording under both.",
            )
        if shared.signers and shared.signers != ["unknown"]:
            yield Finding(
                "shared_signers",
                "info",
                len(shared.signers),
                None,
                f"{len(shared.signers)} of {len(facts.splits[second].sentences.signers)} signers of {second} sign in "
                f"{first} too ({some(shared.signers, 5)}).",
                "Nothing need be done, but the WER says nothing of signers whom training never saw.",
                "A split by signers.",
            )


def measure(facts: CorpusFacts) -> Iterator[Finding]:
    """Whether dev can tell a good model from one that knows nothing."""
    dev = facts.splits.get("dev")
    if (
        dev is not None
        and dev.fit is not None
        and (n := dev.fit.sentences - len(dev.fit.infeasible)) < FEWEST_SEQUENCES
    ):
        yield Finding(
            "few_dev_sentences",
            "info",
            n,
            FEWEST_SEQUENCES,
            f"dev: {n} sentences; with fewer than {FEWEST_SEQUENCES} the probes cannot say whether the input is used.",
            "Give dev more sentences if there are any.",
            f"{FEWEST_SEQUENCES} sentences on dev that fit at this stride.",
        )
    floors = facts.floors
    if floors is not None and floors.constant_wer < ONE_ANSWER_WER:
        yield Finding(
            "one_answer",
            "warning",
            floors.constant_wer,
            ONE_ANSWER_WER,
            f"dev: the sentence {floors.constant_sentence!r}, given to every input, scores a WER of "
            f"{floors.constant_wer:.1%}.",
            "Look at the column annotation: the same text may stand on every line.",
            "Sentences that differ.",
        )


RULES: Sequence[Callable[[CorpusFacts], Iterator[Finding]]] = (
    coverage,
    unreadable,
    without_content,
    still_frames,
    detection,
    normalisation,
    targets,
    strangers,
    feasibility,
    overlap,
    measure,
)


def _by_signer(part: PartFacts) -> str:
    if len(part.signers) < 2:
        return ""
    worst = sorted(part.signers.items(), key=lambda item: -item[1].frozen)
    return " (" + some([f"{signer} {shares.frozen:.0%}" for signer, shares in worst]) + ")"


def _others(parts: Mapping[str, PartFacts], but: str) -> str:
    others = [f"{name} {own.whole.frozen:.0%}" for name, own in parts.items() if name != but]
    return f"; {', '.join(others)}" if others else ""


def _by_modality(shares: Mapping[str, float]) -> str:
    return "".join(f"; {name} {share:.0%}" for name, share in shares.items()) if len(shares) > 1 else ""


def _and(names: Sequence[str]) -> str:
    return " and the ".join(names)
