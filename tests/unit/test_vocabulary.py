from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.corpus.vocabulary import BLANK, FILTERS, Vocabulary, build_vocabulary
from tests.corpora import SHARED

SI5 = SHARED / "phoenix2014-si5"


def test_encoding_drops_what_it_does_not_know_and_never_gives_the_blank() -> None:
    vocabulary = Vocabulary((BLANK, "REGEN", "WIND"))
    words = ["WIND", "SONNE", BLANK, "REGEN", "WIND", "SONNE"]
    encoded = vocabulary.encode(words)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [2, 1, 2]
    assert vocabulary.oov(words) == ["SONNE", BLANK, "SONNE"]
    assert vocabulary.decode([1, 2]) == ["REGEN", "WIND"]
    assert len(vocabulary) == 3
    assert vocabulary.encode([]).dtype == np.int64


def test_the_hash_follows_content_and_order() -> None:
    first = Vocabulary((BLANK, "A", "B"))
    assert first.hash == Vocabulary((BLANK, "A", "B")).hash
    assert len({first.hash, Vocabulary((BLANK, "B", "A")).hash, Vocabulary((BLANK, "AB")).hash}) == 3


def test_built_in_order_of_first_appearance() -> None:
    assert build_vocabulary([["B", "A"], ["A", "C", "B"]]).glosses == (BLANK, "B", "A", "C")


@given(st.lists(st.text(min_size=1).filter(lambda g: g.split() == [g] and g != BLANK), unique=True))
def test_survives_its_file(tmp_path_factory: pytest.TempPathFactory, glosses: list[str]) -> None:
    vocabulary = Vocabulary((BLANK, *glosses))
    file = tmp_path_factory.mktemp("vocabulary") / "v.txt"
    vocabulary.to_file(file)
    read = Vocabulary.from_file(file)
    assert read == vocabulary
    assert read.hash == vocabulary.hash
    assert read.decode(read.encode(glosses)) == glosses


@pytest.mark.parametrize("blank", ["<blank>", "<blk>", "BLANK", "-"])
def test_reads_counts_bom_crlf_and_other_names_of_the_blank(tmp_path: Path, blank: str) -> None:
    file = tmp_path / "v.txt"
    file.write_bytes(f"\ufeff{blank}\t0\r\nREGEN\t12\r\nÜBER\r\n\r\n".encode())
    assert Vocabulary.from_file(file).glosses == (BLANK, "REGEN", "ÜBER")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"REGEN\nWIND\n", "line 1 is 'REGEN', but class 0 must be the blank"),
        (b"0\t<blank>\n1\tREGEN\n", "GLOSS<TAB>count"),
        (b"<blank>\nREGEN\nWIND\nREGEN\t3\n", "'REGEN' stands on lines 2 and 4"),
        (b"<blank>\nREGEN\n<blank>\n", "'<blank>' stands on lines 1 and 3"),
        (b"<blank>\nREGEN 12\n", "line 2 reads 'REGEN 12'"),
        (b"<blank>\n\nREGEN\n", "line 2 reads ''"),
        (b"<blank>\nREGEN\ttwo\n", "line 2"),
        (b"<blank>\n\xdcBER\n", "not UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "v.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("<", r"\<")) as error:
        Vocabulary.from_file(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no-such\.txt: the vocabulary cannot be read"):
        Vocabulary.from_file(tmp_path / "no-such.txt")


@pytest.mark.parametrize("glosses", [(), ("A",), (BLANK, "A", "A"), (BLANK, "A B"), (BLANK, "")])
def test_a_vocabulary_keeps_its_rules(glosses: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"gloss|starts with"):
        Vocabulary(glosses)


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("REGEN", True),
        ("S+H", True),
        ("2", True),
        ("A", False),
        ("__ON__", False),
        ("loc-NORD", False),
        ("cl-KOMMEN", False),
        ("lh-ZEIGEN", False),
        ("rh-ZEIGEN", False),
        ("IX", False),
        ("WG", False),
        ("$GEST-OFF", False),
        ("REGEN-PLUSPLUS", False),
        ("POSS", False),
    ],
)
def test_the_phoenix_filter(word: str, kept: bool) -> None:
    assert FILTERS["phoenix-si5"](word) is kept
    assert FILTERS["none"](word)


@pytest.mark.skipif(not SI5.is_dir(), reason="needs ../shared/data/phoenix2014-si5")
def test_si5_gives_its_973_classes() -> None:
    def sentences(split: str) -> list[list[str]]:
        with (SI5 / "annotations" / f"{split}.SI5.corpus.csv").open(encoding="utf-8") as lines:
            rows = csv.DictReader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
            return [list(filter(FILTERS["phoenix-si5"], row["annotation"].split())) for row in rows]

    train, dev = sentences("train"), sentences("dev")
    built = build_vocabulary(train)
    assert built == Vocabulary.from_file(SI5 / "vocab_si5_973.txt")
    assert len(built) == 973
    assert sum(not words for words in train) == 3
    assert len(built.oov(w for words in dev for w in words)) / sum(map(len, dev)) == pytest.approx(0.0088, abs=5e-5)
