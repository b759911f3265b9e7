"""Output for a person: progress as a live bar or plain lines, tables, and text printed literally."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lightning_mmrl.types.text import printable

_BAR_TEXTS = ("description", "fields[eta]", "fields[details]")


class PlainConsole(Console):
    """A console that prints every string literally, in lines and in tables: no markup, emoji codes or escapes.

    Labels, ids, answers and file names may hold any characters. A caller that wants a style passes a `Text`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render_str(self, text: str, **how: Any) -> Text:
        """Makes control characters visible; Rich calls this for every string."""
        return super().render_str(printable(text), **how)


def report_console(width: int = 120) -> PlainConsole:
    """A console on standard output, as wide as the terminal, or `width` columns wide without one."""
    return PlainConsole(width=None if Console().is_terminal else width)


class ConsoleProgress:
    """Shows the progress of one long task after another, with the time that is left.

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
        passed = now - self._started
        eta = ""
        if done:
            left = f"ETA {format_seconds(passed / done * (total - done))}"
            eta = left if done < total else f"took {format_seconds(passed)}"
        if self._console.is_terminal:
            if self._bar is None or self._task is None:
                texts = [TextColumn(f"{{task.{name}}}", markup=False) for name in _BAR_TEXTS]
                count = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
                self._bar = Progress(texts[0], *count, *texts[1:], console=self._console)
                self._task = self._bar.add_task(description, total=total, details="", eta="")
                self._bar.start()
            self._bar.update(self._task, completed=done, details=details, eta=eta)
        elif done == total or now - self._last_line >= self._pause:
            self._last_line = now
            self.say("  ".join(part for part in (f"{description}: {done}/{total}", eta, details) if part))
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


def format_seconds(seconds: float) -> str:
    """Seconds as a clock time.

    >>> format_seconds(75), format_seconds(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_costs(values: Mapping[str, float]) -> str:
    """The time of a step, the two phases that took most of it, the waiting and the MFU, from the metrics of the step.

    Work beside the step (`time/beside/...`) is none of its phases.

    >>> format_costs({"time/step_s": 2.0, "time/generate_s": 1.5, "time/optimize_s": 0.4, "time/mfu": 0.25})
    '2.0 s (generate 75%, optimize 20%)  MFU 25%'
    """
    total = values.get("time/step_s", 0.0)
    if not total:
        return ""
    phases = {
        key.removeprefix("time/").removesuffix("_s"): seconds
        for key, seconds in values.items()
        if key.startswith("time/") and key.endswith("_s") and key != "time/step_s" and "/beside/" not in key
    }
    longest = sorted(phases.items(), key=lambda item: -item[1])[:2]
    words = [f"{name} {seconds / total:.0%}" for name, seconds in longest if seconds >= 0.05 * total]
    parts = [f"{total:.1f} s" + (f" ({', '.join(words)})" if words else "")]
    waits = [share for key, share in values.items() if key.startswith("time/wait_share/")]
    if waits:
        parts.append(f"ranks wait {min(waits):.0%} to {max(waits):.0%}")
    if "time/mfu" in values:
        parts.append(f"MFU {values['time/mfu']:.0%}")
    return "  ".join(parts)


def format_metrics(values: Mapping[str, float], names: Mapping[str, str]) -> str:
    """The metrics that `names` maps to a short label, in its order.

    >>> format_metrics({"train/loss": 0.5, "x": 1.0}, {"train/loss": "loss"})
    'loss 0.500'
    """
    return "  ".join(f"{label} {values[key]:.3f}" for key, label in names.items() if key in values)
