"""Every tensor of a batch is moved, wherever it lies."""

import torch

from lightning_mmrl.types.batches import MediaInputs, PromptBatch
from lightning_mmrl.types.records import Sample


def batch_of():
    pixels = torch.zeros(4, 3, dtype=torch.uint8)
    return PromptBatch(
        samples=(Sample(id="a", messages=()),),
        input_ids=torch.zeros(1, 5, dtype=torch.long),
        prompt_mask=torch.ones(1, 5, dtype=torch.bool),
        position_ids=torch.zeros(3, 1, 5, dtype=torch.long),
        next_position=torch.tensor([5]),
        media=MediaInputs(tensors={"pixel_values_videos": pixels}, counts={"pixel_values_videos": (4,)}),
    )


def tensors(batch):
    found = [batch.input_ids, batch.prompt_mask, batch.position_ids, batch.next_position]
    return [*found, *batch.media.tensors.values()]


def test_pinning_takes_every_tensor_once_and_leaves_the_rest(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    batch = batch_of()
    found = batch.pinned()
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors(batch)}
    assert found.samples is batch.samples
    assert found.media.counts == batch.media.counts
    assert all(torch.equal(*pair) for pair in zip(tensors(found), tensors(batch), strict=True))


def test_pinned_tensors_are_copied_beside_the_host_and_others_are_not(monkeypatch):
    how = []
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.dtype == torch.uint8)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: how.append((self.dtype, non_blocking)) or self
    )
    batch_of().to("cuda")
    assert (torch.uint8, True) in how
    assert all(beside == (dtype == torch.uint8) for dtype, beside in how)
    assert len(how) == 5
