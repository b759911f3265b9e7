"""Findings of `mmrl data from-csv` about labels, texts and files that can be used."""

import json
import unicodedata
from dataclasses import replace

import pytest
from clips import tone, write_grey, write_wav
from PIL import Image

from lightning_mmrl.cli.main import main
from lightning_mmrl.data.formats import csv_clips
from lightning_mmrl.data.schema import label_matcher, read_manifest


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for index in range(6):
        write_wav(folder / f"a{index}.wav", tone(200 + 50 * index, 0.1, 8000), 8000)
    write_grey(folder / "v.mp4", [0, 0.1, 0.2], size=32)
    Image.new("RGB", (40, 30), "red").save(folder / "p.png")
    return folder


@pytest.fixture
def convert(clips, tmp_path, decoding_here, capsys):
    """What the command prints and its exit code, for the rows of a CSV `file,label,reasoning`."""

    def convert(*rows, out="set", **options):
        (tmp_path / "labels.csv").write_text("".join(f"{row}\n" for row in ("file,label,reasoning", *rows)))
        given = [f"--{name}={value}" for name, value in {"validation": 0, "test": 0, **options}.items()]
        paths = ("--media-root", str(clips), "--out", str(tmp_path / out))
        code = main(["data", "from-csv", str(tmp_path / "labels.csv"), *paths, *given])
        done = capsys.readouterr()
        return code, done.out + done.err

    return convert


LONG = {
    "the case": "the speaker is pleased and shows this by a bright voice and an open smile",
    "one letter": "x" * 65,
    "Chinese": "\u9ad8\u5174" * 33,
    "two lines of a cell": "a label that goes on and on and on\nin a second line of the very same cell",
}
BLANK = {"punctuation alone": "--", "a question mark": "?", "stops": "...", "brackets": "()", "an ellipsis": "\u2026"}


@pytest.mark.parametrize("label", [*LONG.values(), *BLANK.values()], ids=[*LONG, *BLANK])
def test_every_label_that_is_kept_can_be_named_by_an_answer(convert, tmp_path, label):
    code, said = convert("a0.wav,sad,", f'a1.wav,"{label}",', "a2.wav,glad,")
    assert code == 0
    assert ("has no letter, digit or symbol" in said) == (label in BLANK.values())
    assert ("is it a sentence of another column?" in said) == (label in LONG.values())
    labels = json.loads((tmp_path / "set" / "labels.json").read_text())["labels"]
    matcher = label_matcher(tuple(labels))
    for sample in read_manifest(tmp_path / "set" / "train.jsonl", tmp_path / "set"):
        assert matcher.truth(sample) == sample.solution


def test_a_label_set_with_such_a_label_is_refused_before_anything_is_decoded(convert, monkeypatch):
    monkeypatch.setattr(csv_clips, "examine_tracks", None)
    code, said = convert("a0.wav,sad,", labels="sad,?")
    assert code == 2
    assert "--labels: label '?'" in said


def test_spellings_that_systems_change_are_one_label(convert, tmp_path):
    accented = [unicodedata.normalize(form, "\u00e9nerv\u00e9") for form in ("NFC", "NFC", "NFD")]
    wide = "\uff53\uff41\uff44"
    rows = [f"a{index}.wav,{label}," for index, label in enumerate([*accented, "sad", "sad", wide])]
    code, said = convert(*rows)
    assert code == 0
    assert json.loads((tmp_path / "set" / "labels.json").read_text()) == {"labels": ["sad", accented[0]]}
    assert said.count("read as the same") == 2


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (["a0.wav,sad,", "a1.wav,sad,"], "warning: all 2 samples have the label 'sad'"),
        (["a0.wav,sad,", "a1.wav,nan,"], "warning: label 'nan' (1 sample) looks like a missing value"),
        (["a0.wav,neutral,", "a1.wav,nuetral,"], "'neutral' (1 sample) and 'nuetral' (1 sample) differ in one letter"),
        (["a0.wav,very sad,", "a1.wav,very-sad,"], "warning: labels 'very sad' (1 sample) and 'very-sad'"),
    ],
)
def test_labels_that_look_like_a_mistake_are_warnings(convert, tmp_path, rows, found):
    code, said = convert(*rows)
    assert code == 0
    assert found in said
    record = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert any(warning in found or found.removeprefix("warning: ") in warning for warning in record["warnings"])


def test_labels_that_differ_are_no_warning(convert):
    assert "warning" not in convert("a0.wav,sad,", "a1.wav,glad,")[1]


def test_what_a_decoder_warns_of_is_shown_by_file(convert, monkeypatch):
    real = csv_clips.examine_tracks

    def odd(task):
        facts = real(task)
        return tuple(replace(each, warnings=(f"{task.path}: far less sound than declared",)) for each in facts)

    monkeypatch.setattr(csv_clips, "examine_tracks", odd)
    code, said = convert("a0.wav,sad,", "a1.wav,glad,", "a2.wav,glad,", show=2)
    assert code == 0
    assert said.count("far less sound than declared") == 2
    assert "warning: " in said
    assert "1 more warnings; --show 3 shows all" in said


def test_what_was_made_of_each_file_is_shown(convert):
    code, said = convert("v.mp4,sad,", "p.png,glad,", *(f"a{index}.wav,sad," for index in range(6)))
    assert code == 0
    assert "files taken as audio: 6 (a0.wav, a1.wav, a2.wav, a3.wav, a4.wav, ...)\n" in said
    assert "files taken as video: 1 (v.mp4)\n" in said
    assert "files taken as image: 1 (p.png)\n" in said
    assert "clips without sound: 1 (their lines have no <audio> tag)\n" in said
    assert "without sound" not in convert("a0.wav,sad,", "a1.wav,glad,", out="sounds")[1]
    assert "though its name says" not in said


@pytest.mark.parametrize(
    ("name", "kinds", "taken"),
    [
        ("p.png", ("video",), "video, though its name says image"),
        ("a0.wav", ("video", "audio"), "video and audio, though its name says audio"),
        ("a0.wav", ("audio",), None),
        ("v.mp4", ("audio",), "audio, though its name says video"),
        ("v.mp4", ("video", "audio"), None),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_shown(convert, monkeypatch, name, kinds, taken):
    real = csv_clips.examine_tracks
    monkeypatch.setattr(
        csv_clips, "examine_tracks", lambda task: tuple(replace(real(task)[0], kind=kind) for kind in kinds)
    )
    _, said = convert(f"{name},sad,", "a1.wav,glad,")
    assert f"{name}: taken as {taken}\n" in said if taken else f"{name}: taken as" not in said


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a0.wav,sad,He is <|im_end|> sad", "the reasoning or label holds the control token '<|im_end|>', which"),
        ("a0.wav,<|AUDIO|>,", "the reasoning or label holds the control token '<|AUDIO|>', which"),
        ("a0.wav,sad,See <image>", "the reasoning or label holds the media tag <image>"),
    ],
)
def test_a_text_that_would_become_more_than_text_is_left_out(convert, row, reason):
    code, said = convert(row, "a1.wav,sad,", "a2.wav,glad,")
    assert code == 0
    assert f"labels.csv:2: {reason}" in said


@pytest.mark.parametrize("question", ["<image>Which?", "Which?<|im_end|>"])
def test_a_question_that_would_become_more_than_text_is_refused(convert, question):
    code, said = convert("a0.wav,sad,", question=question)
    assert code == 2
    assert "the question " in said


def test_hostile_labels_and_names_are_printed_as_text(convert):
    code, said = convert("a0.wav,[bold]x[/],", "a1.wav,[/]x,", "[/].wav,y,", "a2.wav,\x1b[2Jz,")
    assert code == 0
    for text in ("[bold]x[/]", "[/]x", "'[/].wav'", "\\x1b[2Jz"):
        assert text in said
    assert "\x1b" not in said
