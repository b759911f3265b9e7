"""Opens an MLflow tracking server or database, so that a wrong address fails at the start of a run."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.answers import NoAnswerError, is_answer
from lightning_mmrl.tracking.refusals import WaitingError
from lightning_mmrl.types.redaction import redact, redact_addresses, remember

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

_LOCK_TIMEOUT_S = 120.0
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's default of 7 blocks a call for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a proxy may ask for a day; the spool retries by itself
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment with the view that MLflow opens for it, and the value of the view of model training."""

_NO_CHOICE = ("", "no_inferred_type", "genai_development_inferred", "custom_model_development_inferred")
"""Values of the tag that MLflow guesses by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An open tracking store.

    Attributes:
        client: MLflow's client.
        experiment_id: The experiment that new runs go to.
        uri: The address without credentials.
        remote: Whether the store is a server, possibly with a proxy in front of it.
        run_name: Name of the run whose id `connect` was given; None if it was given no id.
    """

    client: "MlflowClient"
    experiment_id: str
    uri: str
    remote: bool
    run_name: str | None = None


def connect(tracking_uri: str, experiment: str, *, run_id: str | None = None) -> Connection:
    """Opens the database or server and finds or creates the experiment.

    A SQLite database is created if it is missing. A database of an older MLflow is copied to `<name>.before-upgrade`
    and upgraded. One process at a time does so, because MLflow's migrations fail when several run at once. Artifacts go
    to the folder `mlartifacts` beside the database.

    Args:
        tracking_uri: `sqlite:///<file>` or `http(s)://<host>`.
        experiment: Name of the experiment.
        run_id: A run whose experiment is used in place of `experiment`.

    Raises:
        ConfigError: The URI has another form, no usable store answers at it, or the store has no run `run_id`.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if tracking_uri.startswith("sqlite:"):
        return _connect_sqlite(tracking_uri, experiment, run_id)
    try:
        is_address = tracking_uri.startswith(("http://", "https://")) and bool(urlsplit(tracking_uri).hostname)
    except ValueError:  # such as http://[bad
        is_address = False
    if not is_address:
        raise ConfigError(
            f"tracking_uri={redact(tracking_uri)!r} is neither sqlite:///<file> nor http(s)://<host>. "
            "Use for example sqlite:///outputs/mlflow.db; MLflow's file store (file:, ./mlruns) no longer works."
        )
    remember(tracking_uri)
    uri = redact_addresses(tracking_uri)
    with explained(uri):
        return _opened(tracking_uri, uri, experiment, run_id, artifacts=None)


def find_run(connection: Connection, run_id: str) -> "Run":
    """Looks up a run that can be continued.

    Raises:
        WaitingError: The server answers that it has no such run, or that it was deleted.
        NoAnswerError: Something else answered.
        MlflowException: Nothing answered.
    """
    from mlflow.exceptions import MlflowException

    uri = connection.uri
    try:
        run = connection.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not is_answer(error, remote=connection.remote):
            raise
        raise WaitingError(
            f"MLflow at {uri} has no run {run_id!r}; if its database was replaced, put it back, then mmrl "
            "tracking flush; else use the tracking_uri of the run, unset MLFLOW_RUN_ID, or start a new output folder"
        ) from error
    if run.info.run_id != run_id:
        raise NoAnswerError(f"{uri} answers a request for run {run_id!r} with something else")
    if run.info.lifecycle_stage != "active":
        experiment = connection.client.get_experiment(run.info.experiment_id)
        restore = how_to_restore(uri, run_id, experiment)
        raise WaitingError(f"The MLflow run {run_id!r} was deleted. Restore it: {restore}")
    return run


def how_to_restore(uri: str, run_id: str | None, experiment: "Experiment") -> str:
    """The command that restores a deleted run; if its experiment was deleted too, the command restores both."""
    if run_id is None or experiment.lifecycle_stage != "active":
        what = f"experiments restore --experiment-id {experiment.experiment_id}"
    else:
        what = f"runs restore --run-id {run_id}"
    return f"MLFLOW_TRACKING_URI={uri} mlflow {what}"


def _connect_sqlite(tracking_uri: str, experiment: str, run_id: str | None) -> Connection:
    name = tracking_uri.removeprefix("sqlite:///")
    if name == tracking_uri or name in ("", ":memory:") or "?" in name:
        raise ConfigError(
            f"tracking_uri={tracking_uri!r} names no file. Use sqlite:///<file>, four slashes for /an/absolute/path."
        )
    path = Path(name).resolve()
    uri = f"sqlite:///{path}"
    if run_id is not None and not path.is_file():
        raise ConfigError(
            f"MLFLOW_RUN_ID names a run of {tracking_uri}, and there is no {path}. Call mlflow run in the project's "
            "folder, or set MLFLOW_TRACKING_URI to an absolute path (sqlite:////...)."
        )
    with explained(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.with_name(f"{path.name}.lock").exists():
            # If the lock file cannot be created (ENOENT, as in /proc), FileLock assumes that another process works
            # there, and waits.
            try:
                tempfile.TemporaryFile(dir=path.parent).close()
            except OSError as error:
                raise ConfigError(
                    f"tracking_uri={uri!r}: no lock file can be made in {path.parent} ({error.strerror or error}); "
                    "choose a database in a folder that you can write to"
                ) from error
        with FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S):
            with closing(sqlite3.connect(path)) as database:
                # Fails at once on a file that is no database; SQLAlchemy under MLflow would try for minutes.
                database.execute("PRAGMA schema_version")
            _bring_up_to_date(path)
            return _opened(uri, uri, experiment, run_id, artifacts=path.parent / "mlartifacts")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns a failure to reach or open `uri` into a `ConfigError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Timeout as error:
        raise ConfigError(
            f"tracking_uri={uri!r}: another process has held {error.lock_file} for {_LOCK_TIMEOUT_S:.0f} s. "
            "End it, or choose another database."
        ) from error
    except WaitingError as error:
        raise ConfigError(str(error)) from error
    except (MlflowException, NoAnswerError, OSError, sqlite3.Error) as error:  # a failed HTTP request is an OSError
        raise ConfigError(
            f"tracking_uri={uri!r} cannot be used: {redact(error)}. "
            "Correct the address, start the server or turn tracking off."
        ) from error


def _bring_up_to_date(path: Path) -> None:
    """Creates or upgrades MLflow's tables in a copy, then renames it: a process killed on the way ruins nothing.

    MLflow has no public function that creates or upgrades the tables. A migration that ended half-way cannot be
    repeated ("table already exists").
    """
    from mlflow.store.db import utils as database

    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    is_new = path.stat().st_size == 0
    if not is_new:
        engine = database.create_sqlalchemy_engine(f"sqlite:///{path}")
        revision = database._get_schema_version(engine)
        engine.dispose()
        if revision is None or revision == database._get_latest_schema_revision():
            return
        for copy in (path.with_name(f"{path.name}.before-upgrade"), partial):
            with closing(sqlite3.connect(path)) as reader, closing(sqlite3.connect(copy)) as writer:
                reader.backup(writer)
    engine = database.create_sqlalchemy_engine(f"sqlite:///{partial}")
    try:
        (database._initialize_tables if is_new else database._upgrade_db)(engine)
    except BaseException:
        partial.unlink(missing_ok=True)  # the disk may be full
        raise
    finally:
        engine.dispose()
    os.replace(partial, path)


def _open_client(address: str) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=address)


def _opened(address: str, uri: str, experiment: str, run_id: str | None, *, artifacts: Path | None) -> Connection:
    """Opens the client, and finds the experiment of the run, or finds or creates the experiment by its name.

    Args:
        address: The address with credentials.
        uri: The same address without credentials.
        experiment: Name of the experiment.
        run_id: A run whose experiment is used in place of the named one.
        artifacts: Folder for the artifacts of a database; None for a server.
    """
    from mlflow.exceptions import MlflowException

    client = _open_client(address)
    connection = Connection(client=client, experiment_id="", uri=uri, remote=artifacts is None)
    if run_id is not None:
        info = find_run(connection, run_id).info
        return replace(connection, experiment_id=info.experiment_id, run_name=info.run_name)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            location = None if artifacts is None else artifacts.as_uri()
            found_id = client.create_experiment(experiment, artifact_location=location, tags={KIND_TAG: KIND})
            if not found_id:
                raise NoAnswerError("it does not answer as MLflow does")
            return replace(connection, experiment_id=found_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(experiment)  # another process created it meanwhile
    if found is None or found.name != experiment:
        raise NoAnswerError("it does not answer as MLflow does")
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"The MLflow experiment {experiment!r} was deleted. Restore it: {how_to_restore(uri, None, found)} "
            "- or choose another name with tracking.experiment."
        )
    if found.tags.get(KIND_TAG, "") in _NO_CHOICE:
        client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
    return replace(connection, experiment_id=found.experiment_id)
