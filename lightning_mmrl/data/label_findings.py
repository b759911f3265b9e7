"""Finds labels that look like mistakes: a single class, placeholders for missing values, two spellings of one word."""

import unicodedata
from collections.abc import Mapping
from itertools import combinations

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.prompts.labels import is_blank, normalized

MISSING_WORDS = frozenset(
    {"nan", "na", "n/a", "none", "null", "nil", "nat", "missing", "undefined", "#n/a", "<na>", "#value!", "#ref!"}
)
"""Words that spreadsheets, pandas and databases write for a missing value, case-folded."""

_MAX_LABELS = 200
_MANY_CHARACTERS = 64
_MIN_LETTERS = 5
_LOOKALIKE_SCRIPTS = frozenset({"LATIN", "CYRILLIC", "GREEK"})


def label_findings(labels: Mapping[str, int]) -> list[str]:
    """Warnings about suspicious labels, one sentence each.

    Two labels count as spellings of one word if they differ only in case, accents, punctuation, spaces or invisible
    characters. They also count as such if the first letter is the same, one other letter differs, and the longer one
    has at least five letters. Labels with digits may differ only in case and spaces, since "class 1" and "class 2", or
    "-3" and "3", are not the same. Sets of more than 200 labels are taken for free answers and not compared.

    Args:
        labels: Number of samples by label.

    >>> label_findings({"happy": 20, "hapy": 1, "sad": 20})
    ["labels 'happy' (20 samples) and 'hapy' (1 sample) differ in one letter; if they are one class, spell them alike"]
    >>> label_findings({"sad": 3})
    ["all 3 samples have the label 'sad', so this answer is always right and nothing can be learned"]
    """
    findings = []
    if len(labels) == 1 and sum(labels.values()) > 1:
        ((label, num),) = labels.items()
        findings.append(
            f"all {num} samples have the label {quoted(label)}, so this answer is always right and nothing can be "
            "learned"
        )
    for label, num in labels.items():
        if label.strip().casefold() in MISSING_WORDS or is_blank(normalized(label)):
            findings.append(
                f"label {quoted(label)} ({_samples(num)}) looks like a missing value; drop its lines if it is one"
            )
        if len(label) > _MANY_CHARACTERS:
            findings.append(
                f"label {quoted(label)} ({_samples(num)}) has {len(label)} characters, which an answer must say word "
                "for word; is it a sentence of another column?"
            )
        if len(scripts := _scripts(label)) > 1:
            findings.append(
                f"label {quoted(label)} ({_samples(num)}) mixes {' and '.join(scripts)} letters, which look alike; "
                "type it anew if it is a mistake"
            )
    if len(labels) <= _MAX_LABELS:
        findings += _close_labels(labels)
    return findings


def _close_labels(labels: Mapping[str, int]) -> list[str]:
    findings = []
    for first, second in combinations(labels, 2):
        how = _difference(first, second)
        if how is not None:
            findings.append(
                f"labels {quoted(first)} ({_samples(labels[first])}) and {quoted(second)} ({_samples(labels[second])}) "
                f"differ {how}; if they are one class, spell them alike"
            )
    return findings


def _difference(first: str, second: str) -> str | None:
    """How two labels differ if they may be spellings of one word, else None."""
    one, other = _letters(first), _letters(second)
    if not one or not other:
        return None  # labels of punctuation only are not compared
    if one == other:
        return "only in case, accents, spaces or punctuation"
    if any(character.isdigit() for character in one + other) or max(len(one), len(other)) < _MIN_LETTERS:
        return None
    return "in one letter" if one[0] == other[0] and _one_edit_apart(one, other) else None


def _letters(label: str) -> str:
    """The label without case, accents, spaces, punctuation and invisible characters."""
    text = normalized(label)
    if any(character.isdigit() for character in text):
        return "".join(text.split())  # punctuation and signs are part of numbers
    parts = unicodedata.normalize("NFKD", text)
    # Combining classes of 200 and above are accents. Lower classes change the letter, as Japanese voicing marks do.
    # Symbols such as + stay.
    return "".join(
        each for each in parts if unicodedata.category(each)[0] not in "PZC" and unicodedata.combining(each) < 200
    )


def _one_edit_apart(one: str, other: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbors turns one text into the other."""
    if abs(len(one) - len(other)) > 1:
        return False
    short, long = sorted((one, other), key=len)
    start = next((index for index, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    if len(short) < len(long):
        return short[start:] == long[start + 1 :]
    rest, others = short[start + 1 :], long[start + 1 :]
    swapped = short[start : start + 2] == long[start : start + 2][::-1] and rest[1:] == others[1:]
    return rest == others or swapped


def _scripts(label: str) -> list[str]:
    """Names of the lookalike alphabets that a word of the label mixes; empty if no word does."""
    for word in label.split():
        found = {unicodedata.name(each, "").split(" ")[0] for each in word if each.isalpha()} & _LOOKALIKE_SCRIPTS
        if len(found) > 1:
            return sorted(each.capitalize() for each in found)
    return []


def _samples(num: int) -> str:
    return f"{num} sample" if num == 1 else f"{num} samples"
