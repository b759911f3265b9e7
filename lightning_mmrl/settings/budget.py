"""Keys of the budget of a run."""

from dataclasses import dataclass, field

from lightning_mmrl.settings.setting import setting

MEASURES = ("flops", "steps", "seconds")
"""The measures of a budget, which is given in exactly one of them."""


@dataclass
class BudgetSettings:
    """How much the stages of a run may cost together, in one of three measures."""

    flops: float | None = setting(None, above=0)
    """Operations of training and sampling over logical tokens, as the plan's formulas count them."""
    steps: int | None = setting(None, at_least=1)
    """Steps of the stages that train, as num_steps counts them: optimizer steps (sft, dpo) or iterations (rl)."""
    seconds: float | None = setting(None, above=0)
    """Seconds that the stages take, without evaluations of their handoffs."""
    apart: list[str] = setting(factory=list)
    """Names of stages whose costs do not count."""
    shares: dict[str, float] = field(default_factory=dict)
    """Name of each stage that the budget ends to its share of the budget; the shares sum up to 1. Empty: the last stage
    that trains gets the whole budget."""

    @property
    def given(self) -> tuple[str, ...]:
        """The measures that have a value."""
        return tuple(name for name in MEASURES if getattr(self, name) is not None)

    @property
    def measure(self) -> str:
        """The measure of a valid budget."""
        return self.given[0]

    @property
    def total(self) -> float:
        """The whole budget, in its measure."""
        return getattr(self, self.measure)
