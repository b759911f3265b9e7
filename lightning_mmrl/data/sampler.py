"""Determines the order of samples: seeded permutations of one or several sources, mixed by weight, resumable."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, count, islice
from typing import Any, Literal, TypeVar

import numpy as np
from torch.utils.data import Sampler

from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.settings.data import Ablation, DropoutSettings, SourceSettings, StageDataSettings
from lightning_mmrl.settings.rules import check_rules

Row = TypeVar("Row")

Variant = Literal["full", Ablation]
"""The modalities of a sample that the model gets: all, no sound, or no picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The `serial`-th sample that a stage consumes: dataset row `index` in the modalities of `variant`."""

    index: int
    serial: int
    variant: Variant = "full"


def variant_of(dropout: DropoutSettings, seed: int, serial: int) -> Variant:
    """The variant of the `serial`-th draw of a run."""
    digest = hashlib.blake2b(f"{seed}/{serial}/modality".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") / 2**64
    if number < dropout.silent:
        return "silent"
    return "blank" if number < dropout.silent + dropout.blank else "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """The properties of a source that a sampler needs.

    Attributes:
        num_samples: Number of usable samples.
        settings: The weight of the source.
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
    """

    rank: int = 0
    world_size: int = 1

    def of(self, batch: Sequence[Row]) -> list[Row]:
        """This rank's contiguous part of a batch; the parts of all ranks make up the batch."""
        size = len(batch)
        return list(batch[self.rank * size // self.world_size : (self.rank + 1) * size // self.world_size])


class DrawSampler(Sampler[list[Draw]]):
    """A sized sequence of batches over the concatenation of sources.

    Each source is drawn in one seeded permutation after another, independently of the other sources; `source_turns`
    chooses the source of each draw. If a source has labels, its labels are visited in seeded permutations, and so are
    the samples of each label. A draw depends on the seed and its serial number, not on the batch size.

    With several ranks, each batch is the same as in a run with a single process and is split among the ranks; rank 0
    gets the first draws of the batch. The state is the number of whole batches and does not depend on the number of
    ranks.

    Args:
        sources: The sources, in the order of the concatenation.
        settings: Draws per batch, of all ranks together, and the modality dropout.
        num_batches: Number of batches in the whole stage.
        seed: Seed of the permutations and of the modality dropout.
        share: This rank's share of each batch.

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
    ) -> None:
        self._share = share or Share()
        self._batch_size = settings.batch_size
        if self._batch_size % self._share.world_size:
            raise ConfigError(
                f"batch_size is {self._batch_size}, which {self._share.world_size} ranks cannot share evenly; it "
                f"counts the samples of all ranks and must be a multiple of {self._share.world_size}"
            )
        self._sources = tuple(sources)
        self._num_batches = num_batches
        self._seed = seed
        self._dropout = settings.modality_dropout
        self._consumed = 0

    def __len__(self) -> int:
        """Number of batches in the whole stage, even after resuming, since Lightning counts consumed batches itself."""
        return self._num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yields the batches that are not consumed yet."""
        first = self._consumed
        walks = [self._walk_source(number, source) for number, source in enumerate(self._sources)]
        offsets = [0, *accumulate(source.num_samples for source in self._sources)]
        turns = source_turns([source.settings.weight for source in self._sources])
        indices = islice((offsets[turn] + next(walks[turn]) for turn in turns), first * self._batch_size, None)
        for batch in range(first, self._num_batches):
            serials = range(batch * self._batch_size, (batch + 1) * self._batch_size)
            draws = [
                Draw(index=next(indices), serial=serial, variant=variant_of(self._dropout, self._seed, serial))
                for serial in serials
            ]
            yield self._share.of(draws)

    def advance(self, num_batches: int = 1) -> None:
        """Counts batches as consumed. Iterating does not count them, because loaders read ahead of training."""
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

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "batch_size": self._batch_size,
            "num_samples": [source.num_samples for source in self._sources],
            "weights": [source.settings.weight for source in self._sources],
            "labels": [
                source.labels and hashlib.blake2b(repr(source.labels).encode(), digest_size=8).hexdigest()
                for source in self._sources
            ],
            "dropout": [self._dropout.silent, self._dropout.blank],
        }

    def _walk_source(self, number: int, source: SourceRows) -> Iterator[int]:
        if source.labels is None:
            # The first source adds no number to its seeds, so that a stage with a single source keeps the sample order
            # of earlier versions.
            yield from self._walk(range(source.num_samples), *([number] if number else []))
            return
        names = sorted(set(source.labels))
        rows = [[row for row, label in enumerate(source.labels) if label == name] for name in names]
        walks = [self._walk(own, number, label) for label, own in enumerate(rows, start=1)]
        for label in self._walk(range(len(names)), number, 0):
            yield next(walks[label])

    def _walk(self, rows: Sequence[int], *stream: int) -> Iterator[int]:
        for number in count():
            order = np.random.default_rng([self._seed, number, *stream]).permutation(len(rows))
            yield from (rows[place] for place in order.tolist())


def source_turns(weights: Sequence[float]) -> Iterator[int]:
    """Yields source numbers forever: after n turns, each source has had its share of them, rounded down or up.

    The next turn goes to the source whose turn is due first, among sources below their share (Balinski and Young, The
    Quota Method of Apportionment, American Mathematical Monthly 82, 1975). Integers avoid effects of rounding.

    >>> list(islice(source_turns([2.0, 1.0, 1.0]), 8))
    [0, 1, 0, 2, 0, 1, 0, 2]
    """
    exact = [Fraction(weight) for weight in weights]
    unit = math.lcm(*(weight.denominator for weight in exact))
    shares = [int(weight * unit) for weight in exact]
    total = sum(shares)
    turns = [0] * len(shares)
    due = [Fraction(1, share) for share in shares]
    for number in count(1):
        below = [each for each, share in enumerate(shares) if turns[each] * total < number * share]
        chosen = min(below, key=due.__getitem__)
        turns[chosen] += 1
        due[chosen] = Fraction(turns[chosen] + 1, shares[chosen])
        yield chosen
