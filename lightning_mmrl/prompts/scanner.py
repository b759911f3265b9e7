r"""Strict, linear-time scanner of `<think>...</think><answer>...</answer>`.

Model output is hostile text: the usual pattern `<think>.*?</think>\s*<answer>.*?</answer>` takes cubic time on
repeated tags and accepts nested, duplicated and empty ones (the format reward of HumanMLLM/R1-Omni,
src/r1-v/src/open_r1/grpo.py). Only `str.count`, `str.find` and one pass over characters are used here.
"""

import unicodedata
from dataclasses import dataclass

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
THOUGHT, ANSWER = "LN", "LNS"
"""Unicode categories that say something: letters and numbers of any script; as an answer also a symbol."""
INVISIBLE = "\u115f\u1160\u3164\uffa0\u2800"
"""Letters and symbols without a picture: Hangul fillers, a Braille pattern without dots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedAnswer:
    """What a completion thought and answered, and whether it kept the format.

    `think` and `answer` have outer whitespace removed. They are filled whenever their pair is unambiguous, also if the
    format is broken elsewhere, so that label accuracy and format are measured separately. `problem` is the first reason
    why the text is not valid, None if it is.
    """

    think: str | None
    answer: str | None
    valid: bool
    problem: str | None


def scan(text: str) -> ScannedAnswer:
    """Scans one completion, with any pre-filled tag prepended.

    Valid means: each of the four tags exactly once and in order, only whitespace outside of them, at least one letter
    or digit in the thought and one letter, digit or symbol in the answer: `+` may answer, but is no thought.
    Tags are matched exactly; `<Think>` is ordinary text.

    `answer` is filled if there is exactly one `<answer>` and one `</answer>`, in order, with no think tag between
    them, and the pair does not lie inside a thought (no `</think>` comes next after it).

    >>> scan("<think>Lowered brows.</think><answer>angry</answer>").answer
    'angry'
    >>> scan("<think>Lowered brows. <answer>angry</answer>").problem
    'missing </think>'
    >>> scan("<think>+</think><answer>angry</answer>").problem
    'empty thought'
    """
    problem = _problem(text)
    return ScannedAnswer(
        think=_only_pair(text, THINK_OPEN, THINK_CLOSE), answer=_answer(text), valid=problem is None, problem=problem
    )


def _problem(text: str) -> str | None:
    for tag in TAGS:
        count = text.count(tag)
        if count != 1:
            return f"missing {tag}" if count == 0 else f"duplicate tag {tag}"
    starts = [text.find(tag) for tag in TAGS]
    if starts != sorted(starts):
        return _order_problem(*starts)
    ends = [start + len(tag) for start, tag in zip(starts, TAGS, strict=True)]
    if (text[: starts[0]] + text[ends[1] : starts[2]] + text[ends[3] :]).strip():
        return "text outside tags"
    if _blank(text[ends[0] : starts[1]], THOUGHT):
        return "empty thought"
    return "empty answer" if _blank(text[ends[2] : starts[3]], ANSWER) else None


def _order_problem(think_open: int, think_close: int, answer_open: int, answer_close: int) -> str:
    """Names the fault of four single tags that are out of order: overlapping pairs are "nested"."""
    paired = think_open < think_close and answer_open < answer_close
    overlapping = think_open < answer_close and answer_open < think_close
    return "nested" if paired and overlapping else "wrong order"


def _blank(text: str, content: str) -> bool:
    """True without any character of these categories: neither dots nor zero-width characters say something."""
    return not any(unicodedata.category(each)[0] in content and each not in INVISIBLE for each in text)


def _only_pair(text: str, opening: str, closing: str) -> str | None:
    """The text between two tags that each occur once and in order."""
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    start, end = text.find(opening) + len(opening), text.find(closing)
    return text[start:end].strip() if start <= end else None


def _answer(text: str) -> str | None:
    answer = _only_pair(text, ANSWER_OPEN, ANSWER_CLOSE)
    if answer is None or THINK_OPEN in answer or THINK_CLOSE in answer:
        return None
    rest = text[text.find(ANSWER_CLOSE) :]
    closed, opened = rest.find(THINK_CLOSE), rest.find(THINK_OPEN)
    inside_thought = closed >= 0 and not 0 <= opened < closed
    return None if inside_thought else answer
