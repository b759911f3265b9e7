"""Streams the batches of a stage: each sample is read when it is drawn, and decided on when it is first read."""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from lightning_mmrl.data.collate import EncodedSample
from lightning_mmrl.data.prepared import DataMonitor, DecodeAll, Fault, PreparedSet, Quarantined, unusable_now
from lightning_mmrl.data.read_ahead import Read, ReadAhead, ReadNow, SampleReader
from lightning_mmrl.data.sampler import Draw, DrawSampler, ExhaustedError
from lightning_mmrl.data.samples import samples_of
from lightning_mmrl.errors import DataError
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.settings.data import ReadAheadSettings


class StreamedSets:
    """Sets joined one after the other, whose samples are decided on one after the other.

    Args:
        sets: Manifest and samples of each source.
        monitor: Hears which samples are left out, and what decoders found odd.

    Attributes:
        reasons: Why samples were left out, by index.
    """

    def __init__(self, sets: Sequence[tuple[str, PreparedSet]], monitor: DataMonitor) -> None:
        self._sets = tuple(sets)
        self._monitor = monitor
        self._starts = [0, *accumulate(len(each) for _, each in sets)]
        self._used: set[int] = set()
        self._warnings: deque[tuple[str, list[str]]] = deque()
        self.reasons: dict[int, str] = {}
        for start, (manifest, each) in zip(self._starts, self._sets, strict=False):
            decided = each.decided(manifest, monitor)
            for name, row in samples_of(each.samples).rows_of(decided).items():
                reason = decided[name]
                if reason is None:
                    self._used.add(start + row)
                else:
                    self.reasons[start + row] = reason
        self._tell(self.reasons)

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
            number, row = self._place(index)
            manifest, each = self._sets[number]
            raise unusable_now(manifest, each.samples[row].id, faults[index])

    def warn(self) -> None:
        """Passes on what decoders found odd; only the thread that takes batches writes to the console."""
        while self._warnings:
            self._monitor.warn(*self._warnings.popleft())

    def use(self, draws: Iterable[Draw]) -> None:
        """Saves the decision to use these samples."""
        self._decide({draw.index: None for draw in draws if draw.index not in self._used})

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Saves the decision to leave these samples out."""
        new = {index: reason for index, reason in reasons.items() if index not in self.reasons}
        self._decide(dict(new))
        self._tell(new)

    def exhausted(self, source: int) -> DataError:
        """The error for a source without a usable sample."""
        manifest, each = self._sets[source]
        first = next(reason for index, reason in sorted(self.reasons.items()) if self._place(index)[0] == source)
        return DataError(f"{manifest}: all {len(each)} samples cannot be used; the first: {first}")

    def _decide(self, decisions: Mapping[int, str | None]) -> None:
        for number, (manifest, each) in enumerate(self._sets):
            own = {index: why for index, why in decisions.items() if self._place(index)[0] == number}
            if not own:
                continue
            samples = {index: each.samples[index - self._starts[number]] for index in own}
            reasons = {samples[index].id: why for index, why in own.items() if why is not None}
            each.decide(manifest, list(samples.values()), reasons)
        self._used.update(index for index, why in decisions.items() if why is None)
        self.reasons.update({index: why for index, why in decisions.items() if why is not None})

    def _tell(self, new: Mapping[int, str]) -> None:
        for number, (manifest, each) in enumerate(self._sets):
            own = [self._named(index) for index in sorted(new) if self._place(index)[0] == number]
            if own:
                num = sum(self._place(index)[0] == number for index in self.reasons)
                self._monitor.leave_out(manifest, len(each), num, own)

    def _named(self, index: int) -> Quarantined:
        number, row = self._place(index)
        return Quarantined(sample_id=self._sets[number][1].samples[row].id, reason=self.reasons[index])

    def _place(self, index: int) -> tuple[int, int]:
        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def _within(self, draw: Draw) -> Draw:
        return Draw(index=self._place(draw.index)[1], serial=draw.serial, variant=draw.variant)


class StreamLoader:
    """The batches of a stage that are not consumed yet, read ahead of training.

    All ranks take the same batches, each its share. Where a rank finds an unusable sample, all ranks learn of it before
    the batch is used, and the sampler's next sample takes its place. So batches do not depend on the number of ranks,
    on how far samples are read ahead, or on what is in the cache.

    Args:
        sets: The samples.
        sampler: Their order.
        collate: Makes a batch of this rank's share.
        ranks: The processes that take the batches together.
        decoder: Its `session()` decodes media.
        settings: How far samples are read ahead.

    Attributes:
        waited_s: Seconds that the last batch took from being asked for to being there.
    """

    def __init__(
        self,
        sets: StreamedSets,
        sampler: DrawSampler,
        collate: Callable[[Sequence[EncodedSample]], Any],
        *,
        ranks: Ranks,
        decoder: Any,
        settings: ReadAheadSettings,
    ) -> None:
        self._sets = sets
        self._sampler = sampler
        self._collate = collate
        self._ranks = ranks
        self._decoder = decoder
        self._settings = settings
        self.waited_s = 0.0

    def __len__(self) -> int:
        """Number of batches in the whole stage, even after resuming, since Lightning counts consumed batches itself."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        self._sampler.rewind()
        with self._reader() as reader:
            start = time.perf_counter()
            while (found := next_share(self._sets, self._sampler, reader, self._ranks, self._num_ahead)) is not None:
                batch = self._collate(found)
                self.waited_s = time.perf_counter() - start
                yield batch
                start = time.perf_counter()

    @property
    def _num_ahead(self) -> int:
        """Batches that the bound in samples covers."""
        own = max(1, len(self._sampler.share.of(range(self._sampler.batch_size))))
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
    sets: StreamedSets, sampler: DrawSampler, reader: SampleReader, ranks: Ranks, num_ahead: int = 0
) -> list[EncodedSample] | None:
    """This rank's share of the next unread batch, all of it usable; None at the end of the stage.

    Raises:
        DataError: No sample of a source can be used, or one that was used before cannot be now.
    """
    read: dict[Draw, EncodedSample | Fault] = {}
    while True:
        sampler.reject(sets.reasons)
        try:
            batches = sampler.upcoming(1 + num_ahead)
        except ExhaustedError as error:
            raise sets.exhausted(error.source) from error
        if not batches:
            return None
        own = sampler.share.of(batches[0])
        missing = [draw for draw in own if draw not in read]
        reader.want([*missing, *(draw for batch in batches[1:] for draw in sampler.share.of(batch))])
        read.update(zip(missing, reader.take(missing), strict=True))
        faults = {draw.index: found.reason for draw in own if isinstance(found := read[draw], Fault)}
        sets.check_used(faults)
        sets.warn()
        if not sets.decided(batches[0]):  # else every sample was used before, and no rank found a fault
            faults = _of_all(faults, ranks)
        if not faults:
            sets.use(batches[0])
            sampler.mark_read()
            return [found for draw in own if isinstance(found := read[draw], EncodedSample)]
        sets.leave_out(faults)


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
