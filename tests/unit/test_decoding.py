"""The final number: greedy as sweeps have it, by beam, tuned on dev alone, written for other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.__main__ import main
from model.checkpoint import Checkpoint, read, write
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.decoding import BONUSES, WEIGHTS, Decoded, Search, decode_split, outputs, write_csv, write_trn
from model.train import train
from model.types import TrainingConfig
from tests.unit.test_diagnose import random_sentences, write_signs

ROOT = Path(__file__).parents[2]
SMALL = TrainingConfig(
    hidden=16, channels=16, device="cpu", epochs=4, learning_rate=1e-2, schedule="constant", probe_interval=0
)


@pytest.fixture(scope="module", autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five glosses, 60 sentences of train, 20 of dev and test."""
    glosses = ["RAIN", "SUN", "WIND", "SNOW", "FOG"]
    sizes = {"train": 60, "dev": 20, "test": 20}
    splits = {name: random_sentences(n, glosses, 4, seed) for seed, (name, n) in enumerate(sizes.items())}
    return write_signs(tmp_path_factory.mktemp("signs"), splits)


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=folder))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    output = tmp_path_factory.mktemp("runs") / "rain"
    assert train(SMALL, corpus, output)["best_wer"] < 0.9
    return output


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Checkpoint:
    return read(run / "last.pt")


def test_greedy_is_the_number_of_the_run(checkpoint: Checkpoint, corpus: Corpus) -> None:
    decoded = decode_split(checkpoint, corpus, corpus.dev, Search())
    assert decoded.greedy.wer == pytest.approx(checkpoint.reports[-1].wer, abs=1e-9)
    parts = decoded.beam.substitutions + decoded.beam.deletions + decoded.beam.insertions
    assert decoded.beam.wer == pytest.approx(parts)
    assert len(decoded.hypotheses) == len(corpus.dev)
    assert decoded.tries == ()
    assert decoded.seconds > 0


def test_outputs_are_those_of_each_sentence_alone(checkpoint: Checkpoint, corpus: Corpus) -> None:
    together, _ = outputs(checkpoint, corpus.dev)
    one_by_one = replace(checkpoint, config=checkpoint.config.with_values({"eval_batch_size": 1}))
    alone, _ = outputs(one_by_one, corpus.dev)
    for a, b, frames in zip(together, alone, corpus.dev.lengths, strict=True):
        assert a.shape == (frames // 4, len(corpus.vocabulary))
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_tuning_takes_the_best_pair_of_the_grid_and_of_equal_ones_the_least(
    checkpoint: Checkpoint, corpus: Corpus
) -> None:
    decoded = decode_split(checkpoint, corpus, corpus.dev, Search(beam=4, lm_order=2), tune=True)
    assert [(t.lm_weight, t.length_bonus) for t in decoded.tries] == [(w, b) for w in WEIGHTS for b in BONUSES]
    best = min(t.wer for t in decoded.tries)
    assert decoded.beam.wer == best
    chosen = (decoded.search.lm_weight, abs(decoded.search.length_bonus))
    assert chosen == min((t.lm_weight, abs(t.length_bonus)) for t in decoded.tries if t.wer == best)
    again = decode_split(checkpoint, corpus, corpus.dev, decoded.search)
    assert again.hypotheses == decoded.hypotheses
    without = decode_split(checkpoint, corpus, corpus.dev, Search(beam=4), tune=True)
    assert {t.lm_weight for t in without.tries} == {0.0}, "without an n-gram its weight is nothing to try"


def test_test_is_not_tuned_on(
    checkpoint: Checkpoint, corpus: Corpus, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert corpus.test is not None
    with pytest.raises(ValueError, match="--tune on test"):
        decode_split(checkpoint, corpus, corpus.test, Search(), tune=True)
    assert main(["decode", str(run), "--data", str(folder), "--split", "test", "--tune"]) == 2
    assert capsys.readouterr().err.startswith("error: --tune on test: ")


def test_outputs_that_are_not_finite_are_not_decoded(checkpoint: Checkpoint, corpus: Corpus) -> None:
    state = {name: torch.full_like(value, torch.nan) for name, value in checkpoint.trainer["model"].items()}
    broken = replace(checkpoint, trainer={**checkpoint.trainer, "model": state})
    with pytest.raises(ValueError, match="not finite"):
        decode_split(broken, corpus, corpus.dev, Search())


def test_weights_that_cannot_be_loaded_are_refused(checkpoint: Checkpoint, corpus: Corpus) -> None:
    wider = replace(checkpoint, config=checkpoint.config.with_values({"hidden": 32}))
    with pytest.raises(ValueError, match="do not fit its own config"):
        decode_split(wider, corpus, corpus.dev, Search())
    foreign = replace(checkpoint, identity={"trainer": "mine.py:Mine"})
    with pytest.raises(ValueError, match=r"mine\.py:Mine"):
        decode_split(foreign, corpus, corpus.dev, Search())


def test_the_sentences_as_a_table_and_for_sclite(checkpoint: Checkpoint, corpus: Corpus, tmp_path: Path) -> None:
    decoded = decode_split(checkpoint, corpus, corpus.dev, Search())
    pairs = (("", ""), *decoded.hypotheses[1:])  # nothing was recognised in the first one
    decoded = Decoded(decoded.search, decoded.greedy, decoded.beam, pairs, (), 0.0)
    write_csv(tmp_path / "dev.csv", corpus.dev, decoded)
    table = [line.split("|") for line in (tmp_path / "dev.csv").read_text(encoding="utf-8").splitlines()]
    assert table[0] == ["id", "reference", "greedy", "beam"]
    expected = zip(corpus.dev.ids, corpus.dev.references, pairs, strict=True)
    assert table[1:] == [[name, reference, *pair] for name, reference, pair in expected]
    write_trn(tmp_path / "dev.trn", corpus.dev, decoded)
    hypotheses = (tmp_path / "dev.trn").read_text(encoding="utf-8").splitlines()
    references = (tmp_path / "dev.ref.trn").read_text(encoding="utf-8").splitlines()
    assert hypotheses[:2] == ["(dev-0)", f"{pairs[1][1]} (dev-1)"]
    assert references == [f"{r} ({i})" for i, r in zip(corpus.dev.ids, corpus.dev.references, strict=True)]


def keys_in_reference(heading: str) -> list[str]:
    """The keys that docs/reference/json.md lists below a heading."""
    page = (ROOT / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)`", page.split(f"\n## {heading}\n")[1].split("\n## ")[0], re.MULTILINE)


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_the_command_prints_both_numbers(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "test.csv"
    words = ["decode", str(run), "--data", str(folder), "--split", "test", "--lm-order", "2", "--hypotheses", str(file)]
    assert main([*words, "--json"]) == 0
    facts = printed(capsys)
    assert list(facts) == keys_in_reference("A decoding")
    assert (facts["split"], facts["sentences"], facts["epoch"]) == ("test", 20, 4)
    assert facts["search"] == {"beam": 16, "lm_order": 2, "lm_weight": 0.3, "length_bonus": 0.0, "prune": None}
    assert len(file.read_text(encoding="utf-8").splitlines()) == 21
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"beam 16, 2-gram at weight 0.3 {facts['beam']['wer']:7.1%}" in text
    assert main(["decode", str(run), "--data", str(folder), "--beam", "2", "--tune"]) == 0
    assert "--split test --beam 2 --lm_order 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--beam", "0"], "--beam 0"),
        (["--lm_order", "4"], "--lm_order 4"),
        (["--lm_weight", "-1"], "--lm_weight -1.0"),
        (["--lm_weight", "nan"], "--lm_weight nan"),
        (["--length_bonus", "inf"], "--length_bonus inf"),
        (["--prune", "0"], "--prune 0.0"),
        (["--prune", "nan"], "--prune nan"),
        (["--hypotheses", "dev.ctm"], ".csv or .trn"),
        (["--hypotheses", "nowhere/dev.csv"], "there is no folder"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    words: list[str], fault: str, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["decode", str(run), "--data", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_another_corpus_is_said(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "other.pt", replace(checkpoint, corpus_hash="0" * 64))
    assert main(["decode", str(tmp_path / "other.pt"), "--data", str(folder), "--json"]) == 0
    assert "is not the one of the training" in capsys.readouterr().err
