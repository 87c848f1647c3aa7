from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from model.corpus.check import Report, check_corpus
from model.corpus.data import CorpusConfig
from model.findings import Finding
from model.page import Picture, Table, page
from model.plots import ONE, corpus_pictures, draw, mark
from tests.corpora import write_corpus

EVIL = '<script>alert("x")</script> & $x_1$'


class Elements(HTMLParser):
    """Every start tag with its attributes, the text, and whether all that was opened was closed."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def finding(code: str, severity: str, number: float | None = 0.5, threshold: float | None = 0.25) -> Finding:
    return Finding(code, severity, number, threshold, f"{code}: {EVIL}", f"Mend {EVIL}.", EVIL)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("page") / "signs"
    write_corpus(folder, {"train": [f"A B {EVIL}", "B C", "C A B", "A A"], "dev": ["A", "C D"]}, width=225)
    return check_corpus(CorpusConfig(path=folder, modalities={"<b>pose</b>": 99, "$hands$": 126}))


@pytest.fixture(scope="module")
def pictures(report: Report) -> list[Picture]:
    return corpus_pictures(report)


def test_nothing_that_is_shown_becomes_markup() -> None:
    picture = Picture(EVIL, '<svg viewBox="0 0 1 1"><path d="M 0 0"/></svg>', EVIL)
    table = Table(EVIL, [(EVIL, EVIL)], ("", EVIL), EVIL)
    read = Elements(page(EVIL, EVIL, [finding("a", "info"), finding("b", "fatal")], [table], [picture]))
    assert read.open == []
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.text.count(EVIL) == 2 + 1 + 2 * 3 + 2 + 5, "title, heading, summary, findings, picture, table"
    assert sum(tag == "svg" for tag, _ in read.tags) == 1, "a picture is drawn"


def test_findings_come_worst_first_with_their_numbers() -> None:
    findings = [
        finding("mild", "info", None, None),
        finding("bad", "fatal", 0.123456, 0.1),
        finding("odd", "warning", 3, None),
    ]
    text = Elements(page("t", "s", findings)).text
    assert text.index("bad") < text.index("odd") < text.index("mild")
    assert "Number 0.1235, threshold 0.1." in text
    assert "Number 3." in text
    assert text.count("Number") == 2
    assert "None." in Elements(page("t", "s", [])).text


def test_a_page_needs_nothing_but_itself(report: Report, pictures: list[Picture]) -> None:
    html = page("t", report.summary, report.findings, [], pictures)
    read = Elements(html)
    assert read.open == []
    assert not {"script", "link", "img", "iframe", "object", "image"} & {tag for tag, _ in read.tags}
    addresses = {
        value for _, attrs in read.tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")
    }
    assert all(str(address).startswith("#") for address in addresses)
    assert not re.search(r"@import|@font-face", html)
    assert all(inner.startswith("#") for inner in re.findall(r"url\((.*?)\)", html))
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), "an id is one of the page, though there are many pictures"
    assert {address[1:] for address in addresses} <= set(ids)
    assert not re.search(r"#0[0-9]{5}\b", html), "every colour is one of the page, which is light or dark"


def test_pictures_show_what_the_report_holds(report: Report, pictures: list[Picture]) -> None:
    assert [picture.title for picture in pictures] == [
        "Room for an alignment",
        "Lengths",
        "Glosses",
        "Detection",
        "Normalisation",
        "What knowing nothing scores",
    ]
    text = {picture.title: Elements(picture.svg).text for picture in pictures}
    assert "stride 4" in text["Room for an alignment"]
    assert "left hand" in text["Detection"]
    assert "<b>pose</b>" in text["Normalisation"], "a name of the user's is text in a picture too"
    assert "$hands$" in text["Normalisation"]
    assert report.facts is not None
    assert report.facts.floors is not None
    assert f"{report.facts.floors.constant_loss:.2f}" in text["What knowing nothing scores"]


def test_the_same_numbers_give_the_same_bytes(report: Report, pictures: list[Picture]) -> None:
    assert corpus_pictures(report) == pictures


def test_a_picture_is_as_wide_as_its_place() -> None:
    picture = draw("Line", "A line.", lambda axes: axes[0].plot(np.arange(3), color=ONE) and None)
    tag = picture.svg[: picture.svg.index(">") + 1]
    assert tag.startswith("<svg")
    assert "viewBox" in tag
    assert "width" not in tag
    assert "var(--one)" in picture.svg


@pytest.mark.parametrize(
    ("scale", "values", "labels"),
    [
        ("log", (0.9, 1200), ["1", "10", "100", "1000"]),
        ("log", (3, 60), ["5", "10", "20", "50"]),
        ("log", (0.82, 1.3), ["0.9", "1", "1.1", "1.2", "1.3"]),
        ("symlog", (-24, 13), ["-10", "-1", "0", "1", "10"]),
        ("symlog", (-0.8, 0.5), ["-0.5", "0", "0.5"]),
    ],
)
def test_a_log_axis_has_round_numbers(scale: str, values: tuple[float, float], labels: list[str]) -> None:
    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        ax.set_ylim(values)
        ax.set_yscale(scale)
        ax.set_xticks([])
        mark(ax.yaxis)

    text = Elements(draw("Ticks", "", paint).svg).text.replace("\N{MINUS SIGN}", "-").split()
    assert sorted(text, key=float) == labels


def test_every_modality_has_its_name_and_the_same_width(tmp_path: Path) -> None:
    report = check_corpus(CorpusConfig(path=write_corpus(tmp_path, width=200), modalities={"thin": 3, "broad": 197}))
    (picture,) = (picture for picture in corpus_pictures(report) if picture.title == "Normalisation")
    assert {"thin", "broad"} <= set(Elements(picture.svg).text.split())


@pytest.mark.parametrize("broken", ["nothing", "features", "constant", "one gloss"])
def test_what_cannot_be_drawn_is_left_out(broken: str, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path, {"train": ["A", "A A"], "dev": ["A"]} if broken == "one gloss" else None)
    for file in (folder / "features").rglob("*.npz"):
        if broken == "features":
            file.write_bytes(b"")
        elif broken == "constant":
            np.savez(file, features=np.ones((40, 6), np.float32))
    report = check_corpus(CorpusConfig(path=tmp_path / "elsewhere" if broken == "nothing" else folder))
    pictures = corpus_pictures(report)
    titles = [picture.title for picture in pictures]
    assert "Detection" not in titles, "features of any other kind are always there"
    assert ("Normalisation" in titles) == (broken == "one gloss")
    assert ("Room for an alignment" in titles) == (broken in ("one gloss", "constant"))
    assert Elements(page("t", report.summary, report.findings, [], pictures)).open == []
