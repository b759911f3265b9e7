"""Keeps the page of a run up to date while the run goes on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.protocols.plain import Evaluator, TrackedRun
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
        try:
            self.compare()
            write_report([self.directory])
        except Exception as error:  # whatever it is, hours of training must not end with it
            again = f"`mmrl report {self.directory}` writes it again"
            self.say(f"warning: report.html is not up to date ({type(error).__name__}: {error}); {again}")

    def after(self, evaluate: Evaluator) -> Evaluator:
        """Returns an evaluator that then refreshes the page."""

        def evaluated(checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None) -> Mapping[str, float]:
            metrics = evaluate(checkpoint, directory, stage, run)
            self.refresh()
            return metrics

        return evaluated
