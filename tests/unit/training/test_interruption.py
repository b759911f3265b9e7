"""Signals: raised where nothing can be torn, held back elsewhere; the second one ends the process."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from lightning_mmrl.training.interruption import SIGNALS, Interrupted, Interruption


@pytest.fixture
def interruption():
    with Interruption() as listening:
        yield listening


def wait_after(signum):
    os.kill(os.getpid(), signum)
    time.sleep(10)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_is_raised_where_the_process_is(interruption, signum):
    with pytest.raises(Interrupted, match=signum.name) as raised:
        wait_after(signum)
    assert raised.value.exit_code == 128 + signum


def test_an_interruption_is_a_keyboard_interrupt():
    """Code that knows nothing of it cleans up as for Ctrl-C."""
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_a_held_signal_is_raised_at_the_end_of_the_block(interruption):
    passed = []

    def work():
        with interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            with interruption.held():
                passed.append("inner")
            passed.append("outer")

    with pytest.raises(Interrupted):
        work()
    assert passed == ["inner", "outer"]


def test_a_hold_lasts_until_it_is_released(interruption):
    interruption.hold()
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.holding
    with pytest.raises(Interrupted):
        interruption.release()
    interruption.release()  # what was raised once is not raised again
    assert not interruption.holding


def test_an_error_within_a_block_is_not_hidden_by_the_signal(interruption):
    def work():
        with interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        work()
    assert not interruption.holding


def test_without_a_signal_nothing_is_raised(interruption):
    with interruption.held():
        assert interruption.holding
    interruption.release()


def test_the_handlers_before_are_put_back():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with Interruption():
        assert [signal.getsignal(signum) for signum in SIGNALS] != before
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_one_that_was_never_entered_takes_no_signal():
    before = [signal.getsignal(signum) for signum in SIGNALS]
    Interruption().listen()
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_the_second_signal_ends_the_process_at_once():
    script = """
        import os, signal, time
        from lightning_mmrl.training.interruption import Interruption
        with Interruption() as interruption, interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            print("saving", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            print("not reached", flush=True)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGINT, "saving\n")


def test_the_sigterm_of_a_launcher_after_ctrl_c_does_not_end_the_closing(interruption):
    interruption.hold()
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), signum)
    with pytest.raises(Interrupted, match="SIGINT"):
        interruption.release()
    os.kill(os.getpid(), signal.SIGTERM)


class Others:
    """Ranks of which the others have been sent a signal, or none."""

    rank, world_size, lockstep = 0, 2, False

    def __init__(self, signum=0):
        self.signum = signum

    def max(self, value):
        return max(value, self.signum)


def test_together_a_signal_waits_for_the_safe_point(interruption):
    passed = []

    def work():
        with interruption.together(Others()):
            os.kill(os.getpid(), signal.SIGTERM)
            passed.append("signal")
            interruption.release()  # the end of a hold is no safe point
            interruption.safe_point()

    with pytest.raises(Interrupted, match="SIGTERM"):
        work()
    assert passed == ["signal"]


def test_a_signal_to_another_rank_is_raised_here_as_well(interruption):
    with interruption.together(Others(signal.SIGUSR1)), pytest.raises(Interrupted, match="SIGUSR1"):
        interruption.safe_point()


def test_rank_local_work_is_cut_short_and_agreed_on_at_its_end(interruption):
    passed = []

    def work():
        with interruption.together(Others()):
            with interruption.rank_local():
                os.kill(os.getpid(), signal.SIGINT)
                interruption.poll()
                passed.append("went on")
            passed.append("without an agreement")

    with pytest.raises(Interrupted, match="SIGINT"):
        work()
    assert passed == []


def test_a_rank_that_leaves_the_others_is_interrupted_then(interruption):
    passed = []

    def work():
        with interruption.together(Others()):
            os.kill(os.getpid(), signal.SIGTERM)
            passed.append("inside")

    with pytest.raises(Interrupted):
        work()
    assert passed == ["inside"]


def test_alone_a_safe_point_is_none_and_apart_changes_nothing(interruption):
    interruption.safe_point()
    interruption.poll()
    with pytest.raises(Interrupted), interruption.rank_local():
        wait_after(signal.SIGTERM)
