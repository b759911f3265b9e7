import numpy as np
import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.metrics import confusion_matrix, macro_f1, per_class_recall, uar, war

# Three classes; the last column is unparsed. Supports 4, 4, 2; hits 3, 1, 2.
CONFUSION = np.array([[3, 1, 0, 0], [1, 1, 1, 1], [0, 0, 2, 0]])


def test_confusion_counts_pairs():
    assert confusion_matrix([0, 0, 1, 2, 2], [0, 1, -1, 2, -1], num_classes=3).tolist() == [
        [1, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 1],
    ]
    assert confusion_matrix([], [], num_classes=2).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("truth", "predicted", "sentence"),
    [
        ([0, 1], [0], "shape"),
        ([[0]], [[0]], "shape"),
        ([3], [0], "truth"),
        ([-1], [0], "truth"),
        ([0], [3], "predicted"),
        ([0], [-2], "predicted"),
    ],
)
def test_indices_out_of_range_are_refused(truth, predicted, sentence):
    with pytest.raises(DataError, match=sentence):
        confusion_matrix(truth, predicted, num_classes=3)


def test_values_by_hand():
    assert war(CONFUSION) == pytest.approx(6 / 10)
    assert per_class_recall(CONFUSION).tolist() == pytest.approx([3 / 4, 1 / 4, 1.0])
    assert uar(CONFUSION) == pytest.approx((3 / 4 + 1 / 4 + 1) / 3)
    # F1: 2*3/(4+4), 2*1/(4+2), 2*2/(2+3)
    assert macro_f1(CONFUSION) == pytest.approx((6 / 8 + 2 / 6 + 4 / 5) / 3)


def test_an_unparsed_answer_is_wrong_but_no_class():
    parsed, unparsed = np.array([[2, 0, 0], [0, 1, 0]]), np.array([[2, 0, 0], [0, 1, 1]])
    assert (war(parsed), uar(parsed)) == (1.0, 1.0)
    assert (war(unparsed), uar(unparsed)) == (0.75, 0.75)


def test_a_class_without_support_is_left_out_even_if_predicted():
    confusion = np.array([[1, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0]])
    assert uar(confusion) == pytest.approx((1 / 2 + 1) / 2)
    assert macro_f1(confusion) == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(per_class_recall(confusion)[2])


def test_nothing_gives_nan_without_a_warning():
    empty = np.zeros((2, 3))
    assert np.isnan([war(empty), uar(empty), macro_f1(empty)]).all()


def test_leading_axes_are_kept():
    stack = np.stack([CONFUSION, 2 * CONFUSION, np.flip(CONFUSION, 0)]).reshape(3, 1, 3, 4)
    for metric in (war, uar, macro_f1):
        values = metric(stack)
        assert values.shape == (3, 1)
        assert values[:, 0].tolist() == pytest.approx([float(metric(matrix[0])) for matrix in stack])


def test_a_matrix_without_the_unparsed_column_is_refused():
    with pytest.raises(DataError, match="unparsed column"):
        uar(np.eye(3))
