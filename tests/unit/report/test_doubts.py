"""What makes a finished stage or an evaluation doubtful, on a run's page and on that of a comparison."""

import json
from dataclasses import replace

import pytest
from arm_folders import ArmsFolder
from run_folders import RunFolder

from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.report.arms_notes import MOST_NAMED
from lightning_mmrl.report.arms_read import summarize
from lightning_mmrl.report.doubts import doubts_of
from lightning_mmrl.report.page import page
from lightning_mmrl.report.run_files import read_run

ANSWERS = [("happy", "happy"), ("sad", "sad")]
STAGES = [
    ({"changed": False}, "no weight changed"),
    ({"changed": False, "idle": True}, "nothing was left to train on, and its weights stayed as they were"),
    ({"num_skipped": 3}, "3 of 7 steps were skipped"),
]
RESULTS = [
    ({"left_out": [{"id": "a"}, {"id": "b"}]}, "2 of 4 samples of test were left out"),
    ({"truncated": 0.5}, "the length limit cut off 50 % of the answers on test"),
]


def amend(run, stage, *, result=None, evaluation=None):
    """Changes the result of a finished stage in the manifest, or its evaluation on `test`."""
    if result:
        manifest = Manifest.read(run)
        done = manifest.stages[stage]
        changed = replace(done, result=replace(done.result, **result))
        Manifest(stages={**manifest.stages, stage: changed}, base=manifest.base).write(run)
    if evaluation:
        [path] = run.glob(f"stages/*-{stage}/evaluation/evaluation.json")
        content = json.loads(path.read_text())
        content["test"] |= evaluation
        path.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path / "run", order=("reason",))
    made.finish("reason")
    made.evaluate("reason", ANSWERS)
    return made.folder


@pytest.fixture
def arms(tmp_path):
    return ArmsFolder(tmp_path / "orders", {"sft": {0: 0.5, 1: 0.6}, "rl": {0: 0.6, 1: 0.5}}).folder


def test_a_run_without_faults_has_no_doubts(run):
    assert doubts_of(read_run(run)) == []
    amend(run, "reason", result={"changed": True, "num_skipped": 0}, evaluation={"truncated": 0.49})
    assert doubts_of(read_run(run)) == []


@pytest.mark.parametrize(("result", "told"), STAGES)
def test_the_page_of_a_run_says_what_makes_a_stage_worthless(run, result, told):
    amend(run, "reason", result=result)
    assert doubts_of(read_run(run)) == [f"Stage reason: {told}."]
    assert f"<li>Stage reason: {told}.</li>" in page([read_run(run)])


@pytest.mark.parametrize(("evaluation", "told"), RESULTS)
def test_the_page_of_a_run_says_what_makes_an_evaluation_worthless(run, evaluation, told):
    amend(run, "reason", evaluation=evaluation)
    assert f"<li>After reason: {told}.</li>" in page([read_run(run)])


CONSTANT = [
    ([("happy", "happy"), ("sad", "happy")], "happy is the only label that is recognized on test, as by a"),
    ([("happy", "sad"), ("sad", None)], "no answer on test is right"),
    ([("happy", "happy"), ("happy", "sad"), ("sad", "happy")], None),
    ([("happy", "happy"), ("sad", "sad")], None),
]


@pytest.mark.parametrize(("answers", "told"), CONSTANT)
def test_a_constant_answer_is_told_of_stages_and_not_of_the_base_model(tmp_path, answers, told):
    made = RunFolder(tmp_path / "run", order=("reason",))
    made.evaluate("base", answers)
    made.finish("reason")
    made.evaluate("reason", answers)
    found = doubts_of(read_run(made.folder))
    assert len(found) == (told is not None)
    assert all(each.startswith(f"After reason: {told}") for each in found)


@pytest.mark.parametrize(("result", "told"), STAGES)
@pytest.mark.parametrize("stage", ["pretrain", "reason"])
def test_a_comparison_repeats_what_makes_a_stage_of_an_arm_worthless(arms, result, told, stage):
    assert summarize(arms).notes == ()
    amend(arms / "runs" / "rl-seed1", stage, result=result)
    assert summarize(arms).notes == (f"rl, seed 1: {stage}: {told}.",)


@pytest.mark.parametrize(("evaluation", "told"), RESULTS)
def test_a_comparison_repeats_what_makes_a_value_worthless(arms, evaluation, told):
    amend(arms / "runs" / "rl-seed1", "cold_start", evaluation=evaluation)
    assert summarize(arms).notes == (), "its value is of another stage"
    for name in ("rl-seed1", "sft-seed0"):
        amend(arms / "runs" / name, "reason", evaluation={**evaluation, "num_samples": 2})
    found = summarize(arms)
    assert f"sft, seed 0; rl, seed 1: {told}." in found.notes
    assert [told in cell.doubts for cell in found.cells] == [True, False, False, True]


def test_a_doubt_about_many_runs_is_one_sentence(tmp_path):
    seeds = dict.fromkeys(range(MOST_NAMED + 1), 0.5)
    arms = ArmsFolder(tmp_path / "orders", {"sft": seeds, "rl": seeds}).folder
    for seed in seeds:
        amend(arms / "runs" / f"rl-seed{seed}", "reason", result={"changed": False})
    assert f"{len(seeds)} of {2 * len(seeds)} runs: reason: no weight changed." in summarize(arms).notes


def test_a_damaged_evaluation_is_not_called_a_missing_one(arms):
    [path] = (arms / "runs" / "rl-seed1").glob("stages/*-reason/evaluation/evaluation.json")
    path.write_text('{"test": ')
    told = next(note for note in summarize(arms).notes if note.startswith("rl, seed 1: "))
    assert "cannot be read" in told
    assert "evaluation.json" in told
    path.unlink()
    told = next(note for note in summarize(arms).notes if note.startswith("rl, seed 1: "))
    assert told == "rl, seed 1: was not evaluated on test after its last trained stage."
