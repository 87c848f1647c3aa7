"""How soon MLflow's page of a large sweep can be used: the table of its runs, and the curves of all trials.

    python benchmarks/mlflow_page.py [--trials 1000] [--epochs 60] [--times 3] [--keep FOLDER]

A sweep of so many trials is put into SQLite as in `benchmarks/page.py`, shipped into MLflow's database as every sweep
is (some minutes; with `--keep` it stays there and is not made again), served as `sweeps ui` does, and opened in a
headless Chromium. Prints a table for docs/how-to/mlflow.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.page import NAME, fill
from sweeps.settings import Home
from sweeps.shipping import Tracking, mirror_of
from sweeps.store import Store
from tests.load.report import _where
from tracking.links import view_url
from tracking.server import local_server, store_uri
from tracking.views import key

SLOW_MS = 120_000
FIRST_PAGE = 100
"""Runs that MLflow loads at first, table and charts alike; more by a click on "Load more"."""


def ship(home: Home) -> float:
    """Send the sweep to MLflow's database in the home; seconds it took."""
    uri, began = store_uri(home.mlflow), time.perf_counter()
    with local_server(home.mlflow):  # makes the tables
        pass
    with closing(Store(home.database_url)) as store:
        sweep = store.find_sweep(NAME)
        assert sweep is not None
        mirror = mirror_of(store, sweep, home, Tracking(uri, uri, ""))
        while behind := mirror.ship():
            print(f"shipped {behind} trials, {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return time.perf_counter() - began


def table(page: Page) -> None:
    page.locator("[role=row] a[href*='/runs/']").nth(9).wait_for()


def curves(page: Page) -> None:
    """Two charts that have the runs in them."""
    drawn = "[...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.data.length >= 100).length === 2"
    page.wait_for_function(drawn)


def seconds(browser: Browser, address: str, ready: Callable[[Page], None]) -> float:
    """From the address to what is looked for, in a browser that was never there."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    began = time.perf_counter()
    page.goto(address)
    ready(page)
    took = time.perf_counter() - began
    context.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="mlflow-page-"))
    home = Home(folder)
    try:
        if not home.mlflow.exists():
            folder.mkdir(parents=True, exist_ok=True)
            fill(home, asked.trials, asked.epochs)
            print(f"shipped in {ship(home):.0f} s", file=sys.stderr, flush=True)
        with closing(Store(home.database_url)) as store:
            sweep = store.find_sweep(NAME)
        assert sweep is not None
        assert sweep.experiment_id is not None
        with local_server(home.mlflow) as server, sync_playwright() as playwright:
            chromium = next(path for name in ("chromium", "google-chrome") if (path := shutil.which(name)))
            browser = playwright.chromium.launch(executable_path=chromium)

            def address(view: str, charts: bool) -> str:
                return view_url(server.url, sweep.experiment_id or "", view, charts=charts)

            looks: Mapping[str, tuple[str, Callable[[Page], None]]] = {
                "the table, best trials first": (address(key("all"), False), table),
                "WER and spread of 100 trials": (address(key("all"), True), curves),
                "collapsed only: their table": (address(key("collapsed"), False), table),
            }
            print(f"{asked.trials} trials of {asked.epochs} epochs; {_where()}\n\n| what | median (s) | worst (s) |")
            print("|---|---|---|")
            for what, (url, ready) in looks.items():
                took = [seconds(browser, url, ready) for _ in range(asked.times)]
                print(f"| {what} | {statistics.median(took):.1f} | {max(took):.1f} |", flush=True)
            browser.close()
    finally:
        if asked.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
