"""A `model.py` of one's own, before ours: said in a line, and nothing said where all is well."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.shadows import ROOT, shadows


def test_what_is_imported_here_is_ours() -> None:
    assert shadows() == {}


@pytest.mark.parametrize("place", ["model.py", "model/__init__.py", "tracking.py"])
def test_a_module_or_package_of_that_name_is_found(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert shadows([str(tmp_path)]) == {Path(place).parts[0].removesuffix(".py"): file}


def test_what_python_does_not_import_is_no_shadow(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()  # without __init__.py: a real package comes before it
    (tmp_path / "model.pt").touch()
    (tmp_path / "models.py").touch()
    assert shadows([str(tmp_path)]) == {}
    assert shadows([str(ROOT)]) == {}, "our own folder as the working directory"


def sweeps(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command where PYTHONPATH names that folder."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    code = "from sweeps.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_a_command_that_would_import_something_else_says_so_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("weights = None\n", encoding="utf-8")
    ended = sweeps(tmp_path, "doctor")
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: Python imports {tmp_path / 'model.py'} as 'model', which is a package of ctc-sweeps: "
        "rename it, or take its folder out of PYTHONPATH\n"
    )


def test_a_fault_of_another_kind_is_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("", encoding="utf-8")
    ended = sweeps(tmp_path, "doctor")
    assert "Traceback" in ended.stderr
    assert "error: Python imports" not in ended.stderr
