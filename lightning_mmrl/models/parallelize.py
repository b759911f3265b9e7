"""Weights sharded over ranks by FSDP2: which modules are gathered together, and when they are whole.

The units are each decoder layer, each block of each tower, each tower with the weights outside of its blocks, and the
policy as the root with the rest: embedding, last norm and head. A block is a module that activation checkpointing
recomputes as one piece. Towers are sharded by blocks like the decoder: one unit per tower (0.7 B parameters) would hold
all its weights, and in the backward pass all its gradients, at once on every rank. Embedding and head stay in the root
together, because tied ones are a single parameter, which may belong to one unit only; the root is gathered once per
pass. Gradients are summed into the shards in every backward pass, so that no rank ever holds all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.settings.stage import TrainerSettings

ROOT = ""
"""Name of the unit that is the policy itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Settings for sharding a policy's weights over ranks.

    Attributes:
        compute_dtype: Dtype of gathered weights, and so of activations; None leaves weights as they are stored.
        reduce_dtype: Dtype in which gradients are summed; None: the dtype of the gathered weights.
        settings: Whether shards, gradients and optimizer state are kept in host memory.
    """

    compute_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None
    settings: TrainerSettings = field(default_factory=TrainerSettings)

    def apply(self, policy: Policy, mesh: DeviceMesh, ranks: Ranks) -> None:
        """Shards a policy in place over a one-dimensional mesh; a second call does nothing.

        Afterwards all ranks run the towers in lockstep. Gradients are summed over the ranks, not averaged: the loss is
        already divided by the total count (of tokens or completions) of all ranks.
        """
        if isinstance(policy, FSDPModule):
            return
        # Only CUDA has pinned memory; on a CPU shards are in host memory anyway.
        pinned = mesh.device_type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pinned) if self.settings.cpu_offload else OffloadPolicy()
        mixed = MixedPrecisionPolicy(
            param_dtype=self.compute_dtype,
            reduce_dtype=self.reduce_dtype,
            # Models themselves cast to the dtype of their weights, and keep the angles of rotary embeddings exact.
            cast_forward_inputs=False,
        )
        for name in unit_names(policy):
            unit = policy.get_submodule(name)
            # The first and the last operation of a pass need the root's weights.
            fully_shard(unit, mesh=mesh, mp_policy=mixed, offload_policy=offload, reshard_after_forward=name != ROOT)
        for unit in policy.modules():
            if isinstance(unit, FSDPModule):
                # Without the second call, float32 gradients would be scaled by an operation that only NCCL has.
                unit.set_gradient_divide_factor(1.0)
                unit.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(policy, "enter")
        policy.media.ranks, policy.media.gathered = ranks, self.compute_dtype


def unit_names(policy: Policy) -> list[str]:
    """The modules that are sharded as units, each before the modules that contain it."""
    towers = [
        name
        for tower in policy.media.backbone.towers
        for name, module in policy.named_modules()
        if module is tower and name
    ]
    blocks = [name for name, module in policy.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    return [*blocks, *towers, ROOT]


@contextmanager
def whole(policy: Policy) -> Iterator[None]:
    """Keeps all weights gathered on every rank within the context, so that no pass waits for another rank.

    Generation takes hundreds of passes at unchanged weights. Without this, each pass would gather all weights again,
    and a rank whose completions end early would leave the others waiting. With one copy of the weights in memory,
    gathered once, each rank goes at its own pace. Entering is a collective; a policy that is not sharded is whole
    anyway. Open the context inside `Policy.enter`, which gathers the root.
    """
    if not isinstance(policy, FSDPModule):
        yield
        return
    units = [unit for unit in policy.modules() if isinstance(unit, FSDPModule) and unit is not policy]
    ranks = policy.media.ranks
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    policy.media.ranks = ALONE
    try:
        yield
    except BaseException:
        policy.reshard()  # otherwise the root stays gathered, since its pass does not reach the end
        raise
    finally:
        policy.media.ranks = ranks
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def gathered_weights(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """All parameters and persistent buffers in host memory, gathered one after the other; all ranks call it.

    Args:
        module: Its weights may be sharded.
        keep: Whether this rank keeps them; otherwise its result is empty. A weight with two names is one tensor.
    """
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, weight in module.state_dict(keep_vars=True).items():
        if id(weight) not in known:
            tensor = weight.detach()
            whole_tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            known[id(weight)] = whole_tensor.cpu() if keep else torch.empty(0)
        if keep:
            found[name] = known[id(weight)]
    return found


def recompute_activations(policy: Policy) -> None:
    """Activation checkpointing: keeps only the inputs of decoder layers and tower blocks for the backward pass."""
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
