"""The lettered options of a question, and answers that give the exact text of one."""

import re
from collections.abc import Mapping

from lightning_mmrl.prompts.answers import question_of, readings
from lightning_mmrl.prompts.labels import normalized
from lightning_mmrl.types.records import Sample

OPTIONS = "options"
"""Column of a manifest with the texts of the options, from A on; without it they are read from the question's lines."""
_OPTION_LINE = re.compile(r"^[ \t]*[(\[]?([A-Z])[).:\]][ \t]+(\S.*)$", re.MULTILINE)


_ARTICLE = re.compile(r"(the|an?) (?=.)")


def options_of(sample: Sample) -> dict[str, str]:
    r"""Letter to text of each option; empty if the sample lists none.

    >>> from lightning_mmrl.types.records import Message
    >>> question = Message(role="user", content="Which color?\nA) red\nB) dark blue")
    >>> options_of(Sample(id="q1", messages=(question,)))
    {'A': 'red', 'B': 'dark blue'}
    """
    column = sample.extras.get(OPTIONS)
    if isinstance(column, list | tuple):
        return {chr(ord("A") + place): str(text) for place, text in enumerate(column)}
    return dict(_OPTION_LINE.findall(question_of(sample)))


def option_named(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the only option whose text is the answer, up to case and typography.

    The text may stand in a bare statement that names no other option, after an article, and before "one". A single
    letter of the Latin alphabet is never taken for the text of an option, and a text that two options share names
    neither of them.

    >>> option_named("Dark blue.", {"A": "red", "B": "dark blue"}), option_named("B", {"A": "B", "B": "A"})
    ('B', None)
    >>> [option_named(text, {"A": "left", "B": "right"}) for text in ("It is the right one.", "It is left, right")]
    ['B', None]
    """
    whole = normalized(answer)
    exact = {letter: normalized(text) for letter, text in options.items() if normalized(text)}
    for texts in (exact, {letter: _ARTICLE.sub("", text, count=1) for letter, text in exact.items()}):
        for _, rest in readings(answer) if texts else ():
            for words in _bare_forms(rest):
                named = [letter for letter, text in texts.items() if text == words]
                if named:
                    around = whole.replace(words, " ", 1) if whole.count(words) == 1 else whole.rpartition(words)[0]
                    return named[0] if len(named) == 1 and not _mentions(around, texts, named[0]) else None
    return None


def _bare_forms(text: str) -> list[str]:
    """A normalized text, and the text without its article and without "one" after "the"; no letter by itself."""
    words = normalized(text)
    forms, found = [words], _ARTICLE.match(words)
    # "A" before a text is more likely a letter: "A right", "a the bus".
    is_letter = found is None or re.match(r"\W*A ", text) is not None or _ARTICLE.match(words, found.end()) is not None
    if found is not None and not is_letter:
        forms.append(words[found.end() :])
        if found[1] == "the" and words.endswith(" one"):
            forms.append(words[found.end() :].removesuffix(" one"))
    return [form for form in forms if form and not (len(form) == 1 and form.isascii() and form.isalpha())]


def _mentions(around: str, texts: Mapping[str, str], letter: str) -> bool:
    """True if the words around a text name another option."""
    others = (text for other, text in texts.items() if other != letter and text and text != texts[letter])
    return any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", around) for text in others if len(text) > 1)
