"""Each model preset composes and binds; the released architectures have the published size, and freezing is exact."""

from functools import cache

import pytest
from released_models import RELEASED, on_meta, policy_of

from lightning_mmrl.app.run import check_all_targets
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.families.qwen2_5_omni import OmniThinker
from lightning_mmrl.models.families.qwen2_5_vl import Qwen25VL

PRESETS = sorted(path.stem for path in configs_dir().glob("model/*.yaml"))


def modules_of(model, family):
    """The submodules of each group, by hand."""
    if family is OmniThinker:
        return {"vision": [model.visual], "audio": [model.audio_tower], "text": [model.model, model.lm_head]}
    if not family.towers_at:
        return {"text": [model.model, model.lm_head]}
    return {"vision": [model.model.visual], "text": [model.model.language_model, model.lm_head]}


each_released = pytest.mark.parametrize("name", sorted(RELEASED))


@pytest.fixture
def backbone(name):
    built = on_meta(name)
    built.model.requires_grad_(True)
    return built


def unique(modules):
    """The parameters of submodules, each once: a tied head is the input embedding."""
    return {id(parameter): parameter for module in modules for parameter in module.parameters()}


@cache
def composed(preset):
    """A run of a preset, for tests that change nothing in it."""
    return compose([f"model={preset}"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_and_binds(preset):
    config = composed(preset)
    check_all_targets(config)
    family = config.model.family
    assert family["backbone"]["_target_"].rpartition(".")[2] == "from_checkpoint"
    modules = {part["_target_"].rsplit(".", 2)[0] for part in family.values()}
    assert len(modules) == 1, "encoder and backbone are of one family"
    assert (config.model.build is None) == (not preset.startswith(("tiny", "smollm2")))


def test_every_released_preset_has_its_architecture_here():
    assert {preset for preset in PRESETS if not preset.startswith("tiny")} == set(RELEASED)


@each_released
def test_a_preset_names_the_family_of_its_architecture(name):
    config = composed(name)
    target = config.model.family["backbone"]["_target_"]
    assert target == f"{RELEASED[name].family.__module__}.{RELEASED[name].family.__name__}.from_checkpoint"


@each_released
def test_the_architecture_has_the_published_number_of_parameters(name, backbone):
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    assert total == RELEASED[name].num_parameters
    assert next(backbone.model.parameters()).device.type == "meta"


@each_released
def test_a_head_is_tied_as_released(name, backbone):
    embedding = backbone.text_model.get_input_embeddings().weight
    assert (backbone.head.weight is embedding) == RELEASED[name].tied


@each_released
def test_freezing_a_group_stops_exactly_its_parameters(name, backbone):
    policy = policy_of(backbone)
    groups = modules_of(backbone.model, RELEASED[name].family)
    assert set(groups) == set(backbone.parameter_groups)
    for group, modules in groups.items():
        policy.model.requires_grad_(True)
        chosen = unique(modules)
        assert policy.freeze([group]) == sum(parameter.numel() for parameter in chosen.values()) > 0
        frozen = {id(p) for p in policy.model.parameters() if not p.requires_grad}
        assert frozen == set(chosen), f"freezing {group} stops its own parameters and no other"


@each_released
def test_the_groups_share_nothing_and_leave_nothing(name, backbone):
    policy = policy_of(backbone)
    groups = modules_of(backbone.model, RELEASED[name].family)
    total = sum(parameter.numel() for parameter in backbone.model.parameters())
    assert policy.freeze(list(groups)) == total
    assert not any(parameter.requires_grad for parameter in policy.parameters())


@each_released
def test_freezing_the_towers_leaves_the_projector_frozen_too(name, backbone):
    policy = policy_of(backbone)
    towers = [group for group in backbone.parameter_groups if group != "text"]
    if not towers:
        with pytest.raises(ConfigError, match="unknown group 'vision'; this family has text"):
            policy.freeze(["vision"])
        return
    assert policy.media.towers_train
    policy.freeze(towers)
    assert not policy.media.towers_train
    assert not any(p.requires_grad for p in backbone.towers[0].merger.parameters())
    assert all(p.requires_grad for p in backbone.text_model.parameters())


def test_outdated_prefixes_are_refused_or_found():
    """Does what a wrong attribute path does: transformers 5 moved the vision tower of Qwen2.5-VL below `model`."""

    class Outdated(Qwen25VL):
        @property
        def parameter_groups(self):
            return {"vision": ("visual.",), "text": ("model.",)}

    policy = policy_of(Outdated(on_meta("qwen2_5_vl_3b").model.requires_grad_(True)))
    with pytest.raises(ConfigError, match="group 'vision' selects no parameter"):
        policy.freeze(["vision"])
    # The other mistake freezes too much, the tower as well; the counts above would find it.
    assert policy.freeze(["text"]) == RELEASED["qwen2_5_vl_3b"].num_parameters
