"""Tensors of a state, asked before they are saved and read from files of any kind."""

import pytest
import torch

from lightning_mmrl.protocols.ranks import ALONE, Alone
from lightning_mmrl.training.finite_states import CHECKPOINT, FINITE, check_finite, not_finite_anywhere
from lightning_mmrl.training.state_store import StoredState

NAN, INF = float("nan"), float("inf")


def saved(folder, *, weight=1.0, moment=1.0, facts=None):
    folder.mkdir()
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.tensor([0.0, moment])}}
    content = {
        "state_dict": {"layer.weight": torch.tensor([weight, 1.0]), "layer.count": torch.tensor(3)},
        "optimizer_states": [{"state": state, "param_groups": []}],
    }
    torch.save(content, folder / CHECKPOINT)
    return StoredState(step=3, folder=folder, facts=facts or {})


def test_a_finite_state_passes(tmp_path):
    check_finite(saved(tmp_path / "state"))


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"weight": NAN}, "layer.weight"),
        ({"weight": -INF}, "layer.weight"),
        ({"moment": INF}, "exp_avg of parameter 0"),
        ({"moment": NAN}, "exp_avg of parameter 0"),
    ],
)
def test_a_state_that_is_not_finite_is_refused_by_name(tmp_path, numbers, name):
    with pytest.raises(ValueError, match=f"^{name} is not finite$"):
        check_finite(saved(tmp_path / "state", **numbers))


def test_a_state_that_was_checked_before_it_was_saved_is_not_read_again(tmp_path):
    """Its hash says that it is what was written."""
    check_finite(saved(tmp_path / "state", weight=NAN, facts={FINITE: True}))


def test_what_another_rank_holds_counts():
    class OfTwo(Alone):
        def gather(self, item):
            return [item, ["elsewhere"]]

    assert not_finite_anywhere({"here": torch.ones(1)}, ALONE) is None
    assert not_finite_anywhere({"here": torch.tensor([NAN])}, ALONE) == "here is not finite"
    assert not_finite_anywhere({"here": torch.ones(1)}, OfTwo()) == "elsewhere is not finite"
