"""A sweep in a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import sweeps
from sweeps import service
from sweeps.errors import SweepError, SweepNotFound
from sweeps.frames import SweepFrames, load
from sweeps.service import SweepService
from sweeps.settings import Home
from sweeps.states import TrialState
from sweeps.store import Store
from tests.reviewed import sweep_of, typical
from tests.serving import begun, corpus, policy_of, serving, spec, trained

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "notebook.md"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home with the sweep `demo`: a trial that is over, one that was stopped, one that runs, one that waits."""
    home = Home(tmp_path / "home")
    store = service.load_home_store(home, None)
    asked = SweepService(store, home, "").create(spec("demo", corpus(tmp_path / "corpus")))
    trained(store, asked.sweep.sweep.id)
    trained(store, asked.sweep.sweep.id, state=TrialState.PRUNED)
    begun(store, asked.sweep.sweep.id)
    yield home
    store.close()


def test_the_lines_of_the_page_run(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWEEPS_HOME", str(home.root))
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    assert len([line for line in block[1].splitlines() if line]) == 5
    found: dict[str, object] = {}
    exec(block[1], found)
    assert isinstance(found["demo"], SweepFrames)


def test_trials_epochs_and_decisions_as_the_database_has_them(home: Home) -> None:
    demo = load("demo", home=home.root)
    assert repr(demo) == "sweep demo: running, 3 trials, best WER 22.5%, of trial 1"
    assert list(demo.trials.index) == [0, 1, 2]
    assert list(demo.trials["state"]) == ["COMPLETE", "PRUNED", "RUNNING"]
    assert demo.trials["best_wer"].idxmin() == 1
    assert demo.trials.loc[0, "params.learning_rate"] == 1e-3
    assert demo.trials["finished_at"].dt.tz is not None
    assert pd.isna(demo.trials.loc[2, "finished_at"])
    assert demo.epochs.groupby("trial").size().to_dict() == {0: 3, 1: 3}
    assert demo.epochs["dev/wer"].min() == pytest.approx(demo.trials["best_wer"].min())
    assert demo.decisions.loc[1, "rule"] == "too_slow"
    assert demo.decisions.loc[1, "measured.best_wer"] == 0.7
    assert demo.decisions.loc[1, "against.median"] == 0.5


def test_a_server_says_the_same(home: Home, tmp_path: Path) -> None:
    store = Store(home.database_url)
    with serving(store, home, policy_of(tmp_path)) as address:
        over_http = load("demo", server=address)
    store.close()
    here = load("demo", database=home.database_url)
    pd.testing.assert_frame_equal(over_http.trials, here.trials)
    pd.testing.assert_frame_equal(over_http.epochs, here.epochs)
    pd.testing.assert_frame_equal(over_http.decisions, here.decisions)


def test_overrides_stand_beside_what_was_searched() -> None:
    trial = typical().trials[12]
    frames = SweepFrames(sweep_of([trial, typical().trials[13]]))
    assert frames.trials.loc[12, "params.dropout"] == 0.1
    assert pd.isna(frames.trials.loc[13, "params.dropout"]), "it was never asked"


def test_a_sweep_without_anything_has_its_columns() -> None:
    empty = SweepFrames(sweep_of([]))
    for frame in (empty.trials, empty.epochs, empty.decisions):
        assert len(frame) == 0
        assert len(frame.columns) > 5


def test_another_figure_and_another_sweep_are_refused(home: Home) -> None:
    with pytest.raises(SweepError, match="wer, spread, loss, learning_rate, parallel, importance"):
        SweepFrames(typical()).figure("losses")  # type: ignore[arg-type]
    with pytest.raises(SweepNotFound, match="demo"):
        load("dmo", home=home.root)


def test_it_is_imported_when_asked_for() -> None:
    assert sweeps.load is load
