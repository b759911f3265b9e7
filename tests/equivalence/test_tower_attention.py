"""Towers that attend to all windows of one length at once give the stock features and gradients; a control fails."""

from functools import partial

import families
import omni
import pytest
import torch

from lightning_mmrl.errors import StageError
from lightning_mmrl.models import tower_attention

WITH_TOWERS = [name for name in families.FAMILIES if families.FAMILIES[name].contents[0].startswith("<")]


@pytest.fixture(scope="module", params=families.each(WITH_TOWERS))
def loaded(request, tmp_path_factory):
    name = request.param
    folder = families.build(name, tmp_path_factory.mktemp(name))
    encoder, backbone = families.parts(name, folder)
    families.exact(backbone.model)
    omni.spread(backbone.model)
    return backbone, families.prompts(name, encoder)


def run(backbone, prompts):
    backbone.model.zero_grad()
    features = backbone.media_features(prompts.media)
    sum((rows * torch.arange(rows.numel()).view(rows.shape).sin()).sum() for rows in features.values()).backward()
    gradients = {name: p.grad.clone() for name, p in backbone.model.named_parameters() if p.grad is not None}
    return {kind: rows.detach() for kind, rows in features.items()}, gradients


def calls(monkeypatch):
    made = []
    real = tower_attention.attend_windows
    monkeypatch.setattr(tower_attention, "attend_windows", lambda *args: made.append(1) or real(*args))
    return made


def test_features_and_gradients_are_the_stock_ones_in_one_call_per_layer(loaded, monkeypatch):
    backbone, prompts = loaded
    for tower in backbone.towers:
        tower.set_attn_implementation("sdpa")
    features, gradients = run(backbone, prompts)
    for tower in backbone.towers:
        tower_attention.install(tower)
    made = calls(monkeypatch)
    ours, our_gradients = run(backbone, prompts)
    assert len(made) == sum(len(list(_layers(tower))) for tower in backbone.towers)
    torch.testing.assert_close(ours, features, rtol=1e-9, atol=1e-9)
    assert our_gradients.keys() == gradients.keys()
    scale = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).norm() < 1e-9 * max(gradient.norm(), 1e-6 * scale), name


def _layers(tower):
    return (module for name, module in tower.named_modules() if name.endswith((".attn", ".self_attn")))


def test_control_other_windows_show(loaded, monkeypatch):
    backbone, prompts = loaded
    for tower in backbone.towers:
        tower_attention.install(tower)
    with torch.no_grad():
        right = backbone.media_features(prompts.media)
        real = tower_attention.attend_windows

        def one_window(query, key, value, boundaries, scale):
            return real(query, key, value, boundaries[[0, -1]], scale)

        monkeypatch.setattr(tower_attention, "attend_windows", one_window)
        wrong = backbone.media_features(prompts.media)
    assert max((wrong[kind] - right[kind]).abs().max() for kind in right) > 0.01


def test_windows_of_different_length_and_none():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(9, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    boundaries = torch.tensor([0, 3, 3, 5, 8, 9], dtype=torch.int32)
    ours = tower_attention.attend_windows(query, key, value, boundaries, 0.5)
    for start, stop in ((0, 3), (3, 5), (5, 8), (8, 9)):
        inside = slice(start, stop)
        weights = (torch.einsum("qhd,khd->hqk", query[inside], key[inside]) * 0.5).softmax(-1)
        torch.testing.assert_close(ours[inside], torch.einsum("hqk,khd->qhd", weights, value[inside]))


@pytest.mark.parametrize(
    ("mask", "more", "wanted"),
    [
        (torch.ones(4, 4), {}, "a mask"),
        (None, {"dropout": 0.1}, r"dropout=0\.1"),
        (torch.ones(4, 4), {"is_causal": True}, "a mask and is_causal=True"),
    ],
)
def test_what_windows_do_not_have_is_refused(mask, more, wanted):
    rows, windows = torch.zeros(1, 2, 4, 8), torch.tensor([0, 4])
    ask = partial(tower_attention.attention_forward, torch.nn.Module(), rows, rows, rows, cu_seq_lens_q=windows)
    ask(None, dropout=0.0, is_causal=False)
    with pytest.raises(StageError, match=rf"^Module of transformers [\d.]+ asks its attention for {wanted}, which"):
        ask(mask, **more)
