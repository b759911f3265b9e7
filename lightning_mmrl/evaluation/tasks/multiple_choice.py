"""Multiple choice: the answer names the right letter, or gives the exact text of its option."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.reading import find_answer
from lightning_mmrl.types.records import Completion, Sample


class ChoiceReader(Protocol):
    """Reads the choice of a solution and of a completion, as the reward `ChoiceAnswer` does; None if there is none."""

    @property
    def reading(self) -> str: ...

    def truth(self, sample: Sample) -> str | None: ...

    def choice(self, sample: Sample, completion: Completion) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice(Task):
    """Accuracy over questions with lettered options.

    `reader` reads the choice: by default a letter, or the exact text of one option up to case and typography. The
    options are the manifest's column `options` (a list, from A on), or lines of the question such as `B) a red car`.
    The solution is read in the same way.
    """

    reader: ChoiceReader

    kind: ClassVar[str] = "multiple-choice"
    title: ClassVar[str] = "Multiple choice by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="accuracy", title="accuracy", interval=True),
        VALID_FORMAT,
        Measure(name="unparseable", title="no choice", validated=False, on_card=False),
    )

    def truth(self, sample: Sample) -> str:
        """The right letter.

        Raises:
            DataError: The solution is missing, or names no letter and no option.
        """
        letter = self.reader.truth(sample)
        if letter is None:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names no letter and no option; "
                "correct the manifest, or widen the choices"
            )
        return letter

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format and choice."""
        truth, predicted = self.truth(sample), self.reader.choice(sample, completion)
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=truth,
            predicted=predicted,
            valid_format=find_answer(completion, self.reader.reading, question_of(sample)).valid,
            text=completion.text,
            scores={"accuracy": float(predicted == truth), "unparseable": float(predicted is None)},
        )
