"""Metrics against the formula of R1-Omni's evaluation scripts in plain Python, and against torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_mmrl.evaluation.metrics import confusion_matrix, macro_f1, uar, war


def drawn(seed, num_classes, size, *, unparsed, first_class=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(first_class, num_classes, size)
    guess = generator.integers(-1 if unparsed else first_class, num_classes, size)
    return truth, np.where(generator.random(size) < 0.5, truth, guess)


def released_formula(truth, predicted):
    """WAR = sum_c n_c / N * recall_c; UAR = mean recall_c; c over the classes in the truth."""
    recalls, shares = [], []
    for c in sorted(set(truth.tolist())):
        rows = [p for t, p in zip(truth.tolist(), predicted.tolist(), strict=True) if t == c]
        recalls.append(rows.count(c) / len(rows))
        shares.append(len(rows) / len(truth))
    return sum(s * r for s, r in zip(shares, recalls, strict=True)), sum(recalls) / len(recalls)


@pytest.mark.parametrize("unparsed", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_released_formula(seed, unparsed):
    truth, predicted = drawn(seed, 7, 60, unparsed=unparsed, first_class=seed % 2)
    confusion = confusion_matrix(truth, predicted, num_classes=7)
    assert [float(war(confusion)), float(uar(confusion))] == pytest.approx(
        released_formula(truth, predicted), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_agrees_where_every_answer_is_parsed(seed):
    truth, predicted = drawn(seed, 5, 80, unparsed=False)
    assert set(truth.tolist()) == set(range(5))
    confusion = confusion_matrix(truth, predicted, num_classes=5)
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    assert float(uar(confusion)) == pytest.approx(float(MulticlassAccuracy(5, average="macro")(*pair)), abs=1e-6)
    assert float(war(confusion)) == pytest.approx(float(MulticlassAccuracy(5, average="micro")(*pair)), abs=1e-6)
    assert float(macro_f1(confusion)) == pytest.approx(float(MulticlassF1Score(5, average="macro")(*pair)), abs=1e-6)


def test_torchmetrics_with_an_unparsed_class_is_too_low():
    """The trap that the extra column avoids: the sixth class counts with recall 0."""
    truth, predicted = drawn(0, 5, 80, unparsed=True)
    confusion = confusion_matrix(truth, predicted, num_classes=5)
    sixth = torch.from_numpy(np.where(predicted == -1, 5, predicted)), torch.from_numpy(truth)
    trapped = float(MulticlassAccuracy(6, average="macro")(*sixth))
    assert trapped == pytest.approx(float(uar(confusion)) * 5 / 6, abs=1e-6)


def test_torchmetrics_with_a_predicted_but_absent_class_is_too_low():
    truth, predicted = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])
    ours = float(uar(confusion_matrix(truth, predicted, num_classes=3)))
    assert ours == pytest.approx(0.75)
    assert float(MulticlassAccuracy(3, average="macro")(predicted, truth)) == pytest.approx(0.5)
