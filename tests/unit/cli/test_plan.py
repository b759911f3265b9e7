import json
from dataclasses import replace

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.cli.plan import (
    adapters,
    batch_arithmetic,
    conditions,
    count_samples,
    data_names,
    num_samples,
    passes,
)
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import manifest_digests, stage_specs
from lightning_mmrl.curriculum.attempt import STATES, Attempt, stage_folder
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.types.records import StageResult


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for its process
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys, *arguments):
    """What a command prints, with runs of spaces as one."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def row(lines, stage):
    """The cells of a stage's row; a cell that does not fit goes on in the lines below."""
    table = [
        [cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in lines if line.startswith("\u2502")
    ]
    start = next(number for number, cells in enumerate(table) if cells[0] == stage)
    length = next((number for number, cells in enumerate(table[start + 1 :], start=1) if cells[0]), len(table) - start)
    return [" ".join(part for part in cells if part) for cells in zip(*table[start : start + length], strict=True)]


def test_a_plan_in_an_empty_folder_needs_and_writes_nothing(folder, capsys):
    lines = shown(capsys, "plan", "seed=3")
    assert row(lines, "cold_start")[1:8] == [
        "sft",
        "base model runs/models/tiny_omni-seed3",
        "cold_start.jsonl",
        "?",
        "200",
        "32 targets",
        "?",
    ]
    assert row(lines, "reason")[1:8] == [
        "rl",
        "cold_start",
        "train.jsonl",
        "?",
        "250",
        "32 prompts x 8 = 256 completions, 1 update",
        "?",
    ]
    assert "dataset data/emotions (will be generated)" in lines
    assert "run folder runs/default" in lines
    assert list(folder.iterdir()) == []


def test_a_plan_counts_samples_and_knows_what_is_finished(folder, capsys):
    (folder / "set").mkdir()
    (folder / "set" / "cold_start.jsonl").write_text("{}\n\n" * 64)
    config = compose(["data.root=set"])
    cold_start, _ = stage_specs(config, manifest_digests(config))
    result = StageResult(name="x", handoff="x", handoff_digest="", input_digest="", metrics={}, seconds={})
    finished = FinishedStage(
        digest=cold_start.digest,
        content=cold_start.content,
        result=result,
        training_metrics={},
        evaluation=cold_start.evaluation,
    )
    stages = {"cold_start": finished, "reason": replace(finished, content={})}
    Manifest(stages=stages).write(folder / "runs" / "default")
    lines = shown(capsys, "plan", "data.root=set")
    assert row(lines, "cold_start")[4:] == ["64", "200", "32 targets", "100.00", "finished"]
    assert row(lines, "reason")[-1] == "finished, configured differently"
    assert "dataset set" in lines


def test_a_damaged_manifest_is_one_sentence(folder, capsys):
    (folder / "runs" / "default").mkdir(parents=True)
    (folder / "runs" / "default" / FILE).write_text("{")
    assert main(["plan"]) == 2
    assert "manifest.json is damaged" in capsys.readouterr().err


def test_a_users_experiment_is_found_beside_the_shipped_ones(folder, capsys):
    (folder / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [override /curriculum: sft_then_rl]\nrun_name: mine\norder: [cold_start]\n"
    (folder / "mine" / "experiment" / "mine.yaml").write_text(text)
    lines = shown(capsys, "plan", "--config-dir", "mine", "experiment=mine")
    assert lines[0] == "mine: 1 stages"
    assert "run folder runs/mine" in lines
    # Hydra itself refuses flags after overrides.
    assert shown(capsys, "plan", "experiment=mine", "--config-dir", "mine") == lines
    lines = shown(capsys, "train", "--config-dir", "mine", "experiment=mine", "--cfg", "job")
    assert "run_name: mine" in lines


def test_the_composed_configuration_prints(capsys):
    lines = shown(capsys, "train", "--cfg", "job", "seed=7")
    assert "seed: 7" in lines
    assert "- cold_start" in lines


def test_several_commands_can_run_in_one_process(capsys):
    assert main(["plan", "sede=1"]) == 2
    capsys.readouterr()
    assert shown(capsys, "plan", "seed=1") == shown(capsys, "plan", "seed=1")


def test_the_arithmetic_of_a_step():
    config = compose(["stages.reason.algorithm.update={num_epochs: 2, num_minibatches: 4}"])
    assert batch_arithmetic(config.stages["reason"]) == "32 prompts x 8 = 256 completions, 8 updates"
    assert batch_arithmetic(config.stages["cold_start"]) == "32 targets"


def test_passes_are_of_what_the_limits_leave(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n" * 1000)
    (tmp_path / "more.jsonl").write_text("{}\n" * 30)
    steps = [f"data.root={tmp_path}", "stages.reason.num_steps=25", "stages.reason.validate_every=5"]
    config = compose([*steps, "stages.reason.data.limit=100"])
    stage = config.stages["reason"]
    assert num_samples(config, stage) == 100
    assert passes(stage, 100) == "8.00"
    assert passes(stage, None) == passes(stage, 0) == "?"
    two = "{a: {manifest: train.jsonl, limit: 50, weight: 3}, b: {manifest: more.jsonl}}"
    config = compose([*steps, "stages.reason.data.manifest=null", f"++stages.reason.data.sources={two}"])
    assert num_samples(config, config.stages["reason"]) == 80
    assert data_names(config.stages["reason"]) == "a 75%, b 25%"


def test_conditions_are_said_in_words():
    config = compose(
        [
            "++stages.reason.gate={metric: test/uar, at_least: 0.5}",
            "++stages.reason.stop_when={metric: validation/uar, at_least: 0.9}",
        ]
    )
    ends, gate = conditions(config.stages["reason"])
    assert ends.startswith("ends early once validation/uar")
    assert ends.endswith("checked every 50 steps")
    assert gate.startswith("must reach test/uar")
    assert conditions(config.stages["cold_start"]) == []


def test_an_adapter_is_said_in_words(capsys):
    some = "{r: 8, alpha: 8, dropout: 0.1, targets: [attention, down_proj], groups: [vision, text]}"
    config = compose([f"stages.reason.adapter={some}", "stages.cold_start.adapter={}"])
    assert adapters(config.stages["reason"]) == [
        "trains an adapter: rank 8, alpha 8, dropout 0.1, on attention, down_proj linear layers of vision, text"
    ]
    assert adapters(config.stages["cold_start"]) == [
        "trains an adapter: rank 16, alpha 32, on all linear layers of text"
    ]
    assert adapters(compose([]).stages["reason"]) == []
    lines = shown(capsys, "plan", "stages.reason.adapter={r: 8, alpha: 8}")
    assert "reason trains an adapter: rank 8, alpha 8, on all linear layers of text" in lines
    assert "alpha: 8" in shown(capsys, "train", "stages.reason.adapter={r: 8, alpha: 8}", "--cfg", "job")


def test_samples_are_lines_that_hold_something(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({}) + "\n \n{}")
    assert count_samples(tmp_path / "a.jsonl") == 2
    assert count_samples(tmp_path / "none.jsonl") is None


@pytest.mark.parametrize("changed", [False, True])
def test_a_plan_says_where_an_unfinished_stage_continues(folder, capsys, changed):
    config = compose([])
    spec = stage_specs(config, manifest_digests(config))[0]
    place = stage_folder(folder / "runs" / "default", spec)
    (place / STATES / "step-00000120").mkdir(parents=True)
    content = {**spec.content, "seed": 7} if changed else spec.content
    Attempt(content=content, input_digest="-", tracking_id="-").write(place)
    expected = "at step 120, begun with another configuration" if changed else "to continue after step 120"
    assert row(shown(capsys, "plan"), spec.name)[8] == expected
