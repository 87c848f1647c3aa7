"""Run by alembic: migrates the connection that `upgrade` handed over."""

from __future__ import annotations

from alembic import context

from sweeps.migrations import OPTIONS

context.configure(connection=context.config.attributes["connection"], **OPTIONS)
context.run_migrations()
