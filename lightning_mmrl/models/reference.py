"""The policy that a stage started from, which a KL penalty compares with."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from lightning_mmrl.models.parallelize import Sharding, reshard_root
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import Ranks


class Reference:
    """A policy as it is now, kept while it trains.

    A policy with an adapter is its own reference while the adapter is off. Any other is copied, without gradients; as
    long as weights are not sharded, those that do not train are not copied but shared. Sharded, the copy has the units
    of the policy, and none of them is gathered but while it scores. The copy is no module of the stage: it is in no
    optimizer, state or handoff. A stage that is continued takes the copy of what it started from before the weights
    of its state are loaded.

    Args:
        policy: The policy, with the weights that its stage starts from.
        sharding: How its weights will be spread over the ranks, if they will.
    """

    def __init__(self, policy: Policy, sharding: Sharding | None = None) -> None:
        self._policy = policy
        self._sharding = sharding
        self._copy = None if policy.adapter is not None else _copied(policy, share_frozen=sharding is None)

    def place(self, mesh: DeviceMesh | None, ranks: Ranks) -> None:
        """Gives the copy the dtypes and the place of the policy, which is where it trains by now; all ranks call it."""
        if self._copy is None:
            return
        wanted = dict(self._policy.named_parameters()) | dict(self._policy.named_buffers())
        for name, tensor in (*self._copy.named_parameters(), *self._copy.named_buffers()):
            tensor.data = tensor.data.to(wanted[name].dtype)
        if self._sharding is not None and mesh is not None:
            self._sharding.apply(self._copy, mesh, ranks)
        else:
            self._copy.to(self._policy.banned.device)

    @contextmanager
    def entered(self) -> Iterator[Policy]:
        """The reference policy, which is one inside the context only, without gradients."""
        if self._copy is None:
            with self._policy.reference():
                yield self._policy
        else:
            self._copy.temperature = self._policy.temperature
            with torch.no_grad():
                yield self._copy
            reshard_root(self._copy)


def _copied(policy: Policy, *, share_frozen: bool) -> Policy:
    shared = [parameter for parameter in policy.parameters() if share_frozen and not parameter.requires_grad]
    memo: dict[int, Any] = {id(parameter): parameter for parameter in shared}
    # Features on disk are of the policy's towers, and a policy whose towers train has none.
    memo[id(policy.media.cache)] = None
    found = copy.deepcopy(policy, memo)
    found.media.cache = None
    return found.requires_grad_(False).eval()
