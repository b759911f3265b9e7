"""Metrics of emotion sets against scikit-learn, and against the formulas of published scorers, on random answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from lightning_mmrl.evaluation.metrics import confusion_matrix, macro_f1, uar, war, weighted_f1
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.open_vocabulary import OpenVocabulary
from lightning_mmrl.types.records import Completion, Sample

LABELS = ("angry", "happy", "neutral", "sad")
UNREAD = "unread"
"""What the scorers see in place of an answer that names no label."""
answers = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, None])), min_size=1, max_size=30)


def measured(pairs):
    """The metrics of the task, and what a scorer is given."""
    judged = [
        Judgement(sample_id=str(place), speaker=None, truth=truth, predicted=predicted, valid_format=True, text="")
        for place, (truth, predicted) in enumerate(pairs)
    ]
    truths = [truth for truth, _ in pairs]
    return ClosedLabels(labels=LABELS).metrics(judged), truths, [predicted or UNREAD for _, predicted in pairs]


@given(answers)
def test_closed_labels_equal_scikit_learn(pairs):
    values, truths, found = measured(pairs)
    assert values["war"] == pytest.approx(accuracy_score(truths, found), abs=1e-12)
    weighted = f1_score(truths, found, average="weighted", zero_division=0)
    assert values["weighted_f1"] == pytest.approx(weighted, abs=1e-12)
    present = sorted(set(truths))
    macro = f1_score(truths, found, average="macro", labels=present, zero_division=0)
    assert values["macro_f1"] == pytest.approx(macro, abs=1e-12)
    recalls = recall_score(truths, found, average=None, labels=present, zero_division=0)
    assert {key: value for key, value in values.items() if "/" in key} == pytest.approx(
        {f"recall/{label}": recall for label, recall in zip(present, recalls, strict=True)}, abs=1e-12
    )


@given(answers)
def test_war_and_uar_equal_the_formulas_of_r1_omni(pairs):
    """The functions of humanomni/eval/eval_mafw_dfew.py, whose figures are in percent."""
    values, truths, found = measured(pairs)
    present = np.unique(truths)
    recalls = recall_score(truths, found, average=None, labels=present, zero_division=0)
    shares = np.array([np.sum(np.array(truths) == label) for label in present]) / len(truths)
    assert 100 * values["war"] == pytest.approx(100 * np.sum(shares * recalls), abs=1e-10)
    assert 100 * values["uar"] == pytest.approx(100 * np.mean(recalls), abs=1e-10)


def test_an_answer_that_is_not_read_counts_as_wrong():
    """The negative control: scorers that leave such answers out give other figures."""
    pairs = [("angry", "angry"), ("angry", None), ("sad", "sad"), ("sad", "angry")]
    values, truths, found = measured(pairs)
    read = [place for place, answer in enumerate(found) if answer != UNREAD]
    without = f1_score([truths[place] for place in read], [found[place] for place in read], average="weighted")
    assert values["weighted_f1"] == pytest.approx(f1_score(truths, found, average="weighted", zero_division=0))
    assert abs(values["weighted_f1"] - without) > 0.05
    assert (values["war"], values["uar"]) == (0.5, 0.5)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=30), st.integers(1, 4))
def test_a_repeated_set_has_the_same_metrics(pairs, times):
    once, more = (confusion_matrix(*zip(*rows, strict=True), num_classes=4) for rows in (pairs, pairs * times))
    for metric in (war, uar, macro_f1, weighted_f1):
        assert float(metric(once)) == pytest.approx(float(metric(more)), abs=1e-12)


GROUPS = {"happy": "joy", "glad": "joy", "sad": "sadness", "angry": "anger", "calm": "calm", "scared": "fear"}
OFF_WHEEL = ("seasick", "hungry")
gold = st.lists(st.sampled_from(sorted(GROUPS)), min_size=1, max_size=3, unique=True)
named = st.lists(st.sampled_from([*sorted(GROUPS), *OFF_WHEEL]), min_size=1, max_size=5, unique=True)
open_answers = st.lists(st.tuples(gold, st.none() | named), min_size=1, max_size=12)


def opened(pairs):
    """Metrics of the task, whose answers are texts; None is an answer without tags."""
    task = OpenVocabulary()
    judged = []
    for place, (wanted, words) in enumerate(pairs):
        sample = Sample(id=str(place), messages=(), solution=", ".join(wanted))
        text = "no tags" if words is None else f"<think>so</think><answer>{', '.join(words)}</answer>"
        judged.append(task.judge(sample, Completion(text=text, num_tokens=9, truncated=False)))
    return task.metrics(judged)


def affectgpt(pairs):
    """Precision, recall and F1 as `calculate_openset_overlap_rate` and `wheel_metric_calculation`, for one wheel."""
    precisions, recalls = [], []
    for wanted, words in pairs:
        truth = {GROUPS[word] for word in wanted}
        found = {GROUPS[word] for word in words or () if word in GROUPS}
        precisions.append(len(truth & found) / len(found) if found else 0)
        recalls.append(len(truth & found) / len(truth) if found else 0)
    precision, recall = np.mean(precisions), np.mean(recalls)
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(open_answers)
def test_the_wheel_metric_equals_affectgpts(pairs):
    values = opened(pairs)
    precision, recall, f1 = affectgpt(pairs)
    assert values["wheel_precision"] == pytest.approx(precision, abs=1e-12)
    assert values["recall"] == pytest.approx(recall, abs=1e-12)
    assert values["wheel_f1"] == pytest.approx(f1, abs=1e-12)


@given(st.lists(st.tuples(st.sampled_from(sorted(GROUPS)), st.none() | named), min_size=1, max_size=12))
def test_the_hit_rate_of_single_labels_equals_affectgpts(pairs):
    """`calculate_openset_onehot_hitrate`: the number of groups that answer and label share."""
    values = opened([((label,), words) for label, words in pairs])
    hits = [len({GROUPS[label]} & {GROUPS[word] for word in words or () if word in GROUPS}) for label, words in pairs]
    assert values["hit_rate"] == pytest.approx(np.mean(hits), abs=1e-12)
    assert values["hit_rate"] == pytest.approx(values["recall"], abs=1e-12)


@given(open_answers)
def test_sets_equal_a_scorer_over_python_sets(pairs):
    values = opened(pairs)
    f1, hits, same = [], [], []
    for wanted, words in pairs:
        truth = {GROUPS[word] for word in wanted}
        found = {GROUPS.get(word, word) for word in words or ()}
        f1.append(2 * len(truth & found) / (len(truth) + len(found)))
        hits.append(not truth.isdisjoint(found))
        same.append(truth == found)
    assert values["f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    assert values["hit_rate"] == pytest.approx(np.mean(hits), abs=1e-12)
    assert values["set_accuracy"] == pytest.approx(np.mean(same), abs=1e-12)
    assert values["set_accuracy"] <= values["hit_rate"]


def test_who_names_everything_always_hits_and_is_never_right():
    everything = ("happy", "sad", "angry", "calm", "scared")
    values = opened([(("happy",), everything), (("sad", "angry"), everything)])
    assert (values["hit_rate"], values["set_accuracy"]) == (1.0, 0.0)
    assert values["precision"] == pytest.approx(0.3)
