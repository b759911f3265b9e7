"""The guard between prompts and towers: every way in which media and placeholders can disagree names one sample."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.encoders import MediaEncoder
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder, OmniThinker
from lightning_mmrl.models.integrity import check_features, check_targets, checked_rows
from lightning_mmrl.types.batches import SftBatch
from lightning_mmrl.types.records import Message, Sample

NAMES = ("qwen2_5_omni", "qwen2_5_vl")


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    encoder, backbone = families.parts(request.param, folder)
    return encoder, backbone, families.prompts(request.param, encoder)


SMALL, LARGE = (56, 56), (64, 30)
"""Heights and widths of pictures with 4 and 6 feature rows."""


def album(encoder, name, sizes, order=None):
    """A prompt with pictures of these sizes; `order` moves the pictures after the prompt was tokenized."""
    pictures = [encoder.encode_image(omni.noise_image(seed, *size)) for seed, size in enumerate(sizes)]
    turns = (Message(role="user", content="<image>" * len(sizes) + "angry"),)
    prompt = encoder.encode_prompt(turns, "", pictures)
    moved = [pictures[place] for place in order or range(len(sizes))]
    prompt |= {key: torch.cat([picture[key] for picture in moved]) for key in ("pixel_values", "image_grid_thw")}
    return EncodedSample(sample=Sample(id=name, messages=turns), prompt=prompt)


def albums(encoder, *items):
    return collate_prompts([album(encoder, *item) for item in items], encoder.pad_token_id)


def with_media(batch, tensors=None, counts=None):
    media = batch.media
    changed = {"tensors": {**media.tensors, **(tensors or {})}, "counts": {**media.counts, **(counts or {})}}
    return replace(batch, media=replace(media, **changed))


def without(batch, row):
    """The batch with the media of one prompt gone."""
    rows = [other for other in range(len(batch.samples)) if other != row]
    kept = batch.media.select(rows)
    counts = {key: (*count[:row], 0, *count[row:]) for key, count in kept.counts.items()}
    return replace(batch, media=replace(kept, counts=counts, keys=()))


def test_rows_are_those_of_each_prompt(model):
    _, backbone, batch = model
    rows = checked_rows(backbone, batch)
    for kind, token in backbone.placeholder_ids.items():
        assert rows[kind] == tuple((batch.input_ids == token).sum(-1).tolist())
    assert checked_rows(backbone, batch.select([2])).keys() <= rows.keys()


def test_a_prompt_of_text_alone_has_no_rows(model):
    encoder, backbone, _ = model
    assert checked_rows(backbone, omni.prompts(encoder, ["Which emotion?"])) == {}


def test_the_guard_looks_at_the_device_once(model, monkeypatch):
    _, backbone, batch = model
    fetched = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: fetched.append(tensor.numel()) or real(tensor))
    checked_rows(backbone, batch)
    assert len(fetched) == 1


def test_a_dropped_clip_is_named(model):
    _, backbone, batch = model
    [row, *_] = [row for row, count in enumerate(batch.media.counts["pixel_values_videos"]) if count]
    with pytest.raises(MediaError, match=rf"^sample p{row}: 8 video placeholders but 0 video feature rows; a"):
        checked_rows(backbone, without(batch, row))


def test_media_of_two_samples_swapped_are_named(model):
    encoder, backbone, _ = model
    right = albums(encoder, ("a", [SMALL]), ("b", [LARGE]))
    assert checked_rows(backbone, right) == {"image": (4, 6)}
    swapped = replace(right, media=right.media.select([1, 0]))
    with pytest.raises(MediaError, match=r"^sample a: 4 image placeholders but 6 image feature rows; a medium was"):
        checked_rows(backbone, swapped)


def test_media_of_one_sample_in_another_order_are_named(model):
    encoder, backbone, _ = model
    sizes = [SMALL, LARGE, SMALL]
    assert checked_rows(backbone, albums(encoder, ("a", sizes), ("b", sizes, (2, 1, 0)))) == {"image": (14, 14)}
    sentence = r"^sample b: its image media have \[6, 4, 4\] feature rows, and one of them ends within a run"
    with pytest.raises(MediaError, match=sentence):
        checked_rows(backbone, albums(encoder, ("a", sizes), ("b", sizes, (1, 0, 2)), ("c", sizes)))


def test_a_placeholder_too_many_is_named(model):
    _, backbone, batch = model
    ids = batch.input_ids.clone()
    ids[-1, -1] = backbone.placeholder_ids["image"]
    with pytest.raises(MediaError, match=r"^sample p\d: \d+ image placeholders but \d+ image feature rows") as error:
        checked_rows(backbone, replace(batch, input_ids=ids))
    assert f"sample p{len(ids) - 1}:" in str(error.value)


def test_a_pad_token_that_is_a_placeholder_does_not_count(model):
    _, backbone, batch = model
    ids = batch.input_ids.masked_fill(~batch.prompt_mask, backbone.placeholder_ids["video"])
    assert not batch.prompt_mask.all()
    assert checked_rows(backbone, replace(batch, input_ids=ids)) == checked_rows(backbone, batch)


def num_runs(ids, token):
    slots = ids == token
    return int(slots[0]) + int((slots[1:] & ~slots[:-1]).sum())


def test_a_clip_and_its_sound_may_take_turns(tmp_path):
    folder = families.build("qwen2_5_omni", tmp_path)
    encoder = OmniEncoder.from_checkpoint(folder, audio_in_video="interleaved")
    backbone = OmniThinker.from_checkpoint(folder)
    long, short = omni.noise_video(0, num_frames=10, duration_s=3.0), omni.noise_video(1)
    media = [encoder.encode_video(short), encoder.encode_video(long), encoder.encode_audio(omni.noise_audio(0))]
    turns = (Message(role="user", content="<video>user<video><audio>angry"),)
    prompt = encoder.encode_prompt(turns, "", media)
    batch = collate_prompts([EncodedSample(sample=Sample(id="a", messages=turns), prompt=prompt)], 0)
    assert num_runs(batch.input_ids[0], backbone.placeholder_ids["video"]) == 3
    rows = checked_rows(backbone, batch)
    assert rows == {"video": (8 + 20,), "audio": (37,)}
    swapped = {"video_grid_thw": batch.media.tensors["video_grid_thw"].flip(0)}
    with pytest.raises(MediaError, match=r"its video media have \[20, 8\] feature rows, and one of them ends within"):
        checked_rows(backbone, with_media(batch, swapped))


def test_a_clip_may_have_a_run_for_each_of_its_times(tmp_path):
    encoder, backbone = families.parts("qwen3_vl", families.build("qwen3_vl", tmp_path))
    batch = families.prompts("qwen3_vl", encoder)
    assert num_runs(batch.input_ids[0], backbone.placeholder_ids["video"]) > batch.media.counts["video_grid_thw"][0]
    slots = (batch.input_ids == backbone.placeholder_ids["video"]).sum(-1)
    assert checked_rows(backbone, batch)["video"] == tuple(slots.tolist())


def test_tower_inputs_that_were_cut_are_named(model):
    _, backbone, batch = model
    pixels = batch.media.tensors["pixel_values_videos"]
    last = max(row for row, count in enumerate(batch.media.counts["pixel_values_videos"]) if count)
    with pytest.raises(
        MediaError, match=rf"^sample p{last}: 32 rows of pixel_values_videos expected but 29 found; a tensor was cut"
    ):
        checked_rows(backbone, with_media(batch, {"pixel_values_videos": pixels[:-3]}))


def test_media_that_a_model_does_not_read_are_not_left_out_in_silence(tmp_path):
    encoder, backbone = families.parts("qwen2", families.build("qwen2", tmp_path))
    batch = with_media(omni.prompts(encoder, ["angry", "Which?"]), {"clip": torch.ones(3, 2)}, {"clip": (0, 3)})
    with pytest.raises(MediaError, match=r"^sample p1: 3 rows of clip but 0 placeholders of any kind; choose a model"):
        checked_rows(backbone, batch)


def test_features_are_counted_after_the_towers_ran(model, monkeypatch):
    _, backbone, batch = model
    real, last = backbone.media_features, {}
    for kind, rows in checked_rows(backbone, batch).items():
        last[kind] = max(row for row, count in enumerate(rows) if count)

    def cut(media):
        features = dict(real(media))
        features["video"] = features["video"][:-3]
        return features

    monkeypatch.setattr(backbone, "media_features", cut)
    with pytest.raises(MediaError, match=rf"^sample p{last['video']}: 8 rows of video features expected but 5 found"):
        MediaEncoder(backbone).features(batch)


@pytest.mark.parametrize(
    ("found", "name", "expected", "own"),
    [(2, "a", 4, 2), (4, "c", 3, 0), (6, "c", 3, 2), (9, "d", 0, 2), (0, "a", 4, 0)],
)
def test_the_sample_whose_rows_are_missing_is_named(found, name, expected, own):
    samples = [Sample(id=each, messages=()) for each in "abcd"]
    with pytest.raises(MediaError, match=rf"^sample {name}: {expected} rows of audio .* but {own} found"):
        check_features({"audio": torch.ones(found, 2)}, {"audio": (4, 0, 3, 0)}, samples)
    check_features({"audio": torch.ones(7, 2)}, {"audio": (4, 0, 3, 0)}, samples)


def test_a_kind_that_the_towers_forgot_or_invented_is_named():
    samples = [Sample(id=each, messages=()) for each in "ab"]
    with pytest.raises(MediaError, match=r"^sample b: 4 rows of audio features expected but 0 found"):
        check_features({}, {"audio": (0, 4)}, samples)
    with pytest.raises(MediaError, match=r"^sample b: 0 rows of video features expected but 2 found"):
        check_features({"video": torch.ones(2, 2)}, {}, samples)


def test_carried_features_are_checked_again(model):
    _, backbone, batch = model
    ready = MediaEncoder(backbone).encode(batch)
    assert checked_rows(backbone, ready) == checked_rows(backbone, batch)
    rows = ready.media.counts["video"]
    first, second = [row for row, count in enumerate(rows) if count][:2]
    short = with_media(ready, {"video": ready.media.tensors["video"][:-1]})
    with pytest.raises(MediaError, match=r"^sample p\d: 8 rows of video features expected but 7 found"):
        checked_rows(backbone, short)
    moved = list(rows)
    moved[first], moved[second] = rows[first] - 1, rows[second] + 1
    with pytest.raises(MediaError, match=rf"^sample p{first}: 8 video placeholders but 7 video feature rows"):
        checked_rows(backbone, with_media(ready, counts={"video": tuple(moved)}))
    with pytest.raises(MediaError, match=r"^sample p\d: 8 video placeholders but 0 video feature rows"):
        checked_rows(backbone, without(ready, first))


def test_a_target_with_a_media_token_is_refused(model):
    encoder, backbone, batch = model
    prompts = batch.select([0, 1])
    ids = torch.tensor([[5, 6], [5, backbone.placeholder_ids["image"]]])

    def targets(mask):
        return SftBatch(
            prompts=prompts,
            completion_ids=ids,
            completion_mask=torch.tensor(mask),
            samples=prompts.samples,
        )

    with pytest.raises(MediaError, match=r"^sample p1: 1 image placeholders in its target, .* 0 image feature"):
        check_targets(targets([[True, True], [True, True]]), backbone.placeholder_ids)
    check_targets(targets([[True, True], [True, False]]), backbone.placeholder_ids)
    check_targets(targets([[True, True], [True, True]]), {})
    said = torch.tensor([encoder.tokenizer("angry<|image_pad|><|IMAGE|>").input_ids])
    written = replace(
        targets([[True, True], [True, True]]),
        completion_ids=said,
        completion_mask=torch.ones_like(said).bool(),
        samples=batch.samples[1:2],
    )
    with pytest.raises(MediaError, match=r"^sample p1: 1 image placeholders in its target"):
        check_targets(written, backbone.placeholder_ids)
