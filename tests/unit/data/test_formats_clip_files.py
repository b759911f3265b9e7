"""Names of clips as other systems write them find the files that are meant, and none outside of the folder."""

import os
import unicodedata

import pytest

from lightning_mmrl.data.formats.clip_files import ClipFolder
from lightning_mmrl.data.schema import LineError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "\u00e9t\u00e9 \u30c7\u30fc\u30bf.wav") for form in ("NFC", "NFD"))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "clips"
    for name in ("day 1/a.wav", "b.wav", f"nfd/{DECOMPOSED}", f"nfc/{COMPOSED}", f"{DECOMPOSED[:-4]}/x.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (tmp_path / "outside.wav").write_bytes(b"x")
    return folder


def found(root, name, **how):
    return ClipFolder(root, **how).find(name).relative_to(root.resolve()).as_posix()


def test_the_names_differ():
    assert COMPOSED != DECOMPOSED


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("day 1\\a.wav", "day 1/a.wav"),
        (".\\day 1\\a.wav", "day 1/a.wav"),
        ("day 1\\\\a.wav", "day 1/a.wav"),
        (f"nfd/{COMPOSED}", f"nfd/{DECOMPOSED}"),
        (f"nfc/{DECOMPOSED}", f"nfc/{COMPOSED}"),
        (f"nfd\\{COMPOSED}", f"nfd/{DECOMPOSED}"),
        (f"{COMPOSED[:-4]}/x.wav", f"{DECOMPOSED[:-4]}/x.wav"),
        (f"nfd/{DECOMPOSED}", f"nfd/{DECOMPOSED}"),
    ],
)
def test_other_ways_to_write_a_name_are_read(root, name, path):
    assert found(root, name) == path


def test_an_absolute_path_into_the_folder_is_read(root, tmp_path, monkeypatch):
    assert found(root, f"{root}/b.wav") == "b.wav"
    assert found(root, f"{root}//day 1/a.wav") == "day 1/a.wav"
    (tmp_path / "link").symlink_to(root)
    assert found(tmp_path / "link", f"{tmp_path}/link/b.wav") == "b.wav"
    assert found(tmp_path / "link", f"{root}/b.wav") == "b.wav"
    monkeypatch.chdir(tmp_path)
    assert found(root.relative_to(tmp_path), f"{root}/nfc/{DECOMPOSED}") == f"nfc/{COMPOSED}"


def test_a_suffix_completes_each_reading(root):
    assert found(root, "day 1\\a", suffix=".wav") == "day 1/a.wav"
    assert found(root, f"nfd/{COMPOSED[:-4]}", suffix=".wav") == f"nfd/{DECOMPOSED}"


def test_a_name_that_exists_as_it_stands_is_taken(root):
    (root / "day 1\\a.wav").write_bytes(b"other")
    (root / "nfc" / DECOMPOSED).write_bytes(b"other")
    assert found(root, "day 1\\a.wav") == "day 1\\a.wav"
    assert found(root, f"nfc/{DECOMPOSED}") == f"nfc/{DECOMPOSED}"
    assert found(root, f"nfc/{COMPOSED}") == f"nfc/{COMPOSED}"


def test_a_name_that_two_files_could_have_is_none(root):
    forms = ("o\u0302\u0323.wav", "\u00f4\u0323.wav")  # the same letter, stored in two ways that are neither form
    for form in forms:
        (root / form).write_bytes(b"x")
    assert len(set(map(lambda form: unicodedata.normalize("NFC", form), forms))) == 1
    with pytest.raises(LineError, match="does not exist"):
        found(root, unicodedata.normalize("NFC", forms[0]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.wav", "must be relative to media_root"),
        ("..\\outside.wav", "must be relative to media_root"),
        ("day 1\\..\\..\\outside.wav", "must be relative to media_root"),
        ("{parent}/outside.wav", "must be relative to media_root"),
        ("{root}/../outside.wav", "must be relative to media_root"),
        ("{root}x/b.wav", "must be relative to media_root"),
        ("C:\\clips\\b.wav", "must be relative to media_root"),
        ("\\\\server\\clips\\b.wav", "must be relative to media_root"),
        ("link\\outside.wav", "does not exist"),
        ("day 1\\none.wav", "does not exist"),
        ("day 1", "is no regular file"),
        ("{root}", "must be relative to media_root"),
    ],
)
def test_what_is_not_in_the_folder_is_refused_as_it_was_written(root, tmp_path, name, reason):
    (root / "link").symlink_to(tmp_path)
    name = name.format(root=root, parent=tmp_path)
    with pytest.raises(LineError, match=reason) as refused:
        ClipFolder(root).find(name)
    assert repr(name)[1:40] in str(refused.value)


def test_no_folder_outside_is_listed(root, tmp_path, monkeypatch):
    (root / "link").symlink_to(tmp_path)
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(str(folder)) or real(folder))
    with pytest.raises(LineError):
        ClipFolder(root).find(f"link/{COMPOSED}")
    assert listed == [str(root.resolve())]
