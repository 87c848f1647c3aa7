"""The truth about sweeps, trials and epochs, in one SQL database shared by every process.

Each method that writes is one transaction; on PostgreSQL each query of one that reads stands for itself. All raise
`DatabaseUnavailable` where the database is away, full or locked for long.

Values come back as frozen records (`records.py`). Every time is the database's.

Who may write a trial is decided by its attempt: `claim` counts it up, and every write of a worker says
`WHERE attempt = mine AND state = RUNNING`. A worker that was declared dead can therefore write nothing; that it tried
is an event. Every change of state has its event, written in the same transaction.
Where two rows are locked, the sweep's comes before the trial's.
"""

from __future__ import annotations

import logging
import math
import re
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
from filelock import FileLock
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Update,
    and_,
    bindparam,
    case,
    cast,
    create_engine,
    delete,
    event,
    exists,
    false,
    func,
    insert,
    literal,
    make_url,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from model.types import EpochReport
from sweeps import migrations, tables
from sweeps.budget import Spending, exceeded, is_limited
from sweeps.errors import (
    DatabaseOutdated,
    DatabaseUnavailable,
    LeaseLost,
    SweepBusy,
    SweepError,
    SweepExists,
    SweepNotFound,
    TokenExists,
    TokenNotFound,
    TrialNotFound,
    TrialsSpent,
    TrialTried,
    WrongState,
)
from sweeps.records import (
    ActionRow,
    Claim,
    Curve,
    DecisionRow,
    EpochRow,
    EventRow,
    NotificationRow,
    Pending,
    PlannedTrial,
    PriorRow,
    Runner,
    Scope,
    ScoreRow,
    SweepRow,
    SweepStatus,
    TokenRow,
    TrialRow,
    WorkerRow,
    shown_host,
)
from sweeps.states import SweepState, TrialState
from sweeps.tables import actions, decisions, epochs, events, now, sweeps, tokens, trials, workers

log = logging.getLogger(__name__)

__all__ = [
    "Claim",
    "DecisionRow",
    "EpochRow",
    "EventRow",
    "Pending",
    "PlannedTrial",
    "Runner",
    "Store",
    "SweepRow",
    "TrialRow",
    "Upgraded",
    "WorkerRow",
    "database_url",
    "schema",
    "upgrade",
    "without_password",
]

_BUSY_SECONDS = 30
_PRAGMAS = (
    f"busy_timeout = {_BUSY_SECONDS * 1000}",
    "foreign_keys = ON",
    # FULL: a commit survives a power cut. Optuna and MLflow hear of facts after we commit them, and must never
    # know what we forgot. An epoch takes seconds, the sync a millisecond.
    "synchronous = FULL",
)
# PostgreSQL's classes of errors that pass: connection, conflict, resources, an operator's doing; and a server that is
# a standby still.
_AWAY_CLASSES = ("08", "40", "53", "55", "57")
_READ_ONLY = "25006"
_SESSION = {
    "idle_in_transaction_session_timeout": 30_000,
    "lock_timeout": 30_000,
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
}
_UPGRADE_LOCK = 0x73776565_70730001  # PostgreSQL's advisory lock of the schema upgrade: "sweeps", 1
_EVENTS_LOCK = 0x73776570  # and one of the order of a sweep's events: "swep", its id
_EPOCHS_AT_ONCE = _TRIALS_AT_ONCE = 1_000
RANGE_TEST_RUN = "range_test_run"  # the fact that holds its run
CONFIGURATIONS = "configurations"  # the one that holds how many a space has, where they are counted
PICTURES = "pictures"  # and the one that holds which run has the pictures, and their paths
_USED_AT = "used_at"  # what a pool's entry knows of its connection
_SURELY_THERE_SECONDS = 1.0  # a server whose answer is so young is not asked whether it is there
_POOL_SECONDS = 10.0  # what a thread waits for a connection of the store
_MEMORIES = 8  # sweeps of which a store remembers what it has read
_USED_SECONDS = 60.0  # how exactly a token's last use is known
_FORGET_SECONDS = 7 * 86_400.0  # a worker that was not seen for so long

LONGEST_BEAT_SECONDS = 60.0
"""More between two beats of a keeper does not count into the hours of a sweep."""

MAX_ATTEMPTS = 3
"""A trial whose attempts recorded no new epoch so many times in a row is given up."""

_TRIAL = [trials.c[f.name] for f in fields(TrialRow)]
_EPOCH = [epochs.c[f.name] for f in fields(EpochRow)]
_DECISION = [(trials if f.name == "number" else decisions).c[f.name] for f in fields(DecisionRow)]
_EVENT = [events.c[f.name] for f in fields(EventRow)]
_WORKER = [workers.c[f.name] for f in fields(WorkerRow)]
_TOKEN = [tokens.c[f.name] for f in fields(TokenRow)]
_ACTION = [actions.c[f.name] for f in fields(ActionRow)]
_SCORE = [tables.scores.c[f.name] for f in fields(ScoreRow)]
_CLAIM = [trials.c["id" if f.name == "trial_id" else f.name] for f in fields(Claim)]
_next_revision = trials.c.revision + 1
_NO_EPOCH = 1 << 30  # behind every last one


def _counting() -> Update:
    """New epochs, counted into the row of their trial."""
    held = trials.c
    last, its = (bindparam(name, type_=held.epochs.type) for name in ("last", "its_epoch"))
    wer = cast(bindparam("wer"), held.best_wer.type)  # the type of a NULL is not told by itself
    earlier = and_(held.best_wer == wer, held.best_epoch > its)
    better = and_(wer.is_not(None), or_(held.best_wer.is_(None), held.best_wer > wer, earlier))
    return (
        update(trials)
        .where(
            held.id == bindparam("of_trial"),
            held.attempt == bindparam("of_attempt"),
            held.state == TrialState.RUNNING,
            held.epochs < bindparam("first"),
        )
        .values(
            epochs=case((held.epochs > last, held.epochs), else_=last),
            reserved_epochs=case((held.reserved_epochs > last, held.reserved_epochs), else_=last),
            seconds=held.seconds + bindparam("more_seconds"),
            best_wer=case((better, wer), else_=held.best_wer),
            best_epoch=case((better, its), else_=held.best_epoch),
            fruitless_attempts=0,
            revision=_next_revision,
        )
    )


# Statements of every epoch: to make one anew takes SQLAlchemy as long as to run it.
_COUNT_EPOCHS = _counting()
_ADD_EPOCHS = insert(epochs).values(recorded_at=now())
_NAMED = select(sweeps).where(sweeps.c.name == bindparam("name"))
_CHANGED = (
    select(*_TRIAL)
    .where(
        trials.c.sweep_id == bindparam("of_sweep"),
        or_(trials.c.number >= bindparam("unread"), trials.c.number.in_(bindparam("going_on", expanding=True))),
    )
    .order_by(trials.c.number)
)
_NOTHING_SHOWN: Mapping[int, Mapping[str, Any]] = MappingProxyType({})


def database_url(url: str) -> URL:
    """`url` with the driver we use.

    Raises:
        ValueError: not a database we run on.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        parsed = None
    backend = parsed.drivername.partition("+")[0] if parsed else ""
    if parsed and backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed and backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    shown = parsed.render_as_string() if parsed else re.sub(r":[^:/@]*@", ":***@", url)
    raise ValueError(
        f"database {shown!r}: it must be a file or a server that several processes can share: "
        "use sqlite:///PATH or postgresql://USER@HOST/NAME"
    )


def without_password(url: str) -> str:
    """A database's URL as it may be printed and given again: PostgreSQL finds the password in the environment."""
    return re.sub(r"^([\w+]+://[^:/@]*):[^@/]*@", r"\1@", url)


@contextmanager
def database_errors(url: str) -> Iterator[None]:
    """Errors that say that the database is away become `DatabaseUnavailable`."""
    try:
        yield
    except PoolTimeout:
        raise DatabaseUnavailable(make_url(url).render_as_string(), "every connection is in use") from None
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None) or ""
        away = state[:2] in _AWAY_CLASSES or state == _READ_ONLY
        if not (isinstance(error, OperationalError) or error.connection_invalidated or away):
            raise
        shown = make_url(url).render_as_string()
        raise DatabaseUnavailable(shown, " ".join(str(error.orig).split())) from error


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Inside, no other process is in here with this database: two that make one new table at once both fail."""
    address = database_url(url)
    if address.get_backend_name() == "sqlite":
        file = Path(address.database or "")
        with FileLock(file.with_name(f".{file.name}.lock")):
            yield
        return
    with _opened(address) as engine, engine.begin() as connection:
        _lock_schema(connection)
        yield


def engine_options(url: str) -> dict[str, Any]:
    """How every engine on our database is made: it waits for SQLite's writer, and not long for a network that is gone.
    See `pinging` as well.
    """
    if make_url(url).get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_SECONDS}}
    # A network that swallows packets must not hang a worker beyond its lease.
    timeouts = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    # Nor may a client that vanishes or freezes inside a transaction hold a sweep's row for hours: nobody could claim.
    given = make_url(url).query.get("options", "")
    ours = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    options = f"{given if isinstance(given, str) else ' '.join(given)} {ours}".strip()
    return {"connect_args": {**timeouts, "tcp_user_timeout": 20_000, "options": options}}


def pinging(engine: Engine) -> Engine:
    """The engine, which now notices that a server went while a connection lay idle, and makes another one.

    As SQLAlchemy's `pool_pre_ping`, but not for connections that were made or in use a moment ago: to ask each time
    took a tenth of what a trial costs. Where a server goes in that moment the next statement says so.
    """
    if engine.dialect.name == "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    @event.listens_for(engine, "checkin")
    def answered(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[_USED_AT] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def taken(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        if time.monotonic() - record.info.get(_USED_AT, -math.inf) < _SURELY_THERE_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except psycopg.Error as error:
            raise InvalidatePoolError from error

    return engine


class Store:
    """Open `url`, making the file and its folder (SQLite), and the tables where there are none.

    Raises:
        ValueError: not a database we run on.
        DatabaseUnavailable: it cannot be reached, is not ours to write, or was made by a newer version.
        DatabaseOutdated: it was made by an older version; `upgrade` brings it up to date.
    """

    def __init__(self, url: str, connections: int = 15) -> None:
        """
        Args:
            connections: at most; kept are five. Threads beyond that wait for each other.
        """
        address = database_url(url)
        self.url = address.render_as_string(hide_password=False)
        pool = {"pool_size": 5, "max_overflow": connections - 5, "pool_timeout": _POOL_SECONDS}
        self._engine = pinging(create_engine(address, **pool, **engine_options(self.url)))
        # To read in a transaction is no surer on PostgreSQL, as each query sees what is committed by then, and takes
        # three round trips in place of one.
        apart = {} if self._engine.name == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        self._reading = self._engine.execution_options(**apart)
        # SQLite: a transaction that reads first and writes later fails if another one wrote in between.
        self._writing = self._engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        self._memories: dict[tuple[int, float], _Memory] = {}
        try:
            if self._engine.name == "sqlite":
                Path(address.database or "").parent.mkdir(parents=True, exist_ok=True)
                _prepare_sqlite(self._engine)
            self._check_schema()
        except SweepError:
            self.close()
            raise
        except (DBAPIError, sqlite3.Error, OSError, ValueError) as error:
            self.close()
            raise self._unavailable(error.orig if isinstance(error, DBAPIError) else error) from error

    def close(self) -> None:
        self._engine.dispose()

    def now(self) -> float:
        """The database's clock."""
        with self._read() as connection:
            return connection.execute(select(now())).scalar_one()

    def check_writable(self) -> None:
        """
        Raises:
            DatabaseUnavailable: it can be read, and not be written.
        """
        try:
            with self._write() as connection:
                connection.execute(update(sweeps).where(sweeps.c.id == -1).values(reason=""))
        except DBAPIError as error:
            raise self._unavailable(error.orig) from error

    # sweeps

    def create_sweep(
        self,
        name: str,
        spec: Mapping[str, Any],
        digest: str,
        budget: Mapping[str, Any],
        facts: Mapping[str, Any],
        first_trials: Sequence[PlannedTrial],
        priors: Sequence[PriorRow] = (),
    ) -> SweepRow:
        """A PENDING sweep whose first trials, numbered from 0, wait for a worker.

        Args:
            priors: what its sampler is shown of earlier sweeps; kept with it, both or neither.

        Raises:
            SweepExists: the name is taken.
            ValueError: a number that is not finite.
        """
        _check_finite(spec=spec, budget=budget, facts=facts)
        planned = [asdict(trial) for trial in first_trials]
        for trial in planned:
            _check_finite(hyperparameters=trial["hyperparameters"], overrides=trial["overrides"])
        values = {"name": name, "spec": spec, "digest": digest, "budget": budget, "facts": facts}
        try:
            with self._write() as connection:
                sweep_id = connection.execute(
                    insert(sweeps).values(**values, state=SweepState.PENDING, created_at=now()).returning(sweeps.c.id)
                ).scalar_one()
                common = {"sweep_id": sweep_id, "state": TrialState.WAITING, "evidence": {}}
                if planned:
                    connection.execute(
                        insert(trials).values(created_at=now()),
                        [{**common, "number": number, **trial} for number, trial in enumerate(planned)],
                    )
                if priors:
                    rows = [{"sweep_id": sweep_id, **asdict(prior)} for prior in priors]
                    connection.execute(insert(tables.priors).values(added_at=now()), rows)
                _tell(connection, sweep_id, EventRow("created", f"with {len(planned)} first trials"))
        except IntegrityError:
            if self.find_sweep(name) is None:
                raise
            raise SweepExists(name) from None
        sweep = self.find_sweep(name)
        assert sweep is not None
        return sweep

    def find_sweep(self, name: str) -> SweepRow | None:
        with self._read() as connection:
            row = connection.execute(_NAMED, {"name": name}).one_or_none()
        return _sweep_row(row) if row else None

    def sweeps(self) -> list[SweepRow]:
        """Every sweep, the oldest first."""
        with self._read() as connection:
            return [_sweep_row(row) for row in connection.execute(select(sweeps).order_by(sweeps.c.id))]

    def raise_budget(self, sweep_id: int, trials: int) -> None:
        """The budget has so many trials from now on.

        Raises:
            WrongState: the sweep cannot go on.
            ValueError: it has more already.
        """
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            _check_goes_on(sweep)
            last = connection.scalar(
                select(func.max(tables.trials.c.number)).where(tables.trials.c.sweep_id == sweep_id)
            )
            known = 0 if last is None else int(last) + 1
            if trials < max(known, 1):
                raise ValueError(f"{trials} trials: the sweep has {known} already; give no less")
            budget = {**sweep.budget, "trials": trials}
            connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(budget=budget))

    def update_budget(self, sweep_id: int, budget: Mapping[str, Any]) -> None:
        _check_finite(budget=budget)
        self._update_sweep(sweep_id, budget=budget)

    def update_facts(self, sweep_id: int, facts: Mapping[str, Any]) -> None:
        """Add what was found out since the sweep was made; a key that is there already gets the new value.

        Raises:
            ValueError: a number that is not finite.
        """
        _check_finite(facts=facts)
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(facts={**sweep.facts, **facts}))

    def raise_alarm(self, sweep_id: int, alarm: Mapping[str, Any], pause_because: str | None) -> bool:
        """Keep `alarm` in the facts of a sweep that runs, and pause it for that reason; None lets it go on. A sweep
        alarms once: False, and nothing is changed, where it has an alarm, or is not RUNNING.

        Raises:
            ValueError: a number that is not finite.
        """
        _check_finite(alarm=alarm)
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            if "alarm" in sweep.facts or sweep.state != SweepState.RUNNING:
                return False
            values: dict[str, Any] = {"facts": {**sweep.facts, "alarm": alarm}}
            _tell(connection, sweep_id, EventRow("alarm", str(alarm.get("sentence", "")), data=dict(alarm)))
            if pause_because is not None:
                values |= {"state": SweepState.PAUSED, "reason": pause_because}
                _tell(connection, sweep_id, EventRow("paused", pause_because))
            connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(**values))
            return True

    def set_sweep_state(
        self, sweep_id: int, state: SweepState, reason: str = "", only_from: Collection[SweepState] = ()
    ) -> bool:
        """Go to `state`. Where the sweep is there already, nothing but a given reason is changed.

        Args:
            only_from: where given and the sweep is in none of these states, nothing is changed, and False returned.

        Raises:
            WrongState: the life cycle has no such step.
        """
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            values: dict[str, Any] = {"reason": reason}
            if only_from and sweep.state not in only_from:
                return False
            if sweep.state == state:
                if not reason:
                    return True
            elif not sweep.state.may_become(state):
                allowed = [str(s) for s in SweepState if sweep.state.may_become(s)]
                raise WrongState(
                    f"sweep {sweep.name!r} is {sweep.state} and cannot become {state}: "
                    f"from there it can become {', '.join(allowed) or 'nothing else'}"
                )
            else:
                values |= {"state": state, "finished_at": now() if state.terminal else None}
                if state == SweepState.RUNNING:
                    values |= {"started_at": func.coalesce(sweeps.c.started_at, now()), "resumed_at": now()}
                _tell(connection, sweep_id, EventRow(state.value.lower(), reason, data={"from": sweep.state.value}))
            connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(**values))
            return True

    def sweep_state(self, sweep_id: int) -> SweepState:
        """
        Raises:
            SweepNotFound: it was deleted.
        """
        with self._read() as connection:
            state = connection.scalar(select(sweeps.c.state).where(sweeps.c.id == sweep_id))
        if state is None:
            raise SweepNotFound(str(sweep_id))
        return SweepState(state)

    def begin_delete(self, sweep_id: int, worker_is_dead: Callable[[WorkerRow], bool]) -> SweepState:
        """The sweep is DELETING: nobody may claim from it, nor let it run. Returns the state that it was in.

        Raises:
            SweepBusy: a worker that may be alive holds one of its trials.
        """
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            held = select(trials.c.worker).where(trials.c.sweep_id == sweep_id, trials.c.state == TrialState.RUNNING)
            for row in connection.execute(select(*_WORKER).where(workers.c.id.in_(held))):
                worker = WorkerRow(*row)
                if not worker_is_dead(worker):
                    silent = connection.execute(select(now())).scalar_one() - (worker.seen_at or 0.0)
                    raise SweepBusy(sweep.name, f"process {worker.pid} on {shown_host(worker.host)}", silent)
            if sweep.state != SweepState.DELETING:
                deleting = update(sweeps).where(sweeps.c.id == sweep_id).values(state=SweepState.DELETING)
                connection.execute(deleting)
                _tell(connection, sweep_id, EventRow("deleting", "", data={"from": sweep.state.value}))
            return SweepState(sweep.state)

    def end_delete(self, sweep_id: int, state: SweepState) -> None:
        """It is not deleted after all: back to the state that it was in."""
        with self._write() as connection:
            if _lock_sweep(connection, sweep_id).state == SweepState.DELETING:
                connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(state=state))
                _tell(connection, sweep_id, EventRow("not_deleted", "", data={"to": state.value}))

    def delete_sweep(self, sweep_id: int) -> None:
        """Remove the sweep with all its rows; nothing happens where it is gone."""
        mine = select(trials.c.id).where(trials.c.sweep_id == sweep_id)
        with self._write() as connection:
            connection.execute(select(sweeps.c.id).where(sweeps.c.id == sweep_id).with_for_update())
            for table in (epochs, tables.examples, tables.scores, decisions):
                connection.execute(delete(table).where(table.c.trial_id.in_(mine)))
            for table in (events, tables.notifications, tables.priors, trials):
                connection.execute(delete(table).where(table.c.sweep_id == sweep_id))
            connection.execute(delete(sweeps).where(sweeps.c.id == sweep_id))

    def take_runner(
        self, sweep_id: int, runner: Runner, stale_seconds: float, holder_is_dead: Callable[[Runner], bool]
    ) -> None:
        """Make `runner` the one process that keeps the sweep. `holder_is_dead` is asked about a holder that still beat
        within `stale_seconds`; it must answer False where it cannot know. A holder gives way to one that yields less.

        Raises:
            SweepBusy: another live process runs it.
        """
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            holder = _runner(sweep)
            if holder and holder.id != runner.id and holder.yields <= runner.yields:
                silent = connection.execute(select(now())).scalar_one() - sweep.runner_beat_at
                if silent < stale_seconds and not holder_is_dead(holder):
                    raise SweepBusy(sweep.name, str(holder), silent)
            connection.execute(
                update(sweeps)
                .where(sweeps.c.id == sweep_id)
                .values(
                    runner_id=runner.id,
                    runner_host=runner.host,
                    runner_pid=runner.pid,
                    runner_yields=runner.yields,
                    runner_beat_at=now(),
                )
            )

    def beat(self, sweep_id: int, runner_id: str) -> bool:
        """The runner lives. False: another process runs the sweep now, so stop."""
        return self._beat(sweep_id, runner_id, runner_beat_at=now())

    def release_runner(self, sweep_id: int, runner_id: str) -> None:
        """The runner goes; nothing happens where another one has taken over."""
        self._beat(sweep_id, runner_id, runner_id=None, runner_host=None, runner_pid=None, runner_beat_at=None)

    # trials

    def enqueue(
        self, sweep_id: int, planned: PlannedTrial, facts: Mapping[str, Any] | None = None, *, repeat: bool = True
    ) -> int:
        """Let a trial wait that is to be claimed before the sampler is asked for another; returns its number. Where
        the sweep has one of that name no trial is changed: a replay adds no second one. `facts` are set with it, both
        or neither.

        Args:
            repeat: it may be one that the sweep has under another name or number.

        Raises:
            TrialTried: it is, and may not.
            TrialsSpent: the budget has no trial left.
            WrongState: the sweep cannot go on.
            ValueError: a number that is not finite.
        """
        _check_finite(hyperparameters=planned.hyperparameters, overrides=planned.overrides, facts=facts or {})
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            if facts:
                together = {**sweep.facts, **facts}
                connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(facts=together))
            _check_goes_on(sweep)
            there = connection.scalar(
                select(trials.c.number).where(trials.c.sweep_id == sweep_id, trials.c.name == planned.name)
            )
            if there is not None:
                return int(there)
            same = _trial_of(connection, sweep_id, planned.hyperparameters, planned.overrides)
            if same is not None and not repeat:
                raise TrialTried(sweep.name, same)
            if same is not None and planned.in_space and CONFIGURATIONS in sweep.facts:
                # It takes no other configuration's place.
                more = {**sweep.facts, **(facts or {}), CONFIGURATIONS: sweep.facts[CONFIGURATIONS] + 1}
                connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(facts=more))
            number = _next_number(connection, sweep)
            if number is None:
                raise TrialsSpent(sweep.name, sweep.budget["trials"])
            values = {"sweep_id": sweep_id, "number": number, "state": TrialState.WAITING, "evidence": {}}
            connection.execute(insert(trials).values(**values, **asdict(planned), created_at=now()))
            _tell(connection, sweep_id, EventRow("enqueued", planned.name, number))
            return number

    def claim(self, sweep_id: int, worker: str, lease_seconds: float) -> Claim | None:
        """The next trial for `worker`, which holds none: one that waits (those with epochs behind them first, then the
        oldest), else a new one. None where the sweep is not RUNNING or its budget is used up. Exact under any number
        of processes. A trial that this worker was given before without hearing of it comes first.
        """
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            held = connection.scalar(
                select(trials.c.id).where(
                    trials.c.sweep_id == sweep_id, trials.c.state == TrialState.RUNNING, trials.c.worker == worker
                )
            )
            if sweep.state != SweepState.RUNNING or (held is None and not _budget_left(connection, sweep, 1)):
                return None
            lease = {
                "state": TrialState.RUNNING,
                "attempt": trials.c.attempt + 1,
                "fruitless_attempts": trials.c.fruitless_attempts + int(held is None),
                "worker": worker,
                "lease_expires_at": now() + lease_seconds,
                "reason": "",
                "started_at": func.coalesce(trials.c.started_at, now()),
                "revision": _next_revision,
            }
            trial_id = held or connection.scalar(
                select(trials.c.id)
                .where(trials.c.sweep_id == sweep_id, trials.c.state == TrialState.WAITING)
                .order_by(trials.c.epochs == 0, trials.c.number)
                .limit(1)
            )
            if trial_id is not None:
                connection.execute(update(trials).where(trials.c.id == trial_id).values(**lease))
            else:
                number = _next_number(connection, sweep)
                if number is None or not _configurations_left(connection, sweep):
                    return None
                new = {"sweep_id": sweep_id, "number": number, "in_space": True, "overrides": {}, "evidence": {}}
                first = {"attempt": 1, "fruitless_attempts": 1, "revision": 2, "started_at": now()}
                added = insert(trials).values({**lease, **first, **new, "created_at": now()})
                trial_id = connection.execute(added.returning(trials.c.id)).scalar_one()
            claim = Claim(*connection.execute(select(*_CLAIM).where(trials.c.id == trial_id)).one())
            here = connection.execute(select(*_WORKER).where(workers.c.id == worker)).one_or_none()
            about = {"host": here.host, "device": here.device, "versions": here.versions} if here else {}
            _tell(connection, sweep_id, _of(claim, "claimed", **about))
            return claim

    def set_hyperparameters(
        self, claim: Claim, hyperparameters: Mapping[str, Any], optuna_trial_id: int | None, *, repeat: bool = True
    ) -> None:
        """What the sampler suggested.

        Args:
            repeat: another trial may have the same. False is exact under any number of processes.

        Raises:
            LeaseLost: the trial is no longer this worker's; so for every method that takes a claim.
            TrialTried: another one has the same, and may not.
        """
        _check_finite(hyperparameters=hyperparameters)
        with self._write_mine(claim, "write hyperparameters") as connection:
            if not repeat:
                sweep = _lock_sweep(connection, claim.sweep_id)
                same = _trial_of(connection, claim.sweep_id, hyperparameters, {}, but=claim.trial_id)
                if same is not None:
                    raise TrialTried(sweep.name, same)
            values = {"hyperparameters": hyperparameters, "optuna_trial_id": optuna_trial_id}
            mine = update(trials).where(_mine(claim)).values(**values, revision=_next_revision)
            if not connection.execute(mine).rowcount:
                raise LeaseLost(claim.number, claim.attempt)

    def renew(self, claim: Claim, lease_seconds: float) -> bool:
        """Lengthen the lease; the worker was seen. False: the trial is no longer this worker's."""
        with self._write() as connection:
            renewed = update(trials).where(_mine(claim)).values(lease_expires_at=now() + lease_seconds)
            worker = connection.scalar(renewed.returning(trials.c.worker))
            connection.execute(update(workers).where(workers.c.id == worker).values(seen_at=now()))
            return worker is not None

    def reserve_epoch(self, claim: Claim, epoch: int) -> bool:
        """Whether the budget has `epoch` (1 for the first) of this trial. An epoch counts when it is reserved; the one
        in hand counts no more once the trial is handed back, reaped or over. Exact under any number of processes. Its
        seconds count once they are recorded: device hours and money are overspent by the epochs in hand at most. A
        worker does not ask where nothing but trials is limited: an epoch that it began then counts once recorded.
        """
        with self._write_mine(claim, f"reserve epoch {epoch}") as connection:
            sweep = connection.execute(select(sweeps).where(sweeps.c.id == claim.sweep_id)).one_or_none()
            if sweep is None or sweep.budget.get("total_epochs") is not None:  # else there is nothing to count exactly
                sweep = _lock_sweep(connection, claim.sweep_id)
            reserved = connection.scalar(select(trials.c.reserved_epochs).where(_mine(claim)).with_for_update())
            if reserved is None:
                raise LeaseLost(claim.number, claim.attempt)
            if not _budget_left(connection, sweep, max(0, epoch - reserved)):
                return False
            if epoch > reserved:
                connection.execute(update(trials).where(_mine(claim)).values(reserved_epochs=epoch))
            return True

    def record(
        self, claim: Claim, rows: Sequence[EpochRow], shown: Mapping[int, Mapping[str, Any]] = _NOTHING_SHOWN
    ) -> None:
        """Write epochs. One that is there already stays as it is, so a replay changes nothing.

        Args:
            shown: examples of some of these epochs, see `model.examples`.

        Raises:
            ValueError: a number that is not finite.
        """
        for row in rows:
            _check_finite(metrics=row.metrics, lr_time=row.lr_time, seconds=row.seconds)
        if not rows:
            return
        what = f"record epochs {', '.join(str(row.epoch) for row in rows)}"
        with self._write_mine(claim, what) as connection:
            if not _count_epochs(connection, claim, rows):
                held = connection.scalar(select(trials.c.id).where(_mine(claim)).with_for_update())
                if held is None:
                    raise LeaseLost(claim.number, claim.attempt)
                known = epochs.c.trial_id == claim.trial_id, epochs.c.epoch.in_([row.epoch for row in rows])
                there = connection.scalars(select(epochs.c.epoch).where(*known)).all()
                rows = [row for row in rows if row.epoch not in there]
                if not rows:
                    return
                _count_epochs(connection, claim, rows, again=True)
            connection.execute(
                _ADD_EPOCHS, [{**vars(row), "trial_id": claim.trial_id, "recorded_at": None} for row in rows]
            )
            if kept := [row.epoch for row in rows if row.epoch in shown]:
                contents = [{"trial_id": claim.trial_id, "epoch": epoch, "content": shown[epoch]} for epoch in kept]
                connection.execute(insert(tables.examples), contents)

    def finish(
        self,
        claim: Claim,
        state: TrialState,
        verdict: str | None,
        reason: str,
        rule: str | None,
        evidence: Mapping[str, Any],
        decision: DecisionRow | None = None,
    ) -> None:
        """End the trial for good; `reason` is a sentence that says why, `decision` what stopped it, if anything did
        (where the trial was condemned before, that decision stays). Done again by the same attempt it changes nothing.

        Raises:
            ValueError: `state` is not a terminal one, or a number is not finite.
        """
        if not state.terminal:
            raise ValueError(f"a trial cannot finish as {state}: that state is not terminal; hand it back instead")
        _check_finite(evidence=evidence)
        self._update_mine(
            claim,
            EventRow(state.value.lower(), reason, data={"verdict": verdict, "rule": rule}),
            decision,
            state=state,
            verdict=verdict,
            reason=reason,
            rule=rule,
            evidence=evidence,
            finished_at=now(),
            lease_expires_at=None,
            reserved_epochs=trials.c.epochs,
            revision=_next_revision,
        )

    def audit(self, claim: Claim, decision: DecisionRow) -> None:
        """Keep the decision against a trial that runs on all the same. A trial that was condemned before keeps that
        decision.

        Raises:
            ValueError: a number is not finite.
        """
        self._update_mine(claim, EventRow("audited", decision.reason), decision, revision=_next_revision)

    def decision(self, trial_id: int) -> DecisionRow | None:
        """What condemned the trial, if anything did."""
        found = self._decisions(decisions.c.trial_id == trial_id)
        return found[0] if found else None

    def decisions(self, sweep_id: int) -> list[DecisionRow]:
        """What condemned each of the sweep's trials, by number."""
        return self._decisions(trials.c.sweep_id == sweep_id)

    def hand_back(self, claim: Claim, reason: str) -> None:
        """Let the trial wait for another worker. The attempt does not count against it."""
        fruitless = trials.c.fruitless_attempts
        self._update_mine(
            claim,
            EventRow("handed_back", reason),
            **_waiting(reason),
            fruitless_attempts=case((fruitless > 0, fruitless - 1), else_=fruitless),
        )

    def attempt_failed(self, claim: Claim, reason: str, max_attempts: int = MAX_ATTEMPTS) -> TrialState:
        """Let the trial wait for another attempt, or end it FAILED after `max_attempts` in a row that recorded no new
        epoch; returns which.
        """
        with self._write_mine(claim, "say that the attempt failed") as connection:
            failed = update(trials).where(_mine(claim)).values(**_waiting_or_failed(reason, max_attempts))
            state = connection.scalar(failed.returning(trials.c.state))
            if state is None:
                raise LeaseLost(claim.number, claim.attempt)
            kind = "failed" if state == TrialState.FAILED else "attempt_failed"
            _tell(connection, claim.sweep_id, _of(claim, kind, reason))
            return TrialState(state)

    def cancel_waiting(self, sweep_id: int, reason: str) -> int:
        """End the trials that wait as CANCELLED; returns how many."""
        over = {"state": TrialState.CANCELLED, "reason": reason, "finished_at": now(), "revision": _next_revision}
        with self._write() as connection:
            _lock_sweep(connection, sweep_id)
            cancelled = connection.scalars(
                update(trials)
                .where(trials.c.sweep_id == sweep_id, trials.c.state == TrialState.WAITING)
                .values(**over)
                .returning(trials.c.number)
            ).all()
            for number in sorted(cancelled):
                _tell(connection, sweep_id, EventRow("cancelled", reason, number))
            return len(cancelled)

    def reap(
        self,
        sweep_id: int,
        dead_workers: Collection[str] = (),
        max_attempts: int = MAX_ATTEMPTS,
        *,
        expired: bool = True,
    ) -> list[tuple[int, TrialState]]:
        """From their workers take the trials whose worker is known dead, and if `expired` those whose lease ran out:
        back to WAITING, or FAILED after `max_attempts` attempts in a row that recorded no new epoch.

        Returns: id and new state of each, by number.
        """
        held = trials.c
        reason = literal("worker ") + func.coalesce(held.worker, "?") + " died or let its lease run out"
        lost = held.worker.in_(dead_workers)
        with self._write() as connection:
            _lock_sweep(connection, sweep_id)  # two reapers would lock the trials in different orders
            reaped = connection.execute(
                update(trials)
                .where(
                    held.sweep_id == sweep_id,
                    held.state == TrialState.RUNNING,
                    or_(held.lease_expires_at < now(), lost) if expired else lost,
                )
                .values(**_waiting_or_failed(reason, max_attempts))
                .returning(held.number, held.id, held.state, held.attempt, held.reason)
            ).all()
            reaped = sorted(reaped)
            for number, _, state, attempt, why in reaped:
                kind = "failed" if state == TrialState.FAILED else "reaped"
                _tell(connection, sweep_id, EventRow(kind, why, number, attempt))
        return [(trial_id, state) for _, trial_id, state, *_ in reaped]

    def mark_told(self, trial_id: int) -> None:
        """The sampler knows how the trial ended."""
        with self._write() as connection:
            connection.execute(
                update(trials).where(trials.c.id == trial_id, trials.c.told_at.is_(None)).values(told_at=now())
            )

    def untold(self, sweep_id: int, trial_id: int | None = None) -> list[TrialRow]:
        """Trials that are over, came from the sampler, and whose end it was not told; or that one, if it is of them."""
        over = [state for state in TrialState if state.terminal]
        return self._trials(
            trials.c.id == trial_id if trial_id is not None else true(),
            trials.c.sweep_id == sweep_id,
            trials.c.state.in_(over),
            trials.c.optuna_trial_id.is_not(None),
            trials.c.told_at.is_(None),
        )

    def trials(
        self, sweep_id: int, after: int = -1, limit: int | None = None, states: Collection[TrialState] = ()
    ) -> list[TrialRow]:
        """The trials by number: every one, or those with a number above `after`, so many at most, in these states."""
        mine = and_(trials.c.sweep_id == sweep_id, trials.c.number > after)
        return self._trials(mine, trials.c.state.in_(states) if states else true(), limit=limit)

    def statuses(self, name: str | None = None) -> list[SweepStatus]:
        """Every sweep at a glance, or that one, the oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                select(sweeps).where(sweeps.c.name == name if name is not None else true()).order_by(sweeps.c.id)
            ).all()
            ids = [row.id for row in rows]
            mine = trials.c.sweep_id.in_(ids)
            counted = connection.execute(
                select(trials.c.sweep_id, trials.c.state, func.count(), func.sum(trials.c.epochs))
                .where(mine)
                .group_by(trials.c.sweep_id, trials.c.state)
            ).all()
            best: dict[int, TrialRow] = {}
            for sweep_id in ids:
                scored = (trials.c.sweep_id == sweep_id, trials.c.best_wer.is_not(None))
                first = select(*_TRIAL).where(*scored).order_by(trials.c.best_wer, trials.c.number).limit(1)
                for row in connection.execute(first):
                    best[sweep_id] = TrialRow(*row)
        found = []
        for row in rows:
            of_it = [each for each in counted if each[0] == row.id]
            counts = dict.fromkeys(TrialState, 0) | {TrialState(state): number for _, state, number, _ in of_it}
            epochs_of_it = sum(int(each[3]) for each in of_it)
            found.append(SweepStatus(_sweep_row(row), counts, epochs_of_it, best.get(row.id)))
        return found

    def verdicts(self) -> dict[int, dict[str, int]]:
        """How many trials have each verdict, by the id of their sweep."""
        rows = (
            select(trials.c.sweep_id, trials.c.verdict, func.count())
            .where(trials.c.verdict.is_not(None))
            .group_by(trials.c.sweep_id, trials.c.verdict)
            .order_by(trials.c.sweep_id, trials.c.verdict)
        )
        found: dict[int, dict[str, int]] = {}
        with self._read() as connection:
            for sweep_id, verdict, number in connection.execute(rows):
                found.setdefault(sweep_id, {})[verdict] = number
        return found

    def siblings(self, sweep: SweepRow) -> list[TrialRow]:
        """`trials`, for who asks again and again: those that were over are remembered, and not read again. (What may
        be old of them is what was shipped: `run_id`, `mirrored_revision`.)
        """
        with self._read() as connection:
            memory = self._remembered(connection, sweep)
        self._remember(memory)
        return list(memory.trials.values())

    def curves(
        self, sweep: SweepRow, without: int | None = None, known: Set[int] = frozenset()
    ) -> list[tuple[TrialRow, Sequence[EpochReport]]]:
        """The siblings with their epochs, by number; remembered as well: read are those of trials that have new ones.

        Args:
            without: id of a trial that is left out, as who asks knows its epochs.
            known: numbers of trials that are left out, too: who asks again and again has seen them over.
        """
        with self._read() as connection:
            memory = self._remembered(connection, sweep)
            behind = [memory.trials[number].id for number in sorted(memory.behind - known)]
            behind = [trial_id for trial_id in behind if trial_id != without]
            read: dict[int, list[EpochReport]] = {}
            for start in range(0, len(behind), _TRIALS_AT_ONCE):
                some = behind[start : start + _TRIALS_AT_ONCE]
                for trial_id, rows in _by_trial(connection, some, epochs.c.trial_id.in_(some)).items():
                    read[trial_id] = [row.report() for row in rows]
        curves = {**memory.curves, **read} if read else memory.curves
        self._remember(replace(memory, curves=curves))
        asked = [memory.trials[number] for number in sorted(memory.trials.keys() - known)]
        return [(trial, curves.get(trial.id, ())) for trial in asked if trial.id != without]

    def trial(self, sweep_id: int, number_or_name: str | int) -> TrialRow:
        """One trial, by its number (digits count as one) or its name.

        Raises:
            TrialNotFound: the sweep has no such trial.
        """
        wanted = str(number_or_name)
        is_number = wanted.isdecimal() and len(wanted) < 10  # more than any database counts
        named = trials.c.number == int(wanted) if is_number else trials.c.name == wanted
        found = self._trials(trials.c.sweep_id == sweep_id, named)
        if found:
            return found[0]
        with self._read() as connection:
            sweep = connection.scalar(select(sweeps.c.name).where(sweeps.c.id == sweep_id))
            if sweep is None:  # it was deleted just now
                raise SweepNotFound(str(sweep_id))
            names = connection.scalars(
                select(trials.c.name).where(trials.c.sweep_id == sweep_id, trials.c.name.is_not(None))
            ).all()
        raise TrialNotFound(sweep, wanted, names)

    def epochs(self, trial_id: int) -> list[EpochRow]:
        with self._read() as connection:
            rows = connection.execute(select(*_EPOCH).where(epochs.c.trial_id == trial_id).order_by(epochs.c.epoch))
            return [EpochRow(*row) for row in rows]

    def latest_epochs(self, sweep_id: int, after: int = -1, limit: int | None = None) -> dict[int, EpochRow]:
        """The last epoch of each trial that has one, by the trial's number: of all, or of those above `after`, so many
        at most.
        """
        last = and_(epochs.c.trial_id == trials.c.id, epochs.c.epoch == trials.c.epochs)
        with self._read() as connection:
            rows = connection.execute(
                select(trials.c.number, *_EPOCH)
                .join_from(trials, epochs, last)
                .where(trials.c.sweep_id == sweep_id, trials.c.number > after)
                .order_by(trials.c.number)
                .limit(limit)
            )
            return {row[0]: EpochRow(*row[1:]) for row in rows}

    def columns(
        self,
        sweep_id: int,
        metrics: Sequence[str],
        after: int = -1,
        limit: int | None = None,
        beyond: Mapping[int, int] | None = None,
    ) -> dict[int, Curve]:
        """Those metrics of each trial that has epochs, by the trial's number: of all, or of those above `after`, so
        many at most; with `beyond` of those numbers alone, and only the epochs behind the one that is named.
        """
        mine = and_(trials.c.sweep_id == sweep_id, trials.c.number > after, trials.c.epochs > 0)
        values = [epochs.c.metrics[name].as_float() for name in metrics]
        rows = (
            select(trials.c.number, epochs.c.epoch, *values)
            .join_from(trials, epochs, epochs.c.trial_id == trials.c.id)
            .where(mine)
            .order_by(trials.c.number, epochs.c.epoch)
        )
        if beyond is not None:
            new = [and_(trials.c.number == number, epochs.c.epoch > epoch) for number, epoch in beyond.items()]
            rows = rows.where(or_(false(), *new))
        found: dict[int, Curve] = {}
        with self._read() as connection:
            if limit is not None:
                some = select(trials.c.number).where(mine).order_by(trials.c.number).limit(limit).subquery()
                last = connection.scalar(select(func.max(some.c.number)))
                rows = rows.where(trials.c.number <= (-1 if last is None else last))
            for number, epoch, *measured in connection.execute(rows):
                curve = found.get(number)
                if curve is None:
                    curve = found[number] = Curve([], {name: [] for name in metrics})
                curve.epochs.append(epoch)
                for column, value in zip(curve.metrics.values(), measured, strict=True):
                    column.append(value)
        return found

    def sweep_epochs(self, sweep_id: int) -> dict[int, list[EpochRow]]:
        """The epochs of every trial, by trial id; a trial without any has an empty list."""
        with self._read() as connection:
            ids = connection.scalars(select(trials.c.id).where(trials.c.sweep_id == sweep_id)).all()
            mine = epochs.c.trial_id.in_(select(trials.c.id).where(trials.c.sweep_id == sweep_id))
            return _by_trial(connection, ids, mine)

    # workers and events

    def register_worker(self, worker: WorkerRow) -> None:
        """A worker has begun; those not seen for a week are forgotten."""
        row = {**asdict(worker), "started_at": now(), "seen_at": now()}
        with self._write() as connection:
            connection.execute(delete(workers).where(workers.c.seen_at < now() - _FORGET_SECONDS))
            connection.execute(delete(workers).where(workers.c.id == worker.id))
            connection.execute(insert(workers).values(**row))

    def see_worker(self, worker_id: str) -> None:
        """A worker that holds no trial is still there."""
        with self._write() as connection:
            connection.execute(update(workers).where(workers.c.id == worker_id).values(seen_at=now()))

    def forget_worker(self, worker_id: str) -> None:
        """A worker has ended."""
        with self._write() as connection:
            connection.execute(delete(workers).where(workers.c.id == worker_id))

    def workers(self) -> list[WorkerRow]:
        """The workers of every sweep, the oldest first; those that died are among them until they are forgotten."""
        with self._read() as connection:
            rows = connection.execute(select(*_WORKER).order_by(workers.c.started_at, workers.c.id))
            return [WorkerRow(*row) for row in rows]

    def holders(self, sweep_id: int) -> list[WorkerRow]:
        """The workers that hold a trial of the sweep."""
        held = select(trials.c.worker).where(trials.c.sweep_id == sweep_id, trials.c.state == TrialState.RUNNING)
        with self._read() as connection:
            return [WorkerRow(*row) for row in connection.execute(select(*_WORKER).where(workers.c.id.in_(held)))]

    def add_event(self, sweep_id: int, event: EventRow) -> None:
        """Note what changed no state.

        Raises:
            ValueError: a number that is not finite.
        """
        _check_finite(data=event.data)
        with self._write() as connection:
            _tell(connection, sweep_id, event)

    def events(self, sweep_id: int, after: int = 0, limit: int | None = None) -> list[EventRow]:
        """What happened to a sweep and its trials, in order, from behind the event with the id `after`."""
        with self._read() as connection:
            mine = select(*_EVENT).where(events.c.sweep_id == sweep_id, events.c.id > after)
            return [EventRow(*row) for row in connection.execute(mine.order_by(events.c.id).limit(limit))]

    def last_events(self, sweep_id: int, limit: int) -> list[EventRow]:
        """The newest first."""
        with self._read() as connection:
            rows = connection.execute(
                select(*_EVENT).where(events.c.sweep_id == sweep_id).order_by(events.c.id.desc()).limit(limit)
            )
            return [EventRow(*row) for row in rows]

    def last_event(self, sweep_id: int) -> int:
        """Id of the last event, 0 for none."""
        with self._read() as connection:
            last = connection.scalar(select(func.max(events.c.id)).where(events.c.sweep_id == sweep_id))
        return last or 0

    # access

    def add_token(self, name: str, sha256: str, scope: Scope, seconds: float | None) -> TokenRow:
        """
        Args:
            sha256: of the token, in hex.
            seconds: that it is good for; None: until it is revoked.

        Raises:
            TokenExists
        """
        expires_at = None if seconds is None else now() + seconds
        values = {"name": name, "sha256": sha256, "scope": scope, "created_at": now(), "expires_at": expires_at}
        try:
            with self._write() as connection:
                return TokenRow(*connection.execute(insert(tokens).values(**values).returning(*_TOKEN)).one())
        except IntegrityError:
            raise TokenExists(name) from None

    def tokens(self) -> list[TokenRow]:
        """The oldest first, with those that are no longer good."""
        with self._read() as connection:
            return [TokenRow(*row) for row in connection.execute(select(*_TOKEN).order_by(tokens.c.id))]

    def good_token(self, sha256: str | None = None) -> TokenRow | None:
        """The token of this digest, or any, if it is neither revoked nor expired; that it was used is noted."""
        good = and_(
            tokens.c.sha256 == sha256 if sha256 is not None else true(),
            tokens.c.revoked_at.is_(None),
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now()),
        )
        with self._read() as connection:
            found = connection.execute(select(*_TOKEN, now()).where(good).limit(1)).first()
        if found is None:
            return None
        token, time = TokenRow(*found[:-1]), found[-1]
        if sha256 is not None and time - (token.used_at or 0.0) > _USED_SECONDS:
            try:
                with self._write() as connection:
                    connection.execute(update(tokens).where(tokens.c.name == token.name).values(used_at=now()))
            except DatabaseUnavailable as error:  # full, or a standby: it can be looked at all the same
                log.warning("%s; the use of a token is not noted", error)
        return token

    def revoke_token(self, name: str) -> TokenRow:
        """It is good no more; nothing changes where it was revoked before.

        Raises:
            TokenNotFound
        """
        revoked_at = func.coalesce(tokens.c.revoked_at, now())
        with self._write() as connection:
            revoke = update(tokens).where(tokens.c.name == name).values(revoked_at=revoked_at)
            row = connection.execute(revoke.returning(*_TOKEN)).first()
        if row is None:
            raise TokenNotFound(name, [token.name for token in self.tokens()])
        return TokenRow(*row)

    def add_action(self, action: ActionRow) -> None:
        """Note that somebody asked for something."""
        values = {"actor": action.actor, "action": action.action, "target": action.target, "data": action.data}
        with self._write() as connection:
            connection.execute(insert(actions).values(**values, at=now()))

    def actions(self, after: int = 0, limit: int | None = None) -> list[ActionRow]:
        """Who asked for what, in order, from behind the one with the id `after`."""
        with self._read() as connection:
            rows = select(*_ACTION).where(actions.c.id > after).order_by(actions.c.id).limit(limit)
            return [ActionRow(*row) for row in connection.execute(rows)]

    # the mirror

    def pending(self, sweep_id: int, after: int = -1, limit: int = 50) -> list[Pending]:
        """Trials with a number above `after`, by number, of which the tracking server has not seen all; not those
        without parameters, of which there is nothing to show. Where many epochs wait there are fewer trials, the last
        of them with a part of its epochs, and it stays pending.
        """
        behind = and_(
            trials.c.sweep_id == sweep_id,
            trials.c.number > after,
            trials.c.revision > trials.c.mirrored_revision,
            trials.c.hyperparameters.is_not(None),
        )
        with self._read() as connection:
            rows = connection.execute(select(*_TRIAL).where(behind).order_by(trials.c.number).limit(limit))
            found = [TrialRow(*row) for row in rows]
            ids = [trial.id for trial in found]
            unseen = and_(epochs.c.trial_id.in_(ids), epochs.c.mirrored_at.is_(None))
            waiting = _by_trial(connection, ids, unseen, _EPOCHS_AT_ONCE)
            if sum(map(len, waiting.values())) == _EPOCHS_AT_ONCE:
                last = max(trial_id for trial_id, rows_of_it in waiting.items() if rows_of_it)
                found = [trial for trial in found if trial.id <= last]
            condemned = {row.trial_id: row for row in _decided(connection, trials.c.id.in_(ids))}
        return [Pending(trial, waiting[trial.id], condemned.get(trial.id)) for trial in found]

    def examples(self, trial_id: int) -> dict[int, dict[str, Any]]:
        """What the trial read into some sentences, by epoch, ascending: see `model.examples`."""
        rows = tables.examples
        with self._read() as connection:
            wanted = select(rows.c.epoch, rows.c.content).where(rows.c.trial_id == trial_id).order_by(rows.c.epoch)
            return {row.epoch: row.content for row in connection.execute(wanted)}

    def count_pending(self, sweep_id: int) -> tuple[int, int]:
        """How many trials the tracking server has not seen all of, and how many epochs."""
        shown = and_(trials.c.sweep_id == sweep_id, trials.c.hyperparameters.is_not(None))
        behind = select(func.count()).select_from(trials).where(shown, trials.c.revision > trials.c.mirrored_revision)
        unseen = select(func.count()).select_from(epochs).join(trials).where(shown, epochs.c.mirrored_at.is_(None))
        with self._read() as connection:
            return connection.execute(behind).scalar_one(), connection.execute(unseen).scalar_one()

    def forget_mirrored(self, sweep_id: int, tracking: str | None = None, experiment_id: str | None = None) -> None:
        """Everything is to be shipped: to that experiment of that tracking server, or to the next that is opened."""
        mine = select(trials.c.id).where(trials.c.sweep_id == sweep_id)
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            facts = {key: fact for key, fact in sweep.facts.items() if key not in (RANGE_TEST_RUN, PICTURES)}
            place = {"tracking": tracking, "experiment_id": experiment_id}
            connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(**place, facts=facts))
            connection.execute(
                update(trials).where(trials.c.sweep_id == sweep_id).values(run_id=None, mirrored_revision=0)
            )
            connection.execute(update(epochs).where(epochs.c.trial_id.in_(mine)).values(mirrored_at=None))

    def set_run_id(
        self, sweep_id: int, trial_id: int | None, run_id: str, *, instead_of: str | None, place: tuple[str, str]
    ) -> str | None:
        """Make `run_id` the trial's run, or the range test's (`trial_id` None), unless another process was faster.

        Args:
            instead_of: the run that it had so far. What that one was given is to be shipped to the new one.
            place: the tracking server and the experiment that `run_id` is of.

        Returns: the run it has now; None where the sweep is shipped to another place by now.
        """
        with self._write() as connection:
            sweep = _lock_sweep(connection, sweep_id)
            if (sweep.tracking, sweep.experiment_id) != place:
                return None
            known: str | None = sweep.facts.get(RANGE_TEST_RUN)
            if trial_id is not None:
                known = connection.scalar(select(trials.c.run_id).where(trials.c.id == trial_id).with_for_update())
            if known != instead_of:
                return known
            if trial_id is None:
                facts = {**sweep.facts, RANGE_TEST_RUN: run_id}
                connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(facts=facts))
                return run_id
            connection.execute(update(trials).where(trials.c.id == trial_id).values(run_id=run_id, mirrored_revision=0))
            connection.execute(update(epochs).where(epochs.c.trial_id == trial_id).values(mirrored_at=None))
            return run_id

    def mark_mirrored(self, trial_id: int, run_id: str | None, epochs: Sequence[int], revision: int) -> None:
        """The tracking server has these epochs in that run, and the trial as of `revision`; nothing is marked where the
        trial has another run by now. While other epochs wait the trial stays pending, so that `pending` need look at
        trials alone; so it does where `revision` is an old one, whose state may have been written over the new one.
        """
        rows = tables.epochs
        waiting = and_(rows.c.trial_id == trial_id, rows.c.mirrored_at.is_(None))
        with self._write() as connection:
            known = connection.execute(select(trials.c.run_id).where(trials.c.id == trial_id).with_for_update()).first()
            if known is None or known.run_id != run_id:
                return
            connection.execute(update(rows).where(waiting, rows.c.epoch.in_(epochs)).values(mirrored_at=now()))
            connection.execute(
                update(trials)
                .where(trials.c.id == trial_id, ~exists().where(waiting))
                .values(mirrored_revision=revision)
            )

    # what somebody is to be told

    def notifications(self, sweep_id: int) -> list[NotificationRow]:
        """What was to be told of a sweep so far, sent or not, the oldest first."""
        with self._read() as connection:
            return _notifications(connection, tables.notifications.c.sweep_id == sweep_id)

    def add_notification(
        self, sweep_id: int, channels: Sequence[str], key: str, kind: str, text: str, data: Mapping[str, Any]
    ) -> None:
        """It is to be told to these channels. One that was to be told before, to whomever, stays as it was.

        Raises:
            ValueError: a number that is not finite.
        """
        _check_finite(data=data)
        rows = tables.notifications
        common = {"sweep_id": sweep_id, "key": key, "kind": kind, "text": text, "data": data}
        with self._write() as connection:
            _lock_sweep(connection, sweep_id)
            if channels and not _notifications(connection, and_(rows.c.sweep_id == sweep_id, rows.c.key == key)):
                values = [{**common, "channel": channel} for channel in channels]
                connection.execute(insert(rows).values(created_at=now(), try_at=now()), values)

    def take_notification(self, channels: Collection[str], hold_seconds: float) -> NotificationRow | None:
        """The next message that is due to one of these channels; nobody else is given it while it is held."""
        rows = tables.notifications
        with self._write() as connection:
            due = and_(rows.c.channel.in_(channels), rows.c.try_at <= now())
            chosen = select(rows.c.sweep_id, rows.c.key, rows.c.channel).where(due).order_by(rows.c.try_at).limit(1)
            found = connection.execute(chosen.with_for_update(skip_locked=True)).one_or_none()
            if found is None:
                return None
            which = _is_notification(*found)
            held = {"tries": rows.c.tries + 1, "try_at": now() + hold_seconds, "trouble": ""}
            connection.execute(update(rows).where(which).values(**held))
            return _notifications(connection, which)[0]

    def notification_sent(self, row: NotificationRow) -> None:
        rows, which = tables.notifications, _is_notification(row.sweep_id, row.key, row.channel)
        with self._write() as connection:
            connection.execute(update(rows).where(which).values(sent_at=now(), try_at=None, trouble=""))

    def notification_failed(self, row: NotificationRow, trouble: str, wait_seconds: float, give_up: float) -> bool:
        """It was not told, and is tried again after a wait; or, where that would be `give_up` seconds after it was
        written, given up. Returns whether it is.
        """
        rows, which = tables.notifications, _is_notification(row.sweep_id, row.key, row.channel)
        with self._write() as connection:
            late = rows.c.created_at + give_up < now() + wait_seconds
            failed = update(rows).where(which, rows.c.sent_at.is_(None))
            changed = failed.values(trouble=trouble, try_at=case((late, None), else_=now() + wait_seconds))
            # Deleted meanwhile: nobody is to be told of it.
            given_up = [try_at is None for try_at in connection.scalars(changed.returning(rows.c.try_at))]
            if any(given_up):
                about = {"channel": row.channel, "kind": row.kind, "tries": row.tries}
                _tell(connection, row.sweep_id, EventRow("not_told", f"{row.channel}: {trouble}", data=about))
            return any(given_up)

    def waiting_notifications(self, channels: Collection[str]) -> list[NotificationRow]:
        """Those that were not sent, and will be tried again."""
        rows = tables.notifications
        with self._read() as connection:
            return _notifications(connection, and_(rows.c.channel.in_(channels), rows.c.try_at.is_not(None)))

    def hasten_notifications(self, channels: Collection[str]) -> None:
        """Those that wait for another try are due now."""
        rows = tables.notifications
        waiting = and_(rows.c.channel.in_(channels), rows.c.try_at.is_not(None), rows.c.trouble != "")
        with self._write() as connection:
            connection.execute(update(rows).where(waiting).values(try_at=now()))

    # scores by sentence

    def add_scores(self, sweep_id: int, rows: Sequence[ScoreRow]) -> None:
        """Keep how trials of this sweep read a split. What is there already stays: the first look counts. The sweep's
        first look at test is an event.
        """
        scores = tables.scores
        with self._write() as connection:
            _lock_sweep(connection, sweep_id)
            of_sweep = select(scores.c.trial_id, scores.c.split).join(trials).where(trials.c.sweep_id == sweep_id)
            there = {(trial_id, split) for trial_id, split in connection.execute(of_sweep)}
            new = [row for row in rows if (row.trial_id, row.split) not in there]
            if not new:
                return
            values = [{**asdict(row), "scored_at": None} for row in new]
            connection.execute(insert(scores).values(scored_at=now()), values)
            on_test = [row for row in new if row.split == "test"]
            if on_test and "test" not in {split for _, split in there}:
                count = len(on_test[0].sentences)
                told = f"the {count} sentences of the test split are looked at, once for each run"
                _tell(connection, sweep_id, EventRow("test_scored", told, data={"sentences": count}))

    def scores(self, sweep_id: int) -> list[ScoreRow]:
        """By trial number; of each trial dev, then test."""
        scores = tables.scores
        with self._read() as connection:
            of_sweep = select(*_SCORE).join(trials).where(trials.c.sweep_id == sweep_id)
            rows = connection.execute(of_sweep.order_by(trials.c.number, scores.c.split))
            return [ScoreRow(*row) for row in rows]

    def looks_at_test(self) -> dict[int, float]:
        """When each sweep (by its id) first looked at the test split of its corpus, of those that did."""
        scores = tables.scores
        with self._read() as connection:
            first = select(trials.c.sweep_id, func.min(scores.c.scored_at)).select_from(scores).join(trials)
            rows = connection.execute(first.where(scores.c.split == "test").group_by(trials.c.sweep_id))
            return {row.sweep_id: row[1] for row in rows}

    # the forecast

    def epochs_of(self, trial_ids: Sequence[int]) -> dict[int, list[EpochRow]]:
        """The epochs of some trials, by trial id; a trial without any has an empty list."""
        found: dict[int, list[EpochRow]] = {}
        with self._read() as connection:
            for start in range(0, len(trial_ids), _TRIALS_AT_ONCE):
                some = trial_ids[start : start + _TRIALS_AT_ONCE]
                found |= _by_trial(connection, some, epochs.c.trial_id.in_(some))
        return found

    # what earlier sweeps say to the sampler

    def priors(self, sweep_id: int) -> list[PriorRow]:
        """Trials of earlier sweeps that the sampler of this one is shown, in order."""
        columns = [tables.priors.c[field.name] for field in fields(PriorRow)]
        found = select(*columns).where(tables.priors.c.sweep_id == sweep_id).order_by(tables.priors.c.number)
        with self._read() as connection:
            return [PriorRow(*row) for row in connection.execute(found)]

    # transactions

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        with database_errors(self.url), engine.begin() as connection:
            yield connection

    def _read(self) -> AbstractContextManager[Connection]:
        return self._transaction(self._reading)

    def _write(self) -> AbstractContextManager[Connection]:
        return self._transaction(self._writing)

    def _unavailable(self, why: object) -> DatabaseUnavailable:
        return _unavailable(self._engine.url, why)

    def _check_schema(self) -> None:
        with self._read() as connection:
            found = migrations.schema(connection)
        if found.revision is None:
            with self._write() as connection:
                _lock_schema(connection)
                found = migrations.schema(connection)
                if found.revision is None:  # no other process was faster
                    migrations.upgrade(connection)
                    found = migrations.schema(connection)
        _refuse_newer(self._engine.url, found)
        if not found.current:
            assert found.revision is not None
            command = f"sweeps db upgrade --database {without_password(self.url)}"
            raise DatabaseOutdated(self._engine.url.render_as_string(), found.revision, found.needed, command)

    def _update_sweep(self, sweep_id: int, **values: Any) -> None:
        with self._write() as connection:
            changed = connection.execute(update(sweeps).where(sweeps.c.id == sweep_id).values(**values))
            if not changed.rowcount:
                raise SweepNotFound(str(sweep_id))

    def _beat(self, sweep_id: int, runner: str, **values: Any) -> bool:
        # A longer silence is one of a machine that slept: that time is not the sweep's.
        silent = now() - sweeps.c.runner_beat_at
        seconds = sweeps.c.seconds + case((silent < LONGEST_BEAT_SECONDS, silent), else_=LONGEST_BEAT_SECONDS)
        held = and_(sweeps.c.id == sweep_id, sweeps.c.runner_id == runner)
        with self._write() as connection:
            return bool(connection.execute(update(sweeps).where(held).values(seconds=seconds, **values)).rowcount)

    @contextmanager
    def _write_mine(self, claim: Claim, what: str) -> Iterator[Connection]:
        """A transaction for whoever holds the claim. Where it raises LeaseLost, that this was tried is an event."""
        try:
            with self._write() as connection:
                yield connection
        except LeaseLost:
            with self._write() as connection:
                if connection.scalar(select(sweeps.c.id).where(sweeps.c.id == claim.sweep_id)) is not None:
                    _tell(connection, claim.sweep_id, _of(claim, "late_write_refused", f"tried to {what}"))
            raise

    def _update_mine(
        self, claim: Claim, told: EventRow | None = None, decision: DecisionRow | None = None, **values: Any
    ) -> None:
        """Change the claimed trial, and keep the decision against it unless there is one."""
        if decision is not None:
            assert decision.trial_id == claim.trial_id
            _check_finite(numbers=decision.numbers, thresholds=decision.thresholds)
        with self._write_mine(claim, f"write {', '.join(values)}") as connection:
            if not connection.execute(update(trials).where(_mine(claim)).values(**values)).rowcount:
                again, done = False, and_(trials.c.id == claim.trial_id, trials.c.attempt == claim.attempt)
                state = connection.scalar(select(trials.c.state).where(done))
                if state is not None and state == values.get("state"):
                    again = state.terminal or (told is not None and _was_told(connection, claim, told.kind))
                if again:
                    return  # the answer to the first time was lost
                raise LeaseLost(claim.number, claim.attempt)
            if told is not None:
                _tell(connection, claim.sweep_id, _of(claim, told.kind, told.text, **told.data))
            if decision is not None and not _decided(connection, trials.c.id == claim.trial_id):
                row = {column.name: getattr(decision, column.name) for column in decisions.c}
                connection.execute(insert(decisions).values({**row, "recorded_at": now()}))

    def _trials(self, *where: ColumnElement[bool], limit: int | None = None) -> list[TrialRow]:
        with self._read() as connection:
            rows = connection.execute(select(*_TRIAL).where(*where).order_by(trials.c.number).limit(limit))
            return [TrialRow(*row) for row in rows]

    def _remembered(self, connection: Connection, sweep: SweepRow) -> _Memory:
        """With every trial as it is now. A memory is never changed, only replaced: threads may share a store."""
        of = (sweep.id, sweep.created_at)  # SQLite gives the id of a deleted sweep to the next one
        memory = self._memories.get(of, _Memory(of))
        unread, going_on = next(reversed(memory.trials), -1) + 1, memory.going_on
        if len(going_on) > _TRIALS_AT_ONCE:
            unread, going_on = min(going_on), []
        rows = connection.execute(_CHANGED, {"of_sweep": sweep.id, "unread": unread, "going_on": going_on})
        read = {trial.number: trial for trial in (TrialRow(*row) for row in rows)}
        known = {**memory.trials, **read} if read else memory.trials
        return replace(
            memory,
            trials=known,
            going_on=[number for number, trial in read.items() if not trial.state.terminal],
            behind={
                n for n in memory.behind | read.keys() if known[n].epochs > len(memory.curves.get(known[n].id, ()))
            },
        )

    def _remember(self, memory: _Memory) -> _Memory:
        kept = {of: known for of, known in self._memories.items() if of != memory.of}
        for oldest in list(kept)[: len(kept) + 1 - _MEMORIES]:
            del kept[oldest]
        self._memories = {**kept, memory.of: memory}
        return memory

    def _decisions(self, where: ColumnElement[bool]) -> list[DecisionRow]:
        with self._read() as connection:
            return _decided(connection, where)


@dataclass(frozen=True)
class _Memory:
    """What a store has read of one sweep and need not read again."""

    of: tuple[int, float]
    """The sweep's id, and when it was made."""
    trials: dict[int, TrialRow] = field(default_factory=dict)
    """By number, in this order."""
    going_on: list[int] = field(default_factory=list)
    """Numbers of those that were not over."""
    curves: dict[int, list[EpochReport]] = field(default_factory=dict)
    """By the trial's id."""
    behind: set[int] = field(default_factory=set)
    """Numbers of those that had more epochs when they were read than are known here."""


@dataclass(frozen=True)
class Upgraded:
    """What `upgrade` has done."""

    before: str | None
    """Revision; None: there were no tables."""
    after: str
    copy: Path | None
    """Of the SQLite file as it was before."""


def schema(url: str) -> migrations.Schema:
    """How far the tables of a database are; makes none, and no file.

    Raises:
        ValueError: not a database we run on.
        DatabaseUnavailable: it cannot be reached.
    """
    address = database_url(url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").exists():
        return migrations.schema(None)
    with _opened(address) as engine, engine.connect() as connection:
        return migrations.schema(connection)


def upgrade(
    url: str, stale_seconds: float, holder_is_dead: Callable[[Runner], bool], *, force: bool = False
) -> Upgraded:
    """Bring a database's tables up to date, in one transaction: an upgrade that fails changes nothing. An SQLite file
    is copied beside itself before.

    Args:
        stale_seconds, holder_is_dead: as for `Store.take_runner`.
        force: do so even while a live process runs a sweep.

    Raises:
        ValueError: not a database we run on.
        DatabaseUnavailable: it cannot be reached or written, or was made by a newer version.
        SweepBusy: a live process runs a sweep of this database.
    """
    address = database_url(url)
    # SQLite changes a table by making another and dropping the old one, at which rows that refer to it would stop it.
    with (
        _opened(address, "foreign_keys = OFF") as engine,
        engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").begin() as connection,
    ):
        _lock_schema(connection)
        found = migrations.schema(connection)
        _refuse_newer(address, found)
        if found.current:
            return Upgraded(found.revision, found.needed, None)
        copy = None
        if found.revision is not None and not force:
            _refuse_while_kept(connection, stale_seconds, holder_is_dead)
        if found.revision is not None and engine.name == "sqlite":
            copy = _copied_beside(connection, found.revision)
        migrations.upgrade(connection)
        if engine.name == "sqlite" and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
            raise _unavailable(address, f"rows of {broken[0]} refer to rows of {broken[2]} that are not there")
    return Upgraded(found.revision, found.needed, copy)


@contextmanager
def _opened(address: URL, *pragmas: str) -> Iterator[Engine]:
    engine = create_engine(address, **engine_options(address.render_as_string()))
    try:
        if engine.name == "sqlite":
            _prepare_sqlite(engine, *pragmas)
        yield engine
    except (DBAPIError, sqlite3.Error, OSError) as error:
        raise _unavailable(address, error.orig if isinstance(error, DBAPIError) else error) from error
    finally:
        engine.dispose()


def _unavailable(address: URL, why: object) -> DatabaseUnavailable:
    return DatabaseUnavailable(address.render_as_string(), " ".join(str(why).split()))


def _refuse_newer(address: URL, found: migrations.Schema) -> None:
    if found.newer:
        why = f"its schema {found.revision} was made by a newer version of ctc-sweeps: install that version"
        raise _unavailable(address, why)


def _lock_schema(connection: Connection) -> None:
    """Nobody else makes or upgrades the tables until this transaction ends."""
    if connection.dialect.name == "postgresql":  # in SQLite the transaction is the only one that writes
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})


def _refuse_while_kept(connection: Connection, stale_seconds: float, holder_is_dead: Callable[[Runner], bool]) -> None:
    holder = (sweeps.c.runner_id, sweeps.c.runner_host, sweeps.c.runner_pid)  # every revision has these
    silent = now() - sweeps.c.runner_beat_at
    beating = select(sweeps.c.name, silent, *holder).where(sweeps.c.runner_id.is_not(None), silent < stale_seconds)
    for name, seconds, *values in connection.execute(beating):
        runner = Runner(*values)
        if not holder_is_dead(runner):
            raise SweepBusy(name, str(runner), seconds)


def _copied_beside(connection: Connection, revision: str) -> Path:
    """A copy of the SQLite file of a connection that holds its write lock: of what is committed, and nothing after."""
    file = Path(connection.exec_driver_sql("SELECT file FROM pragma_database_list WHERE name = 'main'").scalar_one())
    copy = file.with_name(f"{file.stem}-{revision}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{file.suffix}")
    aside = copy.with_name(f".{copy.name}.part")
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(aside)) as target:
            source.backup(target)
        aside.replace(copy)
    finally:
        aside.unlink(missing_ok=True)
    return copy


def _prepare_sqlite(engine: Engine, *pragmas: str) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own: `begin` below does
        for pragma in (*_PRAGMAS, *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    # Stored in the file. While another one writes, setting it fails at once, whatever the busy timeout is.
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        finally:
            connection.close()


def _lock_sweep(connection: Connection, sweep_id: int) -> Row[Any]:
    """The sweep's row, which nobody else changes until this transaction ends.

    Others may point at it meanwhile (`key_share`): an event that is inserted by who holds a trial must not wait for who
    holds the sweep and waits for that trial.
    """
    found = select(sweeps).where(sweeps.c.id == sweep_id)
    row = connection.execute(found.with_for_update(key_share=True)).one_or_none()
    if row is None:
        raise SweepNotFound(str(sweep_id))
    return row


def _check_goes_on(sweep: Row[Any]) -> None:
    """
    Raises:
        WrongState: no trial of it will be trained any more.
    """
    if sweep.state != SweepState.RUNNING and not sweep.state.may_become(SweepState.RUNNING):
        raise WrongState(f"sweep {sweep.name!r} is {sweep.state} and does not go on: make another one")


def _budget_left(connection: Connection, sweep: Row[Any], more: int) -> bool:
    """Whether the budget of the (locked) sweep allows `more` epochs."""
    if not is_limited(sweep.budget):
        return True
    sums = (func.coalesce(func.sum(column), 0) for column in (trials.c.reserved_epochs, trials.c.seconds))
    reserved, trained = connection.execute(select(*sums).where(trials.c.sweep_id == sweep.id)).one()
    return exceeded(sweep.budget, Spending(reserved, sweep.seconds, trained), more) is None


def _next_number(connection: Connection, sweep: Row[Any]) -> int | None:
    """The next free trial number of the (locked) sweep; None where its budget has no trial left."""
    last = connection.scalar(select(func.max(trials.c.number)).where(trials.c.sweep_id == sweep.id))
    number = 0 if last is None else int(last) + 1
    return number if number < sweep.budget["trials"] else None


def _configurations_left(connection: Connection, sweep: Row[Any]) -> bool:
    """Whether the (locked) sweep's space has a configuration that no trial has, or will be given."""
    most = sweep.facts.get(CONFIGURATIONS)
    if most is None:
        return True
    begun = select(func.count()).where(trials.c.sweep_id == sweep.id, trials.c.in_space)
    return bool(connection.execute(begun).scalar_one() < most)


def _trial_of(
    connection: Connection,
    sweep_id: int,
    hyperparameters: Mapping[str, Any],
    overrides: Mapping[str, Any],
    but: int = -1,
) -> str | None:
    """Number and name of the first trial with these values, but for the one of that id."""
    known = select(trials.c.number, trials.c.name, trials.c.hyperparameters, trials.c.overrides).where(
        trials.c.sweep_id == sweep_id, trials.c.id != but, trials.c.hyperparameters.is_not(None)
    )
    for row in connection.execute(known.order_by(trials.c.number)):
        if row.hyperparameters == dict(hyperparameters) and row.overrides == dict(overrides):
            return f"{row.number} {row.name}" if row.name else str(row.number)
    return None


def _mine(claim: Claim) -> ColumnElement[bool]:
    return and_(trials.c.id == claim.trial_id, trials.c.attempt == claim.attempt, trials.c.state == TrialState.RUNNING)


def _count_epochs(connection: Connection, claim: Claim, rows: Sequence[EpochRow], *, again: bool = False) -> bool:
    """Count epochs that the claimed trial does not have into its row. False, and nothing is changed, where it may have
    some of them: unless they are `again` known to be new, only those behind its last one are.
    """
    wer, epoch = min((row.metrics.get("dev/wer", math.inf), row.epoch) for row in rows)
    counted = {
        "of_trial": claim.trial_id,
        "of_attempt": claim.attempt,
        "first": _NO_EPOCH if again else min(row.epoch for row in rows),
        "last": max(row.epoch for row in rows),
        "more_seconds": sum(row.seconds for row in rows),
        "wer": None if math.isinf(wer) else wer,
        "its_epoch": epoch,
    }
    return bool(connection.execute(_COUNT_EPOCHS, counted).rowcount)


def _waiting(reason: str | ColumnElement[str]) -> dict[str, Any]:
    return {
        "state": TrialState.WAITING,
        "worker": None,
        "lease_expires_at": None,
        "reason": reason,
        "reserved_epochs": trials.c.epochs,
        "revision": _next_revision,
    }


def _waiting_or_failed(reason: str | ColumnElement[str], max_attempts: int) -> dict[str, Any]:
    held = trials.c
    given_up = held.fruitless_attempts >= max_attempts
    state = {which: literal(which, held.state.type) for which in (TrialState.FAILED, TrialState.WAITING)}
    why = literal(reason) if isinstance(reason, str) else reason
    limit = f" (attempts in a row without a new epoch: {max_attempts} at most): see its log"
    return {
        **_waiting(case((given_up, why + limit), else_=why)),
        "state": case((given_up, state[TrialState.FAILED]), else_=state[TrialState.WAITING]),
        "rule": case((given_up, "fault")),
        "finished_at": case((given_up, now())),
        "worker": case((given_up, held.worker)),
    }


def _of(claim: Claim, kind: str, text: str = "", **data: Any) -> EventRow:
    return EventRow(kind, text, claim.number, claim.attempt, claim.worker, data)


def _tell(connection: Connection, sweep_id: int, event: EventRow) -> None:
    values = {"sweep_id": sweep_id, "kind": event.kind, "text": event.text, "data": event.data}
    about = {"trial_number": event.trial_number, "attempt": event.attempt, "worker": event.worker}
    if connection.dialect.name == "postgresql":
        # Ids in the order of commits, else who reads from behind the last one misses those that commit late. It is the
        # last lock that a transaction takes.
        connection.execute(select(func.pg_advisory_xact_lock(_EVENTS_LOCK, sweep_id)))
    connection.execute(insert(events).values(**values, **about, at=now()))


def _was_told(connection: Connection, claim: Claim, kind: str) -> bool:
    """Whether the claim's holder has told an event of this kind."""
    trial = and_(events.c.sweep_id == claim.sweep_id, events.c.trial_number == claim.number)
    by_holder = and_(events.c.attempt == claim.attempt, events.c.worker == claim.worker, events.c.kind == kind)
    return bool(connection.scalar(select(exists().where(trial, by_holder))))


def _by_trial(
    connection: Connection, trial_ids: Sequence[int], where: ColumnElement[bool], limit: int | None = None
) -> dict[int, list[EpochRow]]:
    found: dict[int, list[EpochRow]] = {trial_id: [] for trial_id in trial_ids}
    rows = select(epochs.c.trial_id, *_EPOCH).where(where).order_by(epochs.c.trial_id, epochs.c.epoch).limit(limit)
    for trial_id, *row in connection.execute(rows):
        found[trial_id].append(EpochRow(*row))
    return found


def _decided(connection: Connection, where: ColumnElement[bool]) -> list[DecisionRow]:
    """Decisions by the number of their trial."""
    rows = select(*_DECISION).join_from(decisions, trials).where(where).order_by(trials.c.number)
    return [DecisionRow(*row) for row in connection.execute(rows)]


def _is_notification(sweep_id: int, key: str, channel: str) -> ColumnElement[bool]:
    rows = tables.notifications.c
    return and_(rows.sweep_id == sweep_id, rows.key == key, rows.channel == channel)


def _notifications(connection: Connection, where: ColumnElement[bool]) -> list[NotificationRow]:
    """With the name of their sweep, the oldest first."""
    rows, of = tables.notifications, {"sweep": sweeps.c.name, "sweep_created_at": sweeps.c.created_at}
    columns = [of[f.name] if f.name in of else rows.c[f.name] for f in fields(NotificationRow)]
    found = select(*columns).join_from(rows, sweeps).where(where)
    oldest_first = found.order_by(rows.c.created_at, rows.c.key, rows.c.channel)
    return [NotificationRow(*row) for row in connection.execute(oldest_first)]


def _runner(sweep: Row[Any]) -> Runner | None:
    if not sweep.runner_id:
        return None
    return Runner(sweep.runner_id, sweep.runner_host, sweep.runner_pid, sweep.runner_yields)


def _sweep_row(row: Row[Any]) -> SweepRow:
    values = {f.name: getattr(row, f.name) for f in fields(SweepRow) if f.name != "runner"}
    return SweepRow(**values, runner=_runner(row))


def _check_finite(**values: Any) -> None:
    """JSON has no NaN, and a NaN that reached a database would sort and compare differently in each."""
    for path, value in values.items():
        if isinstance(value, Mapping):
            _check_finite(**{f"{path}.{key}": each for key, each in value.items()})
        elif isinstance(value, list | tuple):
            _check_finite(**{f"{path}[{i}]": each for i, each in enumerate(value)})
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path} is {value}: only finite numbers can be stored; leave the key out")
