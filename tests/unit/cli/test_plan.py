import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from released_models import SIZES
from rich.console import Console

from lightning_mmrl.app.kinds import rl, sft
from lightning_mmrl.cli.main import main
from lightning_mmrl.cli.memory_table import show_memory
from lightning_mmrl.cli.plan import (
    adapters,
    conditions,
    data_names,
    passes,
)
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.epochs import num_samples
from lightning_mmrl.config.specs import manifest_digests, stage_specs
from lightning_mmrl.curriculum.attempt import STATES, Attempt, stage_folder
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.planning.hints import hints
from lightning_mmrl.planning.memory import Lengths, estimate
from lightning_mmrl.planning.shapes import read_shape, shape_of
from lightning_mmrl.settings.data import DataSettings, StageDataSettings
from lightning_mmrl.types.records import HANDOFF, Artifact, StageResult


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it for its process
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys, *arguments):
    """The output of a command with runs of spaces joined."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def row(lines, stage):
    """The cells of a stage's row; a cell that does not fit continues in the lines below."""
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


def test_a_stage_with_a_checkpoint_of_its_own_starts_from_it(folder, capsys):
    lines = shown(capsys, "plan", "stages.cold_start.checkpoint=Org/Model")
    assert row(lines, "cold_start")[2] == "Org/Model"
    assert row(lines, "reason")[2] == "cold_start"


def test_a_plan_counts_samples_and_knows_what_is_finished(folder, capsys):
    (folder / "set").mkdir()
    (folder / "set" / "cold_start.jsonl").write_text("{}\n\n" * 64)
    config = compose(["data.root=set"])
    cold_start, _ = stage_specs(config, manifest_digests(config))
    made = {HANDOFF: Artifact(path="stages/00-x/handoff", digest="0")}
    result = StageResult(name="x", artifacts=made, inputs={}, metrics={}, seconds={})
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


def test_a_stage_that_samples_has_prompts_and_parts_in_the_place_of_steps(folder, capsys):
    (folder / "set").mkdir()
    (folder / "set" / "train.jsonl").write_text("{}\n" * 5)
    own, more = "{stage: draw, artifact: own, weight: 1}", "{manifest: train.jsonl, weight: 3}"
    sources = f"+stages.again.data.sources={{own: {own}, more: {more}}}"
    arguments = ["data.root=set", "order=[draw,again]", "+stage@stages.draw=sample", "stages.draw.data.batch_size=2"]
    arguments += ["+stage@stages.again=sft", "stages.again.data.manifest=null", sources]
    lines = shown(capsys, "plan", *arguments)
    each = "8 completions of each prompt, 2 prompts at once"
    base = "base model runs/models/tiny_omni-seed0"
    assert row(lines, "draw")[1:] == ["sample", base, "train.jsonl", "5", "-", each, "1.00", "to run"]
    assert row(lines, "again")[3:5] == ["own 25%, more 75%", "?"]
    assert "draw makes rollouts, own; trains nothing" in lines
    assert not any(line.startswith("draw memory") for line in lines)

    config = compose(arguments)
    draw, _ = stage_specs(config, manifest_digests(config))
    place = folder / "runs" / "default" / "stages" / "00-draw"
    Attempt(content=draw.content, inputs={}, tracking_id="run-1").write(place)
    for number in range(2):
        (place / "state").mkdir(exist_ok=True)
        (place / "state" / f"part-00000{number}.jsonl").write_text("{}")
        (place / "state" / "part-000002.jsonl.tmp").write_text("{")
    assert row(shown(capsys, "plan", *arguments), "draw")[-1] == "to continue after 2 batches"
    begun = row(shown(capsys, "plan", *arguments, "stages.draw.num_completions=2"), "draw")[-1]
    assert begun == "begun with another configuration"


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
    assert rl.KIND.describe(config.stages["reason"]) == "32 prompts x 8 = 256 completions, 8 updates"
    assert sft.KIND.describe(config.stages["cold_start"]) == "32 targets"


def test_passes_are_of_what_the_limits_leave(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}\n" * 1000)
    (tmp_path / "more.jsonl").write_text("{}\n" * 30)
    steps = [f"data.root={tmp_path}", "stages.reason.num_steps=25", "stages.reason.validate_every=5"]
    config = compose([*steps, "stages.reason.data.limit=100"])
    stage = config.stages["reason"]
    assert num_samples(stage.data.located(config.data).values()) == 100
    assert passes(stage, 100) == "8.00"
    assert passes(stage, None) == passes(stage, 0) == "?"
    two = "{a: {manifest: train.jsonl, limit: 50, weight: 3}, b: {manifest: more.jsonl, weight: 1}}"
    config = compose([*steps, "stages.reason.data.manifest=null", f"++stages.reason.data.sources={two}"])
    assert num_samples(config.stages["reason"].data.located(config.data).values()) == 80
    assert data_names(config.stages["reason"]) == "a 75%, b 25%"
    by_size = "{a: {manifest: train.jsonl, limit: 50}, b: {manifest: more.jsonl}}"
    config = compose([*steps, "stages.reason.data.manifest=null", f"++stages.reason.data.sources={by_size}"])
    assert data_names(config.stages["reason"]) == "a, b by size"


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
    assert num_samples(StageDataSettings(manifest="a.jsonl").located(DataSettings(root=str(tmp_path))).values()) == 2
    assert (
        num_samples(StageDataSettings(manifest="none.jsonl").located(DataSettings(root=str(tmp_path))).values()) is None
    )


@pytest.mark.parametrize("changed", [False, True])
def test_a_plan_says_where_an_unfinished_stage_continues(folder, capsys, changed):
    config = compose([])
    spec = stage_specs(config, manifest_digests(config))[0]
    place = stage_folder(folder / "runs" / "default", spec)
    (place / STATES / "step-00000120").mkdir(parents=True)
    content = {**spec.content, "seed": 7} if changed else spec.content
    Attempt(content=content, inputs={}, tracking_id="-").write(place)
    expected = "at step 120, begun with another configuration" if changed else "to continue after step 120"
    assert row(shown(capsys, "plan"), spec.name)[8] == expected


def memory_rows(lines, stage):
    """The rows of a stage's memory table by the number of GPUs."""
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{stage}: memory per rank"))
    rows = [[cell.strip() for cell in line.strip("\u2502").split("\u2502")] for line in lines[start + 4 : start + 8]]
    return {int(cells[0]): cells[1:] for cells in rows}


def test_a_plan_estimates_the_memory_of_a_released_model(capsys):
    arguments = ("model=qwen2_5_omni_3b", "stages.reason.freeze=[vision,audio]")
    lines = shown(capsys, "plan", *arguments)
    stage = compose(list(arguments)).stages["reason"]
    rows = memory_rows(lines, "reason")
    assert list(rows) == [1, 2, 4, 8]
    for ranks, cells in rows.items():
        found = estimate(shape_of(SIZES["qwen2_5_omni_3b"]), stage, "bfloat16", ranks, Lengths())
        assert cells[0] == f"{found.needed / 2**30:.1f} GiB"
        assert cells[1:3] == ["fits" if found.fits(size) else "no" for size in (24, 80)]
        assert cells[3] == found.phase
        assert cells[4].startswith(found.largest)
    assert any("for prompts of 2,048 tokens" in line for line in lines)


def test_longer_prompts_take_more(capsys):
    short = memory_rows(shown(capsys, "plan", "model=qwen2_5_omni_3b", "--prompt-tokens", "1024"), "cold_start")
    long = memory_rows(shown(capsys, "plan", "model=qwen2_5_omni_3b", "--prompt-tokens=4096"), "cold_start")
    assert all(float(short[ranks][0].split()[0]) < float(long[ranks][0].split()[0]) for ranks in short)
    assert main(["plan", "--prompt-tokens", "many"]) == 2
    assert "--prompt-tokens is 'many'" in capsys.readouterr().err


def test_a_stage_that_fits_everywhere_takes_one_line(folder, capsys):
    (folder / "tiny").mkdir()
    config = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 600}
    (folder / "tiny" / "config.json").write_text(json.dumps(config))
    lines = [line for line in shown(capsys, "plan", "model.checkpoint=tiny") if "memory" in line]
    assert [line.partition(" memory")[0] for line in lines] == ["cold_start", "reason"]
    assert all(line.endswith("fits 24 GB on any number of GPUs") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), f"memory estimated once {compose([]).model.checkpoint} is built"),
        (
            ("model=qwen2_5_3b", "model.checkpoint=me/mine"),
            "memory no estimate: me/mine is not here, and model.known_sizes does not name it",
        ),
        (("model=qwen2_5_3b", "model.checkpoint=."), "memory no estimate: . has no config.json"),
    ],
)
def test_a_model_of_unknown_size_is_said_to_be_so(capsys, arguments, expected):
    found = [line for line in shown(capsys, "plan", *arguments) if line.startswith("memory")]
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_another_architecture_is_said_to_have_no_estimate(folder, capsys):
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    lines = shown(capsys, "plan", "model.checkpoint=.")
    assert any(line.startswith("memory no estimate for .: model_type is 'mamba'") for line in lines)


def test_a_text_model_of_another_family_is_said_to_be_taken_for_a_llama(folder, capsys):
    (folder / "config.json").write_text(json.dumps({**SIZES["qwen2_5_0_5b"], "model_type": "mine"}))
    lines = shown(capsys, "plan", "model.checkpoint=.")
    assert "memory mine is no family of this package; it is taken to have Llama's layers" in lines
    assert any("memory per rank" in line for line in lines)


def test_hints_hold_what_they_promise():
    config = compose(["model=qwen2_5_omni_3b"])
    shape, lengths = read_shape(config.model.checkpoint, config.model.known_sizes), Lengths()
    own, adapted = hints(config, "reason", shape, lengths)
    assert "adapter" not in own
    assert adapted.endswith("stages.reason.adapter={} stages.reason.trainer.activation_checkpointing=true")
    assert adapted.startswith("fits 24 GB on 1 GPU or more")
    keys = ["stages.reason.adapter={}", "stages.reason.trainer.activation_checkpointing=true"]
    changed = compose(["model=qwen2_5_omni_3b", *keys])
    found = estimate(shape, changed.stages["reason"], "bfloat16", 1, lengths)
    assert found.fits(24)
    assert hints(changed, "reason", shape, lengths) == []
    without = estimate(shape, compose(["model=qwen2_5_omni_3b", keys[0]]).stages["reason"], "bfloat16", 1, lengths)
    assert not without.fits(24), "the second key is needed"


def test_hints_name_no_group_that_a_model_has_not():
    for model in ("qwen2_5_3b", "qwen2_5_vl_3b", "qwen2_5_omni_3b"):
        config = compose([f"model={model}"])
        shape = read_shape(config.model.checkpoint, config.model.known_sizes)
        own, _ = hints(config, "reason", shape, Lengths(prompt=1024))
        towers = ",".join(group for group in shape.stacks if group != "text")
        assert own.partition("freeze=")[2] == (f"[{towers}]" if towers else "")
        config.stages["reason"].freeze = ["text"]
        assert not any("adapter" in each for each in hints(config, "reason", shape, Lengths(prompt=1024)))


def test_offloading_is_said_with_its_host_memory(capsys):
    config = compose(["model=qwen2_5_omni_7b"])
    config.stages["reason"].trainer.strategy, config.stages["reason"].trainer.cpu_offload = "fsdp2", True
    show_memory(Console(width=140), config, ["reason"], Lengths())
    out = " ".join(capsys.readouterr().out.split())
    assert "memory per rank, sharded by fsdp2, offloaded to the host" in out
    weights = read_shape(config.model.checkpoint, config.model.known_sizes).parameters * 4  # masters
    assert f"{4 * weights / 2**30:.1f} GiB of host memory in all" in out


def test_the_plan_says_how_much_disk_the_media_take(capsys, tmp_path):
    """A token of a clip is 28 x 28 pixels of two frames in three colors; the sounds of Qwen2.5-VL are none."""
    (tmp_path / "train.jsonl").write_text("{}\n" * 300)
    own = ["data=emotions_jsonl", f"data.root={tmp_path}", "data.labels=[a]", "stages.reason.data.manifest=train.jsonl"]
    config = compose(["model=qwen2_5_vl_3b", *own, "stages.cold_start.data.manifest=train.jsonl"])
    show_memory(Console(width=200), config, ["reason"], Lengths(clip=480))
    size = 480 * 28 * 28 * 2 * 3
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("media cache")]
    assert f"at most {size / 1e6:.1f} MB a sample, {300 * size / 1e9:.1f} GB for 300 samples" in line
    assert line.endswith("(data.media.cache_limit_gb is 100)")


@pytest.mark.parametrize("name", sorted(SIZES))
def test_every_released_model_has_an_estimate_for_every_stage(name, capsys):
    config = compose([f"model={name}"])
    show_memory(Console(width=140), config, config.order, Lengths())
    assert capsys.readouterr().out.count("memory per rank") == 2


def test_a_plan_with_memory_leaves_torch_unloaded(folder):
    statement = (
        "import sys; from lightning_mmrl.cli.main import main; main(['plan', 'model=qwen2_5_omni_7b']); "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'transformers', 'lightning'}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", statement], env=environment, capture_output=True, text=True, check=True
    )
    assert "reason: memory per rank" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_stage_of_epochs_shows_its_steps_once_its_data_exist(folder, capsys):
    epochs = ("stages.reason.num_steps=null", "stages.reason.num_epochs=2", "data.build=null")
    cells = row(shown(capsys, "plan", *epochs), "reason")
    assert (cells[4], cells[5], cells[7]) == ("?", "?", "2")
    (folder / "data" / "emotions").mkdir(parents=True)
    (folder / "data" / "emotions" / "train.jsonl").write_text("{}\n" * 100)
    cells = row(shown(capsys, "plan", *epochs), "reason")
    assert (cells[4], cells[5], cells[7]) == ("100", "7", "2.24")  # ceil(2 x 100 / 32)


def test_the_folder_of_a_built_base_is_shown(folder, capsys):
    place = compose([]).model.checkpoint
    assert any(line == f"base model {place} (will be built)" for line in shown(capsys, "plan"))
    (folder / place).mkdir(parents=True)
    (folder / place / "config.json").write_text("{}")
    assert any(line == f"base model {place}" for line in shown(capsys, "plan"))
