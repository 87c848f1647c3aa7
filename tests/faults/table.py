"""The results of `make faults` as a table: `python -m tests.faults.table [--docs] [--json FILE]`.

The rows are what the tests have left in pytest's cache. `--docs` writes the table into docs/explanation/faults.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]
ROWS = ROOT / ".pytest_cache" / "d" / "faults"
PAGE = ROOT / "docs" / "explanation" / "faults.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", action="store_true", help="write the table into the page")
    parser.add_argument("--json", type=Path, help="write the rows into a file")
    given = parser.parse_args()
    rows = read()
    text = f"{heading(rows)}\n\n{table(rows)}"
    print(text)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if given.docs:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def read() -> list[dict[str, Any]]:
    """The rows, in the order of the scenarios."""
    order = [scenario.name for scenario in SCENARIOS]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in ROWS.glob("*.json")]
    known = [row for row in rows if row["scenario"] in order]
    return sorted(known, key=lambda row: (order.index(row["scenario"]), row["database"] != "sqlite"))


def heading(rows: Sequence[dict[str, Any]]) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    faults, broken = sum(len(row["struck"]) for row in rows), sum(bool(row["violations"]) for row in rows)
    return (
        f"{len(rows)} sweeps, {faults} faults, {broken} sweeps in which a rule was broken. "
        f"Commit {commit or 'unknown'}, {datetime.date.today().isoformat()}, "
        f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, `make faults`."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("what happens", "where", "database", "epochs repeated (may)", "time (allowed)", "all holds")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        lines.append(
            (
                row["what"],
                ", ".join(where(row["struck"])),
                "SQLite" if row["database"] == "sqlite" else "PostgreSQL",
                f"{row['repeated']} ({row['may_repeat']})",
                f"{row['seconds']:.0f} s ({row['allowed']:.0f} s)",
                "no: " + "; ".join(row["violations"]) if row["violations"] else "yes",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def where(struck: Sequence[str]) -> list[str]:
    """`kill before claim #3` becomes `before claim`; each place once."""
    places = [re.sub(r".*?((?:before|after) .*) #\d+$", r"\1", each) for each in struck]
    return sorted(set(places), key=places.index)


if __name__ == "__main__":
    main()
