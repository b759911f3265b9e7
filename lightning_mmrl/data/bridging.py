"""Carries thoughts from text to media, as Vision-R1 does (arXiv:2503.06749, section 3.3.1): describe, reason, reword.

**Deviations**: the describing model never sees the answer, which the paper gives it for its first draft.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from lightning_mmrl.data.manifest_lines import manifest_line
from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.data.routing import prompt_turns
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.settings.bridge import DESCRIPTION, QUESTION, BridgeSettings
from lightning_mmrl.types.records import Message, Sample

ANSWER = "bridge"
"""End of the id of a trace."""


def text_question(row: RolloutRow, settings: BridgeSettings) -> Sample | str:
    """Returns a prompt without media, made of its first whole description and its question; or why there is none."""
    described = [each.text.strip() for each in row.completions if not each.truncated or settings.debugging]
    description = next((text for text in described if text), None)
    if description is None:
        return "no_description"
    turns = prompt_turns(row.sample)
    question = turns[-1].content
    for kind in media_tags(question):
        question = question.replace(f"<{kind}>", "")
    before, _, rest = settings.wording.partition(DESCRIPTION)
    between, _, after = rest.partition(QUESTION)
    content = f"{before}{description}{between}{question.strip()}{after}"
    sample = replace(row.sample, messages=(Message(role="user", content=content),), media=())
    try:
        manifest_line(sample)
    except LineError:
        return "unwritable"
    return sample


def broken_rule(text: str, settings: BridgeSettings) -> str | None:
    """Returns the rule that a trace breaks; None if it breaks none.

    >>> broken_rule("The Description is blurred.", BridgeSettings(forbid=["description is blurred"]))
    'forbidden'
    """
    if len(text) < settings.fewest_characters:
        return "too_short"
    if settings.most_characters is not None and len(text) > settings.most_characters:
        return "too_long"
    folded = text.casefold()
    return "forbidden" if any(phrase.casefold() in folded for phrase in settings.forbid) else None


def reworded(text: str, phrases: Mapping[str, str]) -> str:
    """Replaces whole phrases, the longest first; a phrase in another one's replacement is not replaced again.

    >>> reworded("The description says 4, so the descriptions agree.", {"the description": "the image"})
    'The image says 4, so the descriptions agree.'
    """
    if not phrases:
        return text
    known = {phrase.casefold(): new for phrase, new in phrases.items()}
    whole = (_whole(phrase) for phrase in sorted(phrases, key=len, reverse=True))

    def new(found: re.Match[str]) -> str:
        word = known[found[0].casefold()]
        return word[:1].upper() + word[1:] if found[0][:1].isupper() else word

    return re.sub("|".join(whole), new, text, flags=re.IGNORECASE)


def _whole(phrase: str) -> str:
    """A pattern for a phrase that is no part of a longer word."""
    start, end = (r"(?<!\w)" if phrase[0].isalnum() else ""), (r"(?!\w)" if phrase[-1].isalnum() else "")
    return f"{start}{re.escape(phrase)}{end}"


def trace_of(prompt: Sample, answer: str, settings: BridgeSettings) -> Sample | str:
    """Returns the sample that teaches an answer to a prompt with its media, reworded; or why there is none."""
    broken = broken_rule(answer, settings)
    if broken is not None and not settings.debugging:
        return broken
    target = Message(role="assistant", content=reworded(answer, settings.reword))
    sample = replace(prompt, id=f"{prompt.id}#{ANSWER}", messages=(*prompt_turns(prompt), target))
    try:
        manifest_line(sample)
    except LineError:
        return "unwritable"
    return sample
