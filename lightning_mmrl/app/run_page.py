"""Keeps the page of a run up to date while the run goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.report.page import write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """Writes `report.html` into a run folder; a failure is said and ends nothing.

    Attributes:
        directory: The run folder.
        compare: Compares the stages that are finished, and writes the comparison that the page shows.
        say: Shows the user a line.
    """

    directory: Path
    compare: Callable[[], object]
    say: Callable[[str], None]

    def refresh(self) -> None:
        """Compares the stages so far, and writes the page."""
        self._tried(self.compare, self._write)

    def write(self) -> None:
        """Writes the page with the comparison that is there."""
        self._tried(self._write)

    def _write(self) -> None:
        write_report([self.directory])

    def _tried(self, *parts: Callable[[], object]) -> None:
        try:
            for part in parts:
                part()
        except Exception as error:  # whatever it is, hours of training must not end with it
            again = f"`mmrl report {self.directory}` writes it again"
            self.say(f"warning: report.html is not up to date ({type(error).__name__}: {error}); {again}")
