"""Bad input gets one clear line that says where, what, the rule and the way out; nothing is trained."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.acceptance.commands import run, start, write_spec
from tests.corpora import write_corpus, write_csv, write_sequence

Tried = Callable[..., tuple[int, str, str]]
Spoil = Callable[[Path], dict[str, Any]]
"""Breaks a good corpus folder; returns changes for the spec."""


def missing_folder(corpus: Path) -> dict[str, Any]:
    return {"corpus": {"path": str(corpus.parent / "nowhere")}}


def no_train_folder(corpus: Path) -> dict[str, Any]:
    (corpus / "features" / "train").rename(corpus / "features" / "training")
    return {}


def no_annotations(corpus: Path) -> dict[str, Any]:
    (corpus / "annotations").rename(corpus / "texts")
    return {}


def csv_without_a_column(corpus: Path) -> dict[str, Any]:
    file = corpus / "annotations" / "dev.corpus.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("|annotation", "|text", 1), encoding="utf-8")
    return {}


def features_with_nan(corpus: Path) -> dict[str, Any]:
    x = np.ones((40, 6), dtype=np.float32)
    x[7, 3] = np.nan
    write_sequence(corpus / "features" / "train" / "train-2.npz", x)
    return {}


def features_of_another_width(corpus: Path) -> dict[str, Any]:
    write_sequence(corpus / "features" / "dev" / "dev-1.npz", np.ones((40, 7), dtype=np.float32))
    return {}


def a_file_that_is_no_npz(corpus: Path) -> dict[str, Any]:
    (corpus / "features" / "train" / "train-1.npz").write_bytes(b"not a zip")
    return {}


def modalities_that_do_not_add_up(corpus: Path) -> dict[str, Any]:
    return {"corpus": {"modalities": {"pose": 3, "hands": 4}}}


def ids_without_features(corpus: Path) -> dict[str, Any]:
    (corpus / "features" / "train" / "train-3.npz").unlink()
    return {}


def every_sentence_too_short(corpus: Path) -> dict[str, Any]:
    for file in (corpus / "features" / "train").glob("*.npz"):
        write_sequence(file, np.ones((3, 6), dtype=np.float32))
    return {}


def empty_targets_alone(corpus: Path) -> dict[str, Any]:
    write_csv(corpus / "annotations" / "train.corpus.csv", [(f"train-{i}", "-", "S", "__ON__") for i in range(6)])
    return {"corpus": {"filter": "phoenix-si5"}}


def vocabulary_that_does_not_fit(corpus: Path) -> dict[str, Any]:
    file = corpus / "vocabulary.txt"
    file.write_text("<blank>\nX\nY\n", encoding="utf-8")
    return {"corpus": {"vocabulary": str(file)}}


def vocabulary_without_blank(corpus: Path) -> dict[str, Any]:
    file = corpus / "vocabulary.txt"
    file.write_text("A\nB\nC\n", encoding="utf-8")
    return {"corpus": {"vocabulary": str(file)}}


def unknown_filter(corpus: Path) -> dict[str, Any]:
    return {"corpus": {"filter": "phoenix"}}


def low_above_high(corpus: Path) -> dict[str, Any]:
    return {"space": {"learning_rate": {"low": 0.02, "high": 1e-5, "log": True}}}


def unknown_key(corpus: Path) -> dict[str, Any]:
    return {"trainer": {"batchsize": 8}}


def unknown_section(corpus: Path) -> dict[str, Any]:
    return {"worker": 2}


def value_of_the_wrong_kind(corpus: Path) -> dict[str, Any]:
    return {"trainer": {"epochs": "many"}}


def value_out_of_range(corpus: Path) -> dict[str, Any]:
    return {"space": {"dropout": {"low": 0.0, "high": 1.5}}}


def first_trial_with_an_unknown_field(corpus: Path) -> dict[str, Any]:
    return {"first_trials": {"fixed": {"learning_rat": 1e-3}}}


CASES: Sequence[tuple[Spoil, Sequence[str]]] = [
    (missing_folder, ["nowhere", "no such folder", "name the one"]),
    (no_train_folder, ["features", "holds no train/", "training", "name the folder"]),
    (no_annotations, ["corpus", "train*.csv", "annotations"]),
    (
        csv_without_a_column,
        ["dev.corpus.csv", "'annotation'", "id, folder, signer, text", "id|folder|signer|annotation"],
    ),
    (features_with_nan, ["train-2.npz", "nan", "frame 7, dimension 3", "must be finite", "delete it"]),
    (features_of_another_width, ["dev-1.npz", "7 wide", "6", "one width", "extract them alike"]),
    (a_file_that_is_no_npz, ["train-1.npz", "npz", "write it again"]),
    (modalities_that_do_not_add_up, ["'pose': 3", "add up to 7", "6 dimensions", "leave modalities out"]),
    (ids_without_features, ["train", "1 of 6", "train-3", "at most 1%", "delete their lines"]),
    (every_sentence_too_short, ["train: 6 of 6", "too short", "output stride 4", "lower the output stride"]),
    (empty_targets_alone, ["train.corpus.csv", "phoenix-si5", "another filter"]),
    (vocabulary_that_does_not_fit, ["vocabulary.txt", "100.0%", "at most 1%", "leave it out"]),
    (vocabulary_without_blank, ["vocabulary.txt", "line 1 is 'A'", "blank", "first"]),
    (unknown_filter, ["corpus.filter", "'phoenix'", "none, phoenix-si5"]),
    (low_above_high, ["spec.yaml", "space.learning_rate", "low 0.02 is above high 1e-05", "swap them"]),
    (unknown_key, ["spec.yaml", "trainer.batchsize", "unknown key", "did you mean batch_size?"]),
    (unknown_section, ["spec.yaml", "worker", "unknown key", "did you mean workers?"]),
    (value_of_the_wrong_kind, ["spec.yaml", "trainer.epochs", "'many'", "integer"]),
    (value_out_of_range, ["spec.yaml", "space.dropout", "1.5", "less than 1"]),
    (
        first_trial_with_an_unknown_field,
        ["spec.yaml", "first_trials.fixed.learning_rat", "did you mean learning_rate?"],
    ),
]


@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry-run"])
@pytest.mark.parametrize(("spoil", "words"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_bad_input_gets_one_clear_line(
    tmp_path: Path, tried: Tried, spoil: Spoil, words: Sequence[str], dry: bool
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    changes = spoil(corpus)
    source = {"generated": None, "path": str(corpus), **changes.pop("corpus", {})}
    spec = write_spec(tmp_path, corpus=source, **changes)
    children = psutil.Process().children(recursive=True)
    code, _, err = tried("run", spec, *(["--dry-run"] if dry else []), "--home", tmp_path / "home")
    assert code == 2
    (line,) = [line for line in err.splitlines() if not line.startswith(("warning:", "corpus:"))]
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not (tmp_path / "home" / "sweeps.db").exists()
    assert psutil.Process().children(recursive=True) == children


def test_what_can_be_left_out_is_counted_and_listed(tmp_path: Path, tried: Tried) -> None:
    sentences = ["ICH DU", "DU WIR", "WIR ICH DU", "ICH", "WIR WIR", "DU ICH"] * 34
    train = [*sentences, "__ON__", " ".join(["ICH", "DU"] * 6)]
    corpus = write_corpus(tmp_path / "corpus", {"train": train, "dev": ["ICH DU"]})
    (corpus / "features" / "train" / "train-3.npz").unlink()
    write_sequence(corpus / "features" / "train" / "train-5.npz", np.ones((2, 6), dtype=np.float32))
    spec = write_spec(tmp_path, corpus={"generated": None, "path": str(corpus), "filter": "phoenix-si5"})
    code, out, err = tried("run", spec, "--dry-run", "--home", tmp_path / "home")
    assert code == 0, err
    for word in ("1 of 206 sentences", "no features", "train-3", "empty target", "train-204", "train-5", "train-205"):
        assert word in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["nowhere.yaml", "no such file", "examples/"]),
        ("name: [", ["nowhere.yaml", "not valid YAML"]),
        ("- a list", ["nowhere.yaml", "mapping", "name:"]),
        ("name: tiny\n", ["nowhere.yaml", "corpus", "missing"]),
        ("name: a/b\ncorpus: generated\n", ["nowhere.yaml", "name", "letters"]),
    ],
)
def test_a_file_that_is_no_spec(tmp_path: Path, tried: Tried, content: str | None, words: Sequence[str]) -> None:
    spec = tmp_path / "nowhere.yaml"
    if content is not None:
        spec.write_text(content, encoding="utf-8")
    code, _, err = tried("run", spec, "--home", tmp_path / "home")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_a_file(tmp_path: Path, tried: Tried) -> None:
    home = tmp_path / "home"
    home.write_text("", encoding="utf-8")
    code, _, err = tried("run", write_spec(tmp_path), "--home", home)
    assert code == 2
    (line,) = [line for line in err.splitlines() if not line.startswith(("warning:", "corpus:"))]
    assert line.startswith("error: ")
    assert str(home) in line


def dead_address() -> str:
    """Nobody listens there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (None, ["no MLflow server answers", "start it", "leave it out"]),
        ("./mlruns", ["./mlruns", "sqlite:///PATH", "none for a local server"]),
    ],
)
def test_a_tracking_server_that_is_not_there_is_refused_before_training(
    tmp_path: Path, tried: Tried, uri: str | None, words: Sequence[str]
) -> None:
    home = tmp_path / "home"
    uri = uri or dead_address()
    code, _, err = tried("run", write_spec(tmp_path), "--home", home, "--tracking-uri", uri)
    assert code == 2
    (line,) = [line for line in err.splitlines() if not line.startswith(("warning:", "corpus:"))]
    assert line.startswith("error: ")
    for word in (uri, *words):
        assert word in line
    assert not (home / "sweeps.db").exists(), "the name of a sweep that never began was taken"
    assert not (home / "mlflow").exists()


@pytest.mark.slow
def test_the_real_command_refuses_without_a_traceback(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    changes = features_with_nan(corpus)
    spec = write_spec(tmp_path, corpus={"generated": None, "path": str(corpus)}, **changes)
    for words in (["--json"], ["--dry-run"], ["--json", "--tracking-uri", dead_address()]):
        refused = run(tmp_path / "home", tmp_path, "run", spec, *words, code=2)
        assert refused.stdout.read_text(encoding="utf-8") == ""
        assert "Traceback" not in refused.words()
    assert start(tmp_path / "home", tmp_path, "run", spec, "--trials", "none").wait() == 2
