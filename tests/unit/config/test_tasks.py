"""Tasks and evaluation sets in a configuration: short and long forms, names of metrics, sets of a stage."""

import subprocess
import sys
from dataclasses import asdict

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.app.asked import check_thoughts
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.saved import saved_config
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.registry.tasks import built_tasks, task_of_result, task_outlines

MATH = (
    "+task@evaluation.sets.sums.task=mathematics",
    "+evaluation.sets.sums.manifest=sums.jsonl",
    "+evaluation.sets.sums.root=other",
)
LONG = "evaluation.sets.test={manifest: test.jsonl, root: null, media_root: null, task: null}"


def evaluations(*overrides):
    return [spec.evaluation for spec in stage_specs(compose(overrides))]


def test_a_manifest_alone_is_the_short_form_of_a_set():
    assert compose([]) == compose([LONG]) == compose(["evaluation.sets.test={manifest: test.jsonl}"])
    assert evaluations() == evaluations(LONG)
    found = compose(["data.root=zero", "evaluation.sets.test={manifest: a.jsonl, root: one}"]).sets()
    assert {name: (str(each.path), str(each.media_folder)) for name, each in found.items()} == {
        "test": ("one/a.jsonl", "one"),
        "ood": ("zero/ood.jsonl", "zero"),
    }
    apart = compose(["data.root=zero", "evaluation.sets.test={manifest: a.jsonl, media_root: clips}"]).sets()["test"]
    assert (str(apart.path), str(apart.media_folder)) == ("zero/a.jsonl", "clips")


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.sets.test={manifest: test.jsonl, root: elsewhere}",
        "evaluation.sets.test={manifest: test.jsonl, media_root: elsewhere}",
        "evaluation.sets.test=other.jsonl",
        "task=mathematics",
        "+task@evaluation.sets.ood=mathematics",
    ],
)
def test_another_place_or_task_of_a_set_is_another_evaluation_and_no_other_training(override):
    if override.startswith("+task@evaluation.sets.ood"):
        changed = (*MATH,)
    elif override == "task=mathematics":
        changed = (override, "stages.reason.stop_when=null")
    else:
        changed = (override,)
    assert all(one != other for one, other in zip(evaluations(), evaluations(*changed), strict=True))
    digests = [[spec.digest for spec in stage_specs(compose(each))] for each in ((), changed)]
    assert digests[0] == digests[1]


def test_a_task_decides_a_stage_that_validation_may_end():
    stop = "++stages.reason.stop_when={metric: validation/accuracy, at_least: 0.5}"
    content = [spec.content for spec in stage_specs(compose(["task=mathematics", stop]))]
    assert [any(key.startswith("data.task") for key in each) for each in content] == [False, True]


def test_the_configuration_of_an_earlier_run_has_sets_in_the_short_form(tmp_path):
    tree = asdict(compose([]))
    tree["evaluation"]["sets"] = {"test": "test.jsonl", "ood": "ood.jsonl"}
    del tree["data"]["task"]
    for stage in tree["stages"].values():
        del stage["evaluation_sets"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(tree))
    assert saved_config(tmp_path, []) == compose([])


def test_every_set_has_the_task_of_the_dataset_unless_it_has_its_own():
    tasks = built_tasks(compose([*MATH, "data.cue_lexicon=null"]))
    assert tasks["test"] is tasks["ood"] is tasks["validation"]
    assert tasks["test"] == ClosedLabels(labels=tuple(compose([]).data.labels))
    assert isinstance(tasks["sums"], Mathematics)
    for name, task in (("test", "test"), ("test-silent", "test"), ("sums-blank", "sums"), ("gone", "validation")):
        assert task_of_result(name, tasks) is tasks[task]
    assert isinstance(built_tasks(compose(["task=mathematics"]))["ood"], Mathematics)


def test_the_cues_of_a_dataset_are_below_its_root():
    task = task_outlines(compose(["data.root=somewhere"]))["test"]
    assert task.cue_lexicon == "somewhere/labels.json"
    assert {"consistency", "grounded"} <= set(task.metric_names())
    assert not {"consistency", "grounded"} & set(
        task_outlines(compose(["data.cue_lexicon=null"]))["test"].metric_names()
    )


GATE = "stages.reason.gate={{metric: {}, at_least: 0.5}}"
REFUSED = {
    ("task=mathematics", GATE.format("test/uar")): "reason.gate.metric is 'test/uar', which is no choice",
    (*MATH, GATE.format("sums/uar")): "reason.gate.metric is 'sums/uar', which is no choice",
    (*MATH, GATE.format("test/accuracy")): "reason.gate.metric is 'test/accuracy', which is no choice",
    (
        *MATH,
        "stages.reason.evaluation_sets=[test]",
        GATE.format("sums/accuracy"),
    ): "'sums/accuracy', which is no choice",
    (
        "task=mathematics",
        "stages.reason.stop_when={metric: validation/uar, at_least: 0.5}",
    ): "mean 'validation/accuracy'",
    (
        "stages.reason.evaluation_sets=[tset]",
    ): "stages.reason.evaluation_sets is 'tset', which is no choice; did you mean 'test'",
    ("stages.reason.evaluation_sets=test",): "stages.reason.evaluation_sets is test; it must be a list of plain values",
    ("data.task={_target_: torch.optim.Adam}",): "data.task._target_ is 'torch.optim.Adam', which is no task",
    ("data.task=math",): "data.task is math; it must be null or a node with a _target_",
    ("task=mathematics", "data.task.deadline_s=0"): "data.task: deadline_s is 0; it must be above 0",
    ("task=mathematics", "+data.task.speed=1"): "data.task.speed: .* has no such parameter",
    ("data.labels=[]",): "data.labels is empty; give at least one label, or set data.task",
    ("task=mathematics", "data.labels=[]", "stages.reason.data.balance=label"): "balance is label; it must be null if",
    ("evaluation.sets.test={root: x}",): "evaluation.sets.test.manifest: has no value",
    ("evaluation.sets.test={manifest: a, rot: x}",): "evaluation.sets.test.rot: unknown key; did you mean 'root'",
    ("evaluation.sets.test=[a]",): "evaluation.sets.test is .*; it must be a group of keys",
    ("evaluation.sets.test=''",): "evaluation.sets.test.manifest is ''; it must be a name or path",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=lambda overrides: overrides[-1][:60])
def test_what_no_task_or_set_can_be_is_refused_in_one_sentence(overrides):
    with pytest.raises(ConfigError, match=REFUSED[overrides]):
        compose(overrides)


def test_metrics_of_a_sets_own_task_may_be_bounds():
    gates = (GATE.format("sums/accuracy"), GATE.format("test/recall/happy"), GATE.format("validation/war"))
    for gate in gates:
        assert compose([*MATH, gate]).stages["reason"].gate.at_least == 0.5
    without = ("~stages.reason.rewards.components.label", "~stages.reason.rewards.weights.label")
    compose(["task=mathematics", "data.labels=[]", *without, "stages.reason.rewards.pass_component=format"])


def test_names_of_metrics_need_no_verifier_and_no_torch():
    program = (
        "import sys; from lightning_mmrl.config.compose import compose;"
        "compose(['task=mathematics', 'stages.reason.gate={metric: test/accuracy, at_least: 0.5}']);"
        "sys.exit(', '.join({'torch', 'math_verify', 'sympy'} & sys.modules.keys()) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_further_pass_is_another_evaluation_of_the_last_stage_alone_and_the_default_has_none():
    usual = evaluations()
    assert usual == evaluations("evaluation.temperature=0.5", "evaluation.top_p=0.9", "seed=3")
    for override in ("evaluation.no_think=true", "evaluation.samples=4"):
        changed = evaluations(override)
        assert changed[:-1] == usual[:-1]
        assert changed[-1] != usual[-1]
        everywhere = evaluations(override, "evaluation.ablation_stages=all")
        assert all(one != other for one, other in zip(everywhere, usual, strict=True))
    sampled = ("evaluation.samples=4",)
    for override in ("evaluation.temperature=0.5", "evaluation.top_p=0.9", "seed=3", "evaluation.samples=8"):
        assert evaluations(*sampled, override)[-1] != evaluations(*sampled)[-1]


@pytest.mark.parametrize("prompt", ["plain", "r1_omni", "r1_omni_labels"])
def test_answers_without_a_thought_are_refused_before_anything_trains_if_the_prompt_has_none(prompt):
    config = compose([f"prompt={prompt}", "evaluation.no_think=true"])
    stage = next(iter(config.trained.values()))
    if prompt == "r1_omni_labels":
        with pytest.raises(ConfigError, match="evaluation of set test: no_think is true, and the prompt asks for no"):
            check_thoughts(config, built_tasks(config), stage)
    else:
        check_thoughts(config, built_tasks(config), stage)
