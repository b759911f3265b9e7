"""Recognition metrics of a closed label set, as functions of a confusion matrix.

A confusion matrix has one row per true class, one column per predicted class, and a last column for answers that name
no class: [..., K, K + 1]. Leading axes, such as resamples, are kept.

Unparsed answers are wrong in all metrics. WAR and UAR follow the evaluation scripts of R1-Omni
(humanomni/eval/eval_mafw_dfew.py, arXiv:2503.05379, table 2): both average over the classes that occur in the truth.
The macro average of torchmetrics leaves out only classes that are neither true nor predicted. There, an extra class
"unparsed", or a class that is predicted but never true, would count with recall 0.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_mmrl.errors import DataError

UNPARSED = -1


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Counts pairs of true and predicted class indices [N]; a prediction of -1 is unparsed and goes to the last column.

    Raises:
        DataError: The lengths differ, or an index is out of range.

    >>> confusion_matrix([0, 0, 1], [0, -1, 0], num_classes=2)
    array([[1, 0, 1],
           [1, 0, 0]])
    """
    rows, columns = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if rows.shape != columns.shape or rows.ndim != 1:
        raise DataError(f"truth has shape {rows.shape}, predicted {columns.shape}; both must be [N]")
    if np.any((rows < 0) | (rows >= num_classes)):
        raise DataError(f"truth holds an index outside 0..{num_classes - 1}")
    if np.any((columns < UNPARSED) | (columns >= num_classes)):
        raise DataError(f"predicted holds an index outside {UNPARSED}..{num_classes - 1}")
    cells = rows * (num_classes + 1) + np.where(columns == UNPARSED, num_classes, columns)
    return np.bincount(cells, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def war(confusion: ArrayLike) -> NDArray[np.float64]:
    """Weighted average recall: sum_c (n_c / N) * recall_c, which equals accuracy; unparsed answers are wrong.

    >>> float(war([[3, 0, 0], [1, 0, 0]]))
    0.75
    """
    counts = _counts(confusion)
    return ratio(_hits(counts).sum(-1), counts.sum((-1, -2)))


def per_class_recall(confusion: ArrayLike) -> NDArray[np.float64]:
    """recall_c = hits_c / n_c, [..., K]; NaN for a class that is never the truth.

    >>> per_class_recall([[3, 0, 1], [0, 0, 0]])
    array([0.75,  nan])
    """
    counts = _counts(confusion)
    return ratio(_hits(counts), counts.sum(-1))


def uar(confusion: ArrayLike) -> NDArray[np.float64]:
    """Unweighted average recall: the mean of recall_c over the classes with n_c > 0.

    >>> float(uar([[3, 0, 0], [1, 0, 0]]))
    0.5
    """
    return _mean_of_supported(per_class_recall(confusion), _counts(confusion))


def macro_f1(confusion: ArrayLike) -> NDArray[np.float64]:
    """The mean of F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c) over the classes with n_c > 0.

    FP_c counts each sample of another class that was predicted as c. An unparsed answer is a false negative of its
    true class.

    >>> float(macro_f1([[1, 1, 0], [0, 2, 0]]))
    0.7333333333333334
    """
    counts = _counts(confusion)
    return _mean_of_supported(_f1(counts), counts)


def weighted_f1(confusion: ArrayLike) -> NDArray[np.float64]:
    """sum_c (n_c / N) * F1_c with the F1_c of `macro_f1`: the WAF of the MER challenges (arXiv:2304.08981).

    It equals scikit-learn's `f1_score(average="weighted")` with unparsed answers as a class of their own.

    >>> float(weighted_f1([[2, 1, 0], [0, 1, 0]]))
    0.7666666666666667
    """
    counts = _counts(confusion)
    return ratio((counts.sum(-1) * np.nan_to_num(_f1(counts))).sum(-1), counts.sum((-1, -2)))


def _f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return ratio(2 * _hits(counts), counts.sum(-1) + counts[..., :-1].sum(-2))


def _counts(confusion: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] + 1:
        raise DataError(
            f"a confusion matrix must be [..., K, K + 1], found {list(counts.shape)}; add the unparsed column"
        )
    return counts


def _hits(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diagonal(counts, axis1=-2, axis2=-1)


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient, with NaN where the denominator is 0, and without a warning.

    >>> ratio(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    array([0.5, nan])
    """
    return np.divide(numerator, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)


def _mean_of_supported(values: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    supported = counts.sum(-1) > 0
    return ratio(np.where(supported, values, 0.0).sum(-1), supported.sum(-1).astype(np.float64))
