"""Registers a copy of a handoff, with its weights, as a version of a model in MLflow's registry."""

from pathlib import Path

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.connection import connect, explained, find_run
from lightning_mmrl.tracking.delivery import MlflowDelivery
from lightning_mmrl.tracking.logged_models import DIGEST_TAG, Asked, LoggedModels
from lightning_mmrl.tracking.refusals import NotYetError

MODEL_TAG = "mmrl.model_id"
"""Tag of a version with its logged model, because a database does not keep the version's own `model_id`."""


def register(uri: str, experiment: str, name: str, asked: Asked, *, run_id: str) -> tuple[str, str]:
    """Uploads a handoff as a logged model with its weights, and makes it a version of the registered model `name`.

    A second call with the same handoff and name returns the version that is there.

    Args:
        uri: The store; its address may have credentials.
        experiment: Name of an experiment of the store.
        name: Name in the registry, created if it does not exist.
        asked: The handoff, with the copy of its weights that is uploaded.
        run_id: The tracked run of the handoff's stage.

    Returns:
        The version, and the id of its logged model.

    Raises:
        ConfigError: The store cannot be used, does not have the run, or refuses the name.
    """
    from mlflow.exceptions import MlflowException

    connection = connect(uri, experiment)
    client = connection.client
    with explained(connection.uri):
        run = find_run(connection, MlflowDelivery(connection, Path()).resolve(run_id))
        try:
            model_id = LoggedModels(connection).send(run, asked)
        except NotYetError as error:
            raise ConfigError(f"{connection.uri}: {error}; register it again in {error.wait_s:.0f} s") from error
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = client.search_model_versions(f"name='{name}'")
        version = next((each.version for each in known if each.tags.get(MODEL_TAG) == model_id), None)
        if version is None:
            tags = {DIGEST_TAG: asked.digest, MODEL_TAG: model_id}
            source = client.get_logged_model(model_id).artifact_location
            version = client.create_model_version(name, source, run.info.run_id, tags=tags, model_id=model_id).version
        return str(version), model_id
