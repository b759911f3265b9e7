"""The reference policy: the policy as its stage started, for a KL penalty."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule

from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import Ranks


class Reference:
    """Keeps a policy as it is now, while the policy itself goes on training.

    A policy with an adapter is its own reference while the adapter is off. Any other policy is copied, without
    gradients; weights that do not train are shared instead of copied, unless weights are sharded. A sharded copy has
    the same units as the policy, and they are gathered only while the copy scores. The copy is no module of the stage:
    it is in no optimizer, state or handoff. When a stage is resumed, the copy is taken before the saved weights are
    loaded, so that it has the weights that the stage started from.

    Args:
        policy: The policy, with the weights that its stage starts from.
        sharding: How the policy's weights will be sharded over the ranks; None: not at all.
    """

    def __init__(self, policy: Policy, sharding: Sharding | None = None) -> None:
        self._policy = policy
        self._sharding = sharding
        self._copy: Policy | None = None
        if policy.adapter is None:
            shared = [each for each in policy.parameters() if sharding is None and not each.requires_grad]
            memo: dict[int, Any] = {id(parameter): parameter for parameter in shared}
            # Features on disk come from the policy's towers; while towers train there are none.
            memo[id(policy.media.cache)] = None
            self._copy = copy.deepcopy(policy, memo).requires_grad_(False).eval()
            self._copy.media.cache = None

    def place(self, mesh: DeviceMesh | None, ranks: Ranks) -> None:
        """Gives the copy the dtypes and devices, or the sharding, that the policy trains with; all ranks call it.

        Weights that are gathered in half precision are kept in it: they take no update.
        """
        if self._copy is None:
            return
        wanted = dict(self._policy.named_parameters()) | dict(self._policy.named_buffers())
        for name, tensor in (*self._copy.named_parameters(), *self._copy.named_buffers()):
            tensor.data = tensor.data.to(wanted[name].dtype)
        if self._sharding is not None and self._sharding.compute_dtype is not None:
            for parameter in self._copy.parameters():
                parameter.data = parameter.data.to(self._sharding.compute_dtype)
        if self._sharding is not None and mesh is not None:
            self._sharding.apply(self._copy, mesh, ranks)
        else:
            self._copy.to(self._policy.banned.device)

    @contextmanager
    def entered(self) -> Iterator[Policy]:
        """The reference policy, without gradients; it must not be used outside of the context."""
        if self._copy is None:
            with self._policy.reference():
                yield self._policy
        else:
            self._copy.temperature = self._policy.temperature
            with torch.no_grad():
                yield self._copy
            if isinstance(self._copy, FSDPModule):
                # The root has embedding and head, the largest weights, and stays gathered until a backward pass ends.
                self._copy.reshard()
