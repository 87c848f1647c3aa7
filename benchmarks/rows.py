"""What a benchmark found, as rows: each a number beside that of its baseline, which was measured in the same run."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]

WRITTEN = ("benchmarks/results.json", "benchmarks/README.md", "docs/explanation/speed.md", "docs/explanation/scale.png")
"""What benchmarks write of the repository."""

Met = Literal["stretch", "met", "missed"]


@dataclass(frozen=True)
class Aim:
    """What a number is held to."""

    limit: float
    stretch: float | None = None
    most: bool = True
    """Whether it may be at most that; else it must be at least that."""
    of: Literal["value", "ratio"] = "ratio"

    def __str__(self) -> str:
        words = f"{'at most' if self.most else 'at least'} {self.limit:g}"
        return words if self.stretch is None else f"{words}; stretch {self.stretch:g}"

    def judged(self, number: float) -> Met:
        for limit, word in ((self.stretch, "stretch"), (self.limit, "met")):
            if limit is not None and (number <= limit if self.most else number >= limit):
                return word  # type: ignore[return-value]
        return "missed"


@dataclass(frozen=True)
class Row:
    name: str
    value: float | None = None
    """None: it could not be measured here."""
    unit: str = ""
    against: str = ""
    """What the baseline is."""
    baseline: float | None = None
    """In the same unit."""
    ratio: float | None = None
    """Of the value to the baseline, or the other way round where the aim says how many times better it is."""
    aim: str = ""
    met: Met | Literal[""] = ""
    note: str = ""
    not_run: str = ""
    """Why not."""


def row(
    name: str,
    value: float,
    unit: str,
    against: str = "",
    baseline: float | None = None,
    ratio: float | None = None,
    aim: Aim | None = None,
    note: str = "",
) -> Row:
    """A row that was measured; its ratio is value / baseline unless it is given."""
    if ratio is None and baseline:
        ratio = value / baseline
    met: Met | Literal[""] = ""
    if aim is not None:
        number = value if aim.of == "value" else ratio
        assert number is not None, name
        met = aim.judged(number)
    return Row(name, value, unit, against, baseline, ratio, str(aim or ""), met, note)


def not_run(name: str, reason: str) -> Row:
    return Row(name, not_run=reason)


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


COLUMNS = ("what", "value", "baseline", "ratio", "aim", "")


def cells(row: Row) -> list[str]:
    """A row of a table in Markdown, as COLUMNS."""
    if row.not_run:
        return [row.name, f"not run: {row.not_run}", "", "", "", ""]
    value = f"{number(row.value)} {row.unit}".strip()
    baseline = f"{number(row.baseline)} ({row.against})" if row.baseline is not None else row.against
    words = {"stretch": "met, stretch as well"}.get(row.met, row.met)
    return [row.name, value, baseline, number(row.ratio), row.aim, ". ".join(filter(None, [words, row.note]))]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(each) + " |" for each in [header, *rows]]
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)


def about(root: Path = ROOT) -> dict[str, str]:
    """Which code, and when: what benchmarks themselves have written since the commit makes no other code of it."""
    git = ["git", "-C", str(root)]
    asked = [*git, "describe", "--always", "--exclude", "*"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    changed = [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in WRITTEN)]
    dirty = subprocess.run(changed, capture_output=True, text=True, check=True).stdout.strip()
    return {"commit": f"{commit}-dirty" if dirty else commit, "date": datetime.date.today().isoformat()}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    made.add_argument("--json", action="store_true", help="print a JSON list of rows")
    return made


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    if as_json:
        json.dump([asdict(each) for each in rows], sys.stdout, allow_nan=False)
        print()
    else:
        print(table(COLUMNS, [cells(each) for each in rows]))
