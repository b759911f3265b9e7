"""Renders conversations through a checkpoint's chat template, which is foreign code: a killable worker runs it.

In the sandbox of transformers a template cannot open files or import modules, but its loops and the size of its text
have no bound. Both may depend on the conversation, so trying a template once would prove nothing.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.workers.pool import DeadlinePool
from lightning_mmrl.workers.serving import Limits

DEADLINE_S = 5.0
"""A template takes milliseconds. A rendering that exceeds the deadline is repeated: the machine may have been busy."""
MEMORY_BYTES = 2**30
MOST_CHARACTERS = 2**24
"""Maximum number of characters of a rendered conversation: about four per token of a million-token context."""

OWN = frozenset(
    {
        "60c02df4e16dc04cc258b84fab086105b1288e0ba8e932ab6fac323a7c3cab05",
        "dcb7470f6f18ca9f30cf93e5ae361f3e57465bb289749c54104c438177539478",
    }
)
"""SHA-256 of the templates that this package writes for its tiny models. They need no worker."""

_Item = tuple[str, Sequence[Mapping[str, Any]], Mapping[str, Any]]

_lock = threading.Lock()
_pools: list[DeadlinePool] = []
"""Holds the worker of this process, which starts when a template first needs it; empty until then."""


def render_chat(processor: Any, tokenizer: Any, chat: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as `apply_chat_template` gives it, up to the opening of the assistant turn.

    Args:
        processor: The holder of the template: a processor, or the tokenizer of a text-only family.
        tokenizer: The tokenizer, whose special tokens templates may use.
        chat: The turns.

    Raises:
        StageError: There is no template, or it takes too long or too much memory.
        DataError: The template refuses the conversation.
    """
    template = processor.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise StageError("the checkpoint has no chat template of its own; add its chat_template.jinja")
    item = (template, chat, dict(tokenizer.special_tokens_map))
    if hashlib.sha256(template.encode()).hexdigest() in OWN:
        return rendered(item)
    with _lock:
        outcome = _pool().map_patiently([item])[0]
    if outcome.lost:
        raise StageError(
            f"the chat template of the checkpoint did not render a conversation within {DEADLINE_S:g} s, "
            f"{outcome.error}; look for an endless loop in its chat_template.jinja"
        )
    if outcome.error is not None:
        raise DataError(f"the chat template of the checkpoint refuses a conversation: {outcome.error}")
    return outcome.value


def content_parts(content: str) -> list[dict[str, str]]:
    """A turn's text split at its media tags, as chat templates expect it.

    >>> content_parts("<image>How many?")
    [{'type': 'image'}, {'type': 'text', 'text': 'How many?'}]
    """
    parts: list[dict[str, str]] = []
    rest = content
    for kind in media_tags(content):
        before, rest = rest.split(f"<{kind}>", 1)
        if before:
            parts.append({"type": "text", "text": before})
        parts.append({"type": kind})
    if rest:
        parts.append({"type": "text", "text": rest})
    return parts


def rendered(item: _Item) -> str:
    """Renders a conversation in this process.

    Raises:
        ValueError: The text has more than `MOST_CHARACTERS`.
    """
    template, chat, tokens = item
    conversations: Any = [list(chat)]
    # transformers declares that it returns one text, but returns one for each conversation.
    texts: Any = render_jinja_template(conversations, chat_template=template, add_generation_prompt=True, **tokens)
    text = texts[0][0]
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the rendered text has {len(text)} characters, more than the limit of {MOST_CHARACTERS}")
    return text


def _pool() -> DeadlinePool:
    if not _pools or _pools[0].closed:
        limits = Limits(memory_bytes=MEMORY_BYTES)
        _pools[:] = [
            DeadlinePool(rendered, num_workers=1, deadline_s=DEADLINE_S, limits=limits, process_name="mmrl-template")
        ]
    return _pools[0]
