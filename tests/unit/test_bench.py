"""`make bench`: rows of results, what they are held to, and the table that is written into pages."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench  # noqa: E402
import rows  # noqa: E402

FIELDS = {"name", "value", "unit", "baseline", "ratio", "commit", "date", "command"}


def result(name: str, **values: Any) -> dict[str, Any]:
    about = {"commit": "abc1234", "date": "2026-01-31", "command": "python benchmarks/x.py"}
    return {**asdict(rows.Row(name)), **about, **values}


@pytest.mark.parametrize(
    ("number", "most", "least"),
    [(0.7, "stretch", "missed"), (0.75, "stretch", "missed"), (0.8, "met", "missed"), (0.86, "missed", "met"),
     (1.2, "missed", "stretch")],
)  # fmt: skip
def test_an_aim_is_met_at_its_limit_and_says_which(number: float, most: str, least: str) -> None:
    assert rows.Aim(0.85, 0.75).judged(number) == most
    assert rows.Aim(0.86, 1.0, most=False).judged(number) == least


def test_a_row_has_its_ratio_to_the_baseline_and_is_judged_by_it() -> None:
    found = rows.row("an epoch", 4.0, "s", "plain loop", 5.0, aim=rows.Aim(0.85, 0.75))
    assert (found.ratio, found.met, found.aim) == (0.8, "met", "at most 0.85; stretch 0.75")
    by_value = rows.row("memory", 200, "MB", aim=rows.Aim(150, of="value"))
    assert (by_value.ratio, by_value.met) == (None, "missed")


def test_results_have_what_every_row_must_have_and_name_their_benchmark() -> None:
    found = bench.told("reading", rows.row("an epoch", 1.0, "s", "npz", 2.0), bench.BENCHMARKS["reading"])
    assert set(found) >= FIELDS
    assert found["name"] == "reading: an epoch"
    assert found["command"] == "python benchmarks/reading.py"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = bench.Benchmark("benchmarks/nothing.py", needs="../nowhere")
    (found,) = bench.measured("epoch", benchmark, quick=False)
    assert (found["value"], found["not_run"]) == (None, "there is no ../nowhere")
    assert "| epoch | not run: there is no ../nowhere |" in bench.as_table([found])


def test_new_rows_take_the_place_of_their_own_benchmark_alone() -> None:
    old = [result("workers: two", value=1.0), result("reading: old", value=2.0), result("gone: row", value=0.0)]
    found = bench.merged(old, {"reading": [result("reading: new", value=3.0)]})
    assert [(each["name"], each["value"]) for each in found] == [("reading: new", 3.0), ("workers: two", 1.0)]


def test_what_could_not_be_run_here_takes_no_number_away() -> None:
    measured = [result("gpu: a trial", value=1.0)]
    missing = {"gpu": [result("gpu: a trial", value=None, not_run="no CUDA device")]}
    assert bench.merged(measured, missing) == measured
    assert bench.merged([], missing) == missing["gpu"]


def test_a_page_keeps_all_but_its_table() -> None:
    page = f"# Title\n\nby hand | 1 |\n\n{bench.BEGIN}\n\nan old table\n\n{bench.END}\n\nafter\n"
    row = asdict(rows.row("an epoch", 1234.5, "ms", "plain loop", 2469.0, aim=rows.Aim(0.85), note="quiet"))
    written = bench.with_table(page, [result("x: an epoch", **{k: v for k, v in row.items() if k != "name"})])
    line = "| x: an epoch | 1,234 ms | 2,469 (plain loop) | 0.5 | at most 0.85 | met. quiet | abc1234, 2026-01-31 |"
    assert line in written
    assert "old table" not in written
    assert written.startswith("# Title\n\nby hand | 1 |\n")
    assert written.endswith(f"{bench.END}\n\nafter\n")
    assert bench.with_table(written, []).count("\n| ") == 1  # its head


def test_the_pages_have_a_place_for_the_table_and_the_scripts_are_there() -> None:
    for page in bench.PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count(bench.BEGIN) == text.count(bench.END) == 1, page
    for name, benchmark in bench.BENCHMARKS.items():
        assert (ROOT / benchmark.command.split()[0]).is_file(), name


def test_what_benchmarks_write_makes_no_other_code_of_a_commit(tmp_path: Path) -> None:
    """Each writes the table, so only the first would have a clean tree."""
    assert {bench.RESULTS, *bench.PAGES} <= {ROOT / path for path in rows.WRITTEN}

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    for path in ("code.py", *rows.WRITTEN):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before", encoding="utf-8")
    git("init")
    git("add", ".")
    git("commit", "-m", "a commit")
    clean = rows.about(tmp_path)["commit"]
    for path in (*rows.WRITTEN, "untracked"):
        (tmp_path / path).write_text("after", encoding="utf-8")
    assert rows.about(tmp_path)["commit"] == clean
    (tmp_path / "code.py").write_text("after", encoding="utf-8")
    assert rows.about(tmp_path)["commit"] == f"{clean}-dirty"


def test_the_list_says_what_there_is() -> None:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(bench.BENCHMARKS)
