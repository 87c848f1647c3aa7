"""MLflow's page in a real browser: a sweep that was run as people run it, on a server that people have.

What is relied on of MLflow's own formats (stored views, Markdown, pictures, tables) is what is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from playwright.sync_api import Browser, Locator, Page, expect

from model.examples import LABELS, MARGIN, WIDTH
from sweeps import shipping
from sweeps.description import description
from sweeps.mirror import POSTERIORGRAM, SENTENCES
from sweeps.records import SweepRow, TrialRow
from sweeps.settings import Home
from sweeps.spec import spec_of
from sweeps.store import Store
from sweeps.summary import conclusions
from tests.acceptance.commands import read, run, start, write_spec
from tests.browser.acted import FRAMES, TRAINER
from tests.browser.conftest import picture, watched
from tracking import views
from tracking.links import artifacts_url, experiment_url, run_url, view_url
from tracking.server import local_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]

SPEC: Mapping[str, Any] = {
    "name": "signs",
    "trainer": {"epochs": 24},
    "space": {"learning_rate": {"low": 1e-5, "high": 2e-2, "log": True}},
    "budget": {"trials": 16},
    "workers": 1,
    "range_test": False,
    "seed": 3,
}
SLOW_MS = 60_000
"""For what takes a moment on a free machine: the machine may be shared."""

HOSTILE = "`x` **b** | <img src=x> <b>bold</b> [a](http://evil.example) @me ```\n| c | www.evil.example"


@dataclass(frozen=True)
class Site:
    """A sweep that is over, and the MLflow server that has it."""

    url: str
    home: Path
    words: str
    """What `sweeps run` printed."""
    sweep: SweepRow
    trials: list[TrialRow]

    @property
    def experiment(self) -> str:
        assert self.sweep.experiment_id is not None
        return self.sweep.experiment_id

    @property
    def best(self) -> TrialRow:
        return min((t for t in self.trials if t.best_wer is not None), key=lambda t: (t.best_wer, t.number))

    def runs(self, search: str = "") -> list[Run]:
        return list(MlflowClient(self.url).search_runs([self.experiment], search))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    top = tmp_path_factory.mktemp("mlflow")
    spec = write_spec(top, **SPEC)
    with local_server(top / "mlflow") as server:
        command = run(top / "home", top, "run", spec, "--trainer", TRAINER, "--tracking-uri", server.url)
        sweep, trials, _ = read(top / "home", "signs")
        yield Site(server.url, top / "home", command.words(), sweep, trials)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page as somebody has it who opens MLflow for the first time."""
    with watched(browser, viewport={"width": 1360, "height": 920}) as (page, watch):
        # Its assistant opens itself at a first visit, and would be in every picture.
        seen = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
        page.add_init_script(f"if (location.protocol.startsWith('http')) {seen}")
        page.set_default_timeout(SLOW_MS)
        yield page
        assert watch.outside == []
        assert [error for error in watch.errors if error.startswith("uncaught")] == []


def runs_shown(page: Page) -> Locator:
    """The links to runs in the list, in order."""
    return page.locator("[role=row] a[href*='/runs/']")


def expect_runs(page: Page, names: list[str]) -> None:
    expect(runs_shown(page)).to_have_text(names, timeout=SLOW_MS)


def expect_curves(page: Page, number: int) -> None:
    """One chart of WER and one of spread, each with that many runs in it."""
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(cards.filter(has_text="dev/wer")).to_have_count(1, timeout=SLOW_MS)
    expect(cards.filter(has_text="spread/time")).to_have_count(1)
    page.wait_for_function(
        """number => {
            const plots = [...document.querySelectorAll(".js-plotly-plot")]
            const runs = plot => new Set(plot.data.filter(line => line.x?.length).map(line => line.uuid ?? line.name))
            return plots.length === 2 && plots.every(plot => runs(plot).size === number)
        }""",
        arg=number,
        timeout=SLOW_MS,
    )


def best_first(runs: list[Run]) -> list[str]:
    ranked = sorted(runs, key=lambda run: (run.data.metrics["best/wer"], -run.info.start_time))
    return [run.info.run_name for run in ranked]


@contextmanager
def described(site: Site, text: str) -> Iterator[None]:
    """The experiment with another description, for a while."""
    client, tag = MlflowClient(site.url), "mlflow.note.content"
    before = client.get_experiment(site.experiment).tags[tag]
    client.set_experiment_tag(site.experiment, tag, text)
    try:
        yield
    finally:
        client.set_experiment_tag(site.experiment, tag, before)


def opened_description(page: Page) -> Locator:
    """MLflow folds it to its first line: a click opens it."""
    page.locator("[data-component-id='mlflow.experiment.metadata_editor.expand_button']").click(timeout=SLOW_MS)
    return page.locator("div:has(> p):has(> ul)").filter(has_text="Can I trust it?").last


# What is printed


def test_every_address_that_is_printed_opens_the_curves_of_all_trials(site: Site, page: Page) -> None:
    ui = start(site.home, site.home.parent, "ui", "signs", "--tracking-uri", site.url)
    ui.wait()
    printed = re.findall(rf"{site.url}\S+", f"{site.words}\n{ui.words()}")
    assert len(printed) == 3, "as it begins, at its end, and by `sweeps ui`"
    assert set(printed) == {view_url(site.url, site.experiment, "sweep-all")}
    page.goto(printed[0])
    expect_runs(page, best_first(site.runs()))
    expect_curves(page, 16)
    expect(page.get_by_text(f"Best: trial {site.best.number}, dev WER {site.best.best_wer:.1%}")).to_be_visible()
    picture(page, "mlflow-all")


def test_without_the_stored_view_the_plain_charts_open(site: Site, page: Page) -> None:
    client, store = MlflowClient(site.url), Store(Home(site.home).database_url)
    tracking = shipping.Tracking(site.url, site.url, site.url)
    tag = "mlflow.sharedViewState.sweep-all"
    value = client.get_experiment(site.experiment).tags[tag]
    try:
        assert shipping.dashboard(store, site.sweep, tracking) == view_url(site.url, site.experiment, "sweep-all")
        client.delete_experiment_tag(site.experiment, tag)
        assert not views.are_stored(site.url, site.experiment)
        address = shipping.dashboard(store, site.sweep, tracking)
        assert address == experiment_url(site.url, site.experiment)
    finally:
        client.set_experiment_tag(site.experiment, tag, value)
        store.close()
    page.goto(address)
    expect_runs(page, best_first(site.runs()))
    expect(page.get_by_test_id("experiment-view-compare-runs-card").first).to_be_visible(timeout=SLOW_MS)


# The views


def test_collapsed_only_shows_exactly_those(site: Site, page: Page) -> None:
    collapsed = [t for t in site.trials if t.verdict in ("collapsed", "never_learned")]
    assert 2 <= len(collapsed) < len(site.trials)
    found = site.runs(views.COLLAPSED)
    assert {run.info.run_id for run in found} == {t.run_id for t in collapsed}
    page.goto(view_url(site.url, site.experiment, views.key("collapsed")))
    expect_runs(page, best_first(found))
    expect_curves(page, len(collapsed))
    picture(page, "mlflow-collapsed")


def test_the_best_ten_are_drawn(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("best")))
    expect_runs(page, best_first(site.runs()))
    expect_curves(page, 10)


def test_parallel_coordinates_of_all_trials(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("parallel")))
    card = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(card).to_have_count(1, timeout=SLOW_MS)
    for axis in ("learning_rate", "warmup_start_factor", "dropout", "patience", "best/wer"):
        expect(card.get_by_text(axis, exact=True)).to_be_visible(timeout=SLOW_MS)
    expect(card.get_by_text("Showing all runs")).to_be_visible()
    picture(page, "mlflow-parallel")


def test_the_table_has_verdicts_and_values(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("all"), charts=False))
    expect_runs(page, best_first(site.runs()))
    for column in ("best/wer", "learning_rate", "verdict"):
        expect(page.get_by_role("columnheader", name=column).first).to_be_visible(timeout=SLOW_MS)
    picture(page, "mlflow-table")


def test_the_views_are_in_mlflows_own_list(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("all")))
    page.get_by_test_id("saved-views-trigger").click(timeout=SLOW_MS)
    listed = page.get_by_role("menuitem").all_inner_texts()
    assert [name for name in listed if name in views.TITLES.values()] == list(views.TITLES.values())


# The description


def test_the_description_renders(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("all")))
    text = opened_description(page)
    expect(text.locator("table tbody tr")).to_have_count(10, timeout=SLOW_MS)
    first = text.locator("table tbody tr").first
    expect(first.locator("td").nth(0)).to_have_text(str(site.best.number))
    expect(first.locator("td").nth(2)).to_have_text(f"{site.best.best_wer:.1%}")
    for heading in ("Can I trust it?", "Leaderboard", "Verdicts", "Pruned"):
        expect(text.locator("strong", has_text=heading)).to_be_visible()
    shown = text.inner_text()
    assert not re.search(r"\*\*|\]\(|&#|\|", shown), "Markdown that was not taken for it"
    picture(page, "mlflow-description", full_page=False)


def test_every_link_of_the_description_shows_what_it_promises(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("all")))
    found = opened_description(page).locator("a").evaluate_all("all => all.map(a => [a.innerText, a.href])")
    links = {(text, address) for text, address in found}
    assert all(address.startswith(f"{site.url}/#/experiments/{site.experiment}/runs") for _, address in links)
    by_id = {t.run_id: t for t in site.trials}
    kinds = set()
    for text, address in sorted(links):
        page.goto("about:blank")
        page.goto(address)
        if one := re.search(r"/runs/(\w+)\?", address):
            trial = by_id[one[1]]
            assert text.split()[0] == str(trial.number)
            expect(page.get_by_role("heading", name=re.compile(rf"^{re.escape(text)}: "))).to_be_visible(
                timeout=SLOW_MS
            )
            kinds.add("run")
        elif "searchFilter" in address and (number := re.search(r"\d+", text)):
            expect(runs_shown(page)).to_have_count(int(number[0]), timeout=SLOW_MS)
            kinds.add("filter")
        else:
            number_of = {
                views.TITLES["collapsed"]: len(site.runs(views.COLLAPSED)),
                views.TITLES["read"]: sum(t.verdict == "learned" and t.state == "COMPLETE" for t in site.trials),
            }
            expect(runs_shown(page)).to_have_count(number_of.get(text, len(site.trials)), timeout=SLOW_MS)
            kinds.add(text)
    assert kinds == {"run", "filter", "Table", *views.TITLES.values()}


def test_a_picture_in_the_description_is_shown(site: Site, page: Page, tmp_path: Path) -> None:
    file = tmp_path / "curves.png"
    Figure(figsize=(3, 2), dpi=50).savefig(file)
    client, run_id = MlflowClient(site.url), site.best.run_id
    assert run_id is not None
    client.log_artifact(run_id, str(file), "tried")
    row, trials, spec = site.sweep, site.trials, spec_of(site.sweep)
    found = conclusions(row, trials, [], spec)
    with_picture = description(row, trials, spec, [], found, [(run_id, "tried/curves.png")])
    with described(site, with_picture):
        page.goto(view_url(site.url, site.experiment, views.key("all")))
        image = opened_description(page).locator("img")
        expect(image).to_be_visible(timeout=SLOW_MS)
        page.wait_for_function("document.querySelector('img[src^=get-artifact]').naturalWidth === 150", timeout=SLOW_MS)


def test_hostile_text_in_the_description_is_only_text(site: Site, page: Page) -> None:
    trials = [replace(t, name=HOSTILE, reason=HOSTILE) for t in site.trials]
    row, spec = replace(site.sweep, reason=HOSTILE), spec_of(site.sweep)
    text = description(
        row, trials, spec, [f"python -m model train --data_dir '{HOSTILE}'"], conclusions(row, trials, [], spec)
    )
    with described(site, text):
        page.goto(view_url(site.url, site.experiment, views.key("all")))
        shown = opened_description(page)
        expect(shown.locator("table tbody tr")).to_have_count(10, timeout=SLOW_MS)
        expect(shown.locator("table tbody tr").first.locator("td")).to_have_count(5)
        assert " ".join(HOSTILE.split()) in " ".join(shown.inner_text().split())
        assert shown.locator("img, b").count() == 0
        addresses = shown.locator("a").evaluate_all("all => all.map(a => a.href)")
        assert all(address.startswith(f"{site.url}/#/") for address in addresses)


# One run


def test_pictures_slide_through_the_epochs_of_the_best_ten(site: Site, page: Page) -> None:
    page.goto(view_url(site.url, site.experiment, views.key("read")))
    card = page.get_by_test_id("experiment-view-compare-runs-card")
    expect(card).to_contain_text(POSTERIORGRAM, timeout=SLOW_MS)
    expect(card.get_by_text("learning_rate=")).to_have_count(0)
    shown, slider = card.locator("img"), card.get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuenow", "18", timeout=SLOW_MS)
    expect(shown.first).to_be_visible(timeout=SLOW_MS)
    drawn = LABELS + WIDTH // FRAMES * FRAMES + MARGIN
    assert shown.first.evaluate("image => image.naturalWidth") == drawn, "not made smaller: words in it can be read"
    at_18 = shown.first.get_attribute("src")
    page.wait_for_timeout(500)  # it fades in
    picture(page, "mlflow-read")
    slider.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuenow", "12")
    expect(shown.first).not_to_have_attribute("src", at_18 or "", timeout=SLOW_MS)


def test_one_run_has_its_pictures_among_its_metrics(site: Site, page: Page) -> None:
    assert site.best.run_id is not None
    page.goto(run_url(site.url, site.experiment, site.best.run_id).replace("?", "/model-metrics?"))
    heads = page.get_by_test_id("experiment-view-compare-runs-section-header")
    expect(heads.last).to_contain_text("Model metrics", timeout=SLOW_MS)
    heads.last.scroll_into_view_if_needed()
    page.mouse.move(700, 600)
    page.mouse.wheel(0, 10_000)
    expect(page.get_by_role("slider")).to_be_visible(timeout=SLOW_MS)


def test_the_table_of_sentences_opens(site: Site, page: Page) -> None:
    assert site.best.run_id is not None
    page.goto(artifacts_url(site.url, site.experiment, site.best.run_id, SENTENCES))
    for column in ("epoch", "sentence", "reference", "hypothesis"):
        expect(page.get_by_role("columnheader", name=column)).to_be_visible(timeout=SLOW_MS)
    picture(page, "mlflow-sentences")
