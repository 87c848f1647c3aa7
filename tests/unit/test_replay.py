"""Replays of sweeps over recorded curves: what they count, on tables small enough to count by hand."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.floors import Floors
from model.types import TrainingConfig
from tests.curves import CONSTANT_WER, run

ROOT = Path(__file__).parents[2]
PRUNING = ROOT / "benchmarks" / "pruning"
sys.path.insert(0, str(PRUNING))

import measures  # noqa: E402
import policies  # noqa: E402
import report  # noqa: E402
import sweep as replays  # noqa: E402
import tables  # noqa: E402

FLOORS = Floors(CONSTANT_WER, "", 4.0, 4.0, 20.0)
EPOCHS = 12


def recorded(number: int, best: float | None, takeoff: int = 4, lane: str = "") -> tables.Recorded:
    """A run that ends at `best`; None: it never takes off."""
    rate = 1e-3 if best is not None else 1e-5
    curve = run(EPOCHS, rate, takeoff=takeoff if best is not None else None, falls_to=best or 0.0)
    config = TrainingConfig(epochs=EPOCHS, learning_rate=rate, patience=EPOCHS)
    return tables.Recorded("table", f"{number:03}", lane, "", (), config, FLOORS, 110, tuple(curve))


LEARNING = [recorded(n, best) for n, best in enumerate((0.2, 0.3, 0.4))]
DEAD = [recorded(n, None) for n in range(3, 6)]


def replayed(make: replays.MakePolicy, runs: Sequence[tables.Recorded], workers: int = 1) -> replays.Replayed:
    return replays.replay(make, iter(runs), 0, len(runs), workers)


def stop_at(epoch: int, verdict: str | None = None) -> replays.MakePolicy:
    def make(_: int) -> replays.Policy:
        return lambda trial, others: replays.Stop("test", verdict) if trial.epochs == epoch else None  # type: ignore[arg-type]

    return make


def test_without_pruning_nothing_is_saved_and_nothing_lost() -> None:
    sweep = replayed(policies.never, LEARNING + DEAD)
    assert (sweep.epochs, sweep.epochs_without) == (72, 72)
    assert sweep.regret == 0
    found = measures.measure([sweep], [], verdicts=True)
    assert (found["epochs_fraction"], found["regret_points"], found["verdict_error_rate"]) == (1, 0, 0)
    assert found["epochs_to_verdict"] is None


def test_what_is_stopped_costs_its_epochs_and_its_regret() -> None:
    sweep = replayed(stop_at(6), LEARNING)
    assert sweep.epochs == 18
    assert sweep.regret == pytest.approx(LEARNING[0].wers[5] - LEARNING[0].best)
    assert measures.winner_killed(sweep) == 1


def test_a_winner_is_killed_only_if_it_would_have_won_by_more_than_half_a_point() -> None:
    near = [recorded(0, 0.2), recorded(1, 0.204)]
    first_stopped: replays.MakePolicy = lambda _: lambda t, o: replays.Stop("x", None) if t.run is near[0] else None  # noqa: E731
    assert measures.winner_killed(replayed(first_stopped, near)) == 0
    far = [near[0], recorded(1, 0.3)]
    assert measures.winner_killed(replayed(first_stopped, far)) == 1


def test_verdict_errors_are_counted_among_runs_that_learned_and_by_run() -> None:
    sweeps = [replayed(stop_at(2, "never_learned"), LEARNING + DEAD)] * 5
    found = measures.measure(sweeps, [], verdicts=True)
    assert found["verdict_error_rate"] == 1
    assert found["runs_learned_called_dead"] == found["runs_learned"] == 3
    # Three runs, however often they were replayed: the exact interval of 3 in 3 begins at 29 %.
    assert found["verdict_error_rate_low"] == pytest.approx(0.2924, abs=1e-3)


def test_too_slow_is_no_verdict_of_death() -> None:
    found = measures.measure([replayed(stop_at(2, "too_slow"), LEARNING)], [], verdicts=True)
    assert found["verdict_error_rate"] == 0
    assert found["learners_stopped_in_plateau_rate"] == 1


def test_the_dead_are_counted_by_whether_a_sibling_had_taken_off_before() -> None:
    found = measures.measure([replayed(stop_at(4), [DEAD[0], *LEARNING, *DEAD[1:]])], [], verdicts=False)
    assert found["dead_stopped_rate"] == 1, "a third of 12 epochs is 4"
    assert found["dead_stopped_before_a_takeoff_rate"] == 1
    late = measures.measure([replayed(stop_at(5), [*LEARNING, *DEAD])], [], verdicts=False)
    assert late["dead_stopped_rate"] == 0
    assert late["dead_stopped_before_a_takeoff_rate"] is None
    assert late["verdict_error_rate"] is None, "a policy that gives no verdict has no errors of verdict"


def test_the_oracle_pays_for_records_alone() -> None:
    sweep = replayed(policies.oracle, [LEARNING[1], LEARNING[2], LEARNING[0], *DEAD])
    assert sweep.regret == 0
    assert [t.epochs for t in sweep.trials] == [12, 1, 12, 1, 1, 1]


def test_workers_share_the_epochs_and_lose_none() -> None:
    assert replayed(policies.never, LEARNING + DEAD, workers=4).epochs == 72


def test_the_same_seed_draws_the_same_sweep_for_every_policy() -> None:
    runs = LEARNING + DEAD
    orders = [[r.name for r in replays.in_random_order(runs, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_tpe_is_answered_by_the_nearest_run_and_never_twice_by_the_same() -> None:
    runs = [
        tables.Recorded(
            "t", f"{n:03}", "", "", (), TrainingConfig(learning_rate=10 ** (-4 + n / 10), epochs=EPOCHS,
            warmup_start_factor=0.1 + n / 40, dropout=n / 60), FLOORS, 110,
            tuple(run(EPOCHS, 1e-3, takeoff=3, falls_to=0.2 + abs(n - 10) / 30)),
        )
        for n in range(20)
    ]  # fmt: skip
    sweep = replays.replay(policies.never, replays.by_tpe(runs, 3), 3, 16)
    names = [t.run.name for t in sweep.trials]
    assert len(set(names)) == 16
    assert [t.run.name for t in replays.replay(policies.never, replays.by_tpe(runs, 3), 3, 16).trials] == names


def test_the_interval_of_a_mean_is_what_other_runs_would_give() -> None:
    here = [replayed(policies.never, LEARNING)]
    with_dead, without = (replayed(policies.never, runs) for runs in (DEAD, LEARNING))
    dead = {True: 1.0, False: 0.0}
    steady, moved = (
        measures.mean_over_sweeps(here, groups, lambda s: dead[s.trials[0].run in DEAD])
        for groups in ([[without]] * 20, [[with_dead], [without]] * 10)
    )
    assert (steady.low, steady.value, steady.high) == (0, 0, 0)
    assert moved.value == 0
    assert moved.high == pytest.approx(1.96 * math.sqrt(0.25 * 20 / 19), abs=1e-3)


def test_a_frontier_leaves_out_what_another_beats_on_both() -> None:
    assert report.frontier([(50, 1), (40, 2), (60, 1.5), (30, 5), (55, 0.5)]) == [(30, 5), (40, 2), (50, 1), (55, 0.5)]


def test_a_file_of_curves_reads_back_as_it_was_recorded(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import curves

    reports = run(3, 1e-3, takeoff=2)
    columns = curves.as_columns(reports)
    about = {"table": "t", "lane": "", "says": "", "dev_sequences": 110, "steps_in_epoch": 60,
             "config": {"epochs": 3}, "floors": {"constant_wer": 0.9, "constant_sentence": "", "constant_loss": 4.0,
             "dev_constant_loss": 4.0, "uniform_loss": None}}  # fmt: skip
    file = tmp_path / "t" / "000.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**about, "curve": columns}), encoding="utf-8")
    (found,) = tables.read_tables(tmp_path)["t"]
    assert [r.metrics for r in found.reports] == [pytest.approx(r.metrics) for r in reports]
    assert [r.lr_time for r in found.reports] == pytest.approx([r.lr_time for r in reports])
    assert math.isnan(found.floors.uniform_loss)


def test_first_runs_of_a_table_cover_the_space_and_never_change() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import curves

    for table in curves.TABLES:
        configs = [curves.sampled(table, n) for n in range(20)]
        rates = sorted(math.log10(c.learning_rate) for c in configs)
        assert rates[0] < -4.5
        assert rates[-1] > -2.2
        assert max(b - a for a, b in itertools.pairwise(rates)) < 0.7
        assert {c.schedule for c in configs} == {"constant", "plateau", "cosine_restarts", "step"}
        assert curves.sampled(table, 7) == configs[7]


def test_an_unknown_table_or_policy_is_told_in_one_line(tmp_path: Path) -> None:
    for words in (["--tables", "nowhere"], ["--families", "nobody"]):
        command = [sys.executable, str(PRUNING / "replay.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "there " in done.stderr
