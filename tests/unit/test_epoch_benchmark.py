"""That the benchmark of an epoch compares two loops that compute the same, and says so where they do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.types import TrainingConfig
from tests.corpora import write_corpus

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import epoch
from plain import MaskedNorm

SENTENCES = {"train": ["A B", "B C A", "C A", "B A C", "A", "C B A B"] * 2, "dev": ["A B", "C", "B A"]}
TINY = TrainingConfig(batch_size=4, hidden=16, channels=16, schedule="constant", device="cpu", probe_interval=0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CorpusConfig(path=write_corpus(tmp_path_factory.mktemp("corpus"), SENTENCES)))


def test_both_loops_compute_the_same(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    said = epoch.compared(TINY, corpus, same_model=False)
    assert said.startswith("train loss of the first epoch ")
    assert "float64" not in said
    exact = epoch.first_losses(TINY.with_values({"dropout": 0}), corpus, same_model=False, dtype=torch.float64)
    assert epoch.apart(exact) < 1e-12
    monkeypatch.setattr(epoch, "EQUAL", 0.0)  # as where rounding has carried them apart
    step = epoch.first_step(TINY.with_values({"dropout": 0}), corpus, same_model=False)
    assert epoch.apart(step) < 1e-5


def test_rounding_that_has_grown_is_told_from_another_computation(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = epoch.first_losses

    def grown(*given: object, dtype: torch.dtype = torch.float32, **more: object) -> tuple[float, float]:
        theirs, ours = real(*given, dtype=dtype, **more)  # type: ignore[arg-type]
        return theirs, ours * (1.001 if dtype == torch.float32 else 1.0)

    monkeypatch.setattr(epoch, "first_losses", grown)
    assert "in float64" in epoch.compared(TINY, corpus, same_model=False)
    forward = MaskedNorm.forward
    monkeypatch.setattr(MaskedNorm, "forward", lambda norm, x, mask: forward(norm, x, mask) + 1e-5)
    with pytest.raises(SystemExit, match="the losses differ"):
        epoch.compared(TINY, corpus, same_model=False)


def test_of_dev_the_first_sentences_can_be_left(corpus: Corpus) -> None:
    cut = epoch.with_dev(corpus, 2)
    assert (len(cut.dev), cut.dev.references) == (2, corpus.dev.references[:2])
    assert cut.dev.features(1).tolist() == corpus.dev.features(1).tolist()
    assert cut.train is corpus.train


def test_it_measures_what_its_rows_say(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "WIDE", 1)
    found = epoch.measured(TINY.with_values({"length_buckets": 3}), corpus, 1, same_model=False)
    names = [each.name for each in epoch.as_rows(found, epoch.AIM)]
    assert names[2:] == ["an epoch with length buckets", "share of the matrix multiply rate over a step"]
    assert found["buckets"] == 3
    assert found["bucketed_longest"] <= 1
    assert 0 < found["matmul_share"] < 1
