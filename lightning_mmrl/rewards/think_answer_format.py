"""Format reward: a thought, then an answer, each in its tags, and nothing else."""

from dataclasses import dataclass

from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkAnswerFormat:
    """1.0 for `<think>...</think><answer>...</answer>` with single, ordered, non-empty tags, else 0.0.

    This is the format reward of arXiv:2501.12948, section 2.2.2.

    The thought must contain a letter or a digit of any script; a symbol or picture is not enough. It must have at least
    `min_think_characters` characters. MM-EUREKA's reward for base models requires 300 (arXiv:2503.07365,
    examples/scripts of its repository).

    **Deviations** from R1-Omni's reward (arXiv:2503.05379): nested, duplicated and empty tags earn 0, and the time is
    linear in the text.

    >>> reward = ThinkAnswerFormat()
    >>> sample = Sample(id="clip", messages=())
    >>> reward(sample, Completion(text="<think>A smile.</think> <answer>happy</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<answer>happy</answer>", num_tokens=3, truncated=False))
    0.0
    """

    min_think_characters: int = 0

    def __call__(self, sample: Sample, completion: Completion) -> float:
        scanned = scan(completion.text)
        return float(scanned.valid and len(scanned.think or "") >= self.min_think_characters)
