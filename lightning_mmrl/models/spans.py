"""New tokens of R rows that lie side by side without padding, and the same tokens as padded blocks."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
        counts, steps = torch.tensor(self.widths), torch.arange(self.width)
        self.row = torch.arange(len(counts)).repeat_interleave(counts).to(device)
        self._step = (torch.arange(sum(self.widths)) - torch.tensor(self.starts).repeat_interleave(counts)).to(device)
        index = torch.tensor(self.starts)[:, None] + steps.minimum(counts[:, None] - 1)
        self._index = None if self.even_width else index.to(device)
        self.present: Bool[Tensor, "R W"] = (steps < counts[:, None]).to(device)

    def positions(self, first: Int[Tensor, " R"]) -> Int[Tensor, " T"]:
        """Consecutive positions of each row's tokens, from the one of its first token."""
        return first[self.row] + self._step

    def blocks(self, tokens: Float[Tensor, "T ..."] | Int[Tensor, "T ..."]) -> Tensor:
        """Blocks [R, W, ...] of tokens; a shorter row repeats its last token."""
        if self._index is None:
            return tokens.unflatten(0, (-1, self.width))
        return tokens.index_select(0, self._index.flatten()).unflatten(0, self._index.shape)

    def tokens(self, blocks: Float[Tensor, "R W ..."] | Int[Tensor, "R W ..."]) -> Tensor:
        """The tokens [T, ...] of padded blocks."""
        return blocks.flatten(0, 1) if self._index is None else blocks[self.present]


def spans_of(widths: Sequence[int], known: Spans | None, device: torch.device) -> Spans:
    """The spans of some widths: the known ones, if they have these widths.

    >>> known = Spans([1, 1], torch.device("cpu"))
    >>> spans_of([1, 1], known, known.device) is known, spans_of([1], known, known.device) is known
    (True, False)
    """
    return known if known is not None and known.widths == list(widths) else Spans(widths, device)


def last_kept(
    before: Float[Tensor, "R D"], states: Float[Tensor, "T D"], spans: Spans, counts: Sequence[int]
) -> Float[Tensor, "R D"]:
    """The state after the last token that each row keeps: `before` where it keeps none.

    >>> spans = Spans([2, 1], torch.device("cpu"))
    >>> last_kept(torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [2.0], [3.0]]), spans, [2, 0]).tolist()
    [[2.0], [9.0]]
    """
    last = [start + max(count, 1) - 1 for start, count in zip(spans.starts, counts, strict=True)]
    some = torch.tensor(counts, device=states.device) > 0
    return states[last].where(some[:, None], before)
