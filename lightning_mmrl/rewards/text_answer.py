"""Accuracy reward for golds that are a word or a phrase: the answer is the same text."""

from dataclasses import dataclass
from functools import lru_cache

from lightning_mmrl.errors import RewardError
from lightning_mmrl.prompts.answers import question_of, without_assurance
from lightning_mmrl.prompts.labels import LabelMatcher, is_blank, normalized
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.rewards.text_forms import forms_of
from lightning_mmrl.types.records import Completion, Sample

_NUM_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAnswer:
    """1.0 if the answer is the sample's solution up to case, typography and LaTeX wrappers, else 0.0.

    The answer may be a bare statement (`The answer is left.`); denials, hedges, lists and any other words earn nothing,
    as `LabelMatcher` reads a set of one label. An article, a hyphen for a space, and a few more forms of the same words
    are no difference (`rewards.text_forms`). `reading` says where the answer is, see `prompts.reading`.

    **Deviations**: VisualThinker-R1-Zero (arXiv:2503.05132) and R1-Omni (arXiv:2503.05379) ask for equal characters.

    >>> reward = TextAnswer()
    >>> sample = Sample(id="q1", messages=(), solution="left")
    >>> [
    ...     reward(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=3, truncated=False))
    ...     for answer in ("Left.", "The answer is left", "not left", "left or right")
    ... ]
    [1.0, 1.0, 0.0, 0.0]
    """

    reading: str = "tag"

    def __post_init__(self) -> None:
        check_reading(self.reading)

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The sample's solution is missing or blank.
        """
        question = question_of(sample)
        matcher = _matcher(self.check_gold(sample), question)
        answer = find_answer(completion, self.reading, question).text
        return float(answer is not None and matcher.match(without_assurance(answer)) is not None)

    def check_gold(self, sample: Sample) -> str:
        """The text of a sample's solution.

        Raises:
            RewardError: The solution is missing, or has no letter, digit or symbol.
        """
        if sample.solution is None or is_blank(normalized(sample.solution)):
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which has no letter, digit or symbol; "
                "write the text of the answer"
            )
        return sample.solution


@lru_cache(maxsize=_NUM_REMEMBERED)
def _matcher(solution: str, question: str) -> LabelMatcher:
    return LabelMatcher(labels=(solution,), synonyms=dict.fromkeys(forms_of(solution, question), solution))
