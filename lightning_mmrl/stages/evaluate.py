"""Evaluation of a checkpoint: greedy answers on named sets, metrics with intervals, predictions and figures on disk."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning

from lightning_mmrl.evaluation.figures import save_confusion_figure
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Prediction
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.stages.answers import Examiner, all_predictions
from lightning_mmrl.stages.context import place
from lightning_mmrl.types.batches import PromptBatch

SUMMARY = "evaluation.json"


class EvaluationModule(lightning.LightningModule):
    """Examines every set of the trainer's test loaders and writes what it finds below `directory`.

    For each set: `<set>.jsonl` with one prediction per line and `<set>.png` with the confusion matrix.
    `evaluation.json`, written last, holds the metrics and the intervals of all sets.

    Args:
        policy: The model, so that the trainer moves it to its device.
        examiner: Asks and judges.
        set_names: Names of the test loaders, in their order.
        directory: Where results go.
        bootstrap: Interval estimator.
        ranks: The processes that share the sets; rank 0 writes.
        sharding: How weights are spread over them; None if each has them all.
    """

    def __init__(
        self,
        policy: Policy,
        examiner: Examiner,
        *,
        set_names: Sequence[str],
        directory: Path,
        bootstrap: ClusterBootstrap,
        ranks: Ranks = ALONE,
        sharding: Sharding | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.results: dict[str, dict[str, Any]] = {}
        self._examiner = examiner
        self._names = list(set_names)
        self._directory = directory
        self._bootstrap = bootstrap
        self._ranks = ranks
        self._sharding = sharding
        self._predictions: list[list[list[Prediction]]] = [[] for _ in self._names]

    def configure_model(self) -> None:
        """Spreads the policy over the ranks."""
        place(self, self.policy, self._ranks, self._sharding)

    def test_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Examines one batch of one set."""
        self._predictions[dataloader_idx].append(self._examiner.examine(batch))

    def on_test_epoch_end(self) -> None:
        """Computes and writes the results of all sets."""
        writes = self._ranks.rank == 0
        if writes:
            self._directory.mkdir(parents=True, exist_ok=True)
        for name, judged in zip(self._names, self._predictions, strict=True):
            predictions = all_predictions(judged, self._ranks)
            self.results[name] = self._summarise(predictions)
            if writes:
                self._write(name, predictions)
        if not writes:
            return
        partial = self._directory / (SUMMARY + ".tmp")
        partial.write_text(json.dumps(self.results, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self._directory / SUMMARY)

    def _summarise(self, predictions: list[Prediction]) -> dict[str, Any]:
        metrics = self._examiner.new_metrics()
        metrics.update(predictions)
        intervals = self._bootstrap.intervals(predictions, self._examiner.matcher.labels)
        return {
            "num_samples": len(predictions),
            "metrics": metrics.compute(),
            "intervals": {key: asdict(interval) for key, interval in intervals.items()},
        }

    def _write(self, name: str, predictions: list[Prediction]) -> None:
        metrics = self._examiner.new_metrics()
        metrics.update(predictions)
        lines = "".join(prediction.to_json() + "\n" for prediction in predictions)
        (self._directory / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        figure = self._directory / f"{name}.png"
        save_confusion_figure(metrics.confusion.cpu().numpy(), self._examiner.matcher.labels, figure, name)
