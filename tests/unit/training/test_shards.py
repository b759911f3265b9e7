"""Optimizer states by name and by place; what is read from shards on other ranks is in tests/integration."""

import torch

from lightning_mmrl.training.shards import _by_place, named_state


def trained(module, **options):
    optimizer = torch.optim.AdamW([{"params": [module.bias]}, {"params": [module.weight], "lr": 0.5}], **options)
    module.weight.sum().backward()  # the bias has no gradient, and so no state
    optimizer.step()
    return optimizer


def test_a_state_by_name_is_the_state_by_place():
    module = torch.nn.Linear(2, 3)
    optimizer = trained(module)
    named = named_state(module, optimizer)
    assert list(named["state"]) == ["weight"]
    assert [group["params"] for group in named["param_groups"]] == [["bias"], ["weight"]]
    found = {
        ("optimizer_states.0", name, key): value
        for name, values in named["state"].items()
        for key, value in values.items()
    }
    again, wanted = _by_place(found, 0, named["param_groups"]), optimizer.state_dict()
    assert again["param_groups"] == wanted["param_groups"]
    assert again["state"].keys() == wanted["state"].keys() == {1}
    for key, value in wanted["state"][1].items():
        assert torch.equal(again["state"][1][key], value)
