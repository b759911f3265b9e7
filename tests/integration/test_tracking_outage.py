"""Outages of the tracking server: training goes on, and every point arrives once and in order."""

import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flaky_client import PATIENCE_S, FlakyClient, Outage

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.run import TrackingSettings
from lightning_mmrl.tracking import connection as connection_module
from lightning_mmrl.tracking.connection import KIND, KIND_TAG
from lightning_mmrl.tracking.mlflow import MlflowTracker


@pytest.fixture
def uri(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def outage(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    outage = Outage()
    real = connection_module._open_client
    monkeypatch.setattr(connection_module, "_open_client", lambda uri: FlakyClient(real(uri), outage))
    return outage


@pytest.fixture
def open_tracker(uri, tmp_path, outage):
    opened = []

    def start():
        opened.append(MlflowTracker(TrackingSettings(uri=uri, experiment="curricula"), tmp_path / "spool"))
        return opened[-1]

    yield start
    outage.release.set()
    for tracker in opened:
        tracker.close()


def points(client, run_id, key="loss"):
    history = sorted(client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
    return [(point.step, point.value) for point in history]


def test_calls_return_before_a_hanging_server_answers(open_tracker, client, outage):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    outage.release.clear()
    for step in range(20):
        run.log_metrics({"loss": float(step)}, step=step)
    run.log_params({"lr": 0.1})
    run.set_tags({"stage": "reason"})
    run.finish("FINISHED")
    assert points(client, run.id) == []  # every call came back, and the server has answered none
    outage.release.set()
    tracker.close()
    assert points(client, run.id) == [(step, float(step)) for step in range(20)]
    assert client.get_run(run.id).info.status == "FINISHED"


def test_after_an_outage_everything_arrives_once_and_in_order(open_tracker, client, outage, tmp_path):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    run.log_metrics({"loss": 0.0}, step=0)
    (tmp_path / "report.html").write_text("<p>")
    outage.up = False
    for step in range(1, 6):
        run.log_metrics({"loss": float(step)}, step=step)
    run.log_params({"lr": 0.1})
    run.log_artifact(tmp_path / "report.html")
    run.set_tags({"stage": "a"})
    run.set_tags({"stage": "b"})
    run.finish("KILLED")
    outage.wait_for_failure()
    outage.up = True
    tracker.close()
    found = client.get_run(run.id)
    assert points(client, run.id) == [(step, float(step)) for step in range(6)]
    assert (found.data.params, found.data.tags["stage"], found.info.status) == ({"lr": "0.1"}, "b", "KILLED")
    assert [item.path for item in client.list_artifacts(run.id)] == ["report.html"]
    assert list((tmp_path / "spool").glob("*.jsonl")) == []


def test_an_answer_that_is_lost_does_not_double_a_point(open_tracker, client, outage):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    outage.up, outage.lose_answers = False, True
    run.log_metrics({"loss": 1.0}, step=0)
    run.log_dataset("emotions", "0" * 36, "train.jsonl", "train", {})
    outage.wait_for_failure()
    outage.up = True
    tracker.close()
    assert points(client, run.id) == [(0, 1.0)]
    assert len(client.get_run(run.id).inputs.dataset_inputs) == 1


def test_points_keep_the_time_they_were_logged_at(open_tracker, client, outage, monkeypatch):
    times = iter((1000, 2000, 3000))
    tracker = open_tracker()
    run = tracker.open_run("reason")
    monkeypatch.setattr("lightning_mmrl.tracking.mlflow._now_ms", lambda: next(times))
    outage.up = False
    run.log_metrics({"loss": 1.0}, step=0)
    run.log_metrics({"loss": 2.0}, step=1)
    run.finish("FAILED")
    outage.up = True
    tracker.close()
    assert [point.timestamp for point in client.get_metric_history(run.id, "loss")] == [1000, 2000]
    assert client.get_run(run.id).info.end_time == 3000


def test_what_a_dead_process_left_is_delivered_by_the_next_tracker(open_tracker, client, outage, tmp_path, caplog):
    first = open_tracker()
    run = first.open_run("reason")
    outage.up = False
    for step in range(3):
        run.log_metrics({"loss": float(step)}, step=step)
    run.finish("FAILED")
    first.close()
    assert str(tmp_path / "spool" / f"{run.id}.jsonl") in caplog.text
    assert points(client, run.id) == []
    outage.up = True
    second = open_tracker()
    run = second.open_run("reason", run_id=run.id)
    run.log_metrics({"loss": 3.0}, step=3)
    second.close()
    assert points(client, run.id) == [(step, float(step)) for step in range(4)]
    assert client.get_run(run.id).info.status == "RUNNING"  # the old FAILED came before
    open_tracker().close()
    assert len(points(client, run.id)) == 4


@pytest.mark.slow
def test_a_stage_that_starts_in_an_outage_finds_its_parent_later(open_tracker, client, outage):
    tracker = open_tracker()
    parent = tracker.open_run("rl-first")
    outage.up = False
    child = tracker.open_run("00-rl", parent_id=parent.id)
    child.log_metrics({"loss": 1.0}, step=0)
    grandchild = tracker.open_run("eval", parent_id=child.id)
    grandchild.finish("FINISHED")
    tracker.close()
    assert child.id.startswith("local-")
    outage.up = True
    tracker = open_tracker()
    child = tracker.open_run("00-rl", parent_id=parent.id, run_id=child.id)
    child.log_metrics({"loss": 2.0}, step=1)
    child.finish("FINISHED")
    tracker.close()
    experiment = client.get_experiment_by_name("curricula")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["00-rl", "eval", "rl-first"]
    assert runs["00-rl"].data.tags["mlflow.parentRunId"] == parent.id
    assert runs["eval"].data.tags["mlflow.parentRunId"] == runs["00-rl"].info.run_id
    assert points(client, runs["00-rl"].info.run_id) == [(0, 1.0), (1, 2.0)]
    assert (runs["00-rl"].info.status, runs["eval"].info.status) == ("FINISHED", "FINISHED")


def test_a_run_whose_creation_went_unanswered_is_not_made_twice(open_tracker, client, outage):
    tracker = open_tracker()
    outage.up, outage.lose_answers = False, True
    run = tracker.open_run("reason")
    outage.up = True
    run.log_metrics({"loss": 1.0}, step=0)
    tracker.close()
    found = client.search_runs([client.get_experiment_by_name("curricula").experiment_id])
    assert [points(client, run.info.run_id) for run in found] == [[(0, 1.0)]]


def test_a_broken_artifact_store_does_not_hold_up_metrics(open_tracker, client, outage, tmp_path, monkeypatch):
    tracker = open_tracker()
    run = tracker.open_run("reason")
    monkeypatch.setattr(tracker._spool, "_shortest_retry_s", 0.01)
    monkeypatch.setattr(tracker._spool, "_retry_s", 0.01)
    (tmp_path / "mlartifacts").write_text("a file where the folder should be")
    run.log_artifact(tmp_path / "mlflow.db")
    run.log_metrics({"loss": 1.0}, step=0)
    outage.wait_for_call("log_batch")
    tracker.close()
    assert points(client, run.id) == [(0, 1.0)]
    assert "cannot be uploaded" in (tmp_path / "spool" / f"{run.id}.rejected").read_text()


class Handler(BaseHTTPRequestHandler):
    """As much of MLflow's REST interface as one run needs."""

    def do_GET(self):
        tags = [{"key": KIND_TAG, "value": KIND}]
        found = {"experiment_id": "7", "name": "curricula", "lifecycle_stage": "active", "tags": tags}
        self.answer({"experiment": found})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/runs/create"):
            self.answer({"run": {"info": {"run_id": "4f2a", "experiment_id": "7", "lifecycle_stage": "active"}}})
        elif self.path.endswith("/runs/search"):
            self.answer({})
        elif self.server.up.is_set():
            self.server.batches.append(body)
            self.answer({})
        else:
            self.send_error(503)
            self.server.failed.set()

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.up, server.failed, server.batches = threading.Event(), threading.Event(), []
    server.up.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_http_server_that_errs_and_recovers(server, tmp_path):
    tracker = MlflowTracker(
        TrackingSettings(uri=f"http://127.0.0.1:{server.server_port}", experiment="curricula"),
        tmp_path / "spool",
    )
    run = tracker.open_run("reason")
    server.up.clear()
    for step in range(5):
        run.log_metrics({"loss": float(step)}, step=step)
    assert server.failed.wait(PATIENCE_S)
    assert server.batches == []
    server.up.set()
    tracker.close()
    received = [(point["step"], point["value"]) for batch in server.batches for point in batch["metrics"]]
    assert received == [(step, float(step)) for step in range(5)]
    assert {batch["run_id"] for batch in server.batches} == {"4f2a"}


def test_a_server_that_is_not_there_is_refused_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="start the server") as error:
            MlflowTracker(TrackingSettings(uri=uri, experiment="curricula"), tmp_path / "spool")
    assert "secret" not in str(error.value)
