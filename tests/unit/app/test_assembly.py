"""The parts of a run take their values from its configuration, and write them down."""

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import families
import foreign
import pytest

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.models.encoders import MediaEncoder
from lightning_mmrl.settings.model import AdapterSettings


class Console:
    """Remembers what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_the_limit_of_a_stage_is_that_of_its_sources_unless_they_have_their_own():
    key = "stages.reason.data"
    both = f"+{key}.sources={{one: {{manifest: a.jsonl}}, two: {{manifest: b.jsonl, limit: 3}}}}"
    for limit in (f"{key}.limit=7", "data.limit=7"):
        config = compose([f"{key}.manifest=null", both, limit])
        assert [each.limit for each in config.stages["reason"].data.located(config.data).values()] == [7, 3]


def test_an_encoder_is_built_as_the_model_says_and_the_hand_over_repeats_it(tmp_path):
    folder = families.build("qwen2_5_omni", tmp_path / "omni")
    for rule, how in (("previous_maximum", "separate"), ("transformers", "interleaved")):
        config = compose([f"model.position_rule={rule}", f"model.audio_in_video={how}"])
        parts = Assembly(config=config, console=Console())
        encoder = parts.encoder(folder)
        assert (encoder.settings.position_rule, encoder.settings.audio_in_video) == (rule, how)
        assert {"position_rule": rule, "audio_in_video": how}.items() <= parts.facts().items()


def test_a_model_without_ears_cannot_interleave(tmp_path):
    parts = Assembly(config=compose(["model=tiny_qwen3", "model.audio_in_video=interleaved"]), console=Console())
    with pytest.raises(ConfigError, match=r"model.audio_in_video is 'interleaved', but Qwen3 reads no"):
        parts.encoder(tmp_path)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = families.build("qwen2_5_omni", tmp_path_factory.mktemp("omni"))
    return families.FAMILIES["qwen2_5_omni"].backbone.from_checkpoint(folder)


@pytest.mark.parametrize("num_frozen", [0, 1, 2])
def test_a_stage_keeps_the_outputs_of_its_towers_if_all_of_them_are_frozen(num_frozen, backbone, tmp_path):
    cache = f"+model.feature_cache={{directory: {tmp_path / 'features'}, max_bytes: 1000}}"
    parts = Assembly(config=compose(["stages.reason.freeze=[vision,audio]", cache]), console=Console())
    for number, tower in enumerate(backbone.towers):
        tower.requires_grad_(number >= num_frozen)
    found = parts.feature_cache("reason", MediaEncoder(backbone))
    if num_frozen == len(backbone.towers):
        assert found is not None
        assert parts.console.said == []
    else:
        assert found is None
        said = "stage reason trains a media tower or its projector, so it does not use model.feature_cache"
        assert parts.console.said == [said]


def test_a_stage_that_trains_a_projector_keeps_no_output(tmp_path):
    """Kept outputs hold the projector: after a step they are out of date."""
    cache = f"+model.feature_cache={{directory: {tmp_path / 'features'}}}"
    parts = Assembly(config=compose(["stages.cold_start.freeze=[vision,audio]", cache]), console=Console())
    _, policy = families.load("qwen2_5_omni", families.build("qwen2_5_omni", tmp_path / "model"))
    policy.freeze(["vision_tower", "audio"])
    assert parts.feature_cache("reason", policy.media) is None
    policy.freeze(["projector"])
    assert parts.feature_cache("reason", policy.media) is not None


def test_there_is_no_feature_cache_unless_it_is_asked_for(backbone):
    parts = Assembly(config=compose([]), console=Console())
    backbone.model.requires_grad_(False)
    assert parts.feature_cache("reason", MediaEncoder(backbone)) is None
    assert parts.console.said == []


def test_an_adapter_has_usual_sizes_and_its_targets_are_one_or_several():
    def settings(text):
        return compose([f"stages.reason.adapter={text}"]).stages["reason"].adapter

    assert settings("{}") == AdapterSettings() == AdapterSettings(r=16, alpha=32, targets="all", groups=["text"])
    several = settings("{r: 8, dropout: 0.5, targets: [q_proj, mlp], groups: [vision, text]}")
    expected = AdapterSettings(r=8, dropout=0.5, targets=["q_proj", "mlp"], groups=["vision", "text"])
    assert several == expected
    assert (settings("{}").wanted, several.wanted) == (("all",), ("q_proj", "mlp"))


def test_a_stage_says_what_its_adapter_changes(tmp_path):
    folder = families.build("qwen2_5_omni", tmp_path / "omni")
    for dropout, num_said in ((0.0, 1), (0.2, 2)):
        config = compose([f"stages.reason.adapter={{r: 2, alpha: 2, dropout: {dropout}, targets: q_proj}}"])
        parts = Assembly(config=config, console=Console())
        policy = parts.policy(folder, parts.encoder(folder), 1.0)
        parts.adapt(policy, config.stages["reason"].adapter, "reason")
        # Two layers of 64 inputs and outputs.
        first = "stage reason trains an adapter of 512 parameters; all weights stay as they are"
        copies = "each completion is scored with a copy of its prompt: dropout of 0.2 would draw one noise for all "
        assert parts.console.said[0] == first
        assert len(parts.console.said) == num_said
        assert all(line.startswith(copies) for line in parts.console.said[1:])


def test_two_runs_of_a_seed_build_one_base_model(tmp_path, monkeypatch):
    """Started at once, as seeds of a campaign are: the second finds what the first built."""
    built = []

    def slow(node, path, *, directory):
        built.append(directory)
        time.sleep(0.3)
        directory.mkdir()
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr("lightning_mmrl.app.assembly.targets.build", slow)
    config = compose(["model=tiny_omni", f"output_dir={tmp_path}"])
    found = []
    runs = [
        threading.Thread(target=lambda: found.append(Assembly(config=config, console=Console()).base_checkpoint()))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(built) == 1
    assert found == [Path(config.model.checkpoint)] * 2
    assert re.fullmatch(r"tiny_omni-seed0-[0-9a-f]{8}", found[0].name)


def builds(monkeypatch):
    """What was built, each in place of a model."""
    built = []

    def build(node, path, *, directory):
        built.append(node)
        directory.mkdir()
        (directory / "config.json").write_text(str(len(built)))

    monkeypatch.setattr("lightning_mmrl.app.assembly.targets.build", build)
    return built


def base_of(*overrides):
    return Assembly(config=compose([*overrides]), console=Console()).base_checkpoint()


def test_other_values_build_another_base_and_the_same_ones_use_it_again(tmp_path, monkeypatch):
    built, runs = builds(monkeypatch), f"output_dir={tmp_path}"
    first = base_of(runs)
    assert base_of(runs) == base_of(runs, "evaluation.max_new_tokens=9", "model.dtype=bfloat16") == first
    assert len(built) == 1
    others = [
        base_of(runs, *changed)
        for changed in (
            ["+model.build.hidden_size=64"],
            ["seed=1"],
            ["model.build.text=[sad]"],
            ["model.build._target_=lightning_mmrl.models.tiny_qwen.build_tiny_qwen2"],
        )
    ]
    assert len({first, *others}) == len(built) == 5
    assert all((folder / "config.json").is_file() for folder in others)


def test_a_base_of_an_earlier_version_is_left_alone(tmp_path, monkeypatch):
    """Its name does not say what built it."""
    old = tmp_path / "models" / "tiny_omni-seed0"
    old.mkdir(parents=True)
    (old / "config.json").write_text("old")
    built = builds(monkeypatch)
    assert base_of(f"output_dir={tmp_path}") != old
    assert len(built) == 1
    assert (old / "config.json").read_text() == "old"
    assert base_of(f"output_dir={tmp_path}", f"model.checkpoint={old}") == old, "named by the user, it is used as it is"


def test_a_named_folder_that_was_built_with_other_values_is_refused(tmp_path, monkeypatch):
    built, named = builds(monkeypatch), f"model.checkpoint={tmp_path / 'mine'}"
    assert base_of(named) == base_of(named) == tmp_path / "mine"
    sentence = r"model\.checkpoint .*mine was built with other values of model\.build \(hidden_size: - -> 64\); give"
    with pytest.raises(ConfigError, match=sentence):
        base_of(named, "+model.build.hidden_size=64")
    assert len(built) == 1
    (tmp_path / "mine.build.json").write_text("[]")
    with pytest.raises(ConfigError, match="its record is damaged"):
        base_of(named)
    assert base_of(named, "model.build=null") == tmp_path / "mine"


def test_a_process_that_is_killed_while_it_builds_leaves_no_base(tmp_path):
    """The next one builds it, and removes the parts of the first."""
    script = """
import os, sys
from lightning_mmrl.app import assembly
from lightning_mmrl.config.compose import compose
def build(node, path, *, directory):
    directory.mkdir()
    (directory / "config.json").write_text("half")
    os.kill(os.getpid(), 9)
assembly.targets.build = build
class Console:
    def say(self, line): pass
assembly.Assembly(config=compose([f"output_dir={sys.argv[1]}"]), console=Console()).base_checkpoint()
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -9
    config = compose([f"output_dir={tmp_path}", "+model.build.hidden_size=32", "+model.build.num_layers=1"])
    folder = Path(compose([f"output_dir={tmp_path}"]).model.checkpoint)
    assert not folder.exists()
    assert not folder.with_name(f"{folder.name}.build.json").exists()
    assert any(path.name.endswith("partial") for path in folder.parent.iterdir())
    assert base_of(f"output_dir={tmp_path}") == folder
    assert not any(path.name.endswith("partial") for path in folder.parent.iterdir())
    assert (folder / "model.safetensors").is_file()
    assert Path(config.model.checkpoint) != folder


@pytest.mark.parametrize("name", [foreign.WEIGHTS, "config.json", "chat_template.jinja"])
def test_a_handoff_as_the_base_model_is_checked(name, tmp_path):
    """`mmrl serve` and the check of encodings take it from here."""
    handoff = foreign.write(tmp_path / "handoff", {})
    parts = Assembly(config=compose([f"model.checkpoint={handoff}"]), console=Console())
    assert parts.base_checkpoint() == handoff
    (handoff / name).write_text("evil")
    with pytest.raises(StageError, match=f"{name} is missing or changed since the stage wrote it"):
        parts.base_checkpoint()
