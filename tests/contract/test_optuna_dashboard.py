"""Optuna Dashboard on the database of a sweep, opened read-only as docs/how-to/optuna-dashboard.md says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from sweeps.service import find_sweep
from sweeps.spec import spec_of
from sweeps.states import TrialState
from sweeps.study import Study
from tests.contract.test_work_loop import EPOCHS, Site, does, site

__all__ = ["site"]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "optuna-dashboard.md"


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    """A dashboard with the very address that the page names, but for the folder."""
    with closing(Study(site.store.url, spec_of(find_sweep(site.store, "s")))):  # as the first worker makes it
        pass
    told = re.search(r'^optuna-dashboard "(sqlite:[^"]+)"$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert told is not None
    database = told[1].replace(".sweeps/sweeps.db", site.store.url.removeprefix("sqlite:///"))
    assert database.endswith("mode=ro&uri=true")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    process = subprocess.Popen([program, database, "--port", str(port), "--quiet"], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while not answers(address):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/api/meta").status_code == 200
    except httpx.TransportError:
        return False


def study(address: str) -> dict[str, Any]:
    (summary,) = httpx.get(f"{address}/api/studies").json()["study_summaries"]
    assert summary["study_name"] == "s"
    found: dict[str, Any] = httpx.get(f"{address}/api/studies/{summary['study_id']}?after=0").json()
    return {**found, "id": summary["study_id"]}


@pytest.mark.slow
def test_it_shows_a_sweep_while_it_runs_and_cannot_write(
    site: Site, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def look(epoch: int, step: int) -> None:
        if (epoch, step) == (3, 0):
            seen.append(study(address))

    does(monkeypatch, look)
    assert site.work() is False
    (during,) = seen
    assert [trial["state"] for trial in during["trials"]] == ["Running"]

    (trial,) = site.trials
    assert trial.state is TrialState.COMPLETE
    until = time.monotonic() + 30
    while (after := study(address))["trials"][0]["state"] == "Running":  # it remembers what it has read for a while
        assert time.monotonic() < until
        time.sleep(0.5)
    (shown,) = after["trials"]
    assert {attribute["key"]: attribute["value"] for attribute in shown["user_attrs"]}["reason"] == trial.reason
    assert (shown["state"], shown["values"]) == ("Complete", [trial.best_wer])
    told = {param["name"]: float(param["param_external_value"]) for param in shown["params"]}
    assert told == pytest.approx(trial.hyperparameters)

    for answer in (
        httpx.delete(f"{address}/api/studies/{after['id']}"),
        httpx.post(f"{address}/api/studies", json={"study_name": "mine", "directions": ["minimize"]}),
        httpx.put(f"{address}/api/studies/{after['id']}/note", json={"body": "changed", "version": 1}),
    ):
        assert answer.status_code >= 400
    assert study(address) == after
    assert [row.epoch for row in site.store.epochs(trial.id)] == list(range(1, EPOCHS + 1))
