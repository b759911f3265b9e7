"""The prompts and targets of a conversation, and their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from lightning_mmrl.data.answer_columns import CHOSEN, REJECTED, RowError, pair_of
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate, media_tags
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.lessons import Lesson
from lightning_mmrl.types.records import Message, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt's turns after the template, and the answer that is learned, without the prefill; None for none."""

    turns: tuple[Message, ...]
    target: str | None

    @property
    def num_media(self) -> int:
        """Number of media in the prompt."""
        return sum(len(media_tags(turn.content)) for turn in self.turns)


@dataclass(slots=True, kw_only=True)
class Answered:
    """An encoded prompt and the tokens that follow it: targets, and the turns between them.

    Attributes:
        exchange: The latest prompt and target that these tokens hold.
        num_media: Number of media in the prompt.
        prompt: Result of `PromptEncoder.encode_prompt`.
        ids: Tokens after the prompt.
        mask: True for tokens of targets.
    """

    exchange: Exchange
    num_media: int
    prompt: Mapping[str, Tensor]
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)


def exchanges(
    sample: Sample, template: PromptTemplate, *, supervised: bool, lesson: Lesson = "turns"
) -> tuple[Exchange, ...]:
    """The prompts and targets of a sample, in order; without `supervised` its prompt alone.

    Every assistant turn that answers a user turn is a target. Of the lesson `last_turn` the earlier ones belong to the
    prompt. Of the lesson `pair` there are two, with one prompt: the chosen answer and the rejected one.

    Raises:
        DataError: There is no user turn or no target, or a target does not start with the prefill.
    """
    if supervised and lesson == "pair":
        return _of_pair(sample, template)
    ends = [len(sample.messages)]
    if supervised and lesson == "turns":
        roles = [message.role for message in sample.messages]
        pairs = enumerate(pairwise(roles[:-1]))
        ends = [place + 2 for place, pair in pairs if pair == ("user", "assistant")] + ends
    found = []
    for end in ends:
        try:
            turns, target = template.split_target(sample.messages[:end])
            found.append(Exchange(turns=template.apply(turns), target=target if supervised else None))
        except DataError as error:
            hint = "" if end == ends[-1] else "; or set mask_history=true for the stage, to learn the last turn alone"
            raise DataError(f"sample {sample.id}: {error}{hint}") from error
    if supervised and found[-1].target is None:
        raise DataError(f"sample {sample.id} has no assistant turn to learn from; add one or use it for RL")
    return tuple(found)


def _of_pair(sample: Sample, template: PromptTemplate) -> tuple[Exchange, ...]:
    """The two answers of a pair; as in RL, an assistant turn at the end of the messages is no part of the prompt."""
    asked = sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages
    found = []
    for side, answer in zip((CHOSEN, REJECTED), pair_of(sample), strict=True):
        try:
            turns, target = template.split_target((*asked, Message(role="assistant", content=answer)))
            found.append(Exchange(turns=template.apply(turns), target=target))
        except DataError as error:
            raise RowError(f"sample {sample.id}: {side!r}: {error}", sample.id) from error
    return tuple(found)


def check_turns(
    manifest: str, samples: Sequence[Sample], template: PromptTemplate, *, supervised: bool, lesson: Lesson = "turns"
) -> None:
    """Checks the turns of samples that will be prompts, or prompts with targets if `supervised`.

    Raises:
        DataError: A sample has no user turn or no target, or a target does not start with the prefill.
    """
    for sample in samples:
        try:
            exchanges(sample, template, supervised=supervised, lesson=lesson)
        except RowError as error:
            raise error.within(manifest) from error
        except DataError as error:
            raise DataError(f"{manifest}: {error}") from error


def encoded_pair(
    encoder: PromptEncoder, settings: PromptSettings, found: Sequence[Exchange], media: Sequence[Mapping[str, Tensor]]
) -> list[Answered]:
    """The tokens of the two answers of a pair, which share one prompt; see `encoded_exchanges`."""
    [chosen] = encoded_exchanges(encoder, settings, found[:1], media)
    other = found[1]
    ids = encoder.encode_target(other.target or "")
    rejected = Answered(
        exchange=other, num_media=chosen.num_media, prompt=chosen.prompt, ids=ids, mask=[True] * len(ids)
    )
    return [chosen, rejected]


def encoded_exchanges(
    encoder: PromptEncoder, settings: PromptSettings, found: Sequence[Exchange], media: Sequence[Mapping[str, Tensor]]
) -> list[Answered]:
    """The tokens of exchanges, with as few prompts as possible.

    An exchange follows the one before it in one sequence where its own prompt would be the same tokens. It gets a
    prompt of its own where a medium lies between, or where the template writes earlier turns in another way once others
    follow: without their thoughts, say, or without the suffix of the last question. So each target is learned after
    exactly the tokens after which the model will be asked for it.

    Args:
        encoder: Of the model.
        settings: Of the prompts.
        found: Prompts and targets of one sample.
        media: Encoded media of the sample, in the order of their tags.

    Raises:
        DataError: A text holds a control token, or takes more positions than the model has.
    """
    parts: list[Answered] = []
    for each in found:
        between = _between(encoder, settings, parts[-1].exchange, each) if parts else None
        if between is None:
            prompt = encoder.encode_prompt(each.turns, settings.prefill, media[: each.num_media], settings.raw)
            parts.append(Answered(exchange=each, num_media=each.num_media, prompt=prompt))
        ids, gap = [] if each.target is None else encoder.encode_target(each.target), between or []
        parts[-1].exchange = each
        parts[-1].ids += [*gap, *ids]
        parts[-1].mask += [False] * len(gap) + [True] * len(ids)
    return parts


def _between(encoder: PromptEncoder, settings: PromptSettings, before: Exchange, after: Exchange) -> list[int] | None:
    """Tokens between two targets, or None if the second one needs a prompt of its own."""
    if before.target is None or before.num_media != after.num_media:
        return None
    return encoder.encode_continuation(before.turns, before.target, after.turns, settings.prefill)
