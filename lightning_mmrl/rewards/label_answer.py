"""Accuracy reward: the answer names the sample's label from a closed set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAnswer:
    """1.0 if the answer names the sample's label, else 0.0 (accuracy reward of arXiv:2503.05379).

    `reading` says where the answer is, see `prompts.reading`; R1-Omni reads a tag. The format may be broken elsewhere
    as long as there is one unambiguous answer. With `synonyms` None, the usual synonyms of the labels are known, see
    `LabelMatcher`.

    `groups` names groups of similar labels, such as quadrants of valence and arousal. Another label of the solution's
    group earns `partial_credit`, which is below 1. An answer with several labels is not read, so that hedging earns
    nothing. A label may belong to no group.

    **Deviations** from R1-Omni: a closed set with synonyms instead of math-verify and exact string equality; the
    partial credit, which is our addition and off by default.

    Raises:
        ConfigError: A group has an unknown label or shares one with another group, or the partial credit is outside
            [0, 1) or given without groups.

    >>> reward = LabelAnswer(labels=("angry", "sad"))
    >>> sample = Sample(id="clip", messages=(), solution="angry")
    >>> reward(sample, Completion(text="<think>Frowns.</think><answer>Anger</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<think>Eyes.</think><answer>angry sad</answer>", num_tokens=9, truncated=False))
    0.0
    >>> near = LabelAnswer(labels=("angry", "fear", "sad"), groups={"tense": ["angry", "fear"]}, partial_credit=0.5)
    >>> near(sample, Completion(text="<answer>fear</answer>", num_tokens=3, truncated=False))
    0.5
    """

    labels: Sequence[str]
    synonyms: Mapping[str, str] | None = None
    groups: Mapping[str, Sequence[str]] | None = None
    partial_credit: float = 0.0
    reading: str = "tag"
    matcher: LabelMatcher = field(init=False, repr=False, compare=False)
    _group_of: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_reading(self.reading)
        object.__setattr__(self, "matcher", LabelMatcher(labels=self.labels, synonyms=self.synonyms))
        object.__setattr__(self, "_group_of", _group_of(self.groups or {}, self.matcher.labels))
        if not 0 <= self.partial_credit < 1:
            raise ConfigError(f"partial_credit is {self.partial_credit}; it must be from 0 to below 1")
        if self.partial_credit and not self.groups:
            raise ConfigError(f"partial_credit is {self.partial_credit} without groups; say which labels are near")

    def match(self, answer: str) -> str | None:
        """The label that an answer names; None if it names none or several.

        >>> LabelAnswer(labels=("angry", "sad")).match("ANGRY!")
        'angry'
        """
        return self.matcher.match(answer)

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            DataError: The sample's solution is missing or not a label, so no answer can be judged.
        """
        truth = self.check_gold(sample)
        answer = find_answer(completion, self.reading, question_of(sample)).text
        label = None if answer is None else self.match(answer)
        if label == truth:
            return 1.0
        near = label is not None and self._group_of.get(label, label) == self._group_of.get(truth, truth)
        return self.partial_credit if near else 0.0

    def check_gold(self, sample: Sample) -> str:
        """The label of a sample's solution.

        Raises:
            DataError: The solution is missing or not a label.
        """
        return self.matcher.truth(sample)


def _group_of(groups: Mapping[str, Sequence[str]], labels: Sequence[str]) -> dict[str, str]:
    """Maps each label to its group; the prefix "groups." distinguishes group names from labels."""
    found: dict[str, str] = {}
    for name, members in groups.items():
        for label in members:
            if label not in labels:
                raise ConfigError(f"groups.{name} has {label!r}, which is not one of the labels {list(labels)}")
            if label in found:
                raise ConfigError(f"groups.{name} has {label!r}, which {found[label]} has as well; keep one")
            found[label] = f"groups.{name}"
    return found
