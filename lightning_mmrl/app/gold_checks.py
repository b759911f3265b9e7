"""Checks before training that the judge of a reward can read the solution of every sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_mmrl.errors import DataError, MmrlError
from lightning_mmrl.evaluation.tasks.guarded import GuardedJudge
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _GoldCheck:
    """Reads the solution of a sample as a judge that may hang; 1.0 if it can be read."""

    judge: GoldReader

    def __call__(self, sample: Sample, completion: Completion) -> float:
        self.judge.check_gold(sample)
        return 1.0


def check_golds(
    manifest: str, samples: Sequence[Sample], *, path: str, judge: GoldReader, settings: RewardSettings
) -> None:
    """Refuses samples whose solution a judge cannot read.

    All judges but `LINEAR` read in a process that is killed at the deadline of the rewards, since math-verify may hang.

    Args:
        manifest: Name of the manifest.
        samples: Its samples.
        path: Key of the judge.
        judge: The judge.
        settings: The rewards that the judge is a part of.

    Raises:
        DataError: A solution cannot be read; the message names the manifest, the sample, its solution and the fix.
    """
    guarded = GuardedJudge(_GoldCheck(judge=judge), settings.deadline_s) if _may_hang(judge) else None
    for sample in samples:
        try:
            problem = None if guarded is None else guarded(sample, NOTHING).problem
            if guarded is None:
                judge.check_gold(sample)
        except MmrlError as error:
            problem = str(error)
        if problem is not None:
            raise DataError(f"{manifest}: {problem}; {path} is the judge, and another one may read it")


def _may_hang(judge: object) -> bool:
    return not isinstance(judge.result if isinstance(judge, HardFormatResult) else judge, LINEAR)
