"""Every YAML of every group composes, validates and binds; a newcomer's file is tested without writing a test."""

import re
from dataclasses import asdict, fields
from functools import cache

import pytest
import yaml
from omegaconf import OmegaConf

from lightning_mmrl.app.run import check_all_targets
from lightning_mmrl.config.comparisons import read_comparison
from lightning_mmrl.config.compose import compose, compose_tree
from lightning_mmrl.config.folders import COMPARE, configs_dir, groups, options
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.registry.allowed import ALL_NAMES
from lightning_mmrl.registry.kinds import kind_named
from lightning_mmrl.registry.targets import check_targets
from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
from lightning_mmrl.settings.algorithm import AlgorithmSettings
from lightning_mmrl.settings.data import StageDataSettings
from lightning_mmrl.settings.rollout import engine_node
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import DataStageSettings, NodeSettings, TrainerSettings
from lightning_mmrl.types.records import Completion, Message, Sample

ROOT = configs_dir()
GROUPS = groups()  # without comparisons, which tests/configs/test_comparisons.py plans
FILES = sorted(path for group in GROUPS for path in ROOT.joinpath(group).rglob("*.yaml"))
EXPERIMENTS = sorted(ROOT.glob("experiment/*.yaml"))
OPTIONAL_IN_A_STAGE = {"algorithm", "sampling", "rewards", "reflection_words", "rollout_table_every"}


def group_of(path):
    return path.relative_to(ROOT).parts[0]


def option_of(path):
    """Also of a file in a subfolder: stage=tiny/reason."""
    return path.relative_to(ROOT / group_of(path)).with_suffix("").as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{group_of(path)}={option_of(path)}")
each_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)


def overrides(path):
    """Overrides that choose a file, with the values that its user must give."""
    group, option = group_of(path), option_of(path)
    if group == "stage":
        return [f"+stage@stages.other={option}", "+stage@stages.draw=sample", "order=[draw,other]"]
    if group == "algorithm":
        return [f"algorithm@stages.reason={option}"]
    if group == "reward":
        judge = "stages.reason.rewards.components.judge"
        whom = [f"{judge}.expert.model=m", f"{judge}.endpoint.base_url=http://127.0.0.1:9/v1"]
        return [f"+reward@stages.reason.rewards={option}", *(whom if option == "llm_judge" else [])]
    if group == "reflection":
        return [f"+reflection@stages.reason={option}"]
    needed = ["data.root=/data", "data.labels=[happy,sad]"] if "root: ???" in path.read_text() else []
    if "sets: {}" in path.read_text():
        needed += ["+evaluation.sets.own=own.jsonl"]
    if "labels: []" in path.read_text():  # no reward may read labels
        rewards = "stages.reason.rewards"
        needed += [f"{rewards}.components.label=null", f"{rewards}.pass_component=format"]
    return [f"{group}={option}", *needed]


@cache
def composed(path):
    """What a file composes, for tests that change nothing in it."""
    return compose(overrides(path))


def targets(tree):
    if isinstance(tree, dict):
        yield from [tree["_target_"]] if "_target_" in tree else []
        for value in tree.values():
            yield from targets(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from targets(value)


def without_references(tree):
    """The tree without the keys whose value is a `${...}`: its type is not known yet."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: without_references(value) for key, value in tree.items() if not (isinstance(value, str) and "${" in value)
    }


def test_all_groups_have_options():
    assert {group_of(path) for path in FILES} == set(GROUPS)
    assert {"model", "data", "prompt", "stage", "algorithm", "curriculum", "trainer", "tracking"} <= set(GROUPS)
    assert {"experiment", "debug"} <= set(GROUPS)
    assert "tiny/reason" in {option_of(path) for path in FILES if group_of(path) == "stage"}
    assert not [path for path in configs_dir().rglob("*") if path.is_file() and path.suffix != ".yaml"]


@each_file
def test_a_config_composes_and_its_targets_bind(path):
    config = composed(path)
    assert stage_specs(config)
    check_all_targets(config)


@each_file
def test_every_target_of_a_file_binds_where_it_stands(path):
    """Also targets of stages that the composition above does not run."""
    tree = without_references(yaml.safe_load(path.read_text()))
    if group_of(path) == "rollout":
        tree = engine_node(tree)  # the other keys are no engine's
    assert set(targets(tree)) <= ALL_NAMES
    check_targets(tree, path.stem)


@each_file
def test_a_config_says_what_it_is_for(path):
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line]
    assert comments, "the first line of a config says what it is"


@pytest.mark.parametrize("path", [path for path in FILES if group_of(path) == "stage"], ids=option_of)
def test_a_stage_shows_its_knobs_so_that_they_need_no_plus(path):
    """Its own, or the keys of the file that it builds on."""
    tree = OmegaConf.to_container(compose_tree(overrides(path)))["stages"]["other"]
    settings = kind_named(tree["kind"], "kind").settings
    if issubclass(settings, DataStageSettings):  # it runs no model, so most keys of all stages say nothing in it
        assert {field.name for field in fields(settings)} - {field.name for field in fields(NodeSettings)} <= set(tree)
        return
    optional = OPTIONAL_IN_A_STAGE if tree["kind"] in ("sft", "dpo") else set()
    assert {field.name for field in fields(settings)} - set(tree) <= optional
    assert {field.name for field in fields(StageDataSettings)} <= set(tree["data"])
    assert {field.name for field in fields(TrainerSettings)} <= set(tree["trainer"])
    if tree["kind"] == "rl":
        assert {field.name for field in fields(AlgorithmSettings)} <= set(tree["algorithm"])


@each_experiment
def test_an_experiment_only_overrides(path):
    """It names a run of its own, and every stage it changes runs, in it or in an arm of a shipped comparison."""
    config = composed(path)
    assert config.run_name == path.stem
    tree = yaml.safe_load(path.read_text())
    assert set(tree) - {"defaults"} <= {field.name for field in fields(RunSettings)}
    assert set(tree.get("stages", {})) <= set(config.order) | stages_of_arms(path.stem)


def stages_of_arms(experiment: str) -> set[str]:
    """The stages that arms of shipped comparisons over an experiment have."""
    found = set()
    for name in options(COMPARE):
        comparison = read_comparison(name)
        if f"experiment={experiment}" in comparison.overrides:
            for arm in comparison.arms.values():
                found |= set(compose([*comparison.overrides, *arm.overrides]).order)
    return found


@pytest.mark.slow
@each_experiment
def test_debug_overlays_shorten_every_experiment_and_give_it_a_name_of_its_own(path):
    fast = compose([*overrides(path), "debug=fast"])
    assert {stage.num_steps for stage in fast.trained.values() if stage.num_epochs is None} == {2}
    assert {fast.stages[name].trainer.max_steps for name in fast.order} == {2}
    assert all((stage.validate_every or 1) <= 2 for stage in fast.trained.values())
    overfit = compose([*overrides(path), "debug=overfit"])
    assert all(overfit.stages[name].data.limit == 8 for name in overfit.order if overfit.stages[name].data.manifest)
    assert (fast.run_name, overfit.run_name) == (f"debug-fast-{path.stem}", f"debug-overfit-{path.stem}")
    bounds = [(stage.gate, stage.stop_when) for config in (fast, overfit) for stage in config.trained.values()]
    assert set(bounds) == {(None, None)}
    assert (fast.tracking.uri, overfit.tracking.uri) == (None, None)


def test_behind_the_prompt_for_base_models_a_completion_without_the_opening_tag_has_the_format():
    config = compose(["prompt=visualthinker"]).prompt
    template = PromptTemplate(config)
    sample = Sample(id="clip", messages=(Message(role="user", content="Which emotion?"),))
    assert template.apply(sample.messages) == sample.messages
    assert config.raw.endswith("tags, respectively.\nUser: {question} \nAssistant: Let me solve this step by step.\n")
    assert "enclosed within <think> </think> and" in config.raw
    sampled = "Lowered brows.</think><answer>sad</answer>"
    texts = [sampled, template.complete(sampled), template.complete("<think>" + sampled)]
    completions = [Completion(text=text, num_tokens=9, truncated=False) for text in texts]
    assert [ThinkAnswerFormat()(sample, completion) for completion in completions] == [0.0, 1.0, 0.0]


ORDERS = {
    "sft_then_rl": ["cold_start", "reason"],
    "rl_then_sft": ["reason", "cold_start"],
    "rl_only": ["reason"],
    "sft_only": ["cold_start"],
}


def test_the_usual_curricula_are_there():
    """Others may join them, and need no line here: they are composed as all files are."""
    assert set(ORDERS) <= {path.stem for path in ROOT.glob("curriculum/*.yaml")}


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_a_curriculum_has_its_order(name, order):
    assert compose([f"curriculum={name}"]).order == order


@pytest.mark.parametrize(
    ("algorithm", "module"), [("grpo", "grpo.GRPOModule"), ("rloo", "rloo.RLOOModule"), ("ppo", "ppo.PPOModule")]
)
@pytest.mark.parametrize("curriculum", [name for name, order in ORDERS.items() if "reason" in order])
def test_every_curriculum_takes_every_algorithm_by_an_override(curriculum, algorithm, module):
    config = compose([f"curriculum={curriculum}", f"algorithm@stages.reason={algorithm}"])
    assert config.stages["reason"].module["_target_"] == f"lightning_mmrl.stages.{module}"
    check_all_targets(config)


def test_the_default_is_a_complete_configuration():
    config = compose([])
    assert config.order == ["cold_start", "reason"]
    assert not re.search(r"\?\?\?", str(asdict(config)))


def test_an_option_that_cannot_work_would_be_found(tmp_path):
    (tmp_path / "stage").mkdir()
    text = (ROOT / "stage" / "sft.yaml").read_text()
    (tmp_path / "stage" / "bad.yaml").write_text(text.replace("warmup_steps", "warmup_stesp"))
    config = compose(["+stage@stages.other=bad", "order=[other]"], config_dir=tmp_path)
    with pytest.raises(Exception, match=r"warmup_stesp: .*did you mean 'warmup_steps'"):
        check_all_targets(config)
