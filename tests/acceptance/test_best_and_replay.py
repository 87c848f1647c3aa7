"""`sweeps best` and `sweeps replay`, as a person gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.conftest import Finished

Tried = Callable[..., tuple[int, str, str]]


def test_the_best_trial_and_its_folder(finished: Finished, tmp_path: Path, tried: Tried) -> None:
    best = finished.command.result()["best"]
    code, out, _ = tried("best", "tiny", "--home", finished.home)
    assert code == 0
    assert f"dev WER {best['wer']:.1%}" in out
    assert best["command"] in out
    code, out, _ = tried("best", "tiny", "--home", finished.home, "--export", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, found["number"], found["folder"]) == (0, best["number"], str(tmp_path / "out"))
    assert set(found["files"]) == {file.name for file in (tmp_path / "out").iterdir()}
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert finished.commit[:40] in (tmp_path / "out" / "environment.txt").read_text(encoding="utf-8")
    assert "python -m model generate CORPUS --train 24" in readme
    code, _, err = tried("best", "tiny", "--home", finished.home, "--export", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds something already; name another folder, or give --force as well" in err


def test_a_trial_of_a_real_sweep_is_replayed(finished: Finished, tmp_path: Path, tried: Tried) -> None:
    home = finished.copy(tmp_path)
    code, out, err = tried("replay", "tiny/fixed", "--home", home, "--json")
    found = json.loads(out)
    assert (code, found["reproduced"], found["check"], found["machines"]) == (0, True, "bitwise", [])
    assert "epoch 2" in err
    code, out, _ = tried("replay", "tiny/2", "--epochs", "1", "--home", home)
    assert (code, out) == (0, "Reproduced: every metric of 1 epoch is the same bit for bit.\n")
    code, _, err = tried("replay", "tiny", "--home", home)
    assert (code, err) == (2, "error: replay tiny: name a trial, SWEEP/TRIAL; `sweeps trials tiny` lists them\n")
    code, out, _ = tried("show", "tiny/2", "--events", "--home", home)
    assert "replayed: Reproduced" in out
