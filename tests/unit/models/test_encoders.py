"""Towers run once for each prompt, and their outputs serve every later pass."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models.encoders import MediaEncoder

NAMES = ("qwen2_5_omni", "qwen2_5_vl")


def load(name, folder):
    family = families.FAMILIES[name]
    return family.encoder.from_checkpoint(folder), family.backbone.from_checkpoint(folder, dtype=torch.float64)


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    encoder, backbone = load(request.param, folder)
    return encoder, backbone, families.prompts(request.param, encoder)


@pytest.fixture
def runs(model):
    """Counts tower runs, and gives gradients back to whatever a test froze."""
    counted = []
    _, backbone, _ = model
    handles = [tower.register_forward_hook(lambda *_: counted.append(1)) for tower in backbone.towers]
    yield counted
    for handle in handles:
        handle.remove()
    backbone.model.requires_grad_(True)


def with_media(batch):
    return sum(map(any, zip(*batch.media.counts.values(), strict=True)))


def test_features_are_the_towers_and_follow_the_gradient_mode(model):
    _, backbone, batch = model
    media = MediaEncoder(backbone)
    features = media.features(batch)
    for kind, rows in backbone.media_features(batch.media).items():
        assert torch.equal(features[kind], rows)
        assert features[kind].requires_grad
    with torch.no_grad():
        assert not any(rows.requires_grad for rows in media.features(batch).values())


def test_encoded_prompts_run_no_tower_again_in_any_selection(model, runs):
    _, backbone, batch = model
    media = MediaEncoder(backbone)
    ready = media.encode(batch)
    assert len(runs) == len(backbone.towers)
    for rows in ([3, 1], [2], list(range(len(batch.samples)))):
        with torch.no_grad():
            alone = backbone.media_features(batch.media.select(rows))
        del runs[len(backbone.towers) :]
        chosen = ready.select(rows)
        found = media.features(chosen)
        assert found.keys() == alone.keys()
        for kind in alone:
            assert not found[kind].requires_grad
            torch.testing.assert_close(found[kind], alone[kind], rtol=0, atol=1e-9)
    assert media.encode(ready) is ready
    assert len(runs) == len(backbone.towers)


def test_prompts_are_counted_where_they_enter_a_tower(model):
    _, backbone, batch = model
    media = MediaEncoder(backbone)
    ready = media.encode(batch)
    media.features(ready.select([0]))
    assert 0 < with_media(batch) < len(batch.samples)
    assert media.take_counters() == {"tower_prompts": with_media(batch)}
    assert media.take_counters() == {"tower_prompts": 0}


def test_text_alone_enters_no_tower(model, runs):
    encoder, backbone, _ = model
    media = MediaEncoder(backbone)
    batch = omni.prompts(encoder, ["Which emotion?", "angry"])
    assert media.features(batch) == {}
    ready = media.encode(batch)
    assert ready.media.features == {}
    assert media.features(ready.select([1])) == {}
    assert not runs
    assert media.take_counters() == {"tower_prompts": 0}


def test_towers_train_until_every_one_is_frozen(model, runs):
    _, backbone, _ = model
    media = MediaEncoder(backbone)
    for tower in backbone.towers:
        assert media.towers_train
        tower.requires_grad_(False)
    assert not media.towers_train


def test_a_text_model_has_no_towers(tmp_path):
    encoder, backbone = load("qwen2", families.build("qwen2", tmp_path))
    media = MediaEncoder(backbone)
    batch = families.prompts("qwen2", encoder)
    assert not media.towers_train
    assert media.features(media.encode(batch)) == {}


@pytest.mark.parametrize("use", ["features", "encode"])
def test_towers_do_not_run_on_prompts_that_are_not_backed(model, runs, use):
    _, backbone, batch = model
    ids = batch.input_ids.clone()
    ids[0, -1] = backbone.placeholder_ids["image"]
    with pytest.raises(MediaError, match=r"^sample p0: \d image placeholders but \d image feature rows"):
        getattr(MediaEncoder(backbone), use)(replace(batch, input_ids=ids))
    assert not runs
