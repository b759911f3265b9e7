"""Keys of a comparison's file; field names are the keys a user writes."""

from dataclasses import dataclass, field
from typing import Any

from lightning_mmrl.settings.budget import BudgetSettings
from lightning_mmrl.settings.setting import setting

BASE, DATA, EVALUATION = "base", "data", "evaluation"
MAY_DIFFER = (BASE, DATA, EVALUATION)


@dataclass
class ArmSettings:
    """One arm; a list of overrides alone is its short form."""

    overrides: list[str] = setting(factory=list)
    """Overrides after those of all arms, such as `order=[pretrain,reason]`."""
    shares: dict[str, float] = setting(factory=dict)
    """Shares of the budget by stage, which sum to 1; empty: the last trained stage gets the whole budget."""


@dataclass
class MeasureSettings:
    """What the arms are compared by."""

    set: str = setting("test", texts=False)
    """Name in evaluation.sets."""
    metric: str | None = setting(None, texts=False)
    """A metric of that set's task; null for its headline."""


@dataclass
class CompareSettings:
    """A comparison: arms over one experiment, and the seeds and folds that each arm is trained with."""

    question: str = ""
    """What the comparison asks, for the report."""
    exploratory: bool = False
    """True if nobody stated the question and the measure before the results were seen."""
    overrides: list[str] = setting(factory=list)
    """Overrides of all arms, such as `experiment=quickstart`."""
    arms: dict[str, ArmSettings] = setting(factory=dict)
    """Name to arm, or to its list of overrides."""
    baseline: str | None = setting(None, texts=False)
    """The arm that the others are compared with; null for the first."""
    all_pairs: bool = False
    """Compare each pair of arms, and not only each arm with the baseline; the correction is for that many."""
    seeds: list[int] = setting(factory=lambda: [0])
    """Seeds that each arm is trained with."""
    folds: Any = None
    """Folder with fold_1, fold_2, ..., or a list of names that {fold} in an override stands for; null: no folds."""
    budget: BudgetSettings | None = None
    """What each arm may spend after the stages that all arms share: flops, steps or seconds; null: each stage runs its
    steps."""
    shares: dict[str, float] = setting(factory=dict)
    """Shares of the budget by stage, for arms that give none: in proportion, among the stages that the arm has."""
    tolerance: float = setting(0.02, at_least=0, below=1)
    """Largest share of the budget (without one, of the mean that the baseline spent) by which a run may be off it,
    and by which the largest and the smallest run of two arms may be apart, that still counts as equal."""
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    """What the arms are compared by."""
    may_differ: list[str] = setting(factory=list, choices=MAY_DIFFER)
    """What arms may differ in: base, the model that they start from; data; evaluation."""
