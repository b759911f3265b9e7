"""How a language model's verdicts of answers agree with a task's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Measure, Task
from lightning_mmrl.types.records import Completion, Sample

RIGHT = 0.5
"""The least grade that counts as right where it is compared with the verdict of a rule."""


class AskedJudge(Task):
    """The verdicts of a judge that was asked, those of the task's rule, and the share of answers on which they agree.

    It measures judgements that `judged` makes, and judges none itself.
    """

    kind: ClassVar[str] = "judged-answers"
    title: ClassVar[str] = "Answers as judged by a model"
    headline: ClassVar[str] = "judge"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="judge", title="judge", interval=True),
        Measure(name="rule", title="rule", interval=True),
        Measure(name="agreement", title="agreement", interval=True),
    )

    def truth(self, sample: Sample) -> Any:
        """Refuses: the judge is asked elsewhere.

        Raises:
            DataError: Always.
        """
        raise DataError(f"sample {sample.id!r} is judged by a model, which `mmrl judge` asks")

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Refuses, as `truth`.

        Raises:
            DataError: Always.
        """
        return self.truth(sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Counts of answers by the verdicts of the judge and of the rule."""

    both_right: int
    only_judge: int
    only_rule: int
    both_wrong: int

    @property
    def kappa(self) -> float:
        """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e); NaN if chance alone would agree always.

        >>> round(Agreement(both_right=20, only_judge=5, only_rule=10, both_wrong=15).kappa, 3)
        0.4
        """
        total = self.both_right + self.only_judge + self.only_rule + self.both_wrong
        if not total:
            return float("nan")
        observed = (self.both_right + self.both_wrong) / total
        judge, rule = (self.both_right + self.only_judge) / total, (self.both_right + self.only_rule) / total
        chance = judge * rule + (1 - judge) * (1 - rule)
        return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def judged(judgement: Judgement, value: float, *, rule: bool) -> Judgement:
    """A judgement with the verdict of a judge beside that of the task's rule, for `AskedJudge`."""
    return Judgement(
        sample_id=judgement.sample_id,
        speaker=judgement.speaker,
        truth=judgement.truth,
        predicted=judgement.predicted,
        valid_format=judgement.valid_format,
        text=judgement.text,
        scores={"judge": value, "rule": float(rule), "agreement": float(rule == (value >= RIGHT))},
    )


def agreement(judgements: Sequence[Judgement]) -> Agreement:
    """Counts the judgements that `judged` made."""
    pairs = [(each.scores["judge"] >= RIGHT, each.scores["rule"] >= 1.0) for each in judgements]
    return Agreement(
        both_right=pairs.count((True, True)),
        only_judge=pairs.count((True, False)),
        only_rule=pairs.count((False, True)),
        both_wrong=pairs.count((False, False)),
    )
