"""The MLflow writer: `MlflowClient` with explicit run, time and step; none of MLflow's global state."""

from __future__ import annotations

import io
import json
import platform
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import (
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.entities import RunStatus as MlflowStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_LOGGED_IMAGES,
    MLFLOW_RUN_NAME,
)
from PIL import Image
from requests import RequestException

from tracking.artifacts import artifact_name, placed
from tracking.links import without_credentials
from tracking.server import ARTIFACTS, store_path
from tracking.writer import (
    ENDED,
    MAX_NAME_LENGTH,
    NO_TAGS,
    Dataset,
    EpochPoint,
    ExperimentWriter,
    ModelFile,
    RunStatus,
    RunWriter,
    TrackingRefused,
    TrackingUnavailable,
    cut,
)

_KEY_TAG = "sweep_key"
_SMALL_IMAGE = 1024
"""Pixels. MLflow's own 256 make words unreadable; the page shows this one first, and slides through it."""
_MAX_DATASET_NAME, _MAX_DIGEST = 500, 36
_DESCRIPTION_TAG = "mlflow.note.content"
# MLflow's page guesses, and asks, what an experiment is for unless this tag says so.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def open_experiment(tracking_uri: str, name: str, known_as: str | None = None) -> ExperimentWriter:
    """The experiment called `name`, created if there is none.

    Args:
        tracking_uri: `http(s)://...` of a server, or `sqlite:///...` of MLflow's database.
        known_as: what the server is called for good, where the address is one for today (a local server's port): the
            URI of its database. Default: the address.

    Raises:
        TrackingUnavailable: the server or the database cannot be reached; also by every later call.
        TrackingRefused: the experiment is deleted, or the name is not allowed; also by later calls, for their reasons.
    """
    with translated(tracking_uri):
        client = MlflowClient(tracking_uri)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                client.create_experiment(name, _artifact_location(tracking_uri), dict(_EXPERIMENT_TAGS))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                    raise
            experiment = client.get_experiment_by_name(name)
        assert experiment is not None
    tracking = known_as or without_credentials(tracking_uri)
    if experiment.lifecycle_stage != "active":
        raise TrackingRefused(
            f"MLflow experiment {name!r} at {tracking} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` (MLFLOW_TRACKING_URI set to this "
            "address), or run the sweep under another name"
        )
    return _MlflowExperiment(client, tracking_uri, tracking, str(experiment.experiment_id))


def delete_experiment(tracking_uri: str, experiment_id: str, name: str, run_id: str | None) -> None:
    """Move an experiment to MLflow's bin, from which it can be restored; nothing happens where it is there or gone.

    Args:
        name: what it is called.
        run_id: one of its runs, if there is any: another server may have another experiment of that id and name.

    Raises:
        TrackingUnavailable: the server or the database cannot be reached.
        TrackingRefused: it does not allow that.
    """
    with translated(tracking_uri):
        client = MlflowClient(tracking_uri)
        try:
            experiment = client.get_experiment(experiment_id)
            ours = experiment.name == name and (
                run_id is None or client.get_run(run_id).info.experiment_id == experiment_id
            )
            if experiment.lifecycle_stage == "active" and not ours:
                shown = without_credentials(tracking_uri)
                raise TrackingRefused(f"MLflow at {shown}: experiment {experiment_id} is not that of {name!r}")
            if experiment.lifecycle_stage == "active":
                # What is in the bin keeps its name: another sweep of that name could have no experiment.
                now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
                client.rename_experiment(experiment_id, f"{experiment.name} (deleted {now})")
                client.delete_experiment(experiment_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


class _MlflowExperiment:
    def __init__(self, client: MlflowClient, tracking_uri: str, tracking: str, experiment_id: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri
        self.tracking = tracking
        self.experiment_id = experiment_id

    def describe(self, markdown: str) -> None:
        self.set_tags({_DESCRIPTION_TAG: markdown})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with translated(self._tracking_uri):
            for name, value in tags.items():
                self._client.set_experiment_tag(self.experiment_id, name, cut(value))

    def run(self, key: str, name: str, start_time_ms: int, tags: Mapping[str, str] = NO_TAGS) -> RunWriter:
        with translated(self._tracking_uri):
            found = self._search(key)
            run_id = min(found) if found else self._create(key, name, start_time_ms, tags)
        return self.existing(run_id)

    def _create(self, key: str, name: str, start_time_ms: int, tags: Mapping[str, str]) -> str:
        all_tags = {label: cut(value) for label, value in tags.items()} | {_KEY_TAG: _quote(key)}
        run = self._client.create_run(self.experiment_id, start_time_ms, all_tags, run_name=cut(name, MAX_NAME_LENGTH))
        self._client.update_run(run.info.run_id, status="SCHEDULED")  # MLflow creates every run as RUNNING
        return str(run.info.run_id)

    def existing(self, run_id: str) -> RunWriter:
        return _MlflowRun(self._client, self._tracking_uri, run_id)

    def settle(self, key: str, run_id: str) -> RunWriter:
        # Another caller's, or a twin: a request that was sent again because its answer got lost has made two.
        with translated(self._tracking_uri):
            for other in self._search(key) - {run_id}:
                self._delete(other)
        return self.existing(run_id)

    def log_model(self, run_id: str, step: int, model: ModelFile) -> str:
        key = f"{_KEY_TAG} = '{_quote(model.key)}'"
        with translated(self._tracking_uri):
            for there in self._client.search_logged_models([self.experiment_id], f"tags.{key}"):
                if there.status == LoggedModelStatus.READY:
                    return str(there.model_id)
                self._client.delete_logged_model(there.model_id)  # of a caller that died in the middle
            made = self._client.create_logged_model(
                self.experiment_id,
                name=model.name,
                source_run_id=run_id,
                tags={_KEY_TAG: _quote(model.key), **model.facts},
                model_type="ctc",
            )
            with tempfile.TemporaryDirectory() as folder:
                _write_model(Path(folder), model, run_id, made.model_id)
                self._client.log_model_artifacts(made.model_id, folder)
            self._client.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
            self._client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        return str(made.model_id)

    def holds(self, run_id: str) -> bool:
        with translated(self._tracking_uri):
            try:
                return bool(self._client.get_run(run_id).info.experiment_id == self.experiment_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return False

    def unfinished(self) -> Mapping[str, str]:
        with translated(self._tracking_uri):
            return {
                str(run.info.run_id): unquote(run.data.tags.get(_KEY_TAG, ""))
                for status in ("RUNNING", "SCHEDULED")
                for run in self._all(f"attributes.status = '{status}'")
            }

    def delete(self, run_id: str) -> None:
        with translated(self._tracking_uri):
            self._delete(run_id)

    def download_artifact(self, run_id: str, path: str, to_folder: Path) -> Path | None:
        target = to_folder / artifact_name(path)
        with translated(self._tracking_uri):
            there = self._client.list_artifacts(run_id, posixpath.dirname(path) or None)
            if not any(file.path == path and not file.is_dir for file in there):
                return None
            with placed(target) as aside:
                Path(self._client.download_artifacts(run_id, path, str(aside.parent))).replace(aside)
        return target

    def _search(self, key: str) -> set[str]:
        return {str(run.info.run_id) for run in self._all(f"tags.{_KEY_TAG} = '{_quote(key)}'")}

    def _all(self, search: str) -> Iterator[Run]:
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs([self.experiment_id], search, page_token=token or None)
            yield from page
            token = page.token or None

    def _delete(self, run_id: str) -> None:
        try:
            self._client.delete_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


class _MlflowRun:
    def __init__(self, client: MlflowClient, tracking_uri: str, run_id: str) -> None:
        self._client = client
        self._tracking_uri = tracking_uri
        self.run_id = run_id

    # `log_batch` splits what does not fit one request (1,000 metrics, 100 parameters or tags) by itself.

    def log_params(self, params: Mapping[str, str]) -> None:
        self._log_batch(params=[Param(name, value) for name, value in params.items()])

    def log_epochs(self, points: Sequence[EpochPoint]) -> None:
        self._log_batch(
            metrics=[
                Metric(name, float(value), point.timestamp_ms, point.step)
                for point in points
                for name, value in point.metrics.items()
            ]
        )

    def set_tags(self, tags: Mapping[str, str], name: str | None = None) -> None:
        named = {} if name is None else {MLFLOW_RUN_NAME: cut(name, MAX_NAME_LENGTH)}
        self._log_batch(tags=[RunTag(label, cut(value)) for label, value in {**tags, **named}.items()])

    def set_status(self, status: RunStatus, end_time_ms: int | None = None) -> None:
        with translated(self._tracking_uri):
            if status in ENDED:
                end = end_time_ms or self._client.get_run(self.run_id).info.end_time or time.time_ns() // 1_000_000
            else:
                end = 0  # MLflow has no way to clear an end time, but treats 0 as none
            # `MlflowClient` always keeps the old end time or replaces it by now; its store takes the one given.
            self._client._tracking_client.store.update_run_info(
                self.run_id, MlflowStatus.from_string(status), end, None
            )

    def log_artifact(self, file: Path, folder: str = "") -> None:
        with translated(self._tracking_uri):
            self._client.log_artifact(self.run_id, str(file), folder or None)

    # `MlflowClient.log_image` and `log_table` are not idempotent: they make up an id a call, and append. These write
    # the same files under names that follow from what they hold, and the tags that tell MLflow's page to look.

    def log_image(self, key: str, step: int, timestamp_ms: int, png: bytes) -> None:
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run_id}/{key}/{step}")
        name = f"{key.replace('/', '~')}+step+{step}+timestamp+{timestamp_ms}+{unique}"
        with translated(self._tracking_uri), tempfile.TemporaryDirectory() as folder:
            (Path(folder) / f"{name}.png").write_bytes(png)
            small = Image.open(io.BytesIO(png))
            small.thumbnail((_SMALL_IMAGE, _SMALL_IMAGE))
            # The default effort takes ten times as long, beside trials that want the cores, for a tenth of the size.
            small.save(Path(folder) / f"{name}+compressed.webp", lossless=True, method=1, quality=20)
            self._client.log_artifacts(self.run_id, folder, "images")
            self._client.set_tag(self.run_id, MLFLOW_LOGGED_IMAGES, "True")

    def log_table(self, file: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> None:
        content = {"columns": list(columns), "data": [list(row) for row in rows]}
        with translated(self._tracking_uri):
            self._client.log_text(self.run_id, json.dumps(content), artifact_name(file))
            self._client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([{"path": file, "type": "table"}]))

    def log_dataset(self, dataset: Dataset) -> None:
        entity = DatasetEntity(
            name=cut(dataset.name, _MAX_DATASET_NAME),
            digest=dataset.digest[:_MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps(dict(dataset.facts)),
        )
        inputs = [DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])]
        with translated(self._tracking_uri):
            self._client.log_inputs(self.run_id, inputs)

    def delete_artifacts(self, folder: str) -> None:
        artifact_name(folder)  # a plain path
        with translated(self._tracking_uri):
            if self._client.list_artifacts(self.run_id, folder):
                uri = self._client.get_run(self.run_id).info.artifact_uri
                repository: Any = get_artifact_repository(uri, tracking_uri=self._tracking_uri)
                repository.delete_artifacts(folder)

    def close(self) -> None:
        """Nothing is pending: every call had arrived when it returned."""

    def _log_batch(self, **entities: Any) -> None:
        with translated(self._tracking_uri):
            self._client.log_batch(self.run_id, **entities)


def _write_model(folder: Path, model: ModelFile, run_id: str, model_id: str) -> None:
    """MLflow's own format, without its detours: nothing is pickled, run or guessed to write it."""
    shutil.copyfile(model.file, folder / model.file.name)
    (folder / "requirements.txt").write_text("".join(f"{each}\n" for each in model.requirements), encoding="utf-8")
    inputs = Schema([TensorSpec(np.dtype("float32"), (-1, model.width))])
    signature = ModelSignature(inputs=inputs, outputs=Schema([ColSpec("string")]))
    described = Model(run_id=run_id, model_id=model_id, signature=signature, metadata=dict(model.facts))
    described.add_flavor("python_function", loader_module=model.loader, data=model.file.name,
                         python_version=platform.python_version())  # fmt: skip
    described.save(str(folder / "MLmodel"))


def _quote(key: str) -> str:
    """`key` without the characters that MLflow's search language cannot escape; two keys never become one."""
    return quote(key, safe="/:@ +=,")


def _artifact_location(tracking_uri: str) -> str | None:
    """Where a new experiment keeps artifacts: a server decides itself, a bare database would choose ./mlruns."""
    if not tracking_uri.startswith("sqlite:"):
        return None
    return (store_path(tracking_uri).parent / ARTIFACTS).as_uri()


@contextmanager
def translated(tracking_uri: str) -> Iterator[None]:
    """MLflow's errors in our words."""
    try:
        yield
    except (MlflowException, RequestException) as error:
        where = without_credentials(tracking_uri)
        message = " ".join(str(error).replace(tracking_uri, where).split())
        # `from None`: the original's text may show the password that a tracking URI can hold.
        if _is_unavailable(error):
            raise TrackingUnavailable(f"MLflow at {where} does not answer: {cut(message, 500)}") from None
        raise TrackingRefused(f"MLflow at {where} refused: {cut(message, 500)}") from None


def _is_unavailable(error: MlflowException | RequestException) -> bool:
    """The server could not be reached, was busy or failed. MLflow gives an unreachable server's errors status 500."""
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    else:
        status = 503 if error.response is None else error.response.status_code
    return status >= 500 or status in {408, 429}
