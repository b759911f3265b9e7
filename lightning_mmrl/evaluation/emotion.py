"""The emotion metrics as one `torchmetrics.Metric`, exact over ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mmrl.evaluation.metrics import confusion_matrix, macro_f1, per_class_recall, uar, war
from lightning_mmrl.evaluation.records import Prediction, class_indices


class EmotionMetrics(Metric):
    """Recognition, format and consistency of judged predictions.

    The state consists of counts that are summed over ranks, so the result equals that of one process. Samples that a
    sampler repeats to pad a rank must not be passed to `update`.

    >>> metrics = EmotionMetrics(labels=("angry", "sad"))
    >>> metrics.update([Prediction(sample_id="a", speaker=None, truth="sad", predicted="sad", valid_format=True,
    ...     consistent=None, text="")])
    >>> metrics.compute()["war"]
    1.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    confusion: Tensor
    num_valid_format: Tensor
    num_consistent: Tensor
    num_judged_consistency: Tensor
    num_grounded: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        size = len(self.labels)
        self.add_state("confusion", torch.zeros(size, size + 1, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("num_valid_format", "num_consistent", "num_judged_consistency", "num_grounded"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[Prediction]) -> None:
        """Counts predictions.

        Raises:
            DataError: A label is not one of the metric's labels.
        """
        counts = confusion_matrix(*class_indices(predictions, self.labels), num_classes=len(self.labels))
        self.confusion += torch.from_numpy(counts).to(self.confusion.device)
        self.num_valid_format += sum(each.valid_format for each in predictions)
        self.num_consistent += sum(each.consistent is True for each in predictions)
        self.num_judged_consistency += sum(each.consistent is not None for each in predictions)
        self.num_grounded += sum(each.consistent is True and each.predicted == each.truth for each in predictions)

    def compute(self) -> dict[str, float]:
        """Fractions in [0, 1]: `war`, `uar`, `macro_f1`, `valid_format`, `unparseable` and `recall/<label>`.

        `consistency` and `grounded` (the label is right and the thought implies it) exist if the predictions were
        judged with a cue lexicon. A class that is never the truth has no recall. Without predictions, all fractions
        are NaN.
        """
        confusion = self.confusion.cpu().numpy()
        total = int(confusion.sum())
        values = {
            "war": float(war(confusion)),
            "uar": float(uar(confusion)),
            "macro_f1": float(macro_f1(confusion)),
            "valid_format": _fraction(int(self.num_valid_format), total),
            "unparseable": _fraction(int(confusion[:, -1].sum()), total),
        }
        if judged := int(self.num_judged_consistency):
            values["consistency"] = _fraction(int(self.num_consistent), judged)
            values["grounded"] = _fraction(int(self.num_grounded), judged)
        recalls = zip(self.labels, per_class_recall(confusion), confusion.sum(-1), strict=True)
        return values | {f"recall/{label}": float(recall) for label, recall, support in recalls if support}


def _fraction(part: int, total: int) -> float:
    return part / total if total else float("nan")
