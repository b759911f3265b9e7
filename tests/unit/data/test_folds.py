"""Folds of a dataset: every clip tested once, no speaker on both sides, labels spread, the same from the same seed."""

import json
from collections import Counter

import pytest

from lightning_mmrl.data.folds import RECORD, FoldSettings, make_folds
from lightning_mmrl.errors import ConfigError, DataError

LABELS = ("angry", "sad", "happy")


def row(name, speaker, label, **more):
    given = {"id": name, "messages": [{"role": "user", "content": "?"}], "solution": label, "speaker": speaker, **more}
    return {key: value for key, value in given.items() if value is not None}


def write(directory, **manifests):
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in manifests.items():
        (directory / f"{name}.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    return directory


def clips(num_speakers=12, num_clips=6):
    return [
        row(f"c{speaker}-{number}", f"s{speaker:02d}", LABELS[(speaker + number) % 3], note="kept")
        for speaker in range(num_speakers)
        for number in range(num_clips)
    ]


def dataset(tmp_path):
    rows = clips()
    learned = [{**each, "messages": [*each["messages"], {"role": "assistant", "content": "<answer>"}]} for each in rows]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "labels.json").write_text('{"labels": ["angry"]}')
    return write(
        tmp_path / "set",
        train=rows[:48],
        test=rows[48:],
        cold_start=learned[:48:2],
        validation=[row("v1", "s03", "sad"), row("v2", "another", "sad")],
        ood=[row("o1", "far", "sad")],
    )


def read(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def made(tmp_path, out="folds", **settings):
    directory = dataset(tmp_path) if not (tmp_path / "set").exists() else tmp_path / "set"
    return make_folds(directory, tmp_path / out, media_root=None, settings=FoldSettings(**settings))


def test_every_clip_is_tested_once_and_no_tested_speaker_is_in_another_manifest_of_its_fold(tmp_path):
    record = made(tmp_path, num_folds=4)
    folders = [tmp_path / "folds" / name for name in record["folds"]]
    assert [folder.name for folder in folders] == ["fold_1", "fold_2", "fold_3", "fold_4"]
    tested = [each["id"] for folder in folders for each in read(folder, "test")]
    assert sorted(tested) == sorted(each["id"] for each in clips())
    for folder in folders:
        speakers = {each["speaker"] for each in read(folder, "test")}
        assert len(speakers) == 3
        for other in ("train", "cold_start", "validation", "ood"):
            assert not speakers & {each["speaker"] for each in read(folder, other)}
        assert len(read(folder, "train")) + len(read(folder, "test")) == 72
        assert read(folder, "ood") == [row("o1", "far", "sad")]
        assert (folder / "labels.json").read_text() == '{"labels": ["angry"]}'
        assert set(Counter(each["solution"] for each in read(folder, "test")).values()) == {6}
        assert {each["note"] for each in read(folder, "test")} == {"kept"}
    left_out = [fold["left_out"] for fold in record["folds"].values()]
    assert sum(each["validation.jsonl"] for each in left_out) == 1
    assert sum(each["cold_start.jsonl"] for each in left_out) == 24
    assert json.loads((tmp_path / "folds" / RECORD).read_text()) == record
    assert record["media_root"] == str(tmp_path / "set")
    assert record["folds"]["fold_1"]["test"] == {
        "clips": 18,
        "speakers": 3,
        "labels": {"angry": 6, "happy": 6, "sad": 6},
    }


def test_conflicts_are_those_of_tested_speakers_alone(tmp_path):
    directory = dataset(tmp_path)
    write(directory, conflict=[row(f"x{number}", f"s{number:02d}", None) for number in range(12)])
    record = make_folds(directory, tmp_path / "folds", media_root=None, settings=FoldSettings(num_folds=3))
    for name in record["folds"]:
        tested = {each["speaker"] for each in read(tmp_path / "folds" / name, "test")}
        assert {each["speaker"] for each in read(tmp_path / "folds" / name, "conflict")} == tested


def test_the_same_seed_gives_the_same_folds_and_another_one_others(tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        made(tmp_path, out, seed=seed)
    texts = {out: (tmp_path / out / "fold_1" / "test.jsonl").read_text() for out in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]


def test_folds_that_are_there_are_kept_and_those_of_other_files_or_settings_are_refused(tmp_path):
    first = made(tmp_path)
    stamp = (tmp_path / "folds" / "fold_1" / "test.jsonl").stat().st_mtime_ns
    assert made(tmp_path) == first
    assert (tmp_path / "folds" / "fold_1" / "test.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"other files or settings \(seed\); name a new folder"):
        made(tmp_path, seed=3)
    write(tmp_path / "set", ood=[row("o2", "far", "sad")])
    with pytest.raises(DataError, match=r"other files or settings \(manifests\)"):
        made(tmp_path)


def test_single_clips_are_dealt_if_speakers_are_ignored(tmp_path):
    write(tmp_path / "set", train=[row(f"c{number}", None, LABELS[number % 3]) for number in range(30)])
    settings = {"pool": ["train.jsonl"], "num_folds": 5}
    with pytest.raises(DataError, match=r"train\.jsonl:1 has no speaker, so that a fold could test"):
        made(tmp_path, **settings)
    record = made(tmp_path, ignore_speakers=True, **settings)
    assert [fold["test"]["clips"] for fold in record["folds"].values()] == [6] * 5
    for folder in (tmp_path / "folds").glob("fold_*"):
        ids = [{each["id"] for each in read(folder, name)} for name in ("train", "test")]
        assert len(ids[0]) == 24
        assert not ids[0] & ids[1]


BAD = {
    "a line without an id": ([{"solution": "sad", "speaker": "s"}], "train.jsonl:1 has the id None"),
    "a speaker that is a number": ([row("a", 3, "sad")], "the speaker 3; folds need texts"),
    "no solution": ([row("a", "s", None)], "has no solution, which each fold tests"),
    "one id twice": ([row("a", "s", "sad"), row("a", "t", "sad")], "train.jsonl:2 has the id 'a' of another line"),
    "too few speakers": ([row("a", "s", "sad"), row("b", "s", "sad")], "1 group of clips cannot fill the splits"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_manifest_that_cannot_be_dealt_is_refused_in_one_sentence_and_nothing_is_written(tmp_path, fault):
    rows, message = BAD[fault]
    write(tmp_path / "set", train=rows, test=[])
    with pytest.raises(DataError) as caught:
        made(tmp_path, num_folds=2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_damaged_line_and_a_missing_manifest_are_named(tmp_path):
    write(tmp_path / "set", train=clips())
    with pytest.raises(DataError, match=r"set/test\.jsonl does not exist"):
        made(tmp_path)
    (tmp_path / "set" / "test.jsonl").write_text('{"id": 1')
    with pytest.raises(DataError, match=r"set/test\.jsonl:1: not valid JSON"):
        made(tmp_path)


def test_numbers_of_folds_and_pools_are_checked():
    with pytest.raises(ConfigError, match="the number of folds is 1; it must be at least 2"):
        FoldSettings(num_folds=1)
    with pytest.raises(ConfigError, match=r"name each manifest of the pool once"):
        FoldSettings(pool=["train.jsonl", "train.jsonl"])
