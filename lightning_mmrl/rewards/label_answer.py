"""Accuracy reward: the answer names the sample's label, out of a closed set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_mmrl.errors import RewardError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAnswer:
    """1.0 if the `<answer>` names the sample's label, else 0.0 (accuracy reward of arXiv:2503.05379).

    The format may be broken elsewhere as long as there is one unambiguous answer. `synonyms` of None means the usual
    words of the labels, see `LabelMatcher`.

    **Deviations** from R1-Omni: a closed set with synonyms, in place of math-verify and exact string equality.

    >>> reward = LabelAnswer(labels=("angry", "sad"))
    >>> sample = Sample(id="clip", messages=(), solution="angry")
    >>> reward(sample, Completion(text="<think>Frowns.</think><answer>Anger</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<think>Eyes.</think><answer>angry sad</answer>", num_tokens=9, truncated=False))
    0.0
    """

    labels: Sequence[str]
    synonyms: Mapping[str, str] | None = None
    matcher: LabelMatcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matcher", LabelMatcher(labels=self.labels, synonyms=self.synonyms))

    def match(self, answer: str) -> str | None:
        """The label that an answer names, None if it names none or more than one.

        >>> LabelAnswer(labels=("angry", "sad")).match("ANGRY!")
        'angry'
        """
        return self.matcher.match(answer)

    def truth(self, sample: Sample) -> str:
        """The label of a sample.

        Raises:
            RewardError: its solution is missing or not a label.
        """
        truth = None if sample.solution is None else self.match(sample.solution)
        if truth is None:
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names none of "
                f"{list(self.matcher.labels)}; correct the manifest or add a synonym"
            )
        return truth

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: the sample's own solution is missing or not a label, so nothing can be right or wrong.
        """
        truth = self.truth(sample)
        answer = scan(completion.text).answer
        return 1.0 if answer is not None and self.match(answer) == truth else 0.0
