"""Which samples a run uses is decided once: later stages, resumes and ranks see the same ones."""

import errno
import json
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest
from words import Monitor, Session, Settled, row, write

from lightning_mmrl.data import exclusions
from lightning_mmrl.data.exclusions import DecidedSet, Exclusions
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.samples import content_digest
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError, DiskError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import MediaSettings, PromptSettings
from lightning_mmrl.workers.pool import CallResult

ROWS = [row("a", ["one.mp4"]), row("bad", ["two.mp4"]), row("c", audios=["one.wav"])]


class Decoder:
    """Knows what becomes of each file, and remembers what it was asked for."""

    def __init__(self, decoder, failing=()):
        self.failing, self.asked, self._decoder = set(failing), [], decoder

    def decode_all(self, tasks, on_done):
        def told(index, outcome):
            name = tasks[index].path.name
            self.asked.append(name)
            on_done(index, CallResult(error="worker died") if name in self.failing else outcome)

        self._decoder.decode_all(tasks, told)

    @contextmanager
    def session(self):
        yield Session(self)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "exclusions.jsonl"


def prepare(root, pipeline, exclusions, rows=ROWS, failing=("two.mp4",), monitor=None, prompt=None, **how):
    """A set prepared in a process of its own, as a resume or another rank is, without what an earlier one cached."""
    decoder = Decoder(pipeline.decoder, failing)
    fresh = replace(pipeline, decoder=decoder, **how)
    samples = read_manifest(write(root, *rows), root)
    found = PreparedSet(
        samples,
        media_root=root,
        pipeline=fresh,
        template=PromptTemplate(prompt or PromptSettings()),
        supervised=False,
        exclusions=exclusions,
    )
    found.check("train.jsonl")
    return Settled(found, monitor), decoder


def ids(settled):
    return settled.usable


@pytest.fixture
def no_cache(pipeline, monkeypatch):
    monkeypatch.setattr(type(pipeline.cache), "__contains__", lambda *_: False)


def test_a_sample_that_was_left_out_stays_out_though_it_could_be_read_now(root, pipeline, path):
    first, _ = prepare(root, pipeline, Exclusions(path))
    assert ids(first) == ["a", "c"]
    again, decoder = prepare(root, pipeline, Exclusions(path), failing=())
    assert ids(again) == ["a", "c"]
    assert again.reasons == first.reasons
    assert again.reasons.keys() == {"bad"}
    assert decoder.asked == []
    afresh, _ = prepare(root, pipeline, None, failing=())
    assert ids(afresh) == ["a", "bad", "c"]


@pytest.mark.parametrize("failing", [("one.mp4",), ("two.mp4", "one.wav"), ("one.mp4", "one.wav")])
def test_a_sample_that_was_used_must_be_there(root, pipeline, path, no_cache, failing):
    prepare(root, pipeline, Exclusions(path))
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=r"train.jsonl: sample [ac] was used before in this run and cannot be now: .*one"
    ):
        prepare(root, pipeline, Exclusions(path), failing=failing)
    assert path.read_bytes() == before
    again, _ = prepare(root, pipeline, Exclusions(path))  # restored
    assert ids(again) == ["a", "c"]


def test_another_rank_follows_and_writes_nothing(root, pipeline, path, no_cache):
    prepare(root, pipeline, Exclusions(path))
    before = path.read_bytes()
    other, _ = prepare(root, pipeline, Exclusions(path, decides=False), failing=())
    assert ids(other) == ["a", "c"]
    assert path.read_bytes() == before


def test_a_longer_part_of_a_manifest_decides_about_the_rest(root, pipeline, path):
    short, _ = prepare(root, pipeline, Exclusions(path), rows=ROWS[:2])
    assert ids(short) == ["a"]
    whole, decoder = prepare(root, pipeline, Exclusions(path), failing=())
    assert ids(whole) == ["a", "c"]
    assert decoder.asked == ["one.wav"]
    short, _ = prepare(root, pipeline, Exclusions(path), rows=ROWS[:2])
    assert ids(short) == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [ROWS[0], row("bad", ["one.mp4"]), ROWS[2]]},
        {"rows": [ROWS[0], row("bad", ["two.mp4"], text="Another question"), ROWS[2]]},
        {"rows": [ROWS[0], row("bad", [{"path": "two.mp4", "start": 0.1}]), ROWS[2]]},
        {"settings": MediaSettings(num_frames=3)},
    ],
    ids=["media", "text", "span", "settings"],
)
def test_another_line_or_other_settings_are_decided_anew(root, pipeline, path, change):
    prepare(root, pipeline, Exclusions(path))
    found, _ = prepare(root, pipeline, Exclusions(path), failing=(), **change)
    assert ids(found) == ["a", "bad", "c"]


def test_sets_of_the_same_name_in_two_folders_are_two(root, pipeline, path, tmp_path):
    prepare(root, pipeline, Exclusions(path))
    other = copytree(root, tmp_path / "other")
    found, _ = prepare(other, pipeline, Exclusions(path), failing=())
    assert ids(found) == ["a", "bad", "c"]
    assert {json.loads(line).get("set") for line in path.read_text().splitlines()} == {None, 0, 1}


@pytest.mark.parametrize("spell", ["relative", "dots", "link", "moved"])
def test_decisions_hold_however_the_root_is_spelled(root, pipeline, path, tmp_path, monkeypatch, spell):
    prepare(root, pipeline, Exclusions(path))
    monkeypatch.chdir(tmp_path)
    spelled = {"relative": Path(root.name), "dots": root / ".." / root.name, "link": tmp_path / "link"}
    if spell == "link":
        spelled["link"].symlink_to(root)
    if spell == "moved":
        spelled["moved"] = (tmp_path / "elsewhere" / root.name).absolute()
        spelled["moved"].parent.mkdir()
        root.rename(spelled["moved"])
    monitor = Monitor()
    found, decoder = prepare(spelled[spell], pipeline, Exclusions(path), failing=(), monitor=monitor)
    assert ids(found) == ["a", "c"]
    assert decoder.asked == []
    assert monitor.warnings == []


def test_of_two_sources_of_one_name_each_keeps_its_own_decisions(root, pipeline, path, tmp_path, no_cache):
    """Also when both were moved: the ends of their paths tell them apart."""
    sources = [copytree(root, tmp_path / "old" / each / root.name) for each in "xy"]
    for source, failing, used in zip(sources, ("two.mp4", "one.mp4"), (["a", "c"], ["bad", "c"]), strict=True):
        assert ids(prepare(source, pipeline, Exclusions(path), failing=(failing,))[0]) == used
    (tmp_path / "old").rename(tmp_path / "new")
    for each, used in (("y", ["bad", "c"]), ("x", ["a", "c"])):
        moved = tmp_path / "new" / each / root.name
        assert ids(prepare(moved, pipeline, Exclusions(path), failing=())[0]) == used


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"settings": MediaSettings(num_frames=3)}, "another num_frames"),
        ({"settings": MediaSettings(num_frames=2, max_bytes=10**6)}, "another max_bytes"),
        ({"settings": MediaSettings(num_frames=2, fps=2.0)}, "another fps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decisions_that_are_void_are_said_in_one_sentence(root, pipeline, path, how, said):
    prepare(root, pipeline, Exclusions(path))
    first, second = Monitor(), Monitor()
    prepare(root, pipeline, Exclusions(path), monitor=first, **how)
    [(_, [sentence])] = [warning for warning in first.warnings if "decided anew" in str(warning)]
    assert sentence == f"{path} holds decisions made with {said}; which samples are left out is decided anew"
    prepare(root, pipeline, Exclusions(path), monitor=second, **how)
    assert second.warnings == []


@pytest.mark.parametrize("prompt", [{"suffix": "Think."}, {"prefix": "Look."}, {"system": "You feel."}], ids=str)
def test_stages_with_two_prompts_decide_each_for_itself_and_nothing_is_void(root, pipeline, path, no_cache, prompt):
    monitor, other = Monitor(), PromptSettings(**prompt)
    for _ in range(2):
        first, _ = prepare(root, pipeline, Exclusions(path), monitor=monitor)
        second, _ = prepare(root, pipeline, Exclusions(path), failing=("one.mp4",), monitor=monitor, prompt=other)
        assert (ids(first), ids(second)) == (["a", "c"], ["bad", "c"])
    assert not [warning for warning in monitor.warnings if "decided anew" in str(warning)]


def test_a_copy_of_a_folder_that_is_there_is_decided_anew_and_said_to_be(root, pipeline, path, tmp_path):
    prepare(root, pipeline, Exclusions(path))
    monitor = Monitor()
    copy = copytree(root, tmp_path / "other" / root.name)
    found, _ = prepare(copy, pipeline, Exclusions(path), failing=(), monitor=monitor)
    assert ids(found) == ["a", "bad", "c"]
    assert f"the media of {root.resolve()}, which is still there" in str(monitor.warnings)


def test_a_folder_of_another_name_is_decided_anew_and_said_to_be(root, pipeline, path, tmp_path):
    prepare(root, pipeline, Exclusions(path))
    monitor = Monitor()
    found, _ = prepare(root.rename(tmp_path / "renamed"), pipeline, Exclusions(path), failing=(), monitor=monitor)
    assert ids(found) == ["a", "bad", "c"]
    assert f"the media of {root.resolve()}, which had another name" in str(monitor.warnings)


def test_a_setting_that_is_new_leaves_decisions_as_they_are(root, pipeline, path):
    """Neither the words nor the number of the settings' fields name a use."""

    @dataclass
    class Later(MediaSettings):
        sharpness: int = 1

    prepare(root, pipeline, Exclusions(path))
    found, _ = prepare(root, pipeline, Exclusions(path), failing=(), settings=Later(num_frames=2))
    assert ids(found) == ["a", "c"]


def test_nothing_is_decided_where_nothing_can_be_used(root, pipeline, path):
    with pytest.raises(DataError, match=r"^train\.jsonl: all 1 samples cannot be used"):
        prepare(root, pipeline, Exclusions(path), rows=ROWS[1:2])
    assert not path.exists()


@pytest.mark.parametrize("content", ["[]\n", '{"version": 9}\n', '{"set": 0}\n', '{"version": 2}\n{"set": 3}\n', "\n"])
def test_a_damaged_file_is_refused_by_name(root, pipeline, path, content):
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(DataError, match=r"exclusions\.jsonl cannot be read .*: restore it, or set a new"):
        prepare(root, pipeline, Exclusions(path))
    assert path.read_text() == content


def test_without_a_file_decisions_last_as_long_as_the_object(root, pipeline):
    memory = Exclusions()
    prepare(root, pipeline, memory)
    again, decoder = prepare(root, pipeline, memory, failing=())
    assert ids(again) == ["a", "c"]
    assert decoder.asked == []


@pytest.mark.parametrize("content", ["", "{", '{"version": 2}\n{"set": 0, "manif'])
def test_half_a_line_of_a_killed_process_is_cut_off_by_the_next_one(root, pipeline, path, content):
    path.parent.mkdir(parents=True)
    path.write_text(content)
    found, _ = prepare(root, pipeline, Exclusions(path))
    assert ids(found) == ["a", "c"]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert path.read_text().startswith('{"version": 2}\n{"set": 0, "manifest"')
    again, decoder = prepare(root, pipeline, Exclusions(path), failing=())
    assert ids(again) == ["a", "c"]
    assert decoder.asked == []


def test_decisions_are_on_disk_once_they_are_flushed(root, pipeline, path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            synced.append(status.st_size)
        real(descriptor)

    exclusions = Exclusions(path)
    samples = read_manifest(write(root, *ROWS), root)
    which = DecidedSet(manifest="train.jsonl", root=root, use={})
    monkeypatch.setattr(os, "fsync", fsync)
    exclusions.flush()
    assert synced == []
    exclusions.decide(which, samples[:1], {})
    assert synced == []  # else nothing below would be due to `flush`
    for _ in range(2):
        exclusions.flush()
        assert synced == [path.stat().st_size]
    exclusions.decide(which, samples[1:2], {"bad": "broken"})
    assert synced[1:] == [path.stat().st_size]  # at once
    follower = Exclusions(path, decides=False)
    follower.decide(which, samples[2:], {})
    follower.flush()
    assert len(synced) == 2
    later = Exclusions(path)  # an earlier process may have been killed before it flushed
    later.flush()
    assert len(synced) == 3


def test_a_flush_that_fails_is_tried_again(root, path, monkeypatch):
    exclusions = Exclusions(path)
    samples = read_manifest(write(root, *ROWS), root)
    exclusions.decide(DecidedSet(manifest="train.jsonl", root=root, use={}), samples, {})
    tried = []

    def fails(_):
        tried.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        for _ in range(2):
            with pytest.raises(DiskError, match=r"exclusions\.jsonl"):
                exclusions.flush()
    assert len(tried) == 2
    exclusions.flush()


def test_decisions_that_were_made_before_stages_learned_pairs_still_hold(path, root, pipeline, monkeypatch):
    """Then the columns of a pair were no part of a sample's content; the file that was left out is repaired since."""
    rows = [{**each, "chosen": "yes", "rejected": "no"} for each in ROWS]
    with monkeypatch.context() as patch:
        patch.setattr(exclusions, "content_digest", partial(content_digest, with_pair=False))
        first, _ = prepare(root, pipeline, Exclusions(path), rows)
        assert ids(first) == ["a", "c"]
    again, _ = prepare(root, pipeline, Exclusions(path), rows, failing=())
    assert ids(again) == ["a", "c"]
    changed = [
        {**each, "messages": [{"role": "user", "content": "<video>Now?"}]} if each["id"] == "bad" else each
        for each in rows
    ]
    assert ids(prepare(root, pipeline, Exclusions(path), changed, failing=())[0]) == ["a", "bad", "c"]
