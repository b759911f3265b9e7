"""Samples in order, with what is known of all of them without a look at each, and checks whose outcome is kept."""

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.data.answer_columns import CHOSEN, REJECTED, RowError
from lightning_mmrl.errors import DataError
from lightning_mmrl.types.records import MediaKind, Sample

KIND_BITS: Mapping[MediaKind, int] = {"image": 1, "video": 2, "audio": 4}
NO_SOLUTION = -1
RowTest = Callable[[Sample], object]
"""Raises a DataError for a sample that does not serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solutions:
    """The solutions of samples.

    Attributes:
        codes: The number of each sample's solution, [N]; `NO_SOLUTION` where there is none.
        texts: The solution of each number that occurs, in the order of the first samples that have them.
    """

    codes: NDArray[np.int32]
    texts: Mapping[int, str]

    def counts(self) -> Counter[str]:
        """How many samples have each solution."""
        numbers = np.bincount(self.codes[self.codes >= 0])
        return Counter({text: int(numbers[code]) for code, text in self.texts.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCheck:
    """A check of single samples; a set that keeps its outcome is checked once for all.

    Attributes:
        test: Tests a sample. It can be pickled, and imports no torch, so that workers start quickly.
        inputs: All that decides the outcome besides the sample and the code of `row_index.PACKAGES`, as plain values.
        slow: Whether a test takes longer than reading its sample. It then runs in this process, since it may need a
            process of its own, up to the first failure, and its outcome is kept for small sources as well.
        by_place: Whether the error says which sample it is, so that its place in the file can be found.
    """

    test: RowTest
    inputs: Mapping[str, Any]
    slow: bool = False
    by_place: bool = False

    def __call__(self, manifest: str, samples: Sequence[Sample]) -> None:
        """Checks samples.

        Raises:
            DataError: A sample does not serve; the message names the manifest and the first such sample. With
                `by_place`, its own or the samples', it is a RowError.
        """
        known = samples_of(samples)
        if (found := known.first_failure(self)) is None:
            return
        row, reason = found
        if not self.by_place and not known.by_place:
            raise DataError(f"{manifest}: {reason}")
        [name] = samples_of(known[row : row + 1]).ids()
        raise RowError(f"{manifest}: {reason}", name)

    def reason(self, sample: Sample) -> str | None:
        """Why a sample does not serve; None if it does."""
        try:
            self.test(sample)
        except DataError as error:
            return str(error)
        return None

    @property
    def key(self) -> str:
        """Identifies the inputs."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()


class Samples(Sequence[Sample]):
    """Samples whose ids differ."""

    by_place: bool = False
    """Whether errors about them say which sample it is, see `RowCheck`."""

    @abstractmethod
    def kinds(self) -> NDArray[np.uint8]:
        """The kinds of media of each sample, as a sum of `KIND_BITS`, [N]."""

    @abstractmethod
    def ids(self) -> Iterator[str]:
        """Yields the id of each sample."""

    @abstractmethod
    def solutions(self) -> Solutions:
        """The solution of each sample."""

    @abstractmethod
    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        """Maps each of the given ids that occurs to the place of its sample, in the order of the places."""

    @abstractmethod
    def content(self, row: int) -> str:
        """The `content_digest` of a sample."""

    @abstractmethod
    def first_failure(self, check: RowCheck) -> tuple[int, str] | None:
        """The place of the first sample that fails a check, and why it does; None if all pass."""


class ListedSamples(Samples):
    """Samples that are all in memory.

    Args:
        items: The samples.
    """

    def __init__(self, items: Iterable[Sample]) -> None:
        self._items = tuple(items)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: Any) -> Any:
        return ListedSamples(self._items[place]) if isinstance(place, slice) else self._items[place]

    def kinds(self) -> NDArray[np.uint8]:
        return np.array([kinds_of(sample) for sample in self._items], np.uint8)

    def ids(self) -> Iterator[str]:
        return (sample.id for sample in self._items)

    def solutions(self) -> Solutions:
        numbers: dict[str, int] = {}
        codes = [
            NO_SOLUTION if each.solution is None else numbers.setdefault(each.solution, len(numbers))
            for each in self._items
        ]
        return Solutions(codes=np.array(codes, np.int32), texts={number: text for text, number in numbers.items()})

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        found = {name: self._rows[name] for name in ids if name in self._rows}
        return dict(sorted(found.items(), key=lambda each: each[1]))

    def content(self, row: int) -> str:
        return content_digest(self._items[row])

    def first_failure(self, check: RowCheck) -> tuple[int, str] | None:
        return _first_failure(self._items, check, 0)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {sample.id: row for row, sample in enumerate(self._items)}


class Passing(Protocol):
    """Knows how many of the first samples of a source pass a check; see `row_index.Outcomes`."""

    def num_passing(self, check: RowCheck) -> int: ...

    def failure(self, check: RowCheck) -> str | None: ...

    def first_failure(self, check: RowCheck, num_samples: int) -> tuple[int, str] | None: ...

    def note(self, check: RowCheck, num_passing: int, failure: str | None) -> None: ...


class CheckedSamples(ListedSamples):
    """The first samples of a source, all in memory, with the outcomes of slow checks.

    Args:
        items: The samples.
        outcomes: What is known of the source.
    """

    def __init__(self, items: Iterable[Sample], outcomes: Passing) -> None:
        super().__init__(items)
        self._outcomes = outcomes

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        is_beginning = isinstance(place, slice) and place.indices(len(self))[::2] == (0, 1)
        return CheckedSamples(found, self._outcomes) if is_beginning else found

    def first_failure(self, check: RowCheck) -> tuple[int, str] | None:
        if not check.slow:
            return super().first_failure(check)
        known = self._outcomes
        if (start := known.num_passing(check)) < len(self) and known.failure(check) is None:
            row, reason = _first_failure(self._items, check, start) or (len(self), None)
            known.note(check, row, reason)
        return known.first_failure(check, len(self))


def _first_failure(samples: Sequence[Sample], check: RowCheck, start: int) -> tuple[int, str] | None:
    """The first of the samples from a place on that fails a check."""
    reasons = ((row, check.reason(samples[row])) for row in range(start, len(samples)))
    return next(((row, reason) for row, reason in reasons if reason is not None), None)


def samples_of(samples: Sequence[Sample]) -> Samples:
    """The samples as `Samples`, which they may be already."""
    return samples if isinstance(samples, Samples) else ListedSamples(samples)


def kinds_of(sample: Sample) -> int:
    """The kinds of media of a sample, as a sum of `KIND_BITS`."""
    found = 0
    for ref in sample.media:
        found |= KIND_BITS[ref.kind]
    return found


def content_digest(sample: Sample, *, with_pair: bool = True) -> str:
    """A short digest of a sample's messages and media and, `with_pair`, of its answers if it has a pair of them."""
    turns = [[message.role, message.content] for message in sample.messages]
    media = [[ref.kind, ref.path, ref.start_s, ref.end_s] for ref in sample.media]
    pair = [sample.extras[side] for side in (CHOSEN, REJECTED) if with_pair and side in sample.extras]
    return hashlib.blake2b(json.dumps([turns, media, *pair]).encode(), digest_size=4).hexdigest()


def first_medium(samples: Sequence[Sample], kinds: Collection[MediaKind]) -> tuple[Sample, MediaKind] | None:
    """The first sample that has a medium of one of some kinds, and the kind of the first such medium."""
    wanted = sum(KIND_BITS[kind] for kind in kinds)
    rows = np.flatnonzero(samples_of(samples).kinds() & wanted)
    if not len(rows):
        return None
    sample = samples[int(rows[0])]
    return sample, next(ref.kind for ref in sample.media if ref.kind in kinds)
