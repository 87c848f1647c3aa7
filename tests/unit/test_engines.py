"""What is said of an engine that cannot be had, without Ray."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeps.engines import EngineName, Resources, opened
from sweeps.errors import SweepError
from sweeps.processes import this_runner
from sweeps.runner import Workers
from sweeps.settings import Home
from sweeps.worker import Job


def open_engine(name: EngineName, resources: Resources, folder: Path) -> None:
    home = Home(folder)
    job = Job("", home.database_url, (), home, home.checkpoints, home.workers)
    with opened(name, job, 1, this_runner(), resources) as engine:
        assert isinstance(engine, Workers)


def test_the_local_engine_takes_no_options_of_a_cluster(tmp_path: Path) -> None:
    open_engine("local", Resources(), tmp_path)
    for resources in (Resources(address="auto"), Resources(gpus=0.5), Resources(cpus=2)):
        with pytest.raises(SweepError, match="are for --engine ray: add it, or leave them out"):
            open_engine("local", resources, tmp_path)


@pytest.mark.parametrize(("cpus", "gpus"), [(1, 1.5), (2.5, 0), (-1, 0), (1, float("inf")), (float("nan"), 0)])
def test_resources_are_fractions_of_one_or_whole(cpus: float, gpus: float) -> None:
    with pytest.raises(SweepError, match="fractions of one, or whole ones"):
        Resources("auto", cpus, gpus)


@pytest.mark.parametrize("amount", [0, 0.25, 1, 2])
def test_resources_that_ray_gives_out(amount: float) -> None:
    assert Resources("auto", amount, amount).gpus == amount


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sweeps.engines.ray", raising=False)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "put back afterwards")
    with pytest.raises(SweepError, match=r"^--engine ray: Ray is not installed: pip install 'ctc-sweeps\[ray\]'$"):
        open_engine("ray", Resources("auto"), tmp_path)
