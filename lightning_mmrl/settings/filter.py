"""Keys of a stage that leaves out prompts, answers or samples."""

from dataclasses import dataclass, field, replace

from lightning_mmrl.settings.data import TableSettings
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import DataStageSettings


@dataclass
class EvenSettings:
    """Equally many samples for each value of a column."""

    by: str | None = setting(None, texts=False)
    """Column of the manifest, such as solution or topic, or `pass_rate` of a table; null: samples are not counted."""
    at_most: int | None = setting(None, at_least=1)
    """Samples of each value; null: as many as the rarest value has."""


@dataclass
class FilterSettings(DataStageSettings):
    """One stage that keeps some of its rows: prompts of a table, answers of a table, or samples of a manifest."""

    table: TableSettings | None = None
    """The prompts with their scored answers; null: the stage's data are filtered."""
    min_pass_rate: float | None = setting(None, at_least=0, at_most=1)
    """Smallest share of right answers of a prompt that is kept; null: any."""
    max_pass_rate: float | None = setting(None, at_least=0, at_most=1)
    """Largest share of right answers of a prompt that is kept; null: any."""
    mixed: bool = False
    """Keep only prompts with a right and a wrong answer: the offline filter of MM-Eureka (arXiv:2503.07365)."""
    min_judged: int = setting(1, at_least=1)
    """Judged answers of a prompt that is kept, for a pass rate that means something."""
    right: bool = False
    """Keep right answers in place of prompts: those of a table that `keep` selects, or samples whose target the rewards
    of this stage judge right."""
    keep: SelectionSettings = field(default_factory=SelectionSettings)
    """Which right answers of a table are kept."""
    even: EvenSettings = field(default_factory=EvenSettings)
    """Equally many samples for each value of a column, of the rows that are left."""

    debugging: bool = False
    """Keep wrong answers too; debug runs set this."""

    def for_debugging(self) -> "FilterSettings":
        """Returns the stage without the conditions that answers of an untrained model would not meet."""
        bounds = {"min_pass_rate": None, "max_pass_rate": None, "mixed": False}
        return replace(
            self, **bounds, debugging=True, keep=self.keep.for_debugging(), right=self.right and self.table is not None
        )
