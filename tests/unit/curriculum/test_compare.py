import json
from dataclasses import asdict, replace

import pytest

from lightning_mmrl.curriculum.compare import compare_stages
from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.types.records import Completion, Sample

LABELS = ("angry", "sad")
TASK = ClosedLabels(labels=LABELS)
TASK_OF = {"test": TASK, "ood": TASK}.__getitem__
BOOTSTRAP = ClusterBootstrap(settings=EvaluationSettings(num_resamples=200))
SOURCES = {"warm": None, "cold": "warm", "reason": "cold"}


def predictions(answers):
    return [
        Judgement(
            sample_id=str(index),
            speaker=f"s{index % 4}",
            truth=LABELS[index % 2],
            predicted=answer,
            valid_format=True,
            consistent=None,
            text="",
        )
        for index, answer in enumerate(answers)
    ]


def evaluation(folder, task=TASK, **sets):
    """Writes an evaluation folder as the evaluation stage does."""
    folder.mkdir()
    summary = {}
    for name, found in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(each.to_json() + "\n" for each in found))
        intervals = {key: asdict(value) for key, value in BOOTSTRAP.intervals(found, task).items()}
        summary[name] = {"num_samples": len(found), "metrics": {"valid_format": 1.0}, "intervals": intervals}
    (folder / "evaluation.json").write_text(json.dumps(summary))
    return folder


RIGHT = predictions(["angry", "sad"] * 8)
HALF = predictions(["angry", "angry"] * 8)
QUARTER = predictions(["angry", "angry", "sad", "angry"] * 4)


def test_a_stage_is_compared_with_the_one_it_started_from_on_the_sets_they_share(tmp_path):
    folders = {
        "warm": evaluation(tmp_path / "0", test=QUARTER),
        "cold": evaluation(tmp_path / "1", test=HALF, ood=HALF),
        "reason": evaluation(tmp_path / "2", test=RIGHT, ood=RIGHT),
    }
    comparison = compare_stages(folders, SOURCES, TASK_OF, BOOTSTRAP)
    assert [(row.stage, row.name, row.intervals["uar"].estimate) for row in comparison.results] == [
        ("warm", "test", 0.25),
        ("cold", "test", 0.5),
        ("cold", "ood", 0.5),
        ("reason", "test", 1.0),
        ("reason", "ood", 1.0),
    ]
    gains = [(gain.stage, gain.over, gain.name, gain.difference.estimate) for gain in comparison.gains]
    assert gains == [("cold", "warm", "test", 0.25), ("reason", "cold", "test", 0.5), ("reason", "cold", "ood", 0.5)]


def test_one_stage_has_nothing_to_gain_over(tmp_path):
    comparison = compare_stages({"warm": evaluation(tmp_path / "0", test=HALF)}, SOURCES, TASK_OF, BOOTSTRAP)
    assert len(comparison.results) == 1
    assert comparison.gains == []


def test_two_stages_may_start_from_the_same_one(tmp_path):
    folders = {
        "warm": evaluation(tmp_path / "0", test=HALF),
        "cold": evaluation(tmp_path / "1", test=RIGHT),
        "reason": evaluation(tmp_path / "2", test=QUARTER),
    }
    comparison = compare_stages(folders, {**SOURCES, "reason": "warm"}, TASK_OF, BOOTSTRAP)
    gains = [(gain.stage, gain.over, gain.difference.estimate) for gain in comparison.gains]
    assert gains == [("cold", "warm", 0.5), ("reason", "warm", -0.25)]


def test_a_gain_is_of_the_same_clips(tmp_path):
    folders = {
        "warm": evaluation(tmp_path / "0", test=RIGHT),
        "cold": evaluation(tmp_path / "1", test=RIGHT[:-1]),
    }
    [gain] = compare_stages(folders, SOURCES, TASK_OF, BOOTSTRAP).gains
    assert (gain.num_unpaired, gain.difference.estimate) == (1, 0.0)
    assert gain.plain()["num_unpaired"] == 1
    folders["cold"] = evaluation(tmp_path / "2", test=[replace(each, sample_id=f"x{each.sample_id}") for each in RIGHT])
    assert compare_stages(folders, SOURCES, TASK_OF, BOOTSTRAP).gains == []


@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000])
def test_a_stage_without_evaluation_is_named(content, tmp_path):
    folder = evaluation(tmp_path / "0", test=RIGHT)
    (folder / "evaluation.json").unlink()
    if content is not None:
        (folder / "evaluation.json").write_text(content)
    with pytest.raises(StageError, match="the evaluation of stage warm: restore"):
        compare_stages({"warm": folder}, SOURCES, TASK_OF, BOOTSTRAP)


def choices(answers):
    task = MultipleChoice(reader=ChoiceAnswer())
    return [
        task.judge(
            Sample(id=str(place), messages=(), solution="B", speaker=f"s{place % 4}"),
            Completion(text=f"<answer>{answer}</answer>", num_tokens=1, truncated=False),
        )
        for place, answer in enumerate(answers)
    ]


def test_a_gain_is_of_the_headline_of_the_sets_task(tmp_path):
    task = MultipleChoice(reader=ChoiceAnswer())
    folders = {
        "warm": evaluation(tmp_path / "0", task=task, quiz=choices("ABAC")),
        "cold": evaluation(tmp_path / "1", task=task, quiz=choices("BBAB")),
    }
    comparison = compare_stages(folders, SOURCES, {"quiz": task}.__getitem__, BOOTSTRAP)
    assert [row.intervals["accuracy"].estimate for row in comparison.results] == [0.25, 0.75]
    [gain] = comparison.gains
    assert (gain.difference.estimate, gain.task) == (0.5, task)
    described = {"task": {"type": "multiple-choice", "headline": "accuracy", "scores": ["accuracy", "valid_format"]}}
    assert gain.plain() == {
        "stage": "cold",
        "over": "warm",
        "name": "quiz",
        "difference": asdict(gain.difference),
        **described,
    }
    assert comparison.plain()["results"][0]["accuracy"] == asdict(comparison.results[0].intervals["accuracy"])


REST = ("num_left_out", "counted_wrong")


def test_the_file_of_closed_labels_is_as_it_was_before_there_were_tasks(tmp_path):
    folders = {"warm": evaluation(tmp_path / "0", test=HALF), "cold": evaluation(tmp_path / "1", test=RIGHT)}
    plain = compare_stages(folders, SOURCES, TASK_OF, BOOTSTRAP).plain()
    keys = ["stage", "name", "num_samples", "metrics", "war", "uar", "macro_f1", "weighted_f1", *REST]
    assert [list(row) for row in plain["results"]] == [keys, keys]
    assert [list(gain) for gain in plain["gains"]] == [["stage", "over", "name", "difference"]]


def test_predictions_of_another_task_are_refused(tmp_path):
    task = MultipleChoice(reader=ChoiceAnswer())
    folders = {"warm": evaluation(tmp_path / "0", test=HALF), "cold": evaluation(tmp_path / "1", test=RIGHT)}
    with pytest.raises(DataError, match="prediction '0' has no 'accuracy', so it was judged by another task"):
        compare_stages(folders, SOURCES, lambda name: task, BOOTSTRAP)
