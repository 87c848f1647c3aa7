"""What a corpus folder says before any feature is read: where it lies, its PHOENIX CSVs, which files belong to them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "dev", "test")
MISSING_SHARE = 0.01
"""More ids without features, or more words of train out of the vocabulary, than this share stop the load."""


class CorpusError(ValueError):
    """The corpus breaks a rule; the message names the file, the value, the rule and the way out."""


def locate(corpus: Path, annotations: Path | None, *, within: Path | None = None) -> tuple[Path, Path]:
    """The folder of train/ dev/ test/ and the folder of the CSVs, looked for where `annotations` is None.

    Args:
        within: a folder, in full, above which nothing is looked for.

    Raises:
        CorpusError: one of them is not there, or several hold a train*.csv.
    """
    path = corpus.resolve()
    if not path.is_dir():
        raise CorpusError(f"{corpus}: there is no such folder; name the one that holds features/ or train/")
    folder = path / "features" if (path / "features").is_dir() else path
    if not (folder / "train").is_dir():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
        raise CorpusError(
            f"{folder}: holds no train/ (it holds {found}); name the folder that holds features/train or train"
        )
    if annotations is not None:
        if not annotations.is_dir():
            raise CorpusError(f"{annotations}: there is no such folder; name the one that holds the CSVs")
        return folder, annotations.resolve()
    for place in (folder, *folder.parents[:3]):
        if within is not None and not place.is_relative_to(within):
            break
        for pattern in ("annotations", "annotations/manual", "raw_data/*/annotations/manual"):
            found_in = [p for p in sorted(place.glob(pattern)) if any(p.glob("train*.csv"))]
            if len(found_in) > 1:
                raise CorpusError(
                    f"{place}: annotations lie in {', '.join(map(str, found_in))}; say which with annotations"
                )
            if found_in:
                return folder, found_in[0]
    raise CorpusError(
        f"{corpus}: no annotations/ with a train*.csv lies in it or beside it; name their folder with annotations"
    )


def _find_csv(annotations: Path, split: str) -> Path | None:
    for pattern in (f"{split}.corpus.csv", f"{split}.*.corpus.csv", f"{split}*.csv"):
        found = sorted(annotations.glob(pattern))
        if len(found) > 1:
            raise CorpusError(
                f"{annotations}: {', '.join(p.name for p in found)} could all be {split}; "
                f"leave one, or name one {split}.corpus.csv"
            )
        if found:
            return found[0]
    return None


class Row(NamedTuple):
    """A sentence as its CSV has it."""

    id: str
    signer: str  # "unknown" where the CSV names none
    annotation: str


def _read_csv(file: Path) -> list[Row]:
    """The sentences of a split: columns id and annotation; signer where there is one; others are not read."""
    rows: dict[str, Row] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
            header = [name.strip() for name in next(table, [])]
            for column in ("id", "annotation"):
                if column not in header:
                    raise CorpusError(
                        f"{file}: has no column {column!r} (it has {', '.join(header) or 'none'}); "
                        "the first line reads id|folder|signer|annotation"
                    )
            for cells in table:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise CorpusError(
                        f"{file}: line {table.line_num} has {len(cells)} cells, the header {len(header)}; "
                        "cells are parted by | and may not hold one"
                    )
                row = dict(zip(header, map(str.strip, cells), strict=True))
                name = row["id"]
                if name in rows:
                    raise CorpusError(f"{file}: line {table.line_num} repeats the id {name!r}; an id names one file")
                if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
                    raise CorpusError(
                        f"{file}: line {table.line_num} has the id {name!r}; an id is a file's name without .npz, "
                        "not a path"
                    )
                rows[name] = Row(name, row.get("signer") or "unknown", row["annotation"])
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise CorpusError(f"{file}: cannot be read as a table ({error}); it is text parted by |") from error
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    return list(rows.values())


@dataclass(frozen=True)
class Listing:
    """What a split's CSV and folder say before any feature is read."""

    name: str
    csv: Path
    place: Path  # where the features lie
    rows: list[Row]
    files: dict[str, Path]  # by id, in the order of the rows; an id without features is absent
    unannotated: list[str]

    @property
    def first(self) -> Path:
        """The file whose width all others must have."""
        return next(iter(self.files.values()))

    @property
    def missing(self) -> list[str]:
        """Ids without features."""
        return [row.id for row in self.rows if row.id not in self.files]

    @property
    def npy(self) -> list[str]:
        """Those of them that lie there as ID.npy, which is not read."""
        return [name for name in self.missing if (self.place / f"{name}.npy").is_file()]


def list_split(name: str, folder: Path, annotations: Path) -> Listing | None:
    """The sentences of a split and their npz files in `folder`/`name`; None where there is no test split.

    Raises:
        CorpusError: the CSV or the folder is not there or breaks a rule.
    """
    place = folder / name
    present = {p.stem: p for p in place.glob("*.npz") if not p.name.startswith(".")} if place.is_dir() else None
    return listing_of(name, annotations, place, present)


def listing_of(name: str, annotations: Path, place: Path, present: Mapping[str, Path] | None) -> Listing | None:
    """The sentences of a split; `present` are the features there are, by id, None if not even a place for them.

    Raises:
        CorpusError: see `list_split`.
    """
    table = _find_csv(annotations, name)
    if name == "test" and (table is None or present is None):
        return None
    if table is None:
        raise CorpusError(f"{annotations}: there is no {name}.corpus.csv nor any {name}*.csv; train and dev need one")
    if present is None:
        raise CorpusError(f"{place}: there is no such folder; the features of {table.name} belong there")
    rows = _read_csv(table)
    if not rows:
        way_out = "delete it to go without a test split" if name == "test" else "train and dev need some"
        raise CorpusError(f"{table}: has no sentences below its first line; {way_out}")
    files = {row.id: present[row.id] for row in rows if row.id in present}
    return Listing(name, table, place, rows, files, sorted(present.keys() - files.keys()))


def check_coverage(listing: Listing) -> None:
    """
    Raises:
        CorpusError: too many ids have no features.
    """
    missing, n = listing.missing, len(listing.rows)
    if len(missing) > MISSING_SHARE * n:
        way_out = "extract them or delete their lines"
        if npy := listing.npy:
            files = some([f"{name}.npy" for name in npy])
            way_out = f"save {files}, which are not read, again with np.savez(ID.npz, features=...)"
        raise CorpusError(
            f"{listing.place}: {len(missing)} of {n} ids of {listing.csv.name} have no features ({some(missing)}); at "
            f"most {MISSING_SHARE:.0%} may be missing, so {way_out}"
        )


def some(items: Sequence[str], most: int = 3) -> str:
    """The first items in words, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
