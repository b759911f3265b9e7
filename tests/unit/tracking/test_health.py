"""Tracking addresses are tried without leaving anything at them."""

import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking import health
from lightning_mmrl.tracking.health import check_address


class Server(BaseHTTPRequestHandler):
    """Answers /health as MLflow does, 404 elsewhere, and not at all below /slow."""

    release = threading.Event()

    def do_GET(self):
        if self.path.startswith("/slow"):
            self.release.wait(10)
            return
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"127.0.0.1:{httpd.server_port}"
    Server.release.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()
    Server.release.clear()


def database(path, table):
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {table} (id TEXT)")
    connection.close()
    return f"sqlite:///{path}"


def test_a_server_that_answers_is_fine_and_its_password_stays_secret(server):
    assert check_address(f"http://{server}/") == f"http://{server}/ answers /health with 200"
    assert check_address(f"http://me:secret@{server}") == f"http://{server} answers /health with 200"


def test_another_server_is_refused(server):
    with pytest.raises(ConfigError, match="answers /health with 404, as no MLflow server does"):
        check_address(f"http://{server}/elsewhere")


def test_a_server_that_does_not_answer_is_given_up(server, monkeypatch):
    monkeypatch.setattr(health, "ANSWER_LIMIT_S", 0.2)
    with pytest.raises(ConfigError, match=r"did not answer within 0\.2 s"):
        check_address(f"http://{server}/slow")


@pytest.mark.parametrize("uri", ["http://", "http://[::1", "http://a b"])
def test_an_address_that_is_none_is_refused(uri):
    with pytest.raises(ConfigError, match="cannot be reached"):
        check_address(uri)


@pytest.mark.parametrize("uri", ["", "file:./mlruns", "./mlruns", "sqlite:///", "sqlite:///:memory:", "sqlite:///a?b"])
def test_other_forms_are_refused(uri):
    with pytest.raises(ConfigError, match=r"neither sqlite:///<file> nor http"):
        check_address(uri)


def test_a_database_that_does_not_exist_is_not_made(tmp_path):
    assert check_address(f"sqlite:///{tmp_path}/runs/mlflow.db").endswith("will be made on first use")
    assert list(tmp_path.iterdir()) == []


def test_a_database_is_read_and_not_changed(tmp_path):
    uri = database(tmp_path / "mlflow.db", "experiments")
    before = (tmp_path / "mlflow.db").read_bytes()
    assert "is an MLflow database" in check_address(uri)
    (tmp_path / "empty.db").touch()
    assert check_address(f"sqlite:///{tmp_path}/empty.db").endswith("is still empty")
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "empty.db"}


def test_what_is_no_mlflow_database_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a database, but not one of MLflow's"):
        check_address(database(tmp_path / "mine.db", "songs"))
    (tmp_path / "text.db").write_text("hello, " * 1000)
    with pytest.raises(ConfigError, match=r"cannot be used \(file is not a database\)"):
        check_address(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(ConfigError, match="cannot be used"):
        check_address(f"sqlite:///{tmp_path}/text.db/mlflow.db")


def test_a_file_system_that_does_not_lock_is_refused(tmp_path, monkeypatch):
    connect = sqlite3.connect

    def elsewhere(path, **options):
        """Two connections that do not see each other."""
        return connect(f"{path}-{next(numbers)}", **options)

    numbers = iter(range(9))
    monkeypatch.setattr(sqlite3, "connect", elsewhere)
    with pytest.raises(ConfigError, match="two writers got in at the same time"):
        check_address(f"sqlite:///{tmp_path}/mlflow.db")
