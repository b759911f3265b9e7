"""The wrapping plan of the released sizes, without their weights: every parameter in exactly one unit."""

from collections import Counter

import pytest
import released_models
from released_models import unit_parameters

from lightning_mmrl.models.parallelize import ROOT, unit_names

# Decoder layers, then blocks of each tower, the towers and the root.
MODELS = {
    "qwen2_5_omni_3b": 36 + 32 + 32 + 2 + 1,
    "qwen2_5_omni_7b": 28 + 32 + 32 + 2 + 1,
    "qwen2_5_vl_3b": 36 + 32 + 1 + 1,
    "qwen2_5_vl_7b": 28 + 32 + 1 + 1,
}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_of_the_released_sizes_is_in_exactly_one_unit(name):
    policy = released_models.policy(name)
    plan = unit_parameters(policy)
    assert len(plan) == MODELS[name]
    owners = Counter(path for paths in plan.values() for path in paths)
    every = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    assert set(owners) == every
    assert set(owners.values()) == {1}
    assert all(plan.values()), "a unit without parameters would gather nothing"


@pytest.mark.parametrize("name", list(MODELS))
def test_no_unit_holds_a_large_part_of_the_model_but_the_embeddings(name):
    """What a rank holds beside its shards is the root and two units: the one in use, and the next."""
    policy = released_models.policy(name)
    sizes = {name: parameter.numel() for name, parameter in policy.named_parameters()}
    plan = unit_parameters(policy)
    total = sum(sizes.values())
    largest = max(sum(sizes[path] for path in paths if path in sizes) for name, paths in plan.items() if name != ROOT)
    assert largest < 0.05 * total
    root = {path.rpartition("model.")[2] for path in plan[ROOT]}
    assert root == {"embed_tokens.weight", "norm.weight", "lm_head.weight"}


def test_inner_units_come_before_those_that_hold_them():
    """`fully_shard` gives a module what its parts have not taken."""
    names = unit_names(released_models.policy("qwen2_5_omni_3b"))
    assert names[-1] == ROOT
    for place, name in enumerate(names):
        assert not any(later.startswith(f"{name}.") for later in names[place + 1 :] if name)


def test_tied_embeddings_are_one_parameter_of_the_root():
    policy = released_models.policy("qwen2_5_vl_3b")
    embedding, head = "model.model.language_model.embed_tokens.weight", "model.lm_head.weight"
    assert policy.get_parameter(embedding) is policy.get_parameter(head)
    assert {embedding, head} <= set(unit_parameters(policy)[ROOT])
