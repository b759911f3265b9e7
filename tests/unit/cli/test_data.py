"""`mmrl data`: exit codes, output at 120 columns, and arguments that are refused before anything is loaded."""

import errno
import json
import os
import subprocess
import sys

import pytest
from clips import write_grey

from lightning_mmrl.cli.main import main

TIMES = [index / 10 for index in range(5)]


def clip(name, file, **columns):
    messages = [{"role": "user", "content": "<video>?"}]
    return json.dumps({"id": name, "messages": messages, "videos": [file], **columns})


@pytest.fixture
def folder(tmp_path):
    write_grey(tmp_path / "a.mp4", TIMES)
    write_grey(tmp_path / "b.mp4", TIMES[:3])
    (tmp_path / "broken.mp4").write_bytes(b"\x00" * 3000)
    (tmp_path / "train.jsonl").write_text(clip("a", "a.mp4", solution="sad", speaker="s1") + "\n")
    (tmp_path / "test.jsonl").write_text(clip("b", "b.mp4", solution="glad", speaker="s2") + "\n")
    rows = [clip("a", "a.mp4"), "{", clip("n", "none.mp4"), clip("c", "broken.mp4")]
    (tmp_path / "bad.jsonl").write_text("".join(row + "\n" for row in rows))
    return tmp_path


def run(*arguments):
    return main(["data", *map(str, arguments)])


def test_a_sound_dataset_exits_with_0(folder, capsys):
    assert run("validate", folder / "train.jsonl", folder / "test.jsonl", "--media-root", folder, "--workers", 1) == 0
    out = capsys.readouterr().out
    assert "2 samples usable, 0 bad lines" in out
    assert "64x64" in out
    assert "\x1b[" not in out
    assert max(map(len, out.splitlines())) <= 120


def test_problems_are_reported_and_exit_with_1(folder, capsys):
    report = folder / "report.json"
    done = run("validate", folder / "bad.jsonl", "--media-root", folder, "--workers", 1, "--json", report, "--show", 2)
    assert done == 1
    out = capsys.readouterr().out
    assert f"{folder}/bad.jsonl:2: not valid JSON" in out
    assert f"{folder}/bad.jsonl:3: media file 'none.mp4' does not exist" in out
    assert "... and 1 more; --show 3 shows all" in out
    assert "1 sample usable, 3 bad lines" in out
    content = json.loads(report.read_text())
    assert content["problems_by_group"] == {"not JSON": 1, "missing file": 1, "cannot be decoded": 1}
    assert [problem["line"] for problem in content["problems"]] == [2, 3, 4]


def test_a_report_that_the_disk_refuses_leaves_the_one_before(folder, capsys, monkeypatch):
    report = folder / "report.json"
    report.write_text("old")

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run("stats", folder / "train.jsonl", "--media-root", folder, "--json", report) == 2
    assert f"--json {report} cannot be written ({report}: no space is left on the disk" in capsys.readouterr().err
    assert report.read_text() == "old"
    assert not list(folder.glob("*.tmp"))


def test_a_report_takes_no_place_of_a_device_or_a_link(folder, capsys):
    (folder / "real.json").write_text("old")
    (folder / "link.json").symlink_to(folder / "real.json")
    (folder / "out").symlink_to("/dev/null")
    for name in ("link.json", "out"):
        assert run("stats", folder / "train.jsonl", "--media-root", folder, "--json", folder / name) == 0
        assert (folder / name).is_symlink()
    assert json.loads((folder / "real.json").read_text())["encoding_checked"] is False


def test_stats_do_not_decode(folder, capsys):
    assert run("stats", folder / "train.jsonl", folder / "test.jsonl", "--media-root", folder) == 0
    out = capsys.readouterr().out
    assert "Media, not decoded" in out
    assert "warning: a label in no training split: 1, such as 'glad' at test.jsonl:1 (b)" in out
    assert run("stats", folder / "bad.jsonl", "--media-root", folder) == 1
    assert "cannot be decoded" not in capsys.readouterr().out


def test_a_limit_makes_a_clip_a_problem(folder, capsys):
    arguments = ("validate", folder / "train.jsonl", "--media-root", folder, "--workers", 1)
    assert run(*arguments, "--max-pixels", 100) == 1
    assert "too many pixels" in capsys.readouterr().out
    assert run(*arguments, "--labels", "glad,angry") == 1
    assert "solution 'sad' is none of the labels glad, angry" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["validate", "{}/none.jsonl", "--media-root", "{}"], "none.jsonl does not exist"),
        (["validate", "{}/train.jsonl", "--media-root", "{}/x"], "--media-root {}/x is no folder"),
        (["validate", "{}/train.jsonl", "--media-root", "{}", "--workers", "0"], "--workers is 0; it must be above 0"),
        (["validate", "{}/train.jsonl", "--media-root", "{}", "--deadline", "nan"], "--deadline is nan"),
        (["validate", "{}/train.jsonl", "--media-root", "{}", "--json", "{}/x/y"], "its folder does not exist"),
        (["stats", "{}/train.jsonl", "--media-root", "{}", "--labels", "a,A"], "reads like a word of 'a'"),
        (["stats", "{}/train.jsonl", "--media-root", "{}", "--show", "-1"], "--show is -1"),
        (["from-csv", "{}/none.csv", "--media-root", "{}", "--out", "{}/o"], "none.csv does not exist"),
        (["from-csv", "x", "--media-root", "{}", "--out", "{}/o", "--test", "0.9"], "leave a rest"),
        (["synth", "{}/o", "--task", "mation"], "did you mean 'motion'?"),
        (["synth", "{}/o", "--workers", "0"], "--workers is 0"),
    ],
)
def test_bad_arguments_exit_with_2_in_one_sentence(folder, capsys, arguments, found):
    assert run(*(each.replace("{}", str(folder)) for each in arguments)) == 2
    captured = capsys.readouterr()
    assert found.replace("{}", str(folder)) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_media_root_is_required(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        run("validate", folder / "train.jsonl")
    assert caught.value.code == 2
    assert "--media-root" in capsys.readouterr().err


def test_from_csv_names_the_next_commands(folder, capsys):
    (folder / "labels.csv").write_text("clip,emotion\na.mp4,sad\nb.mp4,glad\nbroken.mp4,sad\n")
    arguments = ("--media-root", folder, "--out", folder / "set", "--validation", 0, "--test", 0, "--workers", 1)
    assert run("from-csv", folder / "labels.csv", *arguments) == 0
    out = capsys.readouterr().out
    assert f"{folder}/labels.csv:4: {folder}/broken.mp4: file cannot be decoded" in out
    assert "rows left out: 1" in out
    overrides = "data.validation=null evaluation.sets.test=train.jsonl"
    assert f"mmrl train experiment=own_clips data.root={folder}/set {overrides}\n" in out
    assert not [name for name in ("validation", "test") if (folder / "set" / f"{name}.jsonl").exists()]


def test_a_generated_task_is_made(folder, capsys):
    assert run("synth", folder / "sums", "--task", "arithmetic", "--scale", 0.02, "--workers", 1) == 0
    manifests = sorted((folder / "sums").glob("*.jsonl"))
    assert run("validate", *manifests, "--media-root", folder / "sums") == 0


def test_the_reports_load_no_torch(folder):
    code = (
        "import sys; from lightning_mmrl.cli.main import main; "
        f"assert main(['data', 'stats', {str(folder / 'train.jsonl')!r}, '--media-root', {str(folder)!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_validate_says_that_encoding_was_not_checked_and_stats_do_not(folder, capsys):
    assert run("validate", folder / "train.jsonl", "--media-root", folder, "--workers", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("encoding not checked: add --for experiment=NAME")
    assert lines[-1] == "1 sample usable, 0 bad lines"
    assert run("stats", folder / "train.jsonl", "--media-root", folder) == 0
    assert "encoding" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--for", "experiment=own_clip"], "did you mean 'own_clips'"),
        (["--for", "experiment=own_clips", "--max-pixels", "9"], "--max-pixels is given with --for"),
        (["--for", "experiment=own_clips", "data.labels=[sad]", "nonsense=1"], "nonsense"),
        (["--config-dir", "conf"], "--config-dir is given without --for"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_before_anything_is_decoded(folder, capsys, arguments, words):
    assert run("validate", folder / "train.jsonl", "--media-root", folder, *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""
