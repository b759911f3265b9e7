"""Whether a tracking address can be used, without leaving anything at it."""

import sqlite3
import tempfile
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.redaction import redact

ANSWER_LIMIT_S = 5.0


def mlflow_version() -> str:
    """The version of MLflow, after its client was loaded."""
    import mlflow
    from mlflow.tracking import MlflowClient

    return f"{mlflow.__version__} ({MlflowClient.__name__} loads)"


def check_address(uri: str) -> str:
    """What is at a tracking address.

    Raises:
        ConfigError: It has another form, or nothing usable is there.
    """
    if uri.startswith("sqlite:///") and uri.removeprefix("sqlite:///") not in ("", ":memory:") and "?" not in uri:
        return _check_database(Path(uri.removeprefix("sqlite:///")))
    if uri.startswith(("http://", "https://")):
        return _check_server(redact(uri))
    raise ConfigError(f"{redact(uri)!r} is neither sqlite:///<file> nor http(s)://<host>")


def _check_database(path: Path) -> str:
    """Reads one that exists; tries a scratch database beside it, so that none appears at its place."""
    try:
        found = _describe(path) if path.exists() else "will be made on first use"
        folder = next(each for each in path.absolute().parents if each.exists())
        with tempfile.TemporaryDirectory(prefix=".mmrl-doctor-", dir=folder) as scratch:
            _write_and_lock(Path(scratch) / "scratch.db")
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"sqlite:///{path} cannot be used ({error})") from error
    return f"sqlite:///{path} {found}"


def _describe(path: Path) -> str:
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "experiments" not in tables:
            raise ConfigError(f"sqlite:///{path} is a database, but not one of MLflow's")
        return f"is an MLflow database, {path.stat().st_size / 2**20:.1f} MiB" if tables else "is still empty"
    finally:
        connection.close()


def _write_and_lock(path: Path) -> None:
    """One writer at a time is what MLflow relies on; network file systems may let two through."""
    first, second = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    try:
        first.execute("CREATE TABLE runs (id TEXT)")
        first.execute("BEGIN IMMEDIATE")
        first.execute("INSERT INTO runs VALUES ('scratch')")
        try:
            second.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            first.execute("COMMIT")
        else:
            raise OSError("two writers got in at the same time: its file system does not lock")
    finally:
        first.close()
        second.close()


def _check_server(uri: str) -> str:
    address = f"{uri.rstrip('/')}/health"
    try:
        with urlopen(address, timeout=ANSWER_LIMIT_S) as answer:  # the scheme is http or https
            return f"{uri} answers /health with {answer.status}"
    except HTTPError as error:
        raise ConfigError(f"{uri} answers /health with {error.code}, as no MLflow server does") from error
    except TimeoutError as error:
        raise ConfigError(f"{uri} did not answer within {ANSWER_LIMIT_S:g} s") from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise ConfigError(f"{uri} cannot be reached ({getattr(error, 'reason', error)})") from error
