"""Every sample once, in order, for validations, evaluations and stages that sample."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.sampler import Draw, ExhaustedError, Share, Variant
from lightning_mmrl.data.stream import StreamedSets, StreamLoader
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.settings.data import ReadAheadSettings

Partners = Callable[[Sequence[int]], Mapping[int, int]]
"""Maps some of the usable samples to the samples whose sound or picture they get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What of every sample the model gets: its `variant`, and the `partners` of a variant that mixes samples."""

    variant: Variant = "full"
    partners: Partners | None = None


WHOLE = Shown()


class InOrder:
    """The batches of all usable samples, each sample once, in their order; implements `Order`.

    A batch holds the next `batch_size` samples that are not rejected. So batches are as if every unusable sample had
    been left out from the start, whenever it was found.

    Args:
        sizes: Number of samples of each set, also of unusable ones.
        batch_size: Samples of a batch, of all ranks together.
        share: This rank's share of each batch.
        shown: What of every sample the model gets.
        first: Number of the first batch to read, counted from 0.
        rejected: Indices that are known to be unusable.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        share: Share,
        shown: Shown = WHOLE,
        first: int = 0,
        rejected: Iterable[int] = (),
    ) -> None:
        self.share = share
        self.batch_size = batch_size
        self._starts = [0, *accumulate(sizes)]
        self._num_usable = list(sizes)
        self._shown = shown
        self._first = first
        self._next = 0
        self._partner_of: Mapping[int, int] | None = None
        self._rejected: set[int] = set()
        self.reject(rejected)

    def __len__(self) -> int:
        """Number of batches to read from the first one on, if no more samples are rejected."""
        return max(0, -(-sum(self._num_usable) // self.batch_size) - self._first)

    def upcoming(self, num_batches: int) -> list[list[Draw]]:
        """The next batches that are not read yet, of all ranks together; fewer at the end.

        Raises:
            ExhaustedError: All samples of a set are rejected.
        """
        for number, num in enumerate(self._num_usable):
            if not num:
                raise ExhaustedError(number)
        draws = list(islice(self._usable(), num_batches * self.batch_size))
        return [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]

    def reject(self, indices: Iterable[int]) -> None:
        """Leaves samples out from the first unread batch on."""
        for index in set(indices) - self._rejected:
            self._rejected.add(index)
            self._partner_of = None
            self._num_usable[bisect_right(self._starts, index) - 1] -= 1

    def mark_read(self) -> None:
        """Counts the first unread batch as read."""
        self._next = self.upcoming(1)[0][-1].index + 1

    def rewind(self) -> None:
        """Makes the first batch the next one to be read."""
        self._next = 0
        passed = list(islice(self._usable(), self._first * self.batch_size))
        self._next = passed[-1].index + 1 if passed else 0

    def _usable(self) -> Iterator[Draw]:
        if self._partner_of is None:
            usable = [index for index in range(self._starts[-1]) if index not in self._rejected]
            self._partner_of = {} if self._shown.partners is None else self._shown.partners(usable)
        for index in range(self._next, self._starts[-1]):
            if index not in self._rejected:
                partner = self._partner_of.get(index)
                yield Draw(index=index, serial=index, variant=self._shown.variant, partner=partner)


def eval_loader(
    sets: StreamedSets,
    collate: Callable[[Sequence[EncodedSample]], Any],
    *,
    batch_size: int,
    ranks: Ranks,
    decoder: Any,
    settings: ReadAheadSettings,
    shown: Shown = WHOLE,
    first: int = 0,
) -> StreamLoader:
    """Returns a loader with every usable sample of some sets once, in order, in batches that `collate` makes.

    Each rank gets its share of every batch, so that all ranks take the same number of steps. A rank whose share would
    be empty gets the first sample of the batch, which another rank evaluates as well. The loader starts with the batch
    number `first`, counted from 0.
    """
    order = InOrder(
        sets.sizes,
        batch_size=batch_size,
        share=Share(rank=ranks.rank, world_size=ranks.world_size, repeats=True),
        shown=shown,
        first=first,
        rejected=sets.reasons,
    )
    return StreamLoader(sets, order, collate, ranks=ranks, decoder=decoder, settings=settings)
