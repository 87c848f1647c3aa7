"""How soon the page of a large sweep can be used, and what it costs to keep it up to date.

    python benchmarks/page.py [--trials 1000] [--epochs 60] [--times 5] [--keep FOLDER]

A sweep of so many trials is put into SQLite directly, with decisions and events as pruning leaves them. `sweeps serve`,
as people start it, shows it to a headless Chromium. Prints a table for docs/how-to/page.md. With `--keep` the database
stays there, to be looked at with `sweeps serve --home FOLDER`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import create_engine, insert

sys.path.insert(0, str(Path(__file__).parents[1]))

from sweeps.records import EpochRow
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.states import TrialState
from sweeps.store import Store
from sweeps.tables import decisions, epochs, events, trials
from tests.load.report import _where
from tests.rows import decision_row, epoch_row
from tests.serving import corpus, policy_of, spec

NAME = "large"
SPACE = {"warmup_start_factor": {"low": 0.01, "high": 1.0}, "dropout": {"low": 0.0, "high": 0.5}}


def fill(home: Home, number: int, epochs_each: int, name: str = NAME) -> None:
    """A sweep of so many trials: at low rates they never take off, at high ones they diverge, half are stopped."""
    corpus(home.root / "corpora" / "small")
    with closing(Store(home.database_url)) as store:
        service = SweepService(store, home, "benchmark", policy_of(home.root / "corpora"))
        content = spec(name, "small", trainer={"epochs": epochs_each, "hidden": 16, "channels": 16, "batch_size": 4})
        content["space"] = {**SPACE, "patience": {"low": 5, "high": 40}}
        sweep = service.create({**content, "first_trials": {}}, trials=number + 1).sweep.sweep
        now, url = store.now(), store.url
    random = np.random.default_rng(0)
    engine = create_engine(url)
    with engine.begin() as connection:
        for trial in range(number):
            rate = float(10 ** random.uniform(-5, -1.5))
            curve = _wers(rate, epochs_each, random)
            learns = min(curve) < 0.8
            stopped = not learns or random.random() < 0.4
            curve = curve[: max(6, int(len(curve) * random.uniform(0.3, 0.9)))] if stopped and learns else curve
            verdict = "learned" if learns and not stopped else "too_slow" if learns else "never_learned"
            reason = (
                f"In the epochs left it would hardly beat the best trial: by its loss and WER at epoch {len(curve)} it "
                f"would end near {100 * min(curve):.1f}%, and the best has 21.3%."
                if stopped
                else f"Ran to the end of its {len(curve)} epochs; the lowest WER was {100 * min(curve):.1f}%."
            )
            begun = {"attempt": 1, "revision": 13, "worker": "w", "created_at": now, "started_at": now}
            row = {
                **begun,
                "sweep_id": sweep.id,
                "number": trial,
                "in_space": True,
                "overrides": {},
                "evidence": {},
                "state": TrialState.PRUNED if stopped else TrialState.COMPLETE,
                "hyperparameters": {
                    "learning_rate": rate,
                    "warmup_start_factor": float(10 ** random.uniform(-2, 0)),
                    "dropout": float(random.uniform(0, 0.5)),
                    "patience": int(random.integers(5, 41)),
                },
                "verdict": verdict,
                "rule": verdict if stopped else "epochs",
                "reason": reason,
                "finished_at": now,
                "best_wer": min(curve),
                "best_epoch": curve.index(min(curve)) + 1,
                "epochs": len(curve),
                "reserved_epochs": len(curve),
            }
            trial_id = connection.execute(insert(trials).values(**row).returning(trials.c.id)).scalar_one()
            connection.execute(
                insert(epochs),
                [
                    {**vars(_epoch(epoch, wer)), "trial_id": trial_id, "recorded_at": now}
                    for epoch, wer in enumerate(curve, start=1)
                ],
            )
            if stopped:
                made = decision_row(trial, trial_id=trial_id, epoch=len(curve), verdict=verdict, reason=reason)
                values = {column.name: getattr(made, column.name) for column in decisions.c}
                connection.execute(insert(decisions).values({**values, "recorded_at": now}))
            for kind in ("claimed", "pruned" if stopped else "complete"):
                told = {"sweep_id": sweep.id, "kind": kind, "text": reason if kind != "claimed" else "by w"}
                connection.execute(insert(events).values(trial_number=trial, attempt=1, data={}, at=now, **told))
    engine.dispose()


def _wers(rate: float, epochs_each: int, random: np.random.Generator) -> list[float]:
    """The dev WER of each epoch: it takes off near 1e-3."""
    away = abs(np.log10(rate / 1e-3))
    takeoff = 4 + 8 * away + random.uniform(0, 4)
    floor = min(0.98, 0.2 + 0.3 * away + random.uniform(0, 0.1))
    x = np.arange(1, epochs_each + 1)
    noise = random.normal(0, 0.008, epochs_each)
    curve = floor + (1 - floor) / (1 + np.exp((x - takeoff - 4) / 2.5)) + noise
    return [float(min(max(wer, 0.02), 1.05)) for wer in (curve if away < 1.1 else 1.0 + noise)]


def _epoch(epoch: int, wer: float) -> EpochRow:
    """With as many metrics as a real one."""
    more = {f"optim/m{i}": 0.123456789 * epoch for i in range(20)}
    row = epoch_row(epoch, wer)
    return EpochRow(**{**vars(row), "metrics": {**row.metrics, **more, "spread/time": 2.5 * max(1.02 - wer, 0.02)}})


@contextmanager
def serving(home: Home) -> Iterator[str]:
    """`sweeps serve`, and its address."""
    log = home.root / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps.cli", "serve", "--port", "0", "--home", str(home.root)],
            stdout=out,
            stderr=out,
        )
    try:
        while not (said := re.search(r"serving (http://\S+)", log.read_text(encoding="utf-8"))):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            time.sleep(0.1)
        yield said[1]
    finally:
        process.terminate()
        process.wait(20)


def chromium() -> str:
    """
    Raises:
        SystemExit: the system has none.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise SystemExit("no Chromium on the path: install it (Debian: apt-get install chromium)")


TIMES = """() => {
  const of = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  const [usable] = performance.getEntriesByName("usable");
  const shown = paint ? paint.startTime : NaN;
  return {usable: usable.startTime, html: of.responseEnd, shown, kilobytes: of.decodedBodySize / 1024};
}"""


def measure(browser: Browser, address: str) -> dict[str, float]:
    """One visit, with an empty cache. Times are ms from the first byte asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/sweeps/{NAME}", wait_until="commit")
    page.wait_for_function("() => 'ready' in document.documentElement.dataset")
    found = {"drawn": page.evaluate("() => performance.now()"), **page.evaluate(TIMES)}
    begun = time.perf_counter()
    page.get_by_role("button", name="best WER").click()
    page.wait_for_function("() => document.querySelector('[aria-sort]').textContent == 'best WER'")
    found["sorted"] = 1000 * (time.perf_counter() - begun)
    page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="page") as folder:
        home = Home((given.keep or Path(folder)).resolve())
        home.root.mkdir(parents=True, exist_ok=True)
        if not (home.root / "sweeps.db").exists():
            fill(home, given.trials, given.epochs)
        with serving(home) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium())
            measure(browser, address)  # what the server does once
            visits = [measure(browser, address) for _ in range(given.times)]
            browser.close()
    print(_where(), "\n")
    print(f"{given.trials:,} trials of up to {given.epochs} epochs, {given.times} visits.\n")
    print("| | median | most |\n|---|---|---|")
    names = {
        "html": "the page has arrived, ms",
        "shown": "its first words are shown, ms",
        "usable": "it can be used: table, buttons, learning rates, configurations, ms",
        "drawn": "every curve is drawn, ms",
        "sorted": "the table sorted by a click, ms",
        "kilobytes": "size of the page, KiB",
    }
    for key, what in names.items():
        values = [visit[key] for visit in visits]
        print(f"| {what} | {statistics.median(values):,.0f} | {max(values):,.0f} |")


if __name__ == "__main__":
    main()
