"""The stages behind a checkpoint are found offline: by their hashes, through data and into other runs."""

import json
import shutil

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.artifacts import write_artifact
from lightning_mmrl.curriculum.lineage import forebears, tags_of
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.types.records import Artifact, StageResult

COUNTS = {"kept": 3, "prompts": 3, "never_solved": 2}
ROUTING = {
    "prompts": {"never_solved": 2, "sometimes_solved": 3},
    "own_answers": {"kept": 3, "wrong": 9},
    "experts": {"adder": {"right": 1, "wrong": 1}},
}


def finished(run, name, kind, inputs, outputs, content=None, texts=None, **more):
    """A stage with the artifacts `outputs` (name to facts), on disk and in the record of the run."""
    made = {}
    for artifact, facts in outputs.items():
        folder = "handoff" if artifact == "handoff" else f"artifacts/{artifact}"
        place = run / "stages" / f"00-{name}" / folder

        own = (texts or {}).get(artifact, f"{run.name}/{name}/{artifact}")

        def write(folder, text=own):
            (folder / "content.txt").write_text(text)

        write_artifact(place, write, {**facts, "lineage": {"stage": name}})
        seal = json.loads((place / "mmrl.json").read_text())
        made[artifact] = Artifact(path=str(place.relative_to(run)), digest=seal["digest"], seal=seal["seal"])
    result = StageResult(name=name, artifacts=made, inputs=inputs, metrics={}, seconds={}, **more)
    full = {"stage.kind": kind, "data.root": "/data/sums", "data.train.jsonl": "0123456789abcdef", **(content or {})}
    return FinishedStage(digest=f"config-of-{name}", content=full, result=result, training_metrics={})


@pytest.fixture
def runs(tmp_path):
    """A run of one stage, and one that goes on from its handoff: sampling, sorting, and learning."""
    first, second = tmp_path / "first", tmp_path / "second"
    start = finished(
        first,
        "reason",
        "rl",
        {"weights": "base"},
        {"handoff": {}},
        {"starts_from": "base", "model.checkpoint": "org/model"},
    )
    Manifest(stages={"reason": start}).write(first)
    handoff = start.result.artifacts["handoff"]
    from_first = {"starts_from": str(first / handoff.path)}
    draw = finished(
        second, "draw", "sample", {"weights": handoff.digest}, {"rollouts": {"counts": {"kept": 5}}}, from_first
    )
    table = draw.result.artifacts["rollouts"].digest
    own = {"own": {"counts": COUNTS, "routing": ROUTING}}
    sort = finished(second, "sort", "route", {"table": table}, own)
    aside = finished(second, "aside", "filter", {"table": table}, {"kept": {"counts": {"kept": 1}}})
    reads = {"weights": handoff.digest, "data.sources.own": sort.result.artifacts["own"].digest}
    again = finished(second, "again", "sft", reads, {"handoff": {}}, from_first)
    stages = {stage.result.name: stage for stage in (draw, sort, aside, again)}
    Manifest(stages=stages).write(second)
    return second / "stages" / "00-again" / "handoff"


def test_all_stages_that_led_to_a_checkpoint_are_found_and_no_other(runs):
    found = forebears(runs)
    assert [each.name for each in found] == ["reason", "draw", "sort", "again"]
    assert [each.run for each in found] == [str(runs.parents[3] / "first"), *[str(runs.parents[2])] * 3]
    assert [each.kind for each in found] == ["rl", "sample", "route", "sft"]
    assert found[2].config == "config-of-sort"
    assert found[0].starts_from == "base (org/model)"
    assert found[2].datasets == {"train.jsonl": "0123456789abcdef"}
    assert found[2].counts == {"own": COUNTS}
    assert found[2].routing == ROUTING
    assert found[3].inputs["data.sources.own"] == f"own of sort, {found[2].outputs['own']}"
    assert found[3].inputs["weights"] == found[0].outputs["handoff"]
    assert found[1].routing == {}


def test_data_have_a_lineage_too(runs):
    assert [each.name for each in forebears(runs.parents[1] / "00-sort/artifacts/own")] == ["reason", "draw", "sort"]


def test_a_parent_that_is_gone_or_was_replaced_ends_the_lineage(runs):
    first = runs.parents[3] / "first"
    shutil.rmtree(first)
    assert [each.name for each in forebears(runs)] == ["draw", "sort", "again"]
    handoff = first / "stages" / "00-reason" / "handoff"
    write_artifact(handoff, lambda folder: (folder / "content.txt").write_text("another") and None, {})
    assert [each.name for each in forebears(runs)] == ["draw", "sort", "again"]


def test_an_artifact_that_was_sealed_anew_is_refused(runs):
    write_artifact(runs, lambda folder: (folder / "content.txt").write_text("another") and None, {})
    with pytest.raises(StageError, match="is not what stage again left there"):
        forebears(runs)


def test_the_command_prints_stages_counts_and_experts(runs, capsys):
    assert main(["lineage", str(runs)]) == 0
    said = capsys.readouterr().out
    for line in (
        "sort (route) in ",
        "configuration  config-of-so",
        "data set       train.jsonl: 0123456789ab",
        "counts         own: 3 kept, 3 prompts, 2 never_solved",
        "prompts        2 never_solved, 3 sometimes_solved",
        "experts        adder: 1 right, 1 wrong",
        "input          data.sources.own: own of sort, ",
    ):
        assert line in said
    assert main(["lineage", str(runs), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in plain["stages"]] == ["reason", "draw", "sort", "again"]
    assert plain["stages"][2]["routing"] == ROUTING


def test_an_artifact_without_a_run_shows_its_seal(runs, tmp_path, capsys):
    shutil.copytree(runs, tmp_path / "shared")
    assert main(["lineage", str(tmp_path / "shared")]) == 0
    assert "no run has" in (said := capsys.readouterr().out)
    assert "  stage: again" in said


def test_a_folder_without_a_seal_is_refused(tmp_path, capsys):
    assert main(["lineage", str(tmp_path)]) == 2
    assert "is not a finished artifact" in capsys.readouterr().err


def test_counts_and_routing_are_tags_of_a_tracked_run(runs):
    tags = tags_of(runs.parents[1] / "00-sort/artifacts/own", "own")
    assert {key: json.loads(value) for key, value in tags.items()} == {
        "mmrl.counts.own": COUNTS,
        "mmrl.routing": ROUTING,
    }
    assert tags_of(runs, "handoff") == {}


def test_a_stage_that_hands_on_the_weights_of_another_leads_to_it(tmp_path, capsys):
    """Both handoffs have one digest."""
    first = finished(tmp_path, "warm", "sft", {"weights": "base"}, {"handoff": {}}, texts={"handoff": "same"})
    digest = first.result.artifacts["handoff"].digest
    why = {"data.sources.own": "artifact own of stage draw has no sample (0 kept, 3 wrong)"}
    read = {"weights": digest}
    idle = finished(
        tmp_path, "again", "sft", read, {"handoff": {}}, texts={"handoff": "same"}, idle=True, empty_inputs=why
    )
    last = finished(tmp_path, "last", "rl", read, {"handoff": {}})
    stages = {"warm": first, "again": idle, "last": last}
    assert idle.result.artifacts["handoff"].digest == digest
    Manifest(stages=stages).write(tmp_path)
    for stage, led in (("warm", ["warm"]), ("again", ["warm", "again"]), ("last", ["warm", "again", "last"])):
        handoff = tmp_path / stages[stage].result.artifacts["handoff"].path
        found = forebears(handoff)
        assert [each.name for each in found][-len(led) :] == led
    assert [each.inputs["weights"].partition(",")[0] for each in found] == [
        "base",
        "handoff of warm",
        "handoff of again",
    ]
    assert main(["lineage", str(handoff)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  without        data.sources.own: artifact own of stage draw has no sample (0 kept, 3 wrong)" in lines
    assert lines.count("  nothing to do") == 1
