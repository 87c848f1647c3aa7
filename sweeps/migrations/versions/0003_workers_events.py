"""Workers, a row for each change of state, the server that runs were shipped to, and keepers that give way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "sweep_workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_started", sa.Double(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sweep_workers"),
    )
    op.create_table(
        "sweep_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sweep_id", sa.Integer(), nullable=False),
        sa.Column("trial_number", sa.Integer()),
        sa.Column("attempt", sa.Integer()),
        sa.Column("worker", sa.String()),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sweep_events"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep_sweeps.id"], name="fk_sweep_events_sweep_id"),
    )
    op.create_index("ix_sweep_events_sweep_id_id", "sweep_events", ["sweep_id", "id"])
    # One by one: to copy the table, as a batch does in SQLite, would drop it while other tables point at it.
    op.add_column("sweep_sweeps", sa.Column("runner_yields", sa.Integer(), server_default="0", nullable=False))
    op.add_column("sweep_sweeps", sa.Column("tracking", sa.String()))
    op.add_column("sweep_sweeps", sa.Column("resumed_at", sa.Double()))
