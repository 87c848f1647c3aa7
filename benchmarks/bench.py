"""Every benchmark of speed and scale: `make bench`.

    python benchmarks/bench.py [--only NAME ...] [--quick] [--list] [--json]

Each is a script of its own, run as a process, and measures its baseline beside itself. Rewrites benchmarks/results.json
(rows of what was not run stay) and the tables in benchmarks/README.md and docs/explanation/speed.md; `--quick` tries
small sizes and writes nothing. Exit code 1: a script failed; its last words are shown, and its rows stay.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rows import COLUMNS, ROOT, Row, about, cells, not_run, table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGES = (HERE / "README.md", ROOT / "docs" / "explanation" / "speed.md")
BEGIN, END = "<!-- bench.py writes from here -->", "<!-- to here -->"


@dataclass(frozen=True)
class Benchmark:
    command: str
    """Script and options, after `python`, from the repository's root."""
    quick: str = ""
    """More options, for small sizes."""
    needs: str = ""
    """What must be there, from the repository's root."""
    makes: str = ""
    """A corpus that it reads, which is made first where it is not there yet."""
    by: str = ""
    """How, after `python`."""


AN4, ASL, PHOENIX = (f"../shared/data/{name}" for name in ("an4", "asl_signs", "phoenix2014-si5"))
"""Recorded corpora, beside the checkout."""

BENCHMARKS: Mapping[str, Benchmark] = {
    "epoch-an4": Benchmark(f"benchmarks/epoch.py {AN4} --batch_size 8", "--rounds 1", needs=AN4),
    "epoch-asl": Benchmark(
        "benchmarks/epoch.py data/asl --batch_size 8",
        "--rounds 1",
        needs=ASL,
        makes="data/asl",
        by=f"{ASL}/make_sentences.py data/asl",
    ),
    "epoch-full-size": Benchmark(
        f"benchmarks/epoch.py data/phoenix-80 --filter phoenix-si5 --vocabulary {PHOENIX}/vocab_si5_973.txt "
        "--batch_size 4 --channels 512 --hidden 448 --lstm_layers 2 --rounds 3 --dev 2",  # SI5 has 39 of train to one
        "--rounds 1",
        needs=PHOENIX,
        makes="data/phoenix-80",
        by="-m model generate data/phoenix-80 --width 6516 --limit 80 --filter phoenix-si5 "
        f"--like {PHOENIX}/annotations",
    ),
    "reading": Benchmark("benchmarks/reading.py", "--quick"),
    "workers": Benchmark("benchmarks/workers.py", "--quick"),
    "memory": Benchmark("benchmarks/memory.py", "--quick"),
    "orchestration": Benchmark("benchmarks/orchestration.py --databases postgresql", "--quick"),
    "tracking": Benchmark("benchmarks/mlflow_cost.py", "--quick"),
    "efficiency": Benchmark("benchmarks/efficiency.py", "--quick"),
    "live": Benchmark(f"benchmarks/live.py {AN4}", "--quick", needs=AN4),
    "scale": Benchmark("benchmarks/scale.py", "--quick"),
    "gpu": Benchmark("benchmarks/gpu.py", "--device cpu --quick"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help="some of them")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all runs; writes nothing")
    parser.add_argument("--list", action="store_true", help="say which there are, and what they run")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    if arguments.list:
        for name, benchmark in BENCHMARKS.items():
            print(f"{name:16} python {benchmark.command}")
        return 0
    found: dict[str, list[dict[str, Any]]] = {}
    failed = False
    for name in arguments.only or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found[name] = measured(name, BENCHMARKS[name], quick=arguments.quick)
        except subprocess.CalledProcessError as error:
            print(f"error: {shlex.join(error.cmd)} ended with {error.returncode}:\n{error.stderr}", file=sys.stderr)
            failed = True
            continue
        if not arguments.quick:
            results = merged(read_results(), found)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            for page in PAGES:
                page.write_text(with_table(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    rows = [each for some in found.values() for each in some]
    print(json.dumps(rows, indent=1) if arguments.json else as_table(rows))
    return int(failed)


def measured(name: str, benchmark: Benchmark, *, quick: bool) -> list[dict[str, Any]]:
    """The rows of one benchmark.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    if not (ROOT / benchmark.needs).exists():
        return [told(name, not_run("", f"there is no {benchmark.needs}"), benchmark)]
    if benchmark.makes and not (ROOT / benchmark.makes).exists():
        python(shlex.split(benchmark.by))
    command = f"{benchmark.command} {benchmark.quick}".strip() if quick else benchmark.command
    said = json.loads(python([*shlex.split(command), "--json"]))
    return [told(name, Row(**each), benchmark) for each in said]


def python(words: Sequence[str]) -> str:
    """What `python WORDS` prints, from the repository's root; what it says besides goes where ours does."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr[-2000:])
    return done.stdout


def told(name: str, row: Row, benchmark: Benchmark) -> dict[str, Any]:
    """A row as results.json has it."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    values["name"] = f"{name}: {row.name}" if row.name else name
    return {**values, **about(), "command": f"python {benchmark.command}"}


def read_results() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else []


def merged(old: Sequence[dict[str, Any]], found: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """New rows in place of those of the same benchmark, in the order of BENCHMARKS. What could not be measured here
    takes no number away that was measured elsewhere.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for each in old:
        by_name.setdefault(each["name"].partition(":")[0], []).append(each)
    for name, rows in found.items():
        if name not in by_name or any(not row["not_run"] for row in rows):
            by_name[name] = list(rows)
    return [each for name in BENCHMARKS for each in by_name.get(name, [])]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    names = [field.name for field in fields(Row)]
    lines = [[*cells(Row(**{key: each[key] for key in names})), f"{each['commit']}, {each['date']}"] for each in rows]
    return table([*COLUMNS, "commit, date"], lines)


def with_table(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """A page with its table written anew."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"no {BEGIN} with {END} behind it"
    return f"{before}{BEGIN}\n\n{as_table(rows)}\n\n{END}{after}"


if __name__ == "__main__":
    raise SystemExit(main())
