"""A baseline is found in a run, in a stage or alone, and one that was asked other questions is refused."""

import json

import pytest
from run_folders import RunFolder

from lightning_mmrl.curriculum.baseline import (
    AskedSet,
    Baseline,
    base_of_run,
    find_baseline,
    refuse_other_questions,
    unpaired,
)
from lightning_mmrl.errors import StageError
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer

ANSWERS = [("happy", "happy"), ("sad", "happy")]
TASK = ClosedLabels(labels=("happy", "sad"))


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path / "q")
    for stage in made.order:
        made.finish(stage)
        made.evaluate(stage, ANSWERS)
    made.evaluate("base", ANSWERS)
    return made.folder


def test_a_run_stands_for_its_last_stage_and_a_stage_can_be_named(run):
    stages = run / "stages"
    assert find_baseline(str(run)) == Baseline(name=f"{run}:reason", folder=stages / "01-reason" / "evaluation")
    assert find_baseline(f"{run}:cold_start").folder == stages / "00-cold_start" / "evaluation"
    assert find_baseline(f"{run}:base").folder == run / "base" / "evaluation"
    for alone in (stages / "00-cold_start", stages / "00-cold_start" / "evaluation"):
        assert find_baseline(str(alone)) == Baseline(name=str(alone), folder=stages / "00-cold_start" / "evaluation")
    assert base_of_run(stages / "01-reason" / "handoff") == Baseline(name="base", folder=run / "base" / "evaluation")
    assert base_of_run(run.parent / "elsewhere") is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("{0}x", "--baseline {0}x is no run folder and holds no evaluation; give a run folder, RUN:STAGE"),
        ("{0}:reson", "has no evaluation of reson: evaluated are base, cold_start, reason; name a stage"),
        ("{0}/stages", "--baseline {0}/stages is no run folder and holds no evaluation"),
        ("none:base", "--baseline none:base is no run folder and holds no evaluation"),
    ],
)
def test_what_is_no_evaluation_is_refused(run, given, sentence):
    with pytest.raises(StageError) as refused:
        find_baseline(given.format(run))
    assert sentence.format(run) in str(refused.value)


def test_a_run_without_an_evaluation_is_refused(tmp_path):
    RunFolder(tmp_path / "new")
    with pytest.raises(StageError, match="new: no stage of it is evaluated yet"):
        find_baseline(str(tmp_path / "new"))


def asked(**sets):
    return sets or {"test": AskedSet(task=TASK, digest="ab" * 32), "ood": AskedSet(task=TASK, digest="cd" * 32)}


def test_only_common_sets_are_paired(run):
    assert refuse_other_questions(find_baseline(str(run)), asked()) == ["test"]


QUIZ = MultipleChoice(reader=ChoiceAnswer())


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        ({"ood": AskedSet(task=TASK, digest="")}, "was evaluated on test, and this evaluation has ood; evaluate both"),
        (
            {"test": AskedSet(task=QUIZ, digest="")},
            r"judged test by another task \(closed labels\) than this evaluation",
        ),
        ({"test": AskedSet(task=TASK, digest="")}, None),
    ],
)
def test_another_set_or_task_is_refused(run, sets, sentence):
    if sentence is None:
        assert refuse_other_questions(find_baseline(str(run)), sets) == ["test"]  # its version noted no manifest
        return
    with pytest.raises(StageError, match=sentence):
        refuse_other_questions(find_baseline(str(run)), sets)


def test_another_manifest_is_refused(run):
    baseline = find_baseline(str(run))
    (baseline.folder / "evaluated.json").write_text(json.dumps({"sets": {"test": {"manifest_digest": "ab" * 32}}}))
    assert refuse_other_questions(baseline, asked()) == ["test"]
    with pytest.raises(StageError, match=r"another manifest of test \(sha256 abababababab\) than this evaluation \(ef"):
        refuse_other_questions(baseline, {"test": AskedSet(task=TASK, digest="ef" * 32)})


def test_half_an_evaluation_is_refused(run):
    baseline = find_baseline(str(run))
    (baseline.folder / "test.jsonl").unlink()
    with pytest.raises(
        StageError, match=r"has no test.jsonl, so it is half an evaluation; evaluate the baseline again"
    ):
        refuse_other_questions(baseline, asked())
    (baseline.folder / "evaluation.json").write_text("[1]")
    with pytest.raises(StageError, match="holds no results of an evaluation"):
        refuse_other_questions(baseline, asked())


def test_samples_of_one_side_alone_are_named(run):
    folders = run / "base" / "evaluation", run / "stages" / "01-reason" / "evaluation"
    assert unpaired("test", folders) == []
    lines = (folders[0] / "test.jsonl").read_text().splitlines()
    (folders[0] / "test.jsonl").write_text(lines[0] + "\n")
    assert unpaired("test", folders) == [json.loads(lines[1])["sample_id"]]
