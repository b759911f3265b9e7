"""Reads the answer of a completion in plain prose, for models that write no tags: its last sentence states it."""

import re

from lightning_mmrl.prompts.scanner import TAGS, scan
from lightning_mmrl.types.records import Completion

# Linear in the text, since no repetition can match the character that ends it.
_SENTENCE_END = re.compile(r"[.!?][\"')*]?\s")
_CONCLUSION = re.compile(r", (?:and )?(?:so|thus|hence|therefore|which means|meaning)(?: that)?,? ", re.IGNORECASE)


def prose_answer(completion: Completion) -> str | None:
    """The last sentence of the last line, and of that the part after `, so` or another conclusion.

    None if the text is blank, or if the length limit ended it.
    A tag is a promise: a text with any of them has the answer that `scan` finds, or none.

    >>> def read(text):
    ...     return prose_answer(Completion(text=text, num_tokens=9, truncated=False))
    >>> read("12 - 5 = 7 and 7 + 2 = 9. So Tom has 9 apples left.")
    'So Tom has 9 apples left.'
    >>> read("Mia had 7 coins and lost 5, so 7 - 5 = 2 coins are left.")
    '7 - 5 = 2 coins are left.'
    >>> read("<think>12 - 5</think><answer>7</answer>"), read("It is 7. <answer>"), read(" ")
    ('7', None, None)
    """
    text = completion.text
    if any(tag in text for tag in TAGS):
        return scan(text).answer
    if completion.truncated:
        return None
    line = next((line.strip() for line in reversed(text.split("\n")) if line.strip()), "")
    for ending in (_SENTENCE_END, _CONCLUSION):
        ends = [found.end() for found in ending.finditer(line)]
        line = line[ends[-1] if ends else 0 :]
    return line.strip() or None
