"""Eight sequences by heart: a model that works can, a model or data that do not cannot, and the control never."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import model.overfit
from model.__main__ import main
from model.commands.overfit import FIELDS, LEARNING_RATE, SEQUENCES, STEPS
from model.corpus.annotations import CorpusError
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.overfit import CONTROL_WER, FAIR_RATES, FAIR_STEPS, Memorised, Overfit, choose, findings_of, overfit
from model.types import TrainingConfig
from tests.corpora import SHARED, write_csv, write_sequence

SMALL = TrainingConfig(hidden=32, channels=32, learning_rate=4e-3, device="cpu")
QUICK = SMALL.with_values({"architecture": "bilstm"})
GLOSSES = ("RAIN", "SUN", "WIND", "SNOW", "FOG", "STORM")


def write_noise(folder: Path, sentences: list[str], features: Callable[[int], NDArray[np.float32]]) -> Path:
    rows = [(f"s{i}", "-", "S", text) for i, text in enumerate(sentences)]
    for split, some in (("train", rows), ("dev", rows[:2])):
        write_csv(folder / "annotations" / f"{split}.corpus.csv", some)
        for i in range(len(some)):
            write_sequence(folder / "features" / split / f"s{i}.npz", features(i))
    return folder


def sentences(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(GLOSSES, rng.integers(2, 5))) for _ in range(n)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of about 40 frames: nothing to learn but by heart."""
    rng = np.random.default_rng(0)
    return write_noise(
        tmp_path_factory.mktemp("noise"),
        sentences(30),
        lambda i: rng.normal(0, 1, (38 + i % 5, 8)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=folder))


def outcome(
    wer: float = 0.0,
    control: float | None = 0.9,
    distinct: int = 8,
    loss: float = 0.02,
    locality: float = 3.0,
    *,
    rate: float = LEARNING_RATE,
    steps: int = STEPS,
    halfway: float = 0.02,
) -> Overfit:
    return Overfit(
        ids=tuple("abcdefgh"),
        references=("A",) * 8,
        frames=60,
        distinct=distinct,
        parameters=1,
        learning_rate=rate,
        most_steps=steps,
        test=Memorised(steps if wer else 60, wer, wer, loss, halfway, ("",) * 8),
        control=None if control is None else Memorised(60, 1.0, control, 2.0, 2.0, ("",) * 8),
        locality=locality,
        seconds=1.0,
    )


# the choice


def test_the_choice_is_without_chance_near_the_median_and_of_different_targets(corpus: Corpus) -> None:
    rows = choose(corpus.train, 4, 8)
    assert rows == choose(corpus.train, 4, 8)
    assert len(set(rows)) == 8
    assert len({corpus.train.references[row] for row in rows}) == 8


def test_the_choice_leaves_out_what_does_not_fit(corpus: Corpus) -> None:
    needed = corpus.train.needed.copy()
    needed[::2] = 1000
    assert all(row % 2 for row in choose(replace(corpus.train, needed=needed), 4, 8))


def test_too_few_sequences_or_targets_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(CorpusError, match="30 sentences have a target that fits output stride 4, and 31 are needed"):
        choose(corpus.train, 4, 31)
    alike = load_corpus(
        CorpusConfig(path=write_noise(tmp_path, ["SUN", "RAIN"] * 5, lambda i: np.eye(20, 8, i % 5, dtype=np.float32)))
    )
    with pytest.raises(CorpusError, match="only 2 different targets"):
        choose(alike.train, 4, 8)


@pytest.mark.parametrize(("sequences", "steps"), [(1, 10), (8, 0)])
def test_it_needs_two_sequences_and_a_step(corpus: Corpus, sequences: int, steps: int) -> None:
    with pytest.raises(ValueError, match="two sequences and a step"):
        overfit(SMALL, corpus, sequences, steps)


# the test and its control


@pytest.mark.parametrize("architecture", ["student", "bilstm"])
def test_a_working_model_learns_by_heart_and_its_control_does_not(corpus: Corpus, architecture: str) -> None:
    seen: list[str] = []
    result = overfit(
        SMALL.with_values({"architecture": architecture}), corpus, 8, 400, lambda what, *_: seen.append(what)
    )
    assert result.passed
    assert result.test.wer == 0
    assert result.test.hypotheses == result.references
    assert result.control is not None
    assert result.control.lowest_wer > CONTROL_WER
    assert result.control.steps == result.test.steps < 400
    assert result.distinct == 8
    assert set(seen) == {"test", "control"}
    (finding,) = findings_of(result)
    assert (finding.code, finding.severity) == ("memorised", "info")


def test_a_network_that_averages_over_time_is_named_before_any_training(
    monkeypatch: pytest.MonkeyPatch, corpus: Corpus
) -> None:
    """The features of `corpus` are short: with longer ones a working model passes, one blind to time does not."""
    assert findings_of(outcome(locality=1.0))[0].code == "time_collapsed"
    assert [f.code for f in findings_of(outcome(locality=1.7))] == ["memorised"]
    assert [f.code for f in findings_of(outcome(locality=float("nan")))] == ["memorised"]
    seen: list[float] = []

    def locality(*given: object) -> float:
        seen.append(1.0)
        return 1.0

    monkeypatch.setattr(model.overfit, "time_locality", locality)
    assert "time_collapsed" in {finding.code for finding in findings_of(overfit(SMALL, corpus, 2, 1))}
    assert len(seen) == 1


def test_the_same_again_is_the_same(corpus: Corpus) -> None:
    one, two = (overfit(SMALL, corpus, 8, 5) for _ in range(2))
    assert one.test == two.test


def test_features_that_are_all_the_same_cannot_be_learned(tmp_path: Path) -> None:
    """All zero, and of different lengths: those must not be enough to tell the targets apart."""
    zero = write_noise(tmp_path, sentences(30), lambda i: np.zeros((38 + i % 5, 8), np.float32))
    result = overfit(QUICK, load_corpus(CorpusConfig(path=zero)), 8, 150)
    assert not result.passed
    assert result.control is None
    assert result.distinct == 1
    (finding,) = findings_of(result)
    assert (finding.code, finding.severity) == ("cannot_memorise", "fatal")
    assert "All have the same features" in finding.evidence


def test_a_model_that_ignores_its_input_cannot(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    make = model.overfit.make_model

    def broken(*arguments: object) -> torch.nn.Module:
        network = make(*arguments)  # type: ignore[arg-type]
        forward = network.forward
        network.forward = lambda features, lengths: forward(features * 0, lengths)  # type: ignore[method-assign]
        return network

    monkeypatch.setattr(model.overfit, "make_model", broken)
    assert not overfit(QUICK, corpus, 8, 150).passed


def test_a_model_that_knows_the_place_in_the_batch_fails_the_control(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = model.overfit.make_model

    def leaking(*arguments: object) -> torch.nn.Module:
        network = make(*arguments)  # type: ignore[arg-type]
        forward = network.forward

        def with_place(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            features = features.clone()
            features[range(8), :, range(8)] += 5
            out: tuple[Tensor, Tensor] = forward(features, lengths)
            return out

        network.forward = with_place  # type: ignore[method-assign]
        return network

    monkeypatch.setattr(model.overfit, "make_model", leaking)
    result = overfit(QUICK, corpus, 8, 400)
    assert result.test.wer == 0
    assert not result.passed
    (finding,) = findings_of(result)
    assert (finding.code, finding.severity) == ("control_memorised", "fatal")


# what is said


def test_each_outcome_in_words() -> None:
    assert [f.code for f in findings_of(outcome())] == ["memorised"]
    assert [f.code for f in findings_of(outcome(control=CONTROL_WER))] == ["control_memorised"]
    (failed,) = findings_of(outcome(wer=0.4, control=None))
    assert failed.code == "cannot_memorise"
    assert "not the learning rate" in failed.advice
    assert "features" not in failed.evidence
    assert "only 6 differ" in findings_of(outcome(wer=0.4, control=None, distinct=6))[0].evidence
    assert "not finite" in findings_of(outcome(wer=1.0, control=None, loss=float("nan")))[0].evidence


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": 1e-7}, "the learning rate is 1e-07, and sound models pass at 0.001 to 0.01"),
        ({"rate": 0.1}, "the learning rate is 0.1"),
        ({"steps": 20}, "20 steps are few"),
        ({"loss": 0.3, "halfway": 1.0}, "still falling, from 1.000 at half"),
    ],
)
def test_a_failure_that_may_be_the_tests_own_accuses_nobody(given: dict[str, Any], says: str) -> None:
    (failed,) = findings_of(outcome(wer=0.9, control=None, **given))
    assert (failed.code, failed.severity) == ("cannot_memorise", "fatal")
    assert "That shows no fault yet: " in failed.evidence
    assert says in failed.evidence
    assert "architecture" not in failed.advice


@pytest.mark.parametrize("given", [{}, {"rate": 1e-3}, {"rate": 1e-2}, {"loss": 1.6, "halfway": 2.0}])
def test_a_fair_failure_does(given: dict[str, Any]) -> None:
    (failed,) = findings_of(outcome(wer=0.9, control=None, **given))
    assert "shows no fault" not in failed.evidence
    assert "not the learning rate" in failed.advice


def test_equal_features_are_no_matter_of_steps() -> None:
    (failed,) = findings_of(outcome(wer=0.9, control=None, distinct=1, steps=20, rate=1e-7))
    assert "shows no fault" not in failed.evidence


def test_the_default_settings_are_fair() -> None:
    assert FAIR_RATES[0] <= LEARNING_RATE <= FAIR_RATES[1]
    assert STEPS == FAIR_STEPS


# the command


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data_dir", str(folder), "--hidden", "32", "--learning_rate", "0.01", "--device", "cpu"]
    options += ["--architecture", "bilstm"]
    assert main(["overfit", *options]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("passed: 8 sequences of at most")
    assert "control" in said.err
    assert main(["overfit", *options, "--steps", "2", "--json"]) == 1
    whole = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in whole["findings"]] == ["cannot_memorise"]
    assert whole["facts"]["passed"] is False
    assert whole["facts"]["config"].keys() == set(FIELDS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["student", "bilstm"])
def test_real_recordings_are_learned_by_heart_in_two_minutes(architecture: str) -> None:
    if not (SHARED / "an4").is_dir():
        pytest.skip("no shared/data/an4 beside the project")
    corpus = load_corpus(CorpusConfig(path=SHARED / "an4"))
    config = TrainingConfig(architecture=architecture, learning_rate=LEARNING_RATE, device="cpu")
    result = overfit(config, corpus, SEQUENCES, STEPS)
    assert result.passed
    assert result.seconds < 120
