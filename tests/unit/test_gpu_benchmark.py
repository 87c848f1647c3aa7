"""benchmarks/gpu.py without a GPU: what it says, what it concludes, and that no CPU's number passes for a GPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import bench  # noqa: E402
import gpu  # noqa: E402
import rows  # noqa: E402

from model.types import TrainingConfig  # noqa: E402

RATES = {gpu.PLAIN: 10.0, gpu.HOST: 15.0, gpu.DEVICE: 20.0, gpu.BF16: 95.0}
CONFIG = TrainingConfig(epochs=24)


def answering(losses: list[float], per_worker: float = 11.0) -> Callable[..., list[Any]]:
    """Processes that need no time: `count` workers on one device do `per_worker` trials an hour each."""

    def in_processes(count: int, call: Callable[..., Any], task: gpu.Task, *given: Any) -> list[Any]:
        if call is gpu.first_losses:
            return [[*losses, 12.0]]
        if call is gpu.bounds:
            return [(0.125, 0.010, 0.020)]
        assert call is gpu.train
        rate = RATES.get(task.means, per_worker * count)
        seconds = 3600 * count * task.epochs / task.config.epochs / rate
        return [gpu.Trained(100.0 + i, 100.0 + seconds, 2 << 30) for i in range(count)]

    return in_processes


def found(monkeypatch: pytest.MonkeyPatch, losses: list[float], per_worker: float = 11.0) -> dict[str, rows.Row]:
    monkeypatch.setattr(gpu, "in_processes", answering(losses, per_worker))
    made = gpu.measured(Path("nowhere"), CONFIG, rounds=2, epochs=3, steps=4)
    assert [each.name for each in made] == list(gpu.NAMES)
    return {each.name: each for each in made}


def test_each_means_is_beside_the_plain_loop_and_the_best_is_held_to_the_aim(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = found(monkeypatch, [12.5, 12.5001, 12.4999])
    assert {name: each.ratio for name, each in seen.items() if each.unit == "trials/h"} == pytest.approx(
        {
            gpu.PLAIN.name: None, gpu.HOST.name: 1.5, gpu.DEVICE.name: 2.0, gpu.BF16.name: 9.5,
            "2 workers": 2.2, "4 workers": 4.4, "8 workers": 8.8, gpu.BEST: 8.8,
        }
    )  # fmt: skip
    best = seen[gpu.BEST]
    assert (best.note, best.aim, best.met) == ("8 workers", "at least 8", "met"), "bf16 is another precision"
    assert [each.name for each in seen.values() if each.met] == [gpu.BEST]
    assert "12.500000, 12.500100, 12.499900" in seen[gpu.PLAIN.name].note
    assert "2.0 GiB of the device in use" in seen["8 workers"].note
    assert found(monkeypatch, [12.5] * 3, per_worker=9.0)[gpu.BEST].met == "missed"


def test_it_measures_what_means_that_are_not_built_could_give(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = found(monkeypatch, [12.5] * 3)
    busy, fused = seen[gpu.BUSY], seen[gpu.FUSED]
    assert (busy.value, busy.note) == (12.5, "CUDA graphs could give 8.0 times at most")
    assert (fused.value, fused.note) == (4.0, "a step takes 10.0 ms, one on 8 batches at once 20.0 ms")


@pytest.mark.parametrize("losses", [[12.5, 12.5, 12.52], [12.5, float("nan"), 12.5]])
def test_losses_that_differ_end_it(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    with pytest.raises(SystemExit, match=r"the losses of the first epoch differ: 12\.5"):
        found(monkeypatch, losses)


def test_rounding_that_has_grown_is_no_difference_where_float64_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    real = answering([12.5, 12.52, 12.5])

    def in_processes(count: int, call: Callable[..., Any], task: gpu.Task, *given: Any) -> list[Any]:
        return [[12.5, 12.5, 12.5, 12.0]] if given == (torch.float64,) else real(count, call, task, *given)

    monkeypatch.setattr(gpu, "in_processes", in_processes)
    made = gpu.measured(Path("nowhere"), CONFIG, rounds=1, epochs=1, steps=4)
    assert "torch.float64" in made[0].note


def test_without_a_gpu_every_row_says_why_it_was_not_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json"])
    gpu.main()
    said = [rows.Row(**each) for each in json.loads(capsys.readouterr().out)]
    assert [each.name for each in said] == list(gpu.NAMES)
    assert {(each.not_run, each.value, each.met) for each in said} == {("torch finds no CUDA device", None, "")}


def test_no_number_of_a_cpu_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = bench.BENCHMARKS["gpu"]
    assert "--device" not in benchmark.command, "what is written is of a GPU, or not run"
    assert "--device cpu" in benchmark.quick
    best = found(monkeypatch, [12.5] * 3)[gpu.BEST]
    told = gpu.rehearsal(best)
    assert (told.name, told.aim, told.met) == (f"rehearsal on a CPU: {gpu.BEST}", "", "")


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = [rows.Row(**each) for each in json.loads(done.stdout)]
    assert [each.name for each in said] == [f"rehearsal on a CPU: {name}" for name in gpu.NAMES]
    assert all(each.value and not each.not_run and not each.met for each in said)
