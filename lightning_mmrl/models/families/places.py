"""The media of a prompt that have no place in its text yet."""

from collections.abc import Iterator, Mapping

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.families.encoder import Encoded
from lightning_mmrl.types.records import MediaKind

Waiting = Mapping[MediaKind, Iterator[Encoded]]
"""The encoded media that have no place yet."""


def next_medium(waiting: Waiting, kind: MediaKind) -> Encoded:
    """The next medium of a kind.

    Raises:
        MediaError: None of this kind is left.
    """
    medium = next(waiting[kind], None)
    if medium is None:
        raise MediaError(f"a prompt has more places for <{kind}> media than media; mark each medium with its tag once")
    return medium
