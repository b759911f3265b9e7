"""Signals that end a run: at once where nothing can be torn, else as soon as the weights are whole again."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Preemption, Ctrl-C, and the warning that batch systems send ahead of a time limit."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; `exit_code` is what a shell gives for it.

    >>> Interrupted(signal.SIGTERM).exit_code
    143
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"{signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Turns the first signal into `Interrupted`, and lets the second one end the process at once.

        with Interruption() as interruption:
            ...
            with interruption.held():
                ...  # a signal that arrives here is raised at the end of the block

    The exception is raised in the main thread wherever it is: in a rollout, a reward, an evaluation. While weights
    change or files are written, it is held back.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._raised = False
        self._holding = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def listen(self) -> None:
        """Takes the signals (again: Lightning puts its own handlers in their place when it fits)."""
        if self._before:
            for signum in SIGNALS:
                signal.signal(signum, self._receive)

    @property
    def holding(self) -> bool:
        """Whether a signal would wait now."""
        return self._holding

    def hold(self) -> None:
        """From here on a signal waits for `release`."""
        self._holding = True

    def release(self) -> None:
        """Ends the hold.

        Raises:
            Interrupted: A signal came in the meantime.
        """
        self._holding = False
        if self._signum is not None and not self._raised:
            self._raise(self._signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds a signal back for the length of a block; within another hold the block changes nothing."""
        if self._holding:
            yield
            return
        self.hold()
        try:
            yield
        except BaseException:
            self._holding = False  # what went wrong ends the run as well, and says why
            raise
        self.release()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        if not self._holding:
            self._raise(signum)

    def _raise(self, signum: int) -> None:
        self._raised = True
        raise Interrupted(signum)
