import json
from dataclasses import replace

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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_skipped", value) for value in ("3", [1], True, 1.5, -4, 10**400)),
        *(("num_steps", value) for value in ("many", 1.0)),
        *((key, value) for key in ("changed", "idle") for value in ("false", 0)),
    ],
)
def test_a_value_of_the_wrong_kind_damages_the_manifest(key, value, tmp_path):
    finished = FinishedStage(digest="d", content={"seed": 0}, result=RESULT, training_metrics={})
    Manifest(stages={"warm": finished}).write(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    content["stages"]["warm"]["result"][key] = value
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(StageError, match=rf"{FILE} is damaged \(TypeError\(.{key} is "):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("place", "key"), [(("warm",), "content"), (("warm", "result", "artifacts", "handoff"), "path")]
)
@pytest.mark.parametrize("value", [None, 5, ["x"]])
def test_contents_and_paths_of_the_wrong_kind_damage_the_manifest(place, key, value, tmp_path):
    finished = FinishedStage(digest="d", content={"seed": 0}, result=RESULT, training_metrics={})
    Manifest(stages={"warm": finished}).write(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    entry = content["stages"]
    for name in place:
        entry = entry[name]
    entry[key] = value
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(StageError, match=rf"{FILE} is damaged"):
        Manifest.read(tmp_path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("made", [{}, {"pairs": Artifact(path="stages/00-warm/artifacts/pairs", digest="a")}])
def test_an_evaluated_stage_without_weights_damages_the_manifest(made, tmp_path):
    lost = replace(RESULT, artifacts=made)
    finished = FinishedStage(digest="d", content={}, result=lost, training_metrics={}, evaluation="e")
    Manifest(stages={"warm": finished}).write(tmp_path)
    with pytest.raises(StageError, match=rf"{FILE} is damaged .*stage warm was evaluated and has no handoff"):
        Manifest.read(tmp_path)


def test_a_stage_that_makes_nothing_damages_no_manifest(tmp_path):
    finished = FinishedStage(digest="d", content={}, result=replace(RESULT, artifacts={}), training_metrics={})
    Manifest(stages={"warm": finished}).write(tmp_path)
    assert Manifest.read(tmp_path).stages == {"warm": finished}
