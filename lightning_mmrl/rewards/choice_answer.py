"""Accuracy reward for multiple choice: the answer names the right letter."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.prompts.answers import (
    GUESSES,
    HEDGES,
    NEGATIVE_PICTURES,
    doubts,
    question_of,
    readings,
    typeset,
    without_assurance,
    word_set,
)
from lightning_mmrl.prompts.options import option_named, options_of
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import Completion, Sample

STEPS = ("text", "letter", "lone_letter", "last_letter")
"""Ways to name a choice; `ChoiceAnswer` says what each is."""

# Linear in the text, since no two adjacent repetitions share a character.
_LETTER = re.compile(r"[(\[\"'<]* ?([A-Za-z]) ?[)\]\"'>]*")
_THE_ONE = re.compile(r"[(\[\"']*[Tt]he ([A-Z]) one[)\]\"']*")
_REPEATED = re.compile(r"([A-Z])(?:(?:,| and|, and)? \1){1,2}")
_OVER = re.compile(r"([A-Z])(?:, ?| and | but |, but )not ([A-Z])")
"""One letter, and others that are denied."""
_LEADING = re.compile(r"(?:[(\[] ?([A-Za-z]) ?[)\]]|([A-Za-z]) ?[).:](?!\.))[.:,]? ?(?=\S)")
# A letter before a comma may begin a list of letters, so no other single letter may follow but the words "A" and "I".
_COMMA = re.compile(r"([A-Z]), ?(?=\S)(?!.*(?<![A-Za-z'])(?:A(?! [a-z])|[B-HJ-Z])(?![A-Za-z']))")
_DASHED = re.compile(r"([A-Z]) (?:-+|=) (?=\S)")
_BRACKETED = re.compile(r"([A-Z]) \((?=.*\)$)")
_REASONED = re.compile(r"([A-Z]),? (?:because|since|as|for) (?=\S)|([A-Z]): because (?=\S)", re.IGNORECASE)
_MARKED = re.compile(
    r"(?<![A-Za-z0-9\u00b0])(?:([A-Z])[).:]|([a-z])\))(?![A-Za-z])|(?<![A-Za-z0-9])[(\[]([A-Za-z])[)\]]"
)
_MENTIONED = re.compile(
    r"(?<![A-Za-z])(?:or|and|but|then|options?|choices?|answer|letter|actually|rather|wait|no|not|is|instead|maybe)"
    r"[ ,:]{1,2}([A-Z])(?![A-Za-z'])(?! [a-z])",
    re.IGNORECASE,
)
_JOINED = re.compile(r"(?:[,/&|+]|->|(?:or|and|nor|but|then|vs)\b)[ .]?", re.IGNORECASE)
_CROSSED = re.compile(rf"[?{NEGATIVE_PICTURES}]|~~")
_FIRST = re.compile(r"[(\[\"']*([A-Z])(?![A-Za-z0-9'\u00b0+#])(?!,| [a-z&])")
_ALONE = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])(?! [a-z])")
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?|[0-9]+")
_ABOUT_THE_LETTER = word_set(
    "is isn't was wasn't cannot can't can could couldn't might may would seems looks must should does doesn't has "
    "will won't"
)
_JUDGED_WRONG = word_set("wrong incorrect false untrue mistaken")
_REJECTIONS = _JUDGED_WRONG - {"false"} | word_set(
    "no nope nah not never none neither eliminated ruled rejected discarded dismissed excluded crossed struck "
    "removed disproved impossible"
)
_POINTERS = word_set("this that it it's that's option choice answer letter candidate")
"""Together with a rejection, these words refer to the letter and are no text of an option: `Not this one`."""
_REMARKING = word_set(
    "out off is was be been has can should must by the a one i we as already definitely clearly certainly "
    "obviously correct right true possible so therefore of process elimination my first final"
)
_FILLING = word_set("i i'm i'd am think it is the a not sure so be would my")
_LONE = re.compile(r"(?<![A-Za-z0-9'])(?<![0-9\u00b0] )(?<!\u00b0)(A(?! (?!is |was )[a-z])|[B-HJ-Z])(?![A-Za-z0-9'])")
"""A capital letter that is neither the word "A" nor "I", and no unit of degrees."""
_SENTENCE = re.compile(r"(?<=[.!?])\s|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAnswer:
    r"""1.0 if the answer names the choice of the sample's solution and no other, else 0.0.

    `reading` says where the answer is, see `prompts.reading`. `steps` are tried in order, and the first one that finds
    a choice decides:

    - `text`: the exact text of one option, up to case, typography and articles, also in a bare statement that names no
      other option (`prompts.options`).
    - `letter`: a letter by itself or in a bare statement, as described below.
    - `lone_letter`: the only choice that stands alone as a capital letter in a text without denial or doubt.
    - `last_letter`: the last such letter of a text of any length, if its sentence has no other and no denial or doubt.

    These are read as a letter: `B`, `b`, `(B)`, `B.`, `**B**`, `\boxed{B}`, `$B$`, and a letter with the text of its
    option or a short reason (`B) a red car`, `B, because it is red`). Each may be part of a bare statement (`The answer
    is B.`, see `readings`). A letter may be said up to three times (`B and B`), and may deny one other (`B, not A`).
    These name no letter: several letters, a letter that is denied, doubted or followed by a
    question mark, and a text that names another choice. The text of an option may itself deny or list (`D) None of the
    above`). With known options, a letter that has the text of another option beside it (`B) a red car`, where A is the
    red car) names none. The solution is read by the steps `text` and `letter`.

    A remark that rejects the letter is not taken for the text of an option. Such a remark is in lower case (`B) no`,
    `B) ruled out`) or refers to the letter (`B) Not this one`). If the question or the solution has the same words
    after that letter (`A) yes B) no`), they are the option's text. A capitalized rejection without a reference (`B.
    No.`, `B) Eliminated`) is read as an option's text and earns the reward.

    **Deviations**: after mathematics, VisualThinker-R1-Zero (arXiv:2503.05132) compares the text and then takes the
    last letter from A to H; those are the steps `[text, last_letter]`, with the reading `tag_or_text`. MM-EUREKA's code
    (arXiv:2503.07365, reward_func_qwen_instruct.py) takes an `a` to `d` that occurs anywhere in the answer, also within
    words, if the other three do not; that is `[letter, lone_letter]`, where only a letter that stands alone counts. By
    default, the words around the letter must be on an allow-list, so that no list or negation earns the reward.

    >>> reward = ChoiceAnswer()
    >>> sample = Sample(id="q1", messages=(), solution="B")
    >>> [
    ...     reward(sample, Completion(text=f"<answer>{answer}</answer>", num_tokens=3, truncated=False))
    ...     for answer in ("(B)", "B) a red car", "The answer is B.", "A or B", "B is wrong")
    ... ]
    [1.0, 1.0, 1.0, 0.0, 0.0]
    """

    choices: str = "ABCDEFGH"
    max_characters: int = 256
    reading: str = "tag"
    steps: Sequence[str] = ("text", "letter")

    def __post_init__(self) -> None:
        check_reading(self.reading)
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise ConfigError(f"steps is {list(self.steps)}; name at least one, and each once")
        for step in self.steps:
            if step not in STEPS:
                raise ConfigError(f"steps has {step!r}{did_you_mean(step, STEPS)}")
        choices = self.choices
        if not choices or not (choices.isascii() and choices.isalpha() and choices.isupper()):
            raise ConfigError(f"choices is {choices!r}; it must be capital letters, such as ABCD")
        if len(set(choices)) < len(choices):
            raise ConfigError(f"choices is {choices!r}; it must name each letter once")

    def truth(self, sample: Sample) -> str | None:
        """The choice of a sample's solution; None if it names none."""
        if sample.solution is None:
            return None
        options = options_of(sample)
        return option_named(sample.solution, options) or self.read(sample.solution, sample.solution, options)

    def choice(self, sample: Sample, completion: Completion) -> str | None:
        """The choice that a completion names; None if it names none or several."""
        answer = find_answer(completion, self.reading, question_of(sample)).text
        return None if answer is None else self.named(answer, sample)

    def named(self, answer: str, sample: Sample) -> str | None:
        """The choice that an answer names by the first step that finds one."""
        options, answer = options_of(sample), without_assurance(answer)
        context = f"{question_of(sample)}\n{sample.solution}"
        for step in self.steps:
            if step == "text":
                longest = max((self.max_characters, *(2 * len(text) for text in options.values())))
                found = option_named(answer, options) if len(answer) <= longest else None
            elif step == "letter":
                found = self.read(answer, context, options)
            elif step == "lone_letter":
                found = self._lone_letter(answer) if len(answer) <= self.max_characters else None
            else:
                found = self._last_letter(answer)
            if found is not None:
                return found
        return None

    def _lone_letter(self, text: str) -> str | None:
        flat = typeset(text)
        named = [] if doubts(flat) else [letter for letter in _LONE.findall(flat) if letter in self.choices]
        return named[0] if len(set(named)) == 1 else None

    def _last_letter(self, text: str) -> str | None:
        for sentence in reversed(_SENTENCE.split(text)):
            if any(letter in self.choices for letter in _LONE.findall(typeset(sentence))):
                return self._lone_letter(sentence)
        return None

    def read(self, answer: str, options: str = "", texts: Mapping[str, str] | None = None) -> str | None:
        r"""The letter that an answer names; None if it names none or several.

        Args:
            answer: The answer.
            options: A text that lists the options, such as the question.
            texts: The text of each option by its letter, if known.

        >>> ChoiceAnswer().read(r"\boxed{c}")
        'C'
        """
        if len(answer) > self.max_characters:
            return None
        for lead, rest in readings(answer):
            if _CROSSED.search(rest):
                return None
            over = _OVER.fullmatch(rest)
            if over is not None:
                is_other = over[1] not in over.groups()[1:] and not self._others(_ALONE, lead, over[1])
                return over[1] if is_other and over[1] in self.choices else None
            named = self._named(rest)
            if named is not None:
                letter, text = named
                is_own = bool(text) and option_named(text, texts or {}) == letter
                about = is_own or (self._is_about(letter, text) and not _rejects(text, letter, options))
                about = about and option_named(text, texts or {}) in (None, letter)
                return letter if about and not self._others(_ALONE, lead, letter) else None
        return None

    def _named(self, text: str) -> tuple[str, str] | None:
        """The letter at the start of a text, and the text of its option after it; None without such a letter."""
        for pattern in (_LETTER, _THE_ONE, _REPEATED):
            whole = pattern.fullmatch(text)
            if whole is not None:
                return self._choice(whole[1], "")
        for pattern in (_REASONED, _LEADING, _DASHED, _BRACKETED, _COMMA):
            found = pattern.match(text)
            if found is not None:
                letter, rest = next(each for each in found.groups() if each), text[found.end() :].strip(" .")
                if pattern in (_REASONED, _BRACKETED, _COMMA):
                    # A reason may deny and compare, but not guess; any other remark may show no doubt at all.
                    guesses = any(word.casefold() in GUESSES for word in _WORD.findall(rest))
                    is_doubtful = guesses if pattern is _REASONED else doubts(rest)
                    if is_doubtful or self._others(_ALONE, rest, letter):
                        return None
                return self._choice(letter, rest)
        return None

    def _choice(self, letter: str, text: str) -> tuple[str, str] | None:
        return (letter.upper(), text) if letter.upper() in self.choices else None

    def _others(self, pattern: re.Pattern[str], text: str, letter: str) -> list[str]:
        """The other choices that a pattern finds in a text."""
        found = ["".join(groups) if isinstance(groups, tuple) else groups for groups in pattern.findall(text)]
        return [each for each in found if each.upper() in self.choices and each.upper() != letter.upper()]

    def _is_about(self, letter: str, text: str) -> bool:
        """True if the text after a letter is an option or a reason, without denying the letter or naming another."""
        alone = _LETTER.fullmatch(text)
        if alone is not None:
            return alone[1].upper() == letter or alone[1].upper() not in self.choices
        words = [word.casefold() for word in _WORD.findall(text)]
        if words and _denies(text, words):
            return False
        first = _FIRST.match(text)
        if first is not None and self._others(_FIRST, first[0], letter):
            return False
        if {"not"}.union(HEDGES).intersection(words) and all(word in HEDGES or word in _FILLING for word in words):
            return False
        joined = _JOINED.match(text)
        if joined is not None and self._named(text[joined.end() :]) is not None:
            return False
        return not self._others(_MARKED, text, letter) and not self._mentions_another(text, letter)

    def _mentions_another(self, text: str, letter: str) -> bool:
        """True if another choice follows a word such as "or", unless the option's text is a list of letters."""
        for found in _MENTIONED.finditer(text):
            before = text[: found.start()].rstrip(" ,")
            listed = before[-1:].isupper() and not before[-2:-1].isalpha()
            if found[1].isupper() and found[1] in self.choices and found[1] != letter and not listed:
                return True
        return False

    def __call__(self, sample: Sample, completion: Completion) -> float:
        """Scores one completion.

        Raises:
            RewardError: The sample's solution is missing or names no choice.
        """
        return float(self.choice(sample, completion) == self.check_gold(sample))

    def check_gold(self, sample: Sample) -> str:
        """The choice of a sample's solution.

        Raises:
            RewardError: The solution is missing or names no choice.
        """
        truth = self.truth(sample)
        if truth is None:
            raise RewardError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names none of the choices "
                f"{self.choices} and no text of an option; write a letter, or widen choices"
            )
        return truth


def _denies(text: str, words: list[str]) -> bool:
    """True if a text denies the letter before it: "wrong", "is wrong", "isn't it".

    "False" and "Cannot be determined" are texts of options.
    """
    is_lower = words[0] in text
    if words[0] in _ABOUT_THE_LETTER:
        return not _JUDGED_WRONG.isdisjoint(words) or (is_lower and doubts(text))
    return is_lower and words[0] in _JUDGED_WRONG - {"false"}


def _rejects(text: str, letter: str, options: str) -> bool:
    """True for a remark that only rejects the letter: in lower case, or with a word that refers to the letter.

    "No one" is a text of an option, and so is any text that the options contain directly after the letter.
    """
    words = [word.casefold() for word in _WORD.findall(text)]
    allowed = _REJECTIONS | _POINTERS | _REMARKING
    if _REJECTIONS.isdisjoint(words) or not allowed.issuperset(words) or words == ["no", "one"]:
        return False
    option = rf"(?<![A-Za-z]){letter}[).:,\] -]{{1,4}}{re.escape(text)}(?![A-Za-z])"
    is_option = re.search(option, typeset(options), re.IGNORECASE) is not None
    return not is_option and (words[0] in text or not _POINTERS.isdisjoint(words))
