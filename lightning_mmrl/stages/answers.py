"""Greedy answers to evaluation prompts, and their judgement: the part that validation and evaluation share."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_mmrl.evaluation.consistency import CueLexicon
from lightning_mmrl.evaluation.emotion import EmotionMetrics
from lightning_mmrl.evaluation.records import Prediction, judge
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.types.batches import PromptBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Asks an engine for its greedy answer to each prompt and judges it."""

    engine: RolloutEngine
    matcher: LabelMatcher
    lexicon: CueLexicon | None = None

    def examine(self, prompts: PromptBatch) -> list[Prediction]:
        """One prediction per prompt."""
        seeds = [[0]] * len(prompts.samples)
        rollout = self.engine.generate(prompts, group_size=1, seeds=seeds, greedy=True)
        return [
            judge(sample, completion, self.matcher, self.lexicon)
            for sample, completion in zip(prompts.samples, rollout.completions, strict=True)
        ]

    def new_metrics(self) -> EmotionMetrics:
        """An empty metric over the matcher's labels."""
        return EmotionMetrics(self.matcher.labels)


class Validation:
    """Metrics over one walk through the validation prompts."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner
        self._metrics = examiner.new_metrics()

    def step(self, prompts: PromptBatch) -> None:
        """Examines one batch."""
        self._metrics.update(self._examiner.examine(prompts))

    def finish(self) -> dict[str, float]:
        """The metrics, and a fresh start."""
        values = self._metrics.compute()
        self._metrics.reset()
        return values


HEADLINE = ("war", "uar", "valid_format", "consistency", "grounded")


def headline(values: dict[str, float], keys: Sequence[str] = HEADLINE) -> dict[str, float]:
    """The few metrics worth a curve."""
    return {key: values[key] for key in keys if key in values}
