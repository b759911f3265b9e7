"""Decoders say nothing on the console; exceptions, and whoever writes afterwards, are heard."""

import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clips import tone, write_grey
from PIL import Image

from lightning_mmrl.data.media import quiet
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder, decode
from lightning_mmrl.data.media.quiet import quietly
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef


def damaged(path: Path, seed: int, num_bytes: int, start: int) -> Path:
    content = bytearray(path.read_bytes())
    chance = random.Random(seed)
    for _ in range(num_bytes):
        content[chance.randrange(start, len(content) - 20)] = chance.randrange(256)
    path.write_bytes(content)
    return path


def damaged_mp3(folder):
    soundfile.write(folder / "a.mp3", tone(440, 2.0, 16000), 16000)
    return damaged(folder / "a.mp3", 0, 200, 50), "audio"


def cut_mp3(folder):
    soundfile.write(folder / "a.mp3", tone(440, 2.0, 16000), 16000)
    whole = (folder / "a.mp3").read_bytes()
    (folder / "a.mp3").write_bytes(whole[: len(whole) // 2])
    return folder / "a.mp3", "audio"


def damaged_tiff(folder):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.tif", compression="tiff_lzw")
    return damaged(folder / "a.tif", 0, 10, 20), "image"


def damaged_clip(folder):
    path = write_grey(folder / "a.avi", [index / 10 for index in range(20)], codec="mpeg4")
    return damaged(path, 0, 30, 6000), "video"


def no_clip(folder):
    (folder / "a.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 3000)
    return folder / "a.mp4", "video"


@pytest.fixture(params=[damaged_mp3, cut_mp3, damaged_tiff, damaged_clip, no_clip], ids=lambda make: make.__name__)
def task(request, tmp_path):
    path, kind = request.param(tmp_path)
    return DecodeTask(path=path, ref=MediaRef(kind=kind, path=path.name), settings=MediaSettings())


@pytest.fixture
def in_worker(monkeypatch):
    monkeypatch.setattr(quiet, "parent_process", lambda: "a parent")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@pytest.mark.usefixtures("in_worker")
def test_a_damaged_file_is_decoded_or_refused_without_a_word_of_the_decoder(task, capfd):
    with suppress(MediaError):
        decode(task)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_workers_are_as_quiet(tmp_path, capfd):
    tasks = []
    for make in (damaged_mp3, damaged_tiff, no_clip):
        (tmp_path / make.__name__).mkdir()
        path, kind = make(tmp_path / make.__name__)
        tasks.append(DecodeTask(path=path, ref=MediaRef(kind=kind, path=path.name), settings=MediaSettings()))
    outcomes = {}
    GuardedDecoder(workers=1).decode_all(tasks, outcomes.__setitem__)
    assert outcomes[2].error is not None
    assert capfd.readouterr().err == ""


def test_a_process_that_is_no_worker_keeps_its_standard_error(capfd):
    """It may train in another thread, whose messages would be lost."""
    quietly(os.write)(2, b"a message of another thread\n")
    assert capfd.readouterr().err == "a message of another thread\n"


@pytest.mark.usefixtures("in_worker")
def test_standard_error_is_back_afterwards(capfd):
    def noise(fails):
        os.write(2, b"noise of a library\n")
        if fails:
            raise MediaError("a.mp4: cut off")
        return 7

    assert quietly(noise)(False) == 7
    with pytest.raises(MediaError, match="cut off"):
        quietly(noise)(True)
    os.write(2, b"from C\n")
    sys.stderr.write("from Python\n")
    err = capfd.readouterr().err
    assert "noise" not in err
    assert "from C\n" in err
    assert "from Python\n" in err
    assert quietly(noise).__name__ == "noise"


@pytest.mark.usefixtures("in_worker")
def test_no_file_descriptor_is_left(capfd):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        quietly(len)([1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_without_standard_error_decodes_all_the_same():
    """As under a service manager that closes it: `2>&-`."""
    code = "from lightning_mmrl.data.media.quiet import quietly; print(quietly(len)([1, 2]))"
    for without in ("import os; os.close(2); ", "import os, sys; sys.stderr = None; os.close(2); "):
        ran = subprocess.run([sys.executable, "-c", without + code], stdout=subprocess.PIPE, check=True)
        assert ran.stdout == b"2\n"


def test_what_the_caller_raises_without_standard_error_is_its_own(monkeypatch):
    def closed(_):
        raise OSError(9, "Bad file descriptor")

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "dup", closed)
    with pytest.raises(OSError, match="No space left"):
        quietly(full)()
