"""MER2025 from its tables: six labels, sets of words with descriptions, subtitles, and sound in files of its own."""

import json

import pytest
from emotion_trees import SaidKinds, counts_of, groups_of, prepare, write_mer2025

from lightning_mmrl.errors import DataError

TRACK1 = {"track1": 12}
OVMERD = {"ovmerd": 5}


@pytest.fixture
def root(tmp_path):
    return write_mer2025(tmp_path / "mer2025-dataset")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def append(path, line):
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")


def test_track_1_has_six_labels_and_subtitles_as_columns(root, out):
    made = prepare("mer2025", root, out, counts=TRACK1)
    assert (made.met, made.sizes) == (True, {"train": 12, "cold_start": 12})
    row = lines(out, "train")[4]
    assert row == {
        "id": "sample_00000004",
        "messages": [{"role": "user", "content": "<video><audio>Which emotion?"}],
        "videos": ["video/sample_00000004.mp4"],
        "audios": ["video/sample_00000004.mp4"],
        "solution": "worried",
        "split": "train",
        "subtitle": "Hello 4",
        "subtitle_chinese": "\u4f60\u597d",
        "valence": "0.4",
    }


def test_the_published_counts_are_compared(root, out):
    made = prepare("mer2025", root, out)
    assert not made.met
    assert "track1: 12, published 7,369 (7,357 fewer)" in map(str, made.counts)
    ovmerd = prepare("mer2025", root, out, subsets=["ovmerd"])
    # No published count of OV-MERD is known, so nothing stands against writing it.
    assert "ovmerd: 5 (no published count is known: not compared)" in map(str, ovmerd.counts)
    assert ovmerd.met


@pytest.mark.parametrize(("choice", "text"), [("english", "Hello 4"), ("chinese", "\u4f60\u597d")])
def test_the_question_may_tell_the_subtitle(root, out, choice, text):
    prepare("mer2025", root, out, counts=TRACK1, options={"subtitles": choice}, question="Which one?")
    content = lines(out, "train")[4]["messages"][0]["content"]
    assert content == f"<video><audio>The subtitle of this clip is: {text}\nWhich one?"


def test_a_subtitle_with_a_tag_of_the_model_is_named_only_if_it_is_told(root, out):
    append(root / "subtitle_chieng.csv", "sample_00000000,a,say <video> now")
    made = prepare("mer2025", root, out, counts=TRACK1, options={"subtitles": "english"})
    assert [(problem.group, problem.line) for problem in made.problems] == [("control token", 2)]
    assert prepare("mer2025", root, out, counts=TRACK1).met


def test_descriptions_are_the_thoughts_of_the_cold_start(root, out):
    prepare("mer2025", root, out, counts=OVMERD, subsets=["ovmerd"])
    user, assistant = lines(out, "cold_start")[0]["messages"]
    assert user["content"] == "<video><audio>Which emotions?"
    assert assistant["content"] == "<think>She smiles, and nods.</think><answer>happy, relaxed</answer>"
    assert lines(out, "train")[0]["solution"] == "happy, relaxed"
    assert "open_vocabulary" in (out / "configs" / "data" / "mer2025.yaml").read_text()


def test_words_that_no_wheel_has_are_left_out_unless_a_wheel_is_named(root, out, tmp_path):
    append(root / "track2_train_ovmerd.csv", "sample_00000007,\"['quizzical']\"")
    counts = {"ovmerd": 6}
    made = prepare("mer2025", root, out, counts=counts, subsets=["ovmerd"])
    assert (made.met, made.sizes["train"]) == (True, 5)
    assert any("the wheel has no word: 1; --wheel" in note for note in made.notes)
    (tmp_path / "wheel.yaml").write_text("happy: joy\nquizzical: doubt\n")
    options = {"wheel": str(tmp_path / "wheel.yaml")}
    made = prepare("mer2025", root, out, counts=counts, subsets=["ovmerd"], options=options, overwrite=True)
    assert made.sizes["train"] == 6
    assert "wheel.yaml" in (out / "configs" / "data" / "mer2025.yaml").read_text()


@pytest.mark.parametrize(
    ("table", "line", "group", "words"),
    [
        ("track1_train_disdim", "sample_00000001,bored,0.1", "label", "'bored'; it must be one of neutral, angry"),
        ("track1_train_disdim", "sample_00000001,,0.1", "label", "''; it must be one of"),
        ("track1_train_disdim", "sample_00000001,angry,0.1", "repeated clip", "track1_train_disdim.csv:3 already"),
        ("track1_train_disdim", "sample_99,angry,0.1", "missing file", "clip sample_99 has no file"),
        ("track1_train_disdim", "sample_00000001", "not a CSV row", "1 fields but 3 columns"),
        ("track2_train_ovmerd", "sample_00000008,[]", "label", "it must be a list of words"),
        ("track2_train_ovmerd", "sample_00000008,\"['a</answer>b']\"", "reasoning", "breaks the answer format"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(root, out, table, line, group, words):
    append(root / f"{table}.csv", line)
    subset = "track1" if table.startswith("track1") else "ovmerd"
    made = prepare("mer2025", root, out, counts=TRACK1 | OVMERD, subsets=[subset])
    assert groups_of(made) == [group]
    assert words in str(made.problems[0])
    assert made.problems[0].line == (14 if subset == "track1" else 7)
    assert not made.met


def test_the_sound_of_a_silent_clip_is_in_its_own_file(root, out):
    (root / "audio" / "sample_00000002.wav").write_bytes(b"")
    guard = SaidKinds(**{"00000002__mp4": ["video"], "00000003__mp4": ["video"]})
    made = prepare("mer2025", root, out, counts=TRACK1, guard=guard, copies=["audio_only"])
    assert "clips without sound: 1 (sample_00000003)" in made.notes
    row = lines(out, "train")[2]
    assert (row["videos"], row["audios"]) == (["video/sample_00000002.mp4"], ["audio/sample_00000002.wav"])
    assert len(lines(out / "audio_only", "train")) == 11


def test_a_missing_table_and_several_subsets_are_refused(root, out):
    with pytest.raises(DataError, match=r"--subset track1 ovmerd names several; name one"):
        prepare("mer2025", root, out, counts=TRACK1, subsets=["track1", "ovmerd"])
    (root / "track1_train_disdim.csv").unlink()
    with pytest.raises(DataError, match=r"holds no track1_train_disdim\.csv; name the folder"):
        prepare("mer2025", root, out, counts=TRACK1)


def test_subtitles_and_descriptions_may_be_missing(root, out):
    for name in ("subtitle_chieng", "track3_train_ovmerd"):
        (root / f"{name}.csv").unlink()
    made = prepare("mer2025", root, out, counts=OVMERD, subsets=["ovmerd"])
    assert any("no subtitle_chieng.csv" in note for note in made.notes)
    assert counts_of(made)["ovmerd"] == 5
    assert "The clip shows it." in lines(out, "cold_start")[0]["messages"][1]["content"]
