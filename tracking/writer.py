"""What the rest of the product may ask of an experiment tracker: two small protocols and their records.

Every call is idempotent: made again with the same arguments it changes nothing, so that a caller who does not know
whether a call arrived makes it again. Every call has arrived when it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

RunStatus: TypeAlias = Literal["SCHEDULED", "RUNNING", "FINISHED", "FAILED", "KILLED"]
ENDED: frozenset[RunStatus] = frozenset({"FINISHED", "FAILED", "KILLED"})

MAX_TAG_LENGTH = 8_000
MAX_NAME_LENGTH = 250
NO_TAGS: Mapping[str, str] = MappingProxyType({})


class TrackingUnavailable(Exception):
    """The tracker cannot be reached, or failed on its side. The same call may succeed later: back off and retry."""


class TrackingRefused(ValueError):
    """The tracker answered and said no: a changed parameter, a deleted run or experiment. Retrying is no use."""


@dataclass(frozen=True)
class EpochPoint:
    """The metrics of one epoch.

    Raises:
        ValueError: a metric is not finite (a tracker turns infinity into 1.8e308 and draws it).
    """

    step: int
    timestamp_ms: int
    """Milliseconds since 1970. A point sent again must carry the time it had, or the tracker keeps two points."""
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {name!r} is {value} at step {self.step}: leave out what is not finite")


class RunWriter(Protocol):
    """Writes one run. Ended runs accept everything a running one does."""

    @property
    def run_id(self) -> str: ...

    def log_params(self, params: Mapping[str, str]) -> None:
        """Parameters are written once.

        Raises:
            TrackingRefused: one is there already with another value.
        """

    def log_epochs(self, points: Sequence[EpochPoint]) -> None:
        """Add points to the run's curves, any number at a time."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags; a value above 8,000 characters is cut and ends in an ellipsis."""

    def set_status(self, status: RunStatus, end_time_ms: int | None = None) -> None:
        """Any status may follow any other: a resumed trial goes back to RUNNING and loses its end time.

        For an ended status without `end_time_ms` the stored end time stays; if there is none it becomes now.
        """

    def rename(self, name: str) -> None: ...

    def log_artifact(self, file: Path, folder: str = "") -> None:
        """Copy `file` into the run's artifacts, under `folder`; a file of that name is replaced."""

    def delete_artifacts(self, folder: str) -> None:
        """Remove what is under `folder`; nothing happens where there is nothing."""

    def close(self) -> None: ...


class ExperimentWriter(Protocol):
    """Writes one experiment and opens its runs."""

    @property
    def experiment_id(self) -> str: ...

    @property
    def tracking(self) -> str:
        """The tracker, by a name that is the same for everybody who writes there and that a person can be shown."""

    def describe(self, markdown: str) -> None:
        """Set the text above the runs; cut at 8,000 characters."""

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def run(self, key: str, name: str, start_time_ms: int, tags: Mapping[str, str] = NO_TAGS) -> RunWriter:
        """The run that carries `key`, created (top-level, SCHEDULED, with `name` and `tags`) if there is none.

        A run that exists is returned as it is, so a caller that died before it stored `run_id` finds it again. Callers
        at the same time may create one each: let them agree on one, and `settle`.
        """

    def existing(self, run_id: str) -> RunWriter:
        """The writer of a run that was made before; whether it is still there shows when it is written."""

    def settle(self, key: str, run_id: str) -> RunWriter:
        """The run `run_id`, from now on the only one that carries `key`: others that do are deleted."""

    def holds(self, run_id: str) -> bool:
        """Whether that run is in this experiment, be it a deleted one."""

    def unfinished(self) -> Mapping[str, str]:
        """Id and key of every run that has not ended."""

    def delete(self, run_id: str) -> None:
        """Delete a run. It still counts as held, and can be restored by hand."""

    def download_artifact(self, run_id: str, path: str, to_folder: Path) -> Path | None:
        """Copy a run's artifact `path` (with `/` between folders) to a file of its name in `to_folder`, which is made;
        None if the run has no such file. The copy is there whole or not at all.

        Raises:
            ValueError: `path` is not a plain relative one.
        """


def cut(text: str, length: int = MAX_TAG_LENGTH) -> str:
    """`text` in at most `length` characters; a cut text ends in an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"
