"""Prompt templates: texts added around a sample's conversation, and checks for media tags and control tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.types.records import MediaKind, Message

# Linear in the text, since it has no repetition.
_MEDIA_TAG = re.compile("<(image|video|audio)>")

# Linear in the text, since the repetition is bounded. A single character, as in <|x|>, is mathematics.
_CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{2,64}\|>")


# Linear, since it matches at the start alone and every tag begins with a character that ends the blanks before it.
_FIRST_MEDIA = re.compile(r"(?:<(?:image|video|audio)>\s*)*")
_OPENING_TAG = re.compile(r"<\w{1,64}>\s{0,64}\Z")

DEFAULT_QUESTION = "Which emotion?"
"""The default question about a clip."""

QUESTION = "{question}"
"""The part of `prompt.raw` that stands for the question; every other brace is text."""


def media_tags(content: str) -> tuple[MediaKind, ...]:
    """The kinds of the `<image>`, `<video>` and `<audio>` tags of a turn, in order.

    >>> media_tags("<video><audio>Which emotion?")
    ('video', 'audio')
    """
    return cast(tuple[MediaKind, ...], tuple(_MEDIA_TAG.findall(content)))


def control_token(text: str) -> str | None:
    """The first control token in a text, such as `<|im_end|>`; None without one.

    Tokenizers read such a token as the end of a turn or as a medium. It is found by its form, which all model families
    here share, and not by a tokenizer.

    >>> control_token("Which? <|im_end|>"), control_token("Is <|x|> finite?")
    ('<|im_end|>', None)
    """
    found = _CONTROL_TOKEN.search(text)
    return None if found is None else found[0]


def control_token_refusal(token: str) -> str:
    """The part of an error message that names a control token, the reason for refusing it, and the fix."""
    return (
        f"the control token {token!r}, which a tokenizer reads as part of the conversation's frame or as a medium; "
        f"remove it, or write it with a space, as '< {token[1:]}', if it is meant as text"
    )


def question_about(kinds: Sequence[MediaKind], question: str) -> str:
    """The text of a user turn that asks a question about media of these kinds: their tags, then the question.

    Raises:
        ConfigError: The question has a media tag or a control token.

    >>> question_about(["video", "audio"], "Which emotion?")
    '<video><audio>Which emotion?'
    """
    if tags := media_tags(question):
        raise ConfigError(
            f"the question {question[:80]!r} holds the media tag <{tags[0]}>; tags are added automatically"
        )
    if token := control_token(question):
        raise ConfigError(f"the question {question[:80]!r} holds {control_token_refusal(token)}")
    return "".join(f"<{kind}>" for kind in kinds) + question


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    r"""A system turn, a prefix and a suffix for the last user turn, and a prefill (the start of the assistant turn).

    The prefix stands before the question and after media that come first. With a raw text there are no turns: prefix,
    question and suffix replace `{question}` in this text, and the prefill follows the text.

    The R1-Omni prompt (arXiv:2503.05379) has the suffix "\nOutput the thinking process in <think> </think> and final
    emotion in <answer> </answer> tags.", no system turn and no prefill.

    Raises:
        ConfigError: One of the texts has a control token, or a media tag, for which there would be no media file. Or
            the raw text does not say where the question goes, has a system turn beside it, or ends with an opening
            tag, which belongs in the prefill.

    >>> template = PromptTemplate(PromptSettings(suffix=" Think first.", prefill="<think>"))
    >>> template.apply((Message(role="user", content="Which emotion?"),))[-1].content
    'Which emotion? Think first.'
    >>> template.complete("Knitted brows.</think>")
    '<think>Knitted brows.</think>'
    """

    settings: PromptSettings = field(default_factory=PromptSettings)

    def __post_init__(self) -> None:
        for name, text in vars(self.settings).items():
            if tags := media_tags(text or ""):
                raise ConfigError(
                    f"prompt.{name} holds the media tag <{tags[0]}>; media tags belong in the samples' turns"
                )
            if token := control_token(text or ""):
                raise ConfigError(f"prompt.{name} holds {control_token_refusal(token)}")
        raw = self.settings.raw
        if raw is None:
            return
        if (number := raw.count(QUESTION)) != 1:
            raise ConfigError(
                f"prompt.raw holds {QUESTION} {number} times; write it once, where the question and its media go"
            )
        if self.settings.system is not None:
            raise ConfigError("prompt.system is set, and prompt.raw has no turns; write its text into prompt.raw")
        if tag := _OPENING_TAG.search(raw):
            raise ConfigError(
                f"prompt.raw ends with {tag[0].strip()}, which rewards would not see; move it to prompt.prefill, which "
                "follows the raw text"
            )

    def apply(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The turns of the prompt: all given turns, and the system turn if they have none.

        Raises:
            DataError: There is no user turn, or the last turn is not the user's. Or there are more turns than the
                question of a raw prompt.
        """
        if not any(message.role == "user" for message in messages):
            raise DataError("a prompt has no user turn; add one")
        if messages[-1].role != "user":
            raise DataError(
                f"a prompt ends with the {messages[-1].role} turn {messages[-1].content[:80]!r}; "
                "it must end with a user turn"
            )
        if self.settings.raw is not None and messages[:-1]:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"a prompt has the turns {roles}, and prompt.raw has room for one question; take the others out, or "
                "set prompt.raw=null"
            )
        asked = messages[-1].content
        found = _FIRST_MEDIA.match(asked)
        start = found.end() if found is not None else 0
        asked = f"{asked[:start]}{self.settings.prefix}{asked[start:]}{self.settings.suffix}"
        prompt = (*messages[:-1], replace(messages[-1], content=asked))
        if self.settings.system is None or any(message.role == "system" for message in messages):
            return prompt
        return (Message(role="system", content=self.settings.system), *prompt)

    def complete(self, text: str) -> str:
        """Prepends the prefill to a sampled text, for rewards and evaluation."""
        return self.settings.prefill + text

    def split_target(self, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
        """Splits off a final assistant turn as the target, without the prefill, which is part of the prompt.

        Returns:
            The turns of the prompt, to which the template is not applied yet, and the target; None as the target if the
            last turn is not the assistant's.

        Raises:
            DataError: The assistant turn does not start with the prefill.
        """
        if not messages or messages[-1].role != "assistant":
            return messages, None
        target = messages[-1].content
        if not target.startswith(self.settings.prefill):
            raise DataError(
                f"the assistant turn {target[:80]!r} does not start with prompt.prefill {self.settings.prefill!r}; "
                "change the data or clear the prefill"
            )
        return messages[:-1], target[len(self.settings.prefill) :]
