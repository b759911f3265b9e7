"""A scorer that does what the completion says; a module of its own, so that spawned workers can import it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from lightning_mmrl.types.records import Completion, Sample, Score


class UnpicklableError(Exception):
    """Cannot be sent back by a worker."""

    def __init__(self) -> None:
        super().__init__(lambda: None)


class Obedient:
    """Sleeps, dies, raises or scores, on demand."""

    components = ()

    def score(self, sample: Sample, completion: Completion) -> Score:
        verb, _, argument = completion.text.partition(" ")
        return getattr(self, verb)(argument)

    def give(self, value: str) -> Score:
        return Score(total=float(value), components={"given": float(value)})

    def sleep(self, seconds: str) -> Score:
        time.sleep(float(seconds))
        return self.give("1")

    def meet(self, paths: str) -> Score:
        """Ends only if another worker meets it at the same time."""
        ours, theirs = map(Path, paths.split())
        ours.touch()
        while not theirs.exists():
            time.sleep(0.01)
        return self.give("1")

    def spin(self, _: str) -> Score:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            pass

    def fail(self, message: str) -> Score:
        raise ValueError(message)

    def fail_badly(self, _: str) -> Score:
        raise UnpicklableError

    def exit(self, code: str) -> Score:
        os._exit(int(code))

    def leave(self, code: str) -> Score:
        raise SystemExit(int(code))

    def suicide(self, _: str) -> Score:
        os.kill(os.getpid(), signal.SIGKILL)
        return self.give("0")

    def thread_name(self, _: str) -> Score:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # raises outside of a main thread
        return self.give("1")

    def nothing(self, _: str) -> None:
        return None

    def spawn(self, path: str) -> Score:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        Path(path).write_text(str(child.pid))
        return self.sleep("60")


class Misbehaves:
    """A reward that does what the completion says, in ways that a verifier may fail."""

    def __call__(self, sample: Sample, completion: Completion) -> float:
        return getattr(self, completion.text)()

    def good(self) -> float:
        return 1.0

    def sleep(self) -> float:
        time.sleep(60)
        return 1.0

    def spin(self) -> float:
        while True:
            pass

    def block(self) -> float:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        return self.sleep()

    def swallow(self) -> float:
        while True:
            with suppress(Exception):
                time.sleep(60)

    def gigabytes(self) -> float:
        return float(len(bytearray(4_000_000_000)))

    def grow(self) -> float:
        held = []
        while True:
            held.append(bytearray(10_000_000))

    def nan(self) -> float:
        return float("nan")

    def fail(self) -> float:
        raise ValueError("bad luck")

    def exit(self) -> float:
        os._exit(3)

    def leave(self) -> float:
        raise SystemExit(3)

    def crash(self) -> float:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 1.0


def fine(sample: Sample, completion: Completion) -> float:
    """A part that runs before the other one."""
    return 0.5


class FailsToLoad:
    """Can be pickled, but not loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_refuse, ("no weights",))


class LeavesOnLoad:
    """Calls `sys.exit` where it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return (sys.exit, (0,))


class DiesOnLoad:
    """Ends the process that loads it."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return (os._exit, (7,))


def _refuse(message: str) -> None:
    raise FileNotFoundError(message)
