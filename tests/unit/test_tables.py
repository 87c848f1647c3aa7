"""Tables in terminals, wide and narrow, and in pipes."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len

from sweeps.commands import compare, status, trials
from sweeps.commands.tables import Column, age, console_for, print_table
from sweeps.errors import SweepError
from sweeps.records import Runner, SweepStatus
from sweeps.states import SweepState, TrialState
from tests.reviewed import typical
from tests.rows import sweep_row, trial_row

RED = "\x1b[31m"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of the terminal; `width` is a parameter of the test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(request.param))
    for name in ("NO_COLOR", "FORCE_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    return int(request.param)


def lines(columns: tuple[Column, ...], rows: list[list[str]], out: io.StringIO, *styles: str) -> list[str]:
    print_table(columns, rows, console_for(out), styles or None)
    return out.getvalue().splitlines()


def plain(line: str) -> str:
    return line.replace("\x1b[1m", "").replace("\x1b[0m", "")


ROWS = [trials.row(trial) for trial in typical().trials]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200], indirect=True)
def test_no_line_is_longer_than_the_terminal_is_wide(width: int) -> None:
    shown = [plain(line) for line in lines(trials.COLUMNS, ROWS, Terminal())]
    assert max(map(cell_len, shown)) <= width
    assert "trial" in shown[0]
    assert "best" in shown[0]
    for number, line in enumerate(shown[1:15]):
        assert line.split()[0] == str(number)


@pytest.mark.parametrize("width", [40, 200], indirect=True)
def test_what_has_no_room_is_named(width: int) -> None:
    text = plain("\n".join(lines(trials.COLUMNS, ROWS, Terminal())))
    assert ("no room for" in text) == (width == 40)
    assert ("Learns, but too slowly." in text) == (width == 200)
    assert "parameters" in text


@pytest.mark.parametrize("width", [20], indirect=True)
def test_a_pipe_gets_every_cell_whole_and_no_colour(width: int) -> None:
    out = io.StringIO()
    shown = lines(trials.COLUMNS, ROWS, out, *["red"] * len(ROWS))
    assert "\x1b" not in out.getvalue()
    assert len(shown) == 1 + len(ROWS)
    assert all(row[-1] in line and row[-2] in line for row, line in zip(ROWS, shown[1:], strict=True))


@pytest.mark.parametrize("width", [200], indirect=True)
def test_colours_are_for_terminals_that_want_them(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RED in "".join(lines((Column("a"),), [["x"]], Terminal(), "red"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert RED not in "".join(lines((Column("a"),), [["x"]], Terminal(), "red"))


def test_a_cell_cannot_speak_to_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07 [red]x[/red] \u202e a\nb"
    (_, line) = lines((Column("why"),), [[hostile]], io.StringIO())
    assert line == "?]0;owned? [red]x[/red] ? a b"


@pytest.mark.parametrize("width", [12], indirect=True)
def test_wide_characters_count_as_the_terminal_counts_them(width: int) -> None:
    shown = [plain(line) for line in lines((Column("name"), Column("n")), [["漢字漢字漢字漢字", "1"]], Terminal())]
    assert max(map(cell_len, shown)) <= width
    assert shown[1].endswith("…  1")


@pytest.mark.parametrize(("seconds", "said"), [(-5, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (3e5, "3 d")])
def test_ages(seconds: float, said: str) -> None:
    assert age(seconds) == said


def numbers(sort: str) -> list[int]:
    return [trial.number for trial in trials.in_order(list(typical().trials), sort, ["learning_rate", "dropout"])]


def test_trials_are_sorted_and_those_without_a_value_come_last() -> None:
    assert numbers("number") == list(range(14))
    assert numbers("wer")[:3] == [7, 6, 8]
    assert numbers("-wer")[:3] == [0, 1, 12]
    assert numbers("wer")[-1] == numbers("-wer")[-1] == 13
    assert numbers("-learning_rate")[:2] == [11, 10]
    assert numbers("epochs")[:2] == [13, 12]
    with pytest.raises(SweepError, match="number, wer, epochs, state, verdict, learning_rate, dropout"):
        numbers("lr")


def test_overrides_of_other_kinds_are_sorted_as_well() -> None:
    given = [trial_row(n, overrides={"schedule": value}) for n, value in enumerate(["plateau", 3, "cosine", True])]
    assert [t.number for t in trials.in_order(given, "schedule", [])] == [3, 1, 2, 0]


def glance(**fields: object) -> SweepStatus:
    counts = dict.fromkeys(TrialState, 0) | {TrialState.COMPLETE: 3, TrialState.PRUNED: 2, TrialState.RUNNING: 1}
    return SweepStatus(sweep_row(**fields), counts, 77, trial_row(4, name="fixed", best_wer=0.123))


def test_a_sweep_in_a_line() -> None:
    runner = Runner("r", "h1/4026", 12)
    cells = status.row(glance(runner=runner, runner_beat_at=990.0), now=1000.0)
    said = dict(zip((column.name for column in status.COLUMNS), cells, strict=True))
    assert said["done"] == "5/20"
    assert (said["running"], said["pruned"], said["failed"]) == ("1", "2", "")
    assert (said["best WER"], said["trial"], said["age"]) == ("12.3%", "4 fixed", "17 min")
    assert said["keeper"] == "process 12 on h1"
    late = status.row(glance(runner=runner, runner_beat_at=700.0), now=1000.0)
    assert late[-2] == "process 12 on h1, silent for 5 min"


def test_a_sweep_without_anything() -> None:
    empty = SweepStatus(sweep_row(state=SweepState.PENDING), dict.fromkeys(TrialState, 0), 0, None)
    assert status.as_object(empty, 10.0)["best"] is None
    assert status.row(empty, 10.0)[7:9] == ["", ""]


def side(name: str, **values: object) -> dict[str, object]:
    return {"sweep": name, "corpus_hash": "a" * 64, "vocabulary_hash": "b" * 64, "constant_wer": 0.9,
            "trainer": "built-in", **values}  # fmt: skip


def test_sweeps_on_one_corpus_compare() -> None:
    assert compare.why_not([side("one"), side("two"), side("three")]) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("corpus_hash", "c" * 64, "the corpora differ.*one aaaaaaaaaaaa, two aaaaaaaaaaaa, three cccccccccccc"),
        ("corpus_hash", None, "three unknown"),
        ("vocabulary_hash", "c" * 64, "the vocabularies differ"),
        ("constant_wer", 0.8, "the dev sentences differ.*three 80.00%"),
        ("trainer", "mine.py:Mine", "different trainers.*three mine.py:Mine"),
    ],
)
def test_what_makes_wers_incomparable_is_said(key: str, value: object, said: str) -> None:
    (reason,) = compare.why_not([side("one"), side("two"), side("three", **{key: value})])
    assert re.search(said, reason)


def test_specs_are_compared_by_dotted_path() -> None:
    one = {"name": "a", "found": {"path": "/x"}, "trainer": {"hidden": 64, "epochs": 5}, "pruner": {"name": "none"}}
    two = {"name": "b", "found": {"path": "/y"}, "trainer": {"hidden": 128, "epochs": 5}, "seed": 3, "pruner": {}}
    assert compare.differences([one, two]) == {
        "trainer.hidden": [64, 128],
        "pruner.name": ["none", None],
        "pruner": [None, {}],
        "seed": [None, 3],
    }
    assert compare.differences([one, one, {**one, "name": "c"}]) == {}
