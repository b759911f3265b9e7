"""Data that hold no sample: what their readers do without them, and who says so."""

import json
from dataclasses import replace

import pytest
from curriculum_lab import Lab

from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.emptiness import is_idle, refuse_idle
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.curriculum.selection import Selection
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.bridge import BridgeSettings
from lightning_mmrl.settings.data import SourceSettings, StageDataSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import Edge, StageSpec

EMPTY = {"counts": {"kept": 0, "wrong": 3}}
WHY = "artifact own of stage draw has no sample (0 kept, 3 wrong)"
ORDER = ["warm", "draw", "draw_more", "reason", "again"]


@pytest.fixture
def lab(tmp_path):
    """`draw` makes no sample, `draw_more` does, and `again` reads both."""
    found = Lab(tmp_path)
    found.reads = {"again": ["draw", "draw_more"]}
    found.facts = {("draw", "own"): EMPTY, ("draw_more", "own"): {"counts": {"kept": 2}}}
    return found


def test_an_empty_source_beside_another_is_left_out_and_said_everywhere(lab):
    results = {result.name: result for result in lab.run(ORDER)}
    assert [line for line in lab.said if "left out" in line] == [
        f"stage 5 of 5 again: data.sources.draw is left out: {WHY}"
    ]
    assert (results["again"].empty_inputs, results["again"].idle) == ({"data.sources.draw": WHY}, False)
    assert Manifest.read(lab.directory).stages["again"].result == results["again"]
    tags = {run.name: run.tags for run in lab.tracker.runs}["04-again"]
    assert {key: tags[key] for key in tags if "empty" in key or "idle" in key} == {"mmrl.empty.data.sources.draw": WHY}
    lineage = json.loads((lab.directory / "stages/04-again/handoff" / SEAL).read_text())["lineage"]
    assert lineage["empty.data.sources.draw"] == WHY
    assert all(not results[name].empty_inputs for name in ORDER[:-1])


def test_with_nothing_left_the_run_ends_before_what_lies_between(lab):
    """Not after hours of `reason`, which trains before the stage that could not run."""
    lab.facts["draw_more", "own"] = EMPTY
    more = WHY.replace("stage draw", "stage draw_more")
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            lab.run(ORDER)
        assert str(caught.value) == (
            f"stages.again has nothing to learn from: {WHY}; {more}; change stages.draw and run it again with "
            "--from-stage draw, or set stages.again.when_empty=skip to hand on the weights as they are"
        )
        assert lab.finished == ["warm", "draw", "draw_more"]
    lab.facts["draw_more", "own"] = {"counts": {"kept": 1}}
    lab.run(ORDER, selection=Selection(from_stage="draw_more"))
    assert lab.finished == ORDER


def test_with_skip_the_stage_has_nothing_to_do_and_the_run_goes_on(lab):
    lab.facts["draw_more", "own"] = EMPTY
    lab.when_empty = "skip"
    results = {result.name: result for result in lab.run([*ORDER, "last"])}
    assert [results[name].idle for name in ("reason", "again", "last")] == [False, True, False]
    assert any(
        line.startswith(f"stage 5 of 6 again: nothing to do: {WHY}; ") and line.endswith("handed on as they are")
        for line in lab.said
    )
    assert {run.name: run.tags for run in lab.tracker.runs}["04-again"]["mmrl.idle"] == "true"


def test_a_stage_without_data_says_why_those_before_it_had_none(lab):
    lab.reads = {"draw_more": ["draw"], "again": ["draw_more"]}
    lab.facts["draw_more", "own"] = {"counts": {"kept": 0}}
    with pytest.raises(
        DataError, match=r"stage draw_more has no sample \(0 kept\), since artifact own of stage draw has"
    ):
        lab.run(ORDER)
    assert "stage 3 of 5 draw_more: nothing to do: " in "\n".join(lab.said)


def test_a_run_of_the_maker_alone_is_not_ended_for_its_readers(lab):
    lab.run(ORDER)
    lab.facts["draw_more", "own"], lab.salt = EMPTY, "!"
    lab.run(ORDER, selection=Selection(only_stage="draw_more"))
    with pytest.raises(DataError, match=r"stages\.again has nothing to learn from"):
        lab.run(ORDER)


def spec(settings, **inputs):
    return StageSpec(name="again", index=0, settings=settings, inputs=inputs)


MADE = SourceSettings(stage="draw", artifact="own")


@pytest.mark.parametrize(
    ("data", "idle"),
    [
        (StageDataSettings(sources={"own": MADE}), True),
        (StageDataSettings(sources={"own": MADE, "file": SourceSettings(manifest="train.jsonl")}), False),
        (StageDataSettings(manifest="train.jsonl"), False),
    ],
)
def test_files_are_something_to_do(data, idle):
    weights, own = Edge("warm", "handoff", "weights"), Edge("draw", "own")
    inputs = {"weights": weights} | ({"data.sources.own": own} if data.sources else {})
    stage = spec(StageSettings(kind="sft", data=data), **inputs)
    empty = {"data.sources.own": WHY} if data.sources else {}
    assert is_idle(stage, empty) is idle
    if idle:
        with pytest.raises(DataError, match="has nothing to learn from"):
            refuse_idle(stage, empty)
    refuse_idle(replace(stage, settings=StageSettings(kind="sft", data=data, when_empty="skip")), empty)


@pytest.mark.parametrize(
    ("empty", "idle"),
    [((), False), (("answers",), False), (("descriptions",), False), (("descriptions", "answers"), True)],
)
def test_a_stage_of_tables_has_nothing_to_do_once_all_are_empty(empty, idle):
    settings = BridgeSettings(kind="bridge", data=StageDataSettings(manifest="traces.jsonl"))
    tables = {name: Edge(name, "rollouts", "table") for name in ("descriptions", "answers")}
    found = spec(settings, **tables)
    assert is_idle(found, dict.fromkeys(empty, WHY)) is idle
    refuse_idle(found, dict.fromkeys(empty, WHY))  # it makes data, which are then empty
