"""What stands above a sweep's runs on MLflow's page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.description import LEADERS, description, plain
from sweeps.records import DecisionRow, TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.summary import Conclusions, conclusions
from tests.rows import VALUES, decision_row, epoch_row, sweep_row, trial_row
from tracking.writer import MAX_TAG_LENGTH

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x"})
COMMAND = "python -m model train --seed 1"
ALARM = {"sentence": "None of 8 trials took off.", "advice": "Try higher rates: --accept-proposal."}
TEST = {"sentences": ["It used its input at 1.0e-03.", "It diverged at 3.0e-02."]}
FACTS = {"constant_wer": 0.92, "constant_sentence": "A"}
FOUND = {**FACTS, "alarm": ALARM, "range_test": TEST}
"""Facts of a sweep that alarmed and had a range test."""

HOSTILE = (
    "`x` **b** | <img src=x onerror=alert(1)> [a](javascript:b) @me :smile: ```\n# h\n- ~~ https://e.x www.e.x $$ ¨"
)


def found_in(trials: Sequence[TrialRow], decisions: Sequence[DecisionRow] = (), lessons: bool = True) -> Conclusions:
    """What a sweep of these trials came to, each with 12 epochs at its best WER."""
    epochs = {t.id: [epoch_row(n, t.best_wer) for n in range(1, 13)] for t in trials if t.best_wer is not None}
    return conclusions(sweep_row(facts=FACTS), trials, decisions, SPEC, epochs if lessons else None)


def described(
    trials: Sequence[TrialRow],
    decisions: Sequence[DecisionRow] = (),
    commands: Sequence[str] = (),
    pictures: Sequence[tuple[str, str]] = (),
    lessons: bool = True,
    **fields: Any,
) -> str:
    row = sweep_row(**{"experiment_id": "7", "facts": FACTS, **fields})
    return description(row, trials, SPEC, commands, found_in(trials, decisions, lessons), pictures)


def tables(text: str) -> list[list[str]]:
    """The cells of each row of the Markdown tables, without their heads."""
    rows = [line for line in outside_code(text) if line.startswith("|")]
    return [row.strip("|").split("|") for row in rows if not row.startswith(("| trial", "|---"))]


def outside_code(text: str) -> list[str]:
    """Its lines but those in fences, each of which must be closed."""
    fence, lines = "", list[str]()
    for line in text.split("\n"):
        if not fence and line.startswith("```"):
            fence = line
        elif fence and line.startswith(fence):
            fence = ""
        elif not fence:
            lines.append(line)
    assert not fence, "a fence is open"
    return lines


def under(heading: str, text: str) -> list[str]:
    """The points of a section."""
    _, found, rest = text.partition(f"\n**{heading}")
    points = rest.partition("\n\n")[2].partition("\n\n")[0]
    return [unescape(line.removeprefix("- ")) for line in points.split("\n") if line.startswith("- ")] if found else []


def links(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\[([^]]*)\]\(([^)]*)\)", "\n".join(outside_code(text)))


def typical() -> list[TrialRow]:
    return [
        trial_row(0, TrialState.PRUNED, verdict="too_slow", best_wer=0.7, epochs=6, reason="Slow.", run_id="r0"),
        trial_row(1, TrialState.COMPLETE, verdict="learned", best_wer=0.2, epochs=24, run_id="r1"),
        trial_row(2, TrialState.COMPLETE, verdict="never_learned", best_wer=1.0, epochs=24, run_id="r2"),
        trial_row(3, TrialState.COMPLETE, verdict="collapsed", best_wer=0.6, epochs=24, run_id="r3"),
        trial_row(4, TrialState.FAILED, reason="The disk was full.", hyperparameters=None, run_id="r4"),
    ]


def test_the_first_line_is_the_answer() -> None:
    first = described(typical(), state=SweepState.COMPLETE).split("\n")[0]
    assert first == (
        "**Best: trial [1](#/experiments/7/runs/r1?workflowType=machine_learning), dev WER 20.0%** "
        "(best constant sentence: 92.0%). "
        "Complete, 5 of 20 trials: 3 took off, 2 collapsed, 1 pruned."
    )
    assert described([]).split("\n")[0] == ("**No WER yet** (best constant sentence: 92.0%). Running, 0 of 20 trials.")
    assert described(typical(), facts=FOUND).startswith("**Alarm.** **Best")


def test_a_sweep_without_trials_says_so() -> None:
    text = described([])
    assert "No trial yet" in text
    assert tables(text) == []
    assert under("Pruned", text) == []


def test_it_says_what_was_found_out() -> None:
    trials = typical()
    text = described(trials, [decision_row(0), decision_row(1, action="audited")], [COMMAND], facts=FOUND)
    assert under("Alarm", text) == [ALARM["sentence"], ALARM["advice"], "Since then 3 trials took off."]
    assert under("Range test", text) == TEST["sentences"]
    trusted = under("Can I trust it?", text)
    assert (
        trusted[0] == "No other trial came within 0.5 points of it, by which two trainings of one configuration differ."
    )
    assert any(sentence.startswith("1 trial failed") for sentence in trusted)
    learned = under("What it learned", text)
    assert learned[0].startswith("learning_rate: 3 of 4 trials took off"), "the failed one is none of them"
    assert under("How often the rules were wrong", text)[0].startswith("The rules condemned 2 trials: 1 stopped")
    assert not any(sentence.startswith("The rules condemned") for sentence in trusted), "said once"
    assert f"```\n{COMMAND}\n```" in text
    assert under("Pruned", text) == ["[0](#/experiments/7/runs/r0?workflowType=machine_learning) after 6 epochs: Slow."]
    assert under("Failed", text) == [
        "[4](#/experiments/7/runs/r4?workflowType=machine_learning) after 0 epochs: The disk was full."
    ]


def test_what_is_not_there_has_no_heading() -> None:
    text = described([trial_row(0, best_wer=1.0)])
    for heading in ("Alarm", "Range test", "Train the best", "How often", "Failed", "Pruned", "Verdicts"):
        assert f"**{heading}" not in text


def test_the_leaderboard_has_the_best_ones_with_links_to_their_runs() -> None:
    trials = [
        trial_row(n, TrialState.COMPLETE, verdict="learned", best_wer=0.9 - n / 100, run_id=f"r{n}") for n in range(15)
    ]
    text = described(trials, [decision_row(14, action="audited")])
    rows = tables(text)
    assert [row[0].strip() for row in rows] == [
        f"[{n}](#/experiments/7/runs/r{n}?workflowType=machine_learning)" for n in range(14, 4, -1)
    ]
    assert len(rows) == LEADERS
    assert (rows[0][1].strip(), rows[0][2].strip()) == ("learned (audited)", "76.0%")
    assert "lr=0.001 start=1" in rows[0][4]


def test_verdicts_lead_to_their_trials() -> None:
    found = dict(links(described(typical())))
    search = (
        "#/experiments/7/runs?workflowType=machine_learning"
        "&orderByKey=metrics.%60best%2Fwer%60&orderByAsc=true&searchFilter="
    )
    assert found["1 too slow"] == f"{search}tags.verdict%20%3D%20%27too_slow%27"
    assert found["2 collapsed or never learned"] == f"{search}tags.collapse%20%3D%20%27true%27"
    assert found["Collapsed only"].endswith("&compareRunsMode=CHART&viewStateShareKey=sweep-collapsed")


def test_every_link_holds_wherever_the_page_is_opened() -> None:
    addresses = [address for _, address in links(described(typical(), facts=FOUND))]
    assert len(addresses) > 10
    assert all(address.startswith("#/experiments/7/runs") for address in addresses)


def test_before_it_was_shipped_it_has_no_links() -> None:
    assert links(described(typical(), experiment_id=None)) == []


def test_while_it_runs_it_says_which_rates_took_off() -> None:
    trials = [
        trial_row(n, TrialState.RUNNING if n == 2 else TrialState.COMPLETE, best_wer=wer,
                  hyperparameters={**VALUES, "learning_rate": rate})
        for n, (rate, wer) in enumerate([(1e-3, 0.3), (1e-5, 1.0), (1e-6, 1.0), (2e-3, 0.4)])
    ]  # fmt: skip
    assert under("Which learning rates took off", described(trials, lessons=False)) == [
        "2 trials took off, with 1.0e-03 to 2.0e-03.",
        "1 trial ended without, with 1.0e-05 to 1.0e-05.",
    ]
    assert under("Which learning rates took off", described(trials)) == [], "the lesson has it"


def test_pictures_come_from_the_runs_that_hold_them() -> None:
    text = described(typical(), pictures=[("r1", "pictures/curves.png")])
    assert '<img src="get-artifact?path=pictures%2Fcurves.png&run_uuid=r1">' in text


@pytest.mark.parametrize("trials", [31, 1000])
def test_it_fits_a_tag_however_many_trials_there_are(trials: int) -> None:
    rows = [
        trial_row(n, TrialState.PRUNED, name=f"trial-{n}" + "x" * 50, best_wer=n / trials, reason="Not learning. " * 30,
                  verdict="too_slow", rule="too_slow", run_id="a" * 32)
        for n in range(trials)
    ]  # fmt: skip
    decisions = [decision_row(n, action="audited" if n % 10 == 0 else "stopped") for n in range(trials)]
    row = sweep_row(facts=FOUND, experiment_id="7")
    found = Conclusions(found_in(rows[:5]).lessons, conclusions(row, rows, decisions, SPEC).audit, {})
    text = description(row, rows, SPEC, ["python -m model train " + "--some option " * 40], found)
    assert len(text) <= MAX_TAG_LENGTH
    for heading in ("Alarm", "Range test", "What it learned", "How often the rules were wrong", "Pruned"):
        assert f"**{heading}" in text
    assert len(tables(text)) == LEADERS
    told = under("Pruned", text)
    assert len(told) >= 2
    assert f"And {trials - len(told)} more: [all {trials}](" in text.split("\n")[-1]


def test_a_command_that_is_too_long_is_left_to_the_terminal() -> None:
    text = described(typical(), commands=["x" * 9000])
    assert "The command is too long for this page: `sweeps show s` prints it." in text
    assert len(text) <= MAX_TAG_LENGTH
    assert len(tables(text)) == 4


@pytest.mark.parametrize("text", [HOSTILE, "a_b _c_", "<script>", "*", "", "x:y: z"])
def test_hostile_text_is_only_text(text: str) -> None:
    escaped = plain(text)
    assert unescape(escaped) == " ".join(text.split())
    assert not re.search(r"[`*<>|~@\[\]\\]|https?:|:smile:|www\.", escaped)


TEXT = st.one_of(st.text(max_size=400), st.sampled_from([HOSTILE, "```", "| a | b |", "~~~", "`" * 9]))
WER = st.none() | st.floats(0, 3)


@st.composite
def any_trials(draw: st.DrawFn) -> list[TrialRow]:
    return [
        trial_row(
            n,
            draw(st.sampled_from(TrialState)),
            name=draw(st.none() | TEXT),
            reason=draw(TEXT),
            best_wer=draw(WER),
            epochs=draw(st.integers(0, 10**6)),
            verdict=draw(st.sampled_from([None, "learned", "collapsed", "never_learned", "too_slow"])),
            hyperparameters=draw(st.sampled_from([None, VALUES])),
            overrides=draw(st.sampled_from([{}, {"schedule": "plateau"}])),
            run_id=draw(st.sampled_from([None, "a" * 32])),
        )
        for n in range(draw(st.integers(0, 30)))
    ]


@settings(max_examples=40, deadline=None)
@given(
    any_trials(),
    st.lists(st.one_of(TEXT, st.text(max_size=3000).map(lambda t: t * 4)), max_size=2),
    st.sampled_from([FACTS, FOUND, {**FOUND, "alarm": {"sentence": HOSTILE * 50, "advice": HOSTILE}}]),
    TEXT,
)
def test_whatever_the_rows_it_fits_and_everything_in_it_is_closed(
    trials: list[TrialRow], commands: list[str], facts: dict[str, Any], reason: str
) -> None:
    text = described(trials, commands=commands, facts=facts, reason=reason, lessons=False)
    assert len(text) <= MAX_TAG_LENGTH
    assert text.split("\n")[0].count("**") in (2, 4)
    assert all(len(row) == 5 for row in tables(text))
    for line in outside_code(text):
        assert line.count("**") % 2 == 0
        assert not re.search(r"<(?!img src=\"get-artifact)|@|~~", line)
    assert all(address.startswith("#/experiments/7/runs") for _, address in links(text))
