"""One pass over a split: a loss and a hypothesis for each sequence, whatever the batches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.corpus.data import Batch, Corpus, CorpusConfig, load_corpus
from model.evaluate import dev_metrics, evaluate, forward_of, sequence_losses, word_errors_of
from model.types import METRICS, NOT_EVERY_EPOCH
from tests.corpora import write_corpus, write_csv, write_sequence


class Says(nn.Module):
    """Says in each output frame the class that the first feature names, with this log-probability."""

    def __init__(self, classes: int, stride: int, sure: float = math.log(0.97)) -> None:
        super().__init__()
        self.classes, self.stride, self.sure = classes, stride, sure

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        said = features[:, :: self.stride, 0][:, : features.shape[1] // self.stride].round().long()
        rest = math.log((1 - math.exp(self.sure)) / (self.classes - 1))
        out = torch.full((*said.shape, self.classes), rest)
        return out.scatter(2, said[..., None], self.sure), lengths // self.stride


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Dev says "A B", "B", nothing at all, and is once too short to say anything."""
    write_corpus(tmp_path, {"train": ["A B"], "dev": ["A"]})
    said = {"one": [1, 1, 0, 2, 2], "two": [0, 2, 0], "none": [0, 0, 0, 0], "short": []}
    references = {"one": "A B", "two": "A", "none": "B", "short": "A A"}
    for name, frames in said.items():
        x = np.repeat(np.array(frames, dtype=np.float32), 2)[:, None] * np.ones(6, dtype=np.float32)
        write_sequence(tmp_path / "features" / "dev" / f"{name}.npz", x if len(x) else np.ones((1, 6), np.float32))
    rows = [(name, "-", "S", reference) for name, reference in references.items()]
    write_csv(tmp_path / "annotations" / "dev.corpus.csv", rows)
    return load_corpus(CorpusConfig(path=tmp_path, normalise=False))


@pytest.mark.parametrize("size", [1, 2, 10])
def test_each_sequence_has_its_loss_and_its_hypothesis(corpus: Corpus, size: int) -> None:
    model = Says(3, 2)
    found = evaluate(model, forward_of(model, torch.device("cpu")), corpus.dev, 2, size, thorough=True)
    assert found.hypotheses == ((1, 2), (2,), (), ())
    assert np.isnan(found.losses).tolist() == [False, False, False, True]
    assert found.losses[0] < 0.3 < found.losses[1]
    assert found.loss == pytest.approx(np.nansum(found.losses) / 4)
    assert (found.frames, found.blanks, found.best_classes) == (12, 7, (0, 1, 2))
    assert found.largest_logsumexp < 1e-5
    assert found.finite
    metrics = dev_metrics(found, corpus.dev.references, corpus.vocabulary)
    assert metrics["dev/wer"] == pytest.approx((0 + 1 + 1 + 2) / 6)
    assert metrics["decode/length"] == pytest.approx(3 / 6)
    assert metrics["decode/top_gloss"] == pytest.approx(2 / 3)
    assert metrics["decode/length"] == pytest.approx(1 - metrics["dev/del"] + metrics["dev/ins"])
    assert metrics.keys() <= METRICS.keys() - NOT_EVERY_EPOCH


def test_some_rows_in_any_order(corpus: Corpus) -> None:
    model = Says(3, 2)
    forward = forward_of(model, torch.device("cpu"))
    found = evaluate(model, forward, corpus.dev, 2, 2, rows=[2, 0])
    whole = evaluate(model, forward, corpus.dev, 2, 2)
    assert found.hypotheses == ((), (1, 2))
    assert found.losses.tolist() == [whole.losses[2], whole.losses[0]]
    own = sequence_losses(model, forward, corpus.dev, np.array([1, 0]), 2, 1, corpus.dev.features)
    assert own == pytest.approx(whole.losses[[1, 0]])
    silent = sequence_losses(model, forward, corpus.dev, np.array([0]), 2, 1, lambda row: 0 * corpus.dev.features(row))
    assert silent[0] > own[1] + 3


def test_a_model_without_log_softmax_is_seen(corpus: Corpus) -> None:
    model = Says(3, 2)
    forward = forward_of(model, torch.device("cpu"))

    def shifted(batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, lengths = forward(batch)
        return log_probs + 0.5, lengths

    assert evaluate(model, shifted, corpus.dev, 2, 4, thorough=True).largest_logsumexp == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("bad", [0, 2])
def test_one_sequence_that_is_not_finite_does_not_disappear_among_the_others(
    corpus: Corpus, size: int, bad: int
) -> None:
    model = Says(3, 2)
    forward = forward_of(model, torch.device("cpu"))

    def broken(batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, lengths = forward(batch)
        return log_probs.where(torch.from_numpy(batch.indices != bad)[:, None, None], math.nan), lengths

    found = evaluate(model, broken, corpus.dev, 2, size)
    assert not found.finite
    assert math.isnan(dev_metrics(found, corpus.dev.references, corpus.vocabulary)["dev/wer"])


def test_sequences_that_are_all_shorter_than_an_output_frame_have_no_spread(corpus: Corpus) -> None:
    model = Says(3, 32)
    found = evaluate(model, forward_of(model, torch.device("cpu")), corpus.dev, 32, 4)
    metrics = dev_metrics(found, corpus.dev.references, corpus.vocabulary)
    assert found.hypotheses == ((),) * 4
    assert math.isnan(metrics["spread/time"])


def test_outputs_that_are_not_finite_have_no_word_errors(corpus: Corpus) -> None:
    model = Says(3, 2)
    forward = forward_of(model, torch.device("cpu"))

    def broken(batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, lengths = forward(batch)
        return log_probs * math.nan, lengths

    found = evaluate(model, broken, corpus.dev, 2, 4)
    assert not found.finite
    assert math.isnan(word_errors_of(found, corpus.dev.references, corpus.vocabulary).wer)
