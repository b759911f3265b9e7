"""The position ids of a prompt: one walk over its text and media, for every family, in scoring and generation alike.

The decoders' rotary embedding has a temporal, a height and a width axis (arXiv:2409.12191, section 2.1). Text moves
along all three at once, and a medium spreads over them from where it starts. The position of the first text token after
a medium depends on a rule. In the original recipe and in vLLM it is the largest position so far plus one. transformers
takes the start of the medium plus the longer side of its picture, even if a clip of many small frames is longer along
the temporal axis.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.model import PositionRule
from lightning_mmrl.types.records import MediaKind

Clock = Callable[[int, Tensor], Tensor]
"""Temporal positions [T] of a clip, from its number of temporal patches T and the seconds between two of them."""


def patch_clock(num_patches: int, seconds: Tensor) -> Tensor:
    """One position per temporal patch, however long it lasts."""
    return torch.arange(num_patches)


def interval_clock(num_patches: int, seconds: Tensor, *, per_second: float) -> Tensor:
    """`per_second` positions a second; as in transformers' Qwen2.5-VL, the interval is rounded to float32 first."""
    return (torch.arange(num_patches) * (per_second * seconds.float())).long()


def time_clock(num_patches: int, seconds: Tensor, *, per_second: float) -> Tensor:
    """`per_second` positions a second; as in the omni thinker's code, each patch's time is rounded to float32 first."""
    return (torch.arange(num_patches) * seconds.float() * per_second).long()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The n tokens of one medium in a prompt.

    `kinds` gives for each token the kind of its feature row, or None for a marker around the medium. `offsets` are
    positions relative to the start of the medium, and `step` is the offset of the next token.
    """

    kinds: tuple[MediaKind | None, ...]
    offsets: Int[Tensor, "3 n"]
    step: int

    @property
    def num_markers(self) -> int:
        """Markers before the first placeholder.

        Raises:
            MediaError: There is none: the medium is too short or too small to make a token.
        """
        first = next((index for index, kind in enumerate(self.kinds) if kind is not None), None)
        if first is None:
            raise MediaError("a medium makes no token: it is too short or too small; use a longer or larger one")
        return first


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLayout:
    """How a family spreads its media over tokens and positions.

    Attributes:
        rule: Position of the first text token after a medium.
        merge_size: Patches along each side of the square that makes one feature row.
        clock: How a clip's time becomes temporal positions.
        stock_counts_time: Whether transformers starts the text after this family's clips past their temporal
            positions too; False: it counts the longer side only.
        chunk: Positions in a turn of a clip that is interleaved with its sound.
    """

    rule: PositionRule
    merge_size: int = 2
    clock: Clock = patch_clock
    stock_counts_time: bool = False
    chunk: int = 50

    def picture(self, grid: Sequence[int]) -> Span:
        """A picture of patches (1, height, width)."""
        return self._grid("image", torch.zeros(1, dtype=torch.long), grid)

    def clip(self, grid: Sequence[int], seconds: Tensor) -> Span:
        """A clip of patches (time, height, width), with `seconds` from one temporal patch to the next."""
        return self._grid("video", self.clock(grid[0], seconds), grid)

    def frames(self, grid: Sequence[int]) -> tuple[Span, ...]:
        """A clip of patches (time, height, width) as a row of pictures, with text between them."""
        return (self._grid("video", torch.zeros(1, dtype=torch.long), grid),) * grid[0]

    def sound(self, num_tokens: int) -> Span:
        """A sound, which moves like text: one position per token of 40 ms."""
        return Span(kinds=("audio",) * num_tokens, offsets=torch.arange(num_tokens).expand(3, -1), step=num_tokens)

    def sounding_clip(self, grid: Sequence[int], seconds: Tensor, num_tokens: int) -> Span:
        """A clip and its sound, which start together, in turns of `chunk` positions, picture first.

        Both opening markers share a position, and so do both closing markers.
        """
        clip, sound = self.clip(grid, seconds), self.sound(num_tokens)
        offsets = torch.cat([clip.offsets, sound.offsets], dim=1)
        pictures = _cut(clip.offsets[0].tolist(), self.chunk)
        # Indices of the sound follow the indices of the clip.
        stop = pictures[-1].stop
        sounds = [range(turn.start + stop, turn.stop + stop) for turn in _cut(range(num_tokens), self.chunk)]
        turns = [turn for pair in zip_longest(pictures, sounds) for turn in pair if turn]
        order = torch.tensor([index for turn in turns for index in turn])
        last = offsets if self.rule == "previous_maximum" else offsets[:, list(turns[-1])]
        end = int(last.max()) + 2
        opening, closing = torch.zeros(3, 2, dtype=torch.long), torch.full((3, 2), end)
        kinds = clip.kinds + sound.kinds
        return Span(
            kinds=(None, None, *(kinds[index] for index in order), None, None),
            offsets=torch.cat([opening, offsets[:, order] + 1, closing], dim=1),
            step=end + 1,
        )

    def _grid(self, kind: MediaKind, times: Tensor, grid: Sequence[int]) -> Span:
        height, width = (side // self.merge_size for side in grid[1:])
        axes = (times, torch.arange(height), torch.arange(width))
        offsets = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1)
        by_maximum = self.rule == "previous_maximum" or self.stock_counts_time
        step = int(offsets.max()) + 1 if by_maximum else max(height, width)
        return Span(kinds=(kind,) * offsets.shape[1], offsets=offsets, step=step)


def _cut(times: Iterable[int], chunk: int) -> list[range]:
    """Cuts before the first token at or past each multiple of `chunk`, one cut per token, as the omni processor does.

    A clip that jumps over a whole chunk is therefore also cut after the token that jumped.
    """
    starts, num_tokens = [0], 0
    for num_tokens, time in enumerate(times, 1):
        if time >= len(starts) * chunk:
            starts.append(num_tokens - 1)
    return [range(first, stop) for first, stop in pairwise([*starts, num_tokens])]


def prompt_positions(kinds: Sequence[str | None], spans: Iterable[Span]) -> tuple[Int[Tensor, "3 P"], int]:
    """The positions of a prompt's tokens, and the position of the token after it.

    Args:
        kinds: For each token of the prompt, the kind of its feature row; None for text.
        spans: The prompt's media in order.

    Raises:
        MediaError: Placeholders and spans do not match, or a medium has no token.
    """
    kinds = tuple(kinds)
    pieces, place, position = [torch.zeros(3, 0, dtype=torch.long)], 0, 0
    for span in spans:
        first = next((index for index in range(place, len(kinds)) if kinds[index] is not None), len(kinds))
        begin, end = first - span.num_markers, first - span.num_markers + len(span.kinds)
        if begin < place or kinds[begin:end] != span.kinds:
            raise MediaError(f"the placeholders of a prompt do not match its media from token {begin} on")
        start = position + begin - place
        pieces += [torch.arange(position, start).expand(3, -1), span.offsets + start]
        place, position = end, start + span.step
    if any(kinds[place:]):
        raise MediaError(f"a prompt has placeholders after its last medium, which ends at token {place}")
    next_position = position + len(kinds) - place
    pieces.append(torch.arange(position, next_position).expand(3, -1))
    return torch.cat(pieces, dim=1), next_position
