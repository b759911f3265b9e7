"""`mmrl tracking`: what waits, for which run and server, and how it gets there."""

import json

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.tracking.journal import Entry, Journal
from lightning_mmrl.tracking.leftovers import flush, leftovers, note_store
from lightning_mmrl.tracking.spool import RefusedError, UndeliverableError, WaitingError


def metric(step, run_id="4f2a"):
    return Entry(run_id=run_id, operation="metrics", payload={"points": [["loss", 1.0, step, step]]})


def tag(value, run_id="4f2a"):
    return Entry(run_id=run_id, operation="tags", payload={"stage": value})


@pytest.fixture
def output_dir(tmp_path):
    """Two runs, one of them with a stage, and what they left for one server."""
    spool = tmp_path / "spool" / "abc"
    note_store(spool, "http://host:5000", "emotions")
    for name, run_id in (("first", "4f2a"), ("second", "beef")):
        Manifest(tracking_id=run_id).write(tmp_path / name)
    stage = tmp_path / "first" / "stages" / "00-sft"
    stage.mkdir(parents=True)
    (stage / "attempt.json").write_text(json.dumps({"tracking_id": "local-1"}))
    Journal(spool / "4f2a.jsonl").append([metric(0), metric(1), tag("a")])
    Journal(spool / "beef.jsonl").reject(metric(2, "beef"), "a secret: http://me:hunter22@host")
    Journal(spool / "local-1.jsonl").append([metric(3, "local-1")])
    return tmp_path


def test_all_that_waits_is_shown_by_run_and_server(output_dir, capsys):
    assert main(["tracking", "status", str(output_dir)]) == 0
    shown = capsys.readouterr().out
    assert "http://host:5000" in shown
    assert f"{output_dir}/first (MLflow run 4f2a): 3 entries undelivered (2 points)" in shown
    assert f"{output_dir}/first (MLflow run local-1): 1 entries undelivered (1 points)" in shown
    assert f"{output_dir}/second (MLflow run beef): 1 refused (1 points), the last because: a secret" in shown
    assert "hunter22" not in shown


def test_one_run_is_shown_alone(output_dir, capsys):
    assert main(["tracking", "status", str(output_dir / "second")]) == 0
    shown = capsys.readouterr().out
    assert "beef" in shown
    assert "4f2a" not in shown


def test_nothing_that_waits_is_said_without_a_server(tmp_path, capsys):
    assert main(["tracking", "status", str(tmp_path)]) == 0
    assert main(["tracking", "flush", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("nothing waits") == 2


def test_a_folder_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main(["tracking", "status", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err


class Server:
    """Takes entries; `errors` are raised for a run."""

    def __init__(self, **errors):
        self.errors = errors
        self.received = []

    def __call__(self, entry):
        if entry.run_id in self.errors:
            raise self.errors[entry.run_id]
        self.received.append(entry)


def test_a_flush_delivers_all_and_what_was_refused_as_late(output_dir):
    server, lines = Server(), []
    assert flush(output_dir / "spool" / "abc", server, say=lines.append) == []
    steps = [point[3] for entry in server.received if entry.operation == "metrics" for point in entry.payload["points"]]
    assert sorted(steps) == [0, 1, 2, 3]
    assert [entry.late for entry in server.received if entry.run_id == "beef"] == [True]
    assert len(lines) == 3
    assert leftovers(output_dir / "spool" / "abc") == []


@pytest.mark.parametrize("error", [WaitingError("deleted"), RefusedError("no"), UndeliverableError("gone")])
def test_what_one_run_cannot_deliver_does_not_hold_up_the_others(output_dir, error):
    spool = output_dir / "spool" / "abc"
    server = Server(**{"4f2a": error})
    left = flush(spool, server)
    assert [each.run_id for each in left] == ["4f2a"]
    assert left[0].pending_points + left[0].rejected_points == 2
    assert flush(spool, Server()) == []


def test_an_outage_ends_a_flush_and_loses_nothing(output_dir):
    spool = output_dir / "spool" / "abc"
    before = leftovers(spool)
    assert flush(spool, Server(**{run: OSError("down") for run in ("4f2a", "beef", "local-1")})) == before


def test_a_flush_of_one_run_leaves_the_others(output_dir):
    spool = output_dir / "spool" / "abc"
    assert flush(spool, Server(), runs={"beef"}) == []
    assert [each.run_id for each in leftovers(spool)] == ["4f2a", "local-1"]
