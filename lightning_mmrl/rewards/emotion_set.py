"""Open-vocabulary reward: the set of emotions an answer names, by F1 on an emotion wheel."""

import re
import unicodedata
from dataclasses import dataclass, field

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.prompts.answers import doubts, readings
from lightning_mmrl.prompts.labels import normalized
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.wheel import Wheel
from lightning_mmrl.types.records import Completion, Sample

# Linear in the text: a repetition is bounded.
_SEPARATOR = re.compile(r"[,;/|\n+]| and | & | as well as | plus ")
_NUMBERED = re.compile(r"(?<![^\s;,])\(?[0-9]{1,2}[.)](?![0-9])")
_PLAIN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_CHINESE_AND = re.compile("[\u548c\u4e0e\u53ca]")
_MOST_WORDS = 8
"""A longer list is no answer but a part of a dictionary, unless the solution is as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionSet:
    """F1 between the wheel groups of the answer and of the solution, less a penalty for every guess too many.

    P = |A & S| / |A|, R = |A & S| / |S|, reward = max(0, 2 P R / (P + R) - extra_penalty * max(0, n - m)), with the
    groups A of the answer's words and S of the solution's, n guesses in the answer and m in the solution. Synonyms are
    one guess, and so is a word with two groups: guesses are the fewer of words and groups.
    Both are lists with commas, semicolons, slashes, line breaks, numbers or "and" between the words, alone or in a bare
    statement (`He feels sad and lonely.`, see `readings`). The emotion-wheel metric of AffectGPT
    (arXiv:2501.16566), which AffectGPT-R1 takes as its reward.

    Words outside of the wheel that deny, hedge or ask (`sad, not angry`, `sad or angry`) make the answer worthless, and
    so do words with other signs in them, such as code, and more than 8 words, or than the solution has if that is more.

    With the usual penalty of 0.25 a second guess earns less than it costs, however unsure the first one is; F1 alone
    pays for guessing. `wheel` is a YAML or JSON file that maps each word to its group or groups; None takes a small
    built-in wheel. A word of the answer that the wheel does not have counts as a group of its own, a wrong one; words
    of the solution that it does not have are left out.

    **Deviations** from the metric: per sample and not from mean precision and recall; one wheel in place of five; a
    fixed rule in place of a language model that finds the labels; unknown words of the answer are wrong, not free; the
    penalty.

    Raises:
        ConfigError: the wheel cannot be used or a number is out of range.

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
            RewardError: The sample's own solution is missing or has no word of the wheel.
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
        if len(words) > max(_MOST_WORDS, len(wanted)) or not all(map(_is_another_word, unknown)):
            return 0.0
        named = frozenset[str](f"unknown {word}" for word in unknown).union(*map(self._wheel.groups_of, words))
        if not named:
            return 0.0
        f1 = 2 * len(named & truth) / (len(named) + len(truth))
        guesses, wanted_guesses = min(len(words), len(named)), min(len(wanted), len(truth))
        return max(0.0, f1 - self.extra_penalty * max(0, guesses - wanted_guesses))

    def _words(self, text: str) -> list[str]:
        """The words that a text lists: in the first reading with words of the wheel alone, else in the shortest one."""
        words: list[str] = []
        for lead, rest in readings(_NUMBERED.sub(";", unicodedata.normalize("NFKC", text)).replace("\n", ";")):
            if not lead:
                items = [item for item in map(normalized, _SEPARATOR.split(rest.casefold())) if item]
                words = [word for item in items for word in self._split(item)]
                if all(map(self._wheel.groups_of, words)):
                    break
        return words

    def _split(self, item: str) -> list[str]:
        """An item, or the two words of the wheel that a Chinese "and" joins in it."""
        joined = _CHINESE_AND.split(item)
        return joined if not self._wheel.groups_of(item) and all(map(self._wheel.groups_of, joined)) else [item]


def _is_another_word(text: str) -> bool:
    """True for a word or two that the wheel does not have, which deny and doubt nothing: a wrong guess."""
    return _PLAIN.fullmatch(text) is not None and not doubts(text)
