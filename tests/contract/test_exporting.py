"""A trial as a folder for a stranger, and a trial trained again: real trainings, small ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.checkpoint import read
from model.types import Stopped, TrainingConfig
from sweeps import checkpoints, environment, exporting, preparing, replaying
from sweeps.confirmation import Measured
from sweeps.confirming import Confirmation, Confirmed
from sweeps.errors import CannotWork, SweepError
from sweeps.exporting import Exported, export
from sweeps.records import SweepRow, TrialRow
from sweeps.replaying import Difference, Replay, first_difference, replay, verdict
from sweeps.settings import Home
from sweeps.spec import SweepSpec, corpus_of
from sweeps.states import SweepState, TrialState
from sweeps.store import Store
from sweeps.summary import words_of
from sweeps.worker import Job, work
from tests.rows import epoch_row

SPEC: dict[str, Any] = {
    "name": "tiny",
    "corpus": {"generated": {"train": 60, "dev": 20, "glosses": 8}},
    "trainer": {"epochs": 8, "hidden": 24, "channels": 24, "batch_size": 8},
    "first_trials": {
        "best": {"learning_rate": 1.5e-2, "warmup_start_factor": 0.2, "dropout": 0.1, "patience": 8},
        "impatient": {"learning_rate": 1e-5, "warmup_start_factor": 1.0, "patience": 2, "patience_starts": "epoch1"},
        "stopped": {"learning_rate": 1e-5, "warmup_start_factor": 0.1, "dropout": 0.0, "patience": 8},
    },
    "pruner": {"name": "threshold", "upper": 0.9, "n_warmup_steps": 5, "audit_share": 0.0},
    "range_test": False,
    "on_alarm": "continue",
    "budget": {"trials": 3},
}


@dataclass(frozen=True)
class Site:
    home: Home
    store: Store
    sweep: SweepRow

    def trial(self, name: str) -> TrialRow:
        return self.store.trial(self.sweep.id, name)

    def export(self, to: Path, name: str = "best", **options: Any) -> Exported:
        return export(self.store, self.home, self.sweep, self.trial(name), to, **options)

    def replay(self, name: str, **options: Any) -> Replay:
        return replay(self.store, self.home, self.sweep, self.trial(name), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A sweep of three trials; the first was interrupted in the middle and went on in another worker."""
    home = Home(tmp_path_factory.mktemp("my home"))
    prepared = preparing.prepare(SweepSpec.model_validate(SPEC), home)
    with closing(Store(home.database_url)) as store:
        sweep = preparing.open_sweep(store, prepared)
        store.set_sweep_state(sweep.id, SweepState.RUNNING)
        stop = threading.Event()

        def stop_in_the_middle() -> None:
            while not any(trial.epochs >= 2 for trial in store.trials(sweep.id)):
                pass
            stop.set()

        watching = threading.Thread(target=stop_in_the_middle)
        watching.start()
        job = Job("first", store.url, ("tiny",), home, home.checkpoints, home.workers)
        work(job, stop)
        watching.join()
        (began,) = [trial for trial in store.trials(sweep.id) if trial.epochs]
        assert (began.state, began.number) == (TrialState.WAITING, 0)
        work(replace(job, worker="second"), threading.Event())
        ended = [(trial.name, trial.state.value, trial.rule, trial.attempt) for trial in store.trials(sweep.id)]
        assert ended[:2] == [("best", "COMPLETE", "epochs", 2), ("impatient", "COMPLETE", "patience", 1)]
        assert ended[2][:3] == ("stopped", "PRUNED", "threshold")
    return home


@pytest.fixture
def site(trained: Home, tmp_path: Path) -> Iterator[Site]:
    home = Home(Path(shutil.copytree(trained.root, tmp_path / "home")))
    with closing(Store(home.database_url)) as store:
        sweep = store.find_sweep("tiny")
        assert sweep is not None
        yield Site(home, store, sweep)


def model(*words: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "model", *map(str, words), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


# export


def test_a_folder_for_a_stranger(site: Site, tmp_path: Path) -> None:
    found = site.export(tmp_path / "out")
    trial = site.trial("best")
    assert set(found.files) == {
        *("README.md", "SHA256SUMS", "checkpoint.pt", "config.yaml", "corpus.json", "environment.txt"),
        *("evidence.json", "train.ps1", "train.sh", "vocabulary.txt"),
    }
    assert found.missing == {}
    folder = found.folder
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.iterdir()
        if file.name != "SHA256SUMS"
    }
    config = TrainingConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    assert config == read(folder / "checkpoint.pt").config
    assert "optimizer" not in read(folder / "checkpoint.pt").trainer
    corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    assert corpus["hash"] == site.sweep.facts["corpus_hash"]
    assert (corpus["splits"]["train"]["sentences"], corpus["splits"]["dev"]["sentences"]) == (60, 20)
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["dev_wer"] == evidence["dev_wer_measured_again"] == trial.best_wer
    low, high = evidence["interval"]
    assert low < trial.best_wer < high
    assert (evidence["best_of"], evidence["is_best"], evidence["confirmation"]) == (3, True, None)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"Dev WER {trial.best_wer:.1%}, 95 % interval {low:.1%} to {high:.1%}" in readme
    assert "It is the best of 3 trials" in readme
    assert "so dev flatters it" in readme
    assert "`sweeps confirm tiny`" in readme
    pins = (folder / "environment.txt").read_text(encoding="utf-8")
    assert environment.cpu_model() in pins
    assert "torch threads 1" in pins
    assert all("+" not in line for line in pins.splitlines() if "==" in line)


@pytest.mark.slow  # imports torch three times
def test_the_commands_of_the_model_take_the_checkpoint_as_it_lies(site: Site, tmp_path: Path) -> None:
    folder = site.export(tmp_path / "out").folder
    corpus = corpus_of(site.sweep).path
    decoded = model("decode", folder / "checkpoint.pt", "--data_dir", corpus)
    assert decoded["greedy"]["wer"] == site.trial("best").best_wer
    pytest.importorskip("onnxscript")
    model("export", folder / "checkpoint.pt", tmp_path / "student.onnx")
    assert (tmp_path / "student.onnx").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no POSIX shell there")
def test_the_script_trains_exactly_this(site: Site, tmp_path: Path) -> None:
    folder = site.export(tmp_path / "out").folder
    moved = tmp_path / "another place"
    shutil.copytree(corpus_of(site.sweep).path, moved)
    words = ["sh", str(folder / "train.sh"), str(moved), str(tmp_path / "run")]
    subprocess.run(words, check=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()]
    then = [row.metrics["dev/wer"] for row in site.store.epochs(site.trial("best").id)]
    assert [line["metrics"]["dev/wer"] for line in lines] == then


def test_powershell_gets_the_same_words(site: Site, tmp_path: Path) -> None:
    folder = site.export(tmp_path / "out").folder
    text = (folder / "train.ps1").read_bytes()
    assert text.startswith(b"\xef\xbb\xbf")  # Windows PowerShell would read another code page
    lines = text.decode("utf-8-sig").splitlines()
    (call,) = [line for line in lines if line.startswith("& $python")]
    (posix,) = [line for line in (folder / "train.sh").read_text().splitlines() if line.startswith("exec")]
    powershell = words_of(call, "win32")[1:]
    shell = words_of(posix, "linux")[2:]
    assert powershell == [word.strip('"') for word in shell]
    assert f"[string]$data_dir = '{corpus_of(site.sweep).path}'" in "\n".join(lines)


def test_another_trial_is_not_called_the_best(site: Site, tmp_path: Path) -> None:
    folder = site.export(tmp_path / "out", "impatient").folder
    assert "best of 3" not in (folder / "README.md").read_text(encoding="utf-8")
    assert json.loads((folder / "evidence.json").read_text(encoding="utf-8"))["is_best"] is False


def test_a_folder_that_holds_something_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SweepError, match="holds something already"):
        site.export(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]
    site.export(tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine.txt").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(SweepError, match="is a file"):
        site.export(tmp_path / "file", force=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_crash_leaves_no_half_folder(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    out = tmp_path / "out"
    if there:
        site.export(out)
    before = {file.name: file.read_bytes() for file in out.iterdir()} if there else None
    monkeypatch.setattr(exporting, "environment_text", fails)
    with pytest.raises(OSError, match="disk full"):
        site.export(out, force=True)
    assert ({file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else None) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def fails(*_: object) -> str:
    raise OSError("disk full")


def test_what_is_not_to_be_had_is_said(site: Site, tmp_path: Path) -> None:
    checkpoints.expire(site.home.checkpoints / "tiny", [site.trial("stopped").number], days=-1)
    found = site.export(tmp_path / "out", "stopped")
    assert set(found.missing) == {"checkpoint.pt", "the interval of its WER"}
    assert "has expired" in found.missing["checkpoint.pt"]
    assert "checkpoint.pt" not in found.files
    assert "vocabulary.txt" in found.files
    readme = (found.folder / "README.md").read_text(encoding="utf-8")
    assert f"- checkpoint.pt: {found.missing['checkpoint.pt']}" in readme
    assert "python -m model decode" not in readme


def test_without_the_corpus_there_are_the_weights(site: Site, tmp_path: Path) -> None:
    found = site.export(tmp_path / "out", corpus=tmp_path / "nowhere")
    assert set(found.missing) == {"the interval of its WER"}
    assert {"checkpoint.pt", "vocabulary.txt"} <= set(found.files)
    corpus = json.loads((found.folder / "corpus.json").read_text(encoding="utf-8"))
    assert corpus["splits"]["dev"] == {"sentences": 20, "words": None, "frames": None}


def test_weights_of_a_trainer_of_ones_own_are_given_as_they_are(site: Site, tmp_path: Path) -> None:
    site.store.update_facts(site.sweep.id, {"trainer": "mine.py:Mine"})
    sweep = site.store.find_sweep("tiny")
    assert sweep is not None
    found = replace(site, sweep=sweep).export(tmp_path / "out")
    assert set(found.missing) == {"train.sh, train.ps1", "the interval of its WER"}
    assert "checkpoint.pt" in found.files
    assert "mine.py:Mine" in (found.folder / "README.md").read_text(encoding="utf-8")


def test_another_sweep_of_that_name_has_other_weights(site: Site, tmp_path: Path) -> None:
    other = replace(site.sweep, created_at=site.sweep.created_at + 1)
    found = export(site.store, site.home, other, site.trial("best"), tmp_path / "out")
    assert "is of another sweep" in found.missing["checkpoint.pt"]


def test_the_confirmed_value_stands_beside_the_flattering_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(0.5, 0.45, 0.55, (0.5,))
    own = Confirmed("best", 0, (0, 1), {}, False, measured, measured, 0.4, 6, measured)
    confirmation = Confirmation(
        "tiny-confirm", "tiny", "original", 2, 12, "test", 20, (own,), (), 1.0, (), ("Only 2 seeds.",)
    )
    monkeypatch.setattr(exporting, "confirmation_of", lambda store, sweep: confirmation)
    folder = site.export(tmp_path / "out").folder
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "Trained again with 2 new seeds (tiny-confirm), it has a WER of 50.0% (45.0 to 55.0) on test" in readme
    assert "- Only 2 seeds." in readme
    assert "It was not confirmed" not in readme
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["confirmation"]["sweep"] == "tiny-confirm"


# replay


@pytest.mark.parametrize("name", ["best", "impatient", "stopped"])
def test_a_trial_comes_out_the_same_bit_for_bit(site: Site, name: str) -> None:
    before = site.store.trials(site.sweep.id), site.store.sweep_epochs(site.sweep.id)
    said: list[Difference | None] = []
    found = site.replay(name, on_epoch=lambda row, difference: said.append(difference))
    assert (found.reproduced, found.check, found.difference, found.machines) == (True, "bitwise", None, ())
    assert found.epochs == site.trial(name).epochs
    assert said == [None] * found.epochs
    assert (site.store.trials(site.sweep.id), site.store.sweep_epochs(site.sweep.id)) == before
    event = site.store.last_events(site.sweep.id, 1)[0]
    assert (event.kind, event.trial_number) == ("replayed", site.trial(name).number)
    assert event.data["reproduced"] is True
    assert {file.name for file in Path(found.folder).iterdir()} == {"best.pt", "epochs.jsonl", "replay.json"}
    assert json.loads((Path(found.folder) / "replay.json").read_text(encoding="utf-8"))["sentence"] == found.sentence


def tampered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database has another gradient norm for epoch 2 than was computed."""
    epochs: Callable[[int], Any] = site.store.epochs

    def other(trial_id: int) -> Any:
        rows = epochs(trial_id)
        norm = rows[1].metrics["optim/grad_norm"]
        return [rows[0], replace(rows[1], metrics={**rows[1].metrics, "optim/grad_norm": norm + 1e-15}), *rows[2:]]

    monkeypatch.setattr(site.store, "epochs", other)


def test_what_differs_in_the_last_bit_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(site, monkeypatch)
    found = site.replay("best")
    assert (found.reproduced, found.check) == (False, "bitwise")
    assert found.difference is not None
    assert (found.difference.epoch, found.difference.metric) == (2, "optim/grad_norm")
    assert found.interval is None
    assert found.sentence.startswith("Not reproduced: optim/grad_norm of epoch 2 was ")


def test_on_another_machine_the_wer_decides(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment.here()
    monkeypatch.setattr(environment, "here", lambda: {**here, "cpu": "Another", "torch": "9.9"})
    same = site.replay("best")
    assert (same.reproduced, same.check) == (True, "bitwise")
    assert same.sentence.endswith(f"torch ({here['torch']}; here 9.9); cpu ({here['cpu']}; here Another).")
    tampered(site, monkeypatch)
    found = site.replay("best")
    assert (found.reproduced, found.check) == (True, "interval")
    assert found.interval is not None
    assert found.sentence.startswith("Reproduced within chance: the WER of then, ")


def test_the_first_epochs_only(site: Site) -> None:
    assert site.replay("best", epochs=1).epochs == 1
    with pytest.raises(SweepError, match=r"--epochs 9: the trial has 8 epochs; give 1 to 8"):
        site.replay("best", epochs=9)


def test_an_interrupted_replay_goes_on(site: Site, tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(Stopped):
        site.replay(
            "best",
            output=tmp_path / "replay",
            on_epoch=lambda row, difference: done.append(row.epoch),
            should_stop=lambda: len(done) >= 3,
        )
    found = site.replay("best", output=tmp_path / "replay", on_epoch=lambda row, difference: done.append(row.epoch))
    assert done == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found.reproduced
    assert len((tmp_path / "replay" / "epochs.jsonl").read_text().splitlines()) == 8
    again: list[int] = []  # one that is over begins anew: what it left is no proof
    site.replay("best", epochs=2, output=tmp_path / "replay", on_epoch=lambda row, difference: again.append(row.epoch))
    assert again == [1, 2]


def test_another_corpus_or_trainer_is_refused(site: Site, tmp_path: Path) -> None:
    other = Path(shutil.copytree(corpus_of(site.sweep).path, tmp_path / "other"))
    file = next(other.rglob("*.npz"))
    file.write_bytes(next(path for path in other.rglob("*.npz") if path != file).read_bytes())
    with pytest.raises(CannotWork):
        site.replay("best", corpus=other)
    with pytest.raises(CannotWork, match="it is trained by built-in"):
        site.replay("best", trainer="mine.py:Mine")


def test_what_is_compared_of_an_epoch() -> None:
    row = epoch_row(1, 0.5)
    assert first_difference([row], [replace(row, seconds=9.0, recorded_at=7.0)]) is None
    assert first_difference([row], [replace(row, metrics={**row.metrics, "system/cpu": 1.0})]) is None
    for changed, metric in (
        (replace(row, step=row.step + 1), "step"),
        (replace(row, phase="other"), "phase"),
        (replace(row, metrics={**row.metrics, "dev/new": 1.0}), "dev/new"),
        (replace(row, metrics={k: v for k, v in row.metrics.items() if k != "dev/loss"}), "dev/loss"),
    ):
        found = first_difference([row, row], [row, changed])
        assert found is not None
        assert found.metric == metric


def test_the_verdict_says_which_check_was_made() -> None:
    difference, elsewhere = Difference(3, "dev/loss", 1.0, 1.1), ["cpu (A; here B)"]
    assert verdict(5, None, [], 0.5, 0.5, None)[:2] == (True, "bitwise")
    assert verdict(5, difference, [], 0.5, 0.5, None)[:2] == (False, "bitwise")
    assert verdict(5, difference, elsewhere, 0.5, 0.52, (0.45, 0.6))[:2] == (True, "interval")
    assert verdict(5, difference, elsewhere, 0.7, 0.52, (0.45, 0.6))[:2] == (False, "interval")
    reproduced, check, sentence = verdict(5, difference, elsewhere, 0.5, 0.5, None)
    assert (reproduced, check) == (False, "bitwise")
    assert "Nothing else can be checked: its sentences cannot be scored here" in sentence
    assert replaying.NOT_COMPARED == "system/"
