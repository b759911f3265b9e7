r"""Says where in a completion its answer is; every judge of a reward or an evaluation takes one of these readings.

| reading | the answer | who reads so |
|---|---|---|
| `tag` | the one `<answer>` | R1-Omni, VisualThinker-R1-Zero's prompt, Sokoban of LMM-R1, and the default |
| `boxed` | the one `\boxed{}` after the thought; another answer may stand in for it | RL-with-Cold-Start, EasyR1 |
| `tag_or_boxed` | in an `<answer>` its box or else its text; without that tag, the box | Metis-RISE, LMM-R1 |
| `boxed_tag_phrase` | the box, else the `<answer>`, else what follows `the answer is` or `it is` | ReVisual-R1 |
| `tag_or_text` | the `<answer>`; without that tag, all after the thought | MM-Eureka, VisualThinker-R1-Zero's code |
| `prose` | the last sentence of a text without tags, unless an earlier one contradicts it | models without any format |

- In a text without a box, `boxed` finds the same answer as `boxed_tag_phrase`, since it is as right as in a box. But
  its format is then not valid: only a box has the format of `boxed`.
- A phrase is an answer unless `prose` finds that the text contradicts itself.
- Under `tag_or_boxed`, a box beside the `<answer>` must say the same, or there is no answer.
- Under `tag_or_text`, a text with a box that it repeats says what is in the box, unless it denies, doubts, or names
  another value.

Papers and released code differ, and the readings differ from both:

- RL-with-Cold-Start (arXiv:2505.22334) takes the last of several boxes, also from the thought. Here boxes must agree,
  and a box in a thought is no answer. Its code pays nothing without a box.
- LMM-R1 (arXiv:2503.07536, math_verifier.py) asks for an `<answer>` with a box in it, and its code looks for a box in
  the whole completion, then for any LaTeX. Metis-RISE publishes its prompt alone.
- ReVisual-R1 (arXiv:2506.04207) says box, tag, phrase; one released version (examples/reward_function/math.py)
  reads boxes only.
- MM-Eureka (arXiv:2503.07365, reward_func_qwen_instruct.py) finds a pair of tags on one line only, and otherwise takes
  what follows the last `<answer>`, which without one is the whole completion, with its thought.

How the answer that was found is then judged (a letter, the text of an option, mathematics) is up to the judge.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.answers import bare, doubts, readings
from lightning_mmrl.prompts.boxes import boxes, only_box
from lightning_mmrl.prompts.prose import prose_answer
from lightning_mmrl.prompts.scanner import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, scan
from lightning_mmrl.prompts.values import values_of
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import Completion

# Linear in the text, since the phrases have no repetition.
_PHRASE = re.compile(r"\banswer(?: is|:| is:|=| =)|\u7b54\u6848(?:\u662f|\u4e3a|:|\uff1a)", re.IGNORECASE)
_STATEMENT = re.compile(r"(?:(?:so|thus|hence|therefore|then),? )?it(?: is|'s) (?=\S)", re.IGNORECASE)
_PHRASE_END = re.compile(r"[.!?](?:\s|$)|\u3002|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAnswer:
    """The answer of a completion, its thought, and whether the completion has the format that the reading expects.

    Under `tag` the format is valid as `scan` says, and under `boxed` if there is one box. Under any other reading it is
    valid if there is an answer.
    """

    text: str | None
    think: str | None
    valid: bool


def check_reading(reading: str) -> None:
    """Refuses an unknown reading.

    Raises:
        ConfigError: It is none of `READINGS`.
    """
    if reading not in READINGS:
        raise ConfigError(f"reading is {reading!r}, which is none{did_you_mean(reading, READINGS)}")


def find_answer(completion: Completion, reading: str = "tag", question: str = "") -> FoundAnswer:
    r"""The answer of a completion under a reading.

    Args:
        completion: The completion.
        reading: One of `READINGS`.
        question: The sample's question; prose may claim different values for what it asks.

    >>> text = r"<think>It may be $\boxed{6}$.</think> It is $\boxed{7}$."
    >>> [find_answer(Completion(text=text, num_tokens=9, truncated=False), each).text for each in ("tag", "boxed")]
    [None, '7']
    """
    scanned = scan(completion.text)
    text = READINGS[reading](completion, question)
    valid = text is not None
    if reading in ("tag", "boxed"):
        valid = scanned.valid if reading == "tag" else _box(completion) is not None
    return FoundAnswer(text=text, think=scanned.think, valid=valid)


def _box(completion: Completion) -> str | None:
    rest = _after_thought(completion.text)
    return None if rest is None else only_box(rest)


def _tag_or_boxed(completion: Completion, question: str) -> str | None:
    text = completion.text
    if not _has_tag(text):
        return _box(completion)
    answer = scan(text).answer
    if answer is None:
        return None
    stated = answer if boxes(answer) == [] else only_box(answer)
    rest = _after_thought(text) or ""
    start, end = rest.find(ANSWER_OPEN), rest.find(ANSWER_CLOSE)
    beside = boxes(f"{rest[: max(0, start)]} {rest[end + len(ANSWER_CLOSE) :]}" if end >= 0 else "")
    if stated is None or beside is None:
        return None
    said = {bare(said).casefold() for _, said in readings(stated)}
    return stated if all(bare(box).casefold() in said for box in beside) else None


def _boxed_tag_phrase(completion: Completion, question: str) -> str | None:
    rest = _after_thought(completion.text)
    if rest is None:
        return None
    if boxes(rest) != []:
        return only_box(rest)
    if _has_tag(completion.text):
        return scan(completion.text).answer
    last = prose_answer(replace(completion, text=rest), question)  # None if an earlier sentence contradicts it
    if last is None or _PHRASE.search(rest) is not None:
        return None if last is None else _phrase(rest)
    return last if _STATEMENT.match(last) is not None else None


def _tag_or_text(completion: Completion, question: str) -> str | None:
    if _has_tag(completion.text):
        return scan(completion.text).answer
    rest = None if completion.truncated else _after_thought(completion.text)
    if rest is None:
        return None
    box = only_box(rest)
    return box if box is not None and _only_says(rest, box) else rest.strip() or None


def _only_says(text: str, box: str) -> bool:
    """True if a text has the same box several times, and neither a doubt nor another value beside it."""
    contents = boxes(text) or []
    if len(contents) < 2 or set(contents) != {box}:
        return False
    beside = re.sub(rf"\\(?:boxed|fbox) ?\{{\s*{re.escape(box)}\s*\}}", " ", text)
    return "{" not in beside and not doubts(beside) and not any(values_of(beside.replace("$", " ")))


READINGS: Mapping[str, Callable[[Completion, str], str | None]] = {
    "tag": lambda completion, question: scan(completion.text).answer,
    "boxed": _boxed_tag_phrase,
    "tag_or_boxed": _tag_or_boxed,
    "boxed_tag_phrase": _boxed_tag_phrase,
    "tag_or_text": _tag_or_text,
    "prose": prose_answer,
}
"""Maps the name of a reading to a function of a completion and its question."""


def _has_tag(text: str) -> bool:
    return ANSWER_OPEN in text or ANSWER_CLOSE in text


def _after_thought(text: str) -> str | None:
    """The text after its only thought, or the whole text without any; None if thoughts are open or several."""
    opened, closed = text.count(THINK_OPEN), text.count(THINK_CLOSE)
    if not opened and not closed:
        return text
    # A prompt may have opened the thought, so a lone closing tag ends one.
    if closed != 1 or opened > 1 or text.find(THINK_OPEN) > text.find(THINK_CLOSE):
        return None
    return text[text.find(THINK_CLOSE) + len(THINK_CLOSE) :]


def _phrase(text: str) -> str | None:
    """What follows `the answer is`, up to the end of its sentence; None if two such phrases differ."""
    found = list(_PHRASE.finditer(text))
    ends = [each.start() for each in found[1:]] + [len(text)] * bool(found)
    stated = [
        " ".join(_PHRASE_END.split(text[each.end() : end].strip(), maxsplit=1)[0].split())
        for each, end in zip(found, ends, strict=True)
    ]
    return stated[0] if stated and stated[0] and len(set(stated)) == 1 else None
