"""Shows a stage's progress: stage k of n, iteration, reward, accuracy, time left."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from lightning_mmrl.stages.costs import step_metrics
from lightning_mmrl.stages.sample import SampleModule
from lightning_mmrl.training.console import ConsoleProgress, format_costs, format_metrics

SHOWN = {
    "train/loss": "loss",
    "rollout/reward_mean": "reward",
    "rollout/label": "accuracy",
    "rollout/groups_with_signal": "signal",
    "train/reward_margin": "margin",
    "train/pair_accuracy": "preferred",
}


class StageProgress(Callback):
    """Shows the module's `latest` metrics after every batch, the `headline` of its validation among them.

    Args:
        console: Where to show them.
        title: Title of the stage, such as "stage 2 of 3 reason".
    """

    def __init__(self, console: ConsoleProgress, title: str) -> None:
        self._console = console
        self._title = title

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Advances by one step."""
        total = pl_module.ending.expected_steps(batch_idx + 1)
        costs = format_costs(step_metrics(pl_module.costs.step))  # `latest` keeps phases that other steps had
        shown = (format_metrics(pl_module.latest, SHOWN | pl_module.headline), costs)
        self._console.update(self._title, batch_idx + 1, total, "  ".join(filter(None, shown)))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Reports a stage that ended itself."""
        if trainer.should_stop and not trainer.interrupted:
            done = trainer.fit_loop.epoch_loop.batch_idx + 1
            if pl_module.ending.spends:
                self._console.say(f"{self._title}: its budget is spent after {done} steps")
            else:
                total = trainer.num_training_batches
                self._console.say(f"{self._title}: stop_when is met after {done} of {total} steps")


class EvaluationProgress(Callback):
    """Shows how many evaluation batches are done."""

    def __init__(self, console: ConsoleProgress, title: str) -> None:
        self._console = console
        self._title = title
        self._done = self._total = 0

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advances by one batch."""
        self._done += 1
        batches = trainer.num_test_batches
        self._total = sum(int(count) for count in batches) if isinstance(batches, list) else int(batches)
        costs = format_costs(step_metrics(pl_module.costs.step)) if isinstance(pl_module, SampleModule) else ""
        self._console.update(self._title, self._done, self._total, costs)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ends the bar if samples were left out on the way, so that there were fewer batches."""
        if 0 < self._done < self._total:
            self._console.update(self._title, self._done, self._done)
