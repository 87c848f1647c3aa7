"""What a run read into a few sentences of dev, at some epochs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "sweep_examples",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["sweep_trials.id"], name="fk_sweep_examples_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "epoch", name="pk_sweep_examples"),
    )
