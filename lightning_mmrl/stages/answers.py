"""Greedy answers to evaluation prompts and their judgement, shared by validation and evaluation."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest

from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.task_metrics import TaskMetrics
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.types.batches import PromptBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEvaluator:
    """Asks an engine for its greedy answer to each prompt and judges it.

    Attributes:
        engine: Generates.
        task: Judges the answers.
        rank_local: Entered around the generation of each batch, which is not synchronized across ranks.
        template: Completes the answers of an engine that leaves out their opening, because it is part of the prompt.
    """

    engine: RolloutEngine
    task: Task
    rank_local: Callable[[], AbstractContextManager[None]] = nullcontext
    template: PromptTemplate | None = None

    def evaluate(self, prompts: PromptBatch, ranks: Ranks = ALONE) -> list[Judgement]:
        """One judgement per prompt; a collective.

        Raises:
            RolloutError: The engine fails on some rank; raised on all of them.
        """
        seeds, completions, problem = [[0]] * len(prompts.samples), (), None
        with self.rank_local():
            try:
                completions = self.engine.generate(prompts, group_size=1, seeds=seeds, greedy=True).completions
            except RolloutError as error:  # raised below, on all ranks: here the others would wait for this one
                problem = error
        problems = [each for each in ranks.gather(None if problem is None else str(problem)) if each is not None]
        if problems:
            raise problem or RolloutError(problems[0])
        if self.template is not None:
            completions = [replace(each, text=self.template.complete(each.text)) for each in completions]
        return [
            self.task.judge(sample, completion) for sample, completion in zip(prompts.samples, completions, strict=True)
        ]

    def new_metrics(self) -> TaskMetrics:
        """An empty metric of the task. It counts the judgements it is given and never syncs ranks."""
        metrics = TaskMetrics(self.task)
        metrics.sync_on_compute = False
        return metrics


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
