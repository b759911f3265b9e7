r"""Lenient format reward: R1-Omni's regular expression, in linear time."""

from dataclasses import dataclass

from lightning_mmrl.prompts.scanner import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class LenientFormat:
    r"""1.0 if `<think>.*?</think>\s*<answer>.*?</answer>` matches the whole text, else 0.0.

    This is the format reward of arXiv:2503.05379 as released (HumanMLLM/R1-Omni, src/r1-v/src/open_r1/grpo.py). It
    accepts empty, nested and repeated tags, and a thought of one symbol. Use it only to reproduce that recipe, and
    prefer `ThinkAnswerFormat` otherwise.

    **Deviations**: it matches the same texts, but in linear time; the regular expression takes cubic time on repeated
    tags.

    >>> reward = LenientFormat()
    >>> sample = Sample(id="clip", messages=())
    >>> reward(sample, Completion(text="<think></think><answer></answer>", num_tokens=4, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<think>A smile.<answer>happy</answer>", num_tokens=9, truncated=False))
    0.0
    """

    def __call__(self, sample: Sample, completion: Completion) -> float:
        text = completion.text
        if not (text.startswith(THINK_OPEN) and text.endswith(ANSWER_CLOSE)):
            return 0.0
        # An `<answer>` follows a `</think>` with at most whitespace between; runs of whitespace are read once.
        inner = text[len(THINK_OPEN) : -len(ANSWER_CLOSE)]
        position = inner.find(THINK_CLOSE)
        while position >= 0:
            end = position = position + len(THINK_CLOSE)
            while end < len(inner) and inner[end].isspace():
                end += 1
            if inner.startswith(ANSWER_OPEN, end):
                return 1.0
            position = inner.find(THINK_CLOSE, end)
        return 0.0
