"""Open-vocabulary reward: F1 between the emotions of the answer and the solution, as groups of an emotion wheel."""

import re
import unicodedata
from dataclasses import dataclass, field

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.prompts.answers import doubts, readings
from lightning_mmrl.prompts.labels import normalized
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.wheel import Wheel
from lightning_mmrl.types.records import Completion, Sample

# Linear in the text, since repetitions are bounded.
_SEPARATOR = re.compile(r"[,;/|\n+]| and | & | as well as | plus ")
_NUMBERED = re.compile(r"(?<![^\s;,])\(?[0-9]{1,2}[.)](?![0-9])")
_PLAIN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_CHINESE_AND = re.compile("[\u548c\u4e0e\u53ca]")
_MOST_WORDS = 8
"""An answer with more words is refused, unless the solution has as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionSet:
    """F1 between the wheel groups of the answer and of the solution, minus a penalty for each extra guess.

    P = |A & S| / |A|, R = |A & S| / |S|, reward = max(0, 2 P R / (P + R) - extra_penalty * max(0, n - m)). A and S are
    the groups of the words in the answer and in the solution; n and m are their numbers of guesses. The number of
    guesses is the smaller one of the number of words and the number of groups, so synonyms are one guess, and a word
    with two groups is one guess. This is the emotion-wheel metric of AffectGPT (arXiv:2501.16566), which AffectGPT-R1
    uses as its reward.

    Answer and solution are lists of words, separated by commas, semicolons, slashes, line breaks, numbers or "and",
    alone or in a bare statement (`He feels sad and lonely.`, see `readings`).

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
    _wheel: Wheel = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.extra_penalty <= 1:
            raise ConfigError(f"extra_penalty is {self.extra_penalty}; it must be from 0 to 1")
        object.__setattr__(self, "_wheel", Wheel.built_in() if self.wheel is None else Wheel.read(self.wheel))

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The sample's solution is missing or has no word of the wheel.
        """
        wanted = self._words(sample.solution or "")
        truth = frozenset[str]().union(*map(self._wheel.groups_of, wanted))
        if not truth:
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, of which the wheel has no word; "
                "correct the manifest or add its words to the wheel"
            )
        answer = scan(completion.text).answer
        if answer is None or len(answer) > self.max_characters:
            return 0.0
        words = self._words(answer)
        unknown = [word for word in words if not self._wheel.groups_of(word)]
        # A plain word that is not on the wheel and expresses no doubt is a wrong guess.
        are_guesses = all(_PLAIN.fullmatch(word) is not None and not doubts(word) for word in unknown)
        if len(words) > max(_MOST_WORDS, len(wanted)) or not are_guesses:
            return 0.0
        named = frozenset[str](f"unknown {word}" for word in unknown).union(*map(self._wheel.groups_of, words))
        if not named:
            return 0.0
        f1 = 2 * len(named & truth) / (len(named) + len(truth))
        guesses, wanted_guesses = min(len(words), len(named)), min(len(wanted), len(truth))
        return max(0.0, f1 - self.extra_penalty * max(0, guesses - wanted_guesses))

    def _words(self, text: str) -> list[str]:
        """The words that a text lists: in the first reading with only words of the wheel, or else in the last one."""
        words: list[str] = []
        for lead, rest in readings(_NUMBERED.sub(";", unicodedata.normalize("NFKC", text)).replace("\n", ";")):
            if not lead:
                items = [item for item in map(normalized, _SEPARATOR.split(rest.casefold())) if item]
                words = []
                for item in items:
                    joined = _CHINESE_AND.split(item)
                    splits = not self._wheel.groups_of(item) and all(map(self._wheel.groups_of, joined))
                    words += joined if splits else [item]
                if all(map(self._wheel.groups_of, words)):
                    break
        return words
