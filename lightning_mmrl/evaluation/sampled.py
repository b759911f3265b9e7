"""The task of answering each question n times: pass@k and maj@k, and what they rest on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Measure, Task
from lightning_mmrl.evaluation.votes import best_of, powers_of_two, vote_of
from lightning_mmrl.types.records import Completion, Sample

SAMPLED = "sampled"
"""Variant of an evaluation that samples several answers; its results are named `<set>-sampled`."""


@dataclass(frozen=True, kw_only=True)
class SampledAnswers(Task):
    """pass@k and maj@k for each power of two k up to n, averaged over questions that were answered n times.

    `whole` is the task of the set, which judges each answer and says how right it is (`Task.rightness`). pass@k is
    `votes.best_of` these values: for answers that are right or wrong, the unbiased estimate of arXiv:2107.03374, eq. 1;
    for a task whose answers may be partly right, such as sets of words, the expected best value of k answers. maj@k is
    `votes.vote_of` the answers as the task reads them, so answers that mean the same and are read differently count
    apart. pass@1 is the mean accuracy of an answer. `maj_at_1` would be the same number, so it is left out.
    """

    whole: Task
    num_answers: int
    measures: Sequence[Measure] = field(init=False, repr=False, compare=False)  # type: ignore[misc]

    kind: ClassVar[str] = "sampled-answers"
    title: ClassVar[str] = "Sampled answers by stage"
    headline: ClassVar[str] = "pass_at_1"

    def __post_init__(self) -> None:
        sizes = powers_of_two(self.num_answers)
        shown = (sizes[0], sizes[-1])
        passes = [(f"pass_at_{k}", f"pass@{k}", k in shown) for k in sizes]
        majorities = [(f"maj_at_{k}", f"maj@{k}", k in shown) for k in sizes[1:]]
        measures = [
            Measure(name=name, title=title, interval=True, in_table=in_table)
            for name, title, in_table in passes + majorities
        ]
        shares = (
            Measure(name="formatted", title="valid format"),
            Measure(name="unread", title="unparsed", validated=False, on_card=False),
        )
        object.__setattr__(self, "measures", (*measures, *shares))

    def truth(self, sample: Sample) -> Any:
        """The right answer."""
        return self.whole.truth(sample)

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges a question that got the same completion each time."""
        return self.judge_all(sample, [completion] * self.num_answers)

    def judge_all(self, sample: Sample, completions: Sequence[Completion]) -> Judgement:
        """Judges the n completions of a question.

        The judgement names the answer with the most votes, and of several such answers the one that was sampled first;
        its text and format are those of the first completion with that answer. No metric depends on this choice.
        """
        judged = [self.whole.judge(sample, each) for each in completions]
        answers, scores = [each.predicted for each in judged], [self.whole.rightness(each) for each in judged]
        sizes, votes = powers_of_two(len(judged)), vote_of(answers, scores)
        passes = {f"pass_at_{k}": best_of(scores, k) for k in sizes}
        majorities = {f"maj_at_{k}": votes[k - 1] for k in sizes[1:]}
        shares = {
            "formatted": sum(each.valid_format for each in judged) / len(judged),
            "unread": answers.count(None) / len(judged),
        }
        counted = Counter(answer for answer in answers if answer is not None).most_common(1)
        shown = judged[answers.index(counted[0][0]) if counted else 0]
        return Judgement(
            sample_id=shown.sample_id,
            speaker=shown.speaker,
            truth=shown.truth,
            predicted=shown.predicted,
            valid_format=shown.valid_format,
            consistent=shown.consistent,
            text=shown.text,
            scores=passes | majorities | shares,
            completions=tuple(judged),
        )

    def described(self) -> dict[str, Any]:
        """Returns what other tasks return, and the number of answers to each question."""
        return {**Task.described(self), "samples": self.num_answers}
