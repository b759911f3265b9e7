"""The activations that blocks keep, against the tensors that autograd saves in them."""

from collections import Counter, defaultdict
from contextlib import ExitStack

import families
import omni
import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_mmrl.planning.activations import Precision, kept_per_row
from lightning_mmrl.planning.shapes import read_shape
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.types.batches import ScoringBatch


class Saved:
    """Bytes that autograd saves within the blocks of each stack, without weights and tensors that blocks share."""

    def __init__(self, policy):
        self.policy = policy
        self.rows = defaultdict(int)
        self._block = None
        self._kept = {}
        self._users = defaultdict(set)

    def measure(self, run):
        """Runs a forward pass and returns the bytes per row of each stack."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.policy.parameters()}
        shapes = {tuple(parameter.shape) for parameter in self.policy.parameters() if parameter.dim() == 2}
        shapes |= {shape[::-1] for shape in shapes}

        def pack(tensor):
            pointer = tensor.untyped_storage().data_ptr()
            is_weight = pointer in weights or tuple(tensor.shape) in shapes  # or a weight that autocast has cast
            if self._block is not None and not is_weight:
                self._users[pointer].add(self._block)
                self._kept[pointer] = tensor
            return tensor

        with ExitStack() as stack:
            for path, module in self.policy.named_modules():
                if isinstance(module, GradientCheckpointingLayer):
                    handles = self._watch(path, module)
                    for handle in handles:
                        stack.callback(handle.remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
            output = run()
        total = Counter()
        for pointer, users in self._users.items():
            if len(users) == 1:
                group, _ = next(iter(users))
                total[group] += self._kept[pointer].untyped_storage().nbytes()
        assert output.requires_grad
        return {group: total[group] / rows for group, rows in self.rows.items()}

    def _watch(self, path, module):
        group = "audio" if "audio" in path else "vision" if "visual" in path else "text"

        def enter(module, args, kwargs):
            self._block = (group, path)
            states = args[0] if args else kwargs["hidden_states"]
            self.rows[group] += states.numel() // states.shape[-1]

        def leave(module, args, output):
            self._block = None

        return module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    """A family and a model of it, wide enough that what is counted by row and head weighs little."""
    name = request.param
    sizes = {**families.FAMILIES[name].sizes, "hidden_size": 128}
    if families.FAMILIES[name].backbone.towers_at:
        sizes["tower_size"] = 96
    folder = tmp_path_factory.mktemp(name) / "model"
    return name, families.FAMILIES[name].build(folder, text=omni.TEXT, **sizes)


def batch_of(name, encoder):
    prompts = families.prompts(name, encoder)
    tokens, mask = omni.ragged_completions(encoder, 4 * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=4)


def measured(name, folder, dtype, *, freeze=(), adapter=None, autocast=False):
    encoder, policy = families.load(name, folder, dtype=dtype)
    policy.freeze(freeze)
    if adapter is not None:
        policy.adapt(adapter)
    if autocast:
        policy.keep_masters()
    batch = batch_of(name, encoder)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return policy(batch).logprobs

    return Saved(policy).measure(run)


def estimated(folder, precision, *, freeze=(), adapter=None):
    found = {}
    for group, stack in read_shape(str(folder)).stacks.items():
        trains = group not in freeze and adapter is None
        adapted = stack.adapted(adapter.wanted) if adapter is not None and group in adapter.groups else ()
        rank = adapter.r if adapted else 0
        kept = kept_per_row(stack, precision, trains=trains, adapted=adapted, rank=rank)
        found[group] = kept if trains or adapted or group == "text" else 0
    return found


def of(dtype, trainer="32-true"):
    return Precision.of(TrainerSettings(precision=trainer), dtype)


CASES = {
    "all, float32": ("float32", "32-true", {}),
    "all, bfloat16": ("bfloat16", "32-true", {}),
    "all, autocast": ("float32", "bf16-mixed", {}),
    "text frozen": ("bfloat16", "32-true", {"freeze": ("text",)}),
    "adapter, float32": ("float32", "32-true", {"adapter": AdapterSettings(r=4)}),
    "adapter, bfloat16": ("bfloat16", "32-true", {"adapter": AdapterSettings(r=4)}),
    "adapter on attention": ("bfloat16", "32-true", {"adapter": AdapterSettings(r=4, targets=("attention",))}),
    "adapter, autocast": ("float32", "bf16-mixed", {"adapter": AdapterSettings(r=4)}),
    "masters": ("bfloat16", "bf16-mixed", {}),
    "masters of towers": ("bfloat16", "bf16-mixed", {"freeze": ("text",)}),
    "masters of an adapter": ("bfloat16", "bf16-mixed", {"adapter": AdapterSettings(r=4)}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_blocks_keep_what_is_estimated(family, case):
    """The decoder to the byte, towers but for indices; under autocast, whose casts differ by device, towers less."""
    dtype, trainer, settings = CASES[case]
    name, folder = family
    autocast = trainer == "bf16-mixed"
    found = measured(name, folder, getattr(torch, dtype), autocast=autocast, **settings)
    expected = estimated(folder, of(dtype, trainer), **settings)
    assert found.pop("text") == expected.pop("text")
    for group, kept in expected.items():
        assert found[group] <= 1.01 * kept
        assert found[group] >= (0.8 if autocast else 1.0) * kept


def test_a_wrong_part_is_seen(family):
    """A negative control: what an adapter or a trained weight keeps is not what the other does."""
    name, folder = family
    found = measured(name, folder, torch.bfloat16)["text"]
    assert found != estimated(folder, of("float32"))["text"]
    assert found != estimated(folder, of("bfloat16"), freeze=("text",))["text"]
    assert found != estimated(folder, of("bfloat16"), adapter=AdapterSettings(r=4))["text"]
