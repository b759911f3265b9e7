"""Recipes of published systems: each scale composes, and the published files serve it."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from emotion_trees import write_dfew, write_mafw, write_ravdess
from published_files import GEOMETRY3K, LMM_R1, MM_EUREKA, MMK12, SAT, VISION_R1_COLD
from published_layout import write_array, write_lines, write_parquet

from lightning_mmrl.app.data_checks import check_data
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.registry import targets

RECIPES = sorted(folder.name for folder in (configs_dir() / "experiment").iterdir() if folder.is_dir())
TEXT = {"messages": [{"role": "user", "content": "1 + 2?"}], "solution": "3"}
TRACE = {"role": "assistant", "content": "<think>one more than 2</think><answer>\\boxed{3}</answer>"}
TAUGHT = TEXT | {"messages": [*TEXT["messages"], TRACE]}
PICTURE = {"bytes": b"", "path": None}


def problems(published, name):
    """The rows of a published file that have an answer, under the name that the recipe gives it."""
    return name, published.write, [row for row in published.rows if "answer" in row or "correct_answer" in row]


def trl(name, *rows):
    return name, write_parquet, rows


def write_emer(path, rows):
    """R1-Omni's JSON file in a folder with its clips."""
    (path / "MER24").mkdir(parents=True)
    (path / "MER24" / "sample_00000967.mp4").write_bytes(b"clip")
    write_array(path / "emer.json", rows)


def originals(name, write):
    """The folder of a set as its owners lay it out, with clips that can be opened."""

    def written(path, _):
        write_clip(path.with_suffix(".mp4"), np.zeros((4, 32, 32, 3), np.uint8), 5, np.zeros(8000, np.float32), 8000)
        write(path, content=path.with_suffix(".mp4").read_bytes())

    return name, written, ()


EMER = {
    "video": "MER24/sample_00000967.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\n<audio>\nWhich emotion? Output <think> </think> and <answer> </answer>."},
        {"from": "gpt", "value": "<think>A furrowed brow.</think>\n<answer>anxious</answer>"},
    ],
}
FILES = {
    "visualthinker_r1_zero/paper": [problems(SAT, "SAT_train.parquet")],
    "mm_eureka/paper": [problems(MMK12, "mmk12.parquet"), ("geometry.jsonl", write_lines, [TEXT])],
    "mm_eureka/v1_paper": [("dataset.jsonl", write_lines, MM_EUREKA.rows)],
    "lmm_r1/paper": [
        problems(LMM_R1, "deepscaler.jsonl"),
        problems(LMM_R1, "vermulti_geo15k.jsonl"),
        ("text_test.jsonl", write_lines, [TEXT]),
    ],
    "rl_with_cold_start/paper": [trl("cold_start.parquet", TAUGHT), problems(GEOMETRY3K, "rl.parquet")],
    "revisual_r1/paper": [
        trl("coldstart.parquet", TAUGHT),
        problems(GEOMETRY3K, "mmrl.parquet"),
        problems(GEOMETRY3K, "textrl.parquet"),
        ("text_test.jsonl", write_lines, [TEXT]),
    ],
    "vision_r1/paper": [
        ("vision_r1_llava_cot_full.json", write_array, VISION_R1_COLD.rows[1:]),
        ("vision_r1_mulberry_sharegpt_full.json", write_array, VISION_R1_COLD.rows[1:]),
        problems(GEOMETRY3K, "rl.parquet"),
    ],
    "r1_omni/paper": [
        ("EMER", write_emer, [EMER]),
        originals("DFEW", write_dfew),
        originals("MAFW", write_mafw),
        originals("RAVDESS", partial(write_ravdess, actors=(1, 2))),
    ],
    "metis_rise/paper": [("rl.jsonl", write_lines, [TEXT]), ("expert.jsonl", write_lines, [TAUGHT])],
}
"""Small files in the layouts that the publishers document, by recipe."""


def chosen(recipe, folder):
    return compose([f"experiment={recipe}", f"data.root={folder}", f"output_dir={folder}/runs", "tracking=none"])


@pytest.fixture
def published(tmp_path):
    def written(recipe):
        MMK12.put(tmp_path)  # with the media that all of them name
        (tmp_path / "test.jsonl").write_text(json.dumps(TEXT) + "\n")
        for name, write, rows in FILES[recipe]:
            write(tmp_path / name, list(rows))
        config = chosen(recipe, tmp_path)
        for key, data in config.all_data.items():
            if data.build is not None:  # the sets of a test are smaller than the published ones
                settings = data.build["settings"] | {"allow_missing": True}
                targets.build(data.build | {"settings": settings}, key, directory=Path(data.root), workers=1)
        return config

    return written


def test_every_recipe_has_the_published_scale_and_a_tiny_one():
    assert len(RECIPES) == 8
    scales = {recipe: {path.stem for path in (configs_dir() / "experiment" / recipe).iterdir()} for recipe in RECIPES}
    assert [recipe for recipe, found in scales.items() if not {"paper", "tiny"} <= found] == []


@pytest.mark.parametrize("recipe", FILES)
def test_published_files_serve_a_recipe(published, recipe):
    config = published(recipe)
    check_data(config)
    assert [spec.name for spec in stage_specs(config)] == list(config.order)


def test_a_published_file_of_another_kind_would_show(published, tmp_path):
    """The negative control: problems without an answer to learn, in the place of traces."""
    config = published("rl_with_cold_start/paper")
    write_parquet(tmp_path / "cold_start.parquet", [TEXT])
    with pytest.raises(DataError, match=r"cold_start.parquet: .* has no assistant turn to learn from"):
        check_data(config)


def test_originals_that_are_not_complete_end_a_published_run(published):
    config = published("r1_omni/paper")
    data = config.datasets["mafw"]
    with pytest.raises(DataError, match=r"protocol of mafw is not met in .*: 20, published 9,172 .*--out"):
        targets.build(data.build, "datasets.mafw.build", directory=Path(data.root).parent / "again", workers=1)


def test_r1_omni_asks_for_tags_once_in_every_stage(published):
    config = published("r1_omni/paper")
    suffix = "Output the thinking process"
    assert suffix not in config.of_stage(config.stages["cold_start"]).prompt.suffix  # the file's questions have it
    assert suffix in config.of_stage(config.stages["reason"]).prompt.suffix
    assert all(suffix in config.prompt_of(each).suffix for each in config.sets().values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_without_a_scale_is_the_tiny_one(recipe):
    names = {tuple(compose(keys).order) for keys in ([f"experiment={recipe}"], [f"experiment={recipe}", "scale=tiny"])}
    assert len(names) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["experiment=quickstart", "scale=paper"], "scale=paper: experiment=quickstart has no scales; .*metis_rise"),
        (["scale=paper"], "scale=paper: no experiment is chosen"),
        (["experiment=lmm_r1", "scale=papr"], "scale=papr of experiment=lmm_r1 does not exist; did you mean 'paper'?"),
    ],
)
def test_a_scale_that_is_none_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        compose(keys)
