"""Schema migrations, run by `upgrade`. To change the schema: change `tables.py`, add a file to `versions/`.

They travel inside the distribution and need no ini file. Our version table is `sweep_alembic_version`, because
Optuna keeps an `alembic_version` of its own in the same database; tables not named `sweep_*` are never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from sweeps.tables import metadata


def _ours(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
    return kind != "table" or (name or "").startswith("sweep_")


OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    "version_table": "sweep_alembic_version",
    "include_name": _ours,
    "render_as_batch": True,  # SQLite alters a table by copying it
}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", Path(__file__).parent.as_posix().replace("%", "%%"))
    return config


@dataclass(frozen=True)
class Schema:
    """How far the tables of a database are."""

    revision: str | None
    """None: there are none."""
    needed: str
    """The revision of this version."""
    newer: bool
    """Whether this version does not know the revision."""

    @property
    def current(self) -> bool:
        return self.revision == self.needed


def schema(connection: Connection | None) -> Schema:
    """The schema of a database; None stands for one that is not there."""
    script = ScriptDirectory.from_config(_config())
    needed = script.get_current_head()
    assert needed is not None
    if connection is None:
        return Schema(None, needed, False)
    revision = MigrationContext.configure(connection, opts=OPTIONS).get_current_revision()
    known = {each.revision for each in script.walk_revisions()}
    return Schema(revision, needed, revision is not None and revision not in known)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to date, or to that revision, within the caller's transaction, which it neither begins nor
    commits.
    """
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
