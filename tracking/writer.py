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


@dataclass(frozen=True)
class Dataset:
    """What runs are trained on."""

    name: str
    digest: str
    """Tells it from every other one; at most 36 characters are kept."""
    source: str
    """Where it lies."""
    facts: Mapping[str, str | int | float]
    """Its sizes, for a person."""


@dataclass(frozen=True)
class ModelFile:
    """A trained model as one file, and how it is loaded."""

    key: str
    """Tells it from every other one of the experiment."""
    name: str
    file: Path
    loader: str
    """The Python module whose `_load_pyfunc(path)` gives an object with `predict`; a package of it must be installed
    where the model is loaded."""
    requirements: Sequence[str]
    """What pip has to install for that."""
    width: int
    """Columns of its input: float32 (frames, width); its output is text."""
    facts: Mapping[str, str]
    """What it was measured to be, for a person."""


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

    def set_tags(self, tags: Mapping[str, str], name: str | None = None) -> None:
        """Set or replace tags, and the run's name if one is given; a value above 8,000 characters is cut and ends in an
        ellipsis.
        """

    def set_status(self, status: RunStatus, end_time_ms: int | None = None) -> None:
        """Any status may follow any other: a resumed trial goes back to RUNNING and loses its end time.

        For an ended status without `end_time_ms` the stored end time stays; if there is none it becomes now.
        """

    def log_artifact(self, file: Path, folder: str = "") -> None:
        """Copy `file` into the run's artifacts, under `folder`; a file of that name is replaced."""

    def log_image(self, key: str, step: int, timestamp_ms: int, png: bytes) -> None:
        """Add a picture to those under `key`, through whose steps a person may slide."""

    def log_table(self, file: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> None:
        """Write a table to the artifact `file` (`NAME.json`), in the place of the one before."""

    def log_dataset(self, dataset: Dataset) -> None:
        """Say what the run was trained on."""

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

    def log_model(self, run_id: str, step: int, model: ModelFile) -> str:
        """Keep a model as one that the run `run_id` came to at `step`; one that is there under `model.key` stays.

        Returns: the id under which it is loaded.
        """

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
