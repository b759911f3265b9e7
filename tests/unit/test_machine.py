"""Whatever a library makes of a disk or an allocator that refuses, it is recognized; nothing else is."""

import errno
import os
import resource
import sqlite3
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed.checkpoint.api import CheckpointException

from lightning_mmrl.data.synthetic.tones import save_wav
from lightning_mmrl.data.synthetic.video_file import write_silent_clip
from lightning_mmrl.errors import ConfigError, DiskError, MediaError, OutOfMemoryError
from lightning_mmrl.evaluation.figures import save_confusion_figure
from lightning_mmrl.machine import explain_in_threads, refusal

MOST_BYTES = 4096


@pytest.fixture
def short_files():
    """No file may be longer than this: a real refusal, which reaches code in C++ and Rust as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def text(path):
    path.write_text("line" * MOST_BYTES)


def torch_state(path):
    torch.save({"weights": torch.zeros(2**18)}, path)


def torch_stream(path):
    with path.open("wb") as file:
        torch.save({"weights": torch.zeros(2**18)}, file)


def weights(path):
    save_file({"weights": torch.zeros(2**18)}, path)


def tokens(path):
    Tokenizer(WordLevel({f"word{number}": number for number in range(999)}, unk_token="word0")).save(str(path))


def picture(path):
    Image.effect_noise((256, 256), 99).save(path, format="PNG")


def sound(path):
    save_wav(path, np.zeros(16_000, dtype=np.float32))


def clip(path):
    frames = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    write_silent_clip(path, frames, fps=9)


def figure(path):
    save_confusion_figure(np.eye(3, dtype=np.int64), ("a", "b", "c"), path, "test")


def database():
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 2")
    connection.execute("CREATE TABLE points (value)")
    connection.executemany("INSERT INTO points VALUES (?)", [(bytes(4000),)] * 9)


def read_only_database(folder):
    sqlite3.connect(folder / "points.db").execute("CREATE TABLE points (value)")
    connection = sqlite3.connect(f"file:{folder / 'points.db'}?mode=ro", uri=True)
    connection.execute("INSERT INTO points VALUES (1)")


@pytest.mark.parametrize(
    "write",
    [text, torch_state, torch_stream, weights, tokens, picture, sound, clip, figure],
    ids=lambda each: each.__name__,
)
def test_a_refused_file_is_recognized_whatever_writes(tmp_path, short_files, write):
    with pytest.raises(Exception) as caught:  # each library raises its own
        write(tmp_path / "file.mp4")
    found = refusal(caught.value)
    assert found is not None
    assert not found.memory
    assert isinstance(found.error(), OSError)
    assert "\n" not in str(found.error())


def test_a_full_database_is_recognized():
    with pytest.raises(sqlite3.OperationalError) as caught:
        database()
    assert "no space" in refusal(caught.value).problem


def test_a_read_only_database_is_recognized(tmp_path):
    with pytest.raises(sqlite3.OperationalError) as caught:
        read_only_database(tmp_path)
    assert "read-only" in refusal(caught.value).problem


@pytest.mark.parametrize(
    "code",
    ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "EMFILE", "ENFILE", "ESTALE", "ENOTCONN"],
)
def test_a_number_of_the_system_is_recognized_with_its_file(code):
    number = getattr(errno, code)
    found = refusal(OSError(number, os.strerror(number), "runs/a/state"))
    assert found.problem.startswith("runs/a/state: ")
    assert found.remedy
    # And where a library has kept its text alone, from any rank.
    assert refusal(CheckpointException("", {0: (RuntimeError(os.strerror(number)), None)})) is not None  # type: ignore[dict-item]


def cpu_allocator():
    torch.empty(2**60)


def device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free. See doc\nmore")


def kernel():
    raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")


def blas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def python():
    raise MemoryError


def system():
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@pytest.mark.parametrize("take", [cpu_allocator, device, kernel, blas, python, system], ids=lambda take: take.__name__)
def test_memory_that_is_used_up_is_recognized(take):
    with pytest.raises(Exception) as caught:  # each library raises its own
        take()
    found = refusal(caught.value)
    assert found.memory
    assert isinstance(found.error(), OutOfMemoryError)
    assert not isinstance(found.error(), OSError)
    assert len(str(found.error())) < 250


def raised_from(inner):
    try:
        raise ValueError("wrapped") from inner
    except ValueError as error:
        return error


def test_the_cause_of_an_error_counts():
    assert "no space" in refusal(raised_from(OSError(errno.ENOSPC, "x"))).problem


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("File /a/b cannot be opened: Permission denied"),
        RuntimeError("Caught OSError in a worker.\nOriginal Traceback:\nOSError: /a/b: No space left on device\n"),
        SafetensorError("Error while serializing: I/O error: Permission denied (os error 13) at path /a/b"),
        sqlite3.OperationalError("disk I/O error: /a/b"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a/b']"),
        OSError("[Errno 28] No space left on device: '/a/b'"),
    ],
    ids=repr,
)
def test_what_the_library_said_is_told(error):
    assert "/a/b" in refusal(error).problem
    assert "\n" not in refusal(error).problem


class OwnError(RuntimeError):
    """An error of a program that is no library's."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bug: Input/output error"),
        TypeError("Permission denied"),
        KeyError("No space left on device"),
        AssertionError("disk I/O error"),
        OwnError("Read-only file system"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/Permission denied"),
        RuntimeError("[enforce fail at inline_container.cc:226] . PytorchStreamReader failed reading zip archive"),
        ValueError("x"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        TimeoutError(errno.ETIMEDOUT, "timed out"),
        raised_from(KeyError("a")),
    ],
    ids=repr,
)
def test_nothing_else_is_taken_for_it(error):
    assert refusal(error) is None


def test_an_error_of_ours_says_already_what_is_wrong():
    sentence = MediaError("clip.mp4: cannot be decoded (No space left on device)")
    assert refusal(sentence) is None
    assert refusal(ConfigError("the quota")) is None
    assert refusal(DiskError("runs/a: no space is left on the disk", "free some")).problem.startswith(
        "runs/a: no space"
    )


@pytest.fixture
def hooked(monkeypatch):
    """The hook, and all that it passes on to the former one."""
    passed = []
    monkeypatch.setattr(threading, "excepthook", passed.append)
    explain_in_threads()
    explain_in_threads()
    return passed


def raised_in_a_thread(error):
    def run():
        raise error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_a_full_disk_in_a_thread_of_a_library_is_one_line(hooked, capsys):
    raised_in_a_thread(OSError(errno.ENOSPC, "No space left on device", "/there/events"))
    assert capsys.readouterr().err == "/there/events: no space is left on the disk; free some space there\n"
    assert hooked == []


def test_a_programs_bug_in_a_thread_keeps_its_traceback(hooked, capsys):
    raised_in_a_thread(ValueError("a bug"))
    assert [str(each.exc_value) for each in hooked] == ["a bug"]
    assert capsys.readouterr().err == ""
