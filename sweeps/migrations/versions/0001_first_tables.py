"""Sweeps, trials and epochs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "sweep_sweeps",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("budget", sa.JSON(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("runner_id", sa.String()),
        sa.Column("runner_host", sa.String()),
        sa.Column("runner_pid", sa.Integer()),
        sa.Column("runner_beat_at", sa.Double()),
        sa.Column("experiment_id", sa.String()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
        sa.Column("seconds", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sweep_sweeps"),
        sa.UniqueConstraint("name", name="uq_sweep_sweeps_name"),
    )
    op.create_table(
        "sweep_trials",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sweep_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("name", sa.String()),
        sa.Column("in_space", sa.Boolean(), nullable=False),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("hyperparameters", sa.JSON()),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fruitless_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker", sa.String()),
        sa.Column("lease_expires_at", sa.Double()),
        sa.Column("verdict", sa.String()),
        sa.Column("rule", sa.String()),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("best_wer", sa.Double()),
        sa.Column("best_epoch", sa.Integer()),
        sa.Column("epochs", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reserved_epochs", sa.Integer(), server_default="0", nullable=False),
        sa.Column("optuna_trial_id", sa.Integer()),
        sa.Column("told_at", sa.Double()),
        sa.Column("run_id", sa.String()),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("mirrored_revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_sweep_trials"),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweep_sweeps.id"], name="fk_sweep_trials_sweep_id"),
        sa.UniqueConstraint("sweep_id", "number", name="uq_sweep_trials_sweep_id_number"),
        sa.UniqueConstraint("sweep_id", "name", name="uq_sweep_trials_sweep_id_name"),
    )
    op.create_index("ix_sweep_trials_sweep_id_state", "sweep_trials", ["sweep_id", "state"])
    op.create_table(
        "sweep_epochs",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("steps_in_epoch", sa.Integer(), nullable=False),
        sa.Column("skipped_steps", sa.Integer(), nullable=False),
        sa.Column("lr_time", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("phase", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.Column("mirrored_at", sa.Double()),
        sa.PrimaryKeyConstraint("trial_id", "epoch", name="pk_sweep_epochs"),
        sa.ForeignKeyConstraint(["trial_id"], ["sweep_trials.id"], name="fk_sweep_epochs_trial_id"),
    )
