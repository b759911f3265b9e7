"""Evaluation of a checkpoint: greedy answers on named sets, metrics with intervals, predictions and figures on disk."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning

from lightning_mmrl.evaluation.figures import save_confusion_figure
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import COUNTED_WRONG, Prediction
from lightning_mmrl.files import write_whole, writing
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.stages.answers import AnswerEvaluator, all_predictions, headline, require_all
from lightning_mmrl.stages.context import place
from lightning_mmrl.types.batches import PromptBatch
from lightning_mmrl.types.records import Sample

SUMMARY = "evaluation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedSet:
    """The content of a test loader: its number of samples, and the samples left out with their reasons."""

    name: str
    num_samples: int
    left_out: Sequence[tuple[Sample, str]] = ()


class EvaluationModule(lightning.LightningModule):
    """Evaluates every set of the trainer's test loaders and writes the results below `directory`.

    For each set: `<set>.jsonl` with one prediction per line and `<set>.png` with the confusion matrix.
    `evaluation.json`, written last, holds the metrics and the intervals of all sets, and names the samples that were
    left out. If there are any, the headline metrics come twice: without these samples, and with each counted as wrong.

    Args:
        policy: The model, so that the trainer moves it to its device.
        evaluator: Answers the prompts and judges the answers.
        sets: The sets of the test loaders, in their order.
        directory: Folder of the results.
        bootstrap: Interval estimator.
        ranks: The processes that share the sets; rank 0 writes.
        sharding: How weights are spread over them; None if each has them all.
    """

    def __init__(
        self,
        policy: Policy,
        evaluator: AnswerEvaluator,
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
        self._evaluator = evaluator
        self._sets = list(sets)
        self._directory = directory
        self._bootstrap = bootstrap
        self._ranks = ranks
        self._sharding = sharding
        self._predictions: list[list[list[Prediction]]] = [[] for _ in self._sets]

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._ranks, self._sharding)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates one batch of one set."""
        self._predictions[dataloader_idx].append(self._evaluator.evaluate(batch, self._ranks))

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
            require_all(f"the evaluation on {each.name}", found[each.name], each.num_samples)
        writes = self._ranks.rank == 0
        for each in self._sets:
            self.results[each.name] = self._summarize(found[each.name], each.left_out)
            if writes:
                self._write(each.name, found[each.name])
        if not writes:
            return
        write_whole(self._directory / SUMMARY, json.dumps(self.results, indent=2) + "\n")

    def _summarize(self, predictions: list[Prediction], left_out: Sequence[tuple[Sample, str]]) -> dict[str, Any]:
        values, intervals = self._measured(predictions)
        if left_out:
            wrong = [self._evaluator.unanswered(sample) for sample, _ in left_out]
            more, wider = self._measured([*predictions, *wrong])
            values |= {f"{key}{COUNTED_WRONG}": value for key, value in headline(more).items()}
            intervals |= {f"{key}{COUNTED_WRONG}": interval for key, interval in wider.items()}
        return {
            "num_samples": len(predictions),
            "left_out": [{"sample_id": sample.id, "reason": reason} for sample, reason in left_out],
            "metrics": values,
            "intervals": {key: asdict(interval) for key, interval in intervals.items()},
        }

    def _measured(self, predictions: list[Prediction]) -> tuple[dict[str, float], dict[str, Interval]]:
        metrics = self._evaluator.new_metrics()
        metrics.update(predictions)
        return metrics.compute(), self._bootstrap.intervals(predictions, self._evaluator.matcher.labels)

    def _write(self, name: str, predictions: list[Prediction]) -> None:
        metrics = self._evaluator.new_metrics()
        metrics.update(predictions)
        lines = "".join(prediction.to_json() + "\n" for prediction in predictions)
        write_whole(self._directory / f"{name}.jsonl", lines)
        figure = self._directory / f"{name}.png"
        with writing(figure):
            save_confusion_figure(metrics.confusion.cpu().numpy(), self._evaluator.matcher.labels, figure, name)
