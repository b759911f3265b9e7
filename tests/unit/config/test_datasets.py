"""Several datasets and prompts in one run: what a stage sees, and what its evaluation depends on."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import base_evaluation, first_trained, stage_specs
from lightning_mmrl.curriculum.changes import same_content
from lightning_mmrl.errors import ConfigError

DOTS = ("experiment=task_arithmetic", "+data@datasets.dots=counting_synth", "stages.reason.data.dataset=dots")
SET = "+evaluation.sets.dots={manifest: test.jsonl, dataset: dots}"


def specs(*overrides):
    return {spec.name: spec for spec in stage_specs(compose([*DOTS, SET, *overrides]))}


def test_a_stage_sees_its_own_dataset_and_prompt():
    config = compose([*DOTS, "stages.reason.prompt={suffix: Look.}"])
    seen = {name: config.of_stage(stage) for name, stage in config.trained.items()}
    assert (seen["cold_start"].data.root, seen["cold_start"].prompt.suffix) == ("data/arithmetic", "")
    assert (seen["reason"].data.root, seen["reason"].prompt.suffix) == ("data/counting", "Look.")
    assert seen["reason"].of_stage(config.stages["cold_start"]).data == config.data
    assert [each.root for each in config.sets().values()] == ["data/arithmetic"]


def test_a_change_of_one_dataset_or_prompt_changes_the_stages_that_see_it():
    before = specs()
    for override in ("datasets.dots.labels=['1','2']", "stages.reason.prompt={suffix: Look.}"):
        after = specs(override, "stages.reason.rewards.components.label.labels=['1','2','3','4']")
        plain = specs("stages.reason.rewards.components.label.labels=['1','2','3','4']")
        changed = {name for name in plain if not same_content(plain[name].content, after[name].content)}
        assert changed == {"reason"}, override
    assert same_content(before["reason"].content, specs()["reason"].content)


def test_a_dataset_has_a_limit_of_its_own():
    config = compose([*DOTS, "datasets.dots.limit=7"])
    assert [stage.data.limit for stage in config.trained.values()] == [None, 7]


def test_an_evaluation_depends_on_the_prompt_of_each_set():
    """A set of another dataset is asked with the run's prompt, which a stage with its own does not hold."""
    own = [f"stages.{name}.prompt={{suffix: Think.}}" for name in ("cold_start", "reason")]
    before, after = specs(*own), specs(*own, "prompt.suffix=Now.")
    assert all(same_content(before[name].content, after[name].content) for name in before)
    assert before["cold_start"].evaluation != after["cold_start"].evaluation
    assert before["cold_start"].evaluation != specs(*own, "datasets.dots.media_root=clips")["cold_start"].evaluation
    assert before["cold_start"].evaluation == specs(*own)["cold_start"].evaluation


@pytest.mark.parametrize(
    ("overrides", "stage"),
    [
        ([], "cold_start"),
        (["stages.cold_start.checkpoint=Org/Model", "stages.reason.start_from=base"], "reason"),
        # Here the second stage starts from the first, and no stage from the base model.
        (["stages.cold_start.checkpoint=Org/Model"], "cold_start"),
    ],
)
def test_the_base_is_asked_as_the_first_stage_that_starts_from_it(overrides, stage):
    config = compose([*DOTS, *overrides])
    assert first_trained(config) is config.stages[stage]


@pytest.mark.parametrize("override", ["prompt.suffix=Now.", "data.media.num_frames=2 datasets.dots.media.num_frames=2"])
def test_the_base_is_evaluated_as_the_first_stage_is(override):
    before = base_evaluation(compose([*DOTS, SET]))
    assert before != base_evaluation(compose([*DOTS, SET, *override.split()]))
    assert before == base_evaluation(compose([*DOTS, SET, "stages.reason.optimizer.lr=1e-5"]))
    assert base_evaluation(compose([*DOTS, SET, "evaluation.base=false"])) == ""


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("stages.reason.data.dataset=dotts", "stages.reason.data.dataset is 'dotts', which is no choice; did you mean"),
        ("evaluation.sets.dots.dataset=dotts", "evaluation.sets.dots.dataset is 'dotts', which is no choice; did you"),
        ("datasets.dots.media.num_frames=9", "datasets.dots.media is .* it must be as data.media"),
        (
            "datasets.dots.labels=[]",
            "datasets.dots.labels is empty; give at least one label, or set datasets",
        ),
        ("+datasets.dots.task={_target_: os.system}", "datasets.dots.task"),
        ("datasets.dots.rot=x", "datasets.dots.rot: unknown key; did you mean 'root'"),
    ],
)
def test_a_dataset_that_cannot_serve_is_refused_by_its_key(override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose([*DOTS, SET, override])
