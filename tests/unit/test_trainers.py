"""A trainer of one's own: how it is named, what is said where it cannot be had, a sweep that knows WER alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.ctc import CTCTrainer
from model.floors import Floors
from model.types import EpochReport, TrainingConfig
from sweeps import judging, preparing, pruning, service, trainers
from sweeps.display import epoch_line
from sweeps.errors import TrainerChanged, TrainerNotFound
from sweeps.records import EpochRow
from sweeps.settings import Home
from sweeps.spec import SpecError, SweepSpec
from sweeps.states import SweepState, TrialState
from sweeps.summary import command_of
from sweeps.trainers import load_trainer, make_trainer, resolved, trainer_name
from tests.rows import sweep_row, trial_row

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_trainer.py"


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is imported here is forgotten."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("trainer_in_") or name in ("neighbour", "mine"):
            del sys.modules[name]
    load_trainer.cache_clear()


def written(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


# naming it


def test_without_a_name_it_is_the_built_in_one() -> None:
    assert load_trainer(None) is CTCTrainer
    assert resolved(None) is None
    assert trainer_name(None) == trainers.BUILT_IN


def test_a_file_is_named_by_its_own_name_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved("lab/mine.py:Mine") == f"{tmp_path / 'lab' / 'mine.py'}:Mine"
    assert trainer_name("lab/mine.py:Mine") == trainer_name(resolved("lab/mine.py:Mine")) == "mine.py:Mine"
    assert resolved("lab.mine:Mine") == trainer_name("lab.mine:Mine") == "lab.mine:Mine"


def test_a_file_may_import_its_neighbours_but_hides_nothing(tmp_path: Path) -> None:
    written(tmp_path / "neighbour.py", "SIZE = 3\n")
    written(tmp_path / "json.py", "raise RuntimeError('the wrong json')\n")
    text = "import json, neighbour\ndef make(config, corpus):\n    return json.dumps(neighbour.SIZE)\n"
    make = load_trainer(f"{written(tmp_path / 'json_trainer.py', text)}:make")
    assert make(TrainingConfig(), None) == "3"  # type: ignore[arg-type, comparison-overlap]


def test_a_module_is_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "mine.py", "class Mine:\n    def __init__(self, config, corpus): ...\n")
    monkeypatch.chdir(tmp_path)
    assert load_trainer("mine:Mine").__name__ == "Mine"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mine", "names no trainer: write FILE.py:NAME or package.module:NAME"),
        ("mine.py", "names no trainer"),
        ("mine.py:", "names no trainer"),
        (":Mine", "names no trainer"),
        ("nowhere.py:Mine", "there is no file nowhere.py: correct the path"),
        ("no.such.module:Mine", "cannot be imported .*No module named 'no'"),
        (f"{EXAMPLE}:WindowTrain", "has no WindowTrain: did you mean WindowTrainer"),
        (f"{EXAMPLE}:Qqq", "has no Qqq: name one"),
        (f"{EXAMPLE}:STOP", "has no STOP"),
        ("json:dumps", r"dumps\(config, corpus\) cannot be called"),
        ("json:decoder", r"decoder\(config, corpus\) cannot be called .*not a callable"),
    ],
)
def test_a_name_that_is_none_gets_one_line(
    reference: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainerNotFound, match=words) as error:
        load_trainer(reference)
    assert str(error.value).startswith(f"--trainer {reference}: ")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def make(config, corpus)\n", "SyntaxError: .*line 1"),
        ("import os\n\nos.nothing\n", "AttributeError: .*broken.py line 3"),
        ("import sys\nsys.exit('usage: ...')\n", "SystemExit: usage: ..., broken.py line 2"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines, broken.py line 1"),
    ],
)
def test_a_file_that_breaks_when_it_is_imported_says_where(text: str, words: str, tmp_path: Path) -> None:
    file = written(tmp_path / "broken.py", text)
    with pytest.raises(TrainerNotFound, match=words) as error:
        load_trainer(f"{file}:make")
    assert len(str(error.value).splitlines()) == 1


def test_what_is_made_must_be_a_trainer(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.py", "class Mine:\n    epoch = 0\n    def __init__(self, config, corpus): ...\n")
    with pytest.raises(ValueError, match="made 'Mine', which has no step, train_epoch, state_dict, load_state_dict"):
        make_trainer(f"{file}:Mine", TrainingConfig(), None)  # type: ignore[arg-type]


# a sweep of it


SPEC = SweepSpec.model_validate(
    {
        "name": "tiny",
        "corpus": {"generated": {"train": 9, "dev": 2, "glosses": 3}},
        "trainer": {"epochs": 4, "hidden": 8, "channels": 8, "batch_size": 2},
        "budget": {"trials": 1},
    }
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def test_a_sweep_goes_on_with_its_own_trainer_alone(home: Home, tmp_path: Path) -> None:
    built_in = preparing.prepare(SPEC, home)
    own = preparing.prepare(SPEC, home, trainer=f"{EXAMPLE}:WindowTrainer")
    copy = written(tmp_path / "elsewhere" / EXAMPLE.name, EXAMPLE.read_text(encoding="utf-8"))
    moved = preparing.prepare(SPEC, home, trainer=f"{copy}:WindowTrainer")
    assert own.facts["trainer"] == "own_trainer.py:WindowTrainer"
    for first, second, words in (
        (own, built_in, "trained by own_trainer.py:WindowTrainer, not by the built-in trainer: name own_trainer.py"),
        (built_in, own, "trained by the built-in trainer, not by own_trainer.py:WindowTrainer: leave --trainer out"),
    ):
        store = service.load_home_store(Home(tmp_path / first.facts["trainer"].replace(":", "-")), None)
        sweep = preparing.open_sweep(store, first)
        with pytest.raises(TrainerChanged, match=words):
            preparing.open_sweep(store, second)
        assert preparing.open_sweep(store, first) == sweep
        if first is own:
            assert preparing.open_sweep(store, moved) == sweep
        store.close()


def test_a_sweep_of_an_earlier_version_has_the_built_in_trainer(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = preparing.prepare(SPEC, home)
    facts = {k: v for k, v in prepared.facts.items() if k != "trainer"}
    store = service.load_home_store(Home(tmp_path), None)
    with monkeypatch.context() as earlier:
        earlier.setattr(preparing.Prepared, "facts", property(lambda self: facts))
        sweep = preparing.open_sweep(store, prepared)
    assert "trainer" not in sweep.facts
    assert preparing.open_sweep(store, prepared) == sweep
    store.close()


def test_a_plan_measures_it_by_its_contract_alone(home: Home, tmp_path: Path) -> None:
    plan = preparing.plan(preparing.prepare(SPEC, home, trainer=f"{EXAMPLE}:WindowTrainer"))
    hidden, classes = SPEC.trainer.hidden, 4
    assert plan.parameters == hidden * 225 * 24 + hidden + classes * hidden + classes
    assert 0 < plan.seconds_per_epoch < 60
    text = "class Mine:\n    epoch = 0\n    def __init__(self, config, corpus): ...\n"
    with pytest.raises(SpecError, match="has no step"):
        preparing.plan(preparing.prepare(SPEC, home, trainer=f"{written(tmp_path / 'mine.py', text)}:Mine"))


def test_no_command_is_printed_that_would_train_something_else(home: Home) -> None:
    corpus = preparing.prepare(SPEC, home).corpus_config
    own = sweep_row(facts={"trainer": "own_trainer.py:WindowTrainer", "constant_wer": 0.9})
    assert command_of(own, trial_row(), SPEC, corpus) is None
    assert "model train" in (command_of(sweep_row(), trial_row(), SPEC, corpus) or "")


# WER and nothing else


def curve(wers: list[float]) -> list[EpochReport]:
    return [EpochReport(epoch, 10 * epoch, {"dev/wer": wer}) for epoch, wer in enumerate(wers, start=1)]


FLOORS = Floors(0.92, "", 4.0, 4.0, 14.0)


def history(wers: list[float], number: int = 0, *, ended: bool = False) -> pruning.History:
    return pruning.History(number, curve(wers), TrainingConfig(epochs=40), 0.92, ended)


LEARNS = [history([1.0, 0.9, 0.5, *[0.2] * 30], n, ended=True) for n in range(3)]


def test_rules_that_ask_for_more_do_not_judge() -> None:
    assert pruning.decide(history([1.0] * 30, 9), LEARNS, FLOORS) is None  # in the plateau WER alone is no evidence


def test_the_rule_of_wer_still_does() -> None:
    slow = pruning.decide(history([0.8] * 9, 9), LEARNS, FLOORS)
    assert slow is not None
    assert slow.rule == "too_slow"


def test_an_epoch_is_a_line_of_what_there_is() -> None:
    assert epoch_line(EpochRow.of(curve([0.5])[0], "learning")) == "epoch 1  WER 50.0%  learning"


def test_a_divergence_is_told_without_a_learning_rate(home: Home, tmp_path: Path) -> None:
    store = service.load_home_store(Home(tmp_path), None)
    sweep = preparing.open_sweep(store, preparing.prepare(SPEC, home))
    store.set_sweep_state(sweep.id, SweepState.RUNNING)
    claim = store.claim(sweep.id, "worker", 60)
    assert claim is not None
    last = EpochReport(1, 10, {"dev/wer": float("nan")}, steps_in_epoch=10, skipped_steps=10)
    assert judging.Judge(SPEC, store, sweep).finish_if_over(claim, SPEC.trainer, [last]) is TrialState.PRUNED
    trial = store.trials(sweep.id)[0]
    assert (trial.state, trial.verdict) == (TrialState.PRUNED, "diverged")
    assert trial.reason.startswith("Diverged: 10 of 10 steps of epoch 1 were not finite. At most 1% of the steps")
    store.close()
