"""Accuracy by subject and by length, reflection of right and wrong answers, and truncation of one evaluated set."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.responses import REFLECTION_PHRASES, phrase_pattern

PARTS = ("by_subject", "by_length", "aha", "truncated")
"""Keys of a breakdown."""
MOST_SUBJECTS = 6
"""Subjects that a line names, those with the most samples."""


def breakdown(
    judgements: Sequence[Judgement], right: Sequence[bool], phrases: Sequence[str] = REFLECTION_PHRASES
) -> dict[str, Any]:
    """The parts of a result that say which answers are right, as plain values for a file.

    - `by_subject`: subject to `num_samples` and `accuracy`, for samples that name one; empty if none does.
    - `by_length`: bins of tokens from powers of two, as `at_least`, `below`, `num_samples` and `accuracy`; bins without
      answers are left out. Such bins are the same for all stages and runs.
    - `aha`: for `right` and `wrong` answers `num_samples` and `rate`, the share with at least one of the phrases; its
      name is that of the literature (arXiv:2501.12948), and it counts words, no insight (arXiv:2505.22334).
    - `truncated`: the share of answers that the limit of tokens ended.

    A share of nothing is None, and so is `truncated` if the judgements are of a version that did not note it.

    Args:
        judgements: The judged answers.
        right: Whether each is right (`Task.is_right`).
        phrases: Phrases of reflection.

    >>> judgement = Judgement(
    ...     sample_id="a", speaker=None, truth="7", predicted="7", valid_format=True, text="Wait, 7.", num_tokens=5
    ... )
    >>> breakdown([judgement], [True])["by_length"]
    [{'at_least': 4, 'below': 8, 'num_samples': 1, 'accuracy': 1.0}]
    """
    subjects, lengths = defaultdict(list), defaultdict(list)
    reflecting: dict[bool, list[bool]] = {True: [], False: []}
    pattern = phrase_pattern(phrases)
    for judgement, is_right in zip(judgements, right, strict=True):
        if judgement.subject is not None:
            subjects[judgement.subject].append(is_right)
        if judgement.num_tokens is not None:
            lengths[judgement.num_tokens.bit_length()].append(is_right)
        reflecting[is_right].append(pattern.search(judgement.text) is not None)
    truncated = [each.truncated for each in judgements if each.truncated is not None]
    return {
        "by_subject": {subject: _accuracy(subjects[subject]) for subject in sorted(subjects)},
        "by_length": [
            {"at_least": 2**bits // 2, "below": 2**bits, **_accuracy(lengths[bits])} for bits in sorted(lengths)
        ],
        "aha": {
            name: {"num_samples": len(reflecting[is_right]), "rate": _share(reflecting[is_right])}
            for name, is_right in (("right", True), ("wrong", False))
        },
        "truncated": _share(truncated),
    }


def breakdown_lines(found: Mapping[str, Any]) -> list[str]:
    """Sentences on a breakdown, in percent; none about a part that says nothing.

    >>> breakdown_lines({"truncated": 0.25, "by_subject": {"sets": {"num_samples": 4, "accuracy": 0.5}}})
    ['truncated 25.0', 'by subject: sets 50.0 (4)']
    """
    lines, aha = [], found.get("aha", {})
    rates = {name: part["rate"] for name, part in aha.items() if part["rate"] is not None}
    if found.get("truncated"):
        lines.append(f"truncated {100 * found['truncated']:.1f}")
    if any(rates.values()):
        lines.append("reflecting: " + ", ".join(f"{name} {100 * rate:.1f}" for name, rate in rates.items()))
    if len(found.get("by_length", ())) > 1:
        bins = [f"{each['at_least']}+ {_shown(each)}" for each in found["by_length"]]
        lines.append(f"by tokens: {', '.join(bins)}")
    subjects = sorted(found.get("by_subject", {}).items(), key=lambda each: -each[1]["num_samples"])
    if subjects:
        more = f", and {len(subjects) - MOST_SUBJECTS} more" if len(subjects) > MOST_SUBJECTS else ""
        shown = [f"{name} {_shown(part)}" for name, part in subjects[:MOST_SUBJECTS]]
        lines.append(f"by subject: {', '.join(shown)}{more}")
    return lines


def _shown(part: Mapping[str, Any]) -> str:
    return f"{100 * part['accuracy']:.1f} ({part['num_samples']})"


def _accuracy(right: Sequence[bool]) -> dict[str, Any]:
    return {"num_samples": len(right), "accuracy": _share(right)}


def _share(values: Sequence[bool]) -> float | None:
    return fmean(values) if values else None
