"""Tables for terminals, wide and narrow, and for pipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

GAP = "  "
NARROWEST = 8
"""Columns of a terminal that a cell keeps, however little room there is."""
READABLE = 30
"""A text that is cut to this length, or longer, need not leave."""


@dataclass(frozen=True)
class Column:
    name: str
    right: bool = False
    leaves: int = 0
    """Where the room is scarce the columns leave, the highest first; 0 stays, and is cut."""


def console_for(out: TextIO) -> Console:
    """Colours only on a terminal, and not with NO_COLOR."""
    return Console(file=out, markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    console: Console,
    styles: Sequence[str] | None = None,
) -> None:
    """A line a row. On a terminal no line is longer than it is wide, and what is left out is said; elsewhere every
    cell is there whole.

    Args:
        rows: cells, as many as columns.
        styles: rich's style of each row's line; "" for none.
    """
    cells = [[_plain(cell) for cell in row] for row in rows]
    widths = [max([cell_len(column.name), *(cell_len(row[at]) for row in cells)]) for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    if console.is_terminal:
        kept = _fitted(columns, widths, console.width)
    lines = [_line([column.name for column in columns], columns, widths, kept)]
    lines += [_line(row, columns, widths, kept) for row in cells]
    looks = ["bold", *(styles or [""] * len(rows))]
    whole = Text("\n", no_wrap=True, overflow="ignore")  # printed at once: of 1,000 lines one by one takes a tenth
    console.print(whole.join(Text(line, style=look) for line, look in zip(lines, looks, strict=True)))
    left = [columns[at].name for at in range(len(columns)) if at not in kept]
    if left:
        console.print(f"(no room for: {', '.join(left)})", soft_wrap=False)


def _fitted(columns: Sequence[Column], widths: list[int], room: int) -> list[int]:
    """The columns that there is room for, by place; `widths` become those they are cut to."""
    kept = list(range(len(columns)))
    for at in sorted((at for at in kept if columns[at].leaves), key=lambda at: -columns[at].leaves):
        over = _total(widths, kept) - room
        if over > 0 and widths[at] - over >= READABLE:
            widths[at] -= over
        elif over > 0:
            kept.remove(at)
    while _total(widths, kept) > room and max(widths[at] for at in kept) > NARROWEST:
        widths[max(kept, key=lambda at: widths[at])] -= 1
    return kept


def _total(widths: Sequence[int], kept: Sequence[int]) -> int:
    return sum(widths[at] for at in kept) + len(GAP) * (len(kept) - 1)


def _line(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int], kept: Sequence[int]) -> str:
    parts = []
    for at in kept:
        cell, width = row[at], widths[at]
        if cell_len(cell) > width:
            cell = f"{set_cell_size(cell, width - 1)}…"
        space = " " * (width - cell_len(cell))
        parts.append(f"{space}{cell}" if columns[at].right else f"{cell}{space}")
    return GAP.join(parts).rstrip()


def _plain(cell: str) -> str:
    """One line, and nothing that a terminal would obey: reasons hold what other people's code said."""
    text = " ".join(cell.split())
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def age(seconds: float) -> str:
    """`40 s`, `12 min`, `5 h`, `3 d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def percent(wer: float | None) -> str:
    return "" if wer is None else f"{wer:.1%}"
