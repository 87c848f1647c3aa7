"""The final number of some weights: a split decoded greedily, as in every sweep, and by prefix beam search."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.beam import NEVER, LanguageModel, prefix_beam_search
from model.checkpoint import Checkpoint
from model.corpus.data import Batch, Corpus, Split
from model.ctc import pick_device
from model.evaluate import Evaluation, evaluate, forward_of
from model.metrics import WordErrors, sentence_errors, word_errors
from model.ngram import fit_ngram
from model.trained import trained_model

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)
BONUSES = (-1.0, 0.0, 1.0, 2.0)
"""What tuning tries: every weight of the n-gram with every length bonus."""


@dataclass(frozen=True)
class Search:
    """Settings of the beam search; see `model.beam`.

    Raises:
        ValueError: a value outside its range.
    """

    beam: int = 16
    lm_order: int = 0
    """0: no n-gram."""
    lm_weight: float = 0.3
    length_bonus: float = 0.0
    prune: float = NEVER

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"--beam {self.beam}: prefixes are kept, so give 1 or more")
        if self.lm_order not in (0, 1, 2, 3):
            raise ValueError(f"--lm_order {self.lm_order}: give 1, 2 or 3, or 0 for no n-gram")
        if not 0 <= self.lm_weight < np.inf:
            raise ValueError(f"--lm_weight {self.lm_weight}: give a finite weight of 0 or more")
        if not np.isfinite(self.length_bonus):
            raise ValueError(f"--length_bonus {self.length_bonus}: give a finite number of nats")
        if not self.prune < 0:
            raise ValueError(f"--prune {self.prune}: give a log-probability below 0, such as -10")


@dataclass(frozen=True)
class Try:
    """One pair of settings that tuning has tried."""

    lm_weight: float
    length_bonus: float
    wer: float


@dataclass(frozen=True)
class Decoded:
    """A split, decoded twice."""

    search: Search
    """As it was used: with what tuning has chosen."""
    greedy: WordErrors
    beam: WordErrors
    hypotheses: tuple[tuple[str, str], ...]
    """Of each sentence, greedy and by beam; glosses joined by one space."""
    tries: tuple[Try, ...]
    """Of tuning, in their order; empty without it."""
    seconds: float
    """Of the beam search, a sentence, without the network."""


def check_tuning(split_name: str) -> None:
    """
    Raises:
        ValueError: settings must not be chosen on this split.
    """
    if split_name == "test":
        raise ValueError(
            "--tune on test: what is chosen there flatters the number that is to be reported; tune on dev, and decode "
            "test once with what it finds"
        )


def decode_split(
    checkpoint: Checkpoint,
    corpus: Corpus,
    split: Split,
    search: Search,
    *,
    tune: bool = False,
    device: str = "auto",
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> Decoded:
    """Decode every sentence of a split with the checkpoint's weights.

    Args:
        corpus: the one of the training, as `model.diagnose.fitting` gives it; the n-gram is of its train glosses.
        tune: choose weight and bonus by the WER on this split.
        progress: called after each sentence: what is done, how many, of how many.

    Raises:
        ValueError: the weights cannot be loaded or their outputs are not finite, or test is to be tuned on.
    """
    if tune:
        check_tuning(split.name)
    log_probs, greedy = outputs(checkpoint, split, device)
    classes = len(corpus.vocabulary)
    language_model = fit_ngram(corpus.train.targets, classes, search.lm_order) if search.lm_order else None

    def sentences(hypotheses: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(corpus.vocabulary.decode(labels)) for labels in hypotheses]

    def found(how: Search, what: str) -> list[str]:
        return sentences(search_all(log_probs, how, language_model, lambda n: progress(what, n, len(split))))

    tries: list[Try] = []
    if tune:
        pairs = [(w, b) for w in (WEIGHTS if language_model else (0.0,)) for b in BONUSES]
        for number, (weight, bonus) in enumerate(pairs, start=1):
            hypotheses = found(
                replace(search, lm_weight=weight, length_bonus=bonus), f"tuning {number} of {len(pairs)}, sentence"
            )
            tries.append(Try(weight, bonus, word_errors(split.references, hypotheses).wer))
        best = min(
            tries, key=lambda each: (each.wer, each.lm_weight, abs(each.length_bonus))
        )  # of equal ones the least
        search = replace(search, lm_weight=best.lm_weight, length_bonus=best.length_bonus)
    began = time.perf_counter()
    by_beam = found(search, "sentence")
    seconds = (time.perf_counter() - began) / len(split)
    plain = sentences(greedy)
    return Decoded(
        search=search,
        greedy=word_errors(split.references, plain),
        beam=word_errors(split.references, by_beam),
        hypotheses=tuple(zip(plain, by_beam, strict=True)),
        tries=tuple(tries),
        seconds=seconds,
    )


def greedy_errors(checkpoint: Checkpoint, split: Split, device: str = "auto") -> tuple[list[int], list[int]]:
    """Wrong words of each sentence of a split, decoded greedily, and words of its reference.

    Raises:
        ValueError: the weights cannot be loaded, or their outputs are not finite.
    """
    where, config = pick_device(device), checkpoint.config
    model = trained_model(checkpoint).to(where)
    forward = forward_of(model, where, config.precision)
    found = _finite(evaluate(model, forward, split, config.output_stride, config.eval_batch_size), checkpoint)
    hypotheses = [" ".join(checkpoint.glosses[label] for label in labels) for labels in found.hypotheses]
    return sentence_errors(split.references, hypotheses), [len(each.split()) for each in split.references]


def outputs(
    checkpoint: Checkpoint, split: Split, device: str = "auto"
) -> tuple[list[NDArray[np.float32]], tuple[tuple[int, ...], ...]]:
    """Log-probabilities (T_out, V) of each sentence, without frames where one is shorter than a frame of the output,
    and its greedy hypothesis.

    Raises:
        ValueError: the weights cannot be loaded, or their outputs are not finite.
    """
    where, config = pick_device(device), checkpoint.config
    model = trained_model(checkpoint).to(where)
    forward = forward_of(model, where, config.precision)
    log_probs = [np.empty((0, len(checkpoint.glosses)), np.float32)] * len(split)

    def keeping(batch: Batch) -> tuple[Tensor, Tensor]:
        out, lengths = forward(batch)
        for row, each, frames in zip(batch.indices, out.cpu().numpy(), lengths.tolist(), strict=True):
            log_probs[int(row)] = each[:frames].copy()  # else all padding stays with it
        return out, lengths

    found = _finite(evaluate(model, keeping, split, config.output_stride, config.eval_batch_size), checkpoint)
    return log_probs, found.hypotheses


def _finite(found: Evaluation, checkpoint: Checkpoint) -> Evaluation:
    if not found.finite:
        raise ValueError(
            f"checkpoint of {checkpoint.run}: its outputs are not finite, so there is nothing to decode; "
            "`python -m model diagnose` looks closer"
        )
    return found


def search_all(
    log_probs: Sequence[NDArray[np.float32]],
    search: Search,
    language_model: LanguageModel | None,
    on_sentence: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, ...]]:
    """The labels of each sequence by beam search."""
    hypotheses = []
    for done, each in enumerate(log_probs, start=1):
        labelling = prefix_beam_search(
            each,
            search.beam,
            language_model=language_model,
            weight=search.lm_weight,
            length_bonus=search.length_bonus,
            prune=search.prune,
        )
        hypotheses.append(labelling.labels)
        on_sentence(done)
    return hypotheses


def write_csv(file: Path, split: Split, decoded: Decoded) -> None:
    """A line a sentence: id, reference, greedy and beam, separated by |, as the corpus' own tables are."""
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="|", lineterminator="\n")
        table.writerow(("id", "reference", "greedy", "beam"))
        table.writerows(
            (name, reference, *pair)
            for name, reference, pair in zip(split.ids, split.references, decoded.hypotheses, strict=True)
        )


def write_trn(file: Path, split: Split, decoded: Decoded) -> None:
    """The beam's sentences as NIST sclite reads them, `GLOSS GLOSS (id)`, and beside them the references, .ref.trn."""
    for path, texts in (
        (file, [beam for _, beam in decoded.hypotheses]),
        (file.with_suffix(".ref.trn"), split.references),
    ):
        lines = (f"{text} ({name})".strip() for text, name in zip(texts, split.ids, strict=True))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


WRITERS: Mapping[str, Callable[[Path, Split, Decoded], None]] = {".csv": write_csv, ".trn": write_trn}
"""By suffix of the file."""
