"""A trial's begin and end in Optuna's own tables, as its storage writes them, in few statements.

Its storage asks before each value whether the trial is there, still runs and has such a value: 18 statements for a
begin and 23 for an end, a third of what a trial of 10 epochs cost besides its training; here they are 4 and 6. All else
is left to Optuna, which reads what is written here. The tables are those of its version 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb.models import (
    StudyModel,
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import TrialState
from sqlalchemy import Connection, delete, func, insert, select, update

_STUDIES, _TRIALS = StudyModel.__table__.c, TrialModel.__table__.c


def begin_trial(
    connection: Connection,
    study_id: int,
    values: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    user_attributes: Mapping[str, Any],
) -> int:
    """Begin a RUNNING trial with these values; returns its id. To be called in a transaction of its own.

    Raises:
        sqlalchemy.exc.NoResultFound: there is no such study.
    """
    # Who begins another trial of the study waits here, as its number is that of the trials before it. SQLite, which
    # knows no such lock, counts and writes them in one statement.
    connection.execute(select(_STUDIES.study_id).where(_STUDIES.study_id == study_id).with_for_update()).one()
    before = select(func.count()).select_from(TrialModel).where(_TRIALS.study_id == study_id).scalar_subquery()
    trial = {"study_id": study_id, "number": before, "state": TrialState.RUNNING, "datetime_start": _now()}
    written = connection.execute(insert(TrialModel.__table__).values(trial)).inserted_primary_key
    assert written is not None
    trial_id = int(written[0])
    _insert(
        connection,
        TrialParamModel,
        trial_id,
        [
            {
                "param_name": name,
                "param_value": distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(distributions[name]),
            }
            for name, value in values.items()
        ],
    )
    _insert(connection, TrialUserAttributeModel, trial_id, _attributes(user_attributes))
    return trial_id


def end_trial(
    connection: Connection,
    trial_id: int,
    state: TrialState,
    value: float | None,
    curve: Mapping[int, float],
    user_attributes: Mapping[str, Any],
) -> None:
    """End a RUNNING trial. Nothing happens to one that has ended, by another process just now for example, nor if there
    is none any more. To be called in a transaction of its own.

    Args:
        value: finite.
        curve: step to intermediate value (finite), all that it is to have.
    """
    running = (_TRIALS.trial_id == trial_id) & (_TRIALS.state == TrialState.RUNNING)
    # Written before anything is read: SQLite would have to begin anew if another one wrote in between.
    ended = update(TrialModel.__table__).where(running).values(state=state, datetime_complete=_now())
    if not connection.execute(ended).rowcount:
        return
    steps, attributes = TrialIntermediateValueModel.__table__, TrialUserAttributeModel.__table__
    # What was written by an earlier version, one value at a time, before it died.
    connection.execute(delete(steps).where(steps.c.trial_id == trial_id))
    said = (attributes.c.trial_id == trial_id) & attributes.c.key.in_(user_attributes)
    connection.execute(delete(attributes).where(said))
    _insert(
        connection,
        TrialIntermediateValueModel,
        trial_id,
        [
            {
                "step": step,
                "intermediate_value": each,
                "intermediate_value_type": TrialIntermediateValueModel.TrialIntermediateValueType.FINITE,
            }
            for step, each in curve.items()
        ],
    )
    _insert(connection, TrialUserAttributeModel, trial_id, _attributes(user_attributes))
    if value is not None:
        finite = TrialValueModel.TrialValueType.FINITE
        _insert(connection, TrialValueModel, trial_id, [{"objective": 0, "value": value, "value_type": finite}])


def _attributes(of_trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in of_trial.items()]


def _insert(connection: Connection, model: Any, trial_id: int, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(insert(model.__table__), [{"trial_id": trial_id, **row} for row in rows])


def _now() -> datetime:
    """As these tables have it: of UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)
