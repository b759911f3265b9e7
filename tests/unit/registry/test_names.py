"""Every registered name is the name of what it builds, and of its kind."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.data.synthetic.task import Task
from lightning_mmrl.models.tiny_qwen import TinyTextBuilder, TinyVisionBuilder
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.registry import found
from lightning_mmrl.registry.allowed import ALL_NAMES
from lightning_mmrl.registry.names import FAMILIES, NESTED, PLACES, REGISTRY
from lightning_mmrl.registry.targets import is_defined_at, resolve_name

ROOT = Path(__file__).parents[3]
CONSTANTS = {Task, TinyTextBuilder, TinyVisionBuilder}


@pytest.mark.parametrize("name", sorted(ALL_NAMES))
def test_a_name_is_that_of_what_it_builds(name):
    found = resolve_name(name)
    assert is_defined_at(found, name)
    if inspect.ismethod(found):
        owner, method = name.rpartition(".")[::2]
        assert (f"{found.__self__.__module__}.{found.__self__.__qualname__}", found.__name__) == (owner, method)
    elif type(found) in CONSTANTS:
        module, constant = name.rpartition(".")[::2]
        assert vars(resolve_name(module))[constant] is found
        assert module.startswith(f"{type(found).__module__.rpartition('.')[0]}.")
    elif name.startswith("torch.optim."):
        assert issubclass(found, torch.optim.Optimizer)
        assert f"{found.__module__}.{found.__qualname__}".startswith("torch.optim.")
        assert found.__qualname__ == name.rpartition(".")[2]
    else:
        assert f"{found.__module__}.{found.__qualname__}" == name


def test_a_name_has_one_kind():
    assert sum(map(len, REGISTRY.values())) == len(ALL_NAMES)


def test_every_kind_has_a_place():
    assert {*PLACES.values(), *NESTED.values()} == set(REGISTRY)


def test_families_are_the_backbones_and_encoders_in_pairs():
    assert [backbone for backbone, _ in FAMILIES.values()] == list(REGISTRY["backbone"])
    assert [encoder for _, encoder in FAMILIES.values()] == list(REGISTRY["encoder"])
    assert {"llama", "qwen2", "qwen2_5_omni", "qwen3_vl"} < set(FAMILIES)
    for name, pair in FAMILIES.items():
        assert {target.rsplit(".", 2)[0].rpartition(".")[2] for target in pair} == {name}


def test_what_configs_and_documents_name_is_registered():
    files = [*configs_dir().rglob("*.yaml"), ROOT / "README.md", *ROOT.glob("docs/*.md")]
    named = {target for file in files for target in re.findall(r"_target_: *([\w.]+)", file.read_text())}
    assert len(named) > 50
    assert named - ALL_NAMES == set()


KNOWN = {
    "reward": "rewards.label_answer.LabelAnswer",
    "advantage": "algorithms.advantages.leave_one_out.LeaveOneOut",
    "loss": "algorithms.losses.cispo.CISPO",
    "backbone": "models.families.llama.Llama.from_checkpoint",
    "encoder": "models.families.llama.LlamaEncoder.from_checkpoint",
    "model builder": "models.families.llama.build_tiny_llama",
}
OTHER = {
    "reward": ("rewards.compose.WeightedReward", "rewards.user_function.Sample", "rewards.pool.RewardPool"),
    "advantage": ("algorithms.advantages.leave_one_out.group_mean",),
    "loss": ("algorithms.losses.value_clip.ValueClip", "algorithms.losses.ratios.TokenRatio"),
    "backbone": ("models.families.text.TextBackbone.from_checkpoint",),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_kind_is_found_in_its_files_with_its_kind_alone(kind):
    names = REGISTRY[kind]
    assert f"lightning_mmrl.{KNOWN[kind]}" in names
    assert not {f"lightning_mmrl.{name}" for name in OTHER.get(kind, ())} & set(names)
    assert len(set(names)) == len(names)


PLANTED = """
import os
from lightning_mmrl.rewards.token_length import TokenLength

class Mine:
    def __call__(self, sample, completion) -> float | None: ...

class Other:
    def __call__(self, sample) -> float: ...

class Keeps:
    def open_run(self): ...
    def close(self): ...

def build_tiny_mine(): ...
build_tiny_yours = Mine()
"""


def test_a_file_gives_what_it_defines_and_nothing_that_it_imports(monkeypatch):
    monkeypatch.setattr(found, "_files", lambda room, text: {"mine": ast.parse(PLANTED).body})
    assert found.find_called("reward") == ("lightning_mmrl.rewards.mine.Mine",)
    assert found.find_called("loss") == ()
    assert found.find_trackers() == ("lightning_mmrl.tracking.mine.Keeps",)
    assert found.find_builders() == ("lightning_mmrl.models.families.mine.build_tiny_yours",)
    assert found.find_families() == {}


def test_every_reward_and_stage_of_this_package_is_registered():
    """A newcomer's file that nobody registered would be refused where its users name it."""
    rewards = {
        f"lightning_mmrl.rewards.{path.stem}.{name}"
        for path in (ROOT / "lightning_mmrl" / "rewards").glob("*.py")
        for name, found in vars(resolve_name(f"lightning_mmrl.rewards.{path.stem}")).items()
        if isinstance(found, type) and found.__module__.endswith(f".{path.stem}") and _scores(found)
    }
    assert rewards == set(REGISTRY["reward"])


def _scores(found):
    call = vars(found).get("__call__")
    return (
        call is not None
        and list(inspect.signature(call).parameters) == ["self", "sample", "completion"]
        and (found is not RewardFn)
    )
