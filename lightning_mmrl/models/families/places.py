"""Puts media where the chat template left places for them: one placeholder token for each feature row."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.families.encoder import Encoded
from lightning_mmrl.models.positions import Span
from lightning_mmrl.types.records import MediaKind

Waiting = Mapping[MediaKind, Iterator[Encoded]]
"""The encoded media that have no place yet."""


def waiting_media(
    text: str, tokens: Mapping[MediaKind, str], media: Sequence[Encoded], medium_keys: Mapping[MediaKind, str]
) -> Waiting:
    """The media of each kind in order, after comparing their numbers with the media tokens of a rendered conversation.

    Args:
        text: The conversation.
        tokens: The placeholder of each kind.
        media: Encoded media in the order of the prompt.
        medium_keys: For each kind, a key that its media have and no others.

    Raises:
        MediaError: A kind has more or fewer tokens than media.
    """
    waiting: dict[MediaKind, Iterator[Encoded]] = {}
    for kind, token in tokens.items():
        items = [item for item in media if medium_keys[kind] in item]
        if (found := text.count(token)) != len(items):
            raise MediaError(
                f"a prompt has {found} {token} tokens for {len(items)} media; mark each medium with its tag"
            )
        waiting[kind] = iter(items)
    return waiting


def next_medium(waiting: Waiting, kind: MediaKind) -> Encoded:
    """The next medium of a kind.

    Raises:
        MediaError: None of this kind is left.
    """
    medium = next(waiting[kind], None)
    if medium is None:
        raise MediaError(f"a prompt has more places for <{kind}> media than media; mark each medium with its tag once")
    return medium


def fill_places(
    text: str, places: Sequence[str], insert: Callable[[str], tuple[str, Sequence[Span]]]
) -> tuple[str, list[Span]]:
    """A rendered conversation with its media inserted, and their spans.

    Args:
        text: The conversation.
        places: Texts that the chat template writes where media go; a longer text before the texts it contains.
        insert: Gives the text and the spans for a place.
    """
    # With a group around the pattern, split gives text and places in turns.
    pieces = re.split("(" + "|".join(map(re.escape, places)) + ")", text)
    spans: list[Span] = []
    for index in range(1, len(pieces), 2):
        pieces[index], more = insert(pieces[index])
        spans += more
    return "".join(pieces), spans
