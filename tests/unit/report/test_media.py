"""Media beside the page."""

from dataclasses import replace
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from clips import tone, write_wav
from parsed_page import Parsed
from PIL import Image
from run_folders import rollout, whole_run

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.report import media as report_media
from lightning_mmrl.report.media import MediaFolder
from lightning_mmrl.report.page import write_report
from lightning_mmrl.types.records import MediaRef


@pytest.fixture
def run(tmp_path):
    """A run whose three groups have a picture, a sound, and files that are missing or outside the folder of media."""
    run, root = whole_run(tmp_path / "run"), tmp_path / "media"
    root.mkdir()
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(root / "a.png")
    write_wav(root / "b.wav", tone(440, 0.2, 16000), 16000)
    media = [("image", "a.png"), ("audio", "b.wav"), ("audio", "c.wav"), ("image", "../a.png"), ("image", "a.png")]
    rows = [rollout(number) for number in range(len(media))]
    refs = [MediaRef(kind=kind, path=path) for kind, path in media]
    rows = [replace(row, sample=replace(row.sample, media=(ref,))) for row, ref in zip(rows, refs, strict=True)]
    run.roll("reason", rows)
    return run


def shown(path):
    return [group["media"][0] for group in Parsed(path.read_text()).sampled]


def test_frames_outlines_and_copies_lie_beside_the_page(run, tmp_path):
    path = write_report([run.folder], tmp_path / "page.html", MediaFolder(root=tmp_path / "media"))
    picture, sound, gone, outside, again = shown(path)
    assert [(tmp_path / frame).exists() for frame in picture["frames"]] == [True]
    assert picture == again, "one file is decoded once"
    assert sound["wave"].startswith("M0 ")
    assert (tmp_path / sound["play"]).read_bytes() == (tmp_path / "media" / "b.wav").read_bytes()
    assert "does not exist" in gone["error"]
    assert "must be relative" in outside["error"]
    assert "img-src 'self' file:; media-src 'self' file:" in path.read_text()
    assert len([each for each in (tmp_path / "page_media").iterdir() if each.name != report_media.MARKER]) == 2


def test_a_folder_of_the_user_is_refused_before_anything_is_decoded(run, tmp_path, monkeypatch):
    target, beside = tmp_path / "notes.html", tmp_path / "notes_media"
    media = MediaFolder(root=tmp_path / "media")
    beside.mkdir()
    write_report([run.folder], target, media)  # an empty folder is nobody's loss
    write_report([run.folder], target, media)
    assert (beside / report_media.MARKER).is_file()
    (beside / report_media.MARKER).unlink()
    (beside / "mine.txt").write_text("months of work")
    (tmp_path / "file_media").write_text("mine")
    (tmp_path / "link_media").symlink_to(beside)
    before, page = sorted(beside.iterdir()), target.read_bytes()
    monkeypatch.setattr(report_media, "Guard", None)
    for name in ("notes", "file", "link"):
        with pytest.raises(ConfigError, match=rf"{name}_media would be replaced .*; move it away, or .* --out"):
            write_report([run.folder], tmp_path / f"{name}.html", media)
    assert sorted(beside.iterdir()) == before
    assert target.read_bytes() == page


def test_addresses_of_media_are_quoted(run, tmp_path):
    path = write_report([run.folder], tmp_path / "50 %: a#1?\u00e9.html", MediaFolder(root=tmp_path / "media"))
    picture, sound, *_ = shown(path)
    for address in (*picture["frames"], sound["play"]):
        parts = urlsplit(address)
        assert parts.path == address, "no part of the name is read as a scheme, a query or a fragment"
        assert (tmp_path / unquote(parts.path)).is_file()


def test_the_folders_of_the_configuration_are_searched(run, tmp_path):
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("root: data/emotions", f"root: {tmp_path / 'media'}"))
    path = write_report([run.folder], None, MediaFolder())
    assert "frames" in shown(path)[0]
    assert (run.folder / "report_media").is_dir()


def test_without_a_folder_of_media_the_page_says_how_to_name_one(run, tmp_path):
    path = write_report([run.folder], tmp_path / "page.html", MediaFolder())
    assert "give --media-root" in shown(path)[0]["error"]


def test_large_files_are_not_copied_and_this_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(report_media, "MOST_FILE_BYTES", 100)
    path = write_report([run.folder], tmp_path / "page.html", MediaFolder(root=tmp_path / "media"))
    assert "play" not in shown(path)[1]
    assert "1 media files are too large to be copied" in path.read_text()


def test_files_that_are_too_large_are_counted_for_each_run(run, tmp_path, monkeypatch):
    other = whole_run(tmp_path / "other")
    row = rollout(0)
    other.roll("reason", [replace(row, sample=replace(row.sample, media=(MediaRef(kind="image", path="a.png"),)))])
    third = whole_run(tmp_path / "third")
    shared = MediaRef(kind="audio", path="b.wav")
    third.roll("reason", [replace(row, sample=replace(row.sample, media=(shared,)))])
    monkeypatch.setattr(report_media, "MOST_FILE_BYTES", 100)
    note = "media files are too large to be copied"
    for second, expected in ((other, ["run"]), (third, ["run", "third"])):
        path = write_report([run.folder, second.folder], tmp_path / "page.html", MediaFolder(root=tmp_path / "media"))
        text = path.read_text()
        assert [name for name in ("run", "other", "third") if f"<li>{name}: 1 {note}" in text] == expected


def test_a_page_without_media_allows_none(run):
    text = write_report([run.folder]).read_text()
    assert "img-src" not in text
    assert "media-src" not in text
