"""Decisions against trials, with their numbers apart from their thresholds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    decisions = op.create_table(
        "sweep_decisions",
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("counterfactual", sa.Text(), nullable=False),
        sa.Column("numbers", sa.JSON(), nullable=False),
        sa.Column("thresholds", sa.JSON(), nullable=False),
        sa.Column("siblings", sa.JSON(), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("recorded_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name="pk_sweep_decisions"),
        sa.ForeignKeyConstraint(["trial_id"], ["sweep_trials.id"], name="fk_sweep_decisions_trial_id"),
    )
    # Of trials that were stopped until now the numbers were kept, but neither which of them were thresholds nor the
    # trials compared.
    names = ("id", "epochs", "rule", "verdict", "reason", "finished_at", "state")
    trials = sa.table("sweep_trials", *(sa.column(name) for name in names), sa.column("evidence", sa.JSON()))
    stopped = sa.select(
        trials.c.id,
        trials.c.epochs,
        trials.c.rule,
        trials.c.verdict,
        trials.c.reason,
        sa.literal(""),
        trials.c.evidence,
        sa.literal({}, sa.JSON()),
        sa.literal([], sa.JSON()),
        sa.literal("stopped"),
        trials.c.finished_at,
    ).where(trials.c.state == "PRUNED")
    op.execute(sa.insert(decisions).from_select([column.name for column in decisions.c], stopped))
