"""Files of lines and journals: what is undelivered survives a crash, in order."""

import json
import math
import os
import re

import pytest
from filelock import FileLock

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.journal import Entry, Journal, merge_points
from lightning_mmrl.tracking.jsonl import append_lines, read_lines
from lightning_mmrl.tracking.leftovers import damaged_lines, leftovers, read_store
from lightning_mmrl.tracking.spool import Spool


def metric(step, *, run_id="run", value=1.0):
    return Entry(run_id=run_id, operation="metrics", payload={"points": [["loss", value, 1000 + step, step]]})


def tag(value, *, run_id="run"):
    return Entry(run_id=run_id, operation="tags", payload={"stage": value})


def test_lines_come_back_in_order(tmp_path):
    path = tmp_path / "file.jsonl"
    append_lines(path, [{"a": 1}, {"b": "\u2028x\n"}])
    append_lines(path, [{"c": 3}], durable=True)
    assert read_lines(path) == [{"a": 1}, {"b": "\u2028x\n"}, {"c": 3}]


def test_a_line_cut_off_by_a_crash_is_skipped_and_does_not_harm_the_next(tmp_path, caplog):
    path = tmp_path / "file.jsonl"
    path.write_text('{"a": 1}\n{"b": 2, "tex')
    append_lines(path, [{"c": 3}])
    assert read_lines(path) == [{"a": 1}, {"c": 3}]
    assert "line 2 was cut off" in caplog.text


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


def test_lines_refuse_nan_which_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        append_lines(tmp_path / "file.jsonl", [{"loss": math.nan}])


def test_a_journal_forgets_what_is_marked_and_all_before_it(tmp_path):
    entries = [metric(0), tag("sft"), metric(1), tag("rl")]
    journal = Journal(tmp_path / "run.jsonl")
    journal.append(entries[:3])
    journal.mark_delivered(entries[1])
    journal.append(entries[3:])
    assert Journal(tmp_path / "run.jsonl").pending() == entries[2:]
    journal.mark_delivered(entries[3])
    assert journal.pending() == []


def test_an_entry_written_twice_does_not_hide_the_ones_between(tmp_path):
    first, second = metric(0), metric(1)
    journal = Journal(tmp_path / "run.jsonl")
    journal.append([first, second, first])
    journal.mark_delivered(first)
    assert journal.pending() == [second, first]


def test_a_mark_of_another_file_hides_nothing(tmp_path):
    journal = Journal(tmp_path / "run.jsonl")
    journal.append([metric(0)])
    journal.mark_delivered(metric(0))
    assert len(journal.pending()) == 1


def test_rejected_entries_are_kept_with_their_reason(tmp_path):
    journal = Journal(tmp_path / "run.jsonl")
    path = journal.reject(tag("x"), "the run was deleted")
    assert path == tmp_path / "run.rejected"
    assert read_lines(path)[0]["reason"] == "the run was deleted"
    assert not journal.path.exists()


def test_neighboring_points_of_one_run_are_joined_and_nothing_moves():
    entries = [metric(0), metric(1), tag("a"), metric(2), metric(3, run_id="other"), metric(4, run_id="other")]
    joined = list(merge_points(entries))
    steps = [[point[3] for point in entry.payload["points"]] for entry in joined if entry.operation == "metrics"]
    assert [entry.operation for entry in joined] == ["metrics", "tags", "metrics", "metrics"]
    assert steps == [[0, 1], [2], [3, 4]]
    assert [entry.key for entry in joined] == [entries[index].key for index in (1, 2, 3, 5)]


def test_joined_points_stay_within_one_request():
    sizes = [len(entry.payload["points"]) for entry in merge_points(metric(step) for step in range(2500))]
    assert sizes == [1000, 1000, 500]


@pytest.mark.parametrize("line", ["7", "null", '"text"', "[1]", "true", "{", "[" * 100_000])
def test_a_damaged_line_is_skipped_with_a_warning(tmp_path, caplog, line):
    path = tmp_path / "run.jsonl"
    path.write_text('{"a": 1}\n' + line + '\n{"b": 2}\n')
    assert read_lines(path) == [{"a": 1}, {"b": 2}]
    assert f"{path}, line 2" in caplog.text


RECORD = {"run_id": "run", "operation": "tags", "payload": {}, "key": "k", "late": False}
OTHERS = {
    "has the unknown key 'attempts'": {"attempts": 3},
    "has no operation": {"operation": None},
    "has no payload": {"payload": [1]},
    "has no key": {"key": 7},
    "has the run_id '../../x'": {"run_id": "../../x"},
    "has no points": {"operation": "metrics"},
    "has no points of four": {"operation": "metrics", "payload": {"points": [["loss", 1.0]]}},
}


@pytest.mark.parametrize("fault", OTHERS)
@pytest.mark.parametrize("suffix", [".jsonl", ".rejected"])
def test_a_line_of_another_version_is_named(tmp_path, fault, suffix):
    path = tmp_path / f"run{suffix}"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps({**RECORD, **OTHERS[fault]}) + "\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}, line 2 {fault}")):
        leftovers(tmp_path)
    if suffix == ".jsonl":
        with pytest.raises(ConfigError, match="line 2"):
            Spool(tmp_path, lambda entry: None)
        with FileLock(tmp_path / ".lock", timeout=0):
            pass  # the spool that was not opened holds nothing


def test_damaged_lines_are_kept_when_the_rest_is_delivered(tmp_path):
    journal = Journal(tmp_path / "run.jsonl")
    journal.path.write_text('{"cut o\n[1]\n')
    journal.append([tag("a")])
    assert damaged_lines(tmp_path) == {journal.path: 2}
    journal.mark_delivered(journal.pending()[0])
    assert journal.remove_if_done()
    assert damaged_lines(tmp_path) == {tmp_path / "run.damaged": 2}
    assert (tmp_path / "run.damaged").read_text() == '{"cut o\n[1]\n'


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "run.jsonl")
    with pytest.raises(ConfigError, match=r"run\.jsonl is no plain file; move it away"):
        leftovers(tmp_path)
    make(tmp_path / "store.json")
    assert read_store(tmp_path) is None
