"""Format reward: a thought, then an answer, each in its tags, and nothing else."""

from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkAnswerFormat:
    """1.0 for `<think>...</think><answer>...</answer>` with single, ordered, non-empty tags, else 0.0.

    This is the format reward of arXiv:2501.12948, section 2.2.2.

    The thought must contain a letter or a digit of any script; a symbol or picture is not enough. It must have at least
    `min_think_characters` characters. With `allow_around`, text may stand before the thought and after the answer, but
    not between them.

    MM-EUREKA's reward (arXiv:2503.07365, reward_func_qwen_instruct.py) allows text around, with a weight of 0.5 (1 from
    a base model); the one for base models also requires 300 characters of thought. LMM-R1's (arXiv:2503.07536,
    math_verifier.py) has a weight of 0.5 and allows no text around, nor whitespace between thought and answer.

    **Deviations** from R1-Omni's reward (arXiv:2503.05379), for which there is `LenientFormat`: nested, duplicated and
    empty tags earn 0, and the time is linear in the text. From MM-EUREKA's: a thought or an answer of punctuation alone
    earns 0; whitespace at the ends of a thought counts for no length. From LMM-R1's: whitespace between thought and
    answer is allowed.

    >>> reward = ThinkAnswerFormat()
    >>> sample = Sample(id="clip", messages=())
    >>> reward(sample, Completion(text="<think>A smile.</think> <answer>happy</answer>", num_tokens=9, truncated=False))
    1.0
    >>> reward(sample, Completion(text="<answer>happy</answer>", num_tokens=3, truncated=False))
    0.0
    """

    min_think_characters: int = 0
    allow_around: bool = False

    def __post_init__(self) -> None:
        if self.min_think_characters < 0:
            raise ConfigError(f"min_think_characters is {self.min_think_characters}; it must be at least 0")

    def __call__(self, sample: Sample, completion: Completion) -> float:
        scanned = scan(completion.text, allow_around=self.allow_around)
        return float(scanned.valid and len(scanned.think or "") >= self.min_think_characters)
