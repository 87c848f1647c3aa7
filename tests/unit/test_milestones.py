from __future__ import annotations

import math

import pytest

from model.milestones import DEFAULT, Milestone, lines, met, parse, written


def states(text: str, wers: list[float], planned: int) -> list[tuple[str, int | None]]:
    return [(s.state, s.reached) for s in met(parse(text), wers, planned)]


def test_the_default_is_the_success_table_of_the_user() -> None:
    assert written(DEFAULT) == "1:98%,5:80%,10:65%,50:45%,200:30%,end:25%"
    assert parse(written(DEFAULT)) == DEFAULT


@pytest.mark.parametrize("text", ["1:0.98, 5:0.8", "5:80%,1:98%", "1:98.0%,5:.8"])
def test_percentages_and_fractions_in_any_order(text: str) -> None:
    assert parse(text) == (Milestone(1, 0.98), Milestone(5, 0.8))


def test_none_is_no_milestone() -> None:
    assert parse("none") == ()
    assert written(()) == "none"
    assert lines(met((), [1.0], 5)) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5", "'5': write EPOCH:WER"),
        ("five:80%", "write EPOCH:WER"),
        ("5:", "write EPOCH:WER"),
        ("5:80", "percentage"),
        ("5:nan", "percentage"),
        ("5:0", "percentage"),
        ("0:80%", "the first epoch is 1"),
        ("5:80%,5:70%", "two for this epoch"),
        ("end:80%,end:70%", "two for this epoch"),
        ("", "write EPOCH:WER"),
    ],
)
def test_what_is_not_written_so_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_met_missed_open_and_beyond() -> None:
    wers = [1.0, 0.97, 0.79, 0.6]
    assert states("1:98%,3:80%,4:70%,5:65%,6:50%,20:30%,end:25%", wers, 8) == [
        ("missed", 2),
        ("met", 3),
        ("met", 3 + 1),
        ("met", 4),  # before its time
        ("open", None),
        ("beyond", None),
        ("open", None),
    ]


def test_the_end_is_the_last_epoch_planned() -> None:
    assert states("end:25%", [0.5, 0.3], 2) == [("missed", None)]
    assert states("end:25%", [0.5, 0.24], 2) == [("met", 2)]
    assert states("end:25%", [0.5], 2) == [("open", None)]


def test_the_wer_itself_is_not_below_it() -> None:
    assert states("1:80%", [0.8], 3) == [("missed", None)]


def test_a_wer_that_is_not_a_number_meets_nothing() -> None:
    assert states("1:98%,2:98%", [math.nan, 0.5], 3) == [("missed", 2), ("met", 2)]
    assert lines(met(parse("1:98%"), [math.nan], 3))[0] == "WER < 98% by epoch 1: missed"


def test_lines_for_a_person() -> None:
    """At epoch 3 a healthy run shows 100 %: the lines say that this is no verdict."""
    assert lines(met(DEFAULT, [1.0, 1.0, 1.0, 0.9, 0.85, 0.7], 60)) == [
        "WER < 98% by epoch 1: missed (100.0% by then; reached at epoch 4)",
        "WER < 80% by epoch 5: missed (85.0% by then; reached at epoch 6)",
        "WER < 65% by epoch 10: not reached yet",
        "WER < 45% by epoch 50: not reached yet",
        "WER < 30% by epoch 200: beyond this run",
        "WER < 25% by epoch 60: not reached yet",
        "A missed milestone is no verdict: at epoch 3 a healthy run often still shows 100 %.",
    ]
    assert lines(met(parse("1:98%"), [0.9], 60)) == ["WER < 98% by epoch 1: met at epoch 1"]
