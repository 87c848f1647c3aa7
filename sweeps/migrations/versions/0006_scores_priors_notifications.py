"""Errors by sentence of a trial's best checkpoint, trials of earlier sweeps, what somebody is to be told; how long each
trial was trained.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "sweep_scores",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(16), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("sentences", sa.JSON(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
        sa.Column("words", sa.JSON(), nullable=False),
        sa.Column("scored_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["sweep_trials.id"], name="fk_sweep_scores_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "split", name="pk_sweep_scores"),
    )
    op.create_table(
        "sweep_priors",
        sa.Column("sweep_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("source_trial", sa.Integer(), nullable=False),
        sa.Column("hyperparameters", sa.JSON(), nullable=False),
        sa.Column("value", sa.Double()),
        sa.Column("best_wer", sa.Double()),
        sa.Column("verdict", sa.String()),
        sa.Column("added_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep_sweeps.id"], name="fk_sweep_priors_sweep_id"),
        sa.PrimaryKeyConstraint("sweep_id", "number", name="pk_sweep_priors"),
    )
    op.create_table(
        "sweep_notifications",
        sa.Column("sweep_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("try_at", sa.Double()),
        sa.Column("sent_at", sa.Double()),
        sa.Column("trouble", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep_sweeps.id"], name="fk_sweep_notifications_sweep_id"),
        sa.PrimaryKeyConstraint("sweep_id", "key", "channel", name="pk_sweep_notifications"),
    )
    op.add_column("sweep_trials", sa.Column("seconds", sa.Double(), server_default="0", nullable=False))
    op.execute(
        "UPDATE sweep_trials SET seconds = COALESCE("
        "(SELECT SUM(sweep_epochs.seconds) FROM sweep_epochs WHERE sweep_epochs.trial_id = sweep_trials.id), 0)"
    )
