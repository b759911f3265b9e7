"""Checks whether a tracking address can be used, without leaving anything there."""

import sqlite3
import tempfile
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.redaction import redact

ANSWER_LIMIT_S = 5.0


def mlflow_version() -> str:
    """The version of MLflow, after loading its client as a check."""
    import mlflow
    from mlflow.tracking import MlflowClient

    return f"{mlflow.__version__} ({MlflowClient.__name__} loads)"


def check_address(uri: str) -> str:
    """Describes the database or server at a tracking address.

    Raises:
        ConfigError: The address has another form, or no usable store is there.
    """
    if uri.startswith("sqlite:///") and uri.removeprefix("sqlite:///") not in ("", ":memory:") and "?" not in uri:
        return _check_database(Path(uri.removeprefix("sqlite:///")))
    uri = redact(uri)
    if not uri.startswith(("http://", "https://")):
        raise ConfigError(f"{uri!r} is neither sqlite:///<file> nor http(s)://<host>")
    try:
        with urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_LIMIT_S) as answer:  # the scheme is http or https
            return f"{uri} answers /health with {answer.status}"
    except HTTPError as error:
        raise ConfigError(f"{uri} answers /health with {error.code}, as no MLflow server does") from error
    except TimeoutError as error:
        raise ConfigError(f"{uri} did not answer within {ANSWER_LIMIT_S:g} s") from error
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise ConfigError(f"{uri} cannot be reached ({getattr(error, 'reason', error)})") from error


def _check_database(path: Path) -> str:
    """Reads an existing database; tries writes in a scratch database beside it, so that `path` is not created."""
    place, found = f"sqlite:///{path}", "will be made on first use"
    try:
        if path.exists():
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
            with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as database:
                tables = {name for (name,) in database.execute(query)}
            if tables and "experiments" not in tables:
                raise ConfigError(f"{place} is a database, but not one of MLflow's")
            size = f"{path.stat().st_size / 2**20:.1f} MiB"
            found = f"is an MLflow database, {size}" if tables else "is still empty"
        folder = next(each for each in path.absolute().parents if each.exists())
        with tempfile.TemporaryDirectory(prefix=".mmrl-doctor-", dir=folder) as scratch:
            _write_and_lock(Path(scratch) / "scratch.db")
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"{place} cannot be used ({error})") from error
    return f"{place} {found}"


def _write_and_lock(path: Path) -> None:
    """Checks that a second writer is locked out, as MLflow requires; some network file systems let two write."""
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
