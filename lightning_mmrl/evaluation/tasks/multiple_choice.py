"""Multiple choice: the answer names the right letter, or gives the exact text of its option."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.labels import normalized
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample

OPTIONS = "options"
"""Column of a manifest with the texts of the options, from A on; without it they are read from the question's lines."""
_OPTION_LINE = re.compile(r"^[ \t]*[(\[]?([A-Z])[).:\]][ \t]+(\S.*)$", re.MULTILINE)


class LetterReader(Protocol):
    """Reads the one letter that an answer names, as the reward `ChoiceAnswer` does; None if there is no such letter.

    `options` is a text that lists the options.
    """

    def read(self, answer: str, options: str = "") -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice(Task):
    """Accuracy over questions with lettered options.

    An answer names a letter as `reader` reads it, or is the exact text of one option up to case and typography. The
    options are the manifest's column `options` (a list, from A on), or lines of the question such as `B) a red car`.
    A text that two options share names neither of them, and a single character is never taken for an option's text. The
    solution is read in the same way.
    """

    reader: LetterReader

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
        options = options_of(sample)
        letter = None if sample.solution is None else self._read(sample.solution, sample.solution, options)
        if letter is None:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which names no letter and no option; "
                "correct the manifest, or widen the choices"
            )
        return letter

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format and choice."""
        truth, scanned = self.truth(sample), scan(completion.text)
        predicted = None
        if scanned.answer is not None:
            context = f"{question_of(sample)}\n{sample.solution}"
            predicted = self._read(scanned.answer, context, options_of(sample))
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=truth,
            predicted=predicted,
            valid_format=scanned.valid,
            text=completion.text,
            scores={"accuracy": float(predicted == truth), "unparseable": float(predicted is None)},
        )

    def _read(self, answer: str, context: str, options: Mapping[str, str]) -> str | None:
        """Returns the letter of the option whose text is the answer, or else the letter that `reader` reads."""
        words = normalized(answer)
        named = [letter for letter, text in options.items() if len(words) > 1 and normalized(text) == words]
        return named[0] if len(named) == 1 else self.reader.read(answer, context)


def options_of(sample: Sample) -> dict[str, str]:
    r"""Letter to text of each option; empty if the sample lists none.

    >>> from lightning_mmrl.types.records import Message
    >>> question = Message(role="user", content="Which color?\nA) red\nB) dark blue")
    >>> options_of(Sample(id="q1", messages=(question,)))
    {'A': 'red', 'B': 'dark blue'}
    """
    column = sample.extras.get(OPTIONS)
    if isinstance(column, list | tuple):
        return {chr(ord("A") + place): str(text) for place, text in enumerate(column)}
    return dict(_OPTION_LINE.findall(question_of(sample)))
