r"""Accuracy reward for multiple choice: the answer names the right letter."""

import re
import unicodedata
from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample

# No two neighboring repetitions share a character: linear in the text.
_BOXED = re.compile(r"\\boxed ?\{ ?(?:\\text|\\mathrm|\\mathbf|\\textbf)? ?\{? ?\(?([A-Za-z])\)? ?\}? ?\}")
_BARE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_LEADING = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[).:])[.:]? ?(?=\S)")
_MARKED = re.compile(r"(?<![A-Za-z])([A-Za-z])[).:](?![A-Za-z])|[(\[]([A-Za-z])[)\]]")
_ALONE = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_JOINED = re.compile(r"(?:\b(?:or|and|not|nor)|[,/&|+]) ?([A-Za-z])(?![A-Za-z'])(?! [a-z])", re.IGNORECASE)
ONE_LETTER_WORDS = "AI"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAnswer:
    r"""1.0 if the `<answer>` names the letter of the sample's solution and no other, else 0.0.

    Read as a letter are `B`, `b`, `(B)`, `B.`, `**B**`, `\boxed{B}`, `$B$` and a letter with the text of its option, as
    in `B) a red car`. A letter in a sentence, several letters and a text that names another choice are none. The
    solution is read in the same way.

    **Deviations** from the letter that VisualThinker-R1-Zero (the last one, arXiv:2503.05132) and MM-EUREKA (the only
    one, arXiv:2503.07365) fall back to: the answer begins with it, so that neither lists nor negations earn anything.

    >>> reward = ChoiceAnswer()
    >>> sample = Sample(id="q1", messages=(), solution="B")
    >>> [
    ...     reward(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=3, truncated=False))
    ...     for answer in ("(B)", "B) a red car", "A or B")
    ... ]
    [1.0, 1.0, 0.0]
    """

    choices: str = "ABCDEFGH"
    max_characters: int = 256

    def __post_init__(self) -> None:
        choices = self.choices
        if not choices or not (choices.isascii() and choices.isalpha() and choices.isupper()):
            raise ConfigError(f"choices is {choices!r}; it must be capital letters, such as ABCD")
        if len(set(choices)) < len(choices):
            raise ConfigError(f"choices is {choices!r}; it must name each letter once")

    def read(self, answer: str) -> str | None:
        r"""The letter that an answer names, None if it names none or more than one.

        >>> ChoiceAnswer().read(r"\boxed{c}")
        'C'
        """
        if len(answer) > self.max_characters:
            return None
        text = " ".join(unicodedata.normalize("NFKC", answer).split()).strip("$*`'\" ")
        whole = _BOXED.fullmatch(text.rstrip(".")) or _BARE.fullmatch(text)
        if whole is not None:
            return self._choice(whole[1])
        leading = _LEADING.match(text)
        if leading is None:
            return None
        letter = self._choice(leading[1] or leading[2])
        return None if self._names_another(text[leading.end() :]) else letter

    def _choice(self, letter: str) -> str | None:
        return letter.upper() if letter.upper() in self.choices else None

    def _names_another(self, rest: str) -> bool:
        """True if the text of an option names a choice: marked, joined to another, or a capital letter alone."""
        marked = [first or second for first, second in _MARKED.findall(rest)] + _JOINED.findall(rest)
        alone = [letter for letter in _ALONE.findall(rest) if letter not in ONE_LETTER_WORDS or letter == rest]
        return any(letter.upper() in self.choices for letter in marked + alone)

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The sample's own solution is missing or names no choice.
        """
        truth = None if sample.solution is None else self.read(sample.solution)
        if truth is None:
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names none of the choices "
                f"{self.choices}; write a letter, or widen choices"
            )
        answer = scan(completion.text).answer
        return 1.0 if answer is not None and self.read(answer) == truth else 0.0
