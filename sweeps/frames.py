"""A sweep in a notebook: data frames of pandas and figures of matplotlib.

from sweeps import load

demo = load("demo")
demo.trials.sort_values("best_wer").head()
demo.figure("wer")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps import pictures
from sweeps.connect import connect
from sweeps.errors import SweepError
from sweeps.gathered import Gathered, gather, values
from sweeps.records import DecisionRow, EpochRow, TrialRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = ("created_at", "started_at", "finished_at", "recorded_at")


class SweepFrames:
    """One sweep as it was when it was loaded. WER is a fraction, times are in UTC."""

    def __init__(self, of: Gathered) -> None:
        self._of = of
        self.name = of.sweep.name

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row a trial, by `trial`, its number: what it came to, and under `params.` what it was trained with."""
        return _frame([_trial(trial) for trial in self._of.trials], _TRIAL, "trial")

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """A row an epoch of a trial, the metrics under their own names; NaN where one was not finite."""
        rows = [{"trial": number, **_epoch(row)} for number, curve in self._of.curves.items() for row in curve]
        return _frame(rows, ("trial", *_EPOCH))

    @cached_property
    def decisions(self) -> pd.DataFrame:
        """A row a condemned trial, by `trial`, its number: why, under `measured.` the numbers, under `against.` what
        they were held against.
        """
        return _frame([_decision(decision) for decision in self._of.decisions], _DECISION, "trial")

    def figure(self, kind: pictures.Kind) -> Figure:
        """
        Args:
            kind: `wer`, `spread`, `loss`: all trials by epoch; `learning_rate`: best WER by rate; `parallel`: the
                configurations; `importance`: what mattered.

        Raises:
            SweepError: another kind.
        """
        if kind not in pictures.DRAWINGS:
            raise SweepError(f"figure {kind!r}: there are {', '.join(pictures.DRAWINGS)}")
        return pictures.figure(kind, self._of)

    def __repr__(self) -> str:
        state, best = self._of.sweep.state.value.lower(), self._of.best
        found = "no WER yet" if best is None else f"best WER {best.best_wer:.1%}, of trial {best.number}"
        return f"sweep {self.name}: {state}, {len(self._of.trials)} trials, {found}"


def load(
    name: str,
    *,
    home: str | Path | None = None,
    database: str | None = None,
    server: str | None = None,
    token: str | None = None,
) -> SweepFrames:
    """Read a whole sweep. Load it again to see what has happened since.

    Args:
        home: folder of an installation. Default: SWEEPS_HOME, else ./.sweeps
        database: its URL. Default: SQLite in home.
        server: address of a `sweeps serve` instead.
        token: for it. Default: SWEEPS_TOKEN.

    Raises:
        SweepNotFound: with the nearest names.
        SweepError: the database or the server cannot be used.
    """
    with connect(server, token, home=home, database=database) as sweeps:
        return SweepFrames(gather(sweeps, name))


_TRIAL = (
    *("trial", "name", "state", "verdict", "rule", "reason", "best_wer", "best_epoch", "epochs", "attempt"),
    *("created_at", "started_at", "finished_at", "run_id"),
)
_EPOCH = ("epoch", "step", "phase", "seconds", "skipped_steps", "recorded_at")
_DECISION = (*("trial", "epoch", "rule", "verdict", "action", "reason", "counterfactual", "siblings", "recorded_at"),)


def _trial(trial: TrialRow) -> dict[str, Any]:
    known = {name: getattr(trial, name) for name in _TRIAL if name not in ("trial", "state")}
    searched = {f"params.{name}": value for name, value in values(trial).items()}
    return {"trial": trial.number, "state": trial.state.value, **known, **searched}


def _epoch(row: EpochRow) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in _EPOCH}, **row.metrics}


def _decision(decision: DecisionRow) -> dict[str, Any]:
    known = {name: getattr(decision, name) for name in _DECISION if name != "trial"}
    measured = {f"measured.{name}": value for name, value in decision.numbers.items()}
    against = {f"against.{name}": value for name, value in decision.thresholds.items()}
    return {"trial": decision.number, **known, **measured, **against}


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str], index: str | None = None) -> pd.DataFrame:
    """The rows, `columns` first, which are there even where no row is; their times as times."""
    frame = pd.DataFrame.from_records(rows)
    frame = frame.reindex(columns=[*columns, *(name for name in frame.columns if name not in columns)])
    for name in TIMES:
        if name in frame:
            frame[name] = pd.to_datetime(frame[name].astype("float64"), unit="s", utc=True)
    return frame if index is None else frame.set_index(index)
