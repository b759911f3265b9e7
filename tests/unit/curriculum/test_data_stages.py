"""The orchestrator with stages that make data: what follows their edges, and what does not."""

import json
import shutil

import pytest
from curriculum_lab import Lab

from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.graph import plan_stages
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.curriculum.selection import Selection, is_stale
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import SourceSettings, StageDataSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import Artifact, StageResult

ORDER = ["warm", "draw", "again", "reason"]
READS = {"again": ["draw"]}


@pytest.fixture
def lab(tmp_path):
    found = Lab(tmp_path)
    found.reads = READS
    return found


def run(lab, order=ORDER, **how):
    """`reason` starts from the first stage, so that it builds on no data."""
    return lab.run(order, **{"reason": "warm", **how})


def test_a_stage_reads_weights_and_data_of_the_stages_that_it_names(lab):
    results = {result.name: result for result in run(lab)}
    trained = [f"{verb} {name}" for name in ("again", "reason") for verb in ("train", "evaluate")]
    assert lab.happened == ["start run-1.0", "train warm", "evaluate warm", "sample draw", *trained]
    assert lab.weights("02-again") == "base>warm+base>warm>draw>again"
    assert lab.weights("03-reason") == "base>warm>reason"
    draw = results["draw"]
    assert draw.handoff is None
    assert {name: made.path for name, made in draw.artifacts.items()} == {
        "rollouts": "stages/01-draw/artifacts/rollouts",
        "own": "stages/01-draw/artifacts/own",
    }
    assert results["again"].inputs == {
        "weights": results["warm"].handoff.digest,
        "data.sources.draw": draw.artifacts["own"].digest,
    }
    assert set(draw.seconds) == {"run"}


def test_data_are_tracked_as_weights_are(lab):
    results = {result.name: result for result in run(lab)}
    tags = {each.name: each.tags for each in lab.tracker.runs}
    own = results["draw"].artifacts["own"].digest
    assert tags["01-draw"]["mmrl.output.own"] == tags["02-again"]["mmrl.input.data.sources.draw"] == own
    assert "mmrl.output_digest" not in tags["01-draw"]
    assert tags["01-draw"]["mmrl.config_digest"] == Manifest.read(lab.directory).stages["draw"].digest
    parent = lab.tracker.runs[0]
    # A point for each stage that trains, numbered among them.
    assert [(next(iter(values)), step) for values, step in parent.metrics] == [
        ("warm/test/uar", 1),
        ("again/test/uar", 2),
        ("reason/test/uar", 3),
    ]
    lineage = json.loads((lab.directory / "stages/02-again/handoff" / SEAL).read_text())["lineage"]
    assert lineage["input.data.sources.draw"] == own


def test_data_are_shown_once_made_and_again_only_to_a_run_that_reads_them(lab):
    run(lab, ["warm", "draw"])
    assert lab.shown == [("draw", ["own", "rollouts"])]
    run(lab, ["warm", "draw", "again"])
    assert lab.shown == [("draw", ["own", "rollouts"])]
    shutil.rmtree(lab.directory / "stages/01-draw/artifacts")
    run(lab)
    assert lab.shown == []
    assert lab.finished == ORDER


def test_data_that_nobody_can_use_end_the_run_twice_in_the_same_way(lab):
    lab.failures = {("show", "draw"): DataError("no sample")}
    for attempt in (1, 2):
        with pytest.raises(DataError, match="no sample"):
            run(lab)
        assert lab.finished == ["warm", "draw"]
        if attempt == 1:  # the stage itself did what it should
            assert lab.tracker.statuses == {"lab": "FAILED", "00-warm": "FINISHED", "01-draw": "FINISHED"}
        else:
            assert (lab.happened, lab.tracker.runs) == ([], [])


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_inserted_data_stage_leaves_all_others_finished(lab, after):
    before = {result.name: result for result in run(lab)}
    weights = {name: path.stat().st_mtime_ns for name, path in handoffs(lab)}
    longer = [*ORDER[:after], "draw_more", *ORDER[after:]]
    results = {result.name: result for result in run(lab, longer)}
    assert lab.happened[1:] == ["sample draw_more"]
    assert {name: results[name] for name in ORDER} == before
    assert {name: path.stat().st_mtime_ns for name, path in handoffs(lab)} == weights
    run(lab)  # and taken out again
    assert lab.happened == []
    assert [result.name for result in run(lab, longer)] == longer
    assert lab.happened == []


def handoffs(lab):
    return [(path.parent.name, path) for path in lab.directory.glob("stages/*/handoff")]


def test_a_removed_data_stage_leaves_the_others_alone_and_its_reader_changed(lab):
    run(lab)
    lab.reads = {}
    run(lab, ["warm", "again", "reason"])
    assert lab.happened == []
    assert sorted(path.name for path in (lab.directory / "stages").iterdir())[1] == "01-draw"


def test_an_inserted_trained_stage_is_a_change_of_those_after_it(lab):
    """The negative control: seeds follow from the place among trained stages."""
    run(lab)
    with pytest.raises(ConfigError, match=r"^stages.reason: finished in .*\n    reason index: 2 -> 3\n"):
        run(lab, ["warm", "cold_start", "draw", "again", "reason"])


def test_exactly_what_builds_on_new_data_runs_again(lab):
    run(lab)
    run(lab, selection=Selection(only_stage="draw"))
    assert lab.happened[1:] == ["sample draw"]
    assert not any("was replaced" in line for line in lab.said)
    run(lab)
    assert lab.happened == []  # the same data again: nothing is stale
    lab.salt = "!"
    run(lab, selection=Selection(only_stage="draw"))
    stale = [line for line in lab.said if "an artifact that it read was replaced; the next run runs it again" in line]
    assert stale == ["stage 3 of 4 again: an artifact that it read was replaced; the next run runs it again"]
    lab.salt = ""
    run(lab)
    assert lab.happened[1:] == ["train again", "evaluate again"]
    assert lab.weights("02-again") == "base>warm+base>warm>draw!>again"


def test_from_stage_follows_data_and_leaves_other_stages_alone(lab):
    run(lab)
    run(lab, selection=Selection(from_stage="draw"))
    assert lab.happened[1:] == ["sample draw", "train again", "evaluate again"]
    assert (lab.directory / "stages/01-draw.replaced-1/artifacts/own/own.jsonl").read_text() == "base>warm>draw"


def test_a_changed_data_stage_alone_is_refused(lab):
    run(lab)
    with pytest.raises(ConfigError, match=r"^stages.draw: finished in .*\n    stages.draw.num_steps: 200 -> 300\n"):
        run(lab, changed=["draw"])
    assert (lab.happened, lab.tracker.runs) == ([], [])
    run(lab, changed=["draw"], selection=Selection(from_stage="draw"))
    assert lab.happened[1:] == ["sample draw", "train again", "evaluate again"]


@pytest.mark.parametrize("selection", [Selection(only_stage="again"), Selection(from_stage="again")])
def test_a_stage_whose_data_are_not_made_yet_cannot_run_alone(lab, selection):
    run(lab, ["warm"])
    with pytest.raises(ConfigError, match="stage again reads data of draw, which is not finished; run draw first"):
        run(lab, selection=selection)


@pytest.mark.parametrize("spoil", ["changed", "missing", "stray", "seal"])
def test_data_that_were_tampered_with_are_not_read(lab, spoil):
    run(lab, ["warm", "draw"])
    folder = lab.directory / "stages/01-draw/artifacts/own"
    if spoil == "changed":
        (folder / "own.jsonl").write_text("evil")
    elif spoil == "missing":
        (folder / "own.jsonl").unlink()
    elif spoil == "stray":
        (folder / "more.jsonl").write_text("evil")
    else:
        content = json.loads((folder / SEAL).read_text())
        (folder / SEAL).write_text(json.dumps({**content, "labels": ["evil"]}))
    with pytest.raises(StageError, match="01-draw/artifacts/own"):
        run(lab)
    assert lab.finished == ["warm", "draw"]
    run(lab, selection=Selection(from_stage="draw"))
    assert lab.finished == ORDER


@pytest.mark.parametrize("place", ["sample", "export", "export own", "show"])
def test_a_data_stage_goes_on_where_it_was_interrupted(lab, place):
    lab.saves_states = True
    lab.failures = {(place, "draw"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(lab)
    folder = lab.directory / "stages/01-draw"
    assert (folder / "state").is_dir() == (place != "show")
    lab.failures = {}
    run(lab)
    assert lab.happened[1:2] == (["train again"] if place == "show" else ["continue draw"])
    assert lab.finished == ORDER
    assert lab.weights("02-again") == "base>warm+base>warm>draw>again"
    assert not list(lab.directory.rglob("*.mmrl-partial"))


def test_a_changed_data_stage_that_was_interrupted_is_refused_and_set_aside(lab):
    lab.saves_states = True
    lab.failures = {("sample", "draw"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(lab)
    lab.failures = {}
    with pytest.raises(ConfigError, match=r"stages.draw: begun in .* with another configuration and not finished"):
        run(lab, changed=["draw"])
    run(lab, changed=["draw"], selection=Selection(from_stage="draw"))
    assert lab.happened[1:2] == ["sample draw"]
    assert (lab.directory / "stages/01-draw.replaced-1/state").is_dir()


@pytest.mark.parametrize(("name", "verb", "goes_on"), [("draw", "sample", False), ("again", "train", True)])
def test_accepted_changes_go_on_with_training_and_not_with_half_a_table(lab, name, verb, goes_on):
    lab.saves_states = True
    lab.failures = {(verb, name): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(lab)
    lab.failures = {}
    run(lab, changed=[name], selection=Selection(allow_changes=True))
    assert lab.happened[1] == (f"continue {name}" if goes_on else f"{verb} {name}")
    assert any(path.name == "01-draw.replaced-1" for path in (lab.directory / "stages").iterdir()) != goes_on
    assert lab.finished == ORDER


def test_states_that_a_kill_left_after_the_end_of_a_stage_are_removed(lab):
    run(lab)
    states = lab.directory / "stages/01-draw/state"
    states.mkdir()
    (states / "part-000000.jsonl").write_text("{}")
    run(lab)
    assert lab.happened == []
    assert not states.exists()


def test_a_data_stage_may_read_data_and_start_from_the_base(lab):
    lab.reads = {"draw_more": ["draw"], "again": ["draw", "draw_more"]}
    run(lab, ["draw", "warm", "draw_more", "again"], draw_more="base")
    assert lab.weights("03-again") == "base>warm+base>draw+base+base>draw>draw_more>again"


def test_a_manifest_of_an_older_version_continues(lab):
    """Version 2 knew one artifact and one input, and numbered folders by the place in the order."""
    run(lab, ["warm", "reason"])
    path = lab.directory / FILE
    content = json.loads(path.read_text())
    for entry in content["stages"].values():
        (made,), result = entry["result"].pop("artifacts").values(), entry["result"]
        result |= {"handoff": made["path"], "handoff_digest": made["digest"], "handoff_seal": made["seal"]}
        result["input_digest"] = result.pop("inputs")["weights"]
    path.write_text(json.dumps({**content, "version": 2}))
    before = Manifest.read(lab.directory)
    run(lab, ["warm", "draw", "reason"])
    assert lab.happened[1:] == ["sample draw"]
    after = Manifest.read(lab.directory)
    assert {name: after.stages[name] for name in before.stages} == dict(before.stages)
    assert json.loads(path.read_text())["version"] == 3


def test_an_attempt_of_an_older_version_continues(lab):
    lab.saves_states = True
    lab.failures = {("train", "reason"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(lab, ["warm", "reason"])
    path = lab.directory / "stages/01-reason/attempt.json"
    attempt = json.loads(path.read_text())
    attempt["input_digest"] = attempt.pop("inputs")["weights"]
    path.write_text(json.dumps(attempt))
    lab.failures = {}
    run(lab, ["warm", "draw", "reason"])
    assert lab.happened[-2:] == ["continue reason", "evaluate reason"]
    assert lab.weights("01-reason") == "base>warm>reason"


def test_a_stage_that_reads_other_data_now_is_not_taken_for_stale():
    """Its configuration has changed, so it is refused, or kept by --allow-changes; it must not run again unasked."""
    stages = {name: SampleSettings(kind="sample", start_from="base") for name in ("draw", "draw2")}
    stages["again"] = StageSettings(
        kind="sft", data=StageDataSettings(sources={"own": SourceSettings(stage="draw2", artifact="own")})
    )
    specs = plan_stages([*stages], stages, kind_of)
    made = {name: {"own": Artifact(path=name, digest=name)} for name in ("draw", "draw2")}
    read = {"weights": "base", "data.sources.own": "draw"}

    def finished(name, **content):
        inputs = read if name == "again" else {}
        result = StageResult(name=name, artifacts=made.get(name, {}), inputs=inputs, metrics={}, seconds={})
        return FinishedStage(digest="", content=content, result=result, training_metrics={})

    old = {"starts_from": "base", "stage.data.sources.own.stage": "draw", "stage.data.sources.own.artifact": "own"}
    done = {name: finished(name) for name in made}
    assert not is_stale(specs[2], Manifest(stages={**done, "again": finished("again", **old)}))
    now = old | {"stage.data.sources.own.stage": "draw2"}
    assert is_stale(specs[2], Manifest(stages={**done, "again": finished("again", **now)})), "the negative control"


def test_an_artifact_that_the_manifest_lost_is_named_before_anything_runs(lab):
    run(lab, ["warm", "draw"])
    path = lab.directory / FILE
    content = json.loads(path.read_text())
    del content["stages"]["draw"]["result"]["artifacts"]["own"]
    path.write_text(json.dumps(content))
    with pytest.raises(StageError, match=r"stage draw has no own, which is needed now; .* --from-stage draw"):
        run(lab)
    assert lab.happened == []
    run(lab, selection=Selection(from_stage="draw"))
    assert lab.happened[1] == "sample draw", "the way out that the sentence names"


def test_lost_weights_that_are_not_evaluated_yet_are_named(lab):
    run(lab, ["warm", "draw"])
    path = lab.directory / FILE
    content = json.loads(path.read_text())
    content["stages"]["warm"]["evaluation"] = None
    content["stages"]["warm"]["result"]["artifacts"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(StageError, match=r"stage warm has no handoff, which is needed now; .* --from-stage warm"):
        run(lab, ["warm", "draw"])
