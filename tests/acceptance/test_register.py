"""`sweeps register` on a real sweep and the real MLflow that has its runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from sweeps import registering
from sweeps.confirmation import Compared, Measured, Verdict
from sweeps.confirming import Confirmation, Confirmed
from sweeps.settings import Home
from tests.acceptance.conftest import Finished
from tracking.server import store_uri

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")]

Tried = Callable[..., tuple[int, str, str]]
Register = Callable[..., tuple[int, str, str]]


@pytest.fixture
def register(finished: Finished, tmp_path: Path, tried: Tried) -> Register:
    """On a copy of the database: the others read it. The MLflow is the finished sweep's, which has its runs."""
    copy = shutil.copyfile(finished.home / "sweeps.db", tmp_path / "sweeps.db")

    def call(*words: str) -> tuple[int, str, str]:
        where = ("--home", finished.home, "--database", f"sqlite:///{Path(copy).as_posix()}")
        return tried("register", "tiny", *where, *words)

    return call


def versions(finished: Finished, name: str) -> list[Any]:
    return list(MlflowClient(store_uri(Home(finished.home).mlflow)).search_model_versions(f"name = '{name}'"))


def confirmation(verdict: Verdict) -> Confirmation:
    """As if `tiny` were the confirmation: `fixed` against `original`, a run of each."""

    def of(name: str, number: int, wer: float) -> Confirmed:
        found = Measured(wer, wer - 0.1, wer + 0.1, (wer,))
        return Confirmed(name, number, (number,), {}, name == "original", found, found, wer, 2, found)

    pair = Compared("fixed", "original", -0.1, -0.2, 0.0, 0.04, verdict, f"fixed is {verdict} than original.")
    both = (of("original", 0, 0.9), of("fixed", 1, 0.8))
    return Confirmation("tiny", "parent", "original", 5, 4, "test", 24, both, (pair,), 1.0, (), ())


def test_what_was_not_confirmed_is_registered_only_if_that_is_said(finished: Finished, register: Register) -> None:
    code, _, err = register()
    assert (code, err.count("\n")) == (2, 1)
    assert "was not confirmed, so its best WER is partly luck: `sweeps confirm tiny` confirms it" in err
    code, out, _ = register("--unconfirmed", "--model-name", "unconfirmed", "--json")
    found = json.loads(out)
    best = finished.command.result()["best"]
    assert (code, found["version"], found["new"], found["verdict"]) == (0, "1", True, "unconfirmed")
    assert (found["trial"], found["wer"]) == (best["number"], best["wer"])
    (version,) = versions(finished, "unconfirmed")
    assert version.tags["verdict"] == "unconfirmed"
    assert version.tags["wer"] == f"{best['wer']:.4f}"
    assert version.description.startswith("NOT CONFIRMED.")
    code, out, _ = register("--unconfirmed", "--model-name", "unconfirmed")
    assert "models:/unconfirmed@champion is version 1 (it was registered before), unconfirmed" in out
    assert len(versions(finished, "unconfirmed")) == 1


def test_what_was_found_better_is_registered_with_its_evidence(
    finished: Finished, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "confirmation_of", lambda store, sweep: confirmation("better"))
    code, _, err = register("--unconfirmed")
    assert (code, err) == (2, "error: --unconfirmed: tiny confirmed it; leave the option out\n")
    code, out, _ = register("--json", "--alias", "tonight")
    found = json.loads(out)
    assert (code, found["model"], found["alias"], found["trial"]) == (0, "tiny", "tonight", 1)
    assert (found["verdict"], found["wer"], found["uri"]) == ("better", 0.8, "models:/tiny@tonight")
    (version,) = versions(finished, "tiny")
    told = {"wer": "0.8000", "wer_low": "0.7000", "wer_high": "0.9000", "wer_of": "test", "baseline": "original"}
    told |= {"verdict": "better", "difference": "-0.1000", "seeds": "5", "parent_sweep": "parent", "trial": "1 fixed"}
    assert told.items() <= version.tags.items()
    assert "fixed is better than original." in version.description
    assert "the WER above is that of all of them" in version.description


def test_what_is_not_shown_better_needs_force(
    finished: Finished, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "confirmation_of", lambda store, sweep: confirmation("not shown better"))
    code, _, err = register("--model-name", "forced")
    assert code == 2
    assert "Nothing is shown to be better than original" in err
    assert "--force registers the configuration with the lowest WER all the same" in err
    code, out, _ = register("--model-name", "forced", "--force", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "not shown better")
    assert versions(finished, "forced")[0].tags["verdict"] == "not shown better"


def test_a_model_without_weights_here_or_a_bad_name_is_refused(register: Register, tmp_path: Path) -> None:
    code, _, err = register("--unconfirmed", "--checkpoints", str(tmp_path))
    assert code == 2
    assert "its weights are not on this machine" in err
    code, _, err = register("--unconfirmed", "--model-name", "a/b")
    assert (code, "--model-name 'a/b': use letters" in err) == (2, True)
