"""The report of a sweep: what it says, and that it is one page that needs nothing else."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.__main__ import parser
from sweeps import pictures, report
from sweeps.audit import WINNER_MARGIN
from sweeps.gathered import Gathered
from sweeps.importance import importance
from sweeps.records import TrialRow
from sweeps.states import SweepState, TrialState
from sweeps.summary import powershell_line, words_of
from tests.reviewed import FLOOR, sweep_of, typical
from tests.rows import VALUES, decision_row, epoch_row, trial_row

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = "</pre></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


class Page(HTMLParser):
    """Elements with their attributes and texts; says whether each that begins ends."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == [], "elements that do not end"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(of: Gathered) -> Page:
    return Page(report.report(of, at=0.0))


@pytest.fixture(scope="module")
def whole() -> Page:
    return page(typical())


def test_it_asks_for_nothing_from_elsewhere(whole: Page) -> None:
    for tag, attributes in whole.elements:
        assert tag not in ("script", "link", "iframe", "object", "form")
        assert not any(name.startswith("on") or name in ("src", "action") for name in attributes), tag
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert target.startswith("#"), target
    style = "".join(whole.texts["style"])
    assert "@import" not in style
    assert "url(" not in style
    assert "@page { size: A4" in style
    assert "default-src 'none'" in (whole.of("meta")[1]["content"] or "")


def test_headings_follow_each_other(whole: Page) -> None:
    levels = [int(tag[1]) for tag, _ in whole.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_pictures_have_alternatives_and_tables_have_headers(whole: Page) -> None:
    alternatives = [svg["aria-label"] or "" for svg in whole.of("svg")]
    assert len(alternatives) == len(pictures.DRAWINGS)
    assert all(svg["role"] == "img" for svg in whole.of("svg"))
    assert "14 trials" not in alternatives[0]
    assert "13 trials; the lowest WER is 21.5%, of trial 7" in alternatives[0]
    assert "2 did not take off, 10 took off, 1 stopped before" in alternatives[3]
    assert len(whole.of("th")) == len([th for th in whole.of("th") if th["scope"] in ("col", "row")]) > 20
    assert whole.of("html") == [{"lang": "en"}]


def test_ids_are_unique(whole: Page) -> None:
    ids = [attributes["id"] for _, attributes in whole.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def luminance(colour: str) -> float:
    full = colour * 2 if len(colour) == 3 else colour
    parts = [int(full[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_texts_have_contrast_in_each_scheme(whole: Page) -> None:
    schemes = re.findall(r":root \{(.*?)\}", "".join(whole.texts["style"]), re.DOTALL)
    assert len(schemes) == 3, "light, dark, print"
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): #(\w+);", scheme))
        for front, back in (("ink", "paper"), ("soft", "paper"), ("ink", "panel"), ("ink", "band"), ("soft", "band")):
            low, high = sorted(luminance(colours[name]) for name in (front, back))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back, scheme)


def test_nothing_that_people_wrote_becomes_markup() -> None:
    trial = trial_row(0, TrialState.PRUNED, name=HOSTILE, verdict=HOSTILE, rule=HOSTILE, reason=HOSTILE, best_wer=0.3,
                      best_epoch=1, epochs=1, run_id=HOSTILE)  # fmt: skip
    failed = trial_row(1, TrialState.FAILED, name=HOSTILE, reason=HOSTILE)
    against = decision_row(0, reason=HOSTILE, counterfactual=HOSTILE, rule=HOSTILE, verdict=HOSTILE,
                           numbers={HOSTILE: 1.0}, thresholds={HOSTILE: 1.0})  # fmt: skip
    facts = {"alarm": {"sentence": HOSTILE, "advice": HOSTILE}, "range_test": {"sentences": [HOSTILE]},
             "corpus_hash": HOSTILE, "git_commit": HOSTILE}  # fmt: skip
    of = sweep_of([trial, failed], {0: [epoch_row(1, 0.3)]}, [against], facts=facts, reason=HOSTILE)
    found = report.report(of, at=0.0)
    read = Page(found)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in read.elements)
    assert "<script" not in found
    assert "{{ 7*7 }}" in found, "shown as it is"
    assert sum(HOSTILE in text for texts in read.texts.values() for text in texts) >= 8


def sentences(of: Gathered) -> str:
    said = report.summary(of)
    return " ".join([*said.asked, *said.found, *said.trust])


def test_it_says_what_was_asked_and_found() -> None:
    said = sentences(typical(budget={"trials": 20, "hours": 2.0}))
    assert "20 trials of up to" in said
    assert "at most 2 hours" in said
    assert "learning_rate 1e-05 to 0.02 (log)" in said
    assert "Trial 7 has the lowest WER, 21.5%, at epoch 12; the best constant sentence" in said
    assert "68.5 points below original (90.0%)" in said
    assert "Of 14 trials (12 complete, 1 pruned, 1 failed) 10 took off; 150 epochs" in said


def test_it_says_what_speaks_against_it() -> None:
    said = sentences(typical())
    assert "1 trial failed" in said
    assert "No other trial came within 0.5 points" in said
    assert "Each configuration was trained once" in said
    assert "not over" not in said
    assert "not over (running)" in sentences(typical(state=SweepState.RUNNING))
    assert "It alarmed: Nothing learns." in sentences(typical(facts={"alarm": {"sentence": "Nothing learns."}}))


def close(trials: Sequence[TrialRow]) -> Gathered:
    return sweep_of(trials, {t.number: [epoch_row(1, t.best_wer)] for t in trials})


def ended(number: int, wer: float, **values: float) -> TrialRow:
    return trial_row(number, TrialState.COMPLETE, best_wer=wer, best_epoch=1, epochs=1, verdict="learned",
                     hyperparameters={**VALUES, **values})  # fmt: skip


def test_trials_that_stand_too_near_are_named() -> None:
    of = close([ended(0, 0.3), ended(1, 0.3 + 0.9 * WINNER_MARGIN), ended(2, 0.3 + 1.1 * WINNER_MARGIN)])
    assert "1 other trial came within 0.5 points" in sentences(of)
    assert "(1)" in sentences(of)


@pytest.mark.parametrize(
    ("values", "edge"),
    [
        ({"learning_rate": 1.01e-5}, "learning_rate, 1.01e-05, lies at the lower end"),
        ({"learning_rate": 0.02}, "learning_rate, 0.02, lies at the upper end"),
        ({"dropout": 0.495}, "dropout, 0.495, lies at the upper end"),
        ({"learning_rate": 3e-5, "dropout": 0.2}, ""),
        ({"dropout": 0.9}, ""),
    ],
)
def test_a_best_value_at_the_edge_of_the_search_is_said(values: dict[str, float], edge: str) -> None:
    said = sentences(close([ended(0, 0.3, **{"warmup_start_factor": 0.5, "patience": 7, **values})]))
    assert edge in said
    assert ("lies at" in said) == bool(edge)


def test_a_sweep_that_found_nothing_says_so() -> None:
    assert "nothing was found yet" in sentences(close([ended(0, FLOOR - 0.04)]))
    assert "nothing was found yet" not in sentences(close([ended(0, FLOOR - 0.06)]))


def test_a_sweep_without_a_trial_has_a_report() -> None:
    read = page(sweep_of([], state=SweepState.PENDING))
    assert "No trial has a WER yet." in read.texts["p"]


def test_every_decision_and_where_it_was_trained(whole: Page) -> None:
    texts = " ".join(text for each in whole.texts.values() for text in each)
    assert "Trial 12, stopped at epoch 6: too_slow" in texts
    assert "A WER of 50.0% would have kept it." in texts
    assert "best_wer 0.7" in texts
    assert "The disk was full." in texts
    assert report.environment(typical()) == [
        {"host": "h1", "device": "cpu", "versions": "python 3.11.9, torch 2.13", "trials": "13"}
    ]


def test_the_leaderboard_is_cut_and_says_so() -> None:
    of = close([ended(n, 0.3 + 0.001 * n) for n in range(report.LEADERS + 5)])
    read = page(of)
    assert any("5 more" in text for text in read.texts["p"])


# the command


def test_the_best_configuration_as_a_command_for_both_shells() -> None:
    of = typical()
    assert of.best is not None
    (bash, line), (power, other) = report.commands(of, of.best)
    assert (bash, power) == ("bash, zsh", "PowerShell")
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "model", "train"]
    assert words_of(other, "win32") == words
    assert parser().parse_args(words[3:]).learning_rate == of.best.hyperparameters["learning_rate"]  # type: ignore[index]


def test_a_trainer_of_ones_own_has_no_command() -> None:
    of = typical(facts={"trainer": "mine.py:Mine"})
    assert of.best is not None
    assert report.commands(of, of.best) == []
    assert any("a trainer of your own" in text for text in page(of).texts["p"])


@given(st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc"))), min_size=1))
def test_the_words_of_a_line_are_found_again(words: list[str]) -> None:
    assert words_of(powershell_line(words), "win32") == words
    assert words_of(shlex.join(words), "linux") == words


# pictures


@pytest.mark.parametrize("kind", pictures.DRAWINGS)
def test_pictures_are_the_same_each_time_and_none_is_refused(kind: pictures.Kind) -> None:
    of = typical(facts={"learning_rate_bounds": {"low": 1e-4, "high": 1e-2, "by": "range_test"}})
    assert pictures.svg(kind, of) == pictures.svg(kind, of)
    for other in (sweep_of([]), close([ended(0, 0.3)])):
        assert pictures.svg(kind, other).svg.startswith("<svg")


@pytest.mark.parametrize("bad", [{"dev/wer": 25.0, "spread/time": 0.0}, {}])
def test_odd_curves_can_be_drawn(bad: dict[str, float]) -> None:
    rows = [epoch_row(n, metrics=bad) for n in (1, 2)]
    of = sweep_of([trial_row(0, best_wer=bad.get("dev/wer"), best_epoch=1, epochs=2)], {0: rows})
    for kind in pictures.DRAWINGS:
        assert "nan" not in pictures.svg(kind, of).svg.lower()


def test_the_bounds_of_the_range_test_and_what_became_of_each_rate_are_in_the_picture() -> None:
    bounds = {"low": 1e-4, "high": 1e-2, "by": "range_test"}
    drawn = pictures.svg("learning_rate", typical(facts={"learning_rate_bounds": bounds})).svg
    for text in ("searched, by the range test", "took off", "did not take off", "stopped before", "best constant"):
        assert text in drawn
    assert "range test" not in pictures.svg("learning_rate", typical()).svg


def test_a_thousand_trials_make_no_large_picture() -> None:
    trials = [ended(n, 0.3 + 0.0005 * n, learning_rate=10 ** (-4 + n / 500)) for n in range(1000)]
    curves = {n: [epoch_row(e, 0.3 + 0.6 / e + 0.0003 * n) for e in range(1, 31)] for n in range(1000)}
    assert len(pictures.svg("wer", sweep_of(trials, curves)).svg) < 600_000


def test_a_figure_is_shown_by_a_notebook_and_can_be_saved(tmp_path: Any) -> None:
    figure: Any = pictures.figure("wer", typical())
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "wer.pdf")
    assert (tmp_path / "wer.pdf").stat().st_size > 1000


# importance


def searched(wer: Any, number: int = 40) -> dict[str, float]:
    """Importance where WER is this function of the logarithm of the rate (-1 to 1) and of dropout (0 to 0.5)."""
    trials = []
    for n in range(number):
        x, dropout = 2 * (n * 0.618 % 1) - 1, 0.5 * (n * 0.755 % 1)
        values = {"learning_rate": 10 ** (-3 + x), "dropout": dropout, "patience": 5 + n * 7 % 11}
        trials.append(ended(n, wer(x, dropout), **values))
    of = sweep_of(trials)
    return importance(of.trials, of.spec)


def test_what_decides_is_important_and_nothing_else() -> None:
    rate = searched(lambda x, dropout: 0.3 + 0.2 * x**2)
    assert rate["learning_rate"] > 0.9
    assert max(rate["dropout"], rate["patience"]) < 0.2
    both = searched(lambda x, dropout: 0.3 + 0.2 * x**2 + 0.6 * dropout)
    assert both["dropout"] > 0.7
    assert both["patience"] < 0.2
    assert all(0 <= share <= 1 for share in (*rate.values(), *both.values()))


def test_too_few_trials_and_equal_ones_have_no_importance() -> None:
    assert searched(lambda x, dropout: x, number=7) == {}
    assert set(searched(lambda x, dropout: 0.5).values()) == {0.0}


def test_chance_explains_nothing_on_average() -> None:
    def noise(x: float, dropout: float) -> float:
        return math.sin(1e4 * x) * math.cos(3e4 * dropout)

    assert max(searched(noise, 200).values()) < 0.1
