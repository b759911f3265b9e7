"""The prompt that asks for an answer without a thought: its prefill closes an empty thought and opens the answer."""

from dataclasses import replace

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.scanner import ANSWER_OPEN, THINK_CLOSE, THINK_OPEN
from lightning_mmrl.settings.data import PromptSettings

BOX_OPEN = "\\boxed{"
_ANSWER_OF = {"boxed": BOX_OPEN, "boxed_tag_phrase": BOX_OPEN, "prose": None}
"""The opening of the answer under a reading, `<answer>` under any other; prose has neither one nor a thought."""
PLACEHOLDER = "thought"


def without_thought(prompt: PromptSettings, reading: str) -> PromptSettings:
    r"""The prompt with a prefill that leaves only the answer to be sampled.

    A prompt asks for a thought if one of its texts names `<think>`, or if it names no tags at all and the task's
    reading is `tag`, whose valid format has a thought; such a prompt is for a model that was trained to write the tags.

    Args:
        prompt: The prompt.
        reading: The reading of the task that judges the answers (`prompts.reading.READINGS`).

    Raises:
        ConfigError: The prompt asks for no thought, the reading has no tag that opens an answer, or the prompt's own
            prefill has begun or ended the thought.

    >>> without_thought(PromptSettings(prefill="<think>"), "tag").prefill
    '<think></think><answer>'
    >>> without_thought(PromptSettings(suffix="Think in <think> </think>, then box."), "boxed").prefill
    '<think></think>\\boxed{'
    """
    texts = "\n".join(filter(None, (prompt.system, prompt.prefix, prompt.suffix, prompt.prefill, prompt.raw)))
    opens = _ANSWER_OF.get(reading, ANSWER_OPEN)
    asks = THINK_OPEN in texts or (reading == "tag" and ANSWER_OPEN not in texts)
    if opens is None or not asks:
        raise ConfigError(
            f"no_think is true, and the prompt asks for no thought in {THINK_OPEN} {THINK_CLOSE} before an answer that "
            f"is read by {reading!r}; choose a prompt with a thought, or set no_think to false"
        )
    before, thinks, begun = prompt.prefill.partition(THINK_OPEN)
    if begun.strip() or (not thinks and THINK_CLOSE in before):
        raise ConfigError(
            f"no_think is true, and the prompt's prefill {prompt.prefill!r} has begun or ended the thought already; "
            "shorten the prefill, or set no_think to false"
        )
    return replace(prompt, prefill=f"{before}{THINK_OPEN}{begun}{THINK_CLOSE}{opens}")


def with_placeholder(text: str) -> str:
    """A completion whose empty thought has a word, so that its format is judged apart from the thought it was denied.

    >>> with_placeholder("<think></think><answer>sad</answer>")
    '<think>thought</think><answer>sad</answer>'
    """
    return text.replace(THINK_OPEN, f"{THINK_OPEN}{PLACEHOLDER}", 1)
