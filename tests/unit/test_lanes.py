"""The diagnosis on recorded runs of known truth: every dead one is named rightly, no live one is called dead.

benchmarks/lanes.py trained them; docs/explanation/lanes.md has the table.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from model.corpus.synthetic import GeneratedConfig, generate
from model.diagnosis import run_findings
from model.floors import Floors
from model.types import EpochReport

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lanes", BENCHMARKS / "lanes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lanes"] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


LANES = script()
FOLDER = BENCHMARKS / "lanes"
RUNS = [(lane, seed) for lane in LANES.LANES for seed in range(LANES.SEEDS)]
BY_CHECK = {"nothing_varies", "not_normalised", "infeasible_targets"}
"""Named by the check, before the first step: tests/unit/test_check.py has a corpus for each."""


def findings(lane: object, seed: int) -> list[dict[str, str]]:
    """Code to severity of what is found after each epoch, as if the later ones were not known."""
    known = json.loads((FOLDER / "floors.json").read_text(encoding="utf-8"))[lane.name]  # type: ignore[attr-defined]
    floor = Floors(**{key: math.nan if value is None else value for key, value in known.items()})
    lines = LANES.file_of(FOLDER, lane, seed).read_text(encoding="utf-8").splitlines()
    reports = [EpochReport(**json.loads(line)) for line in lines]
    config = LANES.config_of(lane, seed)
    found = [run_findings(reports[: n + 1], config, floor, dev_sequences=LANES.DEV) for n in range(len(reports))]
    return [{finding.code: finding.severity for finding in each} for each in found]


@pytest.mark.parametrize(("lane", "seed"), [r for r in RUNS if r[0].alive], ids=str)
def test_no_live_run_is_called_dead(lane: object, seed: int) -> None:
    for epoch, found in enumerate(findings(lane, seed), start=1):
        assert "fatal" not in found.values(), f"epoch {epoch}: {found}"


@pytest.mark.parametrize(("lane", "seed"), [r for r in RUNS if r[0].says and r[0].says not in BY_CHECK], ids=str)
def test_every_faulty_run_is_named(lane: object, seed: int) -> None:
    expected = lane.says  # type: ignore[attr-defined]
    epochs = [n for n, found in enumerate(findings(lane, seed), start=1) if expected in found]
    assert epochs, expected
    assert epochs[0] <= 14


@pytest.mark.parametrize(("lane", "seed"), [r for r in RUNS if r[0].name.startswith("healthy")], ids=str)
def test_a_healthy_run_is_not_warned_of_before_it_has_learned(lane: object, seed: int) -> None:
    for epoch, found in enumerate(findings(lane, seed)[:12], start=1):
        assert set(found.values()) <= {"info"}, f"epoch {epoch}: {found}"


FRESH = {"healthy 1e-3": 8, "zero features": 3, "shuffled labels": 16, "time collapsed": 11, "eps 1e-3": 3}
"""Lanes to train again, and for how many epochs: those whose truth shows while training, on a seed never recorded."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FRESH)
def test_a_lane_trained_today_is_judged_as_the_recorded_ones(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.getbasetemp() / "lanes"
    monkeypatch.setattr(LANES, "HOME", home)
    base = generate(GeneratedConfig(train=240, dev=LANES.DEV), home)
    (lane,) = [lane for lane in LANES.LANES if lane.name == name]
    reports: list[EpochReport] = []
    codes: dict[str, str] = {}
    floor = LANES.floors_of(lane, base)
    for report in LANES.train_lane(lane, 11, base):
        reports.append(report)
        found = run_findings(reports, LANES.config_of(lane, 11), floor, dev_sequences=LANES.DEV)
        codes |= {finding.code: finding.severity for finding in found}
        if len(reports) == FRESH[name]:
            break
    fatal = {code for code, severity in codes.items() if severity == "fatal"}
    if lane.alive:
        assert not fatal
        assert not lane.says or lane.says in codes
    else:
        assert fatal == {"input_not_used" if name == "zero features" else lane.says}
