"""Signals that end a run: at once where that is safe, else as soon as the weights are consistent again."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from lightning_mmrl.protocols.ranks import ALONE, Ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Preemption, Ctrl-C, and the warning that batch systems send ahead of a time limit."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end; `exit_code` is the exit status that a shell reports for it.

    >>> Interrupted(signal.SIGTERM).exit_code
    143
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"{signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class Interruption:
    """Turns the first signal into `Interrupted`; a second one ends the process at once, except a SIGTERM after Ctrl-C.

        with Interruption() as interruption:
            ...
            with interruption.held():
                ...  # a signal that arrives here is raised at the end of the block

    The exception is raised in the main thread, wherever that thread is: in a rollout, a reward, an evaluation. While
    weights change or files are written, it is held back.

    With several ranks, one rank must not end while the others wait for it. Within `together` a signal is only noted. At
    the next `safe_point`, which all ranks pass, it is raised on all of them, whichever rank received it:

        with interruption.together(ranks):
            with interruption.rank_local():
                ...  # work that is not synchronized across ranks; `poll` may cut it short

    A launcher that a terminal interrupts, such as `mlflow run` or torchrun, also sends SIGTERM to the process, which
    has received the SIGINT already and closes its runs. Such a SIGTERM does nothing.

    Attributes:
        pending: The signal that was received, if one was.
        holding: Whether a signal that arrives now is held back.
    """

    received: ClassVar[bool] = False
    """Whether this process received a signal, also in an `Interruption` that has ended."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self.holding = False
        self._ranks: Ranks = ALONE
        self._raised = False
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
        """Installs the signal handlers, also a second time: Lightning replaces them when training starts."""
        if self._before:
            for signum in SIGNALS:
                signal.signal(signum, self._receive)

    def hold(self) -> None:
        """Makes signals wait until `release`."""
        self.holding = True

    def release(self) -> None:
        """Ends the hold.

        Raises:
            Interrupted: A signal came in the meantime.
        """
        self.holding = False
        self._raise_if_due()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds a signal back during a block; within another hold it has no effect."""
        if self.holding:
            yield
            return
        self.hold()
        try:
            yield
        except BaseException:
            self.holding = False  # the error ends the run anyway, and gives the reason
            raise
        self.release()

    @contextmanager
    def together(self, ranks: Ranks) -> Iterator[None]:
        """During a block these ranks must agree on an interruption; with `ALONE`, this process decides by itself.

        Raises:
            Interrupted: A signal was noted, and this process needs no agreement at the start or the end of the block.
        """
        before, self._ranks = self._ranks, ranks
        try:
            self._raise_if_due()
            yield
        finally:
            self._ranks = before
        self._raise_if_due()

    def safe_point(self) -> None:
        """Marks a point that all ranks of `together` pass; does nothing in a single process.

        Raises:
            Interrupted: Any of the ranks received a signal.
        """
        signum = self._ranks.max(self.pending or 0) if self._ranks.world_size > 1 else 0
        if signum:
            self._raised = True
            raise Interrupted(signum)

    def poll(self) -> None:
        """Cuts short a block within `rank_local`.

        Raises:
            Interrupted: This rank received a signal that the others may not know of yet.
        """
        if self._ranks.world_size > 1 and self.pending is not None:
            raise Interrupted(self.pending)

    @contextmanager
    def rank_local(self) -> Iterator[None]:
        """Allows a block of work that is not synchronized across ranks; the block ends with a safe point."""
        try:
            yield
        except Interrupted:
            if self._ranks.world_size == 1:
                raise
        self.safe_point()

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if (self.pending, signum) == (signal.SIGINT, signal.SIGTERM):
            return
        if self.pending is not None:
            os._exit(128 + signum)
        Interruption.received = True
        self.pending = signum
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self.pending is not None and not (self._raised or self.holding or self._ranks.world_size > 1):
            self._raised = True
            raise Interrupted(self.pending)
