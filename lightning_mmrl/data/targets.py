"""The tokens of a conversation's prompts and targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_mmrl.data.exchanges import Exchange
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.settings.data import PromptSettings


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
