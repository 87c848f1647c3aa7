from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from model.decode import BLANK, greedy_decode


def collapse(path: list[int]) -> list[int]:
    """Graves et al. 2006: merge repeats, then drop blanks."""
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def one_hot(paths: list[list[int]], classes: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities whose best classes are these paths; the padded frames say `padding`."""
    lengths = torch.tensor([len(path) for path in paths])
    best = torch.full((len(paths), int(lengths.max())), padding)
    for row, path in zip(best, paths, strict=True):
        row[: len(path)] = torch.tensor(path)
    return torch.nn.functional.one_hot(best, classes).float().log_softmax(-1), lengths


def test_every_short_path_decodes_as_the_definition_says() -> None:
    paths = [list(path) for n in range(1, 6) for path in itertools.product(range(3), repeat=n)]
    assert len(paths) == 363
    decoded, blanks = greedy_decode(*one_hot(paths, 3))
    assert decoded == [collapse(path) for path in paths]
    assert blanks == sum(path.count(BLANK) for path in paths)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_padding_is_never_decoded(padding: int) -> None:
    paths = [[1, 0, 1, 1, 2], [2], [0, 0], [1, 1, 2]]
    decoded, blanks = greedy_decode(*one_hot(paths, 3, padding))
    assert decoded == [[1, 1, 2], [2], [], [1, 2]]
    assert blanks == 3


def test_random_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(20, 30, 5, generator=generator).log_softmax(-1)
    lengths = torch.randint(1, 31, (20,), generator=generator)
    decoded, blanks = greedy_decode(log_probs, lengths)
    paths = [row.argmax(-1)[:n].tolist() for row, n in zip(log_probs, lengths, strict=True)]
    assert decoded == [collapse(path) for path in paths]
    assert blanks == sum(path.count(BLANK) for path in paths)
