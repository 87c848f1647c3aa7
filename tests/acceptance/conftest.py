from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.commands import Command, run, write_spec


@dataclass(frozen=True)
class Finished:
    """A sweep that has run to its end. Tests read it; one that goes on with it takes a `copy`."""

    command: Command
    home: Path
    folder: Path
    """The working directory: a git checkout where there is git."""
    spec: Path
    commit: str

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.home, to / self.home.name))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The one whole run that the default suite affords: two workers, four trials, a home with a space in its path."""
    top = tmp_path_factory.mktemp("finished")
    folder = top / "work"
    folder.mkdir()
    commit = ""
    if shutil.which("git"):
        who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.invalid")
        for words in (("init", "-q"), (*who, "commit", "-q", "--allow-empty", "-m", "empty")):
            subprocess.run(["git", *words], cwd=folder, check=True)
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
        commit = found.stdout.strip()
    spec = write_spec(folder)
    home = top / "my home"
    return Finished(run(home, folder, "run", spec, "--json"), home, folder, spec, commit)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`sweeps WORDS` inside this process, where no process of its own is needed: exit code, stdout, stderr."""
    from sweeps import cli

    for name in ("SWEEPS_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sweeps", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int) or code is None
        return code or 0, out, err

    return call
