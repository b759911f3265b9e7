r"""Format reward: a thought in its tags, then a box."""

from dataclasses import dataclass

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.reading import find_answer
from lightning_mmrl.prompts.scanner import THINK_OPEN, THOUGHT, lacks_content
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkBoxedFormat:
    r"""1.0 for `<think>...</think>` at the start and a `\boxed{...}` after it, which may be repeated; else 0.0.

    This is the format that EasyR1 and ReVisual-R1 (arXiv:2506.04207, examples/reward_function/math.py) ask for; the
    release of ReVisual-R1 only logs it, and RL-with-Cold-Start (arXiv:2505.22334) rewards no format at all. The thought
    must have a letter or a digit and at least `min_think_characters` characters.

    **Deviations**: tags may not be repeated, thought and box may not be empty, boxes must agree, and time is linear.

    >>> reward = ThinkBoxedFormat()
    >>> sample = Sample(id="q1", messages=())
    >>> [
    ...     reward(sample, Completion(text=text, num_tokens=9, truncated=False))
    ...     for text in (r"<think>3 + 4</think>So $\boxed{7}$.", r"<think>\boxed{7}</think>", r"\boxed{7}")
    ... ]
    [1.0, 0.0, 0.0]
    """

    min_think_characters: int = 0

    def __post_init__(self) -> None:
        if self.min_think_characters < 0:
            raise ConfigError(f"min_think_characters is {self.min_think_characters}; it must be at least 0")

    def __call__(self, sample: Sample, completion: Completion) -> float:
        if not completion.text.lstrip().startswith(THINK_OPEN):
            return 0.0
        found = find_answer(completion, "boxed")
        if found.think is None or lacks_content(found.think, THOUGHT) or not (found.valid and found.text):
            return 0.0
        return float(len(found.think) >= self.min_think_characters)
