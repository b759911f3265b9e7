"""Free-form mathematics: a verifier says whether the answer equals the solution."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.guarded import GuardedJudge, Judge
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.reading import find_answer
from lightning_mmrl.types.records import Completion, Sample

PLAIN = "tag"
"""The reading of a verifier that names none."""


@runtime_checkable
class Reader(Protocol):
    """A verifier that says where it reads the answer, by a name of `prompts.reading.READINGS`."""

    @property
    def reading(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Mathematics(Task):
    """Accuracy by a verifier, such as `MathAnswer` or `MixedAnswer`: an answer is right if it earns 1 or more.

    The verifier runs in a process of its own, which is killed if it takes longer than `deadline_s` seconds for an
    answer. If the verifier gives no value, the answer counts as wrong; `unjudged` is the share of such answers.
    `unparseable` is the share of completions without one unambiguous answer, under the verifier's `reading`. Unless it
    reads tags alone, all others have a valid format.

    Raises:
        ConfigError: The deadline is not positive.
    """

    verifier: Judge
    deadline_s: float = 8.0

    kind: ClassVar[str] = "mathematics"
    title: ClassVar[str] = "Mathematics by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="accuracy", title="accuracy", interval=True),
        VALID_FORMAT,
        Measure(name="unparseable", title="no answer", validated=False, on_card=False),
        Measure(name="unjudged", title="unjudged", validated=False, in_table=False, on_card=False),
    )

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ConfigError(f"deadline_s is {self.deadline_s}; it must be above 0 seconds")

    @cached_property
    def guarded(self) -> GuardedJudge:
        """The verifier in its process."""
        return GuardedJudge(self.verifier, self.deadline_s)

    @property
    def answer_reading(self) -> str:
        """The reading of the verifier."""
        return self.verifier.reading if isinstance(self.verifier, Reader) else PLAIN

    def truth(self, sample: Sample) -> str:
        """The sample's solution.

        Raises:
            DataError: The verifier cannot judge answers by this solution.
        """
        verdict = self.guarded(sample, Completion(text="", num_tokens=0, truncated=False))
        if verdict.problem is not None:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, which cannot be judged "
                f"({verdict.problem}); correct the manifest, or give the set another task"
            )
        return sample.solution or ""

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format and answer; an answer without a verdict is wrong."""
        found = find_answer(completion, self.answer_reading, question_of(sample))
        verdict = self.guarded(sample, completion)
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=sample.solution or "",
            predicted=found.text,
            valid_format=found.valid,
            text=completion.text,
            scores={
                "accuracy": float(verdict.value is not None and verdict.value >= 1),
                "unparseable": float(found.text is None),
                "unjudged": float(verdict.value is None),
            },
        )
