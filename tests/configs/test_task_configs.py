"""The generated tasks' configurations agree with their generators."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.data.synthetic.task import Task

CONFIGS = Path(__file__).parents[2] / "configs"
MODULES = {
    "geometry": "ImageDataModule",
    "counting": "ImageDataModule",
    "tones": "AudioDataModule",
    "motion": "VideoDataModule",
    "arithmetic": "TextDataModule",
}


def generator(name: str) -> Task:
    return resolve_name(OmegaConf.load(CONFIGS / f"data/{name}_synth.yaml").build["_target_"])


@pytest.mark.parametrize("name", MODULES)
def test_a_data_config_names_its_generator_its_labels_and_its_datamodule(name):
    config = OmegaConf.load(CONFIGS / f"data/{name}_synth.yaml")
    assert generator(name).name == name
    assert tuple(config.labels) == generator(name).labels
    assert config.module["_target_"].rsplit(".", 1)[1] == MODULES[name]


@pytest.mark.parametrize("name", MODULES)
def test_the_tiny_models_tokenizer_learns_every_word_of_a_task(name):
    text = " ".join(OmegaConf.load(CONFIGS / "model/tiny_omni_tasks.yaml").build.text)
    known = set(re.findall(r"[a-z]+|\S", text.lower()))
    task = generator(name)
    problems = [task.compose(plan) for plan in task.plan("cold_start", scale=0.2)]
    texts = [re.sub("<[a-z]+>", "", problem.question) + " " + problem.thought for problem in problems]
    words = set(re.findall(r"[a-z]+|[^\d\s]", " ".join([*texts, *task.labels]).lower()))
    assert words - known == set()
    assert words, "a task without words or signs proves nothing"
