"""Sokoban: a plan is right if it solves the level."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Task
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.sokoban import level_of, read_plan, write_plan
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Sokoban(Task):
    """The share of levels that the plan in the answer solves within `max_actions` actions; any such plan is right.

    The level is the manifest's column `level`, and the solution is a plan that solves it. `as_short` is the share of
    plans that solve the level and have no more actions than the solution.

    Raises:
        ConfigError: `max_actions` is not positive.
    """

    max_actions: int = 50

    kind: ClassVar[str] = "sokoban"
    title: ClassVar[str] = "Sokoban by stage"
    headline: ClassVar[str] = "solved"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="solved", title="solved", interval=True),
        Measure(name="as_short", title="as short as the solution"),
        VALID_FORMAT,
        Measure(name="unparseable", title="no plan", validated=False, on_card=False),
    )

    def __post_init__(self) -> None:
        if self.max_actions < 1:
            raise ConfigError(f"max_actions is {self.max_actions}; it must be at least 1")

    def truth(self, sample: Sample) -> str:
        """The sample's solution, as a plan.

        Raises:
            DataError: The sample has no level, or its solution does not solve it.
        """
        return write_plan(_solution(sample))

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format and plan."""
        solution, scanned = _solution(sample), scan(completion.text)
        plan = None if scanned.answer is None else read_plan(scanned.answer)
        solved = plan is not None and len(plan) <= self.max_actions and level_of(sample).solves(plan)
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=write_plan(solution),
            predicted=None if plan is None else write_plan(plan),
            valid_format=scanned.valid,
            text=completion.text,
            scores={
                "solved": float(solved),
                "as_short": float(solved and len(plan or ()) <= len(solution)),
                "unparseable": float(plan is None),
            },
        )


def _solution(sample: Sample) -> tuple[str, ...]:
    plan = read_plan(sample.solution or "")
    if plan is None or not level_of(sample).solves(plan):
        raise DataError(
            f"sample {sample.id!r} has the solution {sample.solution!r}, which does not solve its level; "
            "correct the manifest"
        )
    return plan
