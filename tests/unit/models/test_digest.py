"""A digest of weights notices any change, and does not depend on how a tensor is sharded."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_mmrl.models import digest
from lightning_mmrl.models.digest import entry_digests, weight_digest
from lightning_mmrl.protocols.ranks import ALONE

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def permuted(tensor):
    return tensor.flatten().flip(0).reshape(tensor.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.zeros(4), torch.full((4,), 1e-3)),  # an even number of entries with the same change
        (torch.ones(64), torch.full((64,), 0.9)),
        (torch.zeros(2**21), torch.ones(2**21)),
        (torch.zeros(6), -torch.zeros(6)),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        (torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 1.0])),
        (torch.linspace(-3, 3, 12), permuted(torch.linspace(-3, 3, 12))),
        (torch.ones(3), torch.ones(4)),
    ],
)
def test_a_digest_notices_changes_that_would_cancel(dtype, before, after):
    first, second, again = entry_digests([before.to(dtype), after.to(dtype), before.to(dtype).clone()])
    assert first != second
    assert first == again


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bit_of_any_entry_counts(dtype):
    tensor = torch.linspace(-3, 3, 12).to(dtype).reshape(4, 3)
    changed = []
    for place in range(tensor.numel()):
        other = tensor.clone()
        other.view(-1).view(digest.BITS[tensor.element_size()])[place] ^= 1
        changed.append(other)
    assert len({*entry_digests([tensor, *changed])}) == 13
    assert entry_digests([]) == []
    assert entry_digests([tensor[:0]]) == [0]


def test_chunks_and_shapes_do_not_count(monkeypatch):
    tensor = torch.randn(7, 5)
    whole = entry_digests([tensor, tensor.reshape(35), tensor.t().contiguous().t()])
    monkeypatch.setattr(digest, "CHUNK", 4)
    assert {*whole, *entry_digests([tensor])} == {whole[0]}


@pytest.fixture
def join():
    """Makes this process a rank of a group that says nothing."""

    def joined(rank, world_size):
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        return init_device_mesh("cpu", (world_size,))

    yield joined
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_the_parts_of_all_ranks_add_up_to_the_whole(join, world_size):
    """Also of ranks that have a smaller shard, or none. Negative control: without their places they do not."""
    tensor = torch.randn(5, 3)
    shards = [*tensor.chunk(world_size), *[tensor[:0]] * world_size][:world_size]
    parts = []
    for rank, shard in enumerate(shards):
        mesh = join(rank, world_size)
        placed = DTensor.from_local(
            shard, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        parts += entry_digests([placed])
    assert [sum(parts) % 2**64] == entry_digests([tensor])
    assert [sum(entry_digests(shards)) % 2**64] != entry_digests([tensor])


def test_the_digest_of_a_model_is_of_its_weights_and_their_names():
    model = nn.Linear(3, 2)
    before = weight_digest(model, ALONE)
    renamed = nn.ParameterDict({"weight": model.weight, "other": model.bias})
    assert weight_digest(renamed, ALONE) != before
    with torch.no_grad():
        model.bias.add_(1e-3)
    assert weight_digest(model, ALONE) != before
