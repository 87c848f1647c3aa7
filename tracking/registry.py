"""MLflow's registry of models: a model that a run came to, under a name, with an alias and its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tracking.mlflow_writer import translated
from tracking.writer import cut

MAX_DESCRIPTION = 5_000

_MODEL_TAG = "logged_model"  # a search does not tell a version's model


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    alias: str
    new: bool
    """False: this model was registered under this name before."""

    @property
    def uri(self) -> str:
        """What loads it."""
        return f"models:/{self.name}@{self.alias}"


def register(
    tracking_uri: str,
    name: str,
    model_id: str,
    run_id: str,
    alias: str,
    description: str,
    tags: Mapping[str, str],
) -> Registered:
    """Register a logged model and let the alias name it. One that is registered under this name already gets no second
    version: its tags, description and the alias are set anew.

    Raises:
        TrackingUnavailable: MLflow cannot be reached.
        TrackingRefused: the name or the alias is not allowed, or this server has no registry.
    """
    tags = {**tags, _MODEL_TAG: model_id}
    with translated(tracking_uri):
        client = MlflowClient(tracking_uri)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = _version_of(client, name, model_id)
        new = version is None
        if version is None:
            # Not `models:/ID`: a bare database would look for that on the server of the environment.
            source = client.get_logged_model(model_id).artifact_location
            said = cut(description, MAX_DESCRIPTION)
            version = client.create_model_version(name, source, run_id, tags, None, said, 0, model_id)
        else:
            client.update_model_version(name, version.version, cut(description, MAX_DESCRIPTION))
            for key, value in tags.items():
                client.set_model_version_tag(name, version.version, key, value)
        client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), alias, new)


def _version_of(client: MlflowClient, name: str, model_id: str) -> ModelVersion | None:
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        for version in page:
            if version.tags.get(_MODEL_TAG) == model_id:
                return version
        if not (token := page.token):
            return None
