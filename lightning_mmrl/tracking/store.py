"""Decides, before torch is imported, where a run is tracked, under `mlflow run` as well."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from lightning_mmrl.errors import ConfigError, MmrlError
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.tracking.leftovers import SPOOL, leftovers
from lightning_mmrl.types.redaction import redact, redact_addresses, remember

DATABASE = "mlflow.db"
"""Name of the database file in output_dir; configs/tracking/mlflow.yaml has the same name."""
STORE = "MMRL_TRACKING_URI"
"""Environment variable with the store of `mlflow run` for processes that `mmrl compare` starts under it."""

_PREFIX = "sqlite:///"


def settle_tracking(config: RunSettings) -> RunSettings:
    """Returns the configuration with the tracking store that its runs go to.

    Under `mlflow run`, this is the store of MLflow's own run (MLFLOW_TRACKING_URI), so that the stages lie below it.
    The same holds for the runs of a comparison that was called there.

    Raises:
        ConfigError: `tracking.uri` names another store than `mlflow run`, or a logger's package is not installed.
    """
    if "tensorboard" in config.tracking.loggers and find_spec("tensorboard") is None:
        raise ConfigError(
            "tracking.loggers has tensorboard, but that package is not installed; pip install tensorboard, "
            "or leave it out"
        )
    uri, theirs = config.tracking.uri, store_of_mlflow_run()
    remember(uri or "", theirs or "", os.environ.get("MLFLOW_TRACKING_URI", ""))
    if uri is None or theirs is None:
        return config
    default = f"{_PREFIX}{config.output_dir}/{DATABASE}"
    if absolute_sqlite(uri) not in (absolute_sqlite(theirs), absolute_sqlite(default)):
        raise ConfigError(
            f"tracking.uri is {redact(uri)}, but mlflow run keeps its run in {redact(theirs)}; leave tracking.uri out, "
            f"or choose the store with MLFLOW_TRACKING_URI={redact(uri)} mlflow run ..."
        )
    return replace(config, tracking=replace(config.tracking, uri=theirs))


def store_of_mlflow_run() -> str | None:
    """The store of the `mlflow run` that this process works for; None if it works for none."""
    named = os.environ.get("MLFLOW_TRACKING_URI") if os.environ.get("MLFLOW_RUN_ID") else os.environ.get(STORE)
    return named or None


def absolute_sqlite(uri: str) -> str:
    """Makes a relative SQLite path absolute, so that the UI finds the artifacts from anywhere; keeps other addresses.

    >>> absolute_sqlite("http://127.0.0.1:5000")
    'http://127.0.0.1:5000'
    """
    if uri.startswith(_PREFIX) and not uri.startswith(_PREFIX + "/"):
        return _PREFIX + str(Path(uri.removeprefix(_PREFIX)).absolute())
    return uri


def spool_folder(config: RunSettings, uri: str) -> Path:
    """Returns the folder where entries wait for one store only; it does not depend on the address's credentials."""
    spools = Path(config.output_dir) / SPOOL
    places = [absolute_sqlite(each) for each in (redact_addresses(uri), uri)]
    folder, with_credentials = (spools / hashlib.sha256(place.encode()).hexdigest()[:12] for place in places)
    if with_credentials.is_dir() and not folder.exists():
        with_credentials.rename(folder)
    return folder


def deliver_leftovers(config: RunSettings, say: Callable[[str], object]) -> None:
    """Delivers what earlier commands of this output_dir left undelivered, if there is anything; it never fails.

    The entries go to `tracking.uri`, whatever address is noted in the folder.

    Args:
        config: The configuration that `settle_tracking` returned.
        say: Receives a line or two about the delivery, or about the reason why it failed.
    """
    uri = config.tracking.uri
    if uri is None:
        return
    try:
        spool = spool_folder(config, uri)
        if not leftovers(spool):
            return
        # Loaded here: MLflow takes seconds, and most often nothing is left.
        from lightning_mmrl.tracking.flushing import flush_store

        rest = flush_store(spool, absolute_sqlite(uri), config.tracking.experiment)
    except Exception as error:  # what was asked for is finished: a disk, a lock or a client may not make it a failure
        say(f"tracking: {redact(error)}; what is undelivered is kept in {config.output_dir}/{SPOOL}")
        return
    if rest:
        say(f"tracking: what is undelivered is kept in {spool}; mmrl tracking status {config.output_dir} says why")
    else:
        say("tracking: the server now has what earlier commands had left")


def tell_leftovers(config: RunSettings, say: Callable[[str], object]) -> None:
    """Says in a line what earlier commands of this output_dir left undelivered, and how to send it; sends nothing."""
    uri = config.tracking.uri
    if uri is None:
        return
    try:
        found = leftovers(spool_folder(config, uri))
    except (MmrlError, OSError) as error:
        say(f"tracking: {redact(error)}")
        return
    if found:
        points = sum(left.pending_points + left.rejected_points for left in found)
        entries = sum(left.pending + left.rejected for left in found)
        say(
            f"tracking: {entries} entries ({points} points) wait for the server; "
            f"mmrl tracking flush {config.output_dir} sends them"
        )
