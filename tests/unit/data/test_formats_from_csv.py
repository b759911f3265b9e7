"""Clips and a CSV of labels become manifests; what cannot be used is named; nothing is half-written."""

import csv
import json
import os

import av
import pytest
from clips import tone, write_grey, write_wav
from PIL import Image

from lightning_mmrl.data.formats import publish
from lightning_mmrl.data.formats.csv_clips import PLAIN_THOUGHT
from lightning_mmrl.data.formats.from_csv import CsvSettings, convert_csv
from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.settings.data import MediaSettings

TIMES = [index / 10 for index in range(5)]
GUARD = Guard(settings=MediaSettings(), num_workers=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for index in range(8):
        write_grey(folder / f"{index}.mp4", TIMES, size=32 + 2 * index)
    write_wav(folder / "voice.wav", tone(440, 0.5, 8000), 8000)
    (folder / "broken.mp4").write_bytes(b"\x00" * 5000)
    (folder / "again.mp4").write_bytes((folder / "0.mp4").read_bytes())
    return folder


@pytest.fixture
def convert(clips, tmp_path, decoding_here):
    def convert(text, out=None, media_root=clips, **settings):
        (tmp_path / "labels.csv").write_text(text)
        return convert_csv(
            tmp_path / "labels.csv",
            media_root,
            out or tmp_path / "set",
            settings=CsvSettings(**settings),
            guard=GUARD,
            on_progress=lambda done, total: None,
        )

    return convert


def table(*rows, header="file,label,speaker"):
    return "\n".join([header, *rows]) + "\n"


EIGHT = [f"{index}.mp4,{'sad' if index % 2 else 'glad'},s{index // 2}" for index in range(8)]


def samples(folder, name):
    return read_manifest(folder / f"{name}.jsonl", folder)


def test_a_table_becomes_manifests_that_read_back(convert, tmp_path):
    conversion = convert(table(*EIGHT))
    folder = tmp_path / "set"
    splits = {name: samples(folder, name) for name in ("train", "validation", "test")}
    assert {name: len(found) for name, found in splits.items()} == dict(conversion.sizes)
    assert sorted(sample.id for found in splits.values() for sample in found) == [str(index) for index in range(8)]
    speakers = [{sample.speaker for sample in found} for found in splits.values()]
    assert len(set.union(*speakers)) == sum(map(len, speakers))
    assert json.loads((folder / "labels.json").read_text()) == {"labels": ["glad", "sad"]}
    assert conversion.num_without_sound == 8
    assert {sample.messages[0].content for sample in splits["train"]} == {"<video>Which emotion?"}


def test_without_a_reasoning_the_cold_start_has_a_plain_thought(convert, tmp_path):
    convert(table(*EIGHT))
    cold = samples(tmp_path / "set", "cold_start")
    assert [sample.id for sample in cold] == [sample.id for sample in samples(tmp_path / "set", "train")]
    for sample in cold:
        answer = scan(sample.messages[-1].content)
        assert (answer.valid, answer.think, answer.answer) == (True, PLAIN_THOUGHT, sample.solution)


def test_with_reasonings_the_cold_start_holds_those_alone(convert, tmp_path):
    rows = [
        f"{row},{'slow, low' if index in (1, 2, 3) else ''}".replace("slow, low", '"slow, low"')
        for index, row in enumerate(EIGHT)
    ]
    rows = [f"{row},train" for row in rows]
    conversion = convert(table(*rows, header="file,label,speaker,reasoning,split"), shares={})
    cold = samples(tmp_path / "set", "cold_start")
    assert [sample.id for sample in cold] == ["1", "2", "3"]
    assert cold[0].messages[-1].content == "<think>slow, low</think><answer>sad</answer>"
    assert (conversion.num_reasonings, conversion.sizes) == (3, {"train": 8})


def test_what_cannot_be_used_is_named_and_left_out(convert, tmp_path):
    bad = [
        "broken.mp4,sad,s9",
        "none.mp4,sad,s9",
        "../x.mp4,sad,s9",
        "0.mp4,sad,s9",
        "1.mp4,,s9",
    ]
    conversion = convert(table(*EIGHT, *bad))
    with (tmp_path / "set" / "rejected.csv").open() as file:
        rejected = list(csv.DictReader(file))
    assert [(int(row["line"]), row["group"]) for row in rejected] == [
        (10, "cannot be decoded"),
        (11, "missing file"),
        (12, "outside media_root"),
        (13, "repeated clip"),
        (14, "label"),
    ]
    assert "broken.mp4" in rejected[0]["reason"]
    assert "0.mp4 stands on line 2 already, with the other label 'glad'" in rejected[3]["reason"]
    assert sum(conversion.sizes.values()) == 8


def test_tags_in_a_text_would_break_the_format_and_are_refused(convert):
    rows = ["0.mp4,sad,<answer>glad</answer>", "1.mp4,sad,look <video>", "2.mp4,</answer>,x", "3.mp4,sad,fine"]
    conversion = convert(table(*rows, header="file,label,reasoning"), shares={})
    assert [problem.group for problem in conversion.problems] == ["reasoning"] * 3
    assert conversion.sizes == {"train": 1}


def test_the_same_content_under_two_names_stays_in_one_split(convert, tmp_path):
    for seed in range(6):
        convert(table(*EIGHT, "again.mp4,glad,other"), seed=seed, overwrite=True)
        for name in ("train", "validation", "test"):
            ids = {sample.id for sample in samples(tmp_path / "set", name)}
            assert len(ids & {"0", "again"}) != 1


def test_the_splits_of_the_table_are_kept(convert, tmp_path):
    rows = [f"{row},{'dev' if index == 7 else 'test' if index == 6 else 'train'}" for index, row in enumerate(EIGHT)]
    convert(table(*rows, header="file,label,speaker,split"))
    assert [sample.id for sample in samples(tmp_path / "set", "test")] == ["6"]
    assert [sample.id for sample in samples(tmp_path / "set", "validation")] == ["7"]


def test_a_split_that_the_table_lacks_is_drawn_from_training_clips(convert, tmp_path):
    rows = [f"{row},{'test' if index < 2 else 'train'}" for index, row in enumerate(EIGHT)]
    conversion = convert(table(*rows, header="file,label,speaker,split"))
    assert conversion.notes == ("the CSV names no validation split: drawn from its training clips",)
    assert [sample.id for sample in samples(tmp_path / "set", "test")] == ["0", "1"]
    assert len(samples(tmp_path / "set", "validation")) == 2


def test_too_few_speakers_are_told_with_the_rows_that_were_left_out(convert):
    rows = ["0.mp4,glad,one", "none.mp4,sad,two", "1.mp4,glad,one", "broken.mp4,sad,three"]
    with pytest.raises(DataError) as caught:
        convert(table(*rows))
    told = str(caught.value)
    assert "1 group of clips cannot fill the splits train, validation, test" in told
    assert "; rows left out: 2, the first: " in told
    assert "labels.csv:3: media file 'none.mp4'" in told


def test_too_few_speakers_are_told(convert, tmp_path):
    rows = [row.rpartition(",")[0] + ",one" for row in EIGHT]
    with pytest.raises(DataError, match=r"labels\.csv: 1 group of clips cannot fill the splits .*--ignore-speakers$"):
        convert(table(*rows))
    assert not (tmp_path / "set").exists()
    assert set(convert(table(*rows), by_speaker=False).sizes) == {"train", "validation", "test"}


def test_labels_are_read_in_one_spelling(convert):
    rows = ["0.mp4,Sad,a", "1.mp4,sad,b", "2.mp4,sad,c", "3.mp4,glad,d"]
    conversion = convert(table(*rows))
    assert conversion.labels == ("glad", "sad")
    assert conversion.notes == ("1 rows spell the label 'sad' as 'Sad'; read as the same",)


def test_a_given_label_set_holds(convert, tmp_path):
    rows = ["0.mp4,anger,a", "1.mp4,sad,b", "2.mp4,sad,c", "3.mp4,glad,d"]
    conversion = convert(table(*rows), labels=("sad", "angry", "fear"))
    [problem] = conversion.problems
    assert (problem.group, conversion.labels) == ("label", ("sad", "angry", "fear"))
    found = {
        sample.id: sample.solution
        for name in ("train", "validation", "test")
        for sample in samples(tmp_path / "set", name)
    }
    assert found == {"0": "angry", "1": "sad", "2": "sad"}


def test_tracks_decide_the_tags(convert, tmp_path, clips):
    with av.open(str(clips / "1.mp4")) as source, av.open(str(clips / "both.mp4"), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("aac", rate=16_000)
        sound.layout = "mono"
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(tone(440, 0.5, 16_000)[None], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    convert(table("both.mp4,sad", "0.mp4,sad", "voice.wav,sad", header="clip,emotion"), shares={}, question="What?")
    found = {sample.id: sample for sample in samples(tmp_path / "set", "train")}
    assert {name: sample.messages[0].content for name, sample in found.items()} == {
        "both": "<video><audio>What?",
        "0": "<video>What?",
        "voice": "<audio>What?",
    }


def test_spans_and_further_columns_come_along(convert, tmp_path):
    rows = ["0,sad,0,0.2,0.5,x", "0,glad,0.2,0.4,,y", "1,sad,9,10,,z"]
    conversion = convert(table(*rows, header="file,label,start,end,valence,id"), shares={}, suffix=".mp4")
    first, second = samples(tmp_path / "set", "train")
    assert (first.media[0].start_s, first.media[0].end_s, first.id, first.extras) == (0.0, 0.2, "x", {"valence": "0.5"})
    assert (second.media[0].start_s, second.id) == (0.2, "y")
    assert [problem.group for problem in conversion.problems] == ["empty span"]


def test_pictures_are_samples_too_and_have_no_time(convert, tmp_path, clips):
    Image.new("RGB", (40, 30), "red").save(clips / "red.png")
    Image.new("RGB", (40, 30), "blue").save(clips / "blue.png")
    conversion = convert(table("red.png,warm,,", "blue.png,cold,0,1", header="file,label,start,end"), shares={})
    [sample] = samples(tmp_path / "set", "train")
    assert (sample.messages[0].content, sample.media[0].kind) == ("<image>Which emotion?", "image")
    assert [(problem.line, problem.group) for problem in conversion.problems] == [(3, "span")]


def test_clips_below_the_folder_stay_where_they_are(convert, clips):
    convert(table(*EIGHT), out=clips.parent)
    [ref] = samples(clips.parent, "train")[0].media
    assert ref.path.startswith(f"{clips.name}/")
    assert not (clips.parent / "media").exists()


def test_other_clips_are_linked_or_copied_into_the_folder(convert, clips, tmp_path):
    convert(table(*EIGHT))
    linked = tmp_path / "set" / "media" / "0.mp4"
    assert os.path.samefile(linked, clips / "0.mp4")
    convert(table(*EIGHT), copy=True, overwrite=True)
    assert linked.read_bytes() == (clips / "0.mp4").read_bytes()
    assert not os.path.samefile(linked, clips / "0.mp4")


def test_clips_that_cannot_be_linked_are_told(convert, monkeypatch, tmp_path):
    monkeypatch.setattr(publish.os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    with pytest.raises(DataError, match=r"cannot be linked into .*cross-device.*or give --copy"):
        convert(table(*EIGHT))
    assert not (tmp_path / "set").exists()


def test_nothing_is_overwritten_without_a_word(convert, tmp_path):
    convert(table(*EIGHT))
    before = (tmp_path / "set" / "train.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"train.jsonl exists; give --overwrite"):
        convert(table(*EIGHT), seed=5)
    assert (tmp_path / "set" / "train.jsonl").read_bytes() == before
    convert(table(*EIGHT), seed=5, overwrite=True)
    assert (tmp_path / "set" / "train.jsonl").read_bytes() != before
    manifests = {f"{name}.jsonl" for name in ("train", "validation", "test", "cold_start")}
    found = {path.name for path in (tmp_path / "set").iterdir()}
    assert found == manifests | {"labels.json", "dataset.json", "rejected.csv", "media"}


def test_a_dataset_of_another_making_is_never_overwritten(convert, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text('{"name": "synthetic emotions"}')
    with pytest.raises(DataError, match=r"dataset.json exists and is no earlier conversion"):
        convert(table(*EIGHT), overwrite=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (table("none.mp4,sad,s"), r"none .* is usable; rows left out: 1, the first: .*csv:2: media file 'none.mp4'"),
        (table("0.mp4,sad,s,x", header="file,label,speaker,messages"), r"column 'messages' would hide"),
        (table("0.mp4,sad,s,x", header="file,label,speaker,response"), r"column 'response' would hide"),
        (table("0.mp4,sad.,a", "1.mp4,sad,b"), r"reads like a word of .*or give the set by --labels"),
    ],
)
def test_a_table_of_no_use_is_refused(convert, tmp_path, text, found):
    with pytest.raises(DataError, match=found):
        convert(text, shares={})
    assert not (tmp_path / "set").exists()


def test_the_media_root_must_be_a_folder(convert, tmp_path):
    with pytest.raises(DataError, match=r"media root .*nowhere is no folder"):
        convert(table(*EIGHT), media_root=tmp_path / "nowhere")
