"""Keys of a stage that carries the thoughts of a text model over to questions with media."""

from dataclasses import dataclass, field, replace

from lightning_mmrl.settings.data import TableSettings
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import DataStageSettings

DESCRIPTION, QUESTION = "{description}", "{question}"
"""Parts of `wording` that stand for a description and for the question."""


@dataclass
class BridgeSettings(DataStageSettings):
    """One step of a modality bridge: from descriptions to questions in text, or from their answers to traces."""

    descriptions: TableSettings | None = None
    """The table in which a model that sees describes the media of each prompt."""
    answers: TableSettings | None = None
    """The table in which a model that reasons answers the questions that an earlier bridge stage made; null: this stage
    makes the questions."""
    wording: str = f"{DESCRIPTION}\n\n{QUESTION}"
    """Text of a question without media; {description} and {question} stand once each."""
    fewest_characters: int = setting(1, at_least=1)
    """Characters of the shortest trace that is kept."""
    most_characters: int | None = setting(None, at_least=1)
    """Characters of the longest trace that is kept; null: any number."""
    forbid: list[str] = field(default_factory=list)
    """Phrases of traces that are left out, such as "the description contradicts"; case does not count."""
    reword: dict[str, str] = field(default_factory=dict)
    """Phrases and what takes their place, such as {"the description": "the image"}, so that a trace sounds as if its
    writer saw; case does not count, and a capital at the beginning stays one."""
    debugging: bool = False
    """Keep wrong answers and broken rules; debug runs set this."""

    def for_debugging(self) -> "BridgeSettings":
        """Returns the stage for a debug run."""
        return replace(self, debugging=True)
