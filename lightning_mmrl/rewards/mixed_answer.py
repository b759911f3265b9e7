r"""Accuracy reward for sets whose golds are of several kinds: a choice, mathematics or a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lightning_mmrl.errors import RewardError
from lightning_mmrl.prompts.answers import bare, question_of
from lightning_mmrl.prompts.options import options_of
from lightning_mmrl.prompts.reading import find_answer
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.types.records import Completion, Sample

GoldKind = Literal["choice", "mathematics", "text"]
"""The kinds of golds, in the order in which they are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedAnswer:
    r"""1.0 if the answer is right for the sample's solution, by the judge that fits this solution; else 0.0.

    The solution decides: choice, else mathematics, else text.

    - **choice** (`ChoiceAnswer`): a lone capital letter (`A`, `(A)`, `$\boxed{A}$`), or any solution that names one of
      the options that the sample lists, also by its text. If the answer names no choice, it may still be the value of
      the right option (`0.5` for the option `B) 1/2`), by `MathAnswer`. An answer that names another choice is wrong.
    - **mathematics** (`MathAnswer`): `12 cm`, `$\frac{1}{2}$`, `x = 5`. A letter with a value (`A = 12`) is mathematics
      if the sample lists no options, and a lower-case letter (`a`) too.
    - **text** (`TextAnswer`): everything else, such as `left`.

    So MM-Eureka's "mathematics, then a lone letter" has the steps `[letter, lone_letter]`, and VisualThinker-R1-Zero's
    "mathematics, then the exact text, then the last letter" has `[text, last_letter]`, each with the reading
    `tag_or_text`; see `ChoiceAnswer` and `prompts.reading` for both.

    **Deviations** from both codes: the solution chooses the judge, where they pay whatever any judge pays. MM-Eureka
    and LMM-R1 give reward 1 where the solution cannot be read; here such a set is refused before training, and an
    unreadable solution makes a score invalid.

    >>> reward = MixedAnswer()
    >>> def earned(solution, answer):
    ...     sample = Sample(id="q1", messages=(), solution=solution)
    ...     return reward(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=3, truncated=False))
    >>> [earned("A", r"The answer is $\boxed{A}$"), earned("12 cm", "0.12 m"), earned("left", "7")]
    [1.0, 1.0, 0.0]
    """

    choices: str = "ABCDEFGH"
    reading: str = "tag"
    steps: Sequence[str] = ("text", "letter")
    max_characters: int = 256
    timeout_s: int = 2
    _choice: ChoiceAnswer = field(init=False, repr=False, compare=False)
    _mathematics: MathAnswer = field(init=False, repr=False, compare=False)
    _text: TextAnswer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        common = {"reading": self.reading, "max_characters": self.max_characters}
        object.__setattr__(self, "_choice", ChoiceAnswer(choices=self.choices, steps=self.steps, **common))
        object.__setattr__(self, "_mathematics", MathAnswer(timeout_s=self.timeout_s, **common))
        object.__setattr__(self, "_text", TextAnswer(reading=self.reading))

    def kind(self, sample: Sample) -> GoldKind:
        """The kind of a sample's solution.

        Raises:
            RewardError: The solution is missing or blank, or math-verify ran out of time on it.
        """
        letter = self._choice.truth(sample)
        gold = bare(self._text.check_gold(sample)).strip("()[] ")
        if letter is not None and (options_of(sample) or gold == letter):
            return "choice"
        try:
            self._mathematics.check_gold(sample)
        except RewardError:
            return "text" if letter is None else "choice"
        return "mathematics"

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The solution is missing or blank, or math-verify ran out of time.
        """
        kind = self.kind(sample)
        if kind != "choice":
            return (self._mathematics if kind == "mathematics" else self._text)(sample, completion)
        truth = self._choice.check_gold(sample)
        named = self._choice.choice(sample, completion)
        value = options_of(sample).get(truth)
        if named is not None or value is None:
            return float(named == truth)
        return self._of_value(replace(sample, solution=value), completion)

    def _of_value(self, sample: Sample, completion: Completion) -> float:
        """The reward of an answer that names no choice, by the text of the right option as the solution."""
        if find_answer(completion, self.reading, question_of(sample)).text is None:
            return 0.0
        try:
            self._mathematics.check_gold(sample)
        except RewardError:
            return 0.0
        return self._mathematics(sample, completion)

    def check_gold(self, sample: Sample) -> GoldKind:
        """The kind of a sample's solution; raises as `kind` does."""
        return self.kind(sample)
