"""Opens an MLflow tracking server or database; a wrong address fails here, at the start."""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.answers import NoAnswerError, is_answer
from lightning_mmrl.types.redaction import redact, redact_addresses, remember

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

_LOCK_TIMEOUT_S = 120.0
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's 7 keep a call for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # a proxy may ask for a day; the spool has its own pace
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A client, the experiment that new runs go to, and the name of the run that was asked for, if any.

    `uri` is the address without credentials; `remote` says whether a server is there, and maybe a proxy before it.
    """

    client: "MlflowClient"
    experiment_id: str
    uri: str
    remote: bool
    run_name: str | None = None


def connect(tracking_uri: str, experiment: str, *, run_id: str | None = None) -> Connection:
    """Opens the database or server and finds or creates the experiment; `run_id` names a run whose experiment it is.

    A SQLite database is created, or upgraded after a copy to `<name>.before-upgrade`, by one process at a time, because
    MLflow's migrations fail when several run at once. Its artifacts go to the folder `mlartifacts` beside it.

    Raises:
        ConfigError: The URI has another form, nothing usable answers at it, or it has no run `run_id`.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if tracking_uri.startswith("sqlite:"):
        return _connect_sqlite(tracking_uri, experiment, run_id)
    if _is_address(tracking_uri):
        remember(tracking_uri)
        uri = redact_addresses(tracking_uri)
        with explained(uri):
            client = _open_client(tracking_uri)
            if run_id is not None:
                return _connection_of(client, run_id, uri, remote=True)
            return _find_experiment(client, experiment, uri, artifacts=None)
    raise ConfigError(
        f"tracking_uri={redact(tracking_uri)!r} is neither sqlite:///<file> nor http(s)://<host>. "
        "Use for example sqlite:///outputs/mlflow.db; MLflow's file store (file:, ./mlruns) no longer works."
    )


def _is_address(tracking_uri: str) -> bool:
    try:
        return tracking_uri.startswith(("http://", "https://")) and bool(urlsplit(tracking_uri).hostname)
    except ValueError:  # such as http://[bad
        return False


def find_run(client: "MlflowClient", run_id: str, uri: str, *, remote: bool) -> "Run":
    """A run that can be continued.

    Raises:
        ConfigError: The server answers that it has no such run, or that it was deleted.
        NoAnswerError: Something else answered.
        MlflowException: Nothing answered.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not is_answer(error, remote=remote):
            raise
        raise ConfigError(
            f"MLflow at {uri} has no run {run_id!r}. Use the tracking_uri that it was made with, "
            "unset MLFLOW_RUN_ID, or start a new output folder."
        ) from error
    if run.info.run_id != run_id:
        raise NoAnswerError(f"{uri} answers a request for run {run_id!r} with something else")
    if run.info.lifecycle_stage != "active":
        experiment = client.get_experiment(run.info.experiment_id)
        deleted = f"The MLflow run {run_id!r} was deleted. Restore it: "
        raise ConfigError(deleted + how_to_restore(uri, run_id, experiment))
    return run


def how_to_restore(uri: str, run_id: str | None, experiment: "Experiment") -> str:
    """The command that brings back a deleted run: its experiment's, if that was deleted, which brings back both."""
    if run_id is None or experiment.lifecycle_stage != "active":
        what = f"experiments restore --experiment-id {experiment.experiment_id}"
    else:
        what = f"runs restore --run-id {run_id}"
    return f"MLFLOW_TRACKING_URI={uri} mlflow {what}"


def _connection_of(client: "MlflowClient", run_id: str, uri: str, *, remote: bool) -> Connection:
    info = find_run(client, run_id, uri, remote=remote).info
    return Connection(client=client, experiment_id=info.experiment_id, uri=uri, remote=remote, run_name=info.run_name)


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
        _require_lock_file(path)
        with FileLock(f"{path}.lock", timeout=_LOCK_TIMEOUT_S):
            _check_database(path)
            _bring_up_to_date(path)
            client = _open_client(uri)
            if run_id is not None:
                return _connection_of(client, run_id, uri, remote=False)
            return _find_experiment(client, experiment, uri, artifacts=path.parent / "mlartifacts")


def _require_lock_file(path: Path) -> None:
    """Tries the folder of a database before its lock is waited for.

    FileLock takes a folder that answers ENOENT to a new file, as /proc does, for one in which another process is at
    work, and waits.

    Raises:
        ConfigError: The folder takes no file.
    """
    if path.with_name(f"{path.name}.lock").exists():
        return
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConfigError(
            f"tracking_uri='sqlite:///{path}': no lock file can be made in {path.parent} "
            f"({error.strerror or error}); choose a database in a folder that you can write to"
        ) from error


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns failures to reach or open `uri` into a `ConfigError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Timeout as error:
        raise ConfigError(
            f"tracking_uri={uri!r}: another process has held {error.lock_file} for {_LOCK_TIMEOUT_S:.0f} s. "
            "End it, or choose another database."
        ) from error
    except (MlflowException, NoAnswerError, OSError, sqlite3.Error) as error:  # a failed HTTP request is an OSError
        raise ConfigError(
            f"tracking_uri={uri!r} cannot be used: {redact(error)}. "
            "Correct the address, start the server or turn tracking off."
        ) from error


def _open_client(uri: str) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _check_database(path: Path) -> None:
    """Raises at once on a file that is no database; SQLAlchemy under MLflow would try for minutes."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA schema_version")
    finally:
        connection.close()


def _bring_up_to_date(path: Path) -> None:
    """Creates or upgrades the tables as MLflow does, but beside the target: a process killed on the way ruins nothing.

    MLflow has no public call for either. Left half-way, its migrations cannot be begun again ("table already exists").
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
        _copy_database(path, path.with_name(f"{path.name}.before-upgrade"))
        _copy_database(path, partial)
    engine = database.create_sqlalchemy_engine(f"sqlite:///{partial}")
    try:
        (database._initialize_tables if is_new else database._upgrade_db)(engine)
    except BaseException:
        partial.unlink(missing_ok=True)  # the disk may be full
        raise
    finally:
        engine.dispose()
    os.replace(partial, path)


def _copy_database(source: Path, target: Path) -> None:
    reader, writer = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reader.backup(writer)
    finally:
        reader.close()
        writer.close()


def _find_experiment(client: "MlflowClient", name: str, uri: str, *, artifacts: Path | None) -> Connection:
    from mlflow.exceptions import MlflowException

    remote = artifacts is None
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            location = None if artifacts is None else artifacts.as_uri()
            found_id = client.create_experiment(name, artifact_location=location)
            if not found_id:
                raise NoAnswerError("it does not answer as MLflow does")
            return Connection(client=client, experiment_id=found_id, uri=uri, remote=remote)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process created it meanwhile
    if found is None or found.name != name:
        raise NoAnswerError("it does not answer as MLflow does")
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"The MLflow experiment {name!r} was deleted. Restore it: {how_to_restore(uri, None, found)} "
            "- or choose another name with tracking.experiment."
        )
    return Connection(client=client, experiment_id=found.experiment_id, uri=uri, remote=remote)
