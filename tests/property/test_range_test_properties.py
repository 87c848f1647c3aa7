from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from model.floors import Floors
from model.range_test import (
    FAR_LOSS,
    LOOKS,
    SPARE_LOOKS,
    Look,
    RangeTest,
    concluded,
    edges_of,
    is_telling,
    lr_time_until,
)
from model.types import TrainingConfig
from sweeps.range_test import NARROWEST, proposal
from sweeps.spec import SweepSpec

KNOWN = Floors(0.9, "A", 4.0, 4.1, 12.0)
CONFIG = TrainingConfig(epochs=20)
UNIT = lr_time_until(CONFIG, 30, 0.5)

anything = st.one_of(st.floats(0, 60), st.sampled_from([math.nan, math.inf, 4.0]))
measured = st.tuples(anything, anything, st.one_of(st.floats(-5, 30), st.just(math.nan)), st.integers(0, 10))
RATIO = 1.33


@st.composite
def ramps(draw: st.DrawFn) -> RangeTest:
    """Any ramp whatever, read."""
    looks, lr_time, rate = [], 0.0, 1e-5
    for at, (train, dev, t, skipped) in enumerate(draw(st.lists(measured, min_size=1, max_size=41))):
        lr_time += 10 * rate
        looks.append(Look(1 + 10 * at, rate, lr_time, train, dev, 0.1, 0.1, t, skipped))
        rate *= RATIO
    return concluded(looks, 400, 1.0, edges_of(looks, KNOWN, UNIT), KNOWN, CONFIG)


@given(ramps())
def test_whatever_a_ramp_shows_the_edges_are_rates_and_the_proposal_is_in_order(test: RangeTest) -> None:
    first, last = test.looks[0].rate, test.looks[-1].rate
    assert test.edges.high is None or first <= test.edges.high < last
    assert test.edges.low is None or 0 < test.edges.low < math.inf
    assert (test.edges.low is None) == (test.edges.used_lr_time is None)
    if test.low is not None and test.high is not None:
        assert test.low < test.high
    if test.suggested is not None:
        assert test.low is not None
        assert test.low <= test.suggested
        assert test.high is None or test.suggested <= test.high
    assert 3 <= len(test.sentences) <= 4
    json.dumps(test.as_json(), allow_nan=False)


@given(ramps(), st.floats(-6, 0), st.floats(0, 5), st.booleans())
def test_a_sweep_never_leaves_its_space(test: RangeTest, low: float, decades: float, log: bool) -> None:
    rates = {"low": 10**low, "high": min(10.0, 10 ** (low + decades)), "log": log}
    spec = SweepSpec.model_validate(
        {"name": "s", "corpus": "x", "trainer": {"epochs": 20}, "space": {"learning_rate": rates}}
    )
    made = proposal(spec, test)
    if made.bounds is not None:
        assert rates["low"] <= made.bounds.low
        assert NARROWEST * made.bounds.low <= made.bounds.high <= rates["high"]
        assert made.bounds.log is log
    assert (made.trial is None) == (test.suggested is None)
    if made.trial is not None:
        assert spec.space.contains(made.trial.hyperparameters)
        bounds = made.bounds or spec.space.learning_rate
        assert bounds.low <= made.trial.hyperparameters["learning_rate"] <= bounds.high


near = st.floats(0.1, FAR_LOSS * KNOWN.constant_loss) | st.just(math.nan)


@given(st.lists(st.tuples(near, near, st.floats(-5, 30)), min_size=1, max_size=LOOKS), st.booleans())
def test_near_f0_the_looks_at_dev_that_are_spared_change_no_edge(
    drawn: list[tuple[float, float, float]], with_t: bool
) -> None:
    looks, spared = list[Look](), list[Look]()
    for at, (train, dev, t) in enumerate(drawn):
        bare = Look(1 + 10 * at, 1e-4 * RATIO**at, sum(1e-3 * RATIO**n for n in range(at + 1)), train)
        looks.append(replace(bare, dev_loss=dev, swap_t=t if with_t else math.nan))
        measured = at % SPARE_LOOKS == 0 or is_telling(bare, spared, KNOWN)
        spared.append(looks[-1] if measured else bare)
    assert edges_of(spared, KNOWN, UNIT) == edges_of(looks, KNOWN, UNIT)
