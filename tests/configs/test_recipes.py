"""Recipes of published systems: each scale composes, and the published files serve it."""

import json

import pytest
from published_files import GEOMETRY3K, LMM_R1, MM_EUREKA, MMK12, SAT, VISION_R1_COLD
from published_layout import write_array, write_lines, write_parquet

from lightning_mmrl.app.data_checks import check_data
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.errors import ConfigError, DataError

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
        return chosen(recipe, tmp_path)

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
