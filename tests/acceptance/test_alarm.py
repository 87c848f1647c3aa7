"""A sweep in which nothing takes off: the real command pauses it, says why, and goes on when it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.types import METRICS, EpochReport
from sweeps import preparing, service
from sweeps.records import Claim, DecisionRow, EpochRow
from sweeps.settings import Home
from sweeps.spec import load_spec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from tests.acceptance.commands import Command, check_everything_arrived, read, run, runs, write_spec
from tests.acceptance.conftest import Finished
from tracking.server import store_uri

pytestmark = pytest.mark.slow

Tried = Callable[..., tuple[int, str, str]]

FAR_TOO_LOW: dict[str, Any] = {
    "corpus": {"generated": {"train": 32, "dev": 24, "glosses": 8}},
    "trainer": {"epochs": 20, "batch_size": 2, "hidden": 8, "channels": 8},  # 320 steps: a chance to take off
    "space": {"learning_rate": {"low": 1e-6, "high": 3e-6, "log": True}, "patience": 18},
    "first_trials": None,
    "range_test": False,
    "budget": {"trials": 6},
}


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_a_sweep_whose_rates_are_far_too_low_pauses_and_goes_on_as_it_is_told(tmp_path: Path) -> None:
    spec, home = write_spec(tmp_path, **FAR_TOO_LOW), tmp_path / "home"

    def go(home: Path, *words: str, code: int = 0) -> Command:
        (home / "mlflow").mkdir(parents=True, exist_ok=True)
        # MLflow's database itself: its server takes longer to start than these trials to train.
        return run(
            home, tmp_path, "run", spec, "--json", "--tracking-uri", store_uri(home / "mlflow"), *words, code=code
        )

    paused = go(home, code=3)
    assert paused.result()["state"] == "PAUSED"
    sweep, before, epochs = read(home)
    alarm = sweep.facts["alarm"]
    assert sweep.state is SweepState.PAUSED
    assert sweep.reason == "nothing takes off (likely cause: rates too low); run it again to go on all the same"
    assert alarm["cause"] == "rates_too_low"
    assert alarm["trials"] in ([0, 1, 2], [0, 1, 3], [0, 1, 2, 3]), "two workers may end a trial each at once"
    assert alarm["sentence"] in paused.words()
    assert "--accept-proposal" in paused.words()
    assert {t.state for t in before} <= {TrialState.COMPLETE, TrialState.WAITING}
    assert sum(t.state is TrialState.COMPLETE for t in before) >= 3
    check_everything_arrived(home)

    other = Path(shutil.copytree(home, tmp_path / "other"))
    went_on = go(home)
    sweep, trials, after = read(home)
    assert (went_on.result()["state"], sweep.facts) == ("COMPLETE", {**sweep.facts, "alarm": alarm})
    assert [t.name for t in trials] == [None] * 6
    assert all(1e-6 <= (t.hyperparameters or {})["learning_rate"] <= 3e-6 for t in trials)
    for number, rows in epochs.items():
        assert after[number][: len(rows)] == rows, "a trial that was handed back was begun again"

    accepted = go(other, "--accept-proposal")
    sweep, trials, _ = read(other)
    low, high = (alarm["proposal"][name] for name in ("low", "high"))
    assert accepted.result()["state"] == "COMPLETE"
    assert sweep.facts["learning_rate_bounds"] == {"low": low, "high": high, "by": "alarm"}
    assert [t.number for t in trials] == list(range(6))
    new = trials[len(before) :]
    assert [t.name for t in new] == ["proposal", None]
    assert all(low <= (t.hyperparameters or {})["learning_rate"] <= high for t in new)
    assert runs(other)[new[0].number].data.tags["name"] == "proposal"
    check_everything_arrived(other)


def test_there_is_no_proposal_to_accept_without_an_alarm(finished: Finished, tried: Tried, tmp_path: Path) -> None:
    home = finished.copy(tmp_path)
    code, _, err = tried("run", finished.spec, "--accept-proposal", "--home", home)
    assert code == 2
    assert "error: --accept-proposal: sweep 'tiny' has not alarmed: leave the option out to go on" in err
    store = Store(Home(home).database_url)
    sweep = store.find_sweep("tiny")
    assert sweep is not None
    store.update_facts(sweep.id, {"alarm": {"cause": "data_or_labels", "advice": "Run `check`.", "proposal": None}})
    store.close()
    code, _, err = tried("run", finished.spec, "--accept-proposal", "--home", home)
    assert code == 2
    assert "alarmed, but not for its learning rates (Run `check`.)" in err
    code, _, err = tried("run", write_spec(tmp_path, name="new"), "--accept-proposal", "--home", home)
    assert code == 2
    assert "there is no sweep 'new'" in err
    store = Store(Home(home).database_url)
    assert [each.name for each in store.sweeps()] == ["tiny"], "an option that was refused made a sweep"
    store.close()


# what `sweeps show` says of a decision


@pytest.fixture
def condemned(tmp_path: Path) -> Iterator[tuple[Store, Claim]]:
    """A sweep with a trial that a rule is about to condemn."""
    home = Home(tmp_path / "home")
    prepared = preparing.prepare(load_spec(write_spec(tmp_path, corpus={"generated": {"train": 4, "dev": 2}})), home)
    store = service.load_home_store(home, None)
    sweep = preparing.open_sweep(store, prepared)
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claim = store.claim(sweep.id, "worker", 60)
    assert claim is not None
    store.record(claim, [EpochRow.of(EpochReport(1, 1, dict.fromkeys(METRICS, 0.5)), "plateau")])
    yield store, claim
    store.close()


def decision(claim: Claim, action: Any) -> DecisionRow:
    said = {"reason": "Not learning.", "counterfactual": "More would have kept it."}
    compared = {"numbers": {"spread": 0.021}, "thresholds": {"needed": 0.3}, "siblings": [2, 11]}
    return DecisionRow(claim.trial_id, claim.number, 1, "futile", "never_learned", **said, **compared, action=action)


def test_show_has_what_condemned_a_trial_in_words_and_as_json(
    condemned: tuple[Store, Claim], tried: Tried, tmp_path: Path
) -> None:
    store, claim = condemned
    words = ("show", "tiny/0", "--home", tmp_path / "home")
    assert json.loads(tried(*words, "--json")[1])["decision"] is None
    store.audit(claim, decision(claim, "audited"))
    code, out, err = tried(*words)
    assert code == 0, err
    for line in (
        "condemned at epoch 1 by futile, as never_learned, and audited: it ran on all the same",
        "Not learning.",
        "More would have kept it.",
        "measured   spread=0.021",
        "against    needed=0.3",
        "compared with trials 2, 11",
    ):
        assert f"  {line}\n" in out
    shown = json.loads(tried(*words, "--json")[1])["decision"]
    assert shown.pop("recorded_at") > 0
    assert shown == {
        "epoch": 1,
        "rule": "futile",
        "verdict": "never_learned",
        "reason": "Not learning.",
        "counterfactual": "More would have kept it.",
        "numbers": {"spread": 0.021},
        "thresholds": {"needed": 0.3},
        "siblings": [2, 11],
        "action": "audited",
    }
    reason = "Not learning. More would have kept it."
    store.finish(
        claim, TrialState.PRUNED, "never_learned", reason, "futile", {"epoch": 1.0}, decision(claim, "stopped")
    )
    _, out, _ = tried(*words)
    assert out.count("More would have kept it.") == 2, "the first decision, and the reason"
