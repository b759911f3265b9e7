"""Output for a person: progress as a live bar or a plain line every few seconds, tables, and text as it is written."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lightning_mmrl.types.text import printable


class PlainConsole(Console):
    """A console to which every string is text, in lines and in tables: no markup, no emoji codes, no escapes.

    Labels, ids, answers and file names come from elsewhere. Whoever wants a style passes a `Text`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **how: Any) -> Text:
        """What Rich calls for every string that it is given."""
        return super().render_str(printable(text), **how)


def report_console(width: int = 120) -> PlainConsole:
    """Standard output: as wide as the terminal, or `width` columns without one."""
    return PlainConsole(width=None if Console().is_terminal else width)


class ConsoleProgress:
    """Progress of one long piece of work after another, with the time that is left.

    Args:
        console: Where to write; standard error by default.
        quiet: Write nothing, as on all ranks but the first.
        seconds_between_lines: Pause between plain lines when there is no terminal.
    """

    def __init__(
        self, console: Console | None = None, seconds_between_lines: float = 10.0, *, quiet: bool = False
    ) -> None:
        self._console = console or PlainConsole(file=sys.stderr, quiet=quiet)
        self._pause = seconds_between_lines
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._description = ""
        self._started = self._last_line = 0.0

    def say(self, message: str) -> None:
        """Prints one line, never interpreting markup in it."""
        self._console.print(Text(printable(message)), soft_wrap=True)

    def update(self, description: str, done: int, total: int, details: str = "") -> None:
        """Shows that `done` of `total` units are finished; a new description starts a new bar."""
        now = time.monotonic()
        description, details = printable(description), printable(details)
        if description != self._description:
            self.finish()
            self._description, self._started, self._last_line = description, now, now
        if self._console.is_terminal:
            self._show_bar(description, done, total, details)
        elif done == total or now - self._last_line >= self._pause:
            self._last_line = now
            eta = self._eta(now, done, total)
            self.say(f"{description}: {done}/{total}{eta}{'  ' + details if details else ''}")
        if done >= total:
            self.finish()

    def finish(self) -> None:
        """Ends the current bar."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._description = None, None, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.finish()

    def _show_bar(self, description: str, done: int, total: int, details: str) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
            tail = (TimeElapsedColumn(), TextColumn("{task.fields[eta]}", markup=False))
            self._bar = Progress(
                *columns, *tail, TextColumn("{task.fields[details]}", markup=False), console=self._console
            )
            self._task = self._bar.add_task(description, total=total, details="", eta="")
            self._bar.start()
        assert self._task is not None
        eta = self._eta(time.monotonic(), done, total).strip()
        self._bar.update(self._task, completed=done, details=details, eta=eta)

    def _eta(self, now: float, done: int, total: int) -> str:
        if not done or done >= total:
            return f"  took {format_seconds(now - self._started)}" if done else ""
        return f"  ETA {format_seconds((now - self._started) / done * (total - done))}"


def format_seconds(seconds: float) -> str:
    """Seconds as a clock time.

    >>> format_seconds(75), format_seconds(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_metrics(values: Mapping[str, float], names: Mapping[str, str]) -> str:
    """The metrics that `names` maps to a short label, in its order.

    >>> format_metrics({"train/loss": 0.5, "x": 1.0}, {"train/loss": "loss"})
    'loss 0.500'
    """
    return "  ".join(f"{label} {values[key]:.3f}" for key, label in names.items() if key in values)
