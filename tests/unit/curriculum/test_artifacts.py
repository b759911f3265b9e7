"""A folder of data is sealed like weights: complete, hashed, and checked before it is read."""

import json

import pytest

from lightning_mmrl.curriculum.artifacts import SEAL, check_artifact, sealed, write_artifact
from lightning_mmrl.errors import StageError

FACTS = {"artifact": "own", "manifest": "own.jsonl", "media_root": "/clips", "counts": {"kept": 1}}


def write_own(folder, text="one\n"):
    (folder / "own.jsonl").write_text(text)
    return FACTS


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "stages" / "01-draw" / "artifacts" / "own"
    write_artifact(folder, write_own, {"lineage": {"stage": "draw"}})
    return folder


def test_data_are_read_back_with_their_facts_and_lineage(own):
    facts = check_artifact(own)
    assert {key: facts[key] for key in FACTS} == FACTS
    assert facts["lineage"] == {"stage": "draw"}
    assert list(facts["files"]) == ["own.jsonl"]
    assert sorted(path.name for path in own.parent.iterdir()) == ["own"]


@pytest.mark.parametrize(
    ("text", "root", "same"),
    [("one\n", "/clips", (True, True)), ("one\n", "/moved", (True, False)), ("", "/clips", (False, False))],
)
def test_the_digest_is_of_the_files_and_the_seal_of_the_facts_too(own, tmp_path, text, root, same):
    before = sealed(own)

    def write(folder):
        return {**write_own(folder, text), "media_root": root}

    write_artifact(tmp_path / "other", write, {"lineage": {"stage": "draw"}})
    found = sealed(tmp_path / "other")
    assert (found["digest"] == before["digest"], found["seal"] == before["seal"]) == same


@pytest.mark.parametrize("spoil", ["changed", "emptied", "missing", "stray", "part", "link"])
def test_data_that_are_not_what_the_stage_left_are_refused(own, spoil, tmp_path):
    path = own / "own.jsonl"
    if spoil in ("changed", "emptied"):
        path.write_text("two\n" if spoil == "changed" else "")
    elif spoil in ("missing", "link"):
        path.rename(tmp_path / "moved.jsonl")
        if spoil == "link":
            path.symlink_to(tmp_path / "moved.jsonl")
    else:
        path = own / {"stray": "more.jsonl", "part": "own.jsonl.tmp"}[spoil]
        path.write_text("two\n")
    with pytest.raises(StageError, match=f"{path} is"):
        check_artifact(own)


@pytest.mark.parametrize("key", ["media_root", "manifest", "counts", "digest", "files"])
def test_an_edited_fact_breaks_the_seal(own, key):
    content = json.loads((own / SEAL).read_text())
    content[key] = {"own.jsonl": "0"} if key == "files" else "other"
    (own / SEAL).write_text(json.dumps(content))
    with pytest.raises(StageError, match=f"{own / SEAL} lists other files or facts than the stage wrote"):
        sealed(own)
