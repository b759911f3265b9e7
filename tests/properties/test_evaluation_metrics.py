import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.evaluation.metrics import confusion_matrix, macro_f1, uar, war

K = 4
answers = st.lists(st.tuples(st.integers(0, K - 1), st.integers(-1, K - 1)), min_size=1, max_size=40)


def confusion_of(pairs):
    truth, predicted = zip(*pairs, strict=True)
    return confusion_matrix(truth, predicted, num_classes=K)


@given(answers, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    assert np.array_equal(confusion_of(pairs), confusion_of(shuffled))


@given(answers, st.permutations(range(K)))
def test_the_names_of_classes_do_not_matter(pairs, names):
    renamed = [(names[truth], predicted if predicted == -1 else names[predicted]) for truth, predicted in pairs]
    for metric in (war, uar, macro_f1):
        assert float(metric(confusion_of(renamed))) == pytest.approx(float(metric(confusion_of(pairs))), abs=1e-12)


@given(answers, st.lists(st.integers(1, 5), min_size=K, max_size=K))
def test_uar_is_blind_to_class_imbalance(pairs, copies):
    repeated = [pair for pair in pairs for _ in range(copies[pair[0]])]
    assert float(uar(confusion_of(repeated))) == pytest.approx(float(uar(confusion_of(pairs))), abs=1e-12)


def test_war_is_not_blind_to_class_imbalance():
    """The negative control of the property above."""
    pairs = [(0, 0), (1, 0)]
    assert war(confusion_of([*pairs, (0, 0)])) > war(confusion_of(pairs))


@given(answers)
def test_metrics_are_fractions_and_one_only_if_all_is_right(pairs):
    confusion = confusion_of(pairs)
    right = all(truth == predicted for truth, predicted in pairs)
    for metric in (war, uar, macro_f1):
        assert 0 <= metric(confusion) <= 1
        assert (metric(confusion) == 1) == right


@given(answers, st.integers(0, 39))
def test_correcting_an_answer_never_hurts(pairs, position):
    position %= len(pairs)
    corrected = [*pairs[:position], (pairs[position][0],) * 2, *pairs[position + 1 :]]
    for metric in (war, uar, macro_f1):
        assert metric(confusion_of(corrected)) >= metric(confusion_of(pairs)) - 1e-12
