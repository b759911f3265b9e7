"""The evaluation of best weights: done again when it is another one, and asked as within the run."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from run_folders import RunFolder

from lightning_mmrl.app.arm_best import (
    best_weights,
    evaluation_command,
    evaluation_of_best,
    is_evaluated,
    note_evaluated,
)
from lightning_mmrl.app.arms import ArmRun
from lightning_mmrl.config.compose import compose
from lightning_mmrl.curriculum.artifacts import SEAL, write_artifact
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.rollout import POLICY_ITSELF

GIVEN = ("experiment=emotions_sft_only", "+stage@stages.reason=tiny/reason", "order=[pretrain,reason]")


class Run(SimpleNamespace):
    """A run of stage c, with what decides its evaluation."""

    def __init__(self, folder, how):
        spec = SimpleNamespace(name="c", index=0, trains=True, evaluation=how)
        super().__init__(name="a-seed0", comparison=folder, directory=folder / "runs" / "a-seed0", specs=lambda: [spec])


def put_best(run, text):
    shutil.rmtree(run.directory / "stages" / "00-c" / "best", ignore_errors=True)

    def write(place):
        (place / "weights").write_text(text)
        return {}

    write_artifact(run.directory / "stages" / "00-c" / "best", write, {})


@pytest.fixture
def run(tmp_path):
    RunFolder(tmp_path / "runs" / "a-seed0", order=("c",)).finish("c")
    found = Run(tmp_path, "settings")
    put_best(found, "one")
    return found


def test_a_run_without_best_weights_has_nothing_to_evaluate(run):
    shutil.rmtree(run.directory / "stages" / "00-c" / "best")
    assert best_weights(run) is None
    assert is_evaluated(run)


def test_best_weights_are_evaluated_again_if_they_or_the_settings_are_others(run):
    summary = evaluation_of_best(run) / "evaluation.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    assert not is_evaluated(run), "nothing says what was evaluated"
    note_evaluated(run, best_weights(run))
    assert is_evaluated(run)
    assert not is_evaluated(Run(run.comparison, "other settings"))
    put_best(run, "two")
    assert not is_evaluated(run)
    note_evaluated(run, best_weights(run))
    assert is_evaluated(run)
    (run.comparison / "best" / "a-seed0" / "evaluated_with.json").write_text("{")
    assert not is_evaluated(run)
    note_evaluated(run, best_weights(run))
    summary.unlink()
    assert not is_evaluated(run)
    (best_weights(run) / SEAL).write_text("{")
    assert not is_evaluated(run)


def asked(tmp_path, *overrides):
    """The configuration with which `mmrl evaluate` evaluates the best weights of an arm, and that of the arm."""
    arguments = (*GIVEN, f"output_dir={tmp_path}", *overrides)
    config = compose([*arguments, "run_name=mine/runs/a-seed0"])
    run = ArmRun(arm="a", seed=0, fold=None, arguments=arguments, config=config, folder="mine")
    command = evaluation_command(run, tmp_path / "best")
    assert command.arguments[:2] == ("evaluate", str(tmp_path / "best"))
    assert command.lock == evaluation_of_best(run).with_name(".best.lock")
    return compose(command.arguments[2:]), config


def test_the_sets_are_asked_with_the_prompt_of_the_stage(tmp_path):
    own = "++stages.reason.prompt={suffix: 'Why, {a}?', system: 'It\\'s'}"
    further = "++evaluation.sets.far={manifest:test.jsonl,root:/far}"
    plain = "++evaluation.sets.plain={manifest:test.jsonl,prompt:{suffix:No}}"
    evaluated, config = asked(tmp_path, own, further, plain)
    expected = PromptSettings(suffix="Why, {a}?", system="It's")
    prompts = {name: evaluated.prompt_of(each) for name, each in evaluated.evaluation.sets.items()}
    assert prompts == {"test": expected, "ood": expected, "far": expected, "plain": PromptSettings(suffix="No")}
    assert {k: replace(v, prompt=None) for k, v in evaluated.evaluation.sets.items()} == {
        k: replace(v, prompt=None) for k, v in config.evaluation.sets.items()
    }


def test_the_model_itself_answers_as_within_the_run(tmp_path):
    evaluated, config = asked(tmp_path, "rollout=vllm", "rollout.settings.max_num_seqs=3")
    assert config.rollout["settings"]["max_num_seqs"] == 3
    assert evaluated.rollout == {"_target_": POLICY_ITSELF, "lag": 0}


def test_nothing_is_overridden_that_is_so_already(tmp_path):
    evaluated, config = asked(tmp_path)
    assert replace(evaluated, run_name="") == replace(config, run_name="")
