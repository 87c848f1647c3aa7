"""The facts of a corpus in words and short tables, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model.corpus.facts import STRIDES, CorpusFacts, PartFacts, Quantiles, SplitFacts
from model.page import Table


def tables(facts: CorpusFacts) -> list[Table]:
    """All that hold something."""
    made = [corpus(facts), splits(facts), strides(facts), parts(facts), normalisation(facts), overlaps(facts)]
    return [table for table in [*made, floors(facts)] if table.rows]


def corpus(facts: CorpusFacts) -> Table:
    vocabulary = facts.vocabulary
    blocks = ", ".join(f"{name} {width}" for name, width in facts.modalities.items())
    types = sorted({np.dtype(dtype).name for split in facts.splits.values() for dtype in split.recordings.dtypes})
    common = ", ".join(f"{gloss} {count}" for gloss, count in list(vocabulary.most_common.items())[:5])
    rows = [
        ("features", f"{facts.width} dimensions ({blocks}), {', '.join(types) or 'none that can be read'}"),
        ("normalised", "by train's mean and deviation" if facts.normalise else "no: they enter the model as stored"),
        ("constant", f"{len(facts.constant_dimensions)} dimensions"),
        ("vocabulary", f"{vocabulary.classes} classes with blank, from {vocabulary.origin}"),
        ("filter", vocabulary.filter),
        ("glosses", f"{vocabulary.singletons} said once in train, {vocabulary.unused} never; most often: {common}"),
        ("vocabulary hash", vocabulary.hash),
        ("corpus hash", facts.hash or "none while a recording cannot be read"),
        *(("note", note) for note in facts.notes),
    ]
    return Table("Packed corpus" if facts.packed else "Corpus", rows)


def splits(facts: CorpusFacts) -> Table:
    """A column a split."""
    known = facts.vocabulary.classes > 1

    def rows_of(split: SplitFacts) -> Iterator[tuple[str, str]]:
        said, recorded, fit = split.sentences, split.recordings, split.fit
        yield "sentences in the CSV", f"{said.annotated}"
        yield "with features", f"{recorded.found}"
        yield "that take part", f"{fit.sentences if fit else 0}"
        yield "with an empty target", f"{len(said.empty)}"
        yield f"too short at stride {facts.stride}", f"{len(fit.infeasible)}" if fit else ""
        yield "signers", f"{len(said.signers)}" if [*said.signers] != ["unknown"] else "unknown"
        yield "words", f"{said.words}"
        strangers = f"{said.out_of_vocabulary} ({said.out_of_vocabulary / max(said.words, 1):.2%})"
        yield "out of the vocabulary", strangers if known else ""
        yield (
            "unchanged by encoding and decoding",
            f"{said.whole} of {said.annotated - len(said.empty)}" if known else "",
        )
        yield "adjacent repeats", f"{said.repeats}"
        yield "glosses (5 %, median, 95 %, most)", _spread(said.glosses, ("p5", "p50", "p95", "max"))
        yield "frames (least, 5 %, median, 95 %, most)", _spread(fit.frames if fit else None)
        yield "frames in all", f"{recorded.frames}"

    columns = [dict(rows_of(split)) for split in facts.splits.values()]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return Table("Splits", rows, ("", *facts.splits))


def strides(facts: CorpusFacts) -> Table:
    rows = [
        (name, *(str(split.fit.infeasible_at[stride]) for stride in STRIDES))
        for name, split in facts.splits.items()
        if split.fit
    ]
    note = "A target fits if frames // stride is at least its glosses and adjacent repeats."
    return Table("Sentences without an alignment, by output stride", rows, ("", *map(str, STRIDES)), note)


def parts(facts: CorpusFacts) -> Table:
    rows = [
        (f"{name}, {part}", *(f"{x:.1%}" for x in (own.whole.seen, own.whole.zero, own.whole.frozen)), _signers(own))
        for name, split in facts.splits.items()
        for part, own in split.recordings.parts.items()
    ]
    note = "Repeated: exactly as in the frame before, of the frames in which it is not zero."
    return Table("Frames", rows, ("", "detected", "all zero", "repeated", "detected, by signer"), note)


def normalisation(facts: CorpusFacts) -> Table:
    rows = [
        (
            name,
            f"{split.entering.within:.1%}",
            _spread(split.entering.mean),
            _spread(split.entering.std),
            ", ".join(f"{modality} {share:.0%}" for modality, share in split.entering.modalities.items()),
        )
        for name, split in facts.splits.items()
        if split.entering
    ]
    header = ("", "within", "mean (least, 5 %, median, 95 %, most)", "deviation (the same)", "within, by modality")
    note = "Of the dimensions that vary, as they enter the model, over the frames in which their part is detected."
    return Table("Normalisation", rows, header, note)


def overlaps(facts: CorpusFacts) -> Table:
    rows = [
        (
            names,
            f"{len(shared.ids)}",
            f"{len(shared.recordings)}",
            f"{len(shared.signers)}",
            f"{shared.texts:.1%}",
        )
        for names, shared in facts.overlaps.items()
    ]
    return Table("Shared by two splits", rows, ("", "ids", "recordings", "signers", "texts of the second"))


def floors(facts: CorpusFacts) -> Table:
    if facts.floors is None:
        return Table("What knowing nothing scores", ())
    own = facts.floors
    rows = [
        ("best constant sentence", f"WER {own.constant_wer:.1%} on dev: {own.constant_sentence or '(nothing)'}"),
        ("best constant posterior", f"{own.constant_loss:.3f} nats per gloss on train (F0)"),
        ("the same on dev", f"{own.dev_constant_loss:.3f} nats per gloss"),
        ("uniform posterior", f"{own.uniform_loss:.3f} nats per gloss on dev, which an untrained model scores"),
    ]
    return Table(f"What knowing nothing scores, at stride {facts.stride}", rows)


def as_lines(table: Table) -> list[str]:
    """A table in aligned columns, indented below its title."""
    rows = [table.header, *table.rows] if table.header else [*table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return [table.title, *(f"  {line}" for line in cells)]


def _spread(of: Quantiles | None, names: tuple[str, ...] = ("min", "p5", "p50", "p95", "max")) -> str:
    values = [getattr(of, name) for name in names] if of else []
    return " ".join(f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" for value in values)


def _signers(part: PartFacts) -> str:
    """The signers who are detected least and most, or all where they are few."""
    order = sorted(part.signers.items(), key=lambda item: (item[1].seen, item[0]))
    words = [f"{signer} {shares.seen:.0%}" for signer, shares in order]
    if len(words) <= 4:
        return ", ".join(words)
    alike = order[0][1].seen == order[-1][1].seen
    return f"all {len(words)} alike" if alike else f"{words[0]} to {words[-1]}"
