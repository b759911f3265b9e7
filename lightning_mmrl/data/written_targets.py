"""Samples whose answers to learn are written from columns of their rows, each when it is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.data.answer_columns import with_target
from lightning_mmrl.data.samples import RowCheck, RowTest, Samples, Solutions, content_digest, samples_of
from lightning_mmrl.types.records import Sample


def with_targets(samples: Sequence[Sample], target: str | None) -> Sequence[Sample]:
    """The samples with another answer to learn, which is written from columns of their rows.

    The answer takes the place of the last assistant turn, or follows the turns if the last one is the user's.

    Args:
        samples: The samples.
        target: The text of the answer, in which `{NAME}` stands for a column; None: the answers are as they are.

    >>> from lightning_mmrl.types.records import Message
    >>> sample = Sample(id="a", messages=(Message(role="user", content="Which emotion?"),), solution="angry")
    >>> with_targets([sample], "<answer>{solution}</answer>")[0].messages[-1].content
    '<answer>angry</answer>'
    """
    return samples if target is None else WrittenTargets(samples_of(samples), target)


class WrittenTargets(Samples):
    """Samples with answers written from columns; a sample that lacks a column raises a RowError when it is asked for.

    Args:
        samples: The samples as they are.
        text: The text of the answers.
    """

    by_place = True

    def __init__(self, samples: Samples, text: str) -> None:
        self._samples = samples
        self._text = text

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return WrittenTargets(samples_of(self._samples[place]), self._text)
        return with_target(self._samples[place], self._text)

    def kinds(self) -> NDArray[np.uint8]:
        return self._samples.kinds()

    def ids(self) -> Iterator[str]:
        return self._samples.ids()

    def solutions(self) -> Solutions:
        return self._samples.solutions()

    def rows_of(self, ids: Iterable[str]) -> dict[str, int]:
        return self._samples.rows_of(ids)

    def content(self, row: int) -> str:
        return content_digest(self[row])

    def first_failure(self, check: RowCheck) -> tuple[int, str] | None:
        return self._samples.first_failure(of_targets(check, self._text))


def of_targets(check: RowCheck, target: str | None) -> RowCheck:
    """The check of the samples as they are that says what a check would say of them with their targets."""
    if target is None:
        return check
    test = _OfTarget(test=check.test, text=target)
    return replace(check, test=test, inputs={"target": target, **check.inputs})


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfTarget:
    """Tests a sample with its target."""

    test: RowTest
    text: str

    def __call__(self, sample: Sample) -> object:
        return self.test(with_target(sample, self.text))
