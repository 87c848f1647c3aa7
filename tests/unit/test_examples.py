"""What a run read into some sentences: which epochs, what is kept of it, and that it can be drawn."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.examples import (
    CLASSES,
    COLUMNS,
    FLOOR,
    Examples,
    checked,
    drawn_levels,
    examples,
    is_example_epoch,
    levels_of,
    posteriorgram,
    rows_of,
)

GLOSSES = ["<blank>", *(f"GLOSS-{n}" for n in range(1, 60))]


def made(frames: int = 40, reference: tuple[int, ...] = (7, 3, 7)) -> Examples:
    scores = np.random.default_rng(0).normal(size=(frames, len(GLOSSES)))
    log_probs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return examples([("dev-1", "REGEN", "MORGEN REGEN")], "dev-1", reference, log_probs, GLOSSES)


def test_epochs_lie_dense_at_first_and_a_dozen_are_enough_for_sixty() -> None:
    assert [epoch for epoch in range(1, 61) if is_example_epoch(epoch)] == [1, 2, 3, 4, 6, 8, 12, 18, 26, 39, 58]


@pytest.mark.parametrize("count", [1, 2, 8, 9, 111])
def test_sentences_are_spread_and_none_is_shown_twice(count: int) -> None:
    rows = rows_of(count)
    assert rows == sorted(set(rows))
    assert (rows[0], rows[-1], len(rows)) == (0, count - 1, min(count, 8))


def test_blank_and_the_reference_come_first_then_the_strongest() -> None:
    shown = made()
    assert (len(shown["classes"]), shown["needed"]) == (CLASSES, 3)
    assert shown["classes"][:3] == ["<blank>", "GLOSS-7", "GLOSS-3"]
    assert len(set(shown["classes"])) == CLASSES


def test_it_is_json_and_small_and_comes_back() -> None:
    shown = made(frames=300)
    text = json.dumps(shown, allow_nan=False)
    assert json.loads(text) == shown
    assert drawn_levels(shown).shape == (CLASSES, COLUMNS)


def test_of_many_frames_a_column_keeps_the_peak() -> None:
    log_probs = np.full((1_000, 3), -9.0)
    log_probs[501, 1] = -0.1
    (peak,) = (drawn_levels(examples([], "x", [1], log_probs, GLOSSES[:3]))[1] > 200).nonzero()[0].tolist()
    assert peak == pytest.approx(501 * COLUMNS / 1_000, abs=1)


def test_levels_go_from_the_floor_to_zero_nats() -> None:
    assert levels_of(np.array([0.0, FLOOR / 2, FLOOR, -99.0, -np.inf, np.nan])).tolist() == [255, 128, 0, 0, 0, 0]


@pytest.mark.parametrize("frames", [1, 40, 1_000])
def test_the_picture_is_a_png_with_even_stripes_where_nothing_depends_on_time(frames: int) -> None:
    still = np.tile(np.log([0.9, 0.06, 0.04]), (frames, 1))
    picture = Image.open(io.BytesIO(posteriorgram(examples([], "dev-1", [1], still, GLOSSES[:3]), 8)))
    assert picture.format == "PNG"
    pixels = np.asarray(picture)
    for row in range(3):
        line = pixels[10 + 28 + row * 28 + 14, 150 : picture.width - 10]
        assert (line == line[0]).all()
        assert line[0].tolist() not in ([255, 255, 255], [0, 0, 0])


def test_the_longest_names_are_cut_to_their_place() -> None:
    names = ["<blank>", "WETTERVORHERSAGE-" * 9, "手語"]
    shown = examples([], "dev/" + "long-" * 80, [1, 2], np.zeros((4, 3)), names)
    assert Image.open(io.BytesIO(posteriorgram(shown, 3))).width == 150 + 540 + 10


BROKEN: list[dict[str, Any]] = [
    {},
    {"log_probs": "no base64"},
    {"log_probs": "AAAA"},
    {"sentences": [["only", "two"]]},
    {"sentences": [["a", "b", 3]]},
    {"sentences": 3},
    {"frames": "many"},
    {"classes": []},
    {"classes": ["a"] * 7},
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_what_a_trainer_made_up_is_refused_with_the_way_out(broken: dict[str, Any]) -> None:
    whole = made()
    assert checked(whole) is whole
    with pytest.raises(ValueError, match=r"make them with model\.examples\.examples, or leave them out"):
        checked({**whole, **broken} if broken else {})
