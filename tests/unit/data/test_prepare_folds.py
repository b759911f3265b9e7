"""DFEW and MAFW from their fold lists: labels, folds, missing and damaged clips, lists that contradict each other."""

import json
import os

import pytest
from emotion_trees import (
    NOUNS,
    NUM_CLIPS,
    NUMBERED,
    SaidKinds,
    counts_of,
    groups_of,
    prepare,
    write_dfew,
    write_mafw,
)

from lightning_mmrl.data.prepare.rows import Row
from lightning_mmrl.data.prepare.writer import without_repetitions
from lightning_mmrl.data.synthetic.emotion_layouts import fold_of
from lightning_mmrl.errors import DataError

COUNTS = {**{f"single clips of fold {fold}": NUM_CLIPS for fold in range(1, 6)}, "single tested": NUM_CLIPS}
"""What the stand-ins have, in the place of the published counts."""
ADJECTIVES = {
    "anger": "angry",
    "happiness": "happy",
    "sadness": "sad",
    "contempt": "contemptuous",
    "anxiety": "anxious",
    "helplessness": "helpless",
    "disappointment": "disappointed",
}


@pytest.fixture
def dfew(tmp_path):
    return write_dfew(tmp_path / "DFEW")


@pytest.fixture
def mafw(tmp_path):
    return write_mafw(tmp_path / "MAFW")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_dfew_has_five_folds_and_each_clip_is_tested_once(dfew, out):
    made = prepare("dfew", dfew, out, counts=COUNTS, also={"clips in the folder": NUM_CLIPS})
    assert (made.met, made.problems) == (True, [])
    tested = []
    for fold in range(1, 6):
        test, train = (lines(out / f"fold_{fold}", name) for name in ("test", "train"))
        assert {int(row["id"]) for row in test} == {clip for clip in range(1, 21) if fold_of(clip) == fold}
        assert not {row["id"] for row in test} & {row["id"] for row in train}
        assert all(row["solution"] == NUMBERED[int(row["id"]) % 7] for row in [*test, *train])
        tested += [row["id"] for row in test]
    assert len(tested) == len(set(tested)) == NUM_CLIPS
    assert lines(out / "fold_1", "train")[0]["videos"] == ["Clip/original/part_1/1.mp4"]


def test_the_published_counts_of_dfew_are_compared_and_unknown_ones_are_not(dfew, out):
    made = prepare("dfew", dfew, out)
    assert (made.met, made.written, out.exists()) == (False, False, False)
    said = list(map(str, made.counts))
    assert "single clips of fold 3: 20, published 11,697 (11,677 fewer)" in said
    assert "single disgust: 3 (no published count is known: not compared)" in said
    assert "clips in the folder: 20, published 16,372 (16,352 fewer)" in said


def test_clips_that_the_protocol_does_not_need_may_be_missing(dfew, out):
    made = prepare("dfew", dfew, out, counts=COUNTS, also={"clips in the folder": 16372})
    assert made.met
    assert any(each.differs for each in made.counts)


def test_mafw_has_eleven_labels_as_adjectives(mafw, out):
    made = prepare("mafw", mafw, out, counts=COUNTS)
    assert made.met
    for row in lines(out / "fold_2", "train"):
        noun = NOUNS[int(row["id"]) % 11]
        assert row["solution"] == ADJECTIVES.get(noun, noun)
    labels = json.loads((out / "fold_2" / "labels.json").read_text())["labels"]
    assert (len(labels), "contemptuous" in labels) == (11, True)


def test_a_clip_that_a_list_names_and_that_is_missing_is_named_with_its_line(mafw, out):
    (mafw / "data" / "clips" / "00003.mp4").unlink()
    made = prepare("mafw", mafw, out, counts=COUNTS)
    [problem] = made.problems
    # Fold 1 trains on clips 1, 2, 3, 4, 6, ...: the third line.
    assert problem.file.endswith("set_1/train.txt")
    assert (problem.line, problem.group) == (3, "missing file")
    assert "clip 3 has no file with picture and sound; complete the download, or accept the loss" in str(problem)
    assert not made.written
    made = prepare("mafw", mafw, out, counts=COUNTS, allow_missing=True)
    assert made.written
    assert counts_of(made)["single tested"] == NUM_CLIPS - 1


def test_a_damaged_clip_is_named_once_and_left_out_of_every_fold(dfew, out):
    made = prepare("dfew", dfew, out, counts=COUNTS, guard=SaidKinds(**{"/7__mp4": None}), allow_missing=True)
    assert [(problem.file, problem.group) for problem in made.problems] == [
        ("Clip/original/part_1/7.mp4", "cannot be decoded")
    ]
    rows = [
        row["id"] for fold in range(1, 6) for name in ("train", "test") for row in lines(out / f"fold_{fold}", name)
    ]
    assert "7" not in rows
    assert "17" in rows


def test_clips_without_sound_are_counted_and_lack_the_tag(dfew, out):
    guard = SaidKinds(**{"/3__mp4": ["video"]})
    made = prepare("dfew", dfew, out, counts=COUNTS, guard=guard, copies=["audio_only"])
    assert made.met
    assert "clips without sound: 1 (3)" in made.notes
    assert "clips that audio_only has not: 1 (3)" in made.notes
    [mute] = [row for row in lines(out / "fold_1", "train") if row["id"] == "3"]
    assert mute["messages"][0]["content"] == "<video>Which emotion?"
    assert "3" not in {row["id"] for row in lines(out / "fold_1" / "audio_only", "train")}
    assert len(guard.opened) == len(set(guard.opened)) == NUM_CLIPS


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("split", "fold", "old", "new", "group", "words"),
    [
        ("train", 1, "1,2\n", "1,8\n", "label", "label '8' is none of 1, 2, 3, 4, 5, 6, 7"),
        ("train", 1, "1,2\n", "1,\n", "label", "label '' is none of"),
        ("train", 2, "2,3\n", "2,4\n", "label", "contradicts neutral in"),
        ("train", 1, "1,2\n", "1,2\n1,2\n", "repeated clip", "stands in"),
        ("test", 1, "5,6\n", "5,6\n1,2\n", "in two splits", "train(single-labeled)/set_1.csv:2 already"),
        ("test", 2, "1,2\n", "1,2\n5,6\n", "tested twice", "5.mp4 is tested in"),
        ("train", 1, "1,2\n", "1,2,3\n", "not a CSV row", "3 fields but 2 columns"),
        ("train", 1, "1,2\n", "99,2\n", "missing file", "clip 99 has no file"),
    ],
    ids=["label 8", "no label", "two labels", "twice", "train and test", "two tests", "row", "unknown clip"],
)
def test_a_list_that_contradicts_itself_is_named_with_its_line(dfew, out, split, fold, old, new, group, words):
    edit(dfew / "EmoLabel_DataSplit" / f"{split}(single-labeled)" / f"set_{fold}.csv", old, new)
    made = prepare("dfew", dfew, out, counts=COUNTS)
    found = [problem for problem in made.problems if problem.group == group]
    assert found, groups_of(made)
    assert any(words in str(problem) for problem in found)
    assert all(problem.line > 0 for problem in found)
    assert not made.met


def test_a_missing_list_is_named_and_its_fold_has_the_rest(dfew, out):
    (dfew / "EmoLabel_DataSplit" / "test(single-labeled)" / "set_4.csv").unlink()
    made = prepare("dfew", dfew, out, counts=COUNTS, allow_missing=True)
    assert groups_of(made) == ["missing list"]
    assert "test(single-labeled)/set_4.csv" in str(made.problems[0])
    assert "fold_4/train" in made.sizes
    assert "fold_4/test" not in made.sizes


def test_lists_may_have_a_byte_order_mark_crlf_and_zeros(dfew, out):
    for path in dfew.rglob("*.csv"):
        text = path.read_text().replace("\n1,", "\n00001,")
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert prepare("dfew", dfew, out, counts=COUNTS).met


def test_a_list_with_other_columns_is_refused(dfew, out):
    edit(dfew / "EmoLabel_DataSplit" / "train(single-labeled)" / "set_1.csv", "video_name", "clip")
    with pytest.raises(DataError, match=r"set_1\.csv:1: no column 'video_name'; the header has 'clip', 'label'"):
        prepare("dfew", dfew, out, counts=COUNTS)


def test_a_line_of_no_clip_and_label_is_named(mafw, out):
    path = mafw / "Train & Test Set" / "single" / "no_caption" / "set_1" / "train.txt"
    edit(path, "00001.mp4 disgust", "00001.mp4 disgust and a caption")
    made = prepare("mafw", mafw, out, counts=COUNTS)
    assert [(problem.line, problem.group) for problem in made.problems] == [(1, "not a line of the list")]


def test_clips_in_two_forms_need_their_folder(dfew, out):
    small = dfew / "Clip" / "clip_avi_224x224"
    small.mkdir()
    for clip in range(1, NUM_CLIPS + 1):
        (small / f"{clip:05d}.avi").write_bytes(b"smaller")
    with pytest.raises(DataError, match=r"none of .* say by --clips which folder holds the clips"):
        prepare("dfew", dfew, out, counts=COUNTS)
    made = prepare("dfew", dfew, out, counts=COUNTS, clips=dfew / "Clip" / "original")
    assert made.met
    with pytest.raises(DataError, match="is not within"):
        prepare("dfew", dfew, out, counts=COUNTS, clips=out.parent)


def test_two_lists_of_one_name_are_refused(dfew, out):
    other = dfew / "old" / "EmoLabel_DataSplit" / "train(single-labeled)"
    other.mkdir(parents=True)
    (other / "set_1.csv").write_text("video_name,label\n1,1\n")
    with pytest.raises(DataError, match="are two lists of one name"):
        prepare("dfew", dfew, out, counts=COUNTS)


def test_a_link_that_leads_out_of_the_originals_is_named(dfew, out, tmp_path):
    clip = dfew / "Clip" / "original" / "part_1" / "9.mp4"
    clip.rename(tmp_path / "9.mp4")
    os.symlink(tmp_path / "9.mp4", clip)
    made = prepare("dfew", dfew, out, counts=COUNTS)
    assert groups_of(made) == ["outside media_root"]
    assert not made.met


def test_validation_is_drawn_from_training_clips_alone(dfew, out):
    prepare("dfew", dfew, out, counts=COUNTS, validation=0.25)
    train, validation, test = (lines(out / "fold_1", name) for name in ("train", "validation", "test"))
    ids = [{row["id"] for row in rows} for rows in (train, validation, test)]
    assert validation
    assert sum(map(len, ids)) == len(set.union(*ids)) == NUM_CLIPS
    assert ids[2] == {str(clip) for clip in range(1, 21) if fold_of(clip) == 1}
    assert {row["split"] for row in validation} == {"validation"}


def test_without_speakers_in_two_splits():
    rows = [Row(place=("list", line), name=f"clip{line}", label="sad", speaker="a") for line in (1, 2)]
    parts = {"": {"train": rows[:1], "test": rows[1:]}}
    problems = []
    assert without_repetitions(parts, True, problems) == {"": {"train": rows[:1], "test": []}}
    assert [str(problem) for problem in problems] == ["list:2: a is in train and in test; keep a speaker in one split"]
    assert without_repetitions(parts, False, []) == parts


def test_an_earlier_preparation_is_replaced_whole_and_other_folders_never(dfew, out):
    prepare("dfew", dfew, out, counts=COUNTS, copies=["video_only"])
    with pytest.raises(DataError, match="exists; give --overwrite"):
        prepare("dfew", dfew, out, counts=COUNTS)
    (out / "fold_5" / "own.txt").write_text("mine")
    prepare("dfew", dfew, out, counts=COUNTS, overwrite=True)
    assert not (out / "fold_1" / "video_only").exists()
    assert not (out / "fold_5" / "own.txt").exists()
    write_mafw(out.parent / "MAFW")
    with pytest.raises(DataError, match="is no earlier conversion"):
        prepare("mafw", out.parent / "MAFW", out, counts=COUNTS, overwrite=True)
