"""Every backbone offers the same to a policy: rows in their places, the number that towers will make, a config."""

import families
import omni
import pytest
import torch


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def model(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    encoder, policy = families.load(request.param, folder)
    return encoder, policy._backbone, families.prompts(request.param, encoder)


@pytest.fixture(scope="module")
def features(model):
    _, backbone, batch = model
    with torch.no_grad():
        return backbone.media_features(batch.media)


def slots_of(backbone, ids, mask):
    return {kind: (ids == token) & mask for kind, token in backbone.placeholder_ids.items()}


def packed(batch):
    """All prompts in one row [1, T], without padding."""
    ids = batch.input_ids[batch.prompt_mask][None]
    return ids, torch.ones_like(ids, dtype=torch.bool)


def rows_by_hand(kind, features, slots):
    """Row by row in reading order, without masked_scatter."""
    places = slots[kind].nonzero().tolist()
    return {tuple(place): row for place, row in zip(places, features[kind], strict=True)}


def test_rows_fill_the_slots_of_their_kind_in_reading_order(model, features):
    _, backbone, batch = model
    for ids, mask in ((batch.input_ids, batch.prompt_mask), packed(batch)):
        embeddings = backbone.text_model.get_input_embeddings()(ids)
        slots = slots_of(backbone, ids, mask)
        placed, _ = backbone.place_features(embeddings, slots, features)
        wanted = embeddings.clone()
        for kind in features:
            for (row, column), feature in rows_by_hand(kind, features, slots).items():
                wanted[row, column] = feature[: wanted.shape[-1]]
        assert torch.equal(placed, wanted)
        assert torch.equal(placed, embeddings) == (not features)


def test_a_prompt_without_media_gets_its_embeddings_back(model):
    encoder, backbone, _ = model
    batch = omni.prompts(encoder, ["Which emotion?", "angry"])
    embeddings = backbone.text_model.get_input_embeddings()(batch.input_ids)
    slots = slots_of(backbone, batch.input_ids, batch.prompt_mask)
    placed, more = backbone.place_features(embeddings, slots, backbone.media_features(batch.media))
    assert torch.equal(placed, embeddings)
    assert more == {}


def test_rows_take_the_embeddings_precision_and_gradients_reach_both(model, features):
    _, backbone, batch = model
    embeddings = backbone.text_model.get_input_embeddings()(batch.input_ids).detach().float().requires_grad_()
    leaves = {kind: rows.detach().clone().requires_grad_() for kind, rows in features.items()}
    slots = slots_of(backbone, batch.input_ids, batch.prompt_mask)
    placed, _ = backbone.place_features(embeddings, slots, leaves)
    assert placed.dtype == torch.float32
    placed.sum().backward()
    taken = torch.zeros_like(batch.prompt_mask)
    for kind, leaf in leaves.items():
        taken |= slots[kind]
        assert (leaf.grad[:, : placed.shape[-1]] == 1).all()
    assert (embeddings.grad[~taken] == 1).all()
    assert (embeddings.grad[taken] == 0).all()


def test_the_rows_of_every_medium_are_known_without_running_a_tower(model, features, monkeypatch):
    _, backbone, batch = model
    for tower in backbone.towers:
        monkeypatch.setattr(tower, "forward", None)
    rows = backbone.feature_rows(batch.media)
    assert {kind: int(count.sum()) for kind, count in rows.items()} == {k: len(rows) for k, rows in features.items()}
    for kind, counts in rows.items():
        assert counts.dtype == torch.int64
        owned = batch.media.counts[backbone.medium_keys[kind]]
        assert sum(owned) == len(counts)
        slots = slots_of(backbone, batch.input_ids, batch.prompt_mask)[kind].sum(-1).tolist()
        assert [int(piece.sum()) for piece in counts.split(list(owned))] == slots


def test_a_family_names_one_key_for_each_kind_it_reads(model):
    encoder, backbone, _ = model
    assert set(backbone.medium_keys) == set(encoder.media_kinds) == set(backbone.placeholder_ids)


def test_the_decoders_configuration_is_the_one_it_computes_with(model):
    encoder, backbone, _ = model
    config = backbone.text_model.config
    assert config is backbone.text_model.layers[0].self_attn.config
    assert config.num_hidden_layers == len(backbone.text_model.layers)
    assert config.hidden_size == encoder.config.get_text_config().hidden_size
