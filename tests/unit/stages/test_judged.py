"""Judged batches are kept whole: what a killed process left half-written does not count, nor does what follows it."""

import errno
import json

import pytest
from run_folders import judgement

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.stages.judged import JudgedBatches

BATCHES = {"test": [[judgement(0, "sad", "sad"), judgement(1, "sad", None)], [judgement(2, "happy", "sad")]]}
SCORED = Judgement(
    sample_id="a\n\"b\" \u00e4", speaker=None, truth="7", predicted="1/3", valid_format=True, text="x" * 5,
    scores={"accuracy": 0.1 + 0.2, "tokens": 3},
)  # fmt: skip
BOUND = {"common": {"seed": 0}, "sets": {}}


def kept(tmp_path):
    found = JudgedBatches(tmp_path / "out" / "progress")
    found.begin(BOUND, BATCHES)
    found.keep("test", [judgement(3, "sad", "sad")])
    found.keep("quiz", [SCORED])
    return found


def test_what_was_kept_is_read_again_with_what_it_belongs_to(tmp_path):
    found = kept(tmp_path)
    bound, batches = JudgedBatches(found.path).read()
    assert bound == BOUND
    assert batches == {"test": [*BATCHES["test"], [judgement(3, "sad", "sad")]], "quiz": [[SCORED]]}
    assert batches["quiz"][0][0].to_json() == SCORED.to_json()
    found.end()
    assert found.read() == (None, {})
    found.end()


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_half_a_batch_does_not_count(tmp_path, cut):
    found = kept(tmp_path)
    found.path.write_bytes(found.path.read_bytes()[:-cut])
    assert found.read() == (BOUND, {"test": [*BATCHES["test"], [judgement(3, "sad", "sad")]]})


@pytest.mark.parametrize(
    "damage", [b"\0" * 40, b'{"set": "test"}', b"[]", b'{"set": "test", "judged": [{"a": 1}]}', b"[" * 9999]
)
def test_nothing_after_a_damaged_line_counts(tmp_path, damage):
    found = kept(tmp_path)
    lines = found.path.read_bytes().split(b"\n")
    found.path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
    assert found.read() == (BOUND, {"test": BATCHES["test"][:1]})


@pytest.mark.parametrize("head", [b"", b"{}", b"null", json.dumps({"version": 0, "bound": BOUND}).encode()])
def test_batches_that_belong_to_nothing_do_not_count(tmp_path, head):
    found = kept(tmp_path)
    found.path.write_bytes(b"\n".join([head, *found.path.read_bytes().split(b"\n")[1:]]))
    assert found.read() == (None, {})


def test_a_disk_that_refuses_costs_the_batches_and_not_the_evaluation(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    found = kept(tmp_path)
    before = found.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", full)
        found.begin({}, BATCHES)
        found.keep("test", BATCHES["test"][0])
    assert found.path.read_bytes() == before
    assert caplog.text.count("judged batches cannot be written to") == 1
