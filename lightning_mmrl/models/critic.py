"""The critic: a value for each state that a token of a completion is sampled in."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.transfer import placed, true_places
from lightning_mmrl.types.batches import ScoringBatch


class Critic(nn.Module):
    """A copy of the policy as it is now, with a head that gives one value in place of logits.

    It is a model of its own, as in LMM-R1 (arXiv:2503.07536) and OpenRLHF, and not a second head of the policy: its
    loss does not move the policy. The value head has no bias and starts at zero, so that all values are zero at first
    and the first advantages follow from the rewards alone.

    Weights that do not train (frozen towers, the model under an adapter) are shared instead of copied, unless weights
    are sharded. Either way the critic's state leaves them out: they are the weights that the stage starts from.

    Args:
        policy: The policy, with the weights that its stage starts from.
        share_frozen: Whether weights that do not train are shared.

    Attributes:
        trunk: The copy. It contains the value head, since it is the root for sharding.
    """

    def __init__(self, policy: Policy, *, share_frozen: bool = True) -> None:
        super().__init__()
        memo: dict[int, Any] = {
            id(parameter): parameter
            for parameter in policy.parameters()
            if share_frozen and not parameter.requires_grad
        }
        # Features on disk come from the policy's towers; if the towers do not train, prompts carry features already.
        memo[id(policy.media.cache)] = None
        weight = policy.head.weight
        assert isinstance(weight, Tensor)
        dtype = torch.promote_types(weight.dtype, torch.float32)  # it trains, even if the head is frozen
        value_head = nn.Linear(weight.shape[1], 1, bias=False, dtype=dtype, device=weight.device)
        nn.init.zeros_(value_head.weight)
        memo[id(policy.head)] = value_head
        self.trunk = copy.deepcopy(policy, memo)
        self.trunk.media.cache = None
        named = self.named_parameters(remove_duplicate=False)
        self._frozen = {name for name, parameter in named if not parameter.requires_grad}
        self.register_state_dict_post_hook(_without_frozen)
        self.register_load_state_dict_post_hook(_misses_no_frozen)

    def forward(self, batch: ScoringBatch) -> Float[Tensor, "N C"]:
        """Values of the states that the tokens were sampled in; zero where the completion mask is False."""
        return self.trunk.enter(partial(self._values, batch))

    def _values(self, batch: ScoringBatch) -> Float[Tensor, "N C"]:
        head = self.trunk.head
        assert isinstance(head.weight, Tensor)
        values = head(self.trunk.scored_states(batch).to(head.weight.dtype)).squeeze(-1)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        mask = batch.completion_mask
        return placed(values, true_places(mask, len(values)), mask.shape)


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]) -> None:
    assert isinstance(module, Critic)
    for name in module._frozen:
        state.pop(f"{prefix}{name}")


def _misses_no_frozen(module: nn.Module, keys: _IncompatibleKeys) -> None:
    """Frozen weights are in place before a state is loaded, so none of them is missing."""
    assert isinstance(module, Critic)
    keys.missing_keys[:] = [key for key in keys.missing_keys if not key.endswith(tuple(module._frozen))]
