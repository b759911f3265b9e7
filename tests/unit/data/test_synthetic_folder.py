"""A generated set that was interrupted: its processes end with the run, and the next start clears what is left."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lightning_mmrl.data.synthetic.folder import Recipe, make_folder
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import file_digest, write_json

RECIPE = Recipe(name="tones", settings={"seed": 0}, generator_version=1)
ROOT = Path(__file__).parents[3]


def fill(folder):
    (folder / "train.jsonl").write_text("{}\n")
    about = {"settings": dict(RECIPE.settings), "generator_version": 1}
    write_json(folder / "dataset.json", {**about, "manifests": {"train.jsonl": file_digest(folder / "train.jsonl")}})


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def left(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "clip.wav").write_text("cut o")


@pytest.fixture
def started():
    """Starts Python, and closes what it is read from."""
    processes = []

    def start(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", [".set.partial-0a1b2c3d", ".set.partial-0a1b2c3d-old"])
def test_the_next_start_removes_what_a_killed_one_left(tmp_path, name):
    left(tmp_path, name)
    fill_twice = [make_folder(tmp_path / "set", RECIPE, fill, overwrite=overwrite) for overwrite in (False, True)]
    assert fill_twice == [tmp_path / "set"] * 2
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize(
    "name", [".set2.partial-0a1b2c3d", ".set.partial", "set.partial-0a1b2c3d", ".other.partial-0a1b2c3d"]
)
def test_what_is_of_another_set_stays(tmp_path, name):
    left(tmp_path, name)
    make_folder(tmp_path / "set", RECIPE, fill, overwrite=False)
    assert names(tmp_path) == sorted([name, "set"])


def test_a_set_that_was_about_to_be_replaced_gets_its_name_back(tmp_path):
    """The run was killed between the two renames."""
    (tmp_path / ".set.partial-0a1b2c3d-old").mkdir()
    fill(tmp_path / ".set.partial-0a1b2c3d-old")

    def refuse(folder):
        raise AssertionError("it is whole")

    assert make_folder(tmp_path / "set", RECIPE, refuse, overwrite=False) == tmp_path / "set"
    assert names(tmp_path) == ["set"]


def test_what_a_living_process_writes_is_left_alone(tmp_path, started):
    """It holds the lock; this one waits for it."""
    left(tmp_path, ".set.partial-0a1b2c3d")
    script = f"""
        from pathlib import Path
        from lightning_mmrl.data.synthetic.folder import Recipe, make_folder
        print("begun", flush=True)
        make_folder(Path({str(tmp_path / "set")!r}), Recipe(name="tones", settings={{"seed": 0}}, generator_version=1),
                    lambda folder: None, overwrite=False)
    """
    with FileLock(tmp_path / ".set.lock"):
        other = started("-c", textwrap.dedent(script))
        assert other.stdout.readline() == "begun\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
        assert names(tmp_path) == [".set.partial-0a1b2c3d"]
    assert other.wait(60) == 0
    assert names(tmp_path) == ["set"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_sentence_and_nothing_is_left(tmp_path, code):
    def write(folder):
        (folder / "clip.wav").write_text("begun")
        raise OSError(code, os.strerror(code))

    with pytest.raises(DataError, match=r"cannot write the generated tones set .*set: .*; give a writable directory"):
        make_folder(tmp_path / "set", RECIPE, write, overwrite=False)
    assert names(tmp_path) == []


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_drawing_processes_end_with_a_killed_run(tmp_path, started, signum):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""
            import os, time
            from lightning_mmrl.data.synthetic.folder import run_in_processes

            def draw(items):
                print(os.getpid(), flush=True)
                time.sleep(600)

            if __name__ == "__main__":
                run_in_processes(draw, range(64), workers=2)
        """)
    )
    run = started(str(program))
    workers = [int(run.stdout.readline()) for _ in range(2)]
    assert not any(map(gone, workers))
    run.send_signal(signum)
    run.wait(30)
    until = time.monotonic() + 30
    while not all(map(gone, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    survivors = [pid for pid in workers if not gone(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert survivors == []
