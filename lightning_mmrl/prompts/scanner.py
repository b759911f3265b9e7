r"""Strict, linear-time scanner of `<think>...</think><answer>...</answer>`.

Model output must be treated as hostile text. The usual pattern `<think>.*?</think>\s*<answer>.*?</answer>`, as in the
format reward of HumanMLLM/R1-Omni (src/r1-v/src/open_r1/grpo.py), takes cubic time on repeated tags, and it accepts
nested, duplicated and empty tags. This module only uses `str.count`, `str.find` and one pass over the characters.
"""

import unicodedata
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
THOUGHT, ANSWER = "LN", "LNS"
"""Unicode categories with content: letters and numbers of any script, and in an answer also symbols."""
INVISIBLE = "\u115f\u1160\u3164\uffa0\u2800"
"""Invisible letters and symbols: Hangul fillers, and the Braille pattern without dots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedAnswer:
    """The thought and the answer of a completion, and whether its format is valid.

    `think` and `answer` have no outer whitespace. They are set whenever their pair of tags is unambiguous, even if the
    format is broken elsewhere, so that label accuracy and format are measured separately. `problem` is the first reason
    why the text is not valid; None if it is.
    """

    think: str | None
    answer: str | None
    valid: bool
    problem: str | None


def scan(text: str, *, allow_around: bool = False) -> ScannedAnswer:
    """Scans one completion, with any prefill prepended.

    A text is valid if each of the four tags occurs exactly once and in order, only whitespace is outside them, the
    thought has at least one letter or digit, and the answer has at least one letter, digit or symbol. So `+` can be an
    answer, but not a thought. Tags are matched exactly; `<Think>` is ordinary text. With `allow_around`, text may also
    stand before the thought and after the answer.

    `answer` is set if there is exactly one `<answer>` and one `</answer>`, in order, without a think tag between them,
    and the pair is not inside a thought (the next think tag after it is no `</think>`).

    >>> scan("<think>Lowered brows.</think><answer>angry</answer>").answer
    'angry'
    >>> scan("<think>Lowered brows. <answer>angry</answer>").problem
    'missing </think>'
    >>> scan("<think>+</think><answer>angry</answer>").problem
    'empty thought'
    """
    problem, answer = _problem(text, allow_around=allow_around), _only_pair(text, ANSWER_OPEN, ANSWER_CLOSE)
    rest = text[text.find(ANSWER_CLOSE) :]
    closed, opened = rest.find(THINK_CLOSE), rest.find(THINK_OPEN)
    inside_thought = closed >= 0 and not 0 <= opened < closed
    if answer is not None and (inside_thought or THINK_OPEN in answer or THINK_CLOSE in answer):
        answer = None
    return ScannedAnswer(
        think=_only_pair(text, THINK_OPEN, THINK_CLOSE), answer=answer, valid=problem is None, problem=problem
    )


def _problem(text: str, *, allow_around: bool) -> str | None:
    for tag in TAGS:
        count = text.count(tag)
        if count != 1:
            return f"missing {tag}" if count == 0 else f"duplicate tag {tag}"
    starts = [text.find(tag) for tag in TAGS]
    if starts != sorted(starts):
        think_open, think_close, answer_open, answer_close = starts
        paired = think_open < think_close and answer_open < answer_close
        overlapping = think_open < answer_close and answer_open < think_close
        return "nested" if paired and overlapping else "wrong order"
    ends = [start + len(tag) for start, tag in zip(starts, TAGS, strict=True)]
    around = "" if allow_around else text[: starts[0]] + text[ends[3] :]
    if (around + text[ends[1] : starts[2]]).strip():
        return "text outside tags"
    if lacks_content(text[ends[0] : starts[1]], THOUGHT):
        return "empty thought"
    return "empty answer" if lacks_content(text[ends[2] : starts[3]], ANSWER) else None


def lacks_content(text: str, content: str) -> bool:
    """True if a text has no visible character of the given Unicode categories, such as a text of dots."""
    return not any(unicodedata.category(each)[0] in content and each not in INVISIBLE for each in text)


def _only_pair(text: str, opening: str, closing: str) -> str | None:
    """The text between two tags; None unless each occurs exactly once, in order."""
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, end = text.find(opening) + len(opening), text.find(closing)
    return text[start:end].strip() if start <= end else None
