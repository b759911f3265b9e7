"""The campaign of recipes compares stages by seed and counts the rows of data stages."""

import json

import pytest
import recipe_campaign as campaign
from judged_runs import judged, write_answers

from lightning_mmrl.config.compose import compose

RECIPE = campaign.Recipe(start="pretrain", pairs=(("reason", "pretrain"),))


@pytest.fixture
def folders(tmp_path):
    """Two runs with a start that solves none of two questions, a data stage, and an end that solves one or both."""
    found = {seed: tmp_path / f"run{seed}" for seed in (0, 1)}
    counts = {"kept": 3, "always_solved": 1}
    artifacts = {"handoff": {"path": "stages/02-reason/handoff"}}
    stages = {
        "solved_sometimes": {"result": {"artifacts": {"kept": {"path": "stages/01-solved_sometimes/artifacts/kept"}}}},
        "reason": {"result": {"artifacts": artifacts}},
    }
    for seed, folder in found.items():
        for name, facts in (("01-solved_sometimes/artifacts/kept", {"counts": counts}), ("02-reason/handoff", {})):
            place = folder / "stages" / name
            place.mkdir(parents=True)
            (place / "mmrl.json").write_text(json.dumps(facts))
        (folder / "manifest.json").write_text(json.dumps({"stages": stages}))
        for place, right in (("base", 0), ("stages/00-pretrain", 0), ("stages/02-reason", 1 + seed)):
            write_answers(folder, place, [judged(f"test-{number}", number < right) for number in range(2)])
    return found


def test_stages_gains_and_counts_are_reported(folders):
    (folders[0].parent / "run0.usage.jsonl").write_text('{"seconds": 60.0, "cpu_seconds": 58.2}\n')
    content = campaign.figures(RECIPE, folders)
    lines = campaign.report_lines(json.loads(json.dumps(content)))
    assert lines[2:5] == [
        "| base | test | accuracy | 0.0 | 0.0 | 0.0 | 100.0 |",
        "| pretrain (start) | test | accuracy | 0.0 | 0.0 | 0.0 | 100.0 |",
        "| reason | test | accuracy | 50.0 | 100.0 | 75.0 | 100.0 |",
    ]
    # Gains of 0.5 and 1 for the two seeds: t with one degree of freedom is 0.75 / 0.25, whose p is 0.2048.
    over_seeds = "over seeds [-242.7, +392.7] (p 0.205)"
    assert f"- reason over pretrain: +75.0 [+50.0, +100.0], {over_seeds} (test)" in lines
    assert "- solved_sometimes/kept: kept 3, always_solved 1" in lines
    assert "- 60 s, 58 s of processor time" in lines
    assert "- time unknown" in lines


def test_a_gain_is_of_the_sets_that_both_stages_have(folders):
    for folder in folders.values():
        write_answers(folder, "stages/02-reason", [judged("test-0", True)], "more")
    assert [gain["set"] for gain in campaign.figures(RECIPE, folders)["gains"]] == ["test"]


def test_each_recipe_is_an_experiment_with_the_stages_that_are_compared():
    for name, recipe in campaign.RECIPES.items():
        order = compose([f"experiment={recipe.experiment or name}"]).order
        assert {recipe.start, *(stage for pair in recipe.pairs for stage in pair)} <= set(order)
