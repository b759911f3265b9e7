"""Keys of a stage that sorts the prompts of a rollout table by their pass rate."""

from dataclasses import dataclass, field, replace

from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.data import MadeSettings, TableSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.settings.selection import SelectionSettings
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import DataStageSettings

SAMPLING = SamplingSettings(max_new_tokens=4096)
"""How stage/route samples from an expert."""


@dataclass
class RouteSettings(DataStageSettings):
    """One stage that sorts prompts: solved, sometimes solved or never solved."""

    table: TableSettings | None = None
    """The answers of the model to each prompt, scored; null: `prompts` count."""
    prompts: MadeSettings | None = None
    """Prompts that no model has answered, in the place of `table`: experts are asked for all of them."""
    unsolved_at_most: float = setting(0.0, at_least=0, at_most=1)
    """Largest share of right answers with which a prompt counts as never solved: experts are asked."""
    solved_at_least: float = setting(1.0, at_least=0, at_most=1)
    """Smallest share of right answers with which a prompt counts as solved."""
    replay: bool = False
    """Teach also right answers of solved prompts; false: a solved prompt teaches nothing more."""
    keep: SelectionSettings = field(default_factory=SelectionSettings)
    """Which right answers the artifacts `own` and `pairs` have."""
    pairs_per_prompt: int = setting(1, at_least=0)
    """Pairs of a right and a wrong answer to the same prompt."""
    tries: int = setting(1, at_least=1)
    """Answers to a prompt that each expert may give; it is asked again while none is right."""
    expert: ExpertSettings | None = None
    """The model that is asked at `endpoint`; null: traces in the stage's data are the only expert."""
    endpoint: EndpointSettings | None = None
    """Where that model is asked."""
    debugging: bool = False
    """Put every prompt into every artifact, with a wrong answer if need be, and ask no expert; debug runs set this."""

    @property
    def kept(self) -> SelectionSettings:
        """`keep`; when debugging also wrong answers, since an untrained model may have no right one."""
        return self.keep.for_debugging() if self.debugging else self.keep

    def for_debugging(self) -> "RouteSettings":
        """Returns the stage for a debug run."""
        return replace(self, debugging=True, expert=None, endpoint=None)
