"""Signals that end a run: at once where nothing can be torn, else as soon as the weights are whole again."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from lightning_mmrl.protocols.ranks import ALONE, Ranks

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

    Over several ranks it must not leave the others waiting. Within `together` a signal is noted alone; at the next
    `safe_point`, which all ranks pass, it is raised on each of them, whichever was sent it:

        with interruption.together(ranks):
            with interruption.rank_local():
                ...  # what a rank does at its own pace; `poll` may cut it short
    """

    def __init__(self) -> None:
        self._ranks: Ranks = ALONE
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
        self._raise_if_due()

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

    @contextmanager
    def together(self, ranks: Ranks) -> Iterator[None]:
        """For the length of a block these ranks must agree on an interruption; `ALONE` is this process by itself.

        Raises:
            Interrupted: A signal was noted, and this process need not ask the others (any more).
        """
        before, self._ranks = self._ranks, ranks
        try:
            self._raise_if_due()
            yield
        finally:
            self._ranks = before
        self._raise_if_due()

    def safe_point(self) -> None:
        """All ranks of `together` pass here; alone, nothing happens.

        Raises:
            Interrupted: Any of them was sent a signal.
        """
        if self._shared:
            signum = self._ranks.max(self._signum or 0)
            if signum:
                self._raise(signum)

    def poll(self) -> None:
        """Cuts short what is done within `rank_local`.

        Raises:
            Interrupted: This rank was sent a signal that the others may not know of yet.
        """
        if self._shared and self._signum is not None:
            raise Interrupted(self._signum)

    @contextmanager
    def rank_local(self) -> Iterator[None]:
        """Around what each rank does at its own pace, without waiting for another; ends with a safe point."""
        try:
            yield
        except Interrupted:
            if not self._shared:
                raise
        self.safe_point()

    @property
    def pending(self) -> int | None:
        """The signal that was noted, if one was."""
        return self._signum

    @property
    def _shared(self) -> bool:
        return self._ranks.world_size > 1

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._signum is not None and not (self._raised or self._holding or self._shared):
            self._raise(self._signum)

    def _raise(self, signum: int) -> None:
        self._raised = True
        raise Interrupted(signum)
