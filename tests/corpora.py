"""Small corpus folders for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Real recordings beside the project; tests that need them skip where they are absent."""

HEADER = "id|folder|signer|annotation"


def write_sequence(file: Path, features: NDArray[np.generic], masks: NDArray[np.bool_] | None = None) -> Path:
    """One npz of features (T, D), with detection_masks (T, 543) if given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if masks is None:
        np.savez(file, features=features)
    else:
        np.savez(file, features=features, detection_masks=masks)
    return file


def write_csv(file: Path, rows: Sequence[Sequence[str]], header: str = HEADER) -> Path:
    """A pipe-separated table below that header."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *("|".join(row) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return file


def write_corpus(
    folder: Path,
    annotations: Mapping[str, Sequence[str]] | None = None,
    *,
    frames: int = 40,
    width: int = 6,
    seed: int = 0,
) -> Path:
    """A corpus of random features: `folder/features/SPLIT/SPLIT-i.npz` and `folder/annotations/SPLIT.corpus.csv`.

    Args:
        annotations: the sentences of each split (default: six of train, three of dev, no test).
    """
    sentences = annotations or {"train": ["A B", "B C", "C A B", "A", "C C", "B A"], "dev": ["A B", "C", "B B A"]}
    rng = np.random.default_rng(seed)
    for split, texts in sentences.items():
        rows = [(f"{split}-{i}", "-", f"Signer{i % 2}", text) for i, text in enumerate(texts)]
        write_csv(folder / "annotations" / f"{split}.corpus.csv", rows)
        for name, *_ in rows:
            x = rng.normal(3, 2, (frames, width)).astype(np.float32)
            write_sequence(folder / "features" / split / f"{name}.npz", x)
    return folder
