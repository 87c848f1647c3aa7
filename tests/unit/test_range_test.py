"""The range test: what is read off a ramp, and a real one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.corpus.data import Corpus, CorpusConfig, load_corpus
from model.floors import Floors
from model.range_plot import write_picture
from model.range_test import (
    FAR_LOSS,
    FEWEST_STEPS,
    LOOKS,
    LOST_RATES,
    LOW,
    SAFETY,
    STEPS,
    SUGGESTED,
    TAKEOFF_BY,
    TAKEOFF_FACTOR,
    Edges,
    Look,
    RangeTest,
    concluded,
    edges_of,
    is_hopeless,
    is_telling,
    lr_time_until,
    range_test,
)
from model.schedule import learning_rate_at
from model.types import Stopped, TrainingConfig
from tests.corpora import write_csv, write_sequence

KNOWN = Floors(0.92, "A", constant_loss=4.0, dev_constant_loss=4.1, uniform_loss=12.0)
CONFIG = TrainingConfig(epochs=20, schedule="constant")
STEPS_PER_EPOCH = 50
UNIT = lr_time_until(CONFIG, STEPS_PER_EPOCH, TAKEOFF_BY)


def ramp(
    loss: Callable[[float], float],
    *,
    dev: Callable[[float], float] | None = None,
    t: Callable[[float], float] = lambda lr_time: math.nan,
    skipped: Callable[[float], int] = lambda rate: 0,
    high: float = 1.0,
) -> list[Look]:
    """A whole ramp. `loss` and `skipped` are functions of the rate, `dev` and `t` of LR-time."""
    looks, steps, lr_time = [], STEPS, 0.0
    for step in range(1, steps + 1):
        rate = LOW * (high / LOW) ** ((step - 1) / (steps - 1))
        lr_time += rate
        if step in {round(1 + i * (steps - 1) / (LOOKS - 1)) for i in range(LOOKS)}:
            on_dev = dev(lr_time) if dev else loss(rate)
            looks.append(Look(step, rate, lr_time, loss(rate), on_dev, 0.5, 0.1, t(lr_time), skipped(rate)))
    return looks


def healthy(rate: float) -> float:
    """Train loss of a healthy ramp: from uniform to F0 by 1e-3, to its half by 1e-2, and gone above 5e-2."""
    points = np.log([1e-5, 1e-4, 1e-3, 1e-2, 2e-2, 5e-2, 2e-1, 1.0])
    return float(np.interp(math.log(rate), points, [12.0, 11.5, 4.1, 2.0, 2.0, 3.9, 8.0, 40.0]))


def used_from(lr_time: float) -> Callable[[float], float]:
    """A t that passes 2.5 at this cumulative learning rate."""
    return lambda now: 0.5 if now < lr_time else 8.0


def plateau_from(lr_time: float) -> Callable[[float], float]:
    """A dev loss that comes down to F0 at this cumulative learning rate."""
    return lambda now: 12.0 if now < lr_time else 4.1


def edges(looks: list[Look]) -> Edges:
    return edges_of(looks, KNOWN, UNIT)


def conclusion(looks: list[Look]) -> RangeTest:
    return concluded(looks, STEPS, 30.0, edges(looks), KNOWN, CONFIG)


def test_both_edges_of_a_healthy_ramp() -> None:
    looks = ramp(healthy, dev=plateau_from(0.03), t=used_from(0.05))
    found = edges(looks)
    first = next(look.lr_time for look in looks if look.lr_time >= 0.05)
    assert found.used_lr_time == first
    assert found.low == pytest.approx(TAKEOFF_FACTOR * first / (0.5 * 20 * STEPS_PER_EPOCH))
    assert found.high == pytest.approx(5e-2, rel=0.35), "a look is a third above the one before"
    test = conclusion(looks)
    assert (test.low, test.high) == (found.low, found.high / SAFETY if found.high else None)
    assert test.suggested == pytest.approx((found.high or 0) / SUGGESTED)
    assert f"{found.high:.1e}" in test.sentences[1]
    assert f"{found.low:.1e}" in test.sentences[2]


@pytest.mark.parametrize("factor", [2.0, 3.5, 5.0])
def test_a_slow_starter_that_takes_off_by_its_half_is_not_left_out(factor: float) -> None:
    """It has the same need, at a rate that just meets it."""
    looks = ramp(healthy, dev=plateau_from(0.02), t=used_from(0.04))
    found = edges(looks)
    assert found.used_lr_time is not None
    slowest = factor * found.used_lr_time / UNIT
    assert found.low is not None
    assert found.low <= slowest * (1 + 1e-12)


def test_the_steepest_fall_of_the_loss_counts_for_nothing() -> None:
    """It falls from uniform to F0 and never uses its input: the network has learned how often each gloss occurs."""
    looks = ramp(lambda rate: max(4.0, healthy(rate)), dev=plateau_from(0.02), t=lambda now: 1.9)
    found = edges(looks)
    assert (found.used_lr_time, found.low) == (None, None)
    assert found.high is not None
    test = conclusion(looks)
    assert (test.low, test.suggested) == (None, None)
    assert test.high == test.edges.high, "it rules out what diverged, and no more"
    assert "never used its input" in test.sentences[2]
    assert "t 1.9 at most" in test.sentences[2]


def test_a_t_above_its_threshold_while_the_loss_is_an_untrained_networks_counts_for_nothing() -> None:
    looks = ramp(healthy, dev=plateau_from(0.05), t=lambda now: 7.0 if now < 0.04 or now > 0.1 else 0.0)
    found = edges(looks)
    assert found.used_lr_time is not None
    assert found.used_lr_time > 0.1


def test_one_high_t_among_low_ones_is_chance() -> None:
    looks = ramp(healthy, dev=plateau_from(0.02), t=lambda now: 1.0)
    lucky = next(i for i, look in enumerate(looks) if look.lr_time > 0.1)
    looks[lucky] = replace(looks[lucky], swap_t=3.1)
    assert edges(looks).low is None
    looks[lucky + 1] = replace(looks[lucky + 1], swap_t=3.1)
    assert edges(looks).used_lr_time == looks[lucky].lr_time


def test_with_few_dev_sequences_the_losses_tell() -> None:
    looks = ramp(healthy)
    found = edges(looks)
    below = next(look for look in looks if look.train_loss < 0.9 * 4.0)
    assert found.used_lr_time == below.lr_time
    assert found.low == pytest.approx(below.lr_time / UNIT)


def test_with_few_dev_sequences_what_is_learned_by_heart_does_not_count() -> None:
    looks = ramp(healthy, dev=lambda now: 4.1)
    assert edges(looks).low is None
    assert "never used its input" in conclusion(looks).sentences[2]


def test_a_loss_that_comes_back_had_not_diverged() -> None:
    looks = ramp(lambda rate: 9.0 if 3e-3 < rate < 6e-3 else healthy(rate))
    assert edges(looks).high == edges(ramp(healthy)).high


def test_a_loss_that_never_came_below_f0_leaves_its_own_minimum() -> None:
    looks = ramp(lambda rate: 4.2 + max(0.0, healthy(rate) - 4.0), t=lambda now: 0.0)
    assert edges(looks).high == pytest.approx(5e-2, rel=0.5)


def test_a_ramp_that_ended_before_it_diverged_has_no_such_edge() -> None:
    looks = ramp(healthy, high=1e-2, dev=plateau_from(0.01), t=used_from(0.02))
    test = conclusion(looks)
    assert test.edges.high is None
    assert test.high is None
    assert test.suggested == pytest.approx(1e-2 / SUGGESTED)
    assert test.sentences[1].startswith("It did not diverge")


def test_steps_that_are_not_finite_are_divergence_but_a_single_one_is_not() -> None:
    calm = ramp(healthy)
    at = next(i for i, look in enumerate(calm) if look.rate > 1e-3)
    once = [replace(look, skipped=int(i == at)) for i, look in enumerate(calm)]
    assert edges(once).high == edges(calm).high
    several = [replace(look, skipped=3 * (i == at)) for i, look in enumerate(calm)]
    assert edges(several[: at + 1]).high == calm[at - 1].rate


def test_a_network_that_is_not_finite_from_the_first_step_is_told_as_it_is() -> None:
    looks = [
        Look(1, 1e-5, 0.0, math.nan, math.nan, math.nan, math.nan, math.nan, 1),
        Look(11, 1.4e-5, 0.0, math.nan, math.nan, math.nan, math.nan, math.nan, 10),
    ]
    test = conclusion(looks)
    assert test.edges == Edges(None, None, 1e-5)
    assert test.suggested is None
    assert "not finite" in test.sentences[1]
    assert json.loads(json.dumps(test.as_json(), allow_nan=False))["looks"][0]["train_loss"] is None


def test_edges_that_leave_nothing_between_them_propose_nothing() -> None:
    looks = ramp(healthy, dev=plateau_from(0.03), t=used_from(0.05))
    short = TrainingConfig(epochs=1, schedule="constant")
    found = edges_of(looks, KNOWN, lr_time_until(short, 2, TAKEOFF_BY))
    test = concluded(looks, STEPS, 30.0, found, KNOWN, short)
    assert (test.low, test.high, test.suggested) == (None, None, None)
    assert test.sentences[-1].startswith("That leaves no rate")


@pytest.mark.parametrize("schedule", ["constant", "plateau", "cosine_restarts", "step"])
def test_the_warm_up_and_the_schedule_count(schedule: str) -> None:
    config = CONFIG.with_values({"schedule": schedule, "warmup_start_factor": 0.1, "warmup_epochs": 4})
    rates = [learning_rate_at(u, 10, [], config) for u in range(100)]
    assert lr_time_until(config, 10, 0.5) == pytest.approx(sum(rates) / config.learning_rate)
    assert lr_time_until(config, 10, 0.5) < lr_time_until(CONFIG, 10, 0.5) == pytest.approx(100)


# a real one


GLOSSES = "ABCD"
TINY = TrainingConfig(epochs=20, batch_size=4, eval_batch_size=128, hidden=16, channels=16, device="cpu", dropout=0)


def write_learnable(folder: Path, dev: int) -> Path:
    """A gloss is a direction held for a while."""
    rng = np.random.default_rng(0)
    directions = rng.normal(0, 1, (len(GLOSSES), 6))
    for split, size in (("train", 40), ("dev", dev)):
        rows = []
        for i in range(size):
            glosses = rng.integers(0, len(GLOSSES), rng.integers(1, 4))
            x = np.concatenate([np.tile(directions[gloss], (12, 1)) for gloss in glosses])
            noisy = (x + rng.normal(0, 0.2, x.shape)).astype(np.float32)
            write_sequence(folder / "features" / split / f"{split}-{i}.npz", noisy)
            rows.append((f"{split}-{i}", "-", "Signer0", " ".join(GLOSSES[g] for g in glosses)))
        write_csv(folder / "annotations" / f"{split}.corpus.csv", rows)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CorpusConfig(path=write_learnable(tmp_path_factory.mktemp("learnable"), dev=100)))


@pytest.fixture(scope="module")
def tested(corpus: Corpus) -> RangeTest:
    return range_test(TINY, corpus, steps=FEWEST_STEPS)


def test_a_real_ramp_finds_both_edges(tested: RangeTest) -> None:
    assert tested.low is not None
    assert tested.high is not None
    assert tested.suggested is not None
    assert 1e-5 < tested.low < tested.suggested < tested.high < 1
    assert tested.looks[0].step == 1
    assert tested.looks[0].rate == LOW
    rates = [look.rate for look in tested.looks]
    assert rates == sorted(rates)
    assert max(look.swap_t for look in tested.looks if math.isfinite(look.swap_t)) > 10
    assert tested.looks[0].train_loss == pytest.approx(tested.uniform_loss, rel=0.3)
    assert min(look.train_loss for look in tested.looks) < tested.constant_loss / 2
    assert tested.looks[-1].lr_time == pytest.approx(
        sum(LOW * (1 / LOW) ** (i / (FEWEST_STEPS - 1)) for i in range(tested.looks[-1].step)), rel=1e-6
    )


@pytest.mark.slow
def test_what_is_spared_changes_no_edge(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dev is looked at where that may decide, and now and then for the picture."""
    config = TINY.with_values({"dropout": 0.1})  # a look must draw no random number
    tested = range_test(config, corpus, steps=FEWEST_STEPS)
    monkeypatch.setattr("model.range_test.is_telling", lambda *_: True)
    monkeypatch.setattr("model.range_test.is_hopeless", lambda *_: False)
    whole = range_test(config, corpus, steps=FEWEST_STEPS)
    assert all(math.isfinite(look.dev_loss) for look in whole.looks)
    assert len(whole.looks) == LOOKS > len(tested.looks)
    assert sum(math.isfinite(look.dev_loss) for look in tested.looks) < 2 * len(tested.looks) / 3
    assert (tested.edges, tested.low, tested.high) == (whole.edges, whole.low, whole.high)
    for look, of in zip(tested.looks, whole.looks, strict=False):
        assert (look.step, look.rate, look.train_loss) == (of.step, of.rate, of.train_loss)
        assert math.isnan(look.dev_loss) or str(look) == str(of)  # NaN is unlike itself


def test_a_look_at_dev_may_decide_near_f0_until_the_input_was_used() -> None:
    looks = ramp(healthy, dev=plateau_from(0.03), t=used_from(0.05))
    telling = [is_telling(look, looks[:at], KNOWN) for at, look in enumerate(looks)]
    used = next(at for at, look in enumerate(looks) if look.lr_time >= 0.05)
    far = [look.train_loss > FAR_LOSS * KNOWN.constant_loss for look in looks]
    assert telling == [at <= used + 1 and not far[at] for at in range(len(looks))], "two in a row are asked for"
    uniform = [replace(look, train_loss=look.train_loss + 10) for look in looks]
    assert not is_telling(uniform[0], [], KNOWN)


def test_a_ramp_ends_once_its_loss_has_left_f0_for_good() -> None:
    def ends(loss: Callable[[float], float], *, used: bool = True) -> float:
        looks = ramp(loss, dev=plateau_from(0.03), t=used_from(0.05 if used else math.inf))
        return next((looks[at].rate for at in range(len(looks)) if is_hopeless(looks[: at + 1], KNOWN)), math.inf)

    last = max(look.rate for look in ramp(healthy) if healthy(look.rate) <= 4.0)

    def slowly(rate: float) -> float:
        return min(healthy(rate), 4.5) if rate > 1e-2 else healthy(rate)

    def back(rate: float) -> float:
        return 2.0 if rate > 0.9 * LOST_RATES * last else slowly(rate)

    assert LOST_RATES * last < ends(slowly) < 1.4 * LOST_RATES * last
    assert ends(back) == math.inf, "a spike that is over in time"
    assert ends(slowly, used=False) == math.inf, "what never used its input may still do so"


def test_a_lucky_first_batch_ends_no_ramp() -> None:
    """A network that begins near F0: its first look is one batch, the later ones waver above it."""
    looks = ramp(lambda rate: 3.4 if rate < 1.01 * LOW else 4.2, dev=lambda lr_time: 4.2, t=lambda lr_time: 0.3)
    assert not any(is_hopeless(looks[: at + 1], KNOWN) for at in range(len(looks)))


def test_a_loss_far_above_f0_ends_a_ramp_at_once() -> None:
    looks = ramp(lambda rate: 9.0 if rate > 1e-2 else max(4.2, healthy(rate)))
    at = next(at for at, look in enumerate(looks) if look.rate > 1e-2)
    assert is_hopeless(looks[: at + 1], KNOWN)
    assert not is_hopeless(looks[:at], KNOWN)


@pytest.mark.slow
def test_it_is_the_same_again(corpus: Corpus, tested: RangeTest) -> None:
    steps: list[tuple[int, int]] = []

    def stop_soon() -> bool:
        return len(steps) >= 60

    with pytest.raises(Stopped):
        range_test(TINY, corpus, steps=FEWEST_STEPS, should_stop=stop_soon, progress=lambda *done: steps.append(done))
    assert steps[-1] == (60, FEWEST_STEPS)
    again = range_test(TINY, corpus, steps=FEWEST_STEPS)
    assert replace(again, seconds=0.0, sentences=()) == replace(tested, seconds=0.0, sentences=())


def test_its_picture_is_a_png(tested: RangeTest, tmp_path: Path) -> None:
    write_picture(tested, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")
    nothing = replace(
        tested, looks=tested.looks[:1], edges=Edges(None, None, None), low=None, high=None, suggested=None
    )
    write_picture(nothing, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"low": 0.0}, "rates from 0 to 1"),
        ({"low": 2.0}, "rates from 2 to 1"),
        ({"steps": FEWEST_STEPS - 1}, f"steps {FEWEST_STEPS - 1}: a ramp of fewer than {FEWEST_STEPS}"),
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused(corpus: Corpus, values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        range_test(TINY, corpus, **values)  # type: ignore[arg-type]
