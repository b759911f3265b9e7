"""Where a run is tracked, settled before torch is imported: the store of `mlflow run`, and missing packages."""

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.redaction import redact

DATABASE = "mlflow.db"
"""In output_dir; configs/tracking/mlflow.yaml says the same."""

_PREFIX = "sqlite:///"


def settle_tracking(config: RootConfig) -> RootConfig:
    """The configuration with the store that its runs go to.

    Under `mlflow run` that is the store of MLflow's own run (MLFLOW_TRACKING_URI), so that the stages lie below it.

    Raises:
        ConfigError: `tracking.uri` names another store than `mlflow run`, or a logger's package is not installed.
    """
    if "tensorboard" in config.tracking.loggers and find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.loggers has tensorboard, but that package is not installed; pip install tensorboard, "
            "or leave it out"
        )
    uri, theirs = config.tracking.uri, os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None or not theirs or not os.environ.get("MLFLOW_RUN_ID"):
        return config
    default = f"{_PREFIX}{config.output_dir}/{DATABASE}"
    if absolute_sqlite(uri) not in (absolute_sqlite(theirs), absolute_sqlite(default)):
        raise ConfigError(
            f"tracking.uri is {redact(uri)}, but mlflow run keeps its run in {redact(theirs)}; leave tracking.uri out, "
            f"or choose the store with MLFLOW_TRACKING_URI={redact(uri)} mlflow run ..."
        )
    return replace(config, tracking=replace(config.tracking, uri=theirs))


def absolute_sqlite(uri: str) -> str:
    """A relative SQLite path made absolute, so that the UI finds the artifacts from anywhere.

    >>> absolute_sqlite("http://127.0.0.1:5000")
    'http://127.0.0.1:5000'
    """
    if uri.startswith(_PREFIX) and not uri.startswith(_PREFIX + "/"):
        return _PREFIX + str(Path(uri.removeprefix(_PREFIX)).absolute())
    return uri
