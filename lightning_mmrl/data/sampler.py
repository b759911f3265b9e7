"""Determines the order of samples: seeded permutations of one or several sources, mixed in shares, resumable."""

import hashlib
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, islice
from typing import Any, Literal, TypeVar

import numpy as np

from lightning_mmrl.errors import ConfigError, MmrlError, StageError
from lightning_mmrl.settings.data import Ablation, DropoutSettings, SourceSettings, StageDataSettings, check_weights
from lightning_mmrl.settings.rules import check_rules

Row = TypeVar("Row")

Variant = Literal["full", Ablation]
"""What of a sample the model gets: all, no sound, no picture, neither, or another sample's sound or picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The `serial`-th sample that a stage consumes: dataset row `index` in the modalities of `variant`.

    `partner` is the row of the same set whose sound or picture a shuffled sample has; None: its own.
    """

    index: int
    serial: int
    variant: Variant = "full"
    partner: int | None = None


def variant_of(dropout: DropoutSettings, seed: int, serial: int) -> Variant:
    """The variant of the `serial`-th draw of a run."""
    digest = hashlib.blake2b(f"{seed}/{serial}/modality".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") / 2**64
    if number < dropout.silent:
        return "silent"
    return "blank" if number < dropout.silent + dropout.blank else "full"


class ExhaustedError(MmrlError):
    """A source has no usable sample; `source` is its number."""

    def __init__(self, source: int) -> None:
        super().__init__(f"source {source} has no usable sample")
        self.source = source


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The properties of a source that a sampler needs.

    Attributes:
        num_samples: Number of samples, also of unusable ones.
        settings: The weight of the source; if no source has one, each counts by its samples.
        labels: Label of each sample, to draw all labels equally often; None draws all samples equally often.
    """

    num_samples: int
    settings: SourceSettings = field(default_factory=SourceSettings)
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; a source needs at least one sample")
        check_rules(self.settings, "source")
        if self.labels is not None and len(self.labels) != self.num_samples:
            raise ValueError(f"{len(self.labels)} labels for {self.num_samples} samples; give one for each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One rank's share of every batch.

    >>> [Share(rank=rank, world_size=2).of("abcde") for rank in range(2)]
    [['a', 'b'], ['c', 'd', 'e']]

    Attributes:
        repeats: True if a rank whose share would be empty gets the first row, which another rank has as well.
    """

    rank: int = 0
    world_size: int = 1
    repeats: bool = False

    def of(self, batch: Sequence[Row]) -> list[Row]:
        """This rank's contiguous part of a batch; the parts of all ranks make up the batch."""
        size = len(batch)
        own = batch[self.rank * size // self.world_size : (self.rank + 1) * size // self.world_size]
        return list(own) or list(batch[: int(self.repeats)])


class DrawSampler:
    """The batches of a stage over the concatenation of sources, planned as far ahead as is asked.

    Each source is drawn in one seeded permutation after another, independently of the other sources; `source_turns`
    chooses the source of each draw. If a source has labels, its labels are visited in seeded permutations, and so are
    the samples of each label. A draw depends on the seed and its serial number, not on the batch size.

    A sample that turns out to be unusable is rejected, and its place is filled by the next one of the same walk. The
    batches are then as if the sample had been rejected at the start, so the order depends on which samples are
    unusable, not on when that was found.

    The state is the number of whole batches that were consumed and does not depend on the number of ranks: batches are
    planned whole, and `Share` splits them.

    Args:
        sources: The sources, in the order of the concatenation.
        settings: Draws per batch, of all ranks together, and the modality dropout.
        num_batches: Number of batches in the whole stage.
        seed: Seed of the permutations and of the modality dropout.
        share: This rank's share of each batch.
        rejected: Indices that are known to be unusable.

    Raises:
        ConfigError: A batch cannot be split evenly.
    """

    def __init__(
        self,
        sources: Sequence[SourceRows],
        *,
        settings: StageDataSettings,
        num_batches: int,
        seed: int,
        share: Share | None = None,
        rejected: Iterable[int] = (),
    ) -> None:
        self.share = share or Share()
        self.batch_size = settings.batch_size
        if self.batch_size % self.share.world_size:
            raise ConfigError(
                f"batch_size is {self.batch_size}, which {self.share.world_size} ranks cannot share evenly; it "
                f"counts the samples of all ranks and must be a multiple of {self.share.world_size}"
            )
        self._sources = tuple(sources)
        self._num_batches = num_batches
        self._seed = seed
        self._dropout = settings.modality_dropout
        self._walks = Walks(sources, seed=seed, rejected=rejected)
        self._consumed = 0
        self._read = 0
        self._planned: deque[_Planned] = deque()

    def __len__(self) -> int:
        """Number of batches in the whole stage, even after resuming, since Lightning counts consumed batches itself."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        """This rank's shares of the batches that are not consumed yet, as if every sample were usable."""
        self.rewind()
        while batches := self.upcoming(1):
            self.mark_read()
            yield self.share.of(batches[0])

    def upcoming(self, num_batches: int) -> list[list[Draw]]:
        """The next batches that are not read yet, of all ranks together; fewer at the end of the stage.

        Raises:
            ExhaustedError: All samples of a source are rejected.
        """
        while len(self._planned) < min(num_batches, self._num_batches - self._read):
            self._planned.append(self._next_planned(self._read + len(self._planned)))
        return [each.draws for each in islice(self._planned, num_batches)]

    def reject(self, indices: Iterable[int]) -> None:
        """Leaves samples out from the first unread batch on; does nothing if all were rejected before."""
        new = set(indices) - self._walks.rejected
        if not new:
            return
        if self._planned:
            self._walks.restore(self._planned[0].before)
        self._planned.clear()
        self._walks.reject(new)

    def mark_read(self) -> None:
        """Counts the first unread batch as read, which is not yet consumed: loaders read ahead of training."""
        self.upcoming(1)
        self._planned.popleft()
        self._read += 1

    def rewind(self) -> None:
        """Makes the first batch that is not consumed the next one to be read."""
        if self._read != self._consumed:
            self._seek(self._consumed)

    def advance(self, num_batches: int = 1) -> None:
        """Counts batches as consumed."""
        self._consumed += num_batches

    def state_dict(self) -> dict[str, Any]:
        """The number of consumed batches, and the configuration that determines the order, as plain values."""
        return {"consumed": self._consumed, "configuration": self._configuration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues after the consumed batches of a state.

        The stage may now have more batches than before, because more batches do not change the earlier ones.

        Raises:
            StageError: The state has another configuration, or more batches than the stage.
        """
        ours, theirs = self._configuration, state["configuration"]
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise StageError(
                    f"cannot resume the order of the data: {key} was {theirs.get(key)!r} and is {value!r}; "
                    "restore the configuration and the data, or start the stage anew"
                )
        if not 0 <= state["consumed"] <= self._num_batches:
            raise StageError(
                f"cannot resume the order of the data after {state['consumed']} batches: "
                f"the stage has {self._num_batches}; raise num_steps or start the stage anew"
            )
        self._consumed = state["consumed"]
        self._seek(self._consumed)

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "batch_size": self.batch_size,
            "num_samples": [source.num_samples for source in self._sources],
            "weights": _recorded_weights(self._sources),
            "labels": [
                source.labels and hashlib.blake2b(repr(source.labels).encode(), digest_size=8).hexdigest()
                for source in self._sources
            ],
            "dropout": [self._dropout.silent, self._dropout.blank],
        }

    def _seek(self, num_batches: int) -> None:
        self._planned.clear()
        self._walks.restart()
        for _ in range(num_batches * self.batch_size):
            self._walks.next_index()
        self._read = num_batches

    def _next_planned(self, batch: int) -> "_Planned":
        before = self._walks.positions()
        draws = []
        for serial in range(batch * self.batch_size, (batch + 1) * self.batch_size):
            variant = variant_of(self._dropout, self._seed, serial)
            draws.append(Draw(index=self._walks.next_index(), serial=serial, variant=variant))
        return _Planned(before=before, draws=draws)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A planned batch; `before` are the positions of the walks at its start."""

    before: "Positions"
    draws: list[Draw]


Positions = tuple[tuple[int, ...], Mapping[tuple[int, ...], int]]
"""Turns that each source has had, and how far each walk has come."""


class Walks:
    """The order of the samples of several sources, without an end; it can go back to earlier positions.

    A walk visits its rows in one seeded permutation after another, without the rejected ones. A source without labels
    is one walk. One with labels has a walk through its labels, and one through the samples of each label.

    Attributes:
        rejected: The samples that are left out.
    """

    def __init__(self, sources: Sequence[SourceRows], *, seed: int, rejected: Iterable[int] = ()) -> None:
        self._seed = seed
        self._offsets = [0, *accumulate(source.num_samples for source in sources)]
        self._labeled = [_rows_by_label(source.labels) if source.labels else None for source in sources]
        self._turns = SourceTurns(_weights(sources))
        self.rejected: set[int] = set()
        self._num_usable = [source.num_samples for source in sources]
        self._places: dict[tuple[int, ...], int] = {}
        self._orders: dict[tuple[int, ...], tuple[int, np.ndarray]] = {}
        self.reject(rejected)

    def positions(self) -> Positions:
        """The positions of all walks."""
        return tuple(self._turns.taken), dict(self._places)

    def restore(self, positions: Positions) -> None:
        """Goes back to earlier positions."""
        self._turns.taken, self._places = list(positions[0]), dict(positions[1])

    def restart(self) -> None:
        """Goes back to the start."""
        self.restore(((0,) * len(self._num_usable), {}))

    def reject(self, indices: Iterable[int]) -> None:
        """Leaves samples out of everything that is drawn from now on."""
        for index in set(indices) - self.rejected:
            self.rejected.add(index)
            self._num_usable[bisect_right(self._offsets, index) - 1] -= 1

    def next_index(self) -> int:
        """The next sample, as its index in the concatenation of the sources.

        Raises:
            ExhaustedError: All samples of a source are rejected.
        """
        for source, num in enumerate(self._num_usable):
            if not num:
                raise ExhaustedError(source)
        source = self._turns.next_source()
        offset, labeled = self._offsets[source], self._labeled[source]
        if labeled is None:
            # The first source adds no number to its seeds, so that a stage with a single source keeps the sample order
            # of earlier versions.
            found = self._next_row(range(self._offsets[source + 1] - offset), offset, (source,) if source else ())
            assert found is not None
            return offset + found
        while True:  # a label may have no usable sample; then the next one has the turn
            label = self._next_place(len(labeled), (source, 0))
            found = self._next_row(labeled[label], offset, (source, label + 1))
            if found is not None:
                return offset + found

    def _next_row(self, rows: Sequence[int], offset: int, walk: tuple[int, ...]) -> int | None:
        """The next usable one of some rows; None if there is none."""
        for _ in range(2 * len(rows)):  # from within a permutation, the end of the next one has shown every row
            row = rows[self._next_place(len(rows), walk)]
            if offset + row not in self.rejected:
                return row
        return None

    def _next_place(self, size: int, walk: tuple[int, ...]) -> int:
        number, place = divmod(self._places.get(walk, 0), size)
        self._places[walk] = number * size + place + 1
        known = self._orders.get(walk)
        if known is None or known[0] != number:
            known = number, np.random.default_rng([self._seed, number, *walk]).permutation(size)
            self._orders[walk] = known
        return int(known[1][place])


class SourceTurns:
    """Says which source has the next turn: after n turns, each has had its share of them, rounded down or up.

    The next turn goes to the source whose turn is due first, among sources below their share (Balinski and Young, The
    Quota Method of Apportionment, American Mathematical Monthly 82, 1975). Integers avoid effects of rounding.

    Attributes:
        taken: Turns that each source has had; may be set.

    >>> turns = SourceTurns([2.0, 1.0, 1.0])
    >>> [turns.next_source() for _ in range(8)]
    [0, 1, 0, 2, 0, 1, 0, 2]
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(weight) for weight in weights]
        unit = math.lcm(*(weight.denominator for weight in exact))
        self._shares = [int(weight * unit) for weight in exact]
        self._total = sum(self._shares)
        self.taken = [0] * len(weights)

    def next_source(self) -> int:
        """The number of the source that has the next turn."""
        if len(self.taken) == 1:
            return 0
        number = sum(self.taken) + 1
        below = [each for each, share in enumerate(self._shares) if self.taken[each] * self._total < number * share]
        chosen = min(below, key=lambda each: Fraction(self.taken[each] + 1, self._shares[each]))
        self.taken[chosen] += 1
        return chosen


def _weights(sources: Sequence[SourceRows]) -> list[float]:
    """The weights of sources: their own, or else their numbers of samples.

    Raises:
        ConfigError: Only some sources have one.
    """
    check_weights({str(number): source.settings for number, source in enumerate(sources)}, "sources")
    return [source.settings.weight or float(source.num_samples) for source in sources]


def _recorded_weights(sources: Sequence[SourceRows]) -> list[float | None]:
    """Weights as states hold them; that of a single source, which has no effect, as earlier versions wrote it."""
    weights = [source.settings.weight for source in sources]
    return [1.0] if weights == [None] else weights


def _rows_by_label(labels: Sequence[str]) -> list[list[int]]:
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return [rows[label] for label in sorted(rows)]
