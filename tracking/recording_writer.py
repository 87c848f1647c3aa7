"""The in-memory twin of the MLflow writer: keeps what it is told, for tests and for a look inside."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tracking.artifacts import artifact_name, placed
from tracking.writer import (
    ENDED,
    MAX_NAME_LENGTH,
    NO_TAGS,
    Dataset,
    EpochPoint,
    ModelFile,
    RunStatus,
    TrackingRefused,
    cut,
)


@dataclass
class RecordingRun:
    """A `RunWriter` whose fields are what a tracker would hold."""

    run_id: str
    key: str
    name: str
    start_time_ms: int
    status: RunStatus = "SCHEDULED"
    end_time_ms: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)
    """Metric name to its points (step, timestamp_ms, value), in the order they came."""
    artifacts: dict[str, bytes] = field(default_factory=dict)
    images: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """By key and step."""
    tables: dict[str, list[list[str | int | float]]] = field(default_factory=dict)
    """By file; the columns' names first."""
    datasets: dict[str, Dataset] = field(default_factory=dict)
    """By digest."""
    closed: bool = False

    def log_params(self, params: Mapping[str, str]) -> None:
        for name, value in params.items():
            if self.params.get(name, value) != value:
                raise TrackingRefused(
                    f"parameter {name!r} of run {self.run_id} is {self.params[name]!r} and cannot become {value!r}"
                )
        self.params.update(params)

    def log_epochs(self, points: Sequence[EpochPoint]) -> None:
        for point in points:
            for name, value in point.metrics.items():
                curve = self.curves.setdefault(name, [])
                entry = (point.step, point.timestamp_ms, float(value))
                if entry not in curve:
                    curve.append(entry)

    def set_tags(self, tags: Mapping[str, str], name: str | None = None) -> None:
        self.tags.update({name: cut(value) for name, value in tags.items()})
        self.name = self.name if name is None else cut(name, MAX_NAME_LENGTH)

    def set_status(self, status: RunStatus, end_time_ms: int | None = None) -> None:
        self.status = status
        self.end_time_ms = (end_time_ms or self.end_time_ms or _now_ms()) if status in ENDED else None

    def log_artifact(self, file: Path, folder: str = "") -> None:
        self.artifacts[str(PurePosixPath(folder) / file.name)] = file.read_bytes()

    def log_image(self, key: str, step: int, timestamp_ms: int, png: bytes) -> None:
        self.images[(key, step)] = png

    def log_table(self, file: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> None:
        self.tables[file] = [list(columns), *map(list, rows)]

    def log_dataset(self, dataset: Dataset) -> None:
        self.datasets[dataset.digest] = dataset

    def delete_artifacts(self, folder: str) -> None:
        artifact_name(folder)
        kept = {path: content for path, content in self.artifacts.items() if not path.startswith(f"{folder}/")}
        self.artifacts.clear()
        self.artifacts.update(kept)

    def close(self) -> None:
        self.closed = True


@dataclass
class RecordingExperiment:
    """An `ExperimentWriter` that keeps its runs by key."""

    name: str = "recorded"
    experiment_id: str = "1"
    tracking: str = "memory"
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    runs: dict[str, RecordingRun] = field(default_factory=dict)
    deleted: list[RecordingRun] = field(default_factory=list)
    models: dict[str, tuple[str, int, ModelFile]] = field(default_factory=dict)
    """By key: run, step and model."""

    def describe(self, markdown: str) -> None:
        self.description = cut(markdown)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags.update({name: cut(value) for name, value in tags.items()})

    def run(self, key: str, name: str, start_time_ms: int, tags: Mapping[str, str] = NO_TAGS) -> RecordingRun:
        if key not in self.runs:
            run = RecordingRun(uuid.uuid4().hex, key, cut(name, MAX_NAME_LENGTH), start_time_ms)
            run.set_tags(tags)
            self.runs[key] = run
        return self.runs[key]

    def existing(self, run_id: str) -> RecordingRun:
        found = next((run for run in self.runs.values() if run.run_id == run_id), None)
        if found is None:
            raise TrackingRefused(f"there is no run {run_id}")
        return found

    def settle(self, key: str, run_id: str) -> RecordingRun:
        return self.existing(run_id)  # here no key has two runs

    def log_model(self, run_id: str, step: int, model: ModelFile) -> str:
        if model.key not in self.models:
            self.models[model.key] = (run_id, step, model)
        return f"m-{list(self.models).index(model.key)}"

    def holds(self, run_id: str) -> bool:
        return any(run.run_id == run_id for run in [*self.runs.values(), *self.deleted])

    def unfinished(self) -> Mapping[str, str]:
        return {run.run_id: run.key for run in self.runs.values() if run.status not in ENDED}

    def delete(self, run_id: str) -> None:
        for run in [run for run in self.runs.values() if run.run_id == run_id]:
            self.deleted.append(self.runs.pop(run.key))

    def download_artifact(self, run_id: str, path: str, to_folder: Path) -> Path | None:
        target = to_folder / artifact_name(path)
        content = self.existing(run_id).artifacts.get(path)
        if content is None:
            return None
        with placed(target) as aside:
            aside.write_bytes(content)
        return target


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
