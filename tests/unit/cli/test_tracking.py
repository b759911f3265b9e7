"""`mmrl tracking`: waiting entries by run and server, and their delivery."""

import json
from pathlib import Path

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.config.schema import TrackingConfig
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.journal import Entry, Journal
from lightning_mmrl.tracking.leftovers import flush, leftovers, note_store
from lightning_mmrl.tracking.refusals import RefusedError, UndeliverableError, WaitingError
from lightning_mmrl.types import redaction


def metric(step, run_id="4f2a"):
    return Entry(run_id=run_id, operation="metrics", payload={"points": [["loss", 1.0, step, step]]})


def tag(value, run_id="4f2a"):
    return Entry(run_id=run_id, operation="tags", payload={"stage": value})


@pytest.fixture
def output_dir(tmp_path, monkeypatch):
    """Two runs, one with a stage, and their undelivered entries for one server."""
    monkeypatch.setattr(redaction, "_remembered", set())  # forgets the secrets of other tests
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


def test_lines_that_cannot_be_read_are_not_called_nothing(tmp_path, capsys):
    path = tmp_path / "spool" / "abc" / "run.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\n\xfe\n")
    assert main(["tracking", "status", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"2 damaged lines in {path} cannot be read" in shown.err
    assert "nothing waits" not in shown.out
    assert main(["tracking", "flush", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"2 damaged lines in {path} cannot be read" in shown.err
    assert "nothing waits" not in shown.out


def test_damaged_lines_of_another_run_do_not_count(output_dir, capsys):
    (output_dir / "spool" / "abc" / "beef.damaged").write_text("{cut\n")
    assert main(["tracking", "status", str(output_dir / "first")]) == 0
    assert main(["tracking", "status", str(output_dir / "second")]) == 1
    assert "1 damaged lines" in capsys.readouterr().err


def test_a_flush_that_leaves_damaged_lines_says_so(output_dir, sent, capsys):
    (output_dir / "spool" / "abc" / "4f2a.damaged").write_text("{cut\n")
    assert main(["tracking", "flush", str(output_dir)]) == 1
    assert len(sent) == 1
    assert "1 damaged lines" in capsys.readouterr().err


def test_a_spool_that_takes_no_lock_file_is_not_said_to_be_locked_by_another_process():
    with pytest.raises(ConfigError, match="no lock file can be made in /proc"):
        flush(Path("/proc"), Server())


def test_a_folder_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main(["tracking", "status", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["tracking", "status", str(tmp_path / "file")]) == 2
    assert "is no folder" in capsys.readouterr().err


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


@pytest.fixture
def sent(monkeypatch, tmp_path):
    """The addresses and experiments that a flush opens; every entry counts as delivered."""
    opened = []

    def flush_store(spool, uri, experiment, *, runs, say):
        if "dead" in uri:
            raise ConfigError(f"{uri} does not answer")
        opened.append((uri, experiment))
        return []

    monkeypatch.setattr("lightning_mmrl.tracking.flushing.flush_store", flush_store)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("URI", "USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return opened


@pytest.mark.parametrize("name", ["USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "credentials"])
def test_credentials_go_to_no_server_that_only_the_folder_names(output_dir, sent, capsys, monkeypatch, name):
    assert main(["tracking", "flush", str(output_dir)]) == 0
    if name == "credentials":
        (output_dir / ".mlflow").mkdir()
        (output_dir / ".mlflow" / "credentials").write_text("")
    else:
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "hunter22")
    assert main(["tracking", "flush", str(output_dir)]) == 1
    assert len(sent) == 1
    said = capsys.readouterr().err
    assert f"{name}; if that is your server, give --tracking-uri http://host:5000" in said
    assert "hunter22" not in said
    assert main(["tracking", "flush", str(output_dir), "--tracking-uri", "http://host:5000/"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@host:5000")
    assert main(["tracking", "flush", str(output_dir)]) == 0
    assert [uri for uri, _ in sent] == ["http://host:5000", "http://host:5000/", "http://me:hunter22@host:5000"]


@pytest.mark.parametrize("given", ["http://host:5001", "https://host:5000", "http://me:p@other:5000", "sqlite:///a.db"])
def test_an_address_that_the_spool_is_not_for_is_refused_with_both(output_dir, sent, capsys, given):
    assert main(["tracking", "flush", str(output_dir), "--tracking-uri", given]) == 1
    assert sent == []
    said = capsys.readouterr().err
    assert f"--tracking-uri is {given.replace('me:p@', '')}, but the entries in {output_dir}" in said
    assert "are for http://host:5000;" in said


def test_a_relative_database_is_the_one_that_was_noted(output_dir, sent, monkeypatch):
    monkeypatch.chdir(output_dir)
    note_store(output_dir / "spool" / "abc", f"sqlite:///{output_dir.resolve()}/a.db", "emotions")
    assert main(["tracking", "flush", str(output_dir), "--tracking-uri", "sqlite:///a.db"]) == 0
    assert sent == [("sqlite:///a.db", "emotions")]


def test_a_spool_without_a_server_goes_to_the_given_one_and_the_default_experiment(output_dir, sent):
    (output_dir / "spool" / "abc" / "store.json").unlink()
    assert main(["tracking", "flush", str(output_dir)]) == 1
    assert main(["tracking", "flush", str(output_dir), "--tracking-uri", "http://host"]) == 0
    assert sent == [("http://host", TrackingConfig().experiment)]


def test_a_dead_server_does_not_hold_up_the_others(output_dir, sent, capsys):
    for name, uri in (("aaa", "http://dead"), ("zzz", "http://alive")):
        note_store(output_dir / "spool" / name, uri, "emotions")
        Journal(output_dir / "spool" / name / "4f2a.jsonl").append([metric(0)])
    assert main(["tracking", "flush", str(output_dir)]) == 1
    assert [uri for uri, _ in sent] == ["http://host:5000", "http://alive"]
    assert "aaa is left as it is: http://dead does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("refused", [[0], [3], [1, 4], [0, 1, 2, 3, 4]])
def test_a_flush_keeps_of_joined_points_only_the_refused_ones(tmp_path, refused):
    steps, lines = [], []

    def deliver(entry):
        found = [point[3] for point in entry.payload["points"]]
        if set(found) & set(refused):
            raise RefusedError("no")
        steps.extend(found)

    Journal(tmp_path / "4f2a.jsonl").append([metric(step) for step in range(5)])
    (left,) = flush(tmp_path, deliver, say=lines.append)
    assert sorted(steps) == sorted({0, 1, 2, 3, 4} - set(refused))
    assert (left.pending, left.rejected, left.rejected_points) == (0, len(refused), len(refused))
    assert lines == [
        f"run 4f2a: {5 - len(refused)} points and 0 other entries delivered, {len(refused)} entries refused"
    ]


def test_joined_points_that_an_earlier_version_put_aside_are_told_apart(tmp_path):
    joined = [["loss", 1.0, step, step] for step in range(4)]
    Journal(tmp_path / "4f2a.jsonl").reject(Entry(run_id="4f2a", operation="metrics", payload={"points": joined}), "no")

    def deliver(entry):
        if any(point[3] == 2 for point in entry.payload["points"]):
            raise RefusedError("no twos")

    (left,) = flush(tmp_path, deliver)
    assert left.rejected_points == 1
