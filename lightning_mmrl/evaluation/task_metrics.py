"""The metrics of any task as one `torchmetrics.Metric`, exact over ranks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task


class TaskMetrics(Metric):
    """The metrics of judged answers.

    The state consists of the task's sums over samples, which are summed over ranks, so the result equals that of one
    process. Samples that a sampler repeats to pad a rank must not be passed to `update`.

    >>> from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
    >>> metrics = TaskMetrics(ClosedLabels(labels=("angry", "sad")))
    >>> metrics.update([Judgement(sample_id="a", speaker=None, truth="sad", predicted="sad", valid_format=True,
    ...     text="")])
    >>> metrics.compute()["war"]
    1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    sums: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.add_state("sums", self._summed([]), dist_reduce_fx="sum")

    def update(self, judgements: Sequence[Judgement]) -> None:
        """Counts judged answers.

        Raises:
            DataError: A judgement is of another task.
        """
        self.sums += self._summed(judgements).to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """The metrics of the task, see `Task.measured`."""
        return self.task.measured(self.sums.cpu().numpy())

    def _summed(self, judgements: Sequence[Judgement]) -> Tensor:
        units = np.zeros(len(judgements), dtype=np.int64)
        return torch.from_numpy(self.task.unit_sums(judgements, units, 1)[0])
