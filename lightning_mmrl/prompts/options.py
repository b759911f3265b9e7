"""The lettered options of a question, and answers that give the exact text of one."""

import re
from collections.abc import Mapping

from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.labels import normalized
from lightning_mmrl.types.records import Sample

OPTIONS = "options"
"""Column of a manifest with the texts of the options, from A on; without it they are read from the question's lines."""
_OPTION_LINE = re.compile(r"^[ \t]*[(\[]?([A-Z])[).:\]][ \t]+(\S.*)$", re.MULTILINE)


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

    A single letter of the alphabet is never taken for the text of an option, and a text that two options share names
    neither of them.

    >>> option_named("Dark blue.", {"A": "red", "B": "dark blue"}), option_named("B", {"A": "B", "B": "A"})
    ('B', None)
    """
    words = normalized(answer)
    if len(words) == 1 and words.isalpha():
        return None
    named = [letter for letter, text in options.items() if words and normalized(text) == words]
    return named[0] if len(named) == 1 else None
