"""The classes of a CTC model: blank first, then the glosses; read from a file or built from train."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLANK = "<blank>"
BLANK_NAMES = (BLANK, "<blk>", "blank", "-")
"""What the first line of a vocabulary file may call the blank, in any case; it is `<blank>` from then on."""

_SI5_MARKERS = ("__", "loc-", "cl-", "lh-", "rh-", "IX", "WG", "$GEST", "PLUSPLUS", "POS")


def _is_si5_marker(word: str) -> bool:
    return any(marker in word for marker in _SI5_MARKERS)


def _keep_si5(word: str) -> bool:
    letter = len(word) == 1 and word.isalpha()
    return not letter and not _is_si5_marker(word)


FILTERS: Mapping[str, Callable[[str], bool]] = {"none": lambda word: True, "phoenix-si5": _keep_si5}
"""Named filters: which words of an annotation are glosses to learn.

`phoenix-si5` drops PHOENIX's markers (by substring) and spelt single letters: 973 classes on train.SI5.
"""

MARKERS: Mapping[str, Callable[[str], bool]] = {"phoenix-si5": _is_si5_marker}
"""By filter: which words only an annotation made for it has. Single letters are words elsewhere."""


@dataclass(frozen=True)
class Vocabulary:
    """The classes by index; index 0 is the blank.

    Raises:
        ValueError: no blank at index 0, a gloss twice, or a gloss that is not one word.
    """

    glosses: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.glosses or self.glosses[0] != BLANK:
            raise ValueError(f"a vocabulary starts with {BLANK}, not with {self.glosses[:1]}; put it first")
        if broken := [g for g in self.glosses if g.split() != [g]]:
            raise ValueError(f"gloss {broken[0]!r} is not one word; annotations are split at spaces, so rename it")
        if len(set(self.glosses)) < len(self.glosses):
            twice = next(g for i, g in enumerate(self.glosses) if g in self.glosses[:i])
            raise ValueError(f"gloss {twice!r} stands twice in the vocabulary; delete one of them")

    def __len__(self) -> int:
        """Classes, the blank counted."""
        return len(self.glosses)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the classes in their order (hex)."""
        return hashlib.sha256("\n".join(self.glosses).encode()).hexdigest()

    @cached_property
    def _index(self) -> dict[str, int]:
        # The blank is left out: a target may never hold it.
        return {gloss: i for i, gloss in enumerate(self.glosses) if i > 0}

    def encode(self, words: Iterable[str]) -> NDArray[np.int64]:
        """Class indices (L,) of the words; a word out of the vocabulary is dropped."""
        return np.array([self._index[w] for w in words if w in self._index], dtype=np.int64)

    def oov(self, words: Iterable[str]) -> list[str]:
        """The words out of the vocabulary, in order, repeats kept."""
        return [w for w in words if w not in self._index]

    def decode(self, indices: Iterable[int]) -> list[str]:
        """The glosses of class indices.

        Raises:
            IndexError: an index that is no class.
        """
        return [self.glosses[i] for i in indices]

    def to_file(self, path: Path) -> None:
        """Write one gloss a line, blank first."""
        path.write_text("\n".join(self.glosses) + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """Read one `GLOSS` or `GLOSS<TAB>count` a line, blank first. Counts are not kept.

        Raises:
            ValueError: the file is missing, not UTF-8, empty, has a malformed line, names a gloss twice,
                or does not start with the blank.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
        except OSError as error:
            raise ValueError(f"{path}: the vocabulary cannot be read ({error.strerror}); check the path") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: the vocabulary is not UTF-8 ({error.reason}); save it as UTF-8") from error
        if lines == [""]:
            raise ValueError(f"{path}: the vocabulary is empty; write one gloss a line, {BLANK} first")
        first_line: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            gloss, tab, count = line.partition("\t")
            if gloss.split() != [gloss] or (tab and not count.strip().isdecimal()):
                raise ValueError(f"{path}: line {number} reads {line!r}; a line is GLOSS or GLOSS<TAB>count")
            if number == 1:
                if gloss.lower() not in BLANK_NAMES:
                    raise ValueError(
                        f"{path}: line 1 is {gloss!r}, but class 0 must be the blank; "
                        f"put one of {', '.join(BLANK_NAMES)} first"
                    )
                gloss = BLANK
            if gloss in first_line:
                raise ValueError(
                    f"{path}: {gloss!r} stands on lines {first_line[gloss]} and {number}; a gloss is one class, "
                    "so delete one of the lines"
                )
            first_line[gloss] = number
        return cls(tuple(first_line))


def build_vocabulary(sentences: Iterable[Sequence[str]]) -> Vocabulary:
    """The vocabulary of these sentences: glosses in order of first appearance, as in the SI5 vocabulary file."""
    return Vocabulary((BLANK, *dict.fromkeys(word for words in sentences for word in words)))
