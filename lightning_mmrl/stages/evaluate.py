"""Evaluation of a checkpoint: greedy answers on named sets, metrics with intervals, predictions and figures on disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning

from lightning_mmrl.evaluation.breakdown import breakdown
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import COUNTED_WRONG, Judgement
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.files import write_whole, writing
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.stages.answers import AnswerEvaluator, all_predictions, require_all
from lightning_mmrl.stages.context import place
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.records import Sample

SUMMARY = "evaluation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedSet:
    """The content of a test loader, and its judge.

    Attributes:
        name: Name of the set.
        num_samples: Number of samples, also of samples that are left out.
        evaluator: Answers the prompts and judges the answers.
        left_out: Gives the samples that are left out, with their reasons; asked when the loader was read to its end.
    """

    name: str
    num_samples: int
    evaluator: AnswerEvaluator
    left_out: Callable[[], Sequence[tuple[Sample, str]]] = tuple


class EvaluationModule(lightning.LightningModule):
    """Evaluates every set of the trainer's test loaders and writes the results below `directory`.

    For each set: `<set>.jsonl` with one prediction per line, and `<set>.png` if its task draws a figure.
    `evaluation.json`, written last, holds the metrics, the intervals and the `breakdown` of all sets, and names the
    samples that were left out. If there are any, the metrics of a validation come twice: without these samples, and
    with each counted as wrong.

    Args:
        policy: The model, so that the trainer moves it to its device.
        sets: The sets of the test loaders, in their order; each has its own evaluator.
        directory: Folder of the results.
        bootstrap: Interval estimator.
        ranks: The processes that share the sets; rank 0 writes.
        sharding: How weights are spread over the ranks; None if each rank has all of them.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sets: Sequence[EvaluatedSet],
        directory: Path,
        bootstrap: ClusterBootstrap,
        ranks: Ranks = ALONE,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.results: dict[str, dict[str, Any]] = {}
        self._sets = list(sets)
        self._directory = directory
        self._bootstrap = bootstrap
        self._ranks = ranks
        self._sharding = sharding
        self._predictions: list[list[list[Judgement]]] = [[] for _ in self._sets]

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._ranks, self._sharding)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates one batch of one set."""
        evaluator = self._sets[dataloader_idx].evaluator
        self._predictions[dataloader_idx].append(evaluator.evaluate(batch, self._ranks))

    def on_test_epoch_end(self) -> None:
        """Computes and writes the results of all sets.

        Raises:
            StageError: Fewer samples were judged than a set holds.
        """
        found = {
            each.name: all_predictions(judged, self._ranks)
            for each, judged in zip(self._sets, self._predictions, strict=True)
        }
        for each in self._sets:
            num_usable = each.num_samples - len(each.left_out())
            require_all(f"the evaluation on {each.name}", found[each.name], num_usable)
        writes = self._ranks.rank == 0
        for each in self._sets:
            self.results[each.name] = self._summarize(each, found[each.name])
            if writes:
                self._write(each, found[each.name])
        if not writes:
            return
        write_whole(self._directory / SUMMARY, json.dumps(self.results, indent=2) + "\n")

    def _summarize(self, evaluated: EvaluatedSet, predictions: list[Judgement]) -> dict[str, Any]:
        task, left_out = evaluated.evaluator.task, evaluated.left_out()
        values, intervals = self._measured(task, predictions)
        if left_out:
            wrong = [task.unanswered(sample) for sample, _ in left_out]
            more, wider = self._measured(task, [*predictions, *wrong])
            values |= {f"{key}{COUNTED_WRONG}": more[key] for key in task.validated_names() if key in more}
            intervals |= {f"{key}{COUNTED_WRONG}": interval for key, interval in wider.items()}
        return {
            **task.described(),
            "num_samples": len(predictions),
            "left_out": [{"sample_id": sample.id, "reason": reason} for sample, reason in left_out],
            "metrics": values,
            "intervals": {key: asdict(interval) for key, interval in intervals.items()},
            **breakdown(predictions, [task.is_right(each) for each in predictions]),
        }

    def _measured(self, task: Task, predictions: list[Judgement]) -> tuple[dict[str, float], dict[str, Interval]]:
        return task.metrics(predictions), self._bootstrap.intervals(predictions, task)

    def _write(self, evaluated: EvaluatedSet, predictions: list[Judgement]) -> None:
        lines = "".join(prediction.to_json() + "\n" for prediction in predictions)
        write_whole(self._directory / f"{evaluated.name}.jsonl", lines)
        figure = self._directory / f"{evaluated.name}.png"
        with writing(figure):
            evaluated.evaluator.task.save_figure(predictions, figure, evaluated.name)
