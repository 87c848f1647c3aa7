"""A checkpoint asked: whose weights, what they do, and which faults are named."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import model.weights
from model.__main__ import main
from model.checkpoint import Checkpoint, checkpoint_of, read, write
from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.ctc import CTCTrainer
from model.diagnose import diagnose, find_checkpoint, fitting, read_for_diagnosis
from model.evaluate import evaluate, forward_of
from model.findings import Finding
from model.metrics import WordErrors
from model.symptoms import OF_TRAINING
from model.train import train
from model.types import EpochReport, TrainingConfig
from tests.corpora import write_csv, write_sequence

SMALL = TrainingConfig(hidden=16, channels=16, device="cpu")
CPU = torch.device("cpu")


def write_signs(folder: Path, sentences: dict[str, list[str]], width: int = 6, seed: int = 0, frames: int = 12) -> Path:
    """A corpus in which each gloss is a direction of its own for some frames: quick to learn."""
    rng = np.random.default_rng(seed)
    words = sorted({word for texts in sentences.values() for text in texts for word in text.split()})
    direction = {word: np.random.default_rng(i).normal(0, 1, width) for i, word in enumerate(words)}
    for split, texts in sentences.items():
        write_csv(
            folder / "annotations" / f"{split}.corpus.csv", [(f"{split}-{i}", "-", "S", t) for i, t in enumerate(texts)]
        )
        for i, text in enumerate(texts):
            parts = [direction[word] + rng.normal(0, 0.1, (frames, width)) for word in text.split()]
            write_sequence(folder / "features" / split / f"{split}-{i}.npz", np.concatenate(parts).astype(np.float32))
    return folder


def random_sentences(n: int, glosses: Sequence[str], length: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(glosses, rng.integers(max(1, length - 2), length + 1))) for _ in range(n)]


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
    """A run that has learned."""
    output = tmp_path_factory.mktemp("runs") / "good"
    result = train(SMALL.with_values({"epochs": 6, "learning_rate": 1e-2, "schedule": "constant"}), corpus, output)
    assert result["best_wer"] < 0.3, result
    return output


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """973 classes, and sentences as long for their glosses as PHOENIX's: 15 frames a gloss."""
    glosses = [f"G{i:03}" for i in range(972)]
    every = [" ".join(glosses[i : i + 9]) for i in range(0, 972, 9)]
    return write_signs(tmp_path_factory.mktemp("phoenix"), {"train": every, "dev": every[:20]}, frames=15)


def codes(findings: Sequence[Finding], *severities: str) -> set[str]:
    return {finding.code for finding in findings if not severities or finding.severity in severities}


def untrained(corpus: Corpus, config: TrainingConfig = SMALL, reports: Sequence[EpochReport] = ()) -> Checkpoint:
    return checkpoint_of("mine", {}, CTCTrainer(config, corpus), config, corpus, reports)


def logged(loss: float, epoch: int = 15, **metrics: float) -> EpochReport:
    return EpochReport(epoch, epoch * 1094, {"train/loss": loss, "dev/wer": 1.0, **metrics}, 1094)


# which weights


def test_a_folder_means_its_last_checkpoint(tmp_path: Path) -> None:
    for name in ("last.pt", "best.pt", "previous.pt"):
        (tmp_path / name).touch()
    path, why = find_checkpoint(tmp_path)
    assert path == tmp_path / "last.pt"
    assert "last epoch" in why
    assert str(tmp_path / "best.pt") in why
    assert find_checkpoint(tmp_path / "best.pt")[0] == tmp_path / "best.pt"


def test_a_folder_with_one_checkpoint_means_that(tmp_path: Path) -> None:
    (tmp_path / "student.pt").touch()
    assert find_checkpoint(tmp_path) == (tmp_path / "student.pt", "the only checkpoint in that folder")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "holds no checkpoint"),
        (["a.pt", "b.pt"], r"2 checkpoints \(a.pt, b.pt\).*name the one"),
        (None, "no such file"),
    ],
)
def test_it_does_not_guess(tmp_path: Path, names: list[str] | None, says: str) -> None:
    for name in names or []:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=says):
        find_checkpoint(tmp_path if names is not None else tmp_path / "nowhere")


def test_weights_of_another_script_cannot_be_diagnosed(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "student.pt")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for name in ("student.pt", "config.json"):
        with pytest.raises(
            ValueError, match=rf"{name}: not a.*script \(a plain state_dict\) cannot be diagnosed"
        ) as error:
            read_for_diagnosis(tmp_path / name)
        assert "delete" not in str(error.value)


def test_nor_those_of_another_trainer(corpus: Corpus) -> None:
    checkpoint = replace(untrained(corpus), trainer={"weights": torch.zeros(3)})
    with pytest.raises(ValueError, match="its trainer is not the one of this package"):
        diagnose(checkpoint, corpus)
    checkpoint = replace(untrained(corpus), identity={"trainer": "own.py:Mine"})
    with pytest.raises(ValueError, match=r"its trainer is not the one of this package \(it is own.py:Mine\)"):
        diagnose(checkpoint, corpus)


def test_a_corpus_with_other_classes_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    other = load_corpus(CorpusConfig(path=write_signs(tmp_path, {"train": ["A B", "B A"] * 3, "dev": ["A B"]})))
    with pytest.raises(ValueError, match=r"3 here and 6 there \('A' only here, '\w+' only there\).*--vocabulary"):
        diagnose(untrained(corpus), other)


def test_features_of_another_width_are_refused(tmp_path: Path, corpus: Corpus) -> None:
    texts = {"train": list(corpus.train.references), "dev": list(corpus.dev.references)}
    other = load_corpus(CorpusConfig(path=write_signs(tmp_path, texts, width=7)))
    says = "another corpus than these weights were trained on: its features have 7 dimensions, theirs 6"
    with pytest.raises(ValueError, match=says):
        diagnose(untrained(corpus), other)
    texts = {"train": ["A B", "B A"] * 3, "dev": ["A B"]}
    strange = load_corpus(CorpusConfig(path=write_signs(tmp_path / "strange", texts, width=7)))
    with pytest.raises(ValueError, match=says) as error:  # no word of a vocabulary, which would not help
        diagnose(untrained(corpus), strange)
    assert "vocabulary" not in str(error.value)


def test_the_same_classes_in_another_order_are_said_so(tmp_path: Path, folder: Path, corpus: Corpus) -> None:
    vocabulary = tmp_path / "vocabulary.txt"
    blank, *glosses = corpus.vocabulary.glosses
    vocabulary.write_text("\n".join([blank, *reversed(glosses)]) + "\n", encoding="utf-8")
    other = load_corpus(CorpusConfig(path=folder, vocabulary=vocabulary))
    with pytest.raises(ValueError, match="the same 6 in another order"):
        diagnose(untrained(corpus), other)


def test_the_blocks_of_the_features_are_those_of_the_checkpoint(folder: Path, corpus: Corpus) -> None:
    split = load_corpus(CorpusConfig(path=folder, modalities={"pose": 4, "hands": 2}))
    shown, _ = fitting(corpus, untrained(split))
    assert [(m.name, m.width) for m in shown.modalities] == [("pose", 4), ("hands", 2)]
    assert "untrained" in codes(diagnose(untrained(split), corpus).findings)


def test_another_corpus_with_the_same_classes_is_said_loudly(tmp_path: Path, corpus: Corpus, run: Path) -> None:
    """New recordings: they are normalised as in training, and the run itself is judged by its log alone."""
    texts = {"train": list(corpus.train.references), "dev": list(corpus.dev.references)}
    other = load_corpus(CorpusConfig(path=write_signs(tmp_path, texts, seed=9)))
    checkpoint = read(run / "last.pt")
    shown, finding = fitting(other, checkpoint)
    assert finding is not None
    assert (finding.code, finding.severity) == ("other_corpus", "warning")
    assert np.array_equal(shown.dev.normalisation.mean, corpus.train.normalisation.mean)
    result = diagnose(checkpoint, other)
    assert "other_corpus" in codes(result.findings)
    assert codes(result.findings, "fatal") == set()
    assert result.facts["metrics"]["dev/wer"] < 0.5


def test_features_stored_as_they_are_stay_so(folder: Path, corpus: Corpus) -> None:
    raw = load_corpus(CorpusConfig(path=folder, normalise=False))
    shown, _ = fitting(corpus, untrained(raw))
    assert np.array_equal(shown.dev.features(0), raw.dev.features(0))
    assert not np.array_equal(shown.dev.features(0), corpus.dev.features(0))


# a healthy run


def test_a_trained_run_has_no_fault(run: Path, corpus: Corpus) -> None:
    result = diagnose(read(run / "last.pt"), corpus)
    assert codes(result.findings, "fatal", "warning") == set()
    facts = result.facts
    assert (facts["run"], facts["epoch"], facts["step"], facts["split"], facts["mode"]) == (
        "good",
        6,
        90,
        "dev",
        "eval",
    )
    assert facts["metrics"]["dev/loss"] == pytest.approx(facts["logged_dev_loss"], abs=1e-5)
    assert facts["metrics"]["dev/wer"] == facts["logged_dev_wer"]
    assert set(facts["predicted_glosses"]) == set(corpus.vocabulary.glosses)
    assert len(facts["examples"]) == 6
    assert facts["examples"][0]["reference"] == corpus.dev.references[0]
    assert facts["padding_leak"] < 1e-4
    assert facts["largest_logsumexp"] < 1e-4
    assert "took off at epoch" in result.answer


@pytest.mark.parametrize("split", ["dev", "test"])
def test_on_another_split_the_weights_are_judged_and_not_their_run(run: Path, corpus: Corpus, split: str) -> None:
    checkpoint = read(run / "last.pt")
    *before, last = checkpoint.reports
    torn = replace(last, skipped_steps=1, steps_in_epoch=15, metrics={**last.metrics, "optim/clipped": 1.0})
    config = checkpoint.config.with_values({"schedule": "plateau", "plateau_patience": 100})
    found = codes(diagnose(replace(checkpoint, config=config, reports=(*before, torn)), corpus, split).findings)
    assert found & OF_TRAINING == ({"diverged", "scheduler_never_acts", "clipped"} if split == "dev" else set())


def test_a_logged_loss_that_is_not_of_these_weights_is_said(run: Path, corpus: Corpus) -> None:
    checkpoint = read(run / "last.pt")
    losses = [report.metrics["train/loss"] for report in checkpoint.reports]
    assert "other_loss" not in codes(diagnose(checkpoint, corpus, logged_loss=round(losses[-1], 3)).findings)
    for given, says in ((losses[1], "about that of epoch 2"), (5.2, "No epoch of their run logged it")):
        result = diagnose(checkpoint, corpus, logged_loss=given)
        finding = next(finding for finding in result.findings if finding.code == "other_loss")
        assert (finding.severity, finding.number, finding.threshold) == ("warning", given, losses[-1])
        assert says in finding.evidence
        assert finding.evidence in result.answer
        assert result.epochs[-1].metrics["train/loss"] == losses[-1], "the run is judged by its own log"


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_splits_can_be_asked(run: Path, corpus: Corpus, split: str) -> None:
    result = diagnose(read(run / "best.pt"), corpus, split)
    assert codes(result.findings, "fatal", "warning") == set()
    assert result.facts["sequences"] == {"train": 60, "test": 20}[split]


def test_a_split_that_is_not_there(run: Path, corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="has no split 'test'"):
        diagnose(read(run / "best.pt"), replace(corpus, test=None), "test")


# untrained and wrong weights


@pytest.fixture(scope="module")
def phoenix(many: Path) -> Corpus:
    return load_corpus(CorpusConfig(path=many))


def test_a_fresh_student_with_973_classes_is_untrained(phoenix: Corpus) -> None:
    result = diagnose(untrained(phoenix, TrainingConfig()), phoenix)
    assert codes(result.findings, "fatal") == {"untrained"}
    assert "untrained weights, after 0 steps" in result.answer
    assert result.facts["classes"] == 973
    assert result.facts["uniform_log_prob"] == pytest.approx(-6.8804, abs=1e-4)
    assert -7.1 < result.facts["metrics"]["spread/min"] < result.facts["metrics"]["spread/max"] < -6.7


@pytest.mark.parametrize(
    "config", [{"architecture": "bilstm"}, {"hidden": 8}, {"output_stride": 1}, {"output_bias": "floor"}]
)
def test_so_is_any_other_fresh_model(phoenix: Corpus, config: dict[str, Any]) -> None:
    result = diagnose(untrained(phoenix, TrainingConfig(**config)), phoenix)
    assert codes(result.findings, "fatal") == {"untrained"}


@pytest.mark.parametrize("how", ["its own log", "the user's log"])
def test_uniform_outputs_beside_a_logged_loss_of_5_2(phoenix: Corpus, how: str) -> None:
    """The case this product began with: log-probs in [-6.882, -6.878], a log that says 5.2, and notes on why."""
    config = TrainingConfig()
    if how == "its own log":
        result = diagnose(untrained(phoenix, config, [logged(5.2)]), phoenix)
    else:
        result = diagnose(untrained(phoenix, config), phoenix, logged_loss=5.2)
    assert codes(result.findings, "fatal") == {"wrong_weights"}
    finding = result.findings[0]
    assert "uniform over 973 classes: -6.880" in finding.evidence
    assert "the run's log says 5.2. Both cannot be of the same weights" in finding.evidence
    assert result.facts["floors"]["uniform_loss"] > 20
    assert "Both cannot be" in result.answer


def test_the_log_probabilities_of_that_case(phoenix: Corpus) -> None:
    """In [-6.882, -6.878], one gloss for every input: a network that was never trained."""
    checkpoint = untrained(phoenix, TrainingConfig())
    state = dict(checkpoint.trainer["model"])
    state["head.weight"], state["head.bias"] = 0.02 * state["head.weight"], 0.02 * state["head.bias"]
    result = diagnose(replace(checkpoint, trainer={**checkpoint.trainer, "model": state}), phoenix, logged_loss=5.2)
    metrics = result.facts["metrics"]
    assert (round(metrics["spread/min"], 2), round(metrics["spread/max"], 2)) == (-6.88, -6.88)
    assert len(result.facts["predicted_glosses"]) <= 3
    assert result.findings[0].code == "wrong_weights"


def test_uniform_outputs_after_many_steps_of_a_loss_as_high_are_no_contradiction(phoenix: Corpus) -> None:
    """A rate far too small: slow, not another run's weights."""
    checkpoint = untrained(phoenix, TrainingConfig(), [logged(24.0)])
    result = diagnose(replace(checkpoint, trainer={**checkpoint.trainer, "updates": 1094}), phoenix)
    assert codes(result.findings, "fatal") == set()
    assert "uniform_output" in codes(result.findings, "warning")


def test_weights_that_do_not_give_the_logged_dev_loss(run: Path, corpus: Corpus) -> None:
    """Another epoch's weights under this log."""
    early, late = read(run / "last.pt"), read(run / "last.pt")
    weights = {name: tensor.clone() for name, tensor in early.trainer["model"].items()}
    weights["head.bias"] += torch.linspace(-2, 2, len(weights["head.bias"]))
    result = diagnose(replace(late, trainer={**late.trainer, "model": weights}), corpus)
    assert "wrong_weights" in codes(result.findings, "fatal")
    assert "On the same dev" in next(f for f in result.findings if f.code == "wrong_weights").evidence


def test_weights_with_a_nan(run: Path, corpus: Corpus) -> None:
    checkpoint = read(run / "last.pt")
    weights = {**checkpoint.trainer["model"], "head.bias": torch.full((6,), torch.nan)}
    result = diagnose(replace(checkpoint, trainer={**checkpoint.trainer, "model": weights}), corpus)
    assert "not_finite" in codes(result.findings, "fatal")


def test_weights_that_do_not_fit_their_config(run: Path, corpus: Corpus) -> None:
    checkpoint = read(run / "last.pt")
    other = replace(checkpoint, config=checkpoint.config.with_values({"hidden": 24}))
    with pytest.raises(ValueError, match="weights do not fit its own config"):
        diagnose(other, corpus)


# faults of a model and of an evaluation


class Leaky(nn.Module):
    """Batch-wide means that count the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 6)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = features - features.mean((1, 2), keepdim=True)
        return self.head(x[:, ::4][:, : int(lengths.max()) // 4]).log_softmax(-1), lengths // 4


class Tight(Leaky):
    """Each frame on its own."""

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(features[:, ::4][:, : int(lengths.max()) // 4]).log_softmax(-1), lengths // 4


class Logits(Tight):
    """No softmax."""

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return 3 + self.head(features[:, ::4][:, : int(lengths.max()) // 4]), lengths // 4


def test_padding_that_leaks(corpus: Corpus) -> None:
    torch.manual_seed(0)
    leak = model.weights.padding_leak(Leaky(), corpus.dev, 4, CPU)
    finding = model.weights.leaks(leak)
    assert finding is not None
    assert (finding.code, finding.severity) == ("padding_leak", "fatal")
    assert model.weights.leaks(model.weights.padding_leak(Tight(), corpus.dev, 4, CPU)) is None


def test_sequences_of_one_length_have_no_padding(corpus: Corpus) -> None:
    alike = replace(corpus.dev, lengths=np.full_like(corpus.dev.lengths, 24))
    assert np.isnan(model.weights.padding_leak(Leaky(), alike, 4, CPU))
    assert model.weights.leaks(float("nan")) is None


def test_outputs_without_a_softmax(corpus: Corpus) -> None:
    torch.manual_seed(0)
    for module, code in ((Logits(), "missing_log_softmax"), (Tight(), None)):
        found = evaluate(module, forward_of(module, CPU), corpus.dev, 4, 8, thorough=True)
        finding = model.weights.missing_log_softmax(found)
        assert (finding and finding.code) == code


def test_an_evaluation_that_reports_100_percent_for_an_error(
    run: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.weights, "word_errors_of", lambda *_: WordErrors(1.0, 0.5, 0.5, 0.0))
    assert "evaluator_failed" in codes(diagnose(read(run / "last.pt"), corpus).findings, "fatal")


# the command


def test_the_command_prints_the_answer_first(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--data", str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("These are the weights of good after epoch 6 (90 steps); on dev, in eval mode")
    assert re.findall(r"over (\d+) sequences|(\d+) sequences, too few", out) == [("", "20"), ("", "10")]
    for text in ("sha256", "swap gap", "  hypothesis ", "WER < 98% by epoch 1", "milestone is no verdict"):
        assert text in out, text


def test_the_command_as_json(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--data", str(folder), "--device", "cpu", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole.keys() == {"findings", "facts"}
    for finding in whole["findings"]:
        assert finding.keys() == {"code", "severity", "number", "threshold", "evidence", "advice", "would_change"}
    facts = whole["facts"]
    assert facts["checkpoint"] == str(run / "last.pt")
    assert len(facts["sha256"]) == 64
    assert facts["answer"].startswith("These are the weights")


def test_the_command_fails_on_a_fatal_finding_and_writes_a_page(
    many: Path, phoenix: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "untrained.pt", replace(untrained(phoenix, TrainingConfig(device="cpu")), run="<b>mine</b>"))
    page = tmp_path / "report.html"
    code = main(
        ["diagnose", str(tmp_path), "--data", str(many), "--device", "cpu", "--log_loss", "5.2", "--html", str(page)]
    )
    assert code == 1
    assert "fatal: wrong_weights" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert "wrong_weights" in html
    assert "&lt;b&gt;mine" in html
    assert "<b>mine" not in html


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nowhere.pt"], "no such file or folder"),
        ([".", "--milestones", "5:80"], "a fraction above 0 up to 1, or a percentage"),
        ([".", "--html", "nowhere/report.html"], "there is no folder"),
        ([".", "--log_loss", "nan"], "--log_loss nan: a CTC loss is a number of 0 or more"),
        ([".", "--log_loss=-1"], "--log_loss -1.0: a CTC loss"),
        ([".", "--log_loss", "inf"], "--log_loss inf: a CTC loss"),
    ],
)
def test_a_usage_error_is_one_line(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["diagnose", str(run / options[0]), "--data", str(folder), *options[1:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
