"""A slice of tools/campaigns/tracking_campaign.py: a real MLflow server, a failing proxy, every point once."""

import time

import outage_proxy
import pytest
import tracking_campaign
from outage_proxy import PAGES, Proxy

from lightning_mmrl.cli.main import main
from lightning_mmrl.tracking import mlflow as tracker_module
from lightning_mmrl.tracking import notices
from lightning_mmrl.tracking.leftovers import leftovers
from lightning_mmrl.tracking.mlflow import MlflowTracker

pytestmark = pytest.mark.slow

NUM_STEPS = 20
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with tracking_campaign.Servers(tmp_path_factory.mktemp("servers")) as servers:
        yield servers


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outage_proxy, "SLOW_CREATE_S", 1.5)
    monkeypatch.setattr(tracker_module, "_OPENING_S", 0.5)


@pytest.fixture
def said(monkeypatch):
    """The warnings of an outage."""
    lines = []
    monkeypatch.setattr(notices._log, "warning", lambda form, text: lines.append(form % text))
    return lines


class Tracked:
    """A run through a proxy, with a spool that tries again at once."""

    def __init__(self, servers, folder, name, mode="up"):
        self.name, self.folder = name, folder
        self.database = servers.database("main")
        self.proxy = Proxy(servers.ports["main"])
        self.tracker = MlflowTracker(self.proxy.uri, name, folder / "spool" / "store")
        self.tracker._spool._retry_s = self.tracker._spool._shortest_retry_s = 0.05
        self.proxy.mode = mode
        self.run = self.tracker.open_run(name)
        self._step = 0

    def log(self, num_steps):
        for step in range(self._step, self._step + num_steps):
            self.run.log_metrics(tracking_campaign.values_at(step), step)
        self._step += num_steps

    def wait_for_failure(self):
        until = time.monotonic() + PATIENCE_S
        while self.proxy.failures == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert self.proxy.failures

    def finish(self):
        self.run.finish("FINISHED")
        self.tracker.close()

    def counts(self):
        return tracking_campaign.count(self.database, self.name, NUM_STEPS)


@pytest.fixture
def tracked(servers, tmp_path, request):
    opened = []

    def start(mode="up"):
        opened.append(Tracked(servers, tmp_path, f"run-{time.time_ns()}", mode))
        return opened[-1]

    yield start
    for each in opened:
        each.proxy.mode = "up"
        each.tracker.close()
        each.proxy.close()


def whole():
    total = tracking_campaign.NUM_KEYS * NUM_STEPS
    return {"runs": 1, "finished": 1, "points": total, "double": 0, "wrong": 0, "expected": total}


@pytest.mark.parametrize("mode", [*PAGES, "reset", "lost", "cut", "part", "hang"])
def test_every_point_arrives_once_whatever_answers(tracked, said, mode):
    run = tracked()
    run.log(8)
    run.proxy.mode = mode
    run.log(8)
    run.wait_for_failure()
    time.sleep(0.1)
    run.proxy.mode = "up"
    run.log(4)
    run.finish()
    assert run.counts() == whole()
    assert leftovers(run.folder / "spool" / "store") == []
    assert 1 <= len(said) <= tracking_campaign.MOST_LINES


def test_a_slow_creation_makes_one_run(tracked):
    run = tracked("slow_create")
    run.log(NUM_STEPS)
    run.finish()
    assert run.run.id.startswith("local-")  # training did not wait for it
    assert run.counts() == whole()


@pytest.mark.parametrize("mode", ["lost", "cut", "hang", "reset", "empty_200", "html_200"])
def test_a_creation_without_an_answer_makes_one_run(tracked, mode, monkeypatch):
    monkeypatch.setattr("lightning_mmrl.tracking.delivery._SETTLING_S", 0.2)
    run = tracked(mode)
    run.log(NUM_STEPS)
    run.wait_for_failure()
    run.proxy.mode = "up"
    run.finish()
    assert run.counts() == whole()


def test_another_database_for_a_while_takes_nothing(tracked, servers, said):
    run = tracked()
    run.log(8)
    run.proxy.port = servers.ports["spare"]
    run.log(8)
    wait_for_warning(said, "if its database was replaced, put it back")
    run.proxy.port = servers.ports["main"]
    run.log(4)
    run.finish()
    assert run.counts() == whole()


def begin_and_delete(run, servers, kind):
    """Logs eight steps, deletes the run or its experiment, and returns the call that restores it."""
    run.log(8)
    delete, restore = tracking_campaign._calls(servers.ports["main"], kind, run.name)
    delete()
    return restore


ADVISED = {"experiment_deleted": "mlflow experiments restore", "run_deleted": "mlflow runs restore"}


@pytest.mark.parametrize("kind", ADVISED)
def test_what_was_deleted_and_restored_gets_everything(tracked, servers, said, kind):
    run = tracked()
    restore = begin_and_delete(run, servers, kind)
    run.log(8)
    wait_for_warning(said, ADVISED[kind])
    restore()
    run.log(4)
    run.finish()
    assert run.counts() == whole()


@pytest.mark.parametrize("kind", ADVISED)
def test_what_stays_deleted_is_kept_and_delivered_by_flush(tracked, servers, capsys, kind):
    run = tracked()
    restore = begin_and_delete(run, servers, kind)
    run.log(12)
    run.finish()
    flush = ["tracking", "flush", str(run.folder), "--tracking-uri", run.proxy.uri]
    assert main(flush) in (1, 2)
    said = "".join(capsys.readouterr())
    assert "restore" in said
    restore()
    assert main(flush) == 0
    assert run.counts() == whole()
    assert main(flush) == 0
    assert "nothing waits" in capsys.readouterr().out


def wait_for_warning(said, text):
    until = time.monotonic() + PATIENCE_S
    while text not in "".join(said) and time.monotonic() < until:
        time.sleep(0.02)
    assert text in "".join(said)
