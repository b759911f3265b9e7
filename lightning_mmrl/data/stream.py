"""Streams the batches of a stage: each sample is read when it is drawn, and decided on when it is first read."""

import hashlib
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any, Protocol

from torch.profiler import record_function

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.dealing import dealt
from lightning_mmrl.data.pipeline import DecodeAll
from lightning_mmrl.data.prepared import DataMonitor, Fault, PreparedSet, Quarantined, unusable_now
from lightning_mmrl.data.read_ahead import Read, ReadAhead, ReadNow, SampleReader
from lightning_mmrl.data.sampler import Draw, ExhaustedError, Share
from lightning_mmrl.data.samples import samples_of
from lightning_mmrl.errors import DataError
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.settings.data import ReadAheadSettings
from lightning_mmrl.types.records import Sample


class Order(Protocol):
    """The batches that a loader reads, each the same on all ranks; `DrawSampler` and `InOrder` implement it."""

    share: Share
    batch_size: int

    def __len__(self) -> int: ...

    def upcoming(self, num_batches: int) -> list[list[Draw]]: ...

    def reject(self, indices: Iterable[int]) -> None: ...

    def mark_read(self) -> None: ...

    def rewind(self) -> None: ...


class StreamedSets:
    """Sets joined one after the other, whose samples are decided on one after the other.

    A decision to leave a sample out is saved when samples are used next, or when there are no more. So nothing is
    decided about a set of which nothing can be used, as when its disk fails: an order ends with an error then.

    Args:
        sets: Manifest and samples of each source.
        monitor: Hears which samples are left out, and what decoders found odd.

    Attributes:
        sizes: Number of samples of each set, also of unusable ones.
        reasons: Why samples were left out, by index.

    Raises:
        DataError: Every sample of a set was left out before.
    """

    def __init__(self, sets: Sequence[tuple[str, PreparedSet]], monitor: DataMonitor) -> None:
        self._sets = tuple(sets)
        self._monitor = monitor
        self.sizes = tuple(len(each) for _, each in sets)
        self._starts = [0, *accumulate(self.sizes)]
        self._used: set[int] = set()
        self._unsaved: set[int] = set()
        self._warnings: deque[tuple[str, list[str]]] = deque()
        self.reasons: dict[int, str] = {}
        for number, (manifest, each) in enumerate(self._sets):
            if void := each.void(manifest):
                monitor.warn(manifest, [void])
            self._recall(number, range(self._starts[number], self._starts[number + 1]), each.samples)
        self._tell(self.reasons)
        for number, own in self._by_set(self.reasons).items():
            if len(own) == self.sizes[number]:  # else a loader of no batch would pass it over in silence
                raise self.exhausted(number)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def ids(self) -> list[str]:
        """The ids of all samples, in order."""
        return [name for _, each in self._sets for name in each.samples.ids()]

    def left_out(self) -> list[tuple[Sample, str]]:
        """The samples that were found unusable so far, in order, with the reasons."""
        return [(self._sample(index), self.reasons[index]) for index in sorted(self.reasons)]

    def recall(self, draws: Iterable[Draw]) -> bool:
        """Takes up what other readers of the same samples have decided since; returns whether that leaves one out."""
        before = len(self.reasons)
        unknown = (draw.index for draw in draws if draw.index not in self._used)
        for number, own in self._by_set(unknown).items():
            self._recall(number, own, [self._sample(index) for index in own])
        return len(self.reasons) > before

    def check_agreement(self, ranks: Ranks) -> None:
        """Compares what the ranks know of earlier decisions; a collective.

        Raises:
            DataError: They know different decisions.
        """
        if ranks.world_size == 1:
            return
        known = repr((sorted(self._used), sorted(self.reasons))).encode()
        if len(set(ranks.gather(hashlib.blake2b(known, digest_size=16).hexdigest()))) > 1:
            names = ", ".join(manifest for manifest, _ in self._sets)
            raise DataError(
                f"{names}: the ranks know different decisions about samples to leave out; put the run folder on a "
                "file system that all ranks share"
            )

    def decided(self, draws: Iterable[Draw]) -> bool:
        """Whether all these samples were used before."""
        return all(draw.index in self._used for draw in draws)

    def read(self, draws: Sequence[Draw], decode: DecodeAll) -> list[EncodedSample | Fault]:
        """Reads samples, in any thread."""
        found: dict[Draw, EncodedSample | Fault] = {}
        for number, (manifest, each) in enumerate(self._sets):
            own = [draw for draw in draws if self._place(draw.index)[0] == number]
            if not own:
                continue
            read, warnings = each.read([self._within(draw) for draw in own], decode)
            if warnings:
                self._warnings.append((manifest, warnings))
            found.update(zip(own, read, strict=True))
        return [found[draw] for draw in draws]

    def check_used(self, faults: Mapping[int, str]) -> None:
        """Refuses faults of samples that were used before.

        Raises:
            DataError: There is one.
        """
        for index in sorted(faults.keys() & self._used):
            manifest, _ = self._sets[self._place(index)[0]]
            raise unusable_now(manifest, self._sample(index).id, faults[index])

    def warn(self) -> None:
        """Passes on what decoders found odd; only the thread that takes batches writes to the console."""
        while self._warnings:
            self._monitor.warn(*self._warnings.popleft())

    def use(self, draws: Iterable[Draw]) -> None:
        """Saves the decision to use these samples."""
        new = [index for index in dict.fromkeys(draw.index for draw in draws) if index not in self._used]
        self._used.update(new)
        self._save(new)

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Leaves these samples out."""
        new = {index: reason for index, reason in reasons.items() if index not in self.reasons}
        self.reasons.update(new)
        self._unsaved.update(new)
        self._tell(new)

    def finish(self) -> None:
        """Saves all decisions at the end of an order, and waits until a loss of power cannot take them away."""
        self._save(())
        for _, each in self._sets:
            each.flush()

    def exhausted(self, source: int) -> DataError:
        """The error for a source without a usable sample."""
        manifest, each = self._sets[source]
        first = next(reason for index, reason in sorted(self.reasons.items()) if self._place(index)[0] == source)
        return DataError(f"{manifest}: all {len(each)} samples cannot be used; the first: {first}")

    def _recall(self, number: int, indices: Sequence[int], samples: Sequence[Sample]) -> None:
        manifest, each = self._sets[number]
        decided = each.decided(manifest, samples)
        for name, row in samples_of(samples).rows_of(decided).items():
            reason = decided[name]
            if reason is None:
                self._used.add(indices[row])
            else:
                self.reasons.setdefault(indices[row], reason)

    def _save(self, used: Iterable[int]) -> None:
        """Saves the decision to use some samples, and the unsaved ones to leave others out."""
        for number, own in self._by_set([*used, *sorted(self._unsaved)]).items():
            manifest, each = self._sets[number]
            samples = [self._sample(index) for index in own]
            reasons = {self._sample(index).id: self.reasons[index] for index in own if index in self.reasons}
            each.decide(manifest, samples, reasons)
        self._unsaved.clear()

    def _tell(self, new: Mapping[int, str]) -> None:
        for number, own in self._by_set(sorted(new)).items():
            manifest, each = self._sets[number]
            named = [Quarantined(sample_id=self._sample(index).id, reason=self.reasons[index]) for index in own]
            num = len(self._by_set(self.reasons)[number])
            self._monitor.leave_out(manifest, len(each), num, named)

    def _by_set(self, indices: Iterable[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for index in indices:
            found.setdefault(self._place(index)[0], []).append(index)
        return dict(sorted(found.items()))

    def _sample(self, index: int) -> Sample:
        number, row = self._place(index)
        return self._sets[number][1].samples[row]

    def _place(self, index: int) -> tuple[int, int]:
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _within(self, draw: Draw) -> Draw:
        partner = None if draw.partner is None else self._place(draw.partner)[1]
        return replace(draw, index=self._place(draw.index)[1], partner=partner)


class StreamLoader:
    """The batches of an order that are not consumed yet, read ahead of the one who takes them.

    All ranks take the same batches, each its share. Where a rank finds an unusable sample, all ranks learn of it before
    the batch is used, and the next sample of the order takes its place. So batches do not depend on the number of
    ranks, on how far samples are read ahead, or on what is in the cache.

    Args:
        sets: The samples.
        order: Their order.
        collate: Makes a batch of this rank's share.
        ranks: The processes that take the batches together.
        decoder: Its `session()` decodes media.
        settings: How far samples are read ahead.
        num_upcoming: Batches after the one in hand that are read and decided on with it.

    Attributes:
        waited_s: Seconds that the last batch took from being asked for to being there.
        upcoming: These batches, in order; fewer at the end. They are not consumed.
    """

    def __init__(
        self,
        sets: StreamedSets,
        order: Order,
        collate: Callable[[Sequence[EncodedSample]], Any],
        *,
        ranks: Ranks,
        decoder: Any,
        settings: ReadAheadSettings,
        num_upcoming: int = 0,
    ) -> None:
        self._sets = sets
        self._order = order
        self._collate = collate
        self._ranks = ranks
        self._decoder = decoder
        self._settings = settings
        self._num_upcoming = num_upcoming
        self.waited_s = 0.0
        self.upcoming: deque[Any] = deque()

    def __len__(self) -> int:
        """Number of batches, or as many as there may be if samples of a fixed order are not all decided on yet."""
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        self._sets.check_agreement(self._ranks)
        self._order.rewind()
        self.upcoming.clear()
        start = time.perf_counter()
        with self._reader() as reader:
            while (found := self._next(reader)) is not None:
                self.upcoming.append(self._collate(found))
                if not self._order.upcoming(1):
                    break  # Lightning never asks for more than there is, and nothing that reads shall wait until then
                if len(self.upcoming) > self._num_upcoming:
                    self.waited_s = time.perf_counter() - start
                    yield self.upcoming.popleft()
                    start = time.perf_counter()
            else:
                return
        self._sets.finish()
        while self.upcoming:
            self.waited_s = time.perf_counter() - start
            yield self.upcoming.popleft()
            start = time.perf_counter()

    def _next(self, reader: SampleReader) -> list[EncodedSample] | None:
        """This rank's share of the next batch, under the name that a profile shows for the wait."""
        with record_function("mmrl/data"):
            return next_share(self._sets, self._order, reader, self._ranks, self._num_ahead)

    @property
    def _num_ahead(self) -> int:
        """Batches that the bound in samples covers."""
        own = max(1, len(self._order.share.of(range(self._order.batch_size))))
        return -(-self._settings.prefetch_samples // own)

    @contextmanager
    def _reader(self) -> Iterator[SampleReader]:
        with self._decoder.session() as session:
            read = _reading(self._sets, session.decode_all)
            if not self._settings.prefetch_samples:
                yield ReadNow(read)
                return
            ahead = ReadAhead(
                read,
                session.end,
                most_samples=self._settings.prefetch_samples,
                most_bytes=self._settings.prefetch_mb * 2**20,
                together=max(1, 4 * self._settings.decode_workers),
            )
            with ahead:
                yield ahead


def next_share(
    sets: StreamedSets, order: Order, reader: SampleReader, ranks: Ranks, num_ahead: int = 0
) -> list[EncodedSample] | None:
    """This rank's share of the next unread batch, all of it usable; None at the end of the order.

    Raises:
        DataError: No sample of a source can be used, or one that was used before cannot be now.
    """
    read: dict[Draw, EncodedSample | Fault] = {}
    while True:
        order.reject(sets.reasons)
        try:
            batches = order.upcoming(1 + num_ahead)
        except ExhaustedError as error:
            raise sets.exhausted(error.source) from error
        if not batches:
            sets.finish()
            return None
        if sets.recall(batches[0]):
            continue
        own = order.share.of(batches[0])
        missing = [draw for draw in own if draw not in read]
        reader.want([*missing, *(draw for batch in batches[1:] for draw in order.share.of(batch))])
        read.update(zip(missing, reader.take(missing), strict=True))
        faults = {draw.index: found.reason for draw in own if isinstance(found := read[draw], Fault)}
        sets.check_used(faults)
        sets.warn()
        if not sets.decided(batches[0]):  # else every sample was used before, and no rank found a fault
            faults = _of_all(faults, ranks)
        if not faults:
            sets.use(batches[0])
            order.mark_read()
            return _share(batches[0], order.share, read, sets, reader, ranks)
        sets.leave_out(faults)


def _share(
    batch: Sequence[Draw],
    share: Share,
    read: dict[Draw, EncodedSample | Fault],
    sets: StreamedSets,
    reader: SampleReader,
    ranks: Ranks,
) -> list[EncodedSample]:
    """This rank's samples of a batch, in the order of the batch; a collective.

    Ranks that train get about equally many tokens. A sample that moves to this rank is read here as well: it is in the
    cache by then, unless each machine has its own.
    """
    own = share.of(batch)
    if ranks.world_size > 1 and not share.repeats:
        found = [each.num_tokens for draw in own if isinstance(each := read[draw], EncodedSample)]
        lengths = [length for part in ranks.gather(found) for length in part]
        own = [batch[place] for place in dealt(lengths, ranks.world_size)[ranks.rank]]
        moved = [draw for draw in own if draw not in read]
        read.update(zip(moved, reader.take(moved), strict=True))
        sets.check_used({draw.index: each.reason for draw in own if isinstance(each := read[draw], Fault)})
        sets.warn()
    return [replace(each, serial=draw.serial) for draw in own if isinstance(each := read[draw], EncodedSample)]


def read_now(sets: StreamedSets, decoder: Any) -> ReadNow:
    """A reader that reads samples when they are taken."""
    return ReadNow(_reading(sets, decoder.decode_all))


def _reading(sets: StreamedSets, decode: DecodeAll) -> Read:
    def read(draws: Sequence[Draw]) -> list[EncodedSample | Fault]:
        return sets.read(draws, decode)

    return read


def _of_all(faults: Mapping[int, str], ranks: Ranks) -> dict[int, str]:
    """The faults that any rank found."""
    if not ranks.any([bool(faults)])[0]:
        return {}
    return {index: reason for found in ranks.gather(dict(faults)) for index, reason in found.items()}
