"""New tokens of R rows that lie side by side without padding, and the same tokens as padded blocks."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_mmrl.ops.transfer import on_device, to_device


class Spans:
    """T tokens, of which the first `widths[0]` belong to row 0, the next `widths[1]` to row 1, and so on.

    >>> spans = Spans([2, 1], torch.device("cpu"))
    >>> spans.row.tolist(), spans.positions(torch.tensor([10, 20])).tolist()
    ([0, 0, 1], [10, 11, 20])
    >>> blocks = spans.blocks(torch.tensor([7, 8, 9]))
    >>> blocks.tolist(), spans.tokens(blocks).tolist()
    ([[7, 8], [9, 9]], [7, 8, 9])

    Args:
        widths: The number of tokens of each row, one at least.
        device: Where the tokens are.

    Attributes:
        width: The largest number of tokens.
        even_width: The same if all rows have it, None otherwise.
        row: The row of each token.
        starts: The first token of each row.
        present: True at the tokens of a padded block.
    """

    def __init__(self, widths: Sequence[int], device: torch.device) -> None:
        self.widths, self.device, self.width = list(widths), device, max(widths)
        self.even_width = self.width if min(widths) == self.width else None
        self.starts = list(accumulate(self.widths, initial=0))[:-1]
        counts, steps, starts = torch.tensor(self.widths), torch.arange(self.width), torch.tensor(self.starts)
        row = torch.arange(len(counts)).repeat_interleave(counts)
        step = torch.arange(sum(self.widths)) - starts[row]
        index = starts[:, None] + steps.minimum(counts[:, None] - 1)
        present = steps < counts[:, None]
        slots = row * self.width + step
        self.row, self._step, self._index, self._slots, self.present = to_device(
            [row, step, index, slots, present], device
        )

    def positions(self, first: Int[Tensor, " R"]) -> Int[Tensor, " T"]:
        """Consecutive positions of each row's tokens, from the one of its first token."""
        return first[self.row] + self._step

    def blocks(self, tokens: Float[Tensor, "T ..."] | Int[Tensor, "T ..."]) -> Tensor:
        """Blocks [R, W, ...] of tokens; a shorter row repeats its last token."""
        if self.even_width:
            return tokens.unflatten(0, (-1, self.width))
        return tokens.index_select(0, self._index.flatten()).unflatten(0, self._index.shape)

    def tokens(self, blocks: Float[Tensor, "R W ..."] | Int[Tensor, "R W ..."]) -> Tensor:
        """The tokens [T, ...] of padded blocks."""
        together = blocks.flatten(0, 1)
        return together if self.even_width else together.index_select(0, self._slots)


def spans_of(widths: Sequence[int], known: Spans | None, device: torch.device) -> Spans:
    """The spans of some widths: the known ones, if they have these widths.

    >>> known = Spans([1, 1], torch.device("cpu"))
    >>> spans_of([1, 1], known, known.device) is known, spans_of([1], known, known.device) is known
    (True, False)
    """
    return known if known is not None and known.widths == list(widths) else Spans(widths, device)


def last_kept(
    before: Float[Tensor, "R D"], states: Float[Tensor, "T D"], spans: Spans, counts: Sequence[int]
) -> tuple[Float[Tensor, "R D"], Int[Tensor, " R"]]:
    """The state after the last token that each row keeps, `before` where it keeps none; and the counts on the device.

    >>> spans = Spans([2, 1], torch.device("cpu"))
    >>> last_kept(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [2.0], [3.0]]), spans, [2, 0])[0].tolist()
    [[2.0], [9.0]]
    """
    last = [start + max(count, 1) - 1 for start, count in zip(spans.starts, counts, strict=True)]
    there, kept = on_device([last, list(counts)], states.device)
    return states.index_select(0, there).where((kept > 0)[:, None], before), kept
