"""Every command of README and docs composes, and the plan holds those that name a GPU preset against its memory."""

import math
import re
import shlex
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from lightning_mmrl.cli.hydra_app import take_flags
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.planning.clips import lengths_with_clip
from lightning_mmrl.planning.engines import stage_estimate
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.refusals import refuse_misfits
from lightning_mmrl.planning.shapes import read_shape

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "configs" / "train.yaml"]
PLACES = {"NAME": "reason", "NN": "00", "N": "0"}
"""Placeholders of the pages, each with a value that it may have."""
OWN = ("--allow-targets", "my_configs", "--config-dir sets/")
"""Of commands that need code or files of the user's own; tests/unit/cli/test_data_prepare.py composes prepared sets."""
HELD = 5
"""Commands with a GPU preset that the pages have at least."""
VALUED = ("--from-stage", "--only-stage", "--config-dir", "--prompt-tokens", "--clip", "--steps", "--out", "--stage")
SWITCHES = ("--allow-changes", "--cfg", "--multirun", "job")


def commands(text):
    """The arguments of every `mmrl train`, `plan` and `profile` of a page, from blocks and from the text."""
    text = re.sub(r" *\\\n *", " ", text)
    blocks = [line for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    lines = [*blocks, *re.findall(r"^(?: {4,}|  +)(mmrl .*)$", text, re.MULTILINE)]
    inline = [each for each in re.findall(r"`([^`\n]*mmrl (?:train|plan|profile) [^`\n]*)`", text) if "=" in each]
    for line in [*lines, *inline]:
        found = re.search(r"(?:^|[ /])mmrl (train|plan|profile) (?![a-z]+ (?:shows|needs|estimates|only))(.*)", line)
        if found and "=" in found[2] and not any(each in line for each in OWN):
            yield re.split(r"\s{3,}|\s+#|`", found[2])[0]


def overrides(arguments):
    """The overrides of a command, with values in the place of `...` and of other placeholders."""
    for name, value in PLACES.items():
        arguments = re.sub(rf"\b{name}\b", value, arguments)
    words = [each for each in shlex.split(arguments) if each not in ("...", "OVERRIDES", "$SERVER")]
    _, rest = take_flags(words, valued=VALUED, switches=SWITCHES)
    found = [each.replace("experiment=reason", "experiment=quickstart") for each in rest]
    if any("labels=null" in each for each in found) or "experiment=own_clips" in found:
        found = [each for each in found if "labels=null" not in each] + ["data.labels=[happy,sad]"]
    return found + (["data.root=/data"] if "data=emotions_jsonl" in found and not _has_root(found) else [])


@cache
def composed(command):
    """What a command composes, for tests that change nothing in it."""
    return compose(overrides(command))


def _has_root(found):
    return any(each.startswith("data.root=") for each in found)


COMMANDS = sorted({command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))})
PRESETS = sorted(
    path.stem for path in configs_dir().glob("trainer/*.yaml") if "gpu_memory_gb: null" not in path.read_text()
)
ON_GPUS = [each for each in COMMANDS if any(f"trainer={preset}" in each for preset in PRESETS)]


def shape_and_lengths(config):
    shape = read_shape(config.model.checkpoint, config.model.known_sizes)
    lengths, _ = lengths_with_clip(Lengths(), None, config.data.media, shape, config.model.checkpoint)
    return shape, lengths


def test_the_pages_have_commands_and_all_presets():
    assert len(COMMANDS) > 25
    assert len(ON_GPUS) >= HELD
    assert {preset for preset in PRESETS if any(f"trainer={preset}" in each for each in ON_GPUS)} == set(PRESETS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_composes(command):
    assert stage_specs(composed(command))


def test_a_documented_key_that_does_not_exist_would_be_found():
    text = "```\nmmrl train ... stages.reason.num_stpes=3   # a comment\n```\n"
    (command,) = commands(text)
    with pytest.raises(ConfigError, match="num_steps"):
        compose(overrides(command))


@pytest.mark.parametrize("command", ON_GPUS)
def test_a_documented_command_fits_its_gpus_and_not_a_third_of_them(command):
    config = deepcopy(composed(command))
    refuse_misfits(config, shape_and_lengths(config))
    for stage in config.trained.values():
        stage.trainer.gpu_memory_gb //= 3
    with pytest.raises(ConfigError, match=r"stages\.\w+ needs about .* GiB on .*trainer\.gpu_memory_gb is \d+"):
        refuse_misfits(config, shape_and_lengths(config))


def test_the_memory_beside_a_documented_command_is_that_of_the_plan():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^# [^\n]*?: ([\d.]+) GiB(?: each)?\nmmrl train (.*)$", text, re.MULTILINE)
    assert len(found) >= HELD
    for said, command in found:
        config = composed(command)
        shape, lengths = shape_and_lengths(config)
        ranks = config.trainer.world_size
        needed = max(stage_estimate(config, each, shape, ranks, lengths).needed for each in config.trained.values())
        assert f"{needed / 2**30:.1f}" == said, command


RELEASED = sorted(path for path in configs_dir().glob("model/*.yaml") if not path.stem.startswith("tiny"))
FACTS = re.compile(
    r"^# License: (?P<license>[^.]+(?:\.\d[^.]*)?)\. Memory of training: (?P<adapter>\d+) GB for LoRA on one GPU, "
    r"(?P<all>\d+) GB on each of 8 GPUs for all weights\.$",
    re.MULTILINE,
)


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_a_released_preset_names_its_license_and_the_memory_of_the_plan(path):
    facts = FACTS.search(path.read_text(encoding="utf-8"))
    assert facts is not None
    adapters = ["stages.cold_start.adapter={}", "stages.reason.adapter={}"]
    ways = {"adapter": (["trainer=gpu_24gb", *adapters], 1), "all": (["trainer=h100_8"], 8)}
    for name, (keys, ranks) in ways.items():
        config = compose([f"model={path.stem}", *keys])
        shape = read_shape(config.model.checkpoint, config.model.known_sizes)
        found = [stage_estimate(config, stage, shape, ranks, Lengths()).needed for stage in config.trained.values()]
        assert int(facts[name]) == math.ceil(max(found) / 10**9), name
