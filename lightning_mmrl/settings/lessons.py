"""What stages learn from a sample: all answers of a conversation, the last one, or a pair."""

from dataclasses import replace
from typing import Literal

from lightning_mmrl.settings.data import SourceSettings
from lightning_mmrl.settings.dpo import DpoSettings
from lightning_mmrl.settings.sft import SftSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings

Lesson = Literal["turns", "last_turn", "pair"]
"""`turns`: every assistant turn that answers a user turn; `last_turn`: the last one alone; `pair`: to prefer the answer
`chosen` to the answer `rejected`."""


def lesson_of(stage: NodeSettings) -> Lesson:
    """What a supervised stage learns from each sample."""
    if isinstance(stage, DpoSettings):
        return "pair"
    return "last_turn" if isinstance(stage, SftSettings) and stage.mask_history else "turns"


def with_target(stage: NodeSettings, source: SourceSettings) -> SourceSettings:
    """The source with the target of the stage, if it has none of its own and the stage has one."""
    text = target_of(stage)[1]
    return source if text is None else replace(source, target=source.target or text)


def target_of(stage: NodeSettings) -> tuple[str, str | None]:
    """The key of a stage that says which answer is written from columns, and its text; None if none is."""
    if isinstance(stage, SftSettings):
        return "target", stage.target
    router = None
    if isinstance(stage, StageSettings) and stage.algorithm is not None:
        router = stage.algorithm.router
    return "algorithm.router.target", None if router is None else router.target


def answers_of(stage: StageSettings) -> int:
    """The number of answers of each prompt that a stage scores."""
    if stage.algorithm is not None:
        return stage.algorithm.group_size
    return 2 if lesson_of(stage) == "pair" else 1


def compares(stage: StageSettings) -> bool:
    """True if a stage compares its policy with the one that it started from."""
    if stage.algorithm is not None:
        return stage.algorithm.kl.coefficient > 0
    return lesson_of(stage) == "pair"
