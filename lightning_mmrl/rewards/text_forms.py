"""Other forms of a gold that is a word or a phrase: an article, a hyphen, a direction, a charge, the question's words.

Each form has all the words of the gold and adds only words without a meaning of their own, or words of the question.
"""

import re

from lightning_mmrl.prompts.answers import doubts, word_set
from lightning_mmrl.prompts.labels import is_blank, normalized

_PHRASE = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
_ARTICLE = re.compile(r"(?:the|an?) ")
_DIRECTIONS = word_set("left right up down upward downward forward backward north south east west")
_ION = re.compile(r"[A-Z][A-Za-z0-9^_{}()+-]*[0-9+-][}]?")
_ASKS_FOR_ONE = re.compile(
    r"(?:who|what|which(?: \w+)?) ((?:is|are|was|were|has|have|had|can|will|does|did)\b[^?.]*)\?", re.I
)
_ASKS_FOR_TRUTH = re.compile(r"(?:is|are|was|were|does|do|can)\b[^?]*\btrue\b[^?]*\?", re.I)
_SENTENCE = re.compile(r"\n|(?<=[.?!])\s")
_YES = {"true": "yes", "false": "no"}
_MOST_WORDS_AGAIN = 12


def forms_of(gold: str, question: str) -> tuple[str, ...]:
    r"""The other forms of a gold, each different after normalization.

    >>> forms_of("dark blue", "")[-3:], forms_of("Fe^{3+}", ""), forms_of("True", "Is the statement true?")[-1]
    (('the dark blue one', 'dark-blue', 'darkblue'), ('fe3+',), 'yes')
    >>> "tom is the tallest" in forms_of("Tom", "Who is the tallest?")
    True
    """
    text, forms = normalized(gold), []
    if _ION.fullmatch(gold.strip("$ ")) is not None and re.search("[_^]", gold) is not None:
        forms.append(re.sub(r"[\^_{}]", "", text))
    if _PHRASE.fullmatch(text) is not None:
        forms += _with_other_words(text, question)
    found = (normalized(form) for form in forms)
    return tuple(dict.fromkeys(form for form in found if form != text and not is_blank(form)))


def _with_other_words(text: str, question: str) -> list[str]:
    article = _ARTICLE.match(text)
    noun = text if article is None else text[article.end() :]
    forms = [noun, *(f"{each} {noun}" for each in ("a", "an", "the")), f"the {noun} one"]
    if not doubts(noun):
        forms += [noun.replace("-", " "), noun.replace(" ", "-"), noun.replace(" ", "").replace("-", "")]
    if text in _DIRECTIONS:
        stem = text.removesuffix("ward")
        forms += [f"to the {text}", f"{stem}ward", f"{stem}wards"]
    asked = _SENTENCE.split(question.strip())[-1]
    if text in _YES and _ASKS_FOR_TRUTH.fullmatch(asked) is not None and not doubts(asked.removesuffix("?")):
        forms.append(_YES[text])
    again = _ASKS_FOR_ONE.fullmatch(asked)
    if again is not None and len(again[1].split()) <= _MOST_WORDS_AGAIN and not doubts(again[1]):
        forms.append(f"{text} {again[1]}")
    return forms
