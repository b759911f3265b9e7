"""A sealed folder may hold the files that its stage wrote, and files that no loader reads."""

import json
import os
import shutil

import foreign
import pytest
from foreign import WEIGHTS

from lightning_mmrl.curriculum.artifacts import SEAL, sealed
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.lineage import checked_handoff
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.curriculum.publish import publish
from lightning_mmrl.errors import StageError
from lightning_mmrl.types.records import Artifact, StageResult


@pytest.fixture
def handoff(tmp_path):
    return foreign.write(tmp_path / "runs" / "first" / "stages" / "00-reason" / "handoff", {})


STRAY = [
    "adapter_config.json",
    "adapter_model.bin",
    "pytorch_model.bin",
    "modeling_evil.py",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "model-00002.safetensors",
    "model.safetensors.index.json",
    "readme.md",
    "README.md.py",
    ".hidden",
    ".cache/evil.json",
    ".gitattributes/evil",
    "README.md/evil",
    "custom_generate/generate.py",
    "additional_chat_templates/default.jinja",
    "adapter/adapter_config.json",
    "adapter/README.md",
]


@pytest.mark.parametrize("name", STRAY)
def test_a_file_that_no_stage_wrote_refuses_the_folder(handoff, name):
    path = handoff / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    top = handoff / name.partition("/")[0]
    with pytest.raises(StageError, match=f"{top} is no part of this folder, and a loader might read it; move it"):
        check_handoff(handoff)


@pytest.mark.parametrize("kind", ["file", "folder", "broken", "loop", "pipe", "seal"])
def test_what_is_no_plain_file_refuses_the_folder(handoff, kind, tmp_path):
    """Also in the place of a sealed file, with its content: what a link leads to may change after the check."""
    place = handoff / (SEAL if kind == "seal" else WEIGHTS)
    place.rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(place)
    else:
        (tmp_path / "folder").mkdir()
        target = {"folder": "folder", "broken": "nothing", "loop": place}.get(kind, "elsewhere")
        place.symlink_to(tmp_path / target)
    with pytest.raises(StageError, match=f"{place} is no plain file, and a sealed folder has no others"):
        check_handoff(handoff)


def test_an_empty_folder_is_no_part_of_a_handoff(handoff):
    (handoff / "custom_generate").mkdir()
    with pytest.raises(StageError, match="custom_generate is no part of this folder"):
        check_handoff(handoff)


BESIDE = ["README.md", "LICENSE", ".gitattributes", ".DS_Store", ".git/config", ".cache/huggingface/download/a.lock"]


@pytest.mark.parametrize("name", BESIDE)
def test_what_no_loader_reads_may_lie_beside(handoff, name, tmp_path):
    """A card, and what the hub, git and file managers leave; a copy takes only what is sealed."""
    (handoff / name).parent.mkdir(parents=True, exist_ok=True)
    (handoff / name).write_text("a")
    check_handoff(handoff)
    publish(handoff, tmp_path / "shared")
    names = {path.relative_to(tmp_path / "shared").as_posix() for path in (tmp_path / "shared").rglob("*")}
    assert names == {*check_handoff(handoff)["files"], SEAL, "README.md"}
    check_handoff(tmp_path / "shared")


def in_hub_cache(handoff, folder):
    """The folder as `huggingface_hub` keeps a snapshot: links to files with the names of their hashes."""
    snapshot, blobs = folder / "models--org--name" / "snapshots" / "abc", folder / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(handoff.iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_a_snapshot_in_the_hubs_cache_is_read(handoff, tmp_path):
    snapshot = in_hub_cache(handoff, tmp_path / "hub")
    assert check_handoff(snapshot)["seal"] == sealed(handoff)["seal"]
    (snapshot / WEIGHTS).unlink()
    (tmp_path / "hub" / "secret").write_text(WEIGHTS)
    (snapshot / WEIGHTS).symlink_to(tmp_path / "hub" / "secret")
    with pytest.raises(StageError, match="is no plain file"):
        check_handoff(snapshot)


CHANGES = {
    "a fact": {"prompt": {**foreign.FACTS["prompt"], "suffix": "Say sad."}},
    "the lineage": {"lineage": {"stage": "other"}},
    "one more fact": {"max_new_tokens": 25},
    "the digest of the seal": {"seal": "0" * 64},
    "no digest of the seal": {"seal": None},
    "an older version": {"version": None},
    "a newer version": {"version": 3},
    "no version": {"version": "2"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_seal_that_was_edited_is_refused(handoff, change):
    foreign.edit_seal(handoff, **CHANGES[change])
    with pytest.raises(StageError, match=SEAL):
        check_handoff(handoff)


def test_names_that_lead_out_of_the_folder_are_missing_from_it(handoff, tmp_path):
    """Whatever a stranger's seal lists, only what lies in the folder is looked at."""
    (handoff.parent / "secret").write_text("s")
    for name in ("../secret", str(handoff.parent / "secret"), "./config.json", ""):
        content = json.loads((handoff / SEAL).read_text())
        del content["seal"]
        content["files"] = {**check_handoff(handoff)["files"], name: "0"}
        content["digest"] = foreign.combined(content["files"])
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(handoff, other)
        (other / SEAL).write_text(json.dumps({**content, "seal": foreign.combined(content)}))
        with pytest.raises(StageError, match="is missing or changed"):
            check_handoff(other)


@pytest.fixture
def record(handoff):
    """A run whose manifest knows the handoff."""
    facts = check_handoff(handoff)
    result = StageResult(
        name="reason",
        artifacts={
            "handoff": Artifact(path="stages/00-reason/handoff", digest=facts["digest"], seal=facts["seal"]),
        },
        inputs={"weights": "base"},
        metrics={},
        seconds={},
    )
    run = handoff.parents[2]
    Manifest(stages={"reason": FinishedStage(digest="-", content={}, result=result, training_metrics={})}).write(run)
    return result


def test_within_a_run_a_rewritten_folder_is_found_out(handoff, record):
    assert checked_handoff(handoff)["seal"] == record.handoff.seal
    foreign.write(handoff, {"labels": ["calm"]})
    check_handoff(handoff)  # whole in itself
    with pytest.raises(StageError, match="is not what stage reason left there: its facts were written anew"):
        checked_handoff(handoff)
    foreign.write(handoff, {}, {"model_type": "other"})
    with pytest.raises(StageError, match="is not what stage reason left there: its files were written anew"):
        publish(handoff, handoff.parent / "shared")


def test_a_seal_of_the_first_version_cannot_take_the_place_of_another(handoff, record):
    foreign.edit_seal(handoff, version=None, seal=None)
    check_handoff(handoff)
    with pytest.raises(StageError, match="its facts were written anew"):
        checked_handoff(handoff)


def test_a_copy_outside_of_its_run_stands_for_itself(handoff, record, tmp_path):
    shutil.copytree(handoff, tmp_path / "copy")
    assert checked_handoff(tmp_path / "copy")["seal"] == record.handoff.seal
