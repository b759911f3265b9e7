"""The spool against a fake server: it never holds up the caller, loses nothing and keeps the order."""

import threading

import pytest

from lightning_mmrl.tracking.journal import Entry, Journal
from lightning_mmrl.tracking.jsonl import read_lines
from lightning_mmrl.tracking.refusals import NotYetError, RefusedError, UndeliverableError, WaitingError
from lightning_mmrl.tracking.spool import Spool

PATIENCE_S = 10.0


class FakeServer:
    """Takes entries while `up`; `release` can be cleared to let a delivery hang."""

    def __init__(self):
        self.up = True
        self.refused = set()
        self.broken = set()
        self.received = []
        self.attempts = threading.Semaphore(0)
        self.failures = threading.Semaphore(0)
        self.deliveries = threading.Semaphore(0)
        self.release = threading.Event()
        self.release.set()

    def __call__(self, entry):
        self.attempts.release()
        assert self.release.wait(PATIENCE_S)
        if not self.up or entry.operation in self.broken:
            self.failures.release()
            raise ConnectionError("down")
        if entry.operation in self.refused:
            raise UndeliverableError("no")
        self.received.append(entry)
        self.deliveries.release()

    def steps(self, run_id="run"):
        entries = [entry for entry in self.received if entry.run_id == run_id and entry.operation == "metrics"]
        return [point[3] for entry in entries for point in entry.payload["points"]]

    def wait_for(self, event):
        assert getattr(self, event).acquire(timeout=PATIENCE_S)


def metric(step, run_id="run"):
    return Entry(run_id=run_id, operation="metrics", payload={"points": [["loss", 1.0, step, step]]})


def status(value="FINISHED", run_id="run"):
    return Entry(run_id=run_id, operation="status", payload={"status": value, "time_ms": 1})


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def spools(tmp_path, server):
    opened = []

    def start(**options):
        opened.append(Spool(tmp_path, server, **options))
        return opened[-1]

    yield start
    server.release.set()
    for spool in opened:
        spool.close(PATIENCE_S)


def test_entries_arrive_in_order_and_leave_no_file(spools, server, tmp_path):
    spool = spools()
    for step in range(50):
        spool.submit(metric(step))
    spool.submit(status())
    assert spool.close() == []
    assert server.steps() == list(range(50))
    assert server.received[-1].operation == "status"
    assert list(tmp_path.glob("*.jsonl")) == []


def test_submit_returns_while_a_delivery_hangs(spools, server):
    server.release.clear()
    spool = spools()
    spool.submit(metric(0))
    server.wait_for("attempts")
    for step in range(1, 100):
        spool.submit(metric(step))
    assert server.received == []  # all calls came back before the server did
    server.release.set()
    spool.close()
    assert server.steps() == list(range(100))


def test_an_outage_is_kept_on_disk_and_replayed_once_in_order(spools, server, tmp_path, caplog):
    spool = spools(retry_s=PATIENCE_S)
    server.up = False
    for step in range(5):
        spool.submit(metric(step))
    server.wait_for("failures")
    spool.submit(status())
    server.up = True
    assert spool.close() == []
    assert server.steps() == list(range(5))
    assert server.received[-1].operation == "status"
    assert list(tmp_path.glob("*.jsonl")) == []
    assert caplog.text.count("The tracking server failed") == 1


def test_the_server_is_tried_again_without_further_calls(spools, server):
    server.up = False
    spool = spools(retry_s=0.01)
    spool.submit(metric(0))
    for _ in range(3):
        server.wait_for("failures")
    assert spool.is_backlogged
    server.up = True
    server.wait_for("deliveries")
    assert server.steps() == [0]


def test_attempts_become_rarer(spools, server):
    server.up = False
    spool = spools(retry_s=0.02)
    spool.submit(metric(0))
    for _ in range(4):
        server.wait_for("failures")
    assert spool._retry_s >= 0.16


def test_what_is_left_at_the_end_is_named_and_delivered_by_the_next_spool(spools, server, tmp_path, caplog):
    server.up = False
    first = spools(retry_s=PATIENCE_S)
    for step in range(3):
        first.submit(metric(step))
    first.submit(metric(7, run_id="other"))
    left = first.close()
    assert sorted(left) == [tmp_path / "other.jsonl", tmp_path / "run.jsonl"]
    assert str(tmp_path / "run.jsonl") in caplog.text
    server.up = True
    second = spools()
    second.submit(metric(3))
    assert second.close() == []
    assert server.steps() == [0, 1, 2, 3]
    assert server.steps("other") == [7]
    assert spools().close() == []
    assert server.steps() == [0, 1, 2, 3]


def test_a_replay_that_is_cut_short_goes_on_where_it_stopped(spools, server, tmp_path):
    Journal(tmp_path / "run.jsonl").append([metric(0), metric(1), status(), metric(2)])
    server.broken = {"status"}
    assert spools().close() == [tmp_path / "run.jsonl"]
    assert server.steps() == [0, 1]
    server.broken = set()
    assert spools().close() == []
    assert server.steps() == [0, 1, 2]


def test_a_journal_with_nothing_left_is_removed(spools, tmp_path):
    entry = metric(0)
    Journal(tmp_path / "run.jsonl").append([entry])
    Journal(tmp_path / "run.jsonl").mark_delivered(entry)
    spool = spools()
    assert not spool.is_backlogged
    assert not (tmp_path / "run.jsonl").exists()


def test_a_hanging_server_does_not_hold_up_the_end(spools, server, tmp_path):
    server.release.clear()
    spool = spools()
    spool.submit(metric(0))
    server.wait_for("attempts")
    spool.submit(metric(1))
    spool.submit(status())
    assert spool.close(timeout_s=0.05) == [tmp_path / "run.jsonl"]
    kept = Journal(tmp_path / "run.jsonl").pending()
    assert [entry.operation for entry in kept] == ["metrics", "metrics", "status"]


def test_a_delivery_that_outlasts_the_end_does_not_remove_what_the_end_kept(spools, server, tmp_path):
    Journal(tmp_path / "run.jsonl").append([metric(0)])
    server.release.clear()
    spool = spools()
    server.wait_for("attempts")  # the journal's entry hangs
    spool.submit(metric(1))
    spool.close(timeout_s=0.05)
    server.release.set()
    spool._thread.join(PATIENCE_S)
    assert not spool._thread.is_alive()
    kept = Journal(tmp_path / "run.jsonl").pending()
    assert [entry.payload["points"][0][3] for entry in kept] == [0, 1]


def test_a_refused_entry_is_put_aside_and_the_rest_goes_on(spools, server, tmp_path, caplog):
    server.refused = {"status"}
    spool = spools()
    spool.submit(metric(0))
    spool.submit(status())
    spool.submit(metric(1))
    assert spool.close() == []
    assert server.steps() == [0, 1]
    assert [line["operation"] for line in read_lines(tmp_path / "run.rejected")] == ["status"]
    assert "run.rejected" in caplog.text


def test_a_full_queue_sends_metrics_to_the_disk_and_drops_nothing(spools, server, tmp_path):
    server.release.clear()
    spool = spools(limit=3)
    spool.submit(metric(0))
    server.wait_for("attempts")
    for step in range(1, 6):
        spool.submit(metric(step))
    spool.submit(status("KILLED"))
    assert [entry.payload["points"][0][3] for entry in Journal(tmp_path / "run.jsonl").pending()] == [4, 5]
    server.release.set()
    assert spool.close() == []
    assert sorted(server.steps()) == [0, 1, 2, 3, 4, 5]
    assert [entry.payload["status"] for entry in server.received if entry.operation == "status"] == ["KILLED"]


def test_a_second_spool_leaves_the_journals_of_a_living_one_alone(spools, server, caplog):
    server.up = False
    first = spools(retry_s=PATIENCE_S)
    first.submit(metric(0))
    server.wait_for("failures")
    server.up = True
    second = spools()
    assert not second.is_backlogged
    second.close()
    assert server.received == []
    assert "Another process delivers" in caplog.text
    first.close()
    assert server.steps() == [0]


def test_a_full_disk_keeps_entries_in_memory(spools, server, monkeypatch):
    def fail(self, entries):
        failed.set()
        raise OSError("No space left on device")

    failed = threading.Event()
    server.up = False
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail)
        spool = spools(retry_s=0.01)
        spool.submit(metric(0))
        assert failed.wait(PATIENCE_S)
    spool.submit(metric(1))
    server.up = True
    assert spool.close() == []
    assert server.steps() == [0, 1]


def test_a_call_after_the_end_is_reported_and_not_sent(spools, server, caplog):
    spool = spools()
    spool.close()
    spool.submit(metric(0))
    assert server.received == []
    assert "Tracking is closed" in caplog.text


class Choosy(FakeServer):
    """Answers an entry with the errors that its name was given, one after the other."""

    def __init__(self):
        super().__init__()
        self.answers = {}

    def __call__(self, entry):
        errors = self.answers.get(entry.run_id, [])
        if errors:
            self.attempts.release()
            error = errors.pop(0)
            if error is not None:
                raise error
        super().__call__(entry)


@pytest.fixture
def choosy(tmp_path):
    server = Choosy()
    spool = Spool(tmp_path, server, retry_s=0.01)
    yield server, spool
    spool.close(PATIENCE_S)


def test_what_is_refused_once_is_sent_again(choosy, tmp_path):
    server, spool = choosy
    server.answers["run"] = [RefusedError("not now")]
    spool.submit(metric(0))
    assert spool.close() == []
    assert server.steps() == [0]
    assert not (tmp_path / "run.rejected").exists()


def test_what_is_refused_twice_is_kept_and_the_rest_goes_on(choosy, tmp_path, caplog):
    server, spool = choosy
    server.answers["run"] = [RefusedError("no"), RefusedError("no")]
    spool.submit(status())
    spool.submit(metric(1, run_id="other"))
    server.wait_for("attempts")
    server.wait_for("attempts")
    spool.submit(metric(2))
    assert spool.close() == []
    assert (server.steps("other"), server.steps()) == ([1], [2])
    assert [entry.operation for entry, _ in Journal(tmp_path / "run.jsonl").rejected()] == ["status"]
    assert "mmrl tracking flush" in caplog.text


def test_of_joined_points_only_the_refused_one_is_kept(tmp_path):
    received = []

    def deliver(entry):
        steps = [point[3] for point in entry.payload["points"]]
        if 5 in steps:
            raise RefusedError("no fives")
        received.extend(steps)

    Journal(tmp_path / "run.jsonl").append([metric(step) for step in range(9)])
    spool = Spool(tmp_path, deliver, retry_s=0.01)
    spool.submit(metric(9))
    spool.close(PATIENCE_S)
    rest = [entry for entry, _ in Journal(tmp_path / "run.jsonl").rejected()]
    if not rest:  # the first refusal came at the end
        spool = Spool(tmp_path, deliver, retry_s=0.01)
        spool.submit(metric(9))
        spool.close(PATIENCE_S)
    rest = [entry for entry, _ in Journal(tmp_path / "run.jsonl").rejected()]
    assert [point[3] for entry in rest for point in entry.payload["points"]] == [5]
    assert sorted(set(received)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_run_that_the_server_lacks_holds_up_its_own_entries_alone(choosy, tmp_path, caplog):
    server, spool = choosy
    server.answers["run"] = [WaitingError("it was deleted") for _ in range(1000)]
    spool.submit(metric(0))
    server.wait_for("attempts")
    spool.submit(metric(1, run_id="other"))
    server.wait_for("deliveries")
    assert server.steps("other") == [1]
    server.answers["run"] = []
    assert spool.close() == []
    assert server.steps() == [0]
    assert caplog.text.count("it was deleted") == 1


def test_the_end_waits_for_an_answer_that_may_still_come(choosy):
    server, spool = choosy
    server.answers["run"] = [NotYetError("not known", 0.05), NotYetError("not known", 0.05)]
    spool.submit(metric(0))
    assert spool.close() == []
    assert server.steps() == [0]


def test_a_thousand_failures_are_one_line(choosy, caplog):
    server, spool = choosy
    for number in range(20):
        server.up = False
        spool.submit(metric(number))
        server.wait_for("failures")
        server.up = True
        server.wait_for("deliveries")
    spool.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "error", [ConnectionError("down"), WaitingError("deleted"), NotYetError("early", 0.0), ValueError("page")]
)
def test_trouble_while_points_are_told_apart_does_not_end_the_thread(tmp_path, caplog, error):
    steps, errors, done = [], [error], threading.Event()

    def deliver(entry):
        found = [point[3] for point in entry.payload["points"]]
        if found[0] == 6 and errors:
            raise errors.pop()
        if 5 in found:
            raise RefusedError("no fives")
        steps.extend(found)
        if 9 in found:
            done.set()

    Journal(tmp_path / "run.jsonl").append([metric(step) for step in range(8)])
    spool = Spool(tmp_path, deliver, retry_s=0.01)
    spool.submit(metric(9))
    assert done.wait(PATIENCE_S)  # the thread lives
    assert spool.close(PATIENCE_S) == []
    assert errors == []
    assert set(steps) == {0, 1, 2, 3, 4, 6, 7, 9}
    kept = [entry.payload["points"][0][3] for entry, _ in Journal(tmp_path / "run.jsonl").rejected()]
    assert kept == [5]


def test_a_fault_of_the_thread_itself_is_one_notice_and_loses_nothing(spools, server, monkeypatch, caplog):
    faults = [RuntimeError("odd"), RuntimeError("odd"), KeyError("odd")]
    whole = Spool._send

    def fail(self, batch):
        if faults:
            raise faults.pop()
        return whole(self, batch)

    monkeypatch.setattr(Spool, "_send", fail)
    spool = spools(retry_s=0.01)
    spool.submit(metric(0))
    server.wait_for("deliveries")
    spool.submit(metric(1))
    assert spool.close() == []
    assert server.steps() == [0, 1]
    assert len(caplog.records) == 1
