"""Where things lie: everything the product writes is under one home."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """The folders of one installation."""

    root: Path

    @property
    def database_url(self) -> str:
        return f"sqlite:///{(self.root / 'sweeps.db').as_posix()}"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def scans(self) -> Path:
        return self.root / "scans"

    @property
    def checkpoints(self) -> Path:
        """With a folder a sweep."""
        return self.root / "checkpoints"

    @property
    def replays(self) -> Path:
        """With a folder a sweep, and in it a folder a trial."""
        return self.root / "replays"

    @property
    def notify(self) -> Path:
        """Whom to tell, if anybody."""
        return self.root / "notify.yaml"

    @property
    def workers(self) -> Path:
        """Logs of the workers that are of no one sweep."""
        return self.root / "logs" / ".workers"

    def logs(self, sweep: str) -> Path:
        return self.root / "logs" / sweep

    def pictures(self, sweep: str) -> Path:
        return self.root / "pictures" / sweep


def find_home(given: Path | None) -> Home:
    """`--home`, else `SWEEPS_HOME`, else `.sweeps` in the working directory; always absolute."""
    return Home((given or Path(os.environ.get("SWEEPS_HOME") or ".sweeps")).expanduser().resolve())
