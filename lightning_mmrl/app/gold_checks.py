"""Checks before training that the judge of a reward or a task can read the solution of every sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lightning_mmrl.data.row_index import code_digest
from lightning_mmrl.data.samples import RowCheck
from lightning_mmrl.errors import DataError, MmrlError
from lightning_mmrl.evaluation.tasks.guarded import GuardedJudge
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.protocols.plain import GoldReader
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.hard_format_result import HardFormatResult
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Sample

LINEAR = (LabelAnswer, ChoiceAnswer, EmotionSet, TextAnswer)
"""Judges that read a solution in linear time."""
NOTHING = Completion(text="", num_tokens=0, truncated=False)
READERS = ("math-verify", "latex2sympy2-extended", "sympy", "antlr4-python3-runtime")
"""Packages that read mathematics."""
SETTLED = (
    "lightning_mmrl.rewards.choice_answer.ChoiceAnswer",
    "lightning_mmrl.rewards.math_answer.MathAnswer",
    "lightning_mmrl.rewards.mixed_answer.MixedAnswer",
    "lightning_mmrl.rewards.text_answer.TextAnswer",
)
"""Judges whose settings, which are plain values, and code decide how they read; named, since some import slowly."""
Check = Callable[[str, Sequence[Sample]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GoldCheck:
    """Reads the solution of a sample as a judge that may hang; 1.0 if it can be read."""

    judge: GoldReader

    def __call__(self, sample: Sample, completion: Completion) -> float:
        self.judge.check_gold(sample)
        return 1.0


@dataclass(frozen=True, kw_only=True)
class GoldTest:
    """Refuses a sample whose solution a judge cannot read.

    All judges but `LINEAR` read in a process that is killed at the deadline of the rewards, since math-verify may hang.

    Attributes:
        judge: The judge.
        path: Its key, for the message.
        limit_s: Seconds that it may take for a solution.
    """

    judge: GoldReader
    path: str = field(compare=False)
    limit_s: float

    def __call__(self, sample: Sample) -> None:
        """Reads the solution.

        Raises:
            DataError: It cannot be read; the message names the sample, its solution and the fix.
        """
        try:
            if self.is_linear:
                self.judge.check_gold(sample)
                return
            problem = self._guarded(sample, NOTHING).problem
        except MmrlError as error:
            problem = str(error)
        if problem is not None:
            raise DataError(f"{problem}; {self.path} is the judge, and another one may read it")

    @property
    def is_linear(self) -> bool:
        """Whether the judge reads in linear time."""
        judge = self.judge
        return isinstance(judge.result if isinstance(judge, HardFormatResult) else judge, LINEAR)

    @cached_property
    def _guarded(self) -> GuardedJudge:
        return GuardedJudge(_GoldCheck(judge=self.judge), self.limit_s)


def gold_check(path: str, judge: GoldReader, settings: RewardSettings) -> Check:
    """The check that a judge can read the solutions of samples.

    The outcome is kept if all that decides it is known: the judge is of this package, and so are its parts.

    Args:
        path: Key of the judge.
        judge: The judge.
        settings: The rewards that the judge is a part of.
    """
    test = GoldTest(judge=judge, path=path, limit_s=settings.deadline_s)
    reader = judge.result if isinstance(judge, HardFormatResult) else judge
    return _kept(test, {"check": "gold", "deadline_s": settings.deadline_s}, reader, slow=not test.is_linear)


def task_check(task: Mathematics) -> Check:
    """The check that a task can judge answers to samples, whose outcome is kept if all that decides it is known."""
    return _kept(task.truth, {"check": "task", "deadline_s": task.deadline_s}, task.verifier, slow=True)


def _kept(test: Callable[[Sample], object], inputs: Mapping[str, Any], judge: object, *, slow: bool) -> Check:
    described = _described(judge)
    if described is None:

        def check(manifest: str, samples: Sequence[Sample]) -> None:
            for sample in samples:
                try:
                    test(sample)
                except DataError as error:
                    raise DataError(f"{manifest}: {error}") from error

        return check
    return RowCheck(test=test, inputs={**inputs, "judge": described, "code": _code()}, slow=slow)


def _code() -> Mapping[str, str]:
    """Versions of all code by which judges read solutions."""
    found = {"mmrl": code_digest("rewards", "evaluation", "workers")}
    for name in READERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _described(judge: object) -> Mapping[str, Any] | None:
    """All that decides how a judge reads, as plain values; None if it is not known."""
    kind = type(judge)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in SETTLED or not is_dataclass(judge):
        return None
    return {"_target_": name, **{each.name: getattr(judge, each.name) for each in fields(judge) if each.init}}
