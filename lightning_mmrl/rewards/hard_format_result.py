"""Hard format-result reward: all or nothing."""

from dataclasses import dataclass

from lightning_mmrl.protocols.plain import GoldReader, RewardFn
from lightning_mmrl.rewards.compose import evaluate
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class HardFormatResult:
    """1.0 if both `format` and `result` give at least 1, else 0.0 (HFRRF of arXiv:2503.06749, section 3.4).

    `format` and `result` are any rewards, such as `ThinkBoxedFormat` and `MixedAnswer`. `result` is evaluated first, so
    that an unreadable solution is always reported, even if the format is broken. If one of the two does not apply
    (None), neither does this reward.

    **Deviations**: none known. A result with partial credit below 1 earns 0.

    >>> from lightning_mmrl.rewards.label_answer import LabelAnswer
    >>> from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
    >>> reward = HardFormatResult(format=ThinkAnswerFormat(), result=LabelAnswer(labels=("angry", "sad")))
    >>> sample = Sample(id="clip", messages=(), solution="angry")
    >>> reward(sample, Completion(text="<think>Frowns.</think><answer>angry</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<answer>angry</answer>", num_tokens=3, truncated=False))
    0.0
    """

    format: RewardFn
    result: RewardFn

    def __call__(self, sample: Sample, completion: Completion) -> float | None:
        """Scores one completion.

        Raises:
            RewardError: One of the two fails, or returns no finite number.
        """
        values = [evaluate(part, sample, completion) for part in (self.result, self.format)]
        if None in values:
            return None
        return float(all(value is not None and value >= 1.0 for value in values))

    def check_gold(self, sample: Sample) -> object:
        """Returns how `result` reads a sample's solution; raises as its `check_gold` does."""
        return self.result.check_gold(sample) if isinstance(self.result, GoldReader) else None
