"""Keeps the page of a run up to date while the run goes on, in its folder and at its tracker."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.report.page import write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """Writes `report.html` into a run folder, and sends it to a tracker; a failure is said and ends nothing.

    Attributes:
        directory: The run folder.
        compare: Compares the stages that are finished, and writes the comparison that the page shows.
        say: Shows the user a line.
        publish: Sends the page, the tables and the scores of the run folder to a tracked run.
    """

    directory: Path
    compare: Callable[[], object]
    say: Callable[[str], None]
    publish: Callable[[TrackedRun], object] = lambda parent: None

    def refresh(self, parent: TrackedRun | None = None) -> None:
        """Compares the stages so far, writes the page, and sends it to the parent run, if one is open."""
        self._tried("report.html is not up to date", self.compare, self._write)
        self._sent(parent)

    def write(self, parent: TrackedRun | None = None) -> None:
        """Writes the page with the comparison that is there, and sends it to the parent run, if one is open."""
        self._tried("report.html is not up to date", self._write)
        self._sent(parent)

    def _sent(self, parent: TrackedRun | None) -> None:
        if parent is not None:
            self._tried("the tracker has no page and no tables of this run", lambda: self.publish(parent))

    def _write(self) -> None:
        write_report([self.directory])

    def _tried(self, otherwise: str, *parts: Callable[[], object]) -> None:
        try:
            for part in parts:
                part()
        except Exception as error:  # whatever it is, hours of training must not end with it
            again = f"`mmrl report {self.directory}` writes it again"
            self.say(f"warning: {otherwise} ({type(error).__name__}: {error}); {again}")
