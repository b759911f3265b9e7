r"""Says where in a completion its answer is; every judge of a reward or an evaluation takes one of these readings.

| reading | the answer | who reads so |
|---|---|---|
| `tag` | the one `<answer>` | R1-Omni, VisualThinker-R1-Zero's prompt, Sokoban of LMM-R1, and the default |
| `boxed` | the one `\boxed{}` after the thought | RL-with-Cold-Start, EasyR1 |
| `tag_or_boxed` | in an `<answer>` its box or else its text; without that tag, the box | Metis-RISE, LMM-R1 |
| `boxed_tag_phrase` | the box, else the `<answer>`, else what follows `the answer is` | ReVisual-R1 |
| `tag_or_text` | the `<answer>`; without that tag, all after the thought | MM-Eureka, VisualThinker-R1-Zero's code |
| `prose` | the last sentence of a text without tags, unless an earlier one contradicts it | models without any format |

Papers and released code differ, and the readings differ from both:

- RL-with-Cold-Start (arXiv:2505.22334) takes the last of several boxes, also from the thought. Here boxes must agree,
  and a box in a thought is no answer.
- LMM-R1 (arXiv:2503.07536, math_verifier.py) asks for an `<answer>` with a box in it, and its code looks for a box in
  the whole completion, then for any LaTeX. Metis-RISE publishes its prompt alone.
- ReVisual-R1 (arXiv:2506.04207) says box, tag, phrase; one released version (examples/reward_function/math.py)
  reads boxes only.
- MM-Eureka (arXiv:2503.07365, reward_func_qwen_instruct.py) finds a tag on one line only, and falls back to the whole
  completion.

How the answer that was found is then judged (a letter, the text of an option, mathematics) is up to the judge.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.boxes import boxes, only_box
from lightning_mmrl.prompts.prose import prose_answer
from lightning_mmrl.prompts.scanner import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN, scan
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import Completion

# Linear in the text, since the phrases have no repetition.
_PHRASE = re.compile(r"\banswer(?: is|:| is:|=| =)|\u7b54\u6848(?:\u662f|\u4e3a|:|\uff1a)", re.IGNORECASE)
_PHRASE_END = re.compile(r"[.!?](?:\s|$)|\u3002|\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundAnswer:
    """The answer of a completion, its thought, and whether the completion has the format that the reading expects.

    Under `tag` the format is valid as `scan` says. Under any other reading it is valid if there is an answer.
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
    return FoundAnswer(text=text, think=scanned.think, valid=scanned.valid if reading == "tag" else text is not None)


def _tag(completion: Completion, question: str) -> str | None:
    return scan(completion.text).answer


def _boxed(completion: Completion, question: str) -> str | None:
    rest = _after_thought(completion.text)
    return None if rest is None else only_box(rest)


def _tag_or_boxed(completion: Completion, question: str) -> str | None:
    if not _has_tag(completion.text):
        return _boxed(completion, question)
    answer = scan(completion.text).answer
    return answer if answer is None or boxes(answer) == [] else only_box(answer)


def _boxed_tag_phrase(completion: Completion, question: str) -> str | None:
    rest = _after_thought(completion.text)
    if rest is None:
        return None
    if boxes(rest) != []:
        return only_box(rest)
    if _has_tag(completion.text):
        return scan(completion.text).answer
    return None if completion.truncated else _phrase(rest)


def _tag_or_text(completion: Completion, question: str) -> str | None:
    if _has_tag(completion.text):
        return scan(completion.text).answer
    rest = None if completion.truncated else _after_thought(completion.text)
    return (rest or "").strip() or None


READINGS: Mapping[str, Callable[[Completion, str], str | None]] = {
    "tag": _tag,
    "boxed": _boxed,
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
