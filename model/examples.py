"""What a run reads into a few sentences of dev at some epochs: for a person to look at. Torch is not needed."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Examples: TypeAlias = Mapping[str, Any]
"""JSON types only, as it travels through checkpoints and a database:

    sentences: [id, reference, hypothesis] of each
    sequence: the id of the one whose log-probabilities follow
    classes: their names, the blank first, then those of its reference
    needed: how many those are, the blank counted
    frames: output frames that it has
    log_probs: a byte for each class and column, see `levels_of`; zlib, then base64
"""

SENTENCES = 8
CLASSES = 16
"""In the picture: blank, the glosses of the reference, and the strongest others."""
COLUMNS = 240
"""In the picture at most; of more frames each column takes the highest of a few."""
FLOOR = -12.0
"""Nats: what is below looks the same. log(1/1,232) is -7.1."""
GROWTH = 1.5
"""From one epoch with examples to the next: a dozen in 60 epochs, and they lie dense where a run takes off."""


def is_example_epoch(epoch: int) -> bool:
    """Whether an epoch (1 for the first) keeps examples: 1, 2, 3, 4, 6, 8, 12, 18, 26, ..."""
    return epoch == 1 or math.floor(math.log(epoch, GROWTH)) > math.floor(math.log(epoch - 1, GROWTH))


def rows_of(count: int) -> list[int]:
    """Which of so many sentences are shown: evenly spread, the same ones at every epoch of every trial."""
    return sorted({round(row) for row in np.linspace(0, count - 1, min(SENTENCES, count)).tolist()})


def examples(
    sentences: Sequence[tuple[str, str, str]], sequence: str, reference: Sequence[int],
    log_probs: NDArray[np.floating[Any]], glosses: Sequence[str],
) -> Examples:  # fmt: skip
    """
    Args:
        sentences: id, reference and hypothesis of each.
        sequence: the id of the one that is drawn.
        reference: its classes.
        log_probs: of its valid output frames (T, V), T at least 1.
        glosses: the names of the classes (V,), the blank first.
    """
    frames = len(log_probs)
    starts = np.arange(min(frames, COLUMNS)) * frames // min(frames, COLUMNS)
    columns = np.maximum.reduceat(log_probs, starts, axis=0)
    strongest = np.argsort(-log_probs.max(0), kind="stable").tolist()
    needed = list(dict.fromkeys([0, *map(int, reference)]))[:CLASSES]
    shown = list(dict.fromkeys([*needed, *strongest]))[:CLASSES]
    packed = zlib.compress(levels_of(columns[:, shown].T).tobytes(), 9)
    return {
        "sentences": [list(sentence) for sentence in sentences],
        "sequence": sequence,
        "classes": [glosses[each] for each in shown],
        "needed": len(needed),
        "frames": frames,
        "log_probs": base64.b64encode(packed).decode("ascii"),
    }


def levels_of(log_probs: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """0 for FLOOR and below, 255 for 0 nats."""
    clipped = np.clip(np.nan_to_num(log_probs, nan=FLOOR), FLOOR, 0.0)
    levels: NDArray[np.uint8] = np.round(255 * (1 - clipped / FLOOR)).astype(np.uint8)
    return levels


def drawn_levels(shown: Examples) -> NDArray[np.uint8]:
    """The picture's levels (classes, columns)."""
    flat = np.frombuffer(zlib.decompress(base64.b64decode(shown["log_probs"])), np.uint8)
    return flat.reshape(len(shown["classes"]), -1)


def checked(shown: Examples) -> Examples:
    """What a trainer gave, if it can be shown.

    Raises:
        ValueError: it is not what `examples` makes.
    """
    try:
        texts = [text for sentence in shown["sentences"] for text in sentence]
        numbers = isinstance(shown["frames"], int) and isinstance(shown["needed"], int)
        whole = all(len(sentence) == 3 for sentence in shown["sentences"]) and drawn_levels(shown).size > 0
        if numbers and whole and all(isinstance(text, str) for text in [*texts, *shown["classes"], shown["sequence"]]):
            return shown
    except (KeyError, TypeError, ValueError, zlib.error):
        pass  # said below
    raise ValueError("EpochReport.examples cannot be shown: make them with model.examples.examples, or leave them out")


WIDTH, ROW, MARGIN, LABELS, TEXT = 540, 28, 10, 150, 14
"""Pixels: nearly a square in all, as MLflow shows it in one."""
INK, SOFT, PAPER = (28, 32, 36), (93, 101, 109), (255, 255, 255)
# Viridis, at even steps: evenly spaced to the eye, also to those who tell few colours apart.
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def posteriorgram(shown: Examples, epoch: int) -> bytes:
    """The log-probabilities of one sentence over time as a PNG: a row a class. A run that reads nothing of its input
    shows even stripes; one that has learned shows a short peak for each gloss, and blank between them.
    """
    levels = drawn_levels(shown)
    rows, columns = levels.shape
    cell = max(1, WIDTH // columns)
    picture = Image.new("RGB", (LABELS + cell * columns + MARGIN, (rows + 3) * ROW + 2 * MARGIN), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype(_font(), TEXT)
    top = MARGIN + ROW
    head = f"epoch {epoch}, {shown['sequence']}: log-probabilities over time; dark names: its reference"
    draw.text((MARGIN, MARGIN), _fitted(draw, head, font, picture.width - 2 * MARGIN), INK, font)
    heat = Image.fromarray(_colours()[levels]).resize((cell * columns, rows * ROW), Image.Resampling.NEAREST)
    picture.paste(heat, (LABELS, top))
    for row, name in enumerate(shown["classes"]):
        label = _fitted(draw, name if row else "blank", font, LABELS - 2 * MARGIN)
        ink = INK if 0 < row < shown["needed"] else SOFT
        draw.text((LABELS - MARGIN, top + row * ROW + ROW // 2), label, ink, font, anchor="rm")
    below = top + rows * ROW + ROW // 2 + MARGIN
    draw.text((LABELS, below), "frame 1", SOFT, font, anchor="lm")
    draw.text((LABELS + cell * columns, below), str(shown["frames"]), SOFT, font, anchor="rm")
    key = Image.fromarray(_colours()[None, :, :]).resize((120, 10), Image.Resampling.NEAREST)
    left = LABELS + (cell * columns - 120) // 2
    picture.paste(key, (left, below - 5))
    draw.text((left - 6, below), f"{FLOOR:g}", SOFT, font, anchor="rm")
    draw.text((left + 126, below), "0 nats", SOFT, font, anchor="lm")
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _colours() -> NDArray[np.uint8]:
    """The colour of each level (256, 3)."""
    at = np.linspace(0, len(VIRIDIS) - 1, 256)
    parts = [np.interp(at, np.arange(len(VIRIDIS)), channel) for channel in zip(*VIRIDIS, strict=True)]
    return np.stack(parts, axis=1).round().astype(np.uint8)


def _font() -> str:
    """DejaVu Sans, which has more than Latin letters; matplotlib brings it, and need not be imported for that."""
    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


def _fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text[:-2] + "…"
    return text
