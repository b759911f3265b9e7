"""The generated tasks' configurations agree with their generators."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.config.compose import compose
from lightning_mmrl.data.synthetic.task import Task
from lightning_mmrl.models.tiny import train_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
MODULES = {
    "geometry": "ImageDataModule",
    "counting": "ImageDataModule",
    "tones": "AudioDataModule",
    "motion": "VideoDataModule",
    "arithmetic": "TextDataModule",
    "numbers": "ImageDataModule",
    "described": "ImageDataModule",
    "relations": "ImageDataModule",
    "relations_text": "ImageDataModule",
    "bars": "ImageDataModule",
    "bars_text": "ImageDataModule",
    "sokoban": "ImageDataModule",
}
TILES = ("numbers", "relations", "relations_text", "bars", "bars_text", "sokoban")
MODELS = dict.fromkeys(TILES, "tiny_omni_tiles") | {"described": "tiny_omni_described"}
"""The model preset of a task; of all others, tiny_omni_tasks."""


def generator(name: str) -> Task:
    return resolve_name(OmegaConf.load(CONFIGS / f"data/{name}_synth.yaml").build["_target_"])


@pytest.mark.parametrize("name", MODULES)
def test_a_data_config_names_its_generator_its_labels_and_its_datamodule(name):
    config = OmegaConf.load(CONFIGS / f"data/{name}_synth.yaml")
    assert generator(name).name == name
    assert tuple(config.labels) == (() if name == "sokoban" else generator(name).labels)
    assert config.module["_target_"].rsplit(".", 1)[1] == MODULES[name]


@pytest.mark.parametrize("name", MODULES)
def test_the_tiny_models_tokenizer_learns_every_word_of_a_task(name):
    model = OmegaConf.load(CONFIGS / f"model/{MODELS.get(name, 'tiny_omni_tasks')}.yaml")
    known = set(re.findall(r"[a-z]+|\S", " ".join(model.build.text).lower()))
    task = generator(name)
    problems = [task.compose(plan) for plan in task.plan("cold_start", scale=0.2)]
    texts = [
        " ".join([re.sub("<[a-z]+>", "", problem.question), problem.thought, problem.answer or ""])
        for problem in problems
    ]
    words = set(re.findall(r"[a-z]+|[^\d\s]", " ".join([*texts, *task.labels]).lower()))
    assert words - known == set()
    assert words, "a task without words or signs proves nothing"


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_of_the_tiny_model_has_a_token_for_every_word_of_a_task(name):
    tokenizer = train_tokenizer(list(OmegaConf.load(CONFIGS / f"model/{MODELS[name]}.yaml").build.text))
    task = generator(name)
    for plan in task.plan("cold_start", scale=0.05):
        problem = task.compose(plan)
        for text in (problem.question.removeprefix("<image>"), problem.thought, problem.answer or plan.label):
            words = re.findall(r" ?[A-Za-z]+|\s|\d|[^\w\s]", text)  # as in Qwen, a digit has no space before it
            assert len(tokenizer.encode(text)) <= len(words), text


@pytest.mark.parametrize("name", ["numbers", "relations", "bars", "sokoban"])
def test_an_experiment_has_a_set_for_each_kind_of_question(name):
    config = compose([f"experiment=task_{name}"])
    kinds = generator(name).kinds
    assert set(config.evaluation.sets) == {"test", *kinds}
    assert [config.evaluation.sets[kind].manifest for kind in kinds] == [f"test_{kind}.jsonl" for kind in kinds]


def test_a_plan_may_be_as_long_as_the_longest_shortest_one():
    config = compose(["experiment=task_sokoban"])
    longest = max(map(int, generator("sokoban").labels))
    solved = config.stages["reason"].rewards.components["solved"]
    assert (config.data.task["max_actions"], solved["max_actions"]) == (longest, longest)
