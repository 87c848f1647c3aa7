from __future__ import annotations

import math

import pytest

from model.floors import Floors
from model.run_plots import run_pictures
from tests.curves import run, without_metrics

FLOORS = Floors(0.92, "A", 3.9, 3.9, 13.6)


def test_three_pictures_of_a_run_the_same_each_time() -> None:
    curve = run(12, 1e-3, takeoff=6)
    pictures = run_pictures(curve, FLOORS)
    assert [picture.title for picture in pictures] == ["Loss", "WER", "Use of the input"]
    assert "took off at epoch 6" in pictures[1].caption
    assert "best constant posterior" in pictures[0].svg
    assert "best constant sentence" in pictures[1].svg
    assert pictures == run_pictures(curve, FLOORS)


def test_without_probes_there_is_no_picture_of_them() -> None:
    curve = without_metrics(run(3, 1e-3), "probe/swap_t", "probe/permuted_t")
    assert [picture.title for picture in run_pictures(curve, FLOORS)] == ["Loss", "WER"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_a_run_that_went_wrong_can_be_drawn(value: float) -> None:
    assert len(run_pictures(without_metrics(run(3, 1e-3), value=value), FLOORS)) >= 2
    assert len(run_pictures(run(3, 1e-3), Floors(0.92, "A", math.nan, math.nan, math.nan))) == 3


def test_one_epoch_is_no_curve() -> None:
    assert run_pictures(run(1, 1e-3), FLOORS) == []
