"""Whatever a line of a manifest holds, it is a sample or a problem that names it; no path leads out of media_root."""

import json
import subprocess
import sys
from pathlib import Path

import format_mutations
import mutate_manifests
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_files import VERL

from lightning_mmrl.data.schema import Entry, LineError, Problem, scan_manifest

TOOL = Path(__file__).parents[2] / "tools" / "mutation" / "mutate_manifests.py"

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("a.mp4")
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
KEYS = "id messages query response history conversations system images videos audio solution labels speaker split start"
keys = st.sampled_from([*KEYS.split(), "role", "content", "other"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    (folder / "a.mp4").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def report():
    """In a process of its own: an audit hook cannot be taken out again."""
    command = [sys.executable, str(TOOL), "--lines", "300", "--files", "300", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mutated_line_is_refused_by_name_or_read(report):
    assert report["line_faults"] == []
    assert sum(report["lines"].values()) == 300
    assert report["lines"]["refused"] > 100
    assert report["lines"]["sample"] > 20


def test_every_mutated_file_is_refused_by_name_or_read(report):
    assert report["file_faults"] == []
    outcomes = [outcome for found in report["files"].values() for outcome in found.items()]
    assert sum(number for _, number in outcomes) == 300
    assert {outcome for outcome, _ in outcomes} >= {"samples", "bad rows", "refused"}


def test_the_tool_finds_faults_of_files(tmp_path, monkeypatch):
    path = VERL.put(tmp_path)
    assert format_mutations.outcome_of(path, tmp_path, "verl") == ("samples", "")
    with monkeypatch.context() as patch:
        patch.setattr(format_mutations.Source, "scan", lambda self: {}["role"])
        assert format_mutations.outcome_of(path, tmp_path, "verl") == ("fault", "KeyError: 'role'")
    with monkeypatch.context() as patch:
        patch.setattr(format_mutations, "MAX_SECONDS", 0.05)
        patch.setattr(format_mutations.Source, "scan", lambda self: iter(lambda: sum(range(10**4)), -1))
        assert format_mutations.outcome_of(path, tmp_path, "verl")[1].startswith("Hang: ")
    nameless = Problem(file="elsewhere.json", line=1, group="x", reason="wrong; right it")
    assert format_mutations.fault_of(nameless, path).startswith("no place")
    without_fix = Problem(file=str(path), line=1, group="x", reason="wrong")
    assert format_mutations.fault_of(without_fix, path).startswith("no place or fix")


def test_no_escape_opens_anything_outside(report):
    assert report["escape_faults"] == []
    assert report["control"]["paths"] >= 100
    assert sum(report["escapes"].values()) == 2 * report["control"]["paths"]
    assert report["escapes"]["refused: decoder"] >= 6


def test_the_witnesses_see_what_a_naive_reader_opens(report):
    assert report["control"]["naive_reads"] > 10
    assert report["control"]["control_seen"] == report["control"]["control_heard"] == 1


def test_the_tool_finds_what_it_looks_for(folder, monkeypatch):
    good = json.dumps({"messages": [{"role": "user", "content": "?"}]}).encode()
    assert mutate_manifests.try_line(good, folder) == ("sample", "")
    assert mutate_manifests.try_line(b"{", folder) == ("refused", "")
    with monkeypatch.context() as patch:
        patch.setattr(mutate_manifests, "scan_manifest", lambda *_: iter(()).throw(KeyError("role")))
        assert mutate_manifests.try_line(b"{", folder)[0] == "fault"
    with monkeypatch.context() as patch:
        patch.setattr(mutate_manifests, "outcome_of_strict", lambda *_: None)
        assert "disagree" in mutate_manifests.try_line(b"{", folder)[1]
    nameless = Problem(file="m.jsonl", line=1, group="x", reason="y")
    assert "does not name its line" in mutate_manifests.fault_of_problem(nameless)
    assert "2012 characters" in mutate_manifests.fault_of_problem(
        Problem(file="m.jsonl", line=2, group="x", reason="y" * 2001)
    )


@settings(max_examples=60)
@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(folder, line):
    (folder / "bytes.jsonl").write_bytes(line)
    assert all(isinstance(item, Entry | Problem) for item in scan_manifest(folder / "bytes.jsonl", folder))


@settings(max_examples=60)
@given(st.dictionaries(keys, values, max_size=8))
def test_any_object_is_read_or_refused(folder, row):
    (folder / "object.jsonl").write_text(json.dumps(row))
    [item] = scan_manifest(folder / "object.jsonl", folder)
    assert isinstance(item, Entry) or (item.line == 1 and len(item.reason) < 1000 and item.group)


def test_a_line_error_knows_its_place():
    error = LineError("span", "too short", "a.jsonl:3")
    assert (str(error), error.reason, error.group) == ("a.jsonl:3: too short", "too short", "span")
