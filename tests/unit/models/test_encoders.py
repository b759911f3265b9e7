"""Towers run once for each prompt, and their outputs serve every later pass."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.errors import MediaError
from lightning_mmrl.models import encoders
from lightning_mmrl.models.encoders import MediaEncoder, tower_fingerprint
from lightning_mmrl.models.feature_cache import FeatureCache
from lightning_mmrl.protocols.ranks import Alone
from lightning_mmrl.settings.model import FeatureCacheSettings

NAMES = ("qwen2_5_omni", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module", params=NAMES)
def model(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    encoder, backbone = families.parts(request.param, folder)
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


def owners(batch):
    """Rows of prompts with media."""
    return [row for row in range(len(batch.samples)) if any(counts[row] for counts in batch.media.counts.values())]


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
    assert media.encode(ready).media is ready.media
    assert len(runs) == len(backbone.towers)


def test_prompts_are_counted_where_they_enter_a_tower(model):
    _, backbone, batch = model
    media = MediaEncoder(backbone)
    ready = media.encode(batch)
    media.features(ready.select([0]))
    assert 0 < len(owners(batch)) < len(batch.samples)
    assert media.take_counters() == {"tower_prompts": len(owners(batch)), "cache_hits": 0}
    assert media.take_counters() == {"tower_prompts": 0, "cache_hits": 0}


def test_text_alone_enters_no_tower(model, runs):
    encoder, backbone, _ = model
    media = MediaEncoder(backbone)
    batch = omni.prompts(encoder, ["Which emotion?", "angry"])
    assert media.features(batch) == {}
    ready = media.encode(batch)
    assert ready.media.tensors == {}
    assert media.features(ready.select([1])) == {}
    assert not runs
    assert media.take_counters() == {"tower_prompts": 0, "cache_hits": 0}


@pytest.mark.parametrize("limit", [1, 12, 10**6])
def test_chunks_change_no_feature(model, runs, monkeypatch, limit):
    """As many runs as the limit says, and the same rows; a prompt is never cut."""
    _, backbone, batch = model
    with torch.no_grad():
        whole = backbone.media_features(batch.media)
    runs.clear()
    entered, run = [], backbone.media_features
    monkeypatch.setattr(backbone, "media_features", lambda media: entered.append(media) or run(media))
    monkeypatch.setattr(encoders, "TOWER_ROWS", limit)
    found = MediaEncoder(backbone).encode(batch).media
    assert found.tensors.keys() == whole.keys()
    for kind, rows in whole.items():
        torch.testing.assert_close(found.tensors[kind], rows, rtol=0, atol=1e-9)
    sizes = [sum(int(counts.sum()) for counts in backbone.feature_rows(media).values()) for media in entered]
    assert sum(sizes) == sum(len(rows) for rows in whole.values())
    assert all(size <= limit for size in sizes) or limit < max(sizes)
    assert {1: len(owners(batch)), 10**6: 1}.get(limit, len(entered)) == len(entered)


def test_chunks_in_another_order_would_be_seen(model, monkeypatch):
    """A negative control: features of exchanged prompts."""
    _, backbone, batch = model
    monkeypatch.setattr(encoders, "TOWER_ROWS", 1)
    whole = backbone.media_features(batch.media)
    monkeypatch.setattr(encoders, "_chunks", lambda sizes: [[place] for place in reversed(range(len(sizes)))])
    found = MediaEncoder(backbone).encode(batch).media.tensors
    assert any(not torch.allclose(found[kind], rows, rtol=0, atol=1e-3) for kind, rows in whole.items())


def test_towers_that_train_run_at_once(model, runs, monkeypatch):
    """Their activations are kept anyway; without a gradient, and once they are frozen, they run in chunks."""
    _, backbone, batch = model
    monkeypatch.setattr(encoders, "TOWER_ROWS", 1)
    media = MediaEncoder(backbone)
    features = media.features(batch)
    assert len(runs) == len(backbone.towers)
    assert all(rows.requires_grad for rows in features.values())
    for tower in backbone.towers:
        tower.requires_grad_(False)
    assert media.features(batch).keys() == features.keys()
    assert len(runs) > 2 * len(backbone.towers)


class Fellow(Alone):
    """One of two ranks in lockstep, whose fellow has three chunks of pictures."""

    lockstep, world_size = True, 2

    def max(self, value):
        """The fellow's."""
        return max(value, 3)

    def any(self, flags):
        """All kinds."""
        return [True] * len(flags)


def test_a_rank_with_few_media_enters_as_often_as_the_others(model, runs):
    _, backbone, batch = model
    media = MediaEncoder(backbone)
    media.ranks = Fellow()
    found = media.encode(batch).media.tensors
    assert len(runs) == 3 * len(backbone.towers)
    with torch.no_grad():
        for kind, rows in backbone.media_features(batch.media).items():
            torch.testing.assert_close(found[kind], rows, rtol=0, atol=1e-9)


def test_towers_train_until_every_one_is_frozen(model, runs):
    _, backbone, _ = model
    media = MediaEncoder(backbone)
    for tower in backbone.towers:
        assert media.towers_train
        tower.requires_grad_(False)
    assert not media.towers_train


def test_a_text_model_has_no_towers(tmp_path):
    encoder, backbone = families.parts("qwen2", families.build("qwen2", tmp_path))
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


@pytest.fixture
def keyed(model):
    """The batch with a key for the media of each prompt but the last one."""
    _, _, batch = model
    keys = tuple(f"key{row}" for row in range(len(batch.samples) - 1))
    return replace(batch, media=replace(batch.media, keys=(*keys, "")))


@pytest.fixture
def frozen(model, runs):
    """The backbone with frozen towers."""
    _, backbone, _ = model
    for tower in backbone.towers:
        tower.requires_grad_(False)
    return backbone


def cached(backbone, directory):
    store = FeatureCache(FeatureCacheSettings(directory=directory, max_bytes=2**30), towers=tower_fingerprint(backbone))
    return MediaEncoder(backbone, store)


def assert_equal(found, wanted):
    assert found.media.counts == wanted.media.counts
    for kind, rows in wanted.media.tensors.items():
        torch.testing.assert_close(found.media.tensors[kind], rows, rtol=0, atol=1e-9)


def test_what_is_on_disk_enters_no_tower(model, frozen, keyed, runs, tmp_path):
    first, second = cached(frozen, tmp_path), cached(frozen, tmp_path)
    chosen = keyed.select(list(range(len(keyed.samples) - 1)))
    num_owners = len(owners(chosen))
    ready = first.encode(chosen)
    assert first.take_counters() == {"tower_prompts": num_owners, "cache_hits": 0}
    assert len(list(tmp_path.rglob("*.safetensors"))) == num_owners
    del runs[:]
    again = second.encode(chosen)
    assert not runs
    assert second.take_counters() == {"tower_prompts": 0, "cache_hits": num_owners}
    assert_equal(again, MediaEncoder(frozen).encode(chosen))
    scored = second.features(chosen)
    assert second.take_counters()["tower_prompts"] == 0
    assert all(torch.equal(scored[kind], rows) for kind, rows in again.media.tensors.items())
    for kind, rows in ready.media.tensors.items():
        assert torch.equal(again.media.tensors[kind], rows)


def test_only_the_missing_media_enter_a_tower(model, frozen, keyed, tmp_path, monkeypatch):
    media = cached(frozen, tmp_path)
    media.encode(keyed.select([3, 1]))
    num_known, num_owners = len(owners(keyed.select([3, 1]))), len(owners(keyed))
    assert 0 < num_known < num_owners
    assert media.take_counters()["tower_prompts"] == num_known
    entered, real = [], frozen.media_features
    monkeypatch.setattr(frozen, "media_features", lambda inputs: entered.append(inputs) or real(inputs))
    ready = media.encode(keyed)
    [inputs] = entered
    rest = [row for row in owners(keyed) if row not in (1, 3)]
    wanted = keyed.media.select(rest)
    assert inputs.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(inputs.tensors[key], wanted.tensors[key]) for key in wanted.tensors)
    assert media.take_counters() == {"tower_prompts": num_owners - num_known, "cache_hits": num_known}
    assert_equal(ready, MediaEncoder(frozen).encode(keyed))
    assert not any(rows.requires_grad for rows in ready.media.tensors.values())


def test_media_without_a_key_are_never_stored(model, frozen, keyed, tmp_path):
    media = cached(frozen, tmp_path)
    for batch in (keyed.select([len(keyed.samples) - 1]), replace(keyed, media=replace(keyed.media, keys=()))):
        for _ in range(2):
            media.encode(batch)
        assert media.take_counters() == {"tower_prompts": 2 * len(owners(batch)), "cache_hits": 0}
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_entry_is_computed_anew(model, frozen, keyed, tmp_path, caplog):
    cached(frozen, tmp_path).encode(keyed)
    [path, *_] = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    media = cached(frozen, tmp_path)
    assert_equal(media.encode(keyed), MediaEncoder(frozen).encode(keyed))
    assert "are damaged" in caplog.text
    assert media.take_counters()["tower_prompts"] == 2  # this one, and the one without a key
    media.encode(keyed)
    assert media.take_counters()["tower_prompts"] == 1


def test_another_precision_or_another_weight_finds_nothing(model, frozen, keyed, tmp_path):
    cached(frozen, tmp_path).encode(keyed)
    with torch.autocast("cpu", torch.bfloat16):
        media = cached(frozen, tmp_path)
        media.encode(keyed)
        assert media.take_counters()["cache_hits"] == 0
    media = cached(frozen, tmp_path)
    media.gathered = torch.bfloat16  # stored in the same type, and computed in another
    media.encode(keyed)
    assert media.take_counters()["cache_hits"] == 0
    weight = next(frozen.towers[0].parameters()).view(-1)[0]
    before = weight.clone()
    weight.add_(1)
    media = cached(frozen, tmp_path)
    media.encode(keyed)
    assert media.take_counters()["cache_hits"] == 0
    weight.copy_(before)
    media = cached(frozen, tmp_path)
    media.encode(keyed)
    assert media.take_counters()["tower_prompts"] == 1


def test_a_tower_that_trains_is_not_cached(model, keyed, tmp_path):
    _, backbone, _ = model
    media = cached(backbone, tmp_path)
    media.encode(keyed)
    media.encode(keyed)
    assert media.take_counters() == {"tower_prompts": 2 * len(owners(keyed)), "cache_hits": 0}
    assert not list(tmp_path.rglob("*"))


def test_the_guard_stands_before_the_cache(model, frozen, keyed, tmp_path):
    media = cached(frozen, tmp_path)
    media.encode(keyed)
    ids = keyed.input_ids.clone()
    ids[0, -1] = frozen.placeholder_ids["image"]
    with pytest.raises(MediaError, match=r"^sample p0: \d image placeholders but \d image feature rows"):
        media.encode(replace(keyed, input_ids=ids))


def test_the_fingerprint_is_of_all_that_decides_the_output_and_nothing_else(tmp_path):
    name = "qwen2_5_omni"
    folder = families.build(name, tmp_path)
    _, backbone = families.parts(name, folder)
    known = tower_fingerprint(backbone)
    assert tower_fingerprint(families.parts(name, folder)[1]) == known
    with torch.no_grad():
        backbone.head.weight.add_(1)
    assert tower_fingerprint(backbone) == known
    found = [tower_fingerprint(families.FAMILIES[name].backbone.from_checkpoint(folder, dtype=torch.bfloat16))]
    for tower in backbone.towers:
        with torch.no_grad():
            last = list(tower.parameters())[-1].view(-1)
            last[-1] = last[-1].nextafter(torch.tensor(9.0, dtype=last.dtype))
        found.append(tower_fingerprint(backbone))
    backbone.towers[0].config.window_size *= 2
    found.append(tower_fingerprint(backbone))
    assert len({known, *found}) == len(found) + 1


def test_no_output_is_kept_while_a_projector_trains(model, runs, tmp_path):
    """A kept output would be wrong after the first step, although the tower stays as it is."""
    _, backbone, batch = model
    cache = FeatureCache(FeatureCacheSettings(directory=str(tmp_path)), towers=tower_fingerprint(backbone))
    batch = replace(batch, media=replace(batch.media, keys=tuple(f"k{row}" for row in range(len(batch.samples)))))
    media = MediaEncoder(backbone, cache)
    backbone.model.requires_grad_(False)
    kept = media.encode(batch).media.tensors
    assert any(tmp_path.rglob("*.safetensors"))
    prefix = next(iter(backbone.projectors.values()))
    projector = [p for name, p in backbone.model.named_parameters() if name.startswith(prefix)]
    first = projector[-1].detach().clone()
    for parameter in projector:
        parameter.requires_grad_(True)
    try:
        with torch.no_grad():
            projector[-1].add_(1.0)
        runs.clear()
        fresh = media.encode(batch).media.tensors
        assert len(runs) == len(backbone.towers)
        assert not all(torch.equal(fresh[kind], kept[kind]) for kind in kept)
        backbone.model.requires_grad_(False)  # the same cache, used regardless, would give the old outputs
        stale = media.encode(batch).media.tensors
        assert all(torch.equal(stale[kind], kept[kind]) for kind in kept)
    finally:
        with torch.no_grad():
            projector[-1].copy_(first)
