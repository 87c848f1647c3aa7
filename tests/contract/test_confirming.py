"""What a confirmation comes to, from rows alone: nothing is trained here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.corpus.data import Corpus
from model.types import METRICS, EpochReport
from sweeps import preparing
from sweeps.commands.confirm import as_values
from sweeps.confirmation import CONFIRMED, FACT
from sweeps.confirmation_spec import confirmation_spec
from sweeps.confirming import confirmation_of, run_of, score
from sweeps.errors import SweepError
from sweeps.records import EpochRow, ScoreRow, SweepRow
from sweeps.settings import Home
from sweeps.spec import SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.store import Store

WERS = {"original": 0.40, "1": 0.10, "2": 0.12}
"""Of the sweep that is confirmed."""

SENTENCES, WORDS = 24, 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> preparing.Prepared:
    content = {
        "name": "parent",
        "corpus": {"generated": {"train": 8, "dev": SENTENCES, "test": SENTENCES, "glosses": 3}},
        "trainer": {"epochs": 2, "hidden": 8, "channels": 8},
        "first_trials": {"original": {"learning_rate": 1e-3}},
        "budget": {"trials": 3},
    }
    return preparing.prepare(SweepSpec.model_validate(content), Home(tmp_path_factory.mktemp("home")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{(tmp_path / 'sweeps.db').as_posix()}")
    yield store
    store.close()


def finish(store: Store, sweep: SweepRow, wers: Sequence[Sequence[float]], ended: TrialState) -> None:
    """Every trial of a sweep, with the dev WER of each epoch; none: it never had one."""
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    for curve in wers:
        claim = store.claim(sweep.id, "worker", 60)
        assert claim is not None
        values = claim.hyperparameters or {"learning_rate": 1e-3 * (claim.number + 1)}
        more = {"warmup_start_factor": 1.0, "dropout": 0.1, "patience": 1}
        store.set_hyperparameters(claim, {**more, **values}, None)
        reports = [EpochReport(n, n, {**dict.fromkeys(METRICS, 0.5), "dev/wer": wer}) for n, wer in enumerate(curve, 1)]
        store.record(claim, [EpochRow.of(report, "learning") for report in reports])
        store.finish(claim, ended, "learned", "as it was told", "epochs", {})
    store.set_sweep_state(sweep.id, SweepState.COMPLETE)


def reread(store: Store, sweep: SweepRow) -> SweepRow:
    found = store.find_sweep(sweep.name)
    assert found is not None
    return found


def confirmation(
    store: Store,
    prepared: preparing.Prepared,
    *,
    curves: Mapping[str, Sequence[float]] | None = None,
    test: bool = True,
    ended: TrialState = TrialState.COMPLETE,
    facts: Mapping[str, Any] | None = None,
    seeds: int = 5,
    name: str = "parent-confirm",
) -> SweepRow:
    """A confirmation of the two best against `original`, whose runs are over; WERs by configuration."""
    parent = store.find_sweep("parent")
    if parent is None:
        parent = preparing.open_sweep(store, prepared)
        finish(store, parent, [[0.9, wer] for wer in WERS.values()], TrialState.COMPLETE)
        parent = reread(store, parent)
    spec, about = confirmation_spec(parent, store.trials(parent.id), name, top=2, seeds=seeds)
    kept = {**about, "test_sentences": SENTENCES if test else 0}
    sweep = preparing.open_sweep(store, replace(prepared, spec=spec), {FACT: kept, **(facts or {})})
    of = curves or {"original": [0.5, 0.4, 0.3], "trial-1": [0.4, 0.2, 0.1], "trial-2": [0.5, 0.4, 0.3]}
    # Seeds differ a little.
    wers = [
        [wer + 0.01 * (n // 3 % 3) for wer in of[trial.rpartition(".")[0]]] for n, trial in enumerate(spec.first_trials)
    ]
    finish(store, sweep, wers, ended)
    return reread(store, sweep)


def scored(store: Store, sweep: SweepRow, errors: Mapping[str, int], splits: Sequence[Any] = ("dev", "test")) -> None:
    """As if each configuration had so many wrong words in every other sentence, one more with every second seed."""
    for trial in store.trials(sweep.id):
        configuration, _, seed = str(trial.name).partition(".seed-")
        wrong = [(errors[configuration] + int(seed) % 2) * ((i + int(seed)) % 2) for i in range(SENTENCES)]
        ids = [str(i) for i in range(SENTENCES)]
        rows = [ScoreRow(trial.id, split, 3, ids, wrong, [WORDS] * SENTENCES) for split in splits]
        store.add_scores(sweep.id, rows)


MARKED = {"original": 3, "trial-1": 0, "trial-2": 3}


def test_test_decides_where_there_is_one(store: Store, prepared: preparing.Prepared, tmp_path: Path) -> None:
    sweep = confirmation(store, prepared)
    assert confirmation_of(store, sweep) is None  # not scored yet
    scored(store, sweep, MARKED)
    score(store, sweep, prepared.corpus, tmp_path)  # all is there: nothing is loaded
    found = confirmation_of(store, sweep)
    assert found is not None
    assert (found.split, found.sentences, found.seeds, found.epochs) == ("test", SENTENCES, 5, 4)
    assert [(each.name, each.baseline) for each in found.configurations] == [
        ("original", True),
        ("trial-1", False),
        ("trial-2", False),
    ]
    assert {pair.name: pair.verdict for pair in found.pairs} == {"trial-1": "better", "trial-2": "not shown better"}
    assert found.best is not None
    assert found.best.name == "trial-1"
    assert found.sentence.startswith("Train trial-1: its WER is")
    assert any("scored once" in note and "0 earlier confirmations" in note for note in found.notes)
    assert confirmation_of(store, reread(store, store.sweeps()[0])) == found  # asked by the sweep it confirms
    for each in store.sweeps():
        assert each.facts[CONFIRMED]["sentences"] == found.said


def test_what_it_decided_is_a_run_of_the_configuration_not_of_the_lowest_dev_wer(
    store: Store, prepared: preparing.Prepared, tmp_path: Path
) -> None:
    lucky = {"original": [0.5, 0.4, 0.3], "trial-1": [0.4, 0.2, 0.2], "trial-2": [0.5, 0.4, 0.1]}
    for name, marks, decided in (("better", MARKED, "trial-1"), ("none", dict.fromkeys(MARKED, 3), "original")):
        sweep = confirmation(store, prepared, curves=lucky, name=name)
        scored(store, sweep, marks)
        found = confirmation_of(store, sweep)
        assert found is not None
        assert found.decided.name == decided
        run = run_of(store, found, found.decided)
        assert run is not None
        assert str(run.name).startswith(f"{decided}.seed-")
        assert run.best_wer == min(t.best_wer or 1 for t in store.trials(sweep.id) if t.number in found.decided.runs)


def test_the_json_page_has_every_key(store: Store, prepared: preparing.Prepared) -> None:
    sweep = confirmation(store, prepared)
    scored(store, sweep, MARKED)
    values = as_values(sweep, confirmation_of(store, sweep))
    page = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    section = page.partition("## A confirmation\n")[2].partition("\n## ")[0]
    written = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    assert sorted(written) == sorted(["confirmation", *key_paths(json.loads(json.dumps(values, allow_nan=False)))])


def key_paths(value: Any, path: str = "") -> set[str]:
    """`confirmation.pairs[].name`; what is inside a configuration's values and measures stands in words."""
    data = {"values", "measured", "dev", "again"}
    if isinstance(value, dict) and path.rpartition(".")[2] not in data:
        inner = [key_paths(item, f"{path}.{key}" if path else key) for key, item in value.items()]
        return set().union(*inner)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(key_paths(item, f"{path}[]") for item in value))
    return {path}


def test_what_the_sweep_chose_by_is_held_against_as_many_epochs_of_new_seeds(
    store: Store, prepared: preparing.Prepared
) -> None:
    sweep = confirmation(store, prepared)
    scored(store, sweep, MARKED)
    found = confirmation_of(store, sweep)
    assert found is not None
    best = found.configurations[1]
    assert (best.sweep_wer, best.sweep_epochs) == (0.10, 2)
    assert best.again.wer == pytest.approx(0.2 + 0.01 * (0 + 1 + 2 + 0 + 1) / 5)  # of epochs 1 and 2, not of the third
    assert best.luck(4).startswith("trial-1: 10.0% dev WER in the sweep; with 5 new seeds and as many epochs (2) 20.8%")
    assert best.luck(4).endswith("10.8 points of it were luck.")
    # A confirmation that is shorter than the sweep was cannot tell.
    assert best.luck(1).endswith("after up to 2 epochs; with 1 nothing tells how much of it was luck.")
    assert best.luck(4) in found.said


def test_a_later_confirmation_says_who_looked_at_test_before(store: Store, prepared: preparing.Prepared) -> None:
    first = confirmation(store, prepared)
    scored(store, first, MARKED)
    second = confirmation(store, prepared, name="again")
    scored(store, second, MARKED)
    found = confirmation_of(store, second)
    assert found is not None
    assert found.earlier_looks == ("parent-confirm",)
    assert any("1 earlier confirmation looked" in note and "parent-confirm" in note for note in found.notes)
    earlier = confirmation_of(store, first)
    assert earlier is not None
    assert earlier.earlier_looks == ()
    parent = store.find_sweep("parent")
    assert parent is not None
    assert confirmation_of(store, parent) == found  # the latest


def test_without_a_test_split_dev_decides_and_says_what_that_means(store: Store, prepared: preparing.Prepared) -> None:
    sweep = confirmation(store, prepared, test=False)
    scored(store, sweep, MARKED, splits=("dev",))
    found = confirmation_of(store, sweep)
    assert found is not None
    assert (found.split, found.test_scored_at) == ("dev", None)
    assert any("no test split" in note and "flatters all" in note for note in found.notes)


def test_one_seed_has_no_verdict(store: Store, prepared: preparing.Prepared) -> None:
    sweep = confirmation(store, prepared, seeds=1)
    scored(store, sweep, MARKED)
    found = confirmation_of(store, sweep)
    assert found is not None
    assert {pair.verdict for pair in found.pairs} == {"not shown better"}
    assert found.best is None
    assert any("With one seed no verdict is possible" in note for note in found.notes)


def test_a_trainer_of_ones_own_is_judged_by_the_wers_of_its_runs(
    store: Store, prepared: preparing.Prepared, tmp_path: Path
) -> None:
    sweep = confirmation(store, prepared, facts={"trainer": "mine.py:Mine"})
    score(store, sweep, prepared.corpus, tmp_path)
    found = confirmation_of(store, sweep)
    assert found is not None
    assert (found.split, found.sentences) == ("run", 0)
    assert store.scores(sweep.id) == []
    assert found.configurations[1].measured.wer == pytest.approx(0.108)
    assert any("Only mine.py:Mine can load its checkpoints" in note for note in found.notes)


def test_a_run_without_a_finite_wer_reads_nothing(store: Store, prepared: preparing.Prepared, tmp_path: Path) -> None:
    nan = float("nan")
    curves = {"original": [nan, nan], "trial-1": [nan, nan], "trial-2": [nan, nan]}
    sweep = confirmation(store, prepared, curves=curves, ended=TrialState.PRUNED)
    score(store, sweep, prepared.corpus, tmp_path)
    assert all(row.errors == row.words for row in store.scores(sweep.id))
    found = confirmation_of(store, sweep)
    assert found is not None
    assert found.configurations[0].measured.wer == 1
    assert any(note.startswith("Counted as reading nothing") for note in found.notes)
    assert found.best is None


def untouched(store: Store, sweep: SweepRow, corpus: Corpus, folder: Path, words: str) -> None:
    with pytest.raises(SweepError, match=words):
        score(store, sweep, corpus, folder)
    assert store.looks_at_test() == {}
    assert confirmation_of(store, sweep) is None


def test_a_run_that_failed_leaves_test_alone(store: Store, prepared: preparing.Prepared, tmp_path: Path) -> None:
    sweep = confirmation(store, prepared, ended=TrialState.FAILED)
    words = r"parent-confirm/original.seed-1 is FAILED \(as it was told\).*sweeps delete parent-confirm"
    untouched(store, sweep, prepared.corpus, tmp_path, words)


def test_checkpoints_that_are_elsewhere_leave_test_alone(
    store: Store, prepared: preparing.Prepared, tmp_path: Path
) -> None:
    sweep = confirmation(store, prepared)
    untouched(store, sweep, prepared.corpus, tmp_path, "its best checkpoint is not here .*test was not looked at")
