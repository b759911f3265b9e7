from dataclasses import replace

import pytest
import torch

from lightning_mmrl.data.collate import EncodedSample, collate_prompts, collate_targets
from lightning_mmrl.types.batches import MediaFeatures, MediaInputs
from lightning_mmrl.types.records import Sample

PAD = 99


def item(name, length, target=(), **media):
    prompt = {
        "input_ids": torch.arange(1, length + 1),
        "position_ids": torch.arange(3 * length).reshape(3, length),
        "next_position": torch.tensor([length + 7]),
        **media,
    }
    return EncodedSample(sample=Sample(id=name, messages=()), prompt=prompt, target_ids=target)


def sound(num_clips, num_frames):
    return torch.full((num_clips, 4, num_frames), float(num_frames))


def test_prompts_are_padded_on_the_left():
    batch = collate_prompts([item("a", 2), item("b", 4)], PAD)
    assert batch.input_ids.tolist() == [[PAD, PAD, 1, 2], [1, 2, 3, 4]]
    assert batch.prompt_mask.tolist() == [[False, False, True, True], [True] * 4]
    assert batch.position_ids.shape == (3, 2, 4)
    assert batch.position_ids[:, 0, 2:].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert batch.position_ids[:, 0, :2].eq(0).all()
    assert batch.position_ids[:, 1].tolist() == torch.arange(12).reshape(3, 4).tolist()
    assert batch.next_position.tolist() == [9, 11]
    assert [sample.id for sample in batch.samples] == ["a", "b"]
    assert not batch.media.tensors


def test_targets_are_padded_on_the_right_and_all_their_tokens_count():
    batch = collate_targets([item("a", 1, (5, 6, 7)), item("b", 2, (8,))], PAD)
    assert batch.completion_ids.tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch.completion_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.prompts.input_ids.tolist() == [[PAD, 1], [1, 2]]


def test_targets_of_one_prompt_are_rows_of_its_group():
    known = [replace(item(name, 2, (5,), pixels=torch.ones(1, 2)), media_key="x") for name in "ac"]
    other = replace(item("b", 2, (6, 7), pixels=torch.zeros(1, 2)), media_key="y")
    unknown = [item(name, 2, (8,), pixels=torch.ones(1, 2)) for name in "de"]
    texts = [item(name, 2, (9,)) for name in "fg"]
    batch = collate_targets([known[0], other, *unknown, *texts, known[1]], PAD)
    assert [sample.id for sample in batch.prompts.samples] == ["a", "b", "d", "e", "f"]
    assert [sample.id for sample in batch.samples] == ["a", "c", "b", "d", "e", "f", "g"]
    assert batch.scoring.group_size == 2
    rows = [row[mask].tolist() for row, mask in zip(batch.completion_ids, batch.completion_mask, strict=True)]
    assert rows == [[5], [5], [6, 7], [], [8], [], [8], [], [9], [9]]
    assert batch.prompts.media.counts == {"pixels": (1, 1, 1, 1, 0)}


def test_prompts_that_differ_in_length_or_token_share_nothing():
    other = item("b", 2, (5,))
    other.prompt["input_ids"][1] = 7
    batch = collate_targets([item("a", 2, (5,)), other, item("c", 3, (5,))], PAD)
    assert len(batch.prompts.samples) == 3


def test_a_conversation_counts_its_targets_alone_and_may_need_further_prompts():
    later = replace(item("a", 4, (8, 9)), target_mask=(False, True))
    first = replace(item("a", 1, (5, 6, 7)), target_mask=(True, False, True), later=(later,))
    batch = collate_targets([first, item("b", 2, (3,))], PAD)
    assert [sample.id for sample in batch.samples] == ["a", "a", "b"]
    assert batch.prompts.prompt_mask.sum(-1).tolist() == [1, 4, 2]
    assert batch.completion_ids.tolist() == [[5, 6, 7], [8, 9, PAD], [3, PAD, PAD]]
    assert batch.completion_mask.int().tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_a_padding_token_inside_a_text_still_counts():
    batch = collate_targets([item("a", 1, (5, PAD))], PAD)
    assert batch.completion_mask.tolist() == [[True, True]]
    ids = item("a", 2)
    ids.prompt["input_ids"][0] = PAD
    assert collate_prompts([ids], PAD).prompt_mask.tolist() == [[True, True]]


def test_media_of_different_length_are_padded_with_zeros_and_counted():
    items = [item("a", 1, sound=sound(1, 5)), item("b", 1), item("c", 1, sound=sound(2, 3))]
    media = collate_prompts(items, PAD).media
    assert media.tensors["sound"].shape == (3, 4, 5)
    assert media.tensors["sound"][0].eq(5).all()
    assert media.tensors["sound"][1:, :, :3].eq(3).all()
    assert media.tensors["sound"][1:, :, 3:].eq(0).all()
    assert media.counts == {"sound": (1, 0, 2)}


def test_each_prompt_gets_back_its_own_media():
    items = [
        item("a", 1, pixels=torch.ones(4, 2)),
        item("b", 1, sound=sound(1, 3)),
        item("c", 1, pixels=torch.zeros(6, 2)),
    ]
    batch = collate_prompts(items, PAD)
    assert batch.media.counts == {"pixels": (4, 0, 6), "sound": (0, 1, 0)}
    back = batch.select([2, 1])
    assert torch.equal(back.media.tensors["pixels"], torch.zeros(6, 2))
    assert back.media.counts == {"pixels": (6, 0), "sound": (0, 1)}
    assert set(batch.select([0]).media.tensors) == {"pixels"}


@pytest.mark.parametrize("lengths", [(3,), (1, 1), (5, 2, 4)])
def test_padding_does_not_change_what_is_not_padding(lengths):
    items = [item(str(index), length) for index, length in enumerate(lengths)]
    batch = collate_prompts(items, PAD)
    for row, length in enumerate(lengths):
        kept = batch.prompt_mask[row]
        assert batch.input_ids[row, kept].tolist() == items[row].prompt["input_ids"].tolist()
        assert torch.equal(batch.position_ids[:, row, kept], items[row].prompt["position_ids"])
        assert kept.sum() == length


def test_the_keys_of_media_follow_their_prompts():
    items = [
        replace(item(name, 1, pixels=torch.ones(1, 2)), media_key=key)
        for name, key in zip("abc", ("x", "", "z"), strict=True)
    ]
    media = collate_prompts(items, PAD).media
    assert media.keys == ("x", "", "z")
    assert media.select([2, 0]).keys == ("z", "x")
    assert media.to("cpu").keys == ("x", "", "z")
    assert replace(media, keys=()).select([2, 0]).keys == ()


def test_features_stand_in_for_the_inputs_of_their_prompts():
    rows = torch.arange(6.0).reshape(3, 2)
    media = MediaFeatures(tensors={"video": rows}, counts={"video": (1, 0, 2)}, keys=("x", "y", "z"))
    chosen = media.select([2, 0])
    assert isinstance(chosen, MediaFeatures)
    assert chosen.keys == ("z", "x")
    assert torch.equal(chosen.tensors["video"], rows[[1, 2, 0]])
    assert media.select([1]).tensors == {}
    assert isinstance(collate_prompts([item("a", 1, pixels=rows)], PAD).media, MediaInputs)
