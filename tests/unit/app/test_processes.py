"""Tasks as processes: in order, several at a time, and ended together by a signal."""

import os
import signal
import stat
import threading
import time
from types import SimpleNamespace

import pytest
from filelock import FileLock

from lightning_mmrl.app import processes
from lightning_mmrl.app.processes import Command, Pool, Task, is_locked
from lightning_mmrl.errors import DiskError, StageError
from lightning_mmrl.training.interruption import Interrupted


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Runs shell scripts in the place of `mmrl`; `happened` has what began and ended."""
    shell = tmp_path / "python"
    shell.write_text('#!/bin/sh\nshift 2\neval "$1"\n')
    shell.chmod(shell.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(processes, "sys", SimpleNamespace(executable=str(shell)))
    happened = []

    def task(name, *scripts, waits_for=(), prepare=lambda: None):
        def begin():
            code = 0
            for script in scripts:
                code = yield Command(arguments=[script], lock=tmp_path / f"{name}.lock", prepare=prepare)
                if code:
                    break
            return code

        return Task(name=name, log=tmp_path / "logs" / name, begin=begin, waits_for=waits_for)

    def run(*tasks, parallel=1):
        pool = Pool(
            parallel,
            {"PATH": os.environ["PATH"], "OWN": "kept"},
            on_start=lambda each: happened.append(f"+{each.name}"),
            on_end=lambda each: happened.append(f"-{each.task.name} {each.code}"),
        )
        return pool.run(tasks)

    return SimpleNamespace(task=task, run=run, happened=happened, folder=tmp_path)


def test_tasks_run_in_order_and_a_failure_stops_no_other(lab):
    assert lab.run(lab.task("a", "exit 0"), lab.task("b", "exit 3", "exit 0"), lab.task("c", "exit 0", "exit 4")) == {
        "a": 0,
        "b": 3,
        "c": 4,
    }
    assert lab.happened == ["+a", "-a 0", "+b", "-b 3", "+c", "-c 4"]


def test_a_task_waits_for_others_whatever_their_codes_and_one_without_commands_ends_at_once(lab):
    tasks = [lab.task("later", "exit 0", waits_for=["first", "empty"]), lab.task("first", "exit 9"), lab.task("empty")]
    assert lab.run(*tasks) == {"first": 9, "empty": 0, "later": 0}
    assert lab.happened == ["+first", "-first 9", "+empty", "-empty 0", "+later", "-later 0"]


def test_several_run_at_a_time_but_no_more_than_allowed(lab):
    """Each of two waits for the file of the other, which one after another could not end."""
    meet = [
        f"touch {lab.folder}/{own}; while [ ! -e {lab.folder}/{other} ]; do sleep 0.05; done"
        for own, other in ("xy", "yx")
    ]
    lab.run(lab.task("a", meet[0]), lab.task("b", meet[1]), lab.task("c", "exit 0"), parallel=2)
    assert lab.happened[:2] == ["+a", "+b"]
    assert lab.happened.index("+c") > min(lab.happened.index("-a 0"), lab.happened.index("-b 0"))


def test_output_goes_to_the_log_and_the_environment_to_the_process(lab):
    lab.run(lab.task("a", "echo out $OWN; echo err >&2"), lab.task("a", "echo again"))
    assert (lab.folder / "logs" / "a").read_text() == "out kept\nerr\nagain\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_process_once_and_no_task_ends_or_begins(lab, signum):
    note = f"trap 'echo got >> {lab.folder}/got-$$' TERM INT; touch {lab.folder}/up-$$; sleep 0.3; sleep 0.3; exit 0"

    def interrupt():
        while len(list(lab.folder.glob("up-*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(Interrupted) as interrupted:
        lab.run(lab.task("a", note), lab.task("b", note), lab.task("c", "exit 0"), parallel=2)
    sender.join()
    assert interrupted.value.exit_code == 128 + signum
    assert lab.happened == ["+a", "+b"]
    assert [path.read_text() for path in lab.folder.glob("got-*")] == ["got\n"] * 2


def test_a_process_that_an_earlier_call_left_is_waited_for(lab):
    """It holds the lock, which refuses a second process."""
    lock = FileLock(lab.folder / "a.lock", thread_local=False)
    lock.acquire()
    assert is_locked(lab.folder / "a.lock")
    began = time.monotonic()
    threading.Timer(0.5, lock.release).start()
    assert lab.run(lab.task("a", "exit 0")) == {"a": 0}
    assert time.monotonic() - began >= 0.5
    assert not is_locked(lab.folder / "a.lock")


def test_an_error_before_a_process_or_between_two_ends_that_task_alone(lab):
    def refuse():
        raise DiskError("the disk is full", "make room")

    def broken():
        raise StageError("the folder is damaged")
        yield

    log = lab.folder / "logs" / "c"
    tasks = [lab.task("a", "exit 0", prepare=refuse), Task(name="c", log=log, begin=broken), lab.task("b", "exit 0")]
    assert lab.run(*tasks) == {"a": 2, "c": 2, "b": 0}
    assert lab.happened == ["+a", "-a 2", "+c", "-c 2", "+b", "-b 0"]
    assert (lab.folder / "logs" / "a").read_text() == "the disk is full; make room\n"
    assert log.read_text() == "the folder is damaged\n"


def test_a_process_that_holds_no_lock_yet_is_waited_for_after_its_caller_was_killed(lab):
    """It takes the lock of its folder only after its imports."""
    caller = os.fork()
    if caller == 0:
        lab.run(lab.task("a", f"touch {lab.folder}/up; sleep 1; touch {lab.folder}/done"))
        os._exit(0)
    while not (lab.folder / "up").exists():
        time.sleep(0.02)
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    assert lab.run(lab.task("a", f"[ -e {lab.folder}/done ]")) == {"a": 0}


def test_tasks_that_wait_for_none_are_an_error_and_no_wait_for_ever(lab):
    with pytest.raises(RuntimeError, match="2 tasks wait for lost, other, which is none of them"):
        lab.run(
            lab.task("a", "exit 0"),
            lab.task("b", "exit 0", waits_for=["lost", "a"]),
            lab.task("c", waits_for=["other"]),
        )
    assert lab.happened == ["+a", "-a 0"]
