"""Greedy answers to evaluation prompts and their judgement, shared by validation and evaluation."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest

from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.task_metrics import TaskMetrics
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.no_think import with_placeholder
from lightning_mmrl.prompts.reading import find_answer
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Completion, Sample

RankLocal = Callable[[], AbstractContextManager[None]]
SUBJECT = "subject"
"""Column that names the part of a set that a sample belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEvaluator:
    """Asks an engine for its greedy answer to each prompt and judges it.

    Attributes:
        engine: Generates.
        task: Judges the answers.
        subject_column: Column of the samples that names the part of the set that each belongs to.
        rank_local: Entered around the generation of each batch, which is not synchronized across ranks.
        template: Completes the answers of an engine that leaves out their opening, because it is part of the prompt.
        thoughtless: Whether the prompt holds an empty thought; the format of an answer is then judged as if the thought
            had content, since an empty thought is a fault in the format of an answer that the model wrote itself.
    """

    engine: RolloutEngine
    task: Task
    subject_column: str = SUBJECT
    rank_local: RankLocal = nullcontext
    template: PromptTemplate | None = None
    thoughtless: bool = False

    def evaluate(self, prompts: PromptBatch, ranks: Ranks = ALONE) -> list[Judgement]:
        """One judgement per prompt; a collective.

        Raises:
            RolloutError: The engine fails on some rank; raised on all of them.
        """
        seeds = [[0]] * len(prompts.samples)

        def generate() -> Rollout:
            return self.engine.generate(prompts, group_size=1, seeds=seeds, greedy=True)

        completions = generated(generate, self.rank_local, ranks).completions
        if self.template is not None:
            completions = [replace(each, text=self.template.complete(each.text)) for each in completions]
        return [self._judged(*each) for each in zip(prompts.samples, completions, strict=True)]

    def _judged(self, sample: Sample, completion: Completion) -> Judgement:
        judged, subject = self.task.judge(sample, completion), sample.extras.get(self.subject_column)
        if self.thoughtless:
            formed = replace(completion, text=with_placeholder(completion.text))
            found = find_answer(formed, self.task.answer_reading, question_of(sample))
            judged = replace(judged, valid_format=found.valid)
        return replace(
            judged,
            subject=None if subject is None else str(subject),
            num_tokens=completion.num_tokens,
            truncated=completion.truncated,
        )

    def new_metrics(self) -> TaskMetrics:
        """An empty metric of the task. It counts the judgements it is given and never syncs ranks."""
        metrics = TaskMetrics(self.task)
        metrics.sync_on_compute = False
        return metrics


def generated(generate: Callable[[], Rollout], rank_local: RankLocal, ranks: Ranks) -> Rollout:
    """Samples on this rank, while the other ranks sample on theirs; a collective.

    Raises:
        RolloutError: The engine fails on some rank; raised on all of them.
    """
    rollout, problem = None, None
    with rank_local():
        try:
            rollout = generate()
        except RolloutError as error:  # raised below, on all ranks: here the others would wait for this one
            problem = error
    problems = [each for each in ranks.gather(None if problem is None else str(problem)) if each is not None]
    if problems or rollout is None:
        raise problem or RolloutError(problems[0])
    return rollout


class Validation:
    """Metrics over one pass of all ranks through the validation prompts; every rank gets the same values.

    Args:
        evaluator: Answers the prompts and judges the answers.
        ranks: The processes that share the prompts.
        num_samples: Gives the number of samples of all ranks together; None if it is not known.
    """

    def __init__(
        self, evaluator: AnswerEvaluator, ranks: Ranks = ALONE, num_samples: Callable[[], int] | None = None
    ) -> None:
        self._evaluator = evaluator
        self._ranks = ranks
        self._num_samples = num_samples
        self._judged: list[list[Judgement]] = []

    def step(self, prompts: PromptBatch) -> None:
        """Evaluates this rank's share of one batch."""
        self._judged.append(self._evaluator.evaluate(prompts, self._ranks))

    def finish(self) -> dict[str, float]:
        """Returns the metrics that a validation reports, and forgets the answers for the next pass.

        Raises:
            StageError: The number of judged samples is not the size of the set.
        """
        metrics = self._evaluator.new_metrics()
        predictions = all_predictions(self._judged, self._ranks)
        if self._num_samples is not None:
            require_all("the validation", predictions, self._num_samples())
        metrics.update(predictions)
        self._judged = []
        values = metrics.compute()
        return {name: values[name] for name in self._evaluator.task.validated_names() if name in values}


def all_predictions(judged: Sequence[Sequence[Judgement]], ranks: Ranks) -> list[Judgement]:
    """The predictions of all ranks, batch by batch in the order of the manifest, each sample once.

    A rank whose share of a batch would be empty repeats a sample of another (`data.in_order.eval_loader`).
    """
    found: dict[str, Judgement] = {}
    for batch in zip_longest(*ranks.gather(judged), fillvalue=()):  # a loop that was cut short has fewer
        for share in batch:
            for prediction in share:
                found.setdefault(prediction.sample_id, prediction)
    return list(found.values())


def require_all(what: str, predictions: Sequence[Judgement], num_samples: int) -> None:
    """Compares the number of judged samples with the size of the set, so that no loop ends early unnoticed.

    Raises:
        StageError: The numbers differ.
    """
    if len(predictions) != num_samples:
        last = f" after sample {predictions[-1].sample_id}" if predictions else ""
        raise StageError(
            f"{what} judged {len(predictions)} of {num_samples} samples: its loop ended early{last}; nothing was "
            "written, because metrics of a part would pass for metrics of the whole"
        )
