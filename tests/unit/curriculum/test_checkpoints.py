"""A folder or a hub id is a model or an adapter over one; what is neither is refused in one sentence."""

import json
from pathlib import Path

import pytest

from lightning_mmrl.curriculum.artifacts import write_artifact
from lightning_mmrl.curriculum.checkpoints import located, require_checkpoint
from lightning_mmrl.errors import StageError


def model(folder, content="{}"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    return folder


def adapter(folder, base, weights=b"w"):
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "r": 4}))
    if weights is not None:
        (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def fetch(checkpoint, name):
    return None


def test_a_folder_and_an_adapter_over_it_have_their_own_identities(tmp_path):
    base, other = model(tmp_path / "base"), model(tmp_path / "other", '{"a": 1}')
    over = adapter(tmp_path / "a", str(base))
    plain, found = located(base, fetch), located(over, fetch)
    assert (plain.place, plain.adapter) == (base, None)
    assert found.place == base
    assert set(found.adapter) == {"adapter_config.json", "adapter_model.safetensors"}
    again = adapter(tmp_path / "b", str(base))
    changed = adapter(tmp_path / "c", str(base), b"v")
    identities = [located(each, fetch).identity() for each in (base, other, over, again, changed)]
    identities.append(located(over, fetch, other).identity())
    assert identities[2] == identities[3]
    assert len({json.dumps(each, sort_keys=True) for each in identities}) == 5


def test_a_hub_id_is_known_by_its_commit(tmp_path):
    snapshot = model(tmp_path / "models--org--name" / "snapshots" / "abc")

    def cached(checkpoint, name):
        return snapshot / name if checkpoint == "org/name" else None

    assert located(Path("org/name"), cached).commit == "abc"
    over = adapter(tmp_path / "models--org--lora" / "snapshots" / "def", "org/name")

    def both(checkpoint, name):
        return over / name if checkpoint == "org/lora" else cached(checkpoint, name)

    found = located(Path("org/lora"), both)
    assert (str(found.place), found.commit, found.identity()["model"]) == ("org/name", "abc", "org/name@abc")


@pytest.mark.parametrize("name", ["none/handoff", "/none", "a/b/c", "none"])
def test_what_can_be_no_checkpoint_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=f"checkpoint {name} is no Hugging Face folder; give a stage's handoff folder"):
        require_checkpoint(Path(name))


def test_an_adapter_without_its_base_or_its_weights_is_refused(tmp_path):
    gone = adapter(tmp_path / "a", str(tmp_path / "gone"))
    with pytest.raises(StageError, match=r"base_model_name_or_path in .*adapter_config.json is .*gone, which is no Hu"):
        located(gone, fetch)
    with pytest.raises(StageError, match=r"--base is .*none, which is no Hugging Face folder; give the model"):
        located(gone, fetch, tmp_path / "none")
    with pytest.raises(StageError, match=r"b names no base model .* is None\); give it by --base"):
        located(adapter(tmp_path / "b", None), fetch)
    base = model(tmp_path / "base")
    with pytest.raises(StageError, match=r"c has no adapter_model.safetensors; restore it, or save it as safetensors"):
        located(adapter(tmp_path / "c", str(base), None), fetch)
    (tmp_path / "a" / "adapter_config.json").write_text("{")
    with pytest.raises(StageError, match=r"adapter_config.json is damaged .*; restore it"):
        located(gone, fetch)
    assert located(adapter(tmp_path / "d", "gone"), fetch, base).place == base


def test_a_base_for_what_is_no_adapter_is_refused(tmp_path):
    base = model(tmp_path / "base")
    with pytest.raises(StageError, match=r"--base is x, and checkpoint .*base is no adapter; leave --base out"):
        located(base, fetch, "x")


def test_half_a_handoff_is_refused(tmp_path):
    handoff = tmp_path / "handoff"
    write_artifact(handoff, lambda folder: (folder / "config.json").write_text("{}") and None, {})
    with pytest.raises(StageError, match=r"has no generation_config.json; it is not a complete Hugging Face folder"):
        located(handoff, fetch)
