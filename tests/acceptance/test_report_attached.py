"""The report of a real sweep, put into a real MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.acceptance import commands
from tests.acceptance.conftest import Finished
from tracking.server import store_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

Tried = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
def test_it_is_attached_to_the_best_run_once(finished: Finished, tmp_path: Path, tried: Tried) -> None:
    home = finished.home  # nobody counts its artifacts
    words = ("report", "tiny", "--attach", "--output", tmp_path / "r.html", "--json")
    found = {commands.run(home, finished.folder, *words).result()["attached_to"] for _ in range(2)}
    (run,) = found
    tags = MlflowClient(store_uri(home / "mlflow")).get_run(run).data.tags
    assert tags["number"] == str(finished.command.result()["best"]["number"])
    (kept,) = (home / "mlflow").rglob("report.html")
    assert run in kept.parts
    assert kept.read_bytes() == (tmp_path / "r.html").read_bytes()
    text = kept.read_text(encoding="utf-8")
    assert "python 3." in text, "where it was trained"
    assert finished.commit in text

    copy = finished.copy(tmp_path / "copy")  # its runs are in the other home's MLflow
    code, _, err = tried("report", "tiny", "--attach", "--home", copy, "--output", tmp_path / "r.html")
    assert code == 2
    assert "of another home: name that with --home" in err
