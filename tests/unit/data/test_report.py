"""Inventories and reports: bad lines counted by reason, figures per split, what leaks."""

import json
from dataclasses import replace

import numpy as np
import pytest
from clips import tone, write_grey, write_wav

from lightning_mmrl.data.inspection import decode_inventory, take_inventory
from lightning_mmrl.data.media.examine import Guard, fault
from lightning_mmrl.data.report import by_group, summarize
from lightning_mmrl.data.schema import scan_manifest
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.settings.data import MediaSettings

TIMES = [index / 10 for index in range(10)]
GUARD = Guard(settings=MediaSettings(max_duration_s=5.0), num_workers=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_grey(folder / "a.mp4", TIMES)
    write_grey(folder / "b.mp4", TIMES[:5], size=32)
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    write_wav(folder / "tone.wav", tone(440, 0.5, 8000), 8000)
    write_wav(folder / "long.wav", np.zeros(6 * 8000, dtype=np.float32), 8000)
    (folder / "broken.mp4").write_bytes(b"\x00" * 5000)
    return folder


def line(name, tags="", **columns):
    return {"id": name, "messages": [{"role": "user", "content": f"{tags}?"}], **columns}


def clip(name, file="a.mp4", **columns):
    return line(name, "<video>", videos=[file], **columns)


@pytest.fixture
def inventory(root, tmp_path):
    def inventory(labels=None, **manifests):
        paths = []
        for stem, rows in manifests.items():
            path = tmp_path / f"{stem}.jsonl"
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
            paths.append(path)
        return take_inventory(paths, root, labels)

    return inventory


def decoded(inventory):
    steps = []
    result = decode_inventory(inventory, GUARD, lambda done, total: steps.append((done, total)))
    num_media = len({key for keys in inventory.media.values() for key in keys})
    assert steps == [(done, num_media) for done in range(1, num_media + 1)]
    return result


def findings(inventory):
    return {each.what: (each.num, each.severe) for each in summarize(inventory).findings}


def test_every_bad_line_is_found_and_counted_by_its_reason(inventory):
    rows = [clip("a"), "{", clip("x", "none.mp4"), clip("y", "../a.mp4"), line("z", "<audio>"), "[", clip("a")]
    report = summarize(inventory(train=rows))
    counts = {group: len(problems) for group, problems in by_group(report.problems).items()}
    expected = {"not JSON": 2, "missing file": 1, "outside media_root": 1, "media tags": 1, "repeated id": 1}
    assert counts == expected
    assert next(iter(counts)) == "not JSON"
    assert (report.num_samples, report.splits[0].num_bad, report.sound) == (1, 6, False)


def test_a_medium_that_cannot_be_decoded_is_a_problem_of_its_line(inventory):
    rows = [
        clip("good"),
        clip("broken", "broken.mp4"),
        line("mute", "<audio>", audios=["a.mp4"]),
        line("long", "<audio>", audios=["long.wav"]),
        clip("beyond", "a.mp4", start=3, end=4),
    ]
    report = summarize(decoded(inventory(train=rows)))
    groups = {problem.line: problem.group for problem in report.problems}
    assert groups == {2: "cannot be decoded", 3: "no audio track", 4: "too long", 5: "empty span"}
    assert all(str(problem).count(".jsonl:") == 1 for problem in report.problems)
    assert report.num_samples == 1


def test_a_split_is_described_by_what_its_media_are(inventory):
    rows = [
        clip("1", solution="sad", speaker="s1"),
        clip("2", "b.mp4", solution="glad", speaker="s2"),
        line("3", "<audio>", audios=["tone.wav"], solution="sad", speaker="s1"),
        line("4"),
    ]
    [split] = summarize(decoded(inventory(train=rows))).splits
    assert (split.num_samples, split.labels, split.num_unlabeled) == (4, {"glad": 1, "sad": 2}, 1)
    assert (split.num_speakers, split.num_without_speaker) == (2, 1)
    video, audio = split.media
    assert (video.kind, video.num_files, video.sizes) == ("video", 2, {"64x64": 1, "32x32": 1})
    assert video.durations.total == pytest.approx(1.5, abs=1e-3)
    assert (video.durations.minimum, video.durations.maximum) == pytest.approx((0.5, 1.0), abs=1e-3)
    assert (audio.kind, audio.sample_rates_hz) == ("audio", {"8000": 1})
    assert audio.durations.median == pytest.approx(0.5, abs=1e-3)


def test_without_decoding_lengths_are_those_of_spans(inventory):
    rows = [clip("1", start=0.5, end=2.0), clip("2", "b.mp4")]
    report = summarize(inventory(train=rows))
    [video] = report.splits[0].media
    assert (video.durations.minimum, video.durations.total, video.num_files) == (1.5, 1.5, 2)
    assert not report.decoded


def test_the_same_content_under_another_name_leaks(inventory):
    splits = {"train": [clip("1")], "test": [clip("2", "copy.mp4"), clip("3", "b.mp4")]}
    assert findings(inventory(**splits)) == {}
    report = summarize(decoded(inventory(**splits)))
    assert findings(decoded(inventory(**splits))) == {"the same clip in several splits": (1, True)}
    assert report.findings[0].example == "train.jsonl:1 (1) and test.jsonl:1 (2)"
    assert not report.problems
    assert not report.sound


def test_other_spans_of_a_file_are_other_clips(inventory):
    parts = {"train": [clip("1", start=0, end=0.5)], "test": [clip("2", start=0.5, end=1)]}
    assert findings(inventory(**parts)) == {}


def test_ids_and_speakers_are_held_apart(inventory):
    same_id = {"train": [clip("1")], "test": [clip("1", "b.mp4")]}
    assert findings(inventory(**same_id)) == {"the same id in several splits": (1, True)}
    same_speaker = {"train": [clip("1", speaker="s")], "test": [clip("2", "b.mp4", speaker="s")]}
    assert findings(inventory(**same_speaker)) == {"the same speaker in several splits": (1, False)}
    assert summarize(inventory(**same_speaker)).sound


def test_training_splits_may_share_clips(inventory):
    rows = [clip("1", speaker="s", solution="sad")]
    assert findings(inventory(cold_start=rows, train=rows)) == {}


def test_a_label_that_is_only_evaluated_is_told(inventory):
    splits = {"train": [clip("1", solution="sad")], "test": [clip("2", "b.mp4", solution="glad")]}
    assert findings(inventory(**splits)) == {"a label in no training split": (1, False)}


def test_the_same_clip_twice_in_a_split_is_told(inventory):
    twice = findings(decoded(inventory(train=[clip("1"), clip("2", "copy.mp4")])))
    assert twice == {"the same clip under several ids": (1, False)}
    other_question = {"id": "2", "messages": [{"role": "user", "content": "<video>!"}], "videos": ["a.mp4"]}
    assert findings(inventory(train=[clip("1"), other_question])) == {}


def test_a_line_may_name_its_split(inventory):
    rows = [clip("1", split="train"), clip("2", "b.mp4", split="test"), clip("3", "copy.mp4", split="all")]
    report = summarize(decoded(inventory(all=rows)))
    assert [split.name for split in report.splits] == ["all (train)", "all (test)", "all"]
    assert report.findings[0].what == "the same clip in several splits"


def test_labels_are_held_against_the_given_set(inventory):
    rows = [clip("1", solution="Anger"), clip("2", solution="glad"), clip("3")]
    [problem] = inventory(labels=("angry", "sad"), train=rows).problems
    assert (problem.line, problem.group) == (2, "label")
    assert "'glad' is none of the labels angry, sad" in problem.reason
    with pytest.raises(ConfigError, match="reads like"):
        inventory(labels=("angry", "Angry"), train=rows)


def test_an_empty_manifest_is_a_problem_and_a_missing_one_an_error(inventory, root, tmp_path):
    [problem] = inventory(train=[""]).problems
    assert problem.group == "empty manifest"
    with pytest.raises(DataError, match=r"none.jsonl does not exist"):
        list(scan_manifest(tmp_path / "none.jsonl", root))


def test_a_report_is_plain_json(inventory):
    report = summarize(decoded(inventory(train=[clip("1"), "{"])))
    content = json.loads(json.dumps(report.as_json()))
    assert content["problems_by_group"] == {"not JSON": 1}
    assert content["splits"][0]["media"][0]["durations"]["total"] == pytest.approx(1.0, abs=1e-3)


def test_faults_of_workers_have_names():
    assert fault("a.mp4: deadline of 30.0 s exceeded") == "decoder ran out of time"
    assert fault("a.mp4: worker died with exit code -9") == "decoder crashed"
    assert fault("a.mp4: 99 bytes exceed media.max_bytes 5; cut the file") == "too many bytes"
    assert fault("a.mp4: frames of 99 pixels exceed media.max_pixels 5") == "too many pixels"


def test_a_sample_that_stands_in_several_manifests_counts_once(inventory):
    rows = [clip("a"), clip("b", "b.mp4"), line("c")]
    report = summarize(inventory(train=rows, cold_start=[*rows, clip("d", "copy.mp4")], test=[clip("e", "b.mp4")]))
    assert [split.num_samples for split in report.splits] == [3, 4, 1]
    assert report.num_samples == 5
    assert report.as_json()["num_samples"] == 5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([clip("a"), clip("b", start=0.1)], 2),
        ([clip("a", "a.mp4"), clip("b", "a.mp4")], 2),
        ([line("a"), {**line("b"), "messages": [{"role": "user", "content": "another"}]}], 2),
    ],
    ids=["spans", "ids", "texts"],
)
def test_samples_that_differ_count_each(inventory, rows, expected):
    """In the second manifest, the ids are those of the first in another order."""
    swapped = [{**row, "id": other["id"]} for row, other in zip(rows, reversed(rows), strict=True)]
    assert summarize(inventory(train=rows)).num_samples == expected
    both = summarize(inventory(train=rows, sft=swapped)).num_samples
    same_media = rows[0].get("videos") == rows[1].get("videos") and "start" not in rows[1] and "videos" in rows[0]
    assert both == (expected if same_media else 2 * expected)


def test_labels_that_look_like_a_mistake_are_warned_about_once(inventory):
    rows = [clip(str(index), solution=label) for index, label in enumerate(["sad"] * 3 + ["Sad", "nan", "happy"])]
    report = summarize(
        inventory(train=rows, cold_start=rows, test=[clip("x", solution="sad"), clip("y", solution="sad")])
    )
    assert [warning.split(":")[0] for warning in report.warnings] == [
        "label 'nan' (1 sample) looks like a missing value; drop its lines if it is one",
        "labels 'sad' (5 samples) and 'Sad' (1 sample) differ only in case, accents, spaces or punctuation; "
        "if they are one class, spell them alike",
        "test",
    ]
    assert report.warnings[-1].startswith("test: all 2 samples have the label 'sad'")
    assert summarize(inventory(train=[clip("a", solution="sad"), clip("b", solution="nan")])).sound
    assert summarize(inventory(train=[clip("a", solution="sad"), clip("b", solution="glad")])).warnings == ()
    assert summarize(inventory(train=[clip("a", solution="sad"), clip("b", solution="sad")])).warnings == (
        "all 2 samples have the label 'sad', so this answer is always right and nothing can be learned",
    )


def test_what_decoders_find_odd_is_shown_once_by_file(inventory):
    found = decoded(inventory(train=[clip("a"), clip("b", start=0.2), clip("c", "b.mp4")]))
    odd = {key: replace(facts, warnings=(f"{key[1]}: odd",)) for key, facts in found.facts.items()}
    report = summarize(replace(found, facts=odd))
    assert sorted(warning.rpartition("/")[2] for warning in report.warnings) == ["a.mp4: odd", "b.mp4: odd"]
    assert report.as_json()["warnings"] == report.warnings
