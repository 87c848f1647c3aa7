"""What a sweep says of its parameters: what is there is found, and nothing is claimed where nothing is."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from model.types import EpochReport
from sweeps.importance import importance
from sweeps.learned import FEWEST_TRIALS, LEVEL, Lesson, groups_p, holm, learned, parabola_p, partial_spearman
from sweeps.records import TrialRow
from sweeps.spec import SweepSpec
from sweeps.states import TrialState
from sweeps.study import suggest
from tests.curves import CONSTANT_WER
from tests.rows import trial_row

SPEC = SweepSpec.model_validate({"name": "s", "corpus": "x"})
NAMES = ["learning_rate", "warmup_start_factor", "dropout", "patience"]
Curve = list[EpochReport]
Outcome = Callable[[dict[str, Any], random.Random], float]
"""The best WER of a trial with these values."""


def curve(*wers: float) -> Curve:
    return [EpochReport(n, 10 * n, {"dev/wer": wer, "dev/loss": 4.0}, 10) for n, wer in enumerate(wers, start=1)]


def drawn(random: random.Random) -> dict[str, Any]:
    return {
        "learning_rate": 10 ** random.uniform(-5, -1.7),
        "warmup_start_factor": random.uniform(0.05, 1),
        "dropout": random.uniform(0, 0.5),
        "patience": random.randint(5, 12),
    }


def sweep(outcome: Outcome, trials: int, seed: int = 0, spec: SweepSpec = SPEC) -> dict[str, Lesson]:
    """What is learned from so many trials at random places, which patience could have ended but never did."""
    draw = random.Random(seed)
    rows, curves = [], {}
    for number in range(trials):
        values = drawn(draw)
        wer = outcome(values, draw)
        rows.append(trial_row(number, TrialState.COMPLETE, hyperparameters=values, best_wer=wer, rule="epochs"))
        curves[rows[-1].id] = curve(wer) * 13
    return by_name(learned(rows, curves, spec, CONSTANT_WER))


def by_name(lessons: list[Lesson]) -> dict[str, Lesson]:
    return {lesson.parameter: lesson for lesson in lessons}


def tens(values: dict[str, Any]) -> float:
    return math.log10(values["learning_rate"])


# what is there


def test_a_learning_rate_that_matters() -> None:
    """Dead below 3e-4, best at 2.5e-3, diverging nowhere."""

    def outcome(values: dict[str, Any], draw: random.Random) -> float:
        if tens(values) < -3.5:
            return draw.uniform(0.9, 1.9)
        return 0.2 + 0.25 * (tens(values) + 2.6) ** 2 + draw.uniform(0, 0.05)

    lesson = sweep(outcome, 40)["learning_rate"]
    assert lesson.says == "effect"
    numbers = lesson.numbers
    assert 1e-3 < numbers["best_low"] < 2.5e-3 < numbers["best_high"] < 7e-3
    assert numbers["never_below"] < 10**-3.5 < numbers["took_off_low"]
    assert numbers["took_off_low"] < numbers["best_low"] < numbers["best_high"] < numbers["took_off_high"]
    assert numbers["p"] < LEVEL
    some = (
        f"{lesson.trials} of 40 trials took off, with {numbers['took_off_low']:.1e} to {numbers['took_off_high']:.1e}"
    )
    best = f"The best third had {numbers['best_low']:.1e} to {numbers['best_high']:.1e} ({lesson.trials} trials; p = "
    assert lesson.sentence.startswith(f"{some}; {40 - lesson.trials} with ")
    assert f"to {numbers['never_below']:.1e} did not. {best}" in lesson.sentence


@pytest.mark.parametrize(("name", "sign"), [("dropout", 1), ("dropout", -1), ("warmup_start_factor", -1)])
def test_a_parameter_that_matters_though_the_learning_rate_matters_more(name: str, sign: int) -> None:
    def outcome(values: dict[str, Any], draw: random.Random) -> float:
        hidden = 0.12 * (tens(values) + 2.6) ** 2
        span = 0.5 if name == "dropout" else 0.95
        return min(0.86, 0.3 + hidden + sign * 0.1 * values[name] / span + draw.gauss(0, 0.02))

    found, claimed = 0, 0
    for seed in range(10):
        lessons = sweep(outcome, 32, seed)
        claimed += sum(lessons[other].says == "effect" for other in NAMES if other not in (name, "learning_rate"))
        lesson = lessons[name]
        if lesson.says == "effect":
            found += 1
            assert lesson.numbers["difference"] * sign == pytest.approx(0.05, abs=0.03), "half of the whole range"
            assert lesson.numbers["correlation"] * sign > 0.4
            assert lesson.sentence.startswith("lower is better: " if sign > 0 else "higher is better: ")
            assert f"{100 * abs(lesson.numbers['difference']):.1f} WER points" in lesson.sentence
    assert found >= 8
    assert claimed <= 2, "of twenty about others"


def test_what_goes_with_a_good_learning_rate_is_not_taken_for_good() -> None:
    """A sampler that has found the rate tries it at a low dropout; the trials before had any."""
    said = []
    for seed in range(20):
        rows, curves = gathered(seed)
        dropouts, wers = ([r.hyperparameters["dropout"] for r in rows], [r.best_wer for r in rows])  # type: ignore[index]
        naive = stats.spearmanr(dropouts, wers).pvalue < LEVEL / len(NAMES)
        lessons = by_name(learned(rows, curves, SPEC, CONSTANT_WER))
        assert lessons["learning_rate"].says == "effect"
        said.append((naive, lessons["dropout"].says == "effect"))
    assert sum(naive for naive, _ in said) >= 5, "it would be claimed often"
    assert sum(claimed for _, claimed in said) <= 1


def gathered(seed: int) -> tuple[list[TrialRow], dict[int, Curve]]:
    rows, curves, draw = [], {}, random.Random(seed)
    for number in range(24):
        late = number >= 12
        values = drawn(draw) | {"learning_rate": 10 ** (draw.uniform(-2.9, -2.3) if late else draw.uniform(-4.5, -1.7))}
        values["dropout"] = draw.uniform(0, 0.15) if late else draw.uniform(0, 0.5)
        wer = min(0.86, 0.2 + 0.25 * (tens(values) + 2.6) ** 2 + abs(draw.gauss(0, 0.01)))
        rows.append(trial_row(number, TrialState.COMPLETE, hyperparameters=values, best_wer=wer, rule="epochs"))
        curves[rows[-1].id] = curve(wer) * 13
    return rows, curves


# what is not there


def test_in_noise_hardly_anything_is_claimed() -> None:
    def noise(_: dict[str, Any], draw: random.Random) -> float:
        return draw.uniform(0.2, 0.8)

    sizes = [FEWEST_TRIALS, 12, 16, 24]
    claims = [
        any(lesson.says == "effect" for lesson in sweep(noise, sizes[seed % 4], seed).values()) for seed in range(200)
    ]
    assert 0 < sum(claims) <= 0.1 * len(claims), "none at all would mean that the tests see nothing"


@pytest.mark.slow
def test_nor_where_the_sampler_follows_the_noise() -> None:
    """Its trials gather about the luckiest ones."""
    claims = 0
    for seed in range(100):
        spec, draw = SPEC.model_copy(update={"seed": seed}), random.Random(seed)
        rows: list[TrialRow] = []
        curves: dict[int, Curve] = {}
        for number in range(24):
            values, wer = suggest(spec, number, rows, curves, CONSTANT_WER), draw.uniform(0.2, 0.8)
            rows.append(trial_row(number, TrialState.COMPLETE, hyperparameters=values, verdict="learned", best_wer=wer))
            curves[rows[-1].id] = curve(wer) * 13
        claims += any(lesson.says == "effect" for lesson in learned(rows, curves, spec, CONSTANT_WER))
    assert claims <= 10


@pytest.mark.parametrize("took_off", [0, 1, FEWEST_TRIALS - 1])
def test_of_few_trials_nothing_is_said(took_off: int) -> None:
    left = iter(range(took_off))
    lessons = sweep(lambda *_: 0.3 if next(left, None) is not None else 1.0, 20)
    assert {lesson.says for lesson in lessons.values()} == {"too_few"}
    assert {lesson.trials for lesson in lessons.values()} == {took_off}
    assert lessons["dropout"].sentence == f"too few trials ({took_off}) to say."


def test_a_sweep_that_has_just_begun() -> None:
    for rows in ([], [trial_row(0)], [trial_row(0, TrialState.FAILED)]):
        lessons = learned(rows, {100: curve(0.5)}, SPEC, CONSTANT_WER)
        assert [lesson.parameter for lesson in lessons] == NAMES
        assert {lesson.sentence for lesson in lessons} == {"too few trials are over (0) to say."}


def test_all_alike_is_no_effect() -> None:
    lessons = sweep(lambda *_: 0.5, 20)
    assert {lesson.says for lesson in lessons.values()} == {"no_clear_effect"}


def test_only_what_was_searched_is_told() -> None:
    fixed = SweepSpec.model_validate({"name": "s", "corpus": "x", "space": {"learning_rate": 1e-3, "dropout": 0.1}})
    assert [lesson.parameter for lesson in learned([], {}, fixed, CONSTANT_WER)] == ["warmup_start_factor", "patience"]
    rows = [
        trial_row(n, TrialState.COMPLETE, best_wer=0.3 + 0.02 * n,
                  hyperparameters={"learning_rate": 1e-3, "warmup_start_factor": 0.1 + 0.05 * n, "dropout": 0.1,
                                   "patience": 5})
        for n in range(12)
    ]  # fmt: skip
    lessons = by_name(learned(rows, {r.id: curve(*[r.best_wer or 0] * 9) for r in rows}, fixed, CONSTANT_WER))
    assert lessons["warmup_start_factor"].says == "effect", "no learning rate varies that could be taken out"


def test_trials_under_settings_of_their_own_and_faults_are_left_out() -> None:
    rows = [
        trial_row(0, TrialState.COMPLETE, overrides={"schedule": "constant"}, best_wer=0.3),
        trial_row(1, TrialState.FAILED, best_wer=0.3),
        trial_row(2, TrialState.PRUNED, best_wer=1.0),
    ]
    lesson = learned(rows, {row.id: curve(row.best_wer or 0) for row in rows}, SPEC, CONSTANT_WER)[0]
    assert lesson.sentence == "0 of 1 trial took off; 1 with 1.0e-03 did not."


def test_where_it_took_off_and_where_it_never_did() -> None:
    def row(number: int, rate: float, wer: float) -> TrialRow:
        values = {"learning_rate": rate, "warmup_start_factor": 1.0, "dropout": 0.1, "patience": 5}
        verdict = "diverged" if rate == 1e-2 else "learned" if wer < 0.8 else "never_learned"
        return trial_row(number, TrialState.COMPLETE, hyperparameters=values, best_wer=wer, verdict=verdict)

    placed = [(1e-5, 1.0), (1e-4, 1.0), (3e-4, 0.5), (1e-3, 1.0), (2e-3, 0.4), (1e-2, 1.0)]
    rows = [row(n, rate, wer) for n, (rate, wer) in enumerate(placed)]
    curves = {r.id: curve(r.best_wer or 0) for r in rows}
    lesson = learned(rows, curves, SPEC, CONSTANT_WER)[0]
    assert lesson.sentence == (
        "2 of 6 trials took off, with 3.0e-04 to 2.0e-03; 2 with 1.0e-05 to 1.0e-04 and 1 with 1.0e-02 and 1 in "
        "between did not (1 of them diverged). Too few trials (2) to say where WER is best."
    )
    assert lesson.numbers == {
        "took_off_low": 3e-4, "took_off_high": 2e-3, "never_below": 1e-4, "never_above": 1e-2,
    }  # fmt: skip


# trials that a rule stopped


def stopped(number: int, rate: float, wers: list[float], predicted: float | None) -> tuple[TrialRow, Curve]:
    values = {"learning_rate": rate, "warmup_start_factor": 1.0, "dropout": 0.04 * number, "patience": 5}
    evidence = {} if predicted is None else {"predicted_wer": predicted}
    row = trial_row(number, TrialState.PRUNED, hyperparameters=values, best_wer=min(wers), rule="too_slow",
                    verdict="too_slow", evidence=evidence)  # fmt: skip
    return row, curve(*wers)


def all_lessons(trials: list[tuple[TrialRow, Curve]]) -> dict[str, Lesson]:
    rows = [row for row, _ in trials]
    return by_name(learned(rows, {row.id: reports for row, reports in trials}, SPEC, CONSTANT_WER))


def test_a_stopped_trial_counts_with_the_wer_that_was_predicted() -> None:
    """All were stopped at one WER: what tells them apart is where they would have ended."""
    trials = [stopped(n, 1e-3 + 1e-5 * (7 * n % 12), [1.0, 0.8], 0.3 + 0.03 * n) for n in range(12)]
    lesson = all_lessons(trials)["dropout"]
    assert lesson.says == "effect"
    assert lesson.sentence.startswith("lower is better")
    assert "(12 trials, 12 of them stopped early; rank correlation" in lesson.sentence
    blind = [stopped(n, 1e-3 + 1e-5 * (7 * n % 12), [1.0, 0.8], None) for n in range(12)]
    assert all_lessons(blind)["dropout"].says == "no_clear_effect"


def test_a_trial_stopped_before_takeoff_is_not_said_to_be_dead() -> None:
    took_off = [stopped(n, 1e-3, [1.0, 0.8], 0.5) for n in range(3)]
    before = [stopped(3 + n, 1e-4, [1.0, 1.0], 0.7) for n in range(2)]
    hopeless = [stopped(5 + n, 5e-5, [1.0, 1.0], 0.91) for n in range(2)]
    lessons = all_lessons([*took_off, *before, *hopeless])
    assert lessons["learning_rate"].sentence == (
        "3 of 7 trials took off, with 1.0e-03; 4 with 5.0e-05 to 1.0e-04 were stopped before. Too few trials (5) to "
        "say where WER is best."
    )
    assert "never_below" not in lessons["learning_rate"].numbers
    assert lessons["dropout"].trials == 5, "not those that would not have come below the constant sentence"


# patience


def patient(number: int, patience: int, wers: list[float], rule: str = "epochs") -> tuple[TrialRow, Curve]:
    values = drawn(random.Random(number)) | {"patience": patience}
    row = trial_row(number, TrialState.COMPLETE, hyperparameters=values, best_wer=min(wers), rule=rule)
    return row, curve(*wers)


def lesson_of(trials: list[tuple[TrialRow, Curve]], spec: SweepSpec = SPEC) -> Lesson:
    rows = [row for row, _ in trials]
    return by_name(learned(rows, {row.id: reports for row, reports in trials}, spec, CONSTANT_WER))["patience"]


def test_patience_is_judged_by_trials_it_could_have_ended() -> None:
    late = [patient(n, 8, [1.0] * 20 + [0.5, 0.4, 0.35, 0.3]) for n in range(10)]  # took off 4 epochs before the end
    early = [patient(10 + n, 8, [0.5] * 24) for n in range(3)]
    ended = [patient(13, 5, [1.0, 0.6, 0.5, 0.6, 0.6, 0.45, *[0.6] * 5], "patience")]
    lesson = lesson_of([*late, *early, *ended])
    assert (lesson.says, lesson.trials) == ("too_few", 4)
    assert lesson.sentence == (
        "it ended 1 of 14 trials; too few trials (4) to say. The longest wait for a better WER was 3 epochs."
    )
    assert lesson.numbers == {"ended": 1, "longest_wait": 3}


def test_patience_counted_from_the_first_epoch() -> None:
    spec = SPEC.model_copy(update={"trainer": SPEC.trainer.with_values({"patience_starts": "epoch1"})})
    lesson = lesson_of([patient(0, 8, [1.0] * 20 + [0.5, 0.4])], spec)
    assert lesson.trials == 1
    assert lesson.numbers["longest_wait"] == 20, "the plateau counts"


# the tests themselves


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_correlation_is_scipys_where_there_is_nothing_to_take_out() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 15))
    found = stats.spearmanr(x, y)
    assert partial_spearman(x, y, np.ones((15, 1))) == pytest.approx((found.statistic, found.pvalue))


def test_a_parabola_and_no_line() -> None:
    x = np.linspace(-1, 1, 15)
    assert abs(stats.spearmanr(x, x**2).statistic) < 0.1
    assert parabola_p(x, x**2) < 1e-6
    assert parabola_p(x, np.ones(15)) == 1.0
    assert parabola_p(np.ones(15), x) == 1.0
    assert parabola_p(x[:3], x[:3]) == 1.0


def test_a_lesson_is_strict_json() -> None:
    lessons = sweep(lambda values, draw: 0.3 + values["dropout"] / 2 + draw.uniform(0, 0.05), 20)
    for lesson in lessons.values():
        assert json.loads(json.dumps(lesson.as_json(), allow_nan=False)) == lesson.as_json()
        assert all(type(value) in (int, float) for value in lesson.numbers.values())


# choices, and parameters that are not always there

CHOOSING = SweepSpec.model_validate(
    {
        "name": "s",
        "corpus": "x",
        "space": {
            "schedule": {"choices": ["plateau", "cosine_restarts", "step"]},
            "restart_epochs": {"low": 3, "high": 20, "when": {"schedule": "cosine_restarts"}},
        },
    }
)


def chosen(outcome: Outcome, trials: int, seed: int) -> tuple[dict[str, Lesson], dict[str, float]]:
    draw = random.Random(seed)
    rows, curves = [], {}
    for number in range(trials):
        values = drawn(draw) | {"schedule": draw.choice(["plateau", "cosine_restarts", "step"])}
        if values["schedule"] == "cosine_restarts":
            values["restart_epochs"] = draw.randint(3, 20)
        wer = outcome(values, draw)
        rows.append(trial_row(number, TrialState.COMPLETE, hyperparameters=values, best_wer=wer, rule="epochs"))
        curves[rows[-1].id] = curve(wer) * 13
    return by_name(learned(rows, curves, CHOOSING, CONSTANT_WER)), importance(rows, CHOOSING)


def test_a_choice_that_matters_and_the_parameter_that_comes_with_it() -> None:
    def outcome(values: dict[str, Any], draw: random.Random) -> float:
        worse = {"plateau": 0.1, "step": 0.2, "cosine_restarts": 0.0}[values["schedule"]]
        late = 0.1 * (20 - values.get("restart_epochs", 20)) / 17
        return min(0.86, 0.2 + 0.08 * (tens(values) + 2.6) ** 2 + worse + late + draw.gauss(0, 0.01))

    found = [chosen(outcome, 60, seed) for seed in range(5)]
    for lessons, shares in found:
        schedule = lessons["schedule"]
        assert schedule.says == "effect"
        assert schedule.sentence.startswith("cosine_restarts is best: ")
        assert " between its trials and those of step, at equal learning rate" in schedule.sentence
        assert schedule.numbers["difference"] == pytest.approx(0.15, abs=0.08)
        restarts = lessons["restart_epochs"]
        assert restarts.trials < 40
        assert "trials had it; " in restarts.sentence
        assert shares["schedule"] > shares["dropout"]
    assert sum(lessons["restart_epochs"].says == "effect" for lessons, _ in found) >= 3
    assert "higher is better" in " ".join(lessons["restart_epochs"].sentence for lessons, _ in found)


def test_nothing_is_claimed_of_a_choice_that_does_nothing() -> None:
    def outcome(values: dict[str, Any], draw: random.Random) -> float:
        return min(0.86, 0.2 + 0.08 * (tens(values) + 2.6) ** 2 + draw.gauss(0, 0.05))

    found = [chosen(outcome, 40, seed)[0] for seed in range(40)]
    assert sum(lessons["schedule"].says == "effect" for lessons in found) <= 3
    assert sum(lessons["restart_epochs"].says == "effect" for lessons in found) <= 3


def test_a_choice_of_which_one_value_was_tried_says_nothing() -> None:
    wers = np.linspace(0.2, 0.8, 12)
    given = np.ones((12, 1))
    assert groups_p(["plateau"] * 12, wers, given) == 1.0
    assert groups_p(["plateau", "step"] * 6, np.full(12, 0.5), given) == 1.0
    two = ["plateau"] * 6 + ["step"] * 6
    assert groups_p(two, wers, given) == pytest.approx(stats.f_oneway(np.arange(6), np.arange(6, 12)).pvalue)
