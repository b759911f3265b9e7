"""Keeps the weights of the best validation of a stage."""

import math
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from lightning_mmrl.protocols.ranks import Ranks

Best = dict[str, Any]
"""What is known of the best validation: its `step`, the name of the `metric`, and its `value`."""


class BestWeights(Callback):
    """Has the weights written at each validation that is better than all before it, on all ranks together.

    The folder that was written last says what is best, so that nothing of it must be in the state of the stage. A stage
    that goes on from a state repeats its validations after that state, and finds their weights in the folder, or writes
    them again if it was killed meanwhile. This callback must come before the one that notes safe points: a validation
    whose weights are not on disk yet is then done again.

    Args:
        known: Reads what the folder says; None if there is none. Called on rank 0.
        write: Replaces the folder; all ranks call it.
        ranks: The processes that hold the weights.
    """

    def __init__(self, known: Callable[[], Best | None], write: Callable[[Best], None], ranks: Ranks) -> None:
        self._known = known
        self._write = write
        self._ranks = ranks

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Compares the validation with the best one so far."""
        metric = next(iter(pl_module.headline))
        value = pl_module.latest.get(metric, math.nan)
        best = self._ranks.gather(self._known() if self._ranks.rank == 0 else None)[0]
        if not math.isnan(value) and (best is None or value > best["value"]):
            step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            self._write({"step": step, "metric": metric, "value": value})
