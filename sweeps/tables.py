"""The tables, all named `sweep_*`: Optuna keeps its own in the same database. Change them by a migration."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Double,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from sweeps.states import SweepState, TrialState


class now(FunctionElement[float]):
    """The database's clock: UNIX seconds, UTC, moving within a transaction. In lower case, as SQL functions are."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


metadata = MetaData(
    naming_convention={  # SQLite can change a constraint only where it has a name
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

json = JSON(none_as_null=True)

sweeps = Table(
    "sweep_sweeps",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("spec", json, nullable=False),
    Column("digest", String, nullable=False),
    Column("budget", json, nullable=False),
    Column("facts", json, nullable=False),
    Column("state", Enum(SweepState, native_enum=False, length=16), nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("runner_id", String),
    Column("runner_host", String),
    Column("runner_pid", Integer),
    Column("runner_beat_at", Double),
    # It gives way to a process with a lower number.
    Column("runner_yields", Integer, nullable=False, server_default="0"),
    # The tracking server that experiment_id, and the run_id of the trials, belong to.
    Column("tracking", String),
    Column("experiment_id", String),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    # When it was last told to run: failures before that do not count against it.
    Column("resumed_at", Double),
    Column("finished_at", Double),
    Column("seconds", Double, nullable=False, server_default="0"),
)

trials = Table(
    "sweep_trials",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sweep_id", ForeignKey("sweep_sweeps.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", String),
    Column("in_space", Boolean, nullable=False),
    Column("overrides", json, nullable=False),
    Column("hyperparameters", json),
    Column("state", Enum(TrialState, native_enum=False, length=16), nullable=False),
    Column("attempt", Integer, nullable=False, server_default="0"),
    # Attempts in a row that recorded no new epoch; one that was handed back does not count.
    Column("fruitless_attempts", Integer, nullable=False, server_default="0"),
    Column("worker", String),
    Column("lease_expires_at", Double),
    Column("verdict", String),
    Column("rule", String),
    Column("reason", Text, nullable=False, server_default=""),
    Column("evidence", json, nullable=False),
    Column("best_wer", Double),
    Column("best_epoch", Integer),
    Column("epochs", Integer, nullable=False, server_default="0"),
    # The epoch budget counts this: epochs recorded, and the one in hand.
    Column("reserved_epochs", Integer, nullable=False, server_default="0"),
    # Sum over its recorded epochs: adding them up takes long in a large sweep.
    Column("seconds", Double, nullable=False, server_default="0"),
    Column("optuna_trial_id", Integer),
    Column("told_at", Double),
    Column("run_id", String),
    Column("revision", Integer, nullable=False, server_default="1"),
    Column("mirrored_revision", Integer, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    UniqueConstraint("sweep_id", "number"),
    UniqueConstraint("sweep_id", "name"),
    Index(None, "sweep_id", "state"),
)

epochs = Table(
    "sweep_epochs",
    metadata,
    Column("trial_id", ForeignKey("sweep_trials.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("step", Integer, nullable=False),
    Column("metrics", json, nullable=False),
    Column("steps_in_epoch", Integer, nullable=False),
    Column("skipped_steps", Integer, nullable=False),
    Column("lr_time", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("phase", String, nullable=False),
    Column("recorded_at", Double, nullable=False),
    Column("mirrored_at", Double),
)

# What a run read into a few sentences at some epochs. Apart from the epochs, which are read all the time.
examples = Table(
    "sweep_examples",
    metadata,
    Column("trial_id", ForeignKey("sweep_trials.id"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("content", json, nullable=False),
)

# How many words of each sentence of a split the best checkpoint of a trial got wrong.
scores = Table(
    "sweep_scores",
    metadata,
    Column("trial_id", ForeignKey("sweep_trials.id"), primary_key=True),
    Column("split", String(16), primary_key=True),
    # Of the checkpoint.
    Column("epoch", Integer, nullable=False),
    # Lists of equal length: ids of the sentences, wrong words, words of the reference.
    Column("sentences", json, nullable=False),
    Column("errors", json, nullable=False),
    Column("words", json, nullable=False),
    Column("scored_at", Double, nullable=False),
)

# Trials of an earlier sweep that the sampler of this one is shown. Copies: the earlier sweep may be deleted.
priors = Table(
    "sweep_priors",
    metadata,
    Column("sweep_id", ForeignKey("sweep_sweeps.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    # By name and number, not by id: a prior outlives what it was copied from.
    Column("source", String, nullable=False),
    Column("source_trial", Integer, nullable=False),
    Column("hyperparameters", json, nullable=False),
    # What it counts for with the sampler; lower is better. None: infinite.
    Column("value", Double),
    Column("best_wer", Double),
    Column("verdict", String),
    Column("added_at", Double, nullable=False),
)

# What somebody is to be told of a sweep, once a channel: written before it is sent, so that a crash loses nothing.
notifications = Table(
    "sweep_notifications",
    metadata,
    Column("sweep_id", ForeignKey("sweep_sweeps.id"), primary_key=True),
    # What makes it this one: told twice, it is one.
    Column("key", String(64), primary_key=True),
    Column("channel", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("text", Text, nullable=False),
    Column("data", json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    # Not before; none once it was sent or given up.
    Column("try_at", Double),
    Column("sent_at", Double),
    Column("trouble", Text, nullable=False, server_default=""),
)

workers = Table(
    "sweep_workers",
    metadata,
    Column("id", String, primary_key=True),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    # By its host's clock: tells it from a later process of the same id.
    Column("process_started", Double, nullable=False),
    Column("device", String, nullable=False),
    Column("versions", json, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

events = Table(
    "sweep_events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("sweep_id", ForeignKey("sweep_sweeps.id"), nullable=False),
    # By number, not by id: an event outlives what it tells of.
    Column("trial_number", Integer),
    Column("attempt", Integer),
    Column("worker", String),
    Column("at", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("text", Text, nullable=False),
    Column("data", json, nullable=False),
    Index(None, "sweep_id", "id"),
)

decisions = Table(
    "sweep_decisions",
    metadata,
    # One a trial: the first that condemned it.
    Column("trial_id", ForeignKey("sweep_trials.id"), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("rule", String, nullable=False),
    Column("verdict", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("counterfactual", Text, nullable=False),
    Column("numbers", json, nullable=False),
    Column("thresholds", json, nullable=False),
    Column("siblings", json, nullable=False),
    Column("action", String(16), nullable=False),
    Column("recorded_at", Double, nullable=False),
)

# Who may use the service over the network. A token itself is nowhere: what is kept cannot be turned back into it.
tokens = Table(
    "sweep_tokens",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scope", String(16), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("used_at", Double),
)

# Who asked for what. By names, not by ids: it outlives the sweeps and the tokens that it tells of.
actions = Table(
    "sweep_actions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String(32), nullable=False),
    Column("target", String, nullable=False),
    Column("data", json, nullable=False),
)
