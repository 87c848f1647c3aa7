from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import model.corpus.faults
from model.corpus.annotations import Row
from model.corpus.check import REFUSED, Report, check_corpus
from model.corpus.data import CorpusConfig, check_fit, load_corpus
from model.corpus.facts import CorpusFacts, fit_facts, sentence_facts, taking_part, vocabulary_facts
from model.corpus.landmarks import STILL_WIDTH, with_motion
from model.corpus.pack import pack
from model.corpus.synthetic import GeneratedConfig, generate
from model.corpus.tables import splits
from model.corpus.vocabulary import FILTERS, Vocabulary
from model.findings import Finding
from tests.corpora import SHARED, write_corpus, write_csv, write_sequence

WORDS = ("A", "B", "C", "D", "E")
TRAIN, DEV, FRAMES = 40, 10, 24


def healthy(folder: Path, width: int = 6, dev: int = DEV) -> Path:
    """A corpus without a fault, but that dev is small: two signers in train and another in dev."""
    rng = np.random.default_rng(1)

    def say() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, 5)))

    sentences = {"train": [say() for _ in range(TRAIN)], "dev": [say() for _ in range(dev)]}
    write_corpus(folder, sentences, frames=FRAMES, width=width)
    rewrite(folder, "dev", lambda row: Row(row.id, "Signer9", row.annotation))
    return folder


def rows_of(folder: Path, split: str) -> list[Row]:
    lines = (folder / "annotations" / f"{split}.corpus.csv").read_text(encoding="utf-8").splitlines()[1:]
    cells = [line.split("|") for line in lines]
    return [Row(name, signer, annotation) for name, _, signer, annotation in cells]


def rewrite(folder: Path, split: str, change: Callable[[Row], Row]) -> None:
    rows = [change(row) for row in rows_of(folder, split)]
    write_csv(folder / "annotations" / f"{split}.corpus.csv", [(r.id, "-", r.signer, r.annotation) for r in rows])


def say(folder: Path, split: str, texts: dict[int, str]) -> None:
    """Other annotations at these lines."""
    new = {f"{split}-{i}": text for i, text in texts.items()}
    rewrite(folder, split, lambda row: Row(row.id, row.signer, new.get(row.id, row.annotation)))


def file_of(folder: Path, split: str, number: int) -> Path:
    return folder / "features" / split / f"{split}-{number}.npz"


def change(folder: Path, split: str, numbers: range, how: Callable[[NDArray[np.float32]], NDArray[np.generic]]) -> None:
    """Other features in these recordings."""
    for number in numbers:
        file = file_of(folder, split, number)
        write_sequence(file, how(np.load(file)["features"]))


def check(folder: Path, stride: int = 4, **config: object) -> Report:
    return check_corpus(CorpusConfig.model_validate({"path": folder, **config}), stride)


def facts_of(report: Report) -> CorpusFacts:
    assert report.facts is not None
    return report.facts


def finding(report: Report, code: str) -> Finding:
    """The first finding of that code."""
    return next(finding for finding in report.findings if finding.code == code)


def severities(report: Report) -> dict[str, str]:
    """The worst severity of each code."""
    return {finding.code: finding.severity for finding in reversed(report.findings)}


SMALL = {"few_dev_sentences": "info"}
"""What is found in the healthy corpus of so few dev sentences."""


def refused(folder: Path, stride: int = 4, **config: object) -> bool:
    """Whether training on it is refused."""
    try:
        corpus = load_corpus(CorpusConfig.model_validate({"path": folder, **config}))
        check_fit(corpus.train, stride)
    except ValueError:
        return True
    return False


# What must not be found


def test_a_healthy_corpus_has_nothing_to_be_looked_at(tmp_path: Path) -> None:
    report = check(healthy(tmp_path, dev=100))
    assert report.findings == []
    assert report.summary == "This corpus can be trained on: nothing is wrong with it that can be seen before training."


@pytest.mark.parametrize("width", [225, 6516])
def test_a_generated_corpus_has_no_fault(tmp_path: Path, width: int) -> None:
    config = GeneratedConfig(train=30 if width == 6516 else 100, dev=8, test=4, glosses=8, width=width)
    report = check(generate(config, tmp_path))
    assert set(severities(report).values()) <= {"info"}, report.findings
    assert severities(report).keys() <= {"constant_dimensions", "shifted", "few_dev_sentences", "out_of_vocabulary"}


@pytest.mark.skipif(not (SHARED / "an4").is_dir(), reason="AN4 is not beside the project")
def test_an4_has_no_fault() -> None:
    report = check(SHARED / "an4")
    assert severities(report) == {"out_of_vocabulary": "info"}


def test_hands_that_are_absent_half_the_time_are_no_fault(tmp_path: Path) -> None:
    folder = healthy(tmp_path, width=225)
    rng = np.random.default_rng(0)

    def rest(x: NDArray[np.float32]) -> NDArray[np.float32]:
        x[np.ix_(rng.random(len(x)) < 0.55, range(99, 162))] = 0
        return x

    for split, n in (("train", TRAIN), ("dev", DEV)):
        change(folder, split, range(n), rest)
    report = check(folder)
    assert severities(report) == SMALL
    hand = facts_of(report).splits["train"].recordings.parts["left hand"]
    assert hand.whole.seen == pytest.approx(0.45, abs=0.05)
    assert hand.whole.zero == pytest.approx(1 - hand.whole.seen)
    assert [*hand.signers] == ["Signer0", "Signer1"]
    assert sum(shares.frames for shares in hand.signers.values()) == TRAIN * FRAMES == hand.whole.frames


def test_equality_is_feasible(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    say(folder, "train", {0: "A A A B"})  # six output frames needed, and 24 // 4 are there
    assert severities(check(folder)) == SMALL


# What must be found


@dataclass(frozen=True)
class Case:
    """A fault, and what is to be said of it."""

    code: str
    severity: str
    spoil: Callable[[Path], object]
    says: str
    number: float | None = None
    width: int = 6
    dev: int = DEV
    config: Callable[[Path], dict[str, object]] = lambda folder: {}
    stride: int = 4


def name_of(case: Case) -> str:
    return f"{case.code}-{case.severity}"


def drop(folder: Path, split: str, n: int) -> None:
    for number in range(n):
        file_of(folder, split, number).unlink()


def remove_line(folder: Path) -> None:
    rows = [(r.id, "-", r.signer, r.annotation) for r in rows_of(folder, "train")[1:]]
    write_csv(folder / "annotations" / "train.corpus.csv", rows)


def copy(folder: Path, n: int, into: str = "train") -> None:
    """The recording of train-30 also as others, whatever they say."""
    for number in range(n):
        shutil.copyfile(file_of(folder, "train", 30), file_of(folder, into, number))


def vocabulary_of(*glosses: str) -> Callable[[Path], dict[str, object]]:
    def write(folder: Path) -> dict[str, object]:
        file = folder / "vocabulary.txt"
        file.write_text("\n".join(["<blank>", *glosses]) + "\n", encoding="utf-8")
        return {"vocabulary": file}

    return write


def zero(columns: slice) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def spoil(x: NDArray[np.float32]) -> NDArray[np.float32]:
        x[:, columns] = 0
        return x

    return spoil


def a_hand_less(folder: Path, signer: str | None = None) -> None:
    """Without the left hand: of everybody, or of one signer of train."""
    for split, n in (("train", TRAIN), ("dev", DEV)):
        for number in range(n):
            if signer is None or (split == "train" and signer == f"Signer{number % 2}"):
                change(folder, split, range(number, number + 1), zero(slice(99, 162)))


def padded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate([x[:18], np.zeros_like(x[:6])])


def nan(x: NDArray[np.float32]) -> NDArray[np.float32]:
    x[3, 2:4] = [np.nan, np.inf]
    return x


def wide(folder: Path) -> None:
    change(folder, "dev", range(2), lambda x: np.tile(x, 2))


CASES = (
    Case("coverage", "fatal", lambda f: drop(f, "train", 1), "train: 1 of 40 sentences", 39 / 40),
    Case(
        "coverage",
        "info",
        lambda f: drop(f, "dev", 1),
        "dev: 1 of 100 sentences have no features (dev-0)",
        0.99,
        dev=100,
    ),
    Case("coverage", "fatal", lambda f: shutil.rmtree(f / "features" / "dev"), "dev: 10 of 10 sentences", 0),
    Case("unannotated", "info", remove_line, "train: 1 recordings are named by no line", 1),
    Case("unreadable", "fatal", lambda f: file_of(f, "dev", 3).write_bytes(b"PK"), "dev: 1 of 10 recordings", 1),
    Case("not_finite", "fatal", lambda f: change(f, "train", range(2), nan), "2 of 40 recordings hold 4 values", 2),
    Case(
        "mixed_width", "fatal", wide, "dev: 2 of 10 recordings are not 6 wide as the first one of train is, but 12", 2
    ),
    Case(
        "all_zero",
        "warning",
        lambda f: change(f, "train", range(3), zero(slice(None))),
        "train: 3 of 40 recordings hold nothing but zeros (train-0, train-1, train-2; Signer0 2, Signer1 1)",
        3 / 40,
    ),
    Case("all_zero", "fatal", lambda f: change(f, "train", range(4), zero(slice(None))), "train: 4 of 40", 0.1),
    Case("frozen", "warning", lambda f: change(f, "dev", range(4), lambda x: x[:1].repeat(24, 0)), "dev: 4 of 10"),
    Case("frozen", "fatal", lambda f: change(f, "train", range(4), lambda x: x[:1].repeat(24, 0)), "Signer0 2", 0.1),
    Case(
        "duplicates",
        "warning",
        lambda f: copy(f, 2),
        "2 of 40 recordings are exact copies of others, in 1 groups",
        0.05,
    ),
    Case("duplicates", "fatal", lambda f: copy(f, 8), "1 of them with different texts", 0.2),
    Case("zero_frames", "warning", lambda f: change(f, "train", range(TRAIN), padded), "all zero in 25%", 0.25),
    Case(
        "repeated_frames",
        "warning",
        lambda f: change(f, "train", range(TRAIN), lambda x: x[:12].repeat(2, 0)),
        "50%",
        0.5,
    ),
    Case("never_seen", "warning", a_hand_less, "train: the left hand is detected in no frame", 1, 225),
    Case("never_seen_of_signer", "warning", lambda f: a_hand_less(f, "Signer1"), "Signer1 left hand", 1, 225),
    Case(
        "nothing_varies",
        "fatal",
        lambda f: change(f, "train", range(TRAIN), lambda x: np.ones_like(x)),
        "all 6 dimensions are constant",
        1,
    ),
    Case(
        "never_seen",
        "fatal",
        lambda f: change(f, "train", range(TRAIN), zero(slice(None))),
        "train: the pose and the left hand and the right hand are detected in no frame and nothing else is there",
        3,
        225,
    ),
    Case(
        "constant_dimensions",
        "info",
        lambda f: change(f, "train", range(TRAIN), zero(slice(2, 3))),
        "train: 1 of 6 dimensions are constant (features 2) and read as zero",
        1 / 6,
    ),
    Case(
        "not_normalised", "warning", lambda f: None, "0% of the dimensions", 0.0, config=lambda f: {"normalise": False}
    ),
    Case(
        "shifted", "info", lambda f: change(f, "dev", range(DEV), lambda x: x + np.r_[2.0, [0] * 5]), "dev: 83%", 5 / 6
    ),
    Case("shifted", "warning", lambda f: change(f, "dev", range(DEV), lambda x: 1000 * x), "never shows Signer9", 0.0),
    Case(
        "shifted",
        "warning",
        lambda f: change(f, "dev", range(DEV), lambda x: x + np.r_[np.zeros(99), np.full(126, 40.0)]),
        "dev: 44% of the dimensions enter the model with",
        width=225,
    ),
    Case("out_of_vocabulary", "info", lambda f: say(f, "dev", {0: "A B C D E " * 4 + "X"}), "dev: 1 of "),
    Case("out_of_vocabulary", "warning", lambda f: say(f, "dev", {0: "X Y Z"}), "dev: 3 of "),
    Case(
        "out_of_vocabulary",
        "warning",
        lambda f: say(f, "train", {0: "X"}) or say(f, "train", dict.fromkeys(range(1, 30), "A B C D")),
        "train: 1 of ",
        config=vocabulary_of(*WORDS),
    ),
    Case(
        "out_of_vocabulary",
        "fatal",
        lambda f: say(f, "train", {0: "a", 1: "e"}),
        "2 sentences hold nothing else (train-0, train-1). 2 differ from a gloss in case or accents alone: a for A",
        config=vocabulary_of(*WORDS),
    ),
    Case(
        "empty_targets", "warning", lambda f: say(f, "train", {0: ""}), "train: 1 of 40 sentences say nothing", 1 / 40
    ),
    Case(
        "empty_targets", "info", lambda f: say(f, "dev", {0: ""}), "dev: 1 of 100 sentences say nothing", 0.01, dev=100
    ),
    Case("empty_targets", "fatal", lambda f: say(f, "dev", dict.fromkeys(range(DEV), "")), "dev: 10 of 10", 1.0),
    Case("blank_in_targets", "fatal", lambda f: say(f, "train", {5: "A <blank> B"}), "1 sentences write the blank", 1),
    Case(
        "infeasible_targets",
        "info",
        lambda f: say(f, "dev", {0: "A A A A"}),
        "dev: 1 of 100 targets have no alignment",
        dev=100,
    ),
    Case("infeasible_targets", "warning", lambda f: say(f, "dev", {0: "A A A A"}), "dev: 1 of 10", 0.1),
    Case(
        "infeasible_targets",
        "fatal",
        lambda f: say(f, "train", {7: "A A A A"}),
        "stride 4 (train-7): frames // 4 is",
        1 / 40,
    ),
    Case("infeasible_targets", "fatal", lambda f: None, "at stride 24", stride=24),
    Case("shared_recordings", "warning", lambda f: copy(f, 1, "dev"), "are also in train (train-30 = dev-0)", 0.1),
    Case(
        "shared_signers",
        "info",
        lambda f: rewrite(f, "dev", lambda r: r._replace(signer="Signer1")),
        "1 of 1 signers",
        1,
    ),
    Case("few_dev_sentences", "info", lambda f: None, "dev: 10 sentences", 10),
    Case(
        "one_answer",
        "warning",
        lambda f: [say(f, s, dict.fromkeys(range(n), "A B")) for s, n in (("train", TRAIN), ("dev", DEV))],
        "the sentence 'A B', given to every input, scores a WER of 0.0%",
        0.0,
    ),
    Case("not_a_corpus", "fatal", lambda f: shutil.rmtree(f / "features"), "holds no train/"),
    Case(
        "bad_annotation",
        "fatal",
        lambda f: (f / "annotations" / "dev.corpus.csv").write_text("x|y\n"),
        "no column 'id'",
    ),
    Case("bad_vocabulary", "fatal", lambda f: None, "stands on lines 2 and 4", config=vocabulary_of("A", "B", "A")),
    Case("bad_modalities", "fatal", lambda f: None, "add up to 4", config=lambda f: {"modalities": {"a": 1, "b": 3}}),
)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_fault_is_found_and_said(case: Case, tmp_path: Path) -> None:
    folder = healthy(tmp_path, case.width, case.dev)
    case.spoil(folder)
    config = case.config(folder)
    report = check(folder, case.stride, **config)
    found = finding(report, case.code)
    assert found.severity == case.severity
    assert case.says in found.evidence
    if case.number is not None:
        assert found.number == pytest.approx(case.number)
    assert found.evidence.endswith(".")
    assert found.advice
    assert found.would_change
    json.dumps(report.facts_as_json())
    fatal = "fatal" in severities(report).values()
    assert fatal == report.summary.startswith("Training on this corpus is impossible or pointless")
    if refused(folder, case.stride, **config):
        assert fatal, "what training refuses is fatal"


def test_ids_of_two_recordings_in_two_splits_are_shared_ids(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    rewrite(folder, "dev", lambda row: row._replace(id="train-1") if row.id == "dev-1" else row)
    file_of(folder, "dev", 1).rename(folder / "features" / "dev" / "train-1.npz")
    found = finding(check(folder), "shared_ids")
    assert (found.severity, found.number) == ("info", 1)
    assert "stand in train and in dev, with different recordings (train-1)" in found.evidence


def test_the_page_of_findings_names_them_all_with_their_severities_and_thresholds() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "findings.md").read_text(encoding="utf-8")
    section = page.split("\n## In a corpus\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    fired: dict[str, set[str]] = {"shared_ids": {"info"}}
    for case in CASES:
        fired.setdefault(case.code, set()).add(case.severity)
    assert {row[0].strip("`"): set(row[1].split(", ")) for row in rows} == fired
    for name in re.findall(r"`([A-Z_]+)`", section):
        assert hasattr(model.corpus.faults, name), f"there is no {name}"


def test_every_code_has_a_corpus_that_fires_it() -> None:
    source = Path(model.corpus.faults.__file__).read_text(encoding="utf-8")
    fired = {case.code for case in CASES} | {"shared_ids"}
    named = set(re.findall(r'Finding\(\s*"(\w+)"', source)) | set(re.findall(r'\(\s*"(\w+)",\s*(?:\[|copies)', source))
    assert fired == named | REFUSED.keys()


def test_many_faults_are_found_in_one_go(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    (folder / "annotations" / "dev.corpus.csv").unlink()
    change(folder, "train", range(2), nan)
    change(folder, "train", range(2, 4), zero(slice(None)))
    change(folder, "train", range(4, 6), lambda x: np.tile(x, 2))
    drop(folder, "train", 0)
    file_of(folder, "train", 7).write_bytes(b"")
    file_of(folder, "train", 8).unlink()
    say(folder, "train", {9: "", 10: "<blk> A", 11: "A A A A"})
    (folder / "vocabulary.txt").write_text("A\n", encoding="utf-8")
    report = check(folder, vocabulary=folder / "vocabulary.txt")
    found = severities(report)
    fatal = (
        "bad_annotation bad_vocabulary coverage unreadable not_finite mixed_width blank_in_targets infeasible_targets"
    )
    assert {code for code, severity in found.items() if severity == "fatal"} == set(fatal.split())
    assert found["all_zero"] == found["empty_targets"] == "warning"
    assert [f.severity for f in report.findings] == sorted(
        (f.severity for f in report.findings), key=["fatal", "warning", "info"].index
    )


def test_a_corpus_whose_recordings_are_all_broken_still_says_what_it_can(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    for file in (folder / "features").rglob("*.npz"):
        file.write_bytes(b"")
    report = check(folder)
    assert severities(report) == {"unreadable": "fatal"}
    facts = facts_of(report)
    assert facts.vocabulary.classes == 6
    assert facts.splits["train"].sentences.words > 40
    assert facts.splits["train"].fit is None
    assert (facts.width, facts.hash, facts.floors) == (0, "", None)


def test_recordings_that_are_all_nan_are_not_of_another_width_as_well(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    change(folder, "train", range(TRAIN), nan)
    assert severities(check(folder)) == {**SMALL, "not_finite": "fatal"}
    change(folder, "dev", range(DEV), nan)
    report = check(folder)
    assert severities(report) == {"not_finite": "fatal"}
    assert (facts_of(report).width, facts_of(report).modalities) == (6, {"features": 6})


def test_what_follows_from_a_train_that_cannot_be_read_is_not_said(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    (folder / "annotations" / "train.corpus.csv").write_text("x|y\n", encoding="utf-8")
    report = check(folder)
    assert severities(report) == {**SMALL, "bad_annotation": "fatal"}
    (row,) = (row for row in splits(facts_of(report)).rows if row[0] == "out of the vocabulary")
    assert row == ("out of the vocabulary", "")
    given = check(folder, **vocabulary_of("A")(folder))
    assert severities(given)["out_of_vocabulary"] == "warning", "of a vocabulary that is given it can be said"


def test_the_blank_as_a_word_is_one_fault_and_not_a_stranger_as_well(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    say(folder, "train", {0: "A <blank> B", 1: "<BLK>"})
    assert severities(check(folder)) == {**SMALL, "blank_in_targets": "fatal"}
    say(folder, "train", {2: "X Y Z"})
    fatal = check(folder, **vocabulary_of(*WORDS)(folder)).fatal
    assert [f.code for f in fatal] == ["blank_in_targets", "out_of_vocabulary"], "as one would mend them"
    assert "train: 3 of" in fatal[1].evidence


def test_features_saved_as_npy_are_pointed_out(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    for number in range(TRAIN):
        file_of(folder, "train", number).rename(file_of(folder, "train", number).with_suffix(".npy"))
    found = finding(check(folder), "coverage")
    assert "Of 40 of them there is an npy file, which is not read." in found.evidence
    assert "np.savez" in found.advice


def test_a_csv_that_is_not_there_is_to_be_written(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    (folder / "annotations" / "dev.corpus.csv").unlink()
    found = finding(check(folder), "bad_annotation")
    assert "there is no dev.corpus.csv" in found.evidence
    assert found.advice.startswith("Mend or write it")


@pytest.mark.parametrize("what", ["nothing there", "a file", "no annotations", "two annotations"])
def test_what_is_no_corpus_is_one_fatal_finding(what: str, tmp_path: Path) -> None:
    folder = healthy(tmp_path / "corpus")
    if what == "nothing there":
        folder = tmp_path / "elsewhere"
    elif what == "a file":
        folder = folder / "annotations" / "train.corpus.csv"
    elif what == "no annotations":
        shutil.rmtree(folder / "annotations")
    else:
        for name in ("a", "b"):
            shutil.copytree(folder / "annotations", folder / "raw_data" / name / "annotations" / "manual")
        shutil.rmtree(folder / "annotations")
    report = check(folder)
    assert [(f.code, f.severity) for f in report.findings] == [("not_a_corpus", "fatal")]
    assert report.facts is None
    assert report.facts_as_json() == {}


def test_splits_that_cannot_be_read_at_all_are_a_finding_each(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    for split in ("train", "dev"):
        (folder / "annotations" / f"{split}.corpus.csv").write_bytes(b"id|annotation\n\xff|A\n")
    report = check(folder)
    assert [(f.code, f.severity) for f in report.findings] == [("bad_annotation", "fatal")] * 2
    assert report.facts is None


def test_a_stride_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stride is 0"):
        check(healthy(tmp_path), 0)


# What it holds


def test_facts_are_those_of_the_corpus_that_training_would_load(tmp_path: Path) -> None:
    folder = healthy(tmp_path)
    say(folder, "train", {0: "", 3: "A A B"})
    say(folder, "dev", {0: "X", 1: "A X"})
    facts = facts_of(check(folder))
    corpus = load_corpus(CorpusConfig(path=folder))
    train, dev = facts.splits["train"], facts.splits["dev"]
    assert facts.hash == corpus.hash
    assert facts.vocabulary.hash == corpus.vocabulary.hash
    assert train.fit is not None
    assert dev.fit is not None
    assert (train.fit.sentences, dev.fit.sentences) == (len(corpus.train), len(corpus.dev))
    assert train.fit.infeasible_at == {
        stride: int((~corpus.train.fits(stride)).sum()) for stride in (1, 2, 4, 8, 16, 32)
    }
    assert sum(train.fit.frames_per_needed.values()) == len(corpus.train)
    assert train.sentences.empty == ["train-0"]
    assert (dev.sentences.out_of_vocabulary, dev.sentences.unknown) == (2, ["dev-0"])
    assert dev.sentences.whole == DEV - 2
    as_stored = facts_of(check(folder, normalise=False))
    assert as_stored.hash == load_corpus(CorpusConfig(path=folder, normalise=False)).hash != facts.hash


def test_what_enters_the_model_is_measured_where_a_part_is_seen(tmp_path: Path) -> None:
    folder = healthy(tmp_path, width=225)
    change(folder, "dev", range(5), zero(slice(99, 162)))
    change(folder, "dev", range(5, DEV), lambda x: np.r_["1", x[:, :99], x[:, 99:162] + 4, x[:, 162:]])
    facts = facts_of(check(folder))
    dev, train = facts.splits["dev"].entering, facts.splits["train"].entering
    assert train is not None
    assert dev is not None
    assert (train.within, train.mean.max, train.std.min) == pytest.approx((1, 0, 1))
    assert dev.modalities == {"pose": 1.0, "hands": 0.5}, "the left one is two deviations above that of train"
    assert dev.mean.max == pytest.approx(2, abs=0.3), "zeros of hands that are not there do not count"


def test_progress_is_told_and_a_packed_corpus_needs_no_pass(tmp_path: Path) -> None:
    folder = healthy(tmp_path / "corpus", width=225)
    a_hand_less(folder, "Signer1")
    told: list[tuple[str, int, int]] = []
    before = check_corpus(CorpusConfig(path=folder), progress=lambda *where: told.append(where))
    assert told[TRAIN - 1 : TRAIN + 1] == [("train", TRAIN, TRAIN), ("dev", 1, DEV)]
    pack(CorpusConfig(path=folder), tmp_path / "packed")
    shutil.rmtree(folder)
    told.clear()
    after = check_corpus(CorpusConfig(path=tmp_path / "packed"), progress=lambda *where: told.append(where))
    assert told == []
    assert after.findings == before.findings
    a, b = before.facts_as_json(), after.facts_as_json()
    differ = {key for key in a if a[key] != b[key]}
    assert differ == {"name", "packed", "vocabulary"}
    assert (a["vocabulary"].pop("origin"), b["vocabulary"].pop("origin")) == ("train", "packed corpus")
    assert a["vocabulary"] == b["vocabulary"]


def test_dimensions_of_a_pack_have_the_names_they_had_before_any_was_dropped(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", {"train": ["A B", "B"], "dev": ["A"]}, frames=8, width=STILL_WIDTH)
    for file in (folder / "features").rglob("*.npz"):
        still = np.load(file)["features"]
        still[:, 5] = 0.5  # constant, as its velocity, acceleration and copy are
        still[:, 10] = np.arange(8) / 4  # its velocity and acceleration are
        write_sequence(file, with_motion(still))
    dull = ["velocity pose 3 y", "acceleration pose 3 y"]
    before = facts_of(check(folder))
    others = ["pose 1 z", "velocity pose 1 z", "acceleration pose 1 z", "copy pose 1 z"]
    assert sorted(before.constant_dimensions) == sorted([*others, *dull])
    pack(CorpusConfig(path=folder), tmp_path / "packed", drop_constant=True)
    after = facts_of(check(tmp_path / "packed"))
    assert after.constant_dimensions == dull
    assert (before.width, after.width) == (6516, 6512)
    assert (before.modalities["pose"], after.modalities["pose"]) == (99, 98)


def test_a_torn_pack_is_no_corpus(tmp_path: Path) -> None:
    pack(CorpusConfig(path=healthy(tmp_path / "corpus")), tmp_path / "packed")
    (tmp_path / "packed" / "features.npy").write_bytes(b"")
    report = check(tmp_path / "packed")
    assert [(f.code, f.severity) for f in report.findings] == [("not_a_corpus", "fatal")]
    assert "features.npy" in report.findings[0].evidence


# PHOENIX

SI5 = SHARED / "phoenix2014-si5"


@pytest.mark.skipif(not SI5.is_dir(), reason="the PHOENIX SI5 annotations are not beside the project")
def test_the_facts_of_phoenix_si5_come_out_to_the_digit() -> None:
    vocabulary = Vocabulary.from_file(SI5 / "vocab_si5_973.txt")
    keep = FILTERS["phoenix-si5"]
    rows, words, frames = {}, {}, {}
    for split in ("train", "dev"):
        lines = (SI5 / "annotations" / f"{split}.SI5.corpus.csv").read_text(encoding="utf-8").splitlines()[1:]
        cells = [line.split("|") for line in lines]
        rows[split] = [Row(c[0], c[2], c[3]) for c in cells]
        words[split] = [list(filter(keep, row.annotation.split())) for row in rows[split]]
        frames[split] = {c[0]: int(c[4]) for c in cells}
    train, dev = (sentence_facts(rows[split], words[split], vocabulary) for split in ("train", "dev"))
    assert (train.annotated, len(train.empty), train.out_of_vocabulary, train.repeats) == (4375, 3, 0, 3006)
    assert (dev.annotated, len(dev.empty), dev.repeats) == (111, 0, 4)
    assert dev.out_of_vocabulary / dev.words == pytest.approx(0.0088, abs=5e-5)
    assert (train.whole, dev.whole) == (4372, 103)
    assert train.glosses is not None
    assert (train.glosses.p5, train.glosses.p50, train.glosses.p95, train.glosses.max) == (4, 9, 15, 26)
    of_vocabulary, counts = vocabulary_facts(vocabulary, "file", "phoenix-si5", words["train"])
    assert (of_vocabulary.classes, of_vocabulary.singletons, of_vocabulary.unused) == (973, 304, 0)
    assert (len(counts), sum(counts)) == (972, train.words)
    built = vocabulary_facts(vocabulary, "train", "phoenix-si5", words["train"])[0]
    assert built.hash == of_vocabulary.hash
    fit = fit_facts(taking_part("train", rows["train"], words["train"], frames["train"], vocabulary), 4)
    assert fit is not None
    assert (fit.frames.min, fit.frames.p50, fit.frames.max) == (27, 137, 299)
    assert (fit.infeasible, fit.infeasible_at) == ([], {1: 0, 2: 0, 4: 0, 8: 62, 16: 2881, 32: 4308})
