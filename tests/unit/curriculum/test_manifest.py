import json

import pytest

from lightning_mmrl.curriculum.manifest import FILE, VERSION, FinishedStage, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import write_json
from lightning_mmrl.types.records import Artifact, StageResult

RESULT = StageResult(
    name="warm",
    artifacts={"handoff": Artifact(path="stages/00-warm/handoff", digest="abc")},
    inputs={"weights": "def"},
    metrics={"warm/loss": 0.5},
    seconds={"train": 1.5},
    tracking_id="run-1",
)


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    finished = FinishedStage(digest="d", content={"seed": 0}, result=RESULT, training_metrics={})
    manifest = Manifest(stages={"warm": finished}, tracking_id="parent")
    manifest.write(tmp_path / "run")
    assert Manifest.read(tmp_path / "run") == manifest
    assert [path.name for path in (tmp_path / "run").iterdir()] == [FILE]


def test_a_new_run_has_an_empty_manifest(tmp_path):
    assert Manifest.read(tmp_path / "none") == Manifest(stages={}, tracking_id=None)


def damaged(stages):
    return json.dumps({"version": VERSION, "stages": stages, "tracking_id": None})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("{}", "is damaged"),
        (damaged([]), "is damaged"),
        (damaged({"warm": {"digest": "d"}}), "is damaged"),
        (damaged({"warm": {"digest": "d", "result": {"name": "warm"}}}), "is damaged"),
        (
            json.dumps({"version": 99}),
            "has version 99; this program reads only versions 2 and 3; start a new run directory",
        ),
    ],
)
def test_a_damaged_manifest_is_refused_and_kept(content, sentence, tmp_path):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(StageError, match=rf"{FILE} {sentence}"):
        Manifest.read(tmp_path)
    assert (tmp_path / FILE).read_text() == content


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
