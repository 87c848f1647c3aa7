"""Our page in a real browser: a sweep that runs under `sweeps serve` and `sweeps work` as people start them."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.acceptance.commands import Command, living, start, write_spec
from tests.browser.acted import TRAINER
from tests.browser.conftest import picture, watched
from tests.serving import begun, corpus, spec, trained

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SPEC: Mapping[str, Any] = {
    "name": "signs",
    "trainer": {"epochs": 16},
    "space": {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}},
    "budget": {"trials": 30},
    "on_alarm": "continue",
    "workers": None,
}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
SLOW_MS = 60_000
"""For what takes a moment on a free machine: the machine may be shared."""


@contextmanager
def served(home: Path, *words: str | Path) -> Iterator[str]:
    """`sweeps serve` on a free port; its address."""
    command = start(home, home.parent, "serve", "--port", "0", *words)
    try:
        said = command.until(lambda: re.search(r"serving http://\S+:(\d+)", command.words()))
        yield f"http://127.0.0.1:{said[1]}"
    finally:
        _end(command)


@contextmanager
def working(home: Path, *words: str | Path) -> Iterator[Command]:
    """`sweeps work` with the acted trainer; its runs go into a file."""
    tracking = f"sqlite:///{(home.parent / 'mlflow.db').as_posix()}"
    command = start(home, home.parent, "work", "--trainer", TRAINER, "--tracking-uri", tracking, *words)
    try:
        yield command
    finally:
        _end(command)


def _end(command: Command) -> None:
    if command.process.poll() is None:
        os.killpg(command.process.pid, signal.SIGTERM)
    command.process.wait(60)
    for process in living(command.home):
        if os.getpgid(process.pid) == command.process.pid:
            process.kill()


def created(folder: Path, **changes: Any) -> Path:
    """A home with the sweep `signs`, which runs."""
    home = folder / "home"
    file = write_spec(folder, **{**SPEC, **changes})
    assert start(home, folder, "create", file, "--trainer", TRAINER).wait() == 0
    return home


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a sweep that has ended."""
    home = created(tmp_path_factory.mktemp("over"))
    with working(home, "signs", "--until-done", "--workers", "2") as command:
        assert command.wait() == 0, command.words()
    with served(home) as address:
        yield address


def opened(page: Page, address: str) -> None:
    """The page of the sweep, with everything drawn."""
    page.goto(f"{address}/sweeps/signs")
    page.locator("html[data-ready]").wait_for(timeout=SLOW_MS)


def eventually(page: Page, what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until it is true, while the page goes on."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s"
        page.wait_for_timeout(100)
    return found


def epochs_shown(page: Page) -> int:
    return sum(int(row.get_attribute("data-epochs") or 0) for row in page.locator("#trials tr").all())


# A sweep that runs


def test_the_page_follows_the_sweep_and_pauses_it(page: Page, tmp_path: Path) -> None:
    home = created(tmp_path, budget={"trials": 60})
    with served(home) as address:
        opened(page, address)
        expect(page.locator("#state .badge")).to_have_text("running")
        expect(page.locator("#best")).to_contain_text("No trial has a WER yet")
        with working(home, "signs", "--workers", "2"):
            expect(page.locator("#trials tr").nth(3)).to_be_visible(timeout=SLOW_MS)
            expect(page.locator("#facts .big")).to_contain_text("%", timeout=SLOW_MS)
            expect(page.locator("#events li").first).to_contain_text("trial")
            before = epochs_shown(page)
            eventually(page, lambda: epochs_shown(page) > before)
            picture(page, "page-running")

            page.get_by_role("button", name="Pause").click()
            expect(page.locator("#state .badge")).to_have_text("paused", timeout=SLOW_MS)
            expect(page.get_by_role("button", name="Pause")).to_have_count(0)
            with closing(Store(Home(home).database_url)) as store:
                sweep = store.find_sweep("signs")
                assert sweep is not None
                assert sweep.state is SweepState.PAUSED
                eventually(page, lambda: not any(t.state is TrialState.RUNNING for t in store.trials(sweep.id)))
                known = sum(trial.epochs for trial in store.trials(sweep.id))
                eventually(page, lambda: epochs_shown(page) == known)

                page.get_by_role("button", name="Resume").click()
                expect(page.locator("#state .badge")).to_have_text("running", timeout=SLOW_MS)
                eventually(page, lambda: epochs_shown(page) > known)

                page.get_by_text("Cancel…").click()
                expect(page.get_by_text("It ends for good")).to_be_visible()
                assert store.sweep_state(sweep.id) is SweepState.RUNNING
                page.get_by_role("button", name="Cancel signs").click()
                expect(page.locator("#state .badge")).to_have_text(re.compile("cancel"), timeout=SLOW_MS)
                expect(page.locator("#state .badge")).to_have_text("cancelled", timeout=SLOW_MS)
                assert [a.action for a in store.actions()][-3:] == ["pause", "resume", "cancel"]
        expect(page.locator("#verbs button")).to_have_count(0)


def test_only_what_is_new_is_asked_for(page: Page, tmp_path: Path) -> None:
    home = created(tmp_path)
    with served(home) as address:
        opened(page, address)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        with working(home, "signs", "--workers", "2"):
            expect(page.locator("#trials tr").nth(2)).to_be_visible(timeout=SLOW_MS)
            eventually(page, lambda: sum("beyond=" in url for url in asked) >= 3)
            eventually(page, lambda: epochs_shown(page) > 10)
        assert not [url for url in asked if url.endswith(("/sweeps/signs", "/trials"))]
        assert not [url for url in asked if "/curves?" in url and "beyond=" not in url]
        curves = [url for url in asked if "/curves?" in url]
        assert len(curves) == len(set(curves)), "the same points were asked for twice"


def test_a_server_that_goes_and_comes_again_is_found_again(browser: Browser, tmp_path: Path) -> None:
    home = created(tmp_path)
    with watched(browser) as (page, watch):
        with served(home) as address:
            opened(page, address)
        port = address.rpartition(":")[2]
        again = start(home, tmp_path, "serve", "--port", port)
        try:
            again.until(lambda: "serving" in again.words())
            with closing(Store(Home(home).database_url)) as store:
                SweepService(store, Home(home), "somebody").pause("signs")
            expect(page.locator("#state .badge")).to_have_text("paused", timeout=SLOW_MS)
        finally:
            _end(again)
        assert not [error for error in watch.errors if "uncaught" in error]


# What it shows


def test_a_trial_that_is_pointed_at_says_why_it_was_stopped(page: Page, over: str) -> None:
    opened(page, over)
    for chart, wanted in (
        ("#chart-wer", r"Trial (\d+).*: pruned, too slow\s+.*epoch \d+: "),
        ("#chart-rates", r"Trial (\d+)"),
    ):
        page.locator(chart).scroll_into_view_if_needed()
        seen = _pointed_at(page, chart, wanted)
        number = re.match(wanted, seen)
        assert number is not None
        row = page.locator(f"#trial-{number[1]}")
        assert row.locator(".why").inner_text().strip().splitlines()[0] in seen
        expect(row).to_have_class(re.compile("chosen"))
        picture(page, f"page-hover-{chart.removeprefix('#chart-')}")


def _pointed_at(page: Page, chart: str, wanted: str) -> str:
    """What is said of the first place of a chart, of those on a grid, of which what matches is said."""
    over, tip = page.locator(f"{chart} .u-over"), page.locator(f"{chart} .tip")
    frame = over.bounding_box()
    assert frame is not None
    for y in range(4, int(frame["height"]), 12):
        for x in range(4, int(frame["width"]), 12):
            page.mouse.move(frame["x"] + x, frame["y"] + y)
            page.evaluate("() => new Promise(requestAnimationFrame)")
            if tip.is_visible() and re.match(wanted, text := tip.inner_text()):
                return text
    raise AssertionError(f"{chart} says it nowhere")


def test_the_keyboard_goes_through_the_trials_the_best_first(page: Page, over: str) -> None:
    opened(page, over)
    best = min((float(r.get_attribute("data-wer") or 9), r.get_attribute("data-number"))
               for r in page.locator("#trials tr[data-wer]").all())  # fmt: skip
    page.locator("#chart-wer").focus()
    page.keyboard.press("Home")
    slider = page.get_by_role("slider", name=re.compile("^WER by epoch"))
    expect(slider).to_have_attribute("aria-valuetext", re.compile(f"^Trial {best[1]}\\b.*: complete, learned"))
    expect(slider).to_have_attribute("aria-valuenow", "1")
    page.keyboard.press("End")
    expect(slider).to_have_attribute("aria-valuenow", slider.get_attribute("aria-valuemax") or "")
    expect(page.locator("#chart-wer .tip")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#chart-wer .tip")).to_be_hidden()


def test_the_table_is_sorted_and_filtered(page: Page, over: str) -> None:
    opened(page, over)

    def column(attribute: str) -> list[str | None]:
        return [row.get_attribute(attribute) for row in page.locator("#trials tr:visible").all()]

    page.get_by_role("button", name="best WER").click()
    wers = [float(wer) for wer in column("data-wer") if wer is not None]
    assert wers == sorted(wers)
    assert len(wers) == 30
    page.get_by_role("button", name="best WER").click()
    assert column("data-number") != sorted(column("data-number"), key=str)
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.get_by_label("Show").select_option("collapsed")
    shown = page.locator("#trials tr:visible")
    assert 0 < shown.count() < 30
    assert {row.locator(".verdict").inner_text() for row in shown.all()} <= {"never learned", "collapsed"}
    expect(page.locator("#filtered")).to_have_text(f"{shown.count()} of 30")


def test_a_reason_is_told_whole_where_it_is_asked_for(page: Page, over: str) -> None:
    opened(page, over)
    why = page.locator("#trials tr[data-state=PRUNED] .why > span").first
    high = why.evaluate("(span) => span.clientHeight")
    page.locator("#trials tr[data-state=PRUNED]").first.hover()
    assert why.evaluate("(span) => span.clientHeight") == high  # nothing jumps below a pointer
    why.click()
    assert why.evaluate("(span) => span.clientHeight") > high


def test_a_verdict_leads_to_the_decision(page: Page, over: str) -> None:
    opened(page, over)
    link = page.locator("#trials tr[data-state=PRUNED] td a").first
    link.click()
    page.wait_for_url(re.compile("#decision-"))
    decision = page.locator(".decision:target")
    expect(decision).to_be_visible()
    expect(decision).to_contain_text("held against")
    expect(decision).to_contain_text("would have kept it")


def test_the_command_is_copied(browser: Browser, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir()
    with closing(Store(home.database_url)) as store:
        service = SweepService(store, home, "me")
        trained(store, service.create(spec("mine", corpus(tmp_path / "small"))).sweep.sweep.id)
    with (
        served(home.root) as address,
        watched(browser, permissions=["clipboard-read", "clipboard-write"]) as (page, watch),
    ):
        page.goto(f"{address}/sweeps/mine")
        page.get_by_role("button", name="Copy the command for bash").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied.startswith("python -m model train --data_dir ")
        assert "--learning_rate 0.001 " in copied
        assert watch.errors == []


def test_everything_essential_is_there_without_a_script(browser: Browser, over: str) -> None:
    with watched(browser, java_script_enabled=False) as (page, watch):
        page.goto(f"{over}/sweeps/signs")
        assert page.locator("#trials tr").count() == 30
        expect(page.locator("#progress")).to_contain_text("30 of 30 trials are over")
        expect(page.locator("#facts .big")).to_contain_text("%")
        expect(page.locator(".no-script")).to_be_visible()
        page.get_by_role("link", name="What was learned about each parameter").click()
        expect(page.locator("#learned")).to_contain_text("learning_rate")
        assert watch.errors == watch.outside == []


def test_without_a_script_the_buttons_work(browser: Browser, tmp_path: Path) -> None:
    home = created(tmp_path)
    with served(home) as address, watched(browser, java_script_enabled=False) as (page, watch):
        page.goto(f"{address}/sweeps/signs")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#state .badge")).to_have_text("paused")
        assert watch.errors == []


def test_the_list_follows_its_sweeps(page: Page, tmp_path: Path) -> None:
    home = created(tmp_path)
    with served(home) as address:
        page.goto(address)
        row = page.locator("#sweeps tr", has_text="signs")
        expect(row).to_contain_text("0 of 30")
        with working(home, "signs", "--workers", "2"):
            expect(row).to_contain_text(re.compile(r"\b[1-9]\d* of 30"), timeout=SLOW_MS)
            expect(row).to_contain_text("%", timeout=SLOW_MS)
        row.get_by_role("link", name="signs").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("signs")


# Tokens


def test_a_token_is_asked_for_and_a_wrong_one_refused(browser: Browser, tmp_path: Path) -> None:
    home = created(tmp_path)
    tokens = {}
    for scope in ("operate", "read"):
        made = start(home, tmp_path, "token", "create", scope, "--scope", scope)
        assert made.wait() == 0
        tokens[scope] = made.stdout.read_text("utf-8").strip()
    with served(home, "--require-token") as address, watched(browser) as (page, watch):
        page.goto(f"{address}/sweeps/signs")
        page.get_by_label("Token").fill("swp_wrong")
        picture(page, "page-login")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("this token is not known here")
        assert not page.context.cookies()
        page.goto(f"{address}/sweeps/signs")
        page.get_by_label("Token").fill(tokens["read"])
        page.get_by_role("button", name="Log in").click()
        page.locator("html[data-ready]").wait_for(timeout=SLOW_MS)
        assert page.url == f"{address}/sweeps/signs"
        expect(page.get_by_text("may only look")).to_be_visible()
        expect(page.locator("#verbs button")).to_have_count(0)
        assert page.evaluate("() => document.cookie") == ""
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_role("button", name="Log out").click()
        page.goto(address)
        page.get_by_label("Token").fill(tokens["operate"])
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("link", name="signs").click()
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#state .badge")).to_have_text("paused")
        revoked = start(home, tmp_path, "token", "revoke", "operate")
        assert revoked.wait() == 0
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("#notice")).to_contain_text("not known here, was revoked, or has expired")
        assert httpx.get(f"{address}/v1/sweeps").status_code == 401
        assert {re.sub(r".*status of ", "", error) for error in watch.errors} == {"401 (Unauthorized)"}
        assert watch.outside == []


# Everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["/", "/sweeps/signs", "/sweeps/signs/learned", "/login", "/sweeps/none"])
@pytest.mark.parametrize("size", ["wide", "phone"])
def test_nothing_keeps_anybody_out(browser: Browser, over: str, where: str, scheme: str, size: str) -> None:
    options: dict[str, Any] = PHONE if size == "phone" else {}
    with watched(browser, color_scheme=scheme, **options) as (page, watch):
        page.goto(f"{over}{where}")
        if where == "/sweeps/signs":
            page.locator("html[data-ready]").wait_for(timeout=SLOW_MS)
            expect(page.locator("#learned")).to_contain_text("learning_rate", timeout=SLOW_MS)
            high = {"x": 0, "y": 0, "width": 1280, "height": 1640}
            wide: dict[str, Any] = {"full_page": True, "clip": high}
            picture(page, f"page{'-phone' if size == 'phone' else ''}-{scheme}", **(wide if size == "wide" else {}))
        elif where == "/":
            picture(page, f"page-list-{size}-{scheme}")
        found = Axe().run(page).response
        bad = [
            f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert bad == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= page.viewport_size["width"]  # type: ignore[index]
        assert [error for error in watch.errors if where != "/sweeps/none"] == watch.outside == []


def test_trials_that_failed_an_alarm_and_nothing_yet(page: Page, tmp_path: Path) -> None:
    """Pages of sweeps as nobody wants them."""
    home = Home(tmp_path / "home")
    home.root.mkdir()
    small = corpus(tmp_path / "small")
    with closing(Store(home.database_url)) as store:
        service = SweepService(store, home, "me")
        empty, failed, alarmed = (service.create(spec(n, small)).sweep.sweep for n in ("empty", "failed", "alarmed"))
        for _ in range(3):
            claim = begun(store, failed.id)
            store.finish(claim, TrialState.FAILED, None, "RuntimeError: no space left for this", "fault", {})
        store.set_sweep_state(failed.id, SweepState.FAILED, "the last 3 trials that ended have failed")
        trained(store, alarmed.id, state=TrialState.PRUNED)
        alarm = {"sentence": "Nothing took off in 8 trials.", "advice": "Search higher rates.", "proposal": None}
        store.raise_alarm(alarmed.id, alarm, "nothing takes off")
    with served(home.root) as address:
        for name, said in (("empty", "No trial has a WER yet"), ("failed", "The sweep failed"), ("alarmed", "Alarm")):
            page.goto(f"{address}/sweeps/{name}")
            page.locator("html[data-ready]").wait_for(timeout=SLOW_MS)
            expect(page.get_by_text(said).first).to_be_visible()
            picture(page, f"page-{name}", full_page=True)
        page.goto(address)
        expect(page.locator("#sweeps tr")).to_have_count(3)
        picture(page, "page-list", full_page=True)
    assert empty.state == "RUNNING"
