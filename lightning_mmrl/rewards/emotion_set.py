"""Open-vocabulary reward: F1 between the emotions of the answer and the solution, as groups of an emotion wheel."""

from dataclasses import dataclass, field

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.prompts.wheel import Wheel
from lightning_mmrl.prompts.word_lists import listed_words, named_groups
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionSet:
    """F1 between the wheel groups of the answer and of the solution, minus a penalty for each extra guess.

    P = |A & S| / |A|, R = |A & S| / |S|, reward = max(0, 2 P R / (P + R) - extra_penalty * max(0, n - m)). A and S are
    the groups of the words in the answer and in the solution; n and m are their numbers of guesses. The number of
    guesses is the smaller one of the number of words and the number of groups, so synonyms are one guess, and a word
    with two groups is one guess. This is the emotion-wheel metric of AffectGPT (arXiv:2501.16566), which AffectGPT-R1
    uses as its reward.

    Answer and solution are lists of words, separated by commas, semicolons, slashes, line breaks, numbers or "and",
    alone or in a bare statement (`He feels sad and lonely.`, see `readings`). `reading` says where the answer is, see
    `prompts.reading`.

    An answer earns 0 if it has words outside the wheel that deny, hedge or ask (`sad, not angry`, `sad or angry`) or
    that contain other characters than letters, such as code. It also earns 0 with more than 8 words, unless the
    solution has as many.

    F1 alone rewards guessing. With the default penalty of 0.25, a second guess costs more than it earns, however
    uncertain the first one is. `wheel` is a YAML or JSON file that maps each word to its group or groups; None uses a
    small built-in wheel. A word of the answer that is not on the wheel counts as a separate wrong group; such words of
    the solution are ignored.

    **Deviations** from the metric: F1 of each sample instead of mean precision and recall; one wheel instead of five; a
    fixed rule instead of a language model extracts the labels; unknown words of the answer count as wrong; the penalty.

    Raises:
        ConfigError: The wheel is unusable, or a number is out of range.

    >>> reward = EmotionSet()
    >>> sample = Sample(id="clip", messages=(), solution="happy, hopeful")
    >>> [
    ...     reward(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=3, truncated=False))
    ...     for answer in ("joyful", "cheerful, sad", "happy, sad, angry, fearful")
    ... ]
    [1.0, 0.41666666666666663, 0.0]
    """

    wheel: str | None = None
    extra_penalty: float = 0.25
    max_characters: int = 256
    reading: str = "tag"
    _wheel: Wheel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_reading(self.reading)
        if not 0 <= self.extra_penalty <= 1:
            raise ConfigError(f"extra_penalty is {self.extra_penalty}; it must be from 0 to 1")
        object.__setattr__(self, "_wheel", Wheel.built_in() if self.wheel is None else Wheel.read(self.wheel))

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The sample's solution is missing or has no word of the wheel.
        """
        truth, wanted = self.check_gold(sample), listed_words(sample.solution or "", self._wheel)
        answer = find_answer(completion, self.reading, question_of(sample)).text
        if answer is None or len(answer) > self.max_characters:
            return 0.0
        words = listed_words(answer, self._wheel)
        named = named_groups(words, self._wheel, len(wanted))
        if named is None:
            return 0.0
        f1 = 2 * len(named & truth) / (len(named) + len(truth))
        guesses, wanted_guesses = min(len(words), len(named)), min(len(wanted), len(truth))
        return max(0.0, f1 - self.extra_penalty * max(0, guesses - wanted_guesses))

    def check_gold(self, sample: Sample) -> frozenset[str]:
        """The groups of a sample's solution.

        Raises:
            RewardError: The solution is missing or has no word of the wheel.
        """
        truth = frozenset[str]().union(*map(self._wheel.groups_of, listed_words(sample.solution or "", self._wheel)))
        if not truth:
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, of which the wheel has no word; "
                "correct the manifest or add its words to the wheel"
            )
        return truth
