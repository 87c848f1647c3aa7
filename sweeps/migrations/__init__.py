"""Schema migrations, run by `upgrade`. To change the schema: change `tables.py`, add a file to `versions/`.

They travel inside the distribution and need no ini file. Our version table is `sweep_alembic_version`, because
Optuna keeps an `alembic_version` of its own in the same database; tables not named `sweep_*` are never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def is_current(connection: Connection) -> bool:
    """Whether the database has this version's schema.

    Raises:
        ValueError: the schema is one that this version does not know, so a newer one made it.
    """
    script = ScriptDirectory.from_config(_config())
    revision = MigrationContext.configure(connection, opts=OPTIONS).get_current_revision()
    known = {each.revision for each in script.walk_revisions()}
    if revision is not None and revision not in known:
        raise ValueError(f"its schema {revision} was made by a newer version of ctc-sweeps: install that version")
    return revision == script.get_current_head()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring the schema up to date, or to that revision, within the caller's transaction, which it neither begins nor
    commits.
    """
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
